"""How far probabilities can be believed, and the one number that mends them: temperature scaling (Guo et al. 2017,
arXiv 1706.04599). Arrays only; whose scores and against what is the business of `stages/evaluate`.

Shapes: N texts, L labels, M members. A score is a raw logit.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from pet.algorithms.ensemble import Array, pool_scores, soften

BINS = 15
"""Of equal width over 0..1 (Guo et al. 2017, section 5)."""

COLDEST, HOTTEST = 0.05, 20.0
"""Ends of the temperatures that are looked through: where every target is the best label, 0 would be the best one."""

LEAST_TEXTS = 10
"""Fewer say nothing of how often a probability is right."""


@dataclass(frozen=True)
class Calibration:
    """`temperature`: what scores are to be divided by. `problem`: why that is 1 and nothing that was fitted."""

    temperature: float
    problem: str | None = None


def calibrate(scores: Array, targets: Array) -> Calibration:
    """The temperature of `fit_temperature`, if it is one to go by: a fit that ends at one of its bounds, or makes the
    error on its own texts clearly worse, would spoil probabilities.

    Args:
        scores: [N, L].
        targets: a distribution over the labels for each text [N, L].
    """
    problem = unfit(scores, targets)
    if problem:
        return Calibration(1.0, problem)
    temperature = fit_temperature(scores, targets)
    if not 1.01 * COLDEST < temperature < HOTTEST / 1.01:
        end = "lowest" if temperature < 1 else "highest"
        bound = COLDEST if temperature < 1 else HOTTEST
        return Calibration(1.0, f"the fit ended at the {end} temperature that is looked at, {bound:g}")
    before, after = (soft_calibration_error(soften(scores, one), targets) for one in (1.0, temperature))
    if after - before > 50 / np.sqrt(len(scores)):  # a share's standard error on so many texts: less is chance
        return Calibration(1.0, f"the fit made the error on its own texts worse, {before:.1f} to {after:.1f} points")
    return Calibration(temperature)


def unfit(scores: Array, targets: Array) -> str | None:
    """Why nothing can be fitted on these; `None`: it can."""
    if len(scores) < LEAST_TEXTS:
        many = f"{len(scores)} text{'s are' if len(scores) != 1 else ' is'}"
        return f"{many} too few to fit a temperature on, which takes {LEAST_TEXTS}"
    if not (np.isfinite(scores).all() and np.isfinite(targets).all()):
        return "the scores or targets to fit a temperature on are not all finite numbers"
    if not np.ptp(scores, axis=1).any():
        return "no text to fit a temperature on has a label that scores higher than another"
    return None


def fit_temperature(scores: Array, targets: Array) -> float:
    """The temperature T for which softmax(scores / T) has the least mean cross-entropy to `targets`.

    `scores`: [N, L]; `targets`: a distribution over the labels for each text [N, L] (a known label: 1 in its place). In
    1/T the loss is convex, so there is one least value; it is found between COLDEST and HOTTEST.
    """
    scores, targets = np.asarray(scores, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    wanted = float((targets * scores).sum(1).mean())

    def loss(inverse: float) -> float:
        return float(logsumexp(scores * inverse, axis=1).mean()) - wanted * inverse

    found = minimize_scalar(loss, bounds=(1 / HOTTEST, 1 / COLDEST), method="bounded", options={"xatol": 1e-6})
    return float(1 / found.x)


def one_hot(labels: NDArray[np.int64], num_labels: int) -> Array:
    """Known labels [N] as distributions [N, L]."""
    return np.eye(num_labels)[labels]


def leave_one_out(scores: Array, weights: Array) -> tuple[Array, Array]:
    """What an ensemble's temperature can be fitted on where no label is known: the pooled scores of all members but one
    [M N, L], and that one's best label [M N, L]. `scores`: [M, N, L] of at least two members; `weights`: [M].

    A member that contradicts the others stands in for a label that does. Members err together, so this is a lower bound
    for how unsure the ensemble should be.
    """
    others, best = [], []
    for number in range(len(scores)):
        rest = np.delete(weights, number)
        rest = rest / rest.sum() if rest.any() else np.full(len(rest), 1 / len(rest))
        others.append(pool_scores(np.delete(scores, number, axis=0), rest))
        best.append(one_hot(np.asarray(scores[number].argmax(-1)), scores.shape[-1]))
    return np.concatenate(others), np.concatenate(best)


def bin_of(confidence: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """The bin [N], 0 to BINS - 1, of each probability [N]: one holds those above its lower end up to its upper one."""
    return np.asarray(np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1))


def expected_calibration_error(probabilities: NDArray[np.floating[Any]], gold: NDArray[np.int64]) -> float:
    """ECE in percent of probabilities [N, L] against labels [N]: texts are put into BINS by the probability of their
    best label; the mean over texts of |share that is right - mean probability| of their bin (Guo et al. 2017,
    equation 3)."""
    return soft_calibration_error(probabilities, one_hot(gold, probabilities.shape[-1]))


def soft_calibration_error(probabilities: NDArray[np.floating[Any]], targets: Array) -> float:
    """The same against distributions over the labels [N, L]: a text is as right as its target's probability of the
    best label."""
    confidence, best = probabilities.max(-1), probabilities.argmax(-1)
    right = np.take_along_axis(targets, best[:, None], axis=-1)[:, 0]
    bins = bin_of(confidence)
    gaps = np.bincount(bins, right, BINS) - np.bincount(bins, confidence, BINS)
    return float(100 * np.abs(gaps).sum() / len(targets))
