"""The arithmetic of iPET: how large training sets become, who labels them, and which texts are drawn for them.

Arrays and numbers only; no model and no file. Shapes: N pool texts, L labels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
Rows = NDArray[np.int64]

LEAST_PROBABILITY = 1e-12
"""Of a text to be drawn: what underflowed can still be taken where there is nothing better."""


ENOUGH = 1000
"""Texts in a training set with which generations end (P1 section 4)."""


def generations_for(labelled: int, growth: float, first: int) -> int:
    """How many generations after the first lead to training sets of ENOUGH texts: ceil(log_growth(ENOUGH / labelled)),
    without labelled texts one more than from `first` (P1 section 4). 0 where `labelled` is as many already."""
    start = labelled or first
    more = 0
    while start * growth**more < ENOUGH:
        more += 1
    return more + (not labelled)


def schedule(labelled: int, pool: int, generations: int, growth: float, first: int, pool_share: float) -> list[int]:
    """Texts in a member's training set, by generation, generation 0 first.

    From `labelled` texts, each is `growth` times as large as the one before (P1 section 3.4); without any, generation 1
    begins with `first`. No set draws more than `pool_share` of the pool's texts.
    """
    start = labelled or first / growth
    most = labelled + int(pool_share * pool)
    return [labelled, *(min(most, int(start * growth**number + 0.5)) for number in range(1, generations + 1))]


def apportion(total: int, shares: Sequence[float]) -> list[int]:
    """`total` in whole numbers proportional to `shares`, by the largest remainders, the first of equal ones."""
    wanted = np.asarray(shares, dtype=np.float64) * total / sum(shares)
    counts = np.floor(wanted).astype(np.int64)
    largest = np.argsort(counts - wanted, kind="stable")
    counts[largest[: total - counts.sum()]] += 1
    return [int(count) for count in counts]


def choose_teachers(others: Sequence[T], share: float, rng: np.random.Generator) -> list[T]:
    """Which of the other members label a member's training set: round(share x others) by lot, one at least, in their
    order (P1 section 3.4: lambda; the published code may round to none, fact sheet 3.6)."""
    count = max(1, round(share * len(others)))
    return [others[place] for place in sorted(rng.choice(len(others), min(count, len(others)), replace=False))]


@dataclass(frozen=True)
class LabelDraw:
    """What was drawn for one label: `rows` of the pool, the last `filled` of them for want of texts that were given it;
    `predicted`: how many of the pool's texts the teachers gave it."""

    rows: Rows
    predicted: int
    filled: int


def draw_texts(
    probabilities: NDArray[np.floating[Any]],
    wanted: Sequence[int],
    rng: np.random.Generator,
    candidates: int | None = None,
    surest: float = 1.0,
) -> list[LabelDraw]:
    """Texts for a training set, label by label, none of them twice; `wanted` of each label, no more than N together.

    `probabilities` [N, L]: the teachers' pooled opinion. A label's texts are drawn without replacement from those the
    teachers gave it, with chances proportional to its probability (P1 section 3.4). What is missing then is filled with
    the texts left whose probability of the label is highest (the published code copies texts, and loops for ever where
    no text was given the label: fact sheet 3.6).

    `surest`: draw from this share of the texts given the label alone, those with its highest probabilities, or from as
    many as are wanted. Surer texts are more often given the right label (measured: results/LOG.md).

    `candidates`: draw from so many texts whose probability of the label is highest instead, whatever label they were
    given (P1 section 3.4, generation 1 without labelled texts).
    """
    best = probabilities.argmax(axis=1)
    free = np.ones(len(probabilities), dtype=bool)
    drawn: list[Rows] = []
    for label, size in enumerate(wanted):
        if candidates is None:
            given = free & (best == label)
            given = highest(probabilities[:, label], given, max(math.ceil(surest * given.sum()), size))
        else:
            given = highest(probabilities[:, label], free, max(candidates, size))
        chances = np.maximum(probabilities[given, label], LEAST_PROBABILITY)
        size = min(size, len(given))
        drawn.append(rng.choice(given, size, replace=False, p=chances / chances.sum()) if size else given[:0])
        free[drawn[-1]] = False
    results = []
    for label, rows in enumerate(drawn):
        more = highest(probabilities[:, label], free, wanted[label] - len(rows))
        free[more] = False
        results.append(LabelDraw(np.concatenate([rows, more]), int((best == label).sum()), len(more)))
    return results


def highest(values: NDArray[np.floating[Any]], free: NDArray[np.bool_], count: int) -> Rows:
    """The places of the `count` highest values among those that are free, the highest first."""
    places = np.flatnonzero(free)
    return places[np.argsort(-values[places], kind="stable")[:count]]
