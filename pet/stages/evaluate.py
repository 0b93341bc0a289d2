"""evaluate: every classifier of the walk on the same test set, with 95 % bootstrap intervals.

Compares zero-shot (untuned patterns, pooled), the supervised baselines, every member, the ensemble before distillation
and the student; and, where the pool's labels are known, how right the soft labels were. Writes scores.json.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pet.artifacts import Artifact, Key
from pet.ensemble import member_weights, pool_scores
from pet.metrics import score_predictions
from pet.stages import baseline, label, prepare
from pet.stages.finetune import Members
from pet.stages.work import Work, begin, finish, label_numbers, read_scores

STAGE = "evaluate"
VERSION = 1

Entry = dict[str, Any]


def key(
    work: Work, prepared: Artifact, members: Members, labelled: Artifact, student: Artifact, base: Artifact | None
) -> Key:
    """Depends on everything that is scored."""
    inputs = {"prepare": prepared.identity, "label": labelled.identity, "distill": student.identity}
    if base is not None:
        inputs["baseline"] = base.identity
    inputs |= {f"untuned-{number}": one.identity for number, one in members.untuned.items()}
    return Key(STAGE, VERSION, {"metric": work.card.metric, "labels": list(work.card.labels)}, inputs)


def run(work: Work, prepared: Artifact, members: Members, labelled: Artifact, student: Artifact) -> Artifact:
    """Train the baselines if need be, score everything, or reuse the scores."""
    base = baseline.run(work, prepared) if work.settings.data.train_examples else None
    wanted = key(work, prepared, members, labelled, student, base)
    found = work.reuse(wanted, "evaluate")
    if found:
        return found
    begin(work, "evaluate: scoring on the test set")
    with work.publish(wanted, f"{work.draw_label}-{work.model_label}", seed=work.settings.seed) as draft:
        scores = score_all(work, prepared, members, labelled, student, base)
        draft.write_json("scores.json", scores)
        finish(work, draft)
    return work.published(wanted)


def find_baseline(work: Work, prepared: Artifact) -> Artifact | None:
    """The supervised baselines of this walk; `None` when it has no labelled texts."""
    return work.store.find(baseline.key(work, prepared)) if work.settings.data.train_examples else None


def score_all(
    work: Work, prepared: Artifact, members: Members, labelled: Artifact, student: Artifact, base: Artifact | None
) -> dict[str, Any]:
    """Name -> value, low, high (percent); `members`: a list of such."""
    gold = label_numbers(prepare.load(prepared).test, work.card.labels)
    untuned = np.stack([read_scores(one)["test"] for one in members.untuned.values()])  # [P, N, L]
    tuned = np.stack([read_scores(one)["test"] for one in members.tuned])  # [M, N, L]
    # By identity: the soft labels may have been made with the patterns in another order.
    weight_of = {one["identity"]: one["weight"] for one in labelled.read_json("ensemble.json")["members"]}
    weights = np.asarray([weight_of[one.identity] for one in members.tuned])

    def entry(scores: NDArray[Any]) -> Entry:
        found = score_predictions(gold, scores.argmax(-1), len(work.card.labels), work.card.metric)
        return dict(found.as_dict())

    scores: dict[str, Any] = {"zero_shot": entry(pool_scores(untuned, member_weights(np.zeros(len(untuned)))))}
    if base is not None:
        found = read_scores(base)
        scores |= {"supervised": entry(found["supervised"]), "probe": entry(found["probe"])}
    scores["members"] = [
        {"pattern": plan.pvp.number, "repetition": plan.repetition, **entry(one)}
        for plan, one in zip(members.plans, tuned, strict=True)
    ]
    scores |= {"ensemble": entry(pool_scores(tuned, weights)), "student": entry(read_scores(student)["test"])}
    return scores | score_soft_labels(work, prepared, labelled)


def score_soft_labels(work: Work, prepared: Artifact, labelled: Artifact) -> dict[str, Entry]:
    """How right the soft labels are on pool texts whose label the source knows; nothing where it knows none."""
    labels = work.card.labels
    gold = prepare.load_pool_gold(prepared)
    known = [row for row, name in enumerate(gold) if name is not None]
    if not known:
        return {}
    numbers = np.asarray([labels.index(name) for name in gold if name is not None])
    predicted = label.load_scores(labelled, labels)[known].argmax(-1)
    return {"soft_labels": dict(score_predictions(numbers, predicted, len(labels), work.card.metric).as_dict())}
