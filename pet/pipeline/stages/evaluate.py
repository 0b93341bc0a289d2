"""evaluate: every classifier of the walk on the same test set, with 95 % intervals.

Compares zero-shot (untuned patterns, pooled), the supervised baselines, every member, the ensemble before distillation
and the student; and, where the pool's labels are known, how right the soft labels were. Writes scores.json, and
calibration.json: one temperature for the student and one for the ensemble, and what each does to the expected
calibration error. Temperatures are fitted without the test set, which is only measured on. Of iPET's generations the
stage says how they scored, and what became of the texts that were drawn.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pet.algorithms.ensemble import align_prior, member_weights, pool_scores
from pet.pipeline import drawn_texts
from pet.pipeline.context import RunContext
from pet.pipeline.node import Node, Stage
from pet.pipeline.score_files import read_scores
from pet.pipeline.stages import label
from pet.pipeline.stages.calibrate import Entry, calibrate_all
from pet.pipeline.stages.finetune import Members
from pet.pipeline.stages.label import opinion_of
from pet.store.draft import Draft
from pet.tasks.texts import read_texts


def node(ctx: RunContext, prepared: Node, members: Members, labelled: Node, student: Node, base: Node | None) -> Node:
    """Depends on everything that is scored."""
    inputs = {"prepare": prepared.identity, "label": labelled.identity, "distill": student.identity}
    if base is not None:
        inputs["baseline"] = base.identity
    inputs |= {f"untuned-{number}": one.identity for number, one in members.untuned.items()}
    settings = {"metric": ctx.card.metric, "labels": list(ctx.card.labels)}
    return ctx.node(STAGE, [prepared, members, labelled, student, base], settings, inputs, about="scores")


def make(
    ctx: RunContext, draft: Draft, prepared: Node, members: Members, labelled: Node, student: Node, base: Node | None
) -> None:
    """Score everything, and fit the temperatures."""
    ctx.say("evaluate: scoring on the test set")
    draft.write_json("scores.json", score_all(ctx, prepared, members, labelled, student, base))
    calibrated = calibrate_all(ctx, prepared.artifact, members, labelled.artifact, student.artifact)
    draft.write_json("calibration.json", calibrated)
    for name, one in calibrated.items():
        if one["problem"]:
            ctx.say(f"evaluate: the {name}'s probabilities stay as they are: {one['problem']}")


STAGE = Stage("evaluate", version=2, make=make, step="evaluate")


def score_all(
    ctx: RunContext, prepared: Node, members: Members, labelled: Node, student: Node, base: Node | None
) -> dict[str, Any]:
    """Name -> value, low, high (percent); `members`: a list of such."""
    gold = gold_of(ctx, prepared)
    tuned = np.stack([read_scores(one.artifact)["test"] for one in members.tuned])  # [M, N, L]

    def entry(scores: NDArray[Any]) -> Entry:
        return score(ctx, gold, scores)

    scores: dict[str, Any] = {"zero_shot": score_untuned(ctx, prepared, members)}
    if base is not None:
        scores |= score_baseline(ctx, prepared, base)
    scores["members"] = [
        {"pattern": plan.pvp.number, "repetition": plan.repetition, **entry(one)}
        for plan, one in zip(members.plans, tuned, strict=True)
    ]
    scores |= {
        "ensemble": entry(opinion_of(ctx, members, labelled.artifact, tuned)),
        "student": entry(read_scores(student.artifact)["test"]),
    }
    return scores | score_soft_labels(ctx, prepared, labelled)


def score_untuned(ctx: RunContext, prepared: Node, members: Members) -> Entry:
    """The untuned patterns, pooled with the same weights."""
    gold = gold_of(ctx, prepared)
    untuned = np.stack([read_scores(one.artifact)["test"] for one in members.untuned.values()])  # [P, N, L]
    return score(ctx, gold, pool_scores(untuned, member_weights(np.zeros(len(untuned)))))


def score_baseline(ctx: RunContext, prepared: Node, base: Node) -> dict[str, Entry]:
    """The supervised baselines: fine-tuned, and linear probe. Where the shares of the soft labels are made even, the
    fine-tuned one with shares made even too, on the test set itself: it is told what the ensemble is told."""
    gold = gold_of(ctx, prepared)
    found: dict[str, NDArray[Any]] = {**read_scores(base.artifact)}
    if ctx.settings.label.shares == "even":
        found["supervised_even"] = found["supervised"] + align_prior(found["supervised"])
    return {name: score(ctx, gold, scores) for name, scores in found.items()}


def gold_of(ctx: RunContext, prepared: Node) -> NDArray[np.int64]:
    """The test texts' labels [N]."""
    return ctx.labels.encode(drawn_texts.load(prepared.artifact).test.labels)


def score(ctx: RunContext, gold: NDArray[np.int64], scores: NDArray[Any]) -> Entry:
    """Value, low, high (percent) of scores [N, L]."""
    return ctx.labels.evaluate(gold, scores, ctx.card.metric)


def score_soft_labels(ctx: RunContext, prepared: Node, labelled: Node) -> dict[str, Entry]:
    """How right the soft labels are on pool texts whose label the source knows and the members did not; nothing where
    there are none. With `data.draw: first` the labelled texts are in the pool, too."""
    gold = ctx.labels.encode(name for _, name in hidden_labels(prepared))
    known = np.flatnonzero(gold >= 0)
    if not len(known):
        return {}
    scores = label.load_scores(labelled.artifact, ctx.labels.names)[known]
    return {"soft_labels": {**score(ctx, gold[known], scores), "texts": len(known)}}


def hidden_labels(prepared: Node) -> list[tuple[str, str | None]]:
    """Id and label of each pool text; `None` where the source knows none, or the members were taught it."""
    taught = set(drawn_texts.load(prepared.artifact).train.ids)
    return [(one, None if one in taught else name) for one, name in drawn_texts.load_pool_gold(prepared.artifact)]


# ---- generations of iPET -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Generation:
    """One ensemble and its opinion on the pool."""

    members: Members
    labelled: Node


def score_generation(ctx: RunContext, prepared: Node, one: Generation) -> Entry:
    """How an ensemble came out (on the test set and on the pool), how far its members agree and which labels they give,
    beside the labels' shares among the labelled texts; and of what its members were trained on how much was right."""
    splits = drawn_texts.load(prepared.artifact)
    gold = ctx.labels.encode(splits.test.labels)
    tuned = np.stack([read_scores(member.artifact)["test"] for member in one.members.tuned])  # [M, N, L]
    opinion = one.labelled.artifact.read_json("ensemble.json")
    drawn = [plan.drawn for plan in one.members.plans if plan.drawn is not None]
    return {
        "generation": one.members.generation,
        "ensemble": score(ctx, gold, opinion_of(ctx, one.members, one.labelled.artifact, tuned)),
        **score_soft_labels(ctx, prepared, one.labelled),
        "agreement": opinion["agreement"] if len(tuned) > 1 else None,
        "label_shares": opinion["label_shares"],
        "prior": prior([] if ctx.settings.label.shares == "even" else splits.train.labels, ctx.card.labels),
        **(score_drawn(prepared, drawn) if drawn else {"texts": len(splits.train)}),
    }


def prior(given: Sequence[str | None], labels: Sequence[str]) -> dict[str, float]:
    """Each label's share of the labelled texts; the same for all where there are none."""
    total = len(given) or len(labels)
    return {name: round((given.count(name) if given else 1) / total, 4) for name in labels}


def score_drawn(prepared: Node, drawn: Sequence[Node]) -> Entry:
    """Of the training sets of one generation: their size, how many of the drawn labels are right (percent, of those
    that can be known and were hidden), and how many texts of each label were taken for want of better ones."""
    gold = dict(hidden_labels(prepared))
    right, filled = [], Counter[str]()
    for one in drawn:
        texts = read_texts(one.artifact.file("train.parquet"))
        report = one.artifact.read_json("drawn.json")
        new = range(report["labelled"], len(texts))
        right += [gold[texts.ids[row]] == texts.labels[row] for row in new if gold[texts.ids[row]] is not None]
        filled.update({name: found["filled"] for name, found in report["labels"].items()})
    return {
        "texts": len(texts),
        "drawn_right": round(100 * sum(right) / len(right), 2) if right else None,
        "drawn_known": len(right),
        "filled": {name: count for name, count in filled.items() if count},
    }
