"""PETAL: which words stand for a label, from what a masked LM says of the labelled texts (Schick, Schmid & Schuetze
2020, arXiv 2010.13641, "P3"). Arrays only; no model and no file.

Shapes: N rows (a labelled text in one pattern), L labels, W words.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CANDIDATES = 1000
"""Words per label that are left after the preselection (P3 section 4.1, and the published code's default)."""

LEAST = 1e-7
"""-log p of a word, at least: log(1 - p) stays finite where fp32 rounds p to 1."""

Array = NDArray[np.floating[Any]]


@dataclass
class Tally:
    """Sums over the rows of each label, all that PETAL needs: of log p [L, W], of log(1 - p) [L, W], and the number of
    rows [L]. For one verbalizer for several patterns (P3's joint variant) the rows of all of them are counted."""

    said: NDArray[np.float64]
    unsaid: NDArray[np.float64]
    rows: NDArray[np.int64]

    @classmethod
    def empty(cls, num_labels: int, num_words: int) -> "Tally":
        """Of no rows."""
        return cls(
            np.zeros((num_labels, num_words)), np.zeros((num_labels, num_words)), np.zeros(num_labels, dtype=np.int64)
        )

    @property
    def log_odds(self) -> NDArray[np.float64]:
        """Sums over the rows of each label [L, W] of log p - log(1 - p)."""
        return self.said - self.unsaid

    def add(self, log_p: Array, labels: NDArray[np.int64]) -> None:
        """Count rows: log-probabilities of the words at the mask, among the whole vocabulary [N, W], and labels [N]."""
        said = np.minimum(np.asarray(log_p, dtype=np.float64), -LEAST)
        unsaid = np.log(-np.expm1(said))
        for label in range(len(self.rows)):
            chosen = labels == label
            self.said[label] += said[chosen].sum(0)
            self.unsaid[label] += unsaid[chosen].sum(0)
            self.rows[label] += chosen.sum()


def likelihood_ratio(evidence: Array, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """The score [L, W] of each word for each label against the rest (P3 equation 7, fact sheet 3.10):

        s * sum over the label's rows (log p - log(1 - p)) + sum over the others' (log(1 - p) - log p)

    with s = others / label's rows, P3's correction for there being more of the others (its equation 5). Divided by the
    number of the others' rows it is the difference of the word's mean log-odds.

    Args:
        evidence: for each label and word [L, W] the sum over the label's rows: of log-odds, as in P3
            (`Tally.log_odds`), or of log-probabilities.
        rows: how many rows each label has [L], one at least.
    """
    sums = np.asarray(evidence, dtype=np.float64)
    others = rows.sum() - rows
    return np.asarray((others / rows)[:, None] * sums - (sums.sum(0) - sums))


def likeliest(said: Array, count: int) -> NDArray[np.int64]:
    """The `count` words with the highest likelihood [W] in a label's rows, the likeliest first (P3 section 4.1)."""
    return np.argsort(-said, kind="stable")[:count]


def preselect(tally: Tally, count: int = CANDIDATES) -> NDArray[np.bool_]:
    """Which words [L, W] may stand for each label: the `likeliest` ones."""
    chosen = np.zeros(tally.said.shape, dtype=np.bool_)
    for label, said in enumerate(tally.said):
        chosen[label, likeliest(said, count)] = True
    return chosen


def choose(scores: Array, allowed: NDArray[np.bool_], count: int) -> list[list[int]]:
    """For each label the `count` allowed words with the highest scores [L, W], the best first.

    A word that would stand for several labels is given to the one for which its score is highest (ours: P3 allows it
    to be shared, a task card does not). A label has fewer words where there are no more.
    """
    found: list[list[int]] = [[] for _ in scores]
    taken: set[int] = set()
    for place in np.argsort(-np.where(allowed, scores, -np.inf), axis=None, kind="stable").tolist():
        label, word = divmod(place, scores.shape[1])
        if allowed[label, word] and word not in taken and len(found[label]) < count:
            taken.add(word)
            found[label].append(word)
    return found


def words_of_labels(tally: Tally, count: int) -> tuple[list[list[int]], NDArray[np.float64]]:
    """Words of each label, the best first, and every word's score [L, W]: the difference, in nats, of its mean log-odds
    between the label's rows and the others'."""
    scores = likelihood_ratio(tally.log_odds, tally.rows)
    others: Sequence[int] = tally.rows.sum() - tally.rows
    return choose(scores, preselect(tally), count), scores / np.asarray(others)[:, None]
