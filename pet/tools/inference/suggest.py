"""Which pool texts are worth a person's label next, and the file that the person fills in. Trains and scores nothing:
all it needs is in the store. The way back is `givenlabels.read_given_labels`.

Texts are taken that the members disagree about (query by committee, Seung et al. 1992), spread over what they are
about (Zhdanov 2019), none of which nearly repeats another one or a labelled text.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pet.algorithms.ensemble import Array, disagreement
from pet.errors import StoreError
from pet.pipeline import drawn_texts
from pet.pipeline.runs import Run
from pet.pipeline.score_files import score_chunks
from pet.pipeline.stages.label import load_scores
from pet.store.files import new_file
from pet.tasks.annotations import COLUMNS, field_columns, guarded
from pet.tasks.near_duplicates import NearDuplicateIndex, shingles
from pet.tasks.splits import derive_seed
from pet.tasks.texts import TextFile, Texts, concatenate
from pet.tasks.writers import delimited_line

CANDIDATES = 5
"""So many times as many texts as are wanted, those with the most disagreement, are what is spread (ours, not tuned)."""


@dataclass(frozen=True)
class Suggestions:
    """Pool texts to label, n of them, the one with the most disagreement first, and what the ensemble thinks of each:
    the most probable label, its probability, and the members' disagreement in nats (`ensemble.disagreement`)."""

    texts: Texts
    labels: list[str]
    probabilities: list[float]
    disagreement: list[float]


def suggest(run: Run, count: int, method: str, seed: int) -> Suggestions:
    """At most `count` pool texts; fewer where the pool has no more that are different from each other.

    `method`: `disagreement`, or `random` as what that is compared with. `seed`: of the random order, or of where the
    spreading starts.

    Raises:
        StoreError: there is one member only, which agrees with itself.
        MissingArtifact: an artifact of the run is gone.
    """
    weights = run.weights
    if method == "disagreement" and len(weights) < 2:
        raise StoreError(
            f"run {run.path.name} has one member, so there is nobody to disagree with; use --method random, or make a "
            "run with more patterns or finetune.repetitions"
        )
    splits = drawn_texts.load(run.prepared)
    shares = weights / weights.sum()
    apart = np.concatenate([disagreement(scores, shares) for scores in score_chunks(run.members, "pool")])
    if method == "random":
        order = np.random.default_rng(derive_seed("suggest", seed)).permutation(len(apart))
        rows, texts = first_different(splits.pool, order, count, splits.train)
    else:
        order = np.argsort(-apart, kind="stable")
        rows, texts = first_different(splits.pool, order, CANDIDATES * count, splits.train)
        places = spread(texts, apart[rows], count, seed)
        rows, texts = rows[places], texts.take(places.tolist())
    places = np.argsort(-apart[rows], kind="stable")
    return with_opinion(run, rows[places], texts.take(places.tolist()), apart)


def first_different(
    pool: TextFile, order: NDArray[np.int64], most: int, labelled: Texts
) -> tuple[NDArray[np.int64], Texts]:
    """The first rows of `order` whose texts nearly repeat neither each other nor a labelled text, at most `most`; and
    their texts."""
    seen = NearDuplicateIndex(labelled.joined(row) for row in range(len(labelled)))
    rows: list[int] = []
    parts: list[Texts] = []
    for start in range(0, len(order), most):
        some = [int(row) for row in order[start : start + most]]
        texts = pool.take(some)
        new = list(unlike(texts, seen, most - len(rows)))
        parts.append(texts.take(new))
        rows += [some[place] for place in new]
        if len(rows) == most:
            break
    return np.asarray(rows, dtype=np.int64), concatenate(parts)


def unlike(texts: Texts, seen: NearDuplicateIndex, most: int) -> Iterator[int]:
    """The places of at most `most` texts that nearly repeat none of `seen`, which they join."""
    for place in range(len(texts)):
        if most == 0:
            return
        found = shingles(texts.joined(place))
        if not seen.like(found):
            seen.add(found)
            most -= 1
            yield place


def spread(texts: Texts, apart: Array, count: int, seed: int) -> NDArray[np.int64]:
    """The places of `count` texts of different content: k-means over their words (tf-idf) with `count` centres, each
    text weighted by the disagreement about it (Zhdanov 2019); of each cluster the text with the most disagreement,
    where he takes the one nearest to its centre."""
    if len(texts) <= count:
        return np.arange(len(texts))
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

    words = HashingVectorizer(n_features=2**16, alternate_sign=False, norm=None)
    features = TfidfTransformer(sublinear_tf=True).fit_transform(
        words.transform(texts.joined(row) for row in range(len(texts)))
    )
    # Fewer different texts than centres are filled up below.
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
        means = KMeans(count, n_init=4, random_state=derive_seed("spread", seed))
        cluster = means.fit_predict(features, sample_weight=apart + 1e-6)  # all 0: all the same
    order = np.argsort(-apart, kind="stable")
    best = {int(cluster[place]): int(place) for place in order[::-1]}
    rest = [int(place) for place in order if place not in set(best.values())]
    return np.asarray([*best.values(), *rest][:count])


def with_opinion(run: Run, rows: NDArray[np.int64], texts: Texts, apart: Array) -> Suggestions:
    """Texts with the soft label that the run gave each of them."""
    probabilities = run.space.probabilities(load_scores(run.labelled, run.labels)[rows])
    return Suggestions(
        texts, run.space.decode(run.space.decide(probabilities)), probabilities.max(-1).tolist(), apart[rows].tolist()
    )


def write_suggestions(path: Path, found: Suggestions) -> None:
    """Write a CSV file to be filled in: `id`, the fields, an empty `label`, and what the ensemble thinks. UTF-8 with a
    mark that spreadsheets know it by; a cell that one would calculate is `givenlabels.guarded`.

    Raises:
        StoreError: there is such a file already, which may hold labels, or it cannot be written.
    """
    refuse_existing(path)
    first, *ours = COLUMNS
    fields = map(guarded, field_columns(list(found.texts.fields)).values())
    rows: Iterator[tuple[str, ...]] = zip(
        map(guarded, found.texts.ids),
        *(map(guarded, column) for column in found.texts.fields.values()),
        [""] * len(found.texts),
        map(guarded, found.labels),
        (f"{one:.4f}" for one in found.probabilities),
        (f"{one:.4f}" for one in found.disagreement),
        strict=True,
    )
    with new_file(path) as new, new.open("w", newline="", encoding="utf-8-sig") as file:
        file.writelines(map(delimited_line, [(first, *fields, *ours), *rows]))


def refuse_existing(path: Path) -> None:
    """Refuse to write over a file.

    Raises:
        StoreError: it exists.
    """
    if path.exists():
        raise StoreError(f"{path} exists already, and may hold labels; name a new file, or remove it")
