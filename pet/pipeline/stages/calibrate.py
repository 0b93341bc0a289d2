"""The temperatures of student and ensemble, and what each does to the expected calibration error."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pet.algorithms.calibration import Calibration, calibrate, expected_calibration_error, leave_one_out
from pet.pipeline import drawn_texts
from pet.pipeline.context import RunContext
from pet.pipeline.score_files import open_scores, read_scores
from pet.pipeline.stages import distill, label
from pet.pipeline.stages.finetune import Members
from pet.pipeline.stages.label import opinion_of, weights_of
from pet.pipeline.student import Checkpoint
from pet.store.store import Artifact
from pet.tasks.texts import TextFile, TextSource, read_texts

Entry = dict[str, Any]

ENOUGH = 100
"""Texts that nobody who is judged by them was trained on, from which a temperature is fitted on them alone."""

FITTED = 500
"""Texts of the pool that a temperature is fitted on, at most: one number needs no more, and on two cores `mini` reads
them in a few seconds."""


# ---- calibration ---------------------------------------------------------------------------------------------------


def calibrate_all(
    ctx: RunContext, prepared: Artifact, members: Members, labelled: Artifact, student: Artifact
) -> Entry:
    """Of student and ensemble: temperature, what it was fitted on, the ECE on the test set without and with it, and why
    none was fitted, if so: the temperature is 1 then."""
    tuned = np.stack([read_scores(one.artifact)["test"] for one in members.tuned])
    splits = drawn_texts.load(prepared)
    gold, of_pool = ctx.labels.encode(splits.test.labels), keys_of(splits.pool)

    def entry(scores: NDArray[Any], texts: int, fitted_on: str, found: Calibration) -> Entry:
        temperature = round(found.temperature, 4)
        before, after = (
            expected_calibration_error(ctx.labels.probabilities(scores, one), gold) for one in (1.0, temperature)
        )
        return {
            "temperature": temperature,
            "texts": texts,
            "fitted_on": fitted_on,
            "ece_before": round(before, 2),
            "ece_after": round(after, 2),
            "problem": found.problem,
        }

    return {
        "student": entry(read_scores(student)["test"], *fit_student(ctx, splits, of_pool, labelled, student)),
        "ensemble": entry(
            opinion_of(ctx, members, labelled, tuned), *fit_ensemble(ctx, splits, of_pool, members, labelled)
        ),
    }


def fit_student(
    ctx: RunContext,
    splits: drawn_texts.Splits[TextFile],
    of_pool: Sequence[bytes],
    labelled: Artifact,
    student: Artifact,
) -> tuple[int, str, Calibration]:
    """Texts, what they are, and the temperature: on labelled texts that the student was not trained on, where there are
    ENOUGH; else it is held to what the ensemble says of pool texts, where there are ENOUGH of those that it was not
    trained on. What it was trained on `distill` has written down; a text that reads the same counts, too. With
    `data.draw: first` labelled texts are in the pool, and any source may have a text twice. `of_pool`: the pool's keys.
    """
    labels = ctx.card.labels
    seen = {key for key, was_seen in zip(of_pool, distill.load_seen(student), strict=True) if was_seen}
    fresh = not_among(keys_of(splits.train), seen)
    # A few hundred texts are read faster than a large model is compiled.
    runtime = replace(ctx.runtime, compile=False)
    length = ctx.settings.model.max_length
    asked = Checkpoint(student.file("student"), ctx.card.fields, labels, length, runtime)
    if len(fresh) >= ENOUGH:
        texts = splits.train.take(fresh.tolist())
        targets = ctx.labels.one_hot(ctx.labels.encode(texts.labels))
        what = "labelled texts, which the student was not trained on"
        return len(texts), what, calibrate(asked.score(texts, "student on labelled"), targets)
    fresh = not_among(of_pool, seen)
    rows = thin_out(fresh if len(fresh) >= ENOUGH else np.arange(len(of_pool)))
    what = "which the student was not trained on" if len(fresh) >= ENOUGH else "which the student was trained on"
    targets = ctx.labels.probabilities(label.load_scores(labelled, labels)[rows])
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
    ctx: RunContext,
    splits: drawn_texts.Splits[TextFile],
    of_pool: Sequence[bytes],
    members: Members,
    labelled: Artifact,
) -> tuple[int, str, Calibration]:
    """The same for the ensemble: each member is held to what the others say of pool texts; one alone stays as it is.
    What a member was taught it knows by heart, so texts that taught one are left out, where ENOUGH are left: those of
    the later generations of iPET, and with `data.draw: first` the labelled texts."""
    if len(members.tuned) < 2:
        return 0, "nothing", Calibration(1.0, "one member has no other to be compared with")
    sets = [read_texts(plan.drawn.artifact.file("train.parquet")) for plan in members.plans if plan.drawn]
    taught = {key for texts in (splits.train, *sets) for key in keys_of(texts)}
    rows, which = not_among(of_pool, taught), ""
    if len(rows) < len(of_pool):
        which = " that taught none of them" if len(rows) >= ENOUGH else ", some of which taught them"
    if len(rows) < ENOUGH:
        rows = np.arange(len(of_pool))
    found = np.stack([read_rows(one.artifact, "pool", thin_out(rows)) for one in members.tuned])
    scores = found + label.load_shift(labelled, ctx.card.labels)
    others, best = leave_one_out(scores, weights_of(members, labelled))
    what = f"each member's label of pool texts{which}, given the others' scores"
    return scores.shape[1], what, calibrate(others, best)


def read_rows(member: Artifact, split: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """A member's scores [N, L] of some texts."""
    with open_scores(member, split) as scores:
        return np.asarray(scores[:][rows])
