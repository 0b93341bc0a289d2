"""evaluate: every classifier of the walk on the same test set, with 95 % intervals.

Compares zero-shot (untuned patterns, pooled), the supervised baselines, every member, the ensemble before distillation
and the student; and, where the pool's labels are known, how right the soft labels were. Writes scores.json, and
calibration.json: one temperature for the student and one for the ensemble, and what each does to the expected
calibration error. Temperatures are fitted without the test set, which is only measured on. Of iPET's generations the
stage says how they scored, and what became of the texts that were drawn.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pet.algorithms.calibration import Calibration, calibrate, expected_calibration_error, leave_one_out, one_hot
from pet.algorithms.ensemble import even_shift, member_weights, pool_scores, soften
from pet.algorithms.metrics import score_predictions
from pet.stages import baseline, distill, label, prepare
from pet.stages.classifier import Checkpoint
from pet.stages.finetune import Members
from pet.stages.work import Work, begin, finish, label_numbers, open_scores, read_scores
from pet.store.draft import Draft
from pet.store.key import Key
from pet.store.store import Artifact
from pet.tasks.texts import TextFile, TextSource, read_texts

STAGE = "evaluate"
VERSION = 2

Entry = dict[str, Any]

ENOUGH = 100
"""Texts that nobody who is judged by them was trained on, from which a temperature is fitted on them alone."""

FITTED = 500
"""Texts of the pool that a temperature is fitted on, at most: one number needs no more, and on two cores `mini` reads
them in a few seconds."""


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
    base = work.train(baseline, prepared) if work.num_labelled else None
    wanted = key(work, prepared, members, labelled, student, base)

    def fill(draft: Draft) -> None:
        begin(work, "evaluate: scoring on the test set")
        scores = score_all(work, prepared, members, labelled, student, base)
        draft.write_json("scores.json", scores)
        calibrated = calibrate_all(work, prepared, members, labelled, student)
        draft.write_json("calibration.json", calibrated)
        for name, one in calibrated.items():
            if one["problem"]:
                work.runtime.reporter.say(f"evaluate: the {name}'s probabilities stay as they are: {one['problem']}")
        finish(work, draft)

    return work.make(wanted, f"{work.draw_label}-{work.model_label}", STAGE, fill, seed=work.settings.seed)


def find_baseline(work: Work, prepared: Artifact) -> Artifact | None:
    """The supervised baselines of this walk; `None` when it has no labelled texts."""
    return work.store.find(baseline.key(work, prepared)) if work.num_labelled else None


def score_all(
    work: Work, prepared: Artifact, members: Members, labelled: Artifact, student: Artifact, base: Artifact | None
) -> dict[str, Any]:
    """Name -> value, low, high (percent); `members`: a list of such."""
    gold = label_numbers(prepare.load(prepared).test, work.card.labels)
    tuned = np.stack([read_scores(one)["test"] for one in members.tuned])  # [M, N, L]

    def entry(scores: NDArray[Any]) -> Entry:
        return score(work, gold, scores)

    scores: dict[str, Any] = {"zero_shot": score_untuned(work, prepared, members)}
    if base is not None:
        scores |= score_baseline(work, prepared, base)
    scores["members"] = [
        {"pattern": plan.pvp.number, "repetition": plan.repetition, **entry(one)}
        for plan, one in zip(members.plans, tuned, strict=True)
    ]
    scores |= {
        "ensemble": entry(opinion_of(work, members, labelled, tuned)),
        "student": entry(read_scores(student)["test"]),
    }
    return scores | score_soft_labels(work, prepared, labelled)


def score_untuned(work: Work, prepared: Artifact, members: Members) -> Entry:
    """The untuned patterns, pooled with the same weights."""
    gold = label_numbers(prepare.load(prepared).test, work.card.labels)
    untuned = np.stack([read_scores(one)["test"] for one in members.untuned.values()])  # [P, N, L]
    return score(work, gold, pool_scores(untuned, member_weights(np.zeros(len(untuned)))))


def score_baseline(work: Work, prepared: Artifact, base: Artifact) -> dict[str, Entry]:
    """The supervised baselines: fine-tuned, and linear probe. Where the shares of the soft labels are made even, the
    fine-tuned one with shares made even too, on the test set itself: it is told what the ensemble is told."""
    gold = label_numbers(prepare.load(prepared).test, work.card.labels)
    found: dict[str, NDArray[Any]] = {**read_scores(base)}
    if work.settings.label.shares == "even":
        found["supervised_even"] = found["supervised"] + even_shift(found["supervised"])
    return {name: score(work, gold, scores) for name, scores in found.items()}


def score(work: Work, gold: NDArray[np.int64], scores: NDArray[Any]) -> Entry:
    """Value, low, high (percent) of scores [N, L]."""
    found = score_predictions(gold, scores.argmax(-1), len(work.card.labels), work.card.metric)
    return dict(found.as_dict())


def opinion_of(work: Work, members: Members, labelled: Artifact, scores: NDArray[Any]) -> NDArray[Any]:
    """The members' scores [M, N, L] pooled as the soft labels were [N, L]."""
    return pool_scores(scores, weights_of(members, labelled)) + label.load_shift(labelled, work.card.labels)


def weights_of(members: Members, labelled: Artifact) -> NDArray[np.float64]:
    """The members' weights [M], by identity: the soft labels may have been made with the patterns in another order."""
    weight_of = {one["identity"]: one["weight"] for one in labelled.read_json("ensemble.json")["members"]}
    return np.asarray([weight_of[one.identity] for one in members.tuned])


def score_soft_labels(work: Work, prepared: Artifact, labelled: Artifact) -> dict[str, Entry]:
    """How right the soft labels are on pool texts whose label the source knows and the members did not; nothing where
    there are none. With `data.draw: first` the labelled texts are in the pool, too."""
    labels = work.card.labels
    gold = [name for _, name in hidden_labels(prepared)]
    known = [row for row, name in enumerate(gold) if name is not None]
    if not known:
        return {}
    numbers = np.asarray([labels.index(name) for name in gold if name is not None])
    predicted = label.load_scores(labelled, labels)[known].argmax(-1)
    found = score_predictions(numbers, predicted, len(labels), work.card.metric).as_dict()
    return {"soft_labels": {**found, "texts": len(known)}}


def hidden_labels(prepared: Artifact) -> list[tuple[str, str | None]]:
    """Id and label of each pool text; `None` where the source knows none, or the members were taught it."""
    taught = set(prepare.load(prepared).train.ids)
    return [(one, None if one in taught else name) for one, name in prepare.load_pool_gold(prepared)]


# ---- calibration ---------------------------------------------------------------------------------------------------


def calibrate_all(work: Work, prepared: Artifact, members: Members, labelled: Artifact, student: Artifact) -> Entry:
    """Of student and ensemble: temperature, what it was fitted on, the ECE on the test set without and with it, and why
    none was fitted, if so: the temperature is 1 then."""
    tuned = np.stack([read_scores(one)["test"] for one in members.tuned])
    splits = prepare.load(prepared)
    gold, of_pool = label_numbers(splits.test, work.card.labels), keys_of(splits.pool)

    def entry(scores: NDArray[Any], texts: int, fitted_on: str, found: Calibration) -> Entry:
        temperature = round(found.temperature, 4)
        before, after = (expected_calibration_error(soften(scores, one), gold) for one in (1.0, temperature))
        return {
            "temperature": temperature,
            "texts": texts,
            "fitted_on": fitted_on,
            "ece_before": round(before, 2),
            "ece_after": round(after, 2),
            "problem": found.problem,
        }

    return {
        "student": entry(read_scores(student)["test"], *fit_student(work, splits, of_pool, labelled, student)),
        "ensemble": entry(
            opinion_of(work, members, labelled, tuned), *fit_ensemble(work, splits, of_pool, members, labelled)
        ),
    }


def fit_student(
    work: Work, splits: prepare.Splits[TextFile], of_pool: Sequence[bytes], labelled: Artifact, student: Artifact
) -> tuple[int, str, Calibration]:
    """Texts, what they are, and the temperature: on labelled texts that the student was not trained on, where there are
    ENOUGH; else it is held to what the ensemble says of pool texts, where there are ENOUGH of those that it was not
    trained on. What it was trained on `distill` has written down; a text that reads the same counts, too. With
    `data.draw: first` labelled texts are in the pool, and any source may have a text twice. `of_pool`: the pool's keys.
    """
    labels = work.card.labels
    seen = {key for key, was_seen in zip(of_pool, distill.load_seen(student), strict=True) if was_seen}
    fresh = not_among(keys_of(splits.train), seen)
    # A few hundred texts are read faster than a large model is compiled.
    runtime = replace(work.runtime, compile=False)
    length = work.settings.model.max_length
    asked = Checkpoint(student.file("student"), work.card.fields, labels, length, runtime)
    if len(fresh) >= ENOUGH:
        texts = splits.train.take(fresh.tolist())
        targets = one_hot(label_numbers(texts, labels), len(labels))
        what = "labelled texts, which the student was not trained on"
        return len(texts), what, calibrate(asked.score(texts, "student on labelled"), targets)
    fresh = not_among(of_pool, seen)
    rows = thin_out(fresh if len(fresh) >= ENOUGH else np.arange(len(of_pool)))
    what = "which the student was not trained on" if len(fresh) >= ENOUGH else "which the student was trained on"
    targets = soften(label.load_scores(labelled, labels)[rows])
    scores = asked.score(splits.pool.take(rows.tolist()), "student on pool")
    return len(rows), f"soft labels of pool texts, {what}", calibrate(scores, targets)


def keys_of(texts: TextSource) -> list[bytes]:
    """What each text says, as a digest: equal for texts that differ in case and white space alone."""
    return [
        hashlib.blake2b(" ".join(chunk.joined(row).casefold().split()).encode(), digest_size=16).digest()
        for chunk in texts.chunks()
        for row in range(len(chunk))
    ]


def not_among(keys: Sequence[bytes], known: Collection[bytes]) -> NDArray[np.int64]:
    """The places of the keys that are not in `known`."""
    return np.asarray([place for place, one in enumerate(keys) if one not in known], dtype=np.int64)


def thin_out(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """At most FITTED of these rows, evenly spread."""
    return rows[:: -(-len(rows) // FITTED)]


def fit_ensemble(
    work: Work, splits: prepare.Splits[TextFile], of_pool: Sequence[bytes], members: Members, labelled: Artifact
) -> tuple[int, str, Calibration]:
    """The same for the ensemble: each member is held to what the others say of pool texts; one alone stays as it is.
    What a member was taught it knows by heart, so texts that taught one are left out, where ENOUGH are left: those of
    the later generations of iPET, and with `data.draw: first` the labelled texts."""
    if len(members.tuned) < 2:
        return 0, "nothing", Calibration(1.0, "one member has no other to be compared with")
    sets = [read_texts(plan.drawn.file("train.parquet")) for plan in members.plans if plan.drawn]
    taught = {key for texts in (splits.train, *sets) for key in keys_of(texts)}
    rows, which = not_among(of_pool, taught), ""
    if len(rows) < len(of_pool):
        which = " that taught none of them" if len(rows) >= ENOUGH else ", some of which taught them"
    if len(rows) < ENOUGH:
        rows = np.arange(len(of_pool))
    found = np.stack([read_rows(one, "pool", thin_out(rows)) for one in members.tuned])
    scores = found + label.load_shift(labelled, work.card.labels)
    others, best = leave_one_out(scores, weights_of(members, labelled))
    what = f"each member's label of pool texts{which}, given the others' scores"
    return scores.shape[1], what, calibrate(others, best)


def read_rows(member: Artifact, split: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """A member's scores [N, L] of some texts."""
    with open_scores(member, split) as scores:
        return np.asarray(scores[:][rows])


# ---- generations of iPET -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Generation:
    """One ensemble and its opinion on the pool."""

    members: Members
    labelled: Artifact


def score_generation(work: Work, prepared: Artifact, one: Generation) -> Entry:
    """How an ensemble came out (on the test set and on the pool), how far its members agree and which labels they give,
    beside the labels' shares among the labelled texts; and of what its members were trained on how much was right."""
    splits = prepare.load(prepared)
    gold = label_numbers(splits.test, work.card.labels)
    tuned = np.stack([read_scores(member)["test"] for member in one.members.tuned])  # [M, N, L]
    opinion = one.labelled.read_json("ensemble.json")
    drawn = [plan.drawn for plan in one.members.plans if plan.drawn is not None]
    return {
        "generation": one.members.generation,
        "ensemble": score(work, gold, opinion_of(work, one.members, one.labelled, tuned)),
        **score_soft_labels(work, prepared, one.labelled),
        "agreement": opinion["agreement"] if len(tuned) > 1 else None,
        "label_shares": opinion["label_shares"],
        "prior": prior([] if work.settings.label.shares == "even" else splits.train.labels, work.card.labels),
        **(score_drawn(prepared, drawn) if drawn else {"texts": len(splits.train)}),
    }


def prior(given: Sequence[str | None], labels: Sequence[str]) -> dict[str, float]:
    """Each label's share of the labelled texts; the same for all where there are none."""
    total = len(given) or len(labels)
    return {name: round((given.count(name) if given else 1) / total, 4) for name in labels}


def score_drawn(prepared: Artifact, drawn: Sequence[Artifact]) -> Entry:
    """Of the training sets of one generation: their size, how many of the drawn labels are right (percent, of those
    that can be known and were hidden), and how many texts of each label were taken for want of better ones."""
    gold = dict(hidden_labels(prepared))
    right, filled = [], Counter[str]()
    for one in drawn:
        texts = read_texts(one.file("train.parquet"))
        report = one.read_json("drawn.json")
        new = range(report["labelled"], len(texts))
        right += [gold[texts.ids[row]] == texts.labels[row] for row in new if gold[texts.ids[row]] is not None]
        filled.update({name: found["filled"] for name, found in report["labels"].items()})
    return {
        "texts": len(texts),
        "drawn_right": round(100 * sum(right) / len(right), 2) if right else None,
        "drawn_known": len(right),
        "filled": {name: count for name, count in filled.items() if count},
    }
