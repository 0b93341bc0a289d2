"""How good predictions are: accuracy or macro-F1, each with a 95 % interval; and how sure a comparison over several
seeds is. Arrays only."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Metric = Literal["accuracy", "macro-f1"]
RESAMPLES = 2000
LEVEL = 0.95
SAME = 1e-6
"""Points; differences of scores are as many decimals' rounding apart where they are the same."""


@dataclass(frozen=True)
class Score:
    """A value in percent and the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """For JSON, rounded to 0.01 points."""
        return {name: round(value, 2) for name, value in asdict(self).items()}


def confusion(gold: NDArray[np.int64], predicted: NDArray[np.int64], num_labels: int) -> NDArray[np.int64]:
    """Counts [L, L]: row is the gold label, column the predicted one."""
    counts = np.bincount(gold * num_labels + predicted, minlength=num_labels**2)
    return counts.reshape(num_labels, num_labels)


def measure(counts: NDArray[np.int64], metric: Metric) -> NDArray[np.float64]:
    """The metric (0..1) of confusion counts [..., L, L].

    `macro-f1`: unweighted mean over labels of F1; a label neither present nor predicted counts as 0, as in
    scikit-learn's default.
    """
    hits = np.diagonal(counts, axis1=-2, axis2=-1).astype(np.float64)  # [..., L]
    if metric == "accuracy":
        return np.asarray(hits.sum(-1) / counts.sum((-2, -1)))
    seen = counts.sum(-1) + counts.sum(-2)  # gold + predicted, per label
    return np.asarray(np.divide(2 * hits, seen, out=np.zeros_like(hits), where=seen > 0).mean(-1))


def score_predictions(
    gold: NDArray[np.int64], predicted: NDArray[np.int64], num_labels: int, metric: Metric, seed: int = 0
) -> Score:
    """Metric of predictions [N] against gold labels [N] with its 95 % interval over the texts.

    Of accuracy it is Wilson's (1927), which stays honest where few texts were asked, or all were right: one right text
    of one gives 21 to 100. Of macro-F1 it is the percentile bootstrap: resampling texts is resampling cells of the
    confusion matrix, so it draws multinomial counts, exact for any metric of the matrix, and fast; `seed` is its own.
    """
    counts = confusion(np.asarray(gold), np.asarray(predicted), num_labels)
    total = int(counts.sum())
    if metric == "accuracy":
        low, high = stats.binomtest(int(np.trace(counts)), total).proportion_ci(LEVEL, method="wilson")
    else:
        drawn = np.random.default_rng(seed).multinomial(total, counts.ravel() / total, size=RESAMPLES)
        values = measure(drawn.reshape(RESAMPLES, num_labels, num_labels), metric)
        low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Score(*(100 * float(value) for value in (measure(counts, metric), low, high)))


# ---- over several seeds --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """Mean of a score (percent) over seeds, its sample standard deviation and the ends of the mean's 95 % interval
    (Student's t, cut at 0 and 100); `None` where there is one seed."""

    mean: float
    deviation: float | None
    low: float | None
    high: float | None


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    mean = float(np.mean(values))
    if len(values) == 1:
        return Spread(mean, None, None, None)
    deviation = float(np.std(values, ddof=1))
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1)) * deviation / len(values) ** 0.5
    return Spread(mean, deviation, max(0.0, mean - half), min(100.0, mean + half))


def paired_p(values: Sequence[float], others: Sequence[float]) -> float | None:
    """Two-sided p of Student's paired t-test between two methods, each seed a pair; `None` where it says nothing: one
    seed, or the same difference on every one."""
    differences = np.asarray(values) - np.asarray(others)
    if len(differences) < 2 or np.ptp(differences) < SAME:
        return None
    return float(stats.ttest_rel(values, others).pvalue)


def holm(chances: Sequence[float | None]) -> list[float | None]:
    """p values corrected for how many there are (Holm 1979); `None` stays and does not count."""
    known = [place for place, chance in enumerate(chances) if chance is not None]
    order = sorted(known, key=lambda place: chances[place] or 0.0)
    adjusted: list[float | None] = [None] * len(chances)
    least = 0.0
    for rank, place in enumerate(order):
        least = max(least, min(1.0, (len(order) - rank) * (chances[place] or 0.0)))
        adjusted[place] = least
    return adjusted
