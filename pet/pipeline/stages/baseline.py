"""baseline: what the labelled texts alone are worth. Part of --stage evaluate, and an artifact of its own, so that a
table can reuse it.

Two supervised classifiers on the same draw: one fine-tuned as a whole, and a linear probe (scikit-learn's logistic
regression) on frozen features of the student's encoder. Writes scores.safetensors (supervised, probe: test scores
[N, L]) and training.json.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from pet.pipeline import drawn_texts
from pet.pipeline.context import RunContext, Start, training_settings
from pet.pipeline.node import Node, Stage
from pet.pipeline.score_files import write_scores
from pet.pipeline.student import Classifier
from pet.store.draft import Draft
from pet.tasks.splits import derive_seed
from pet.tasks.texts import TextFile
from pet.training.losses import label_loss
from pet.training.trainer import TrainingReport


def node(ctx: RunContext, prepared: Node, adapted: Node | None) -> Node:
    """Depends on the draw, the model and how the baselines are trained."""
    start, of_probe = (ctx.start(one.model, adapted) for one in (ctx.settings.baseline, ctx.settings.distill))
    settings = {
        "model": start.identity,
        "probe_model": of_probe.identity,
        "baseline": training_settings(ctx, ctx.settings.baseline),
        "seed": ctx.settings.seed,
    }
    inputs = {"prepare": prepared.identity, **start.inputs, **of_probe.inputs}
    return ctx.node(STAGE, [prepared, start, of_probe], settings, inputs, about="supervised baselines")


def make(ctx: RunContext, draft: Draft, prepared: Node, start: Start, of_probe: Start) -> None:
    """Train both baselines. There must be labelled texts."""
    ctx.say("evaluate: training the supervised baselines")
    splits = drawn_texts.load(prepared.artifact)
    gold = ctx.labels.encode(splits.train.labels)
    probe = score_probe(ctx, of_probe, splits, gold)
    supervised, report = score_supervised(ctx, start, splits, gold, draft)
    write_scores(draft, {"supervised": supervised, "probe": probe})
    draft.write_json("training.json", {"steps": report.steps, "losses": report.losses})


STAGE = Stage("baseline", version=3, make=make, step="evaluate", trains=True)


def score_supervised(
    ctx: RunContext, start: Start, splits: drawn_texts.Splits[TextFile], gold: NDArray[np.int64], draft: Draft
) -> tuple[NDArray[np.float32], TrainingReport]:
    """Test scores [N, L] of a classifier fine-tuned on the labelled texts. `draft`: keeps its checkpoint."""
    settings = ctx.settings.baseline
    classifier = Classifier(ctx, start, derive_seed("baseline", ctx.settings.seed))
    rows = classifier.encode(splits.train)
    report = classifier.train(rows, torch.from_numpy(gold), label_loss, settings, "supervised", draft)
    return classifier.score(classifier.encode(splits.test), "supervised on test"), report


def score_probe(
    ctx: RunContext, start: Start, splits: drawn_texts.Splits[TextFile], gold: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Test scores [N, L] of a logistic regression on the student's encoder before any training; -inf for labels that
    have no labelled text, or that it is sure not to be right.

    Raises:
        NotFinite: a feature is NaN or infinite, or a score is NaN.
    """
    from sklearn.linear_model import LogisticRegression

    encoder = Classifier(ctx, start, ctx.settings.seed)
    seen, unseen = (
        encoder.features(encoder.encode(texts), f"probe on {split}")
        for split, texts in (("train", splits.train), ("test", splits.test))
    )
    scores = np.full((len(unseen), len(ctx.card.labels)), -np.inf, dtype=np.float32)
    if len(set(gold)) == 1:  # one labelled text: nothing to tell apart
        scores[:, gold[0]] = 0
        return scores
    probe = LogisticRegression(C=ctx.settings.baseline.probe_c, max_iter=1000).fit(seen, gold)
    scores[:, probe.classes_] = probe.predict_log_proba(unseen)
    wrong = np.isnan(scores)
    if wrong.any():
        text = f"the score of text {int(wrong.any(1).argmax()) + 1:,}"
        raise encoder.origin.bad_score("probe on test", text, float("nan"), ctx.runtime.dtype is not None)
    return scores
