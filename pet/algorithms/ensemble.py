"""From members' scores to soft labels: weights, pooling, softening. Arrays only; no model and no file.

Shapes: M members, N texts, L labels. A score is a raw logit (P1 section 3.3; the published code pools logits too).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import entr, logsumexp

Array = NDArray[np.floating[Any]]


def member_weights(accuracies: Array) -> Array:
    """Weights [M] of the members, proportional to the accuracy [M] of their untuned patterns on the labelled texts.

    Uniform when every accuracy is 0 or unknown (NaN: there are no labelled texts), where the published code divides by
    zero (fact sheet 3.4). Sums to 1.
    """
    weights = np.nan_to_num(np.asarray(accuracies, dtype=np.float64), nan=0.0)
    if not weights.any():
        weights = np.ones_like(weights)
    return np.asarray(weights / weights.sum())


def pool_scores(scores: Array, weights: Array) -> Array:
    """Weighted mean [N, L] of the members' raw scores [M, N, L] (P1 section 3.3)."""
    return np.asarray(np.tensordot(weights, np.asarray(scores, dtype=np.float64), axes=1))


def soften(scores: Array, temperature: float = 1.0) -> Array:
    """Softmax [N, L] of scores / temperature."""
    scaled = np.asarray(scores, dtype=np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def disagreement(scores: Array, weights: Array) -> Array:
    """How far the members are apart on each text [N], in nats: the Jensen-Shannon divergence of their distributions,
    the entropy of the weighted mean distribution less the weighted mean of their entropies (Lin 1991).

    `scores`: the members' raw scores [M, N, L]; `weights` [M] sum to 1. It is the mean divergence of the members from
    their mean distribution (KL, McCallum & Nigam 1998): 0 where all say the same, at most log(min(M, L)).
    """
    probabilities = soften(scores)
    mean = np.tensordot(weights, probabilities, axes=1)
    apart = entr(mean).sum(-1) - np.tensordot(weights, entr(probabilities).sum(-1), axes=1)
    return np.asarray(np.maximum(apart, 0.0))  # rounding may leave it just below


def align_prior(scores: Array) -> Array:
    """Constants [L], 0 in the mean, that added to scores [N, L] make all labels equally probable over the texts.

    They are where the convex function mean(logsumexp(scores + shift)) - mean(shift) is least: its gradient is the
    labels' mean probabilities less 1/L.
    """

    def slope(shift: Array) -> tuple[float, Array]:
        shifted = scores + shift
        value = logsumexp(shifted, axis=1).mean() - shift.mean()
        return float(value), soften(shifted).mean(0) - 1 / scores.shape[1]

    found = minimize(slope, np.zeros(scores.shape[1]), jac=True, method="L-BFGS-B", options={"gtol": 1e-7, "ftol": 0})
    return np.asarray(found.x - found.x.mean())


def agreement(scores: Array) -> float:
    """Mean share of pairs of members that predict the same label; scores [M, N, L]; 1.0 for a single member."""
    predicted = scores.argmax(axis=-1)  # [M, N]
    num_members = len(predicted)
    if num_members == 1:
        return 1.0
    same = [(predicted[i] == predicted[j]).mean() for i in range(num_members) for j in range(i)]
    return float(np.mean(same))
