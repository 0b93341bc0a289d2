"""How good predictions are: accuracy or macro-F1, each with a 95 % interval; and how sure a comparison over several
seeds is. Arrays only."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Metric = Literal["accuracy", "macro-f1"]
DRAWS = 2000
"""From the posterior of a confusion matrix."""
AT_A_TIME = 1 << 22
"""Cells of matrices that are drawn at a time, at most: 32 MB."""
SHOWN_LABELS = 5
"""Labels that are named in one sentence, at most."""
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


def measure(counts: NDArray[Any], metric: Metric) -> NDArray[np.float64]:
    """The metric (0..1) of confusion counts, or of weights of the cells [..., L, L].

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
    of one gives 21 to 100. Of macro-F1 it is that of `posterior_interval`; `seed` is of its draws.
    """
    counts = confusion(np.asarray(gold), np.asarray(predicted), num_labels)
    total, value = int(counts.sum()), float(measure(counts, metric))
    if metric == "accuracy":
        low, high = stats.binomtest(int(np.trace(counts)), total).proportion_ci(LEVEL, method="wilson")
    else:
        low, high = posterior_interval(counts, metric, value, seed)
    return Score(*(100 * float(one) for one in (value, low, high)))


def posterior_interval(counts: NDArray[np.int64], metric: Metric, value: float, seed: int = 0) -> tuple[float, float]:
    """The ends (0..1) of the central 95 % of a metric's posterior, given confusion counts [L, L] and their `value`.

    The shares of the cells have a Dirichlet distribution (Caelen 2017, A Bayesian interpretation of the confusion
    matrix; of two labels and one F1, Goutte & Gaussier 2005, A probabilistic interpretation of precision, recall and
    F-score). The prior weighs as much as one right text, spread evenly over the labels, and one wrong text, spread
    evenly over all confusions. So the interval does not collapse where all texts are right or wrong, as a bootstrap
    does, and a label that no text has may be found well or badly. With many texts the ends are those of a bootstrap to
    a tenth of a point. Where many labels have hardly a text, both are too sure (CONTRIBUTING.md has the simulation).

    As at the ends of a binomial proportion (Brown, Cai & DasGupta 2001, section 4.1.2), 0 or 1 is in it where no text
    is right or none is wrong; the value always is.
    """
    num_labels = len(counts)
    prior = np.full(counts.shape, 1 / max(1, num_labels * (num_labels - 1)))
    np.fill_diagonal(prior, 1 / num_labels)
    rng, values = np.random.default_rng(seed), np.empty(DRAWS)
    step = max(1, AT_A_TIME // counts.size)
    for start in range(0, DRAWS, step):
        some = slice(start, min(start + step, DRAWS))
        # Gamma variates are a Dirichlet one but for their sum, which no metric here depends on.
        values[some] = measure(rng.standard_gamma(counts + prior, size=(some.stop - start, *counts.shape)), metric)
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    hits, total = int(np.trace(counts)), int(counts.sum())
    return min(value, low if hits else 0.0), max(value, high if hits < total else 1.0)


def describe_absent(names: Sequence[str], metric: Metric, num_labels: int) -> str:
    """What is to be known where no test text has some labels.

    Args:
        names: the labels that no text has.
        metric: what is measured on the texts.
        num_labels: of the task.

    Returns:
        A sentence without a full stop; nothing where `names` is empty.
    """
    if not names:
        return ""
    shown = ", ".join(map(repr, names[:SHOWN_LABELS]))
    more = f" and {len(names) - SHOWN_LABELS} more" if len(names) > SHOWN_LABELS else ""
    labels, them, count = ("labels", "them", "count") if len(names) > 1 else ("label", "it", "counts")
    said = f"no test text has the {labels} {shown}{more}"
    if metric == "accuracy":
        return f"{said}: accuracy says nothing of {them}"
    most = 100 * (num_labels - len(names)) / num_labels
    return f"{said}, which {count} as 0: macro-F1 is {most:.1f} at most"


# ---- over several seeds --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """Mean of a score (percent) over seeds, its sample standard deviation and the ends of the mean's 95 % interval
    (Student's t, cut at 0 and 100); `None` where there is one seed, and of the interval also where all values are the
    same: nothing can be estimated from them."""

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
    if deviation < SAME:
        return Spread(mean, deviation, None, None)
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
