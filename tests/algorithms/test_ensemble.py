"""Weights, pooling, softening and agreement, against the formulas written out member by member and text by text."""

import math

import numpy as np
import pytest

from pet.algorithms.ensemble import agreement, align_prior, disagreement, member_weights, pool_scores, soften

MEMBERS, TEXTS, LABELS = 5, 17, 4


@pytest.fixture
def scores() -> np.ndarray:
    """Raw scores [M, N, L] as a model gives them: fp32, any sign."""
    return np.random.default_rng(0).normal(0, 6, size=(MEMBERS, TEXTS, LABELS)).astype(np.float32)


# ---- weights -------------------------------------------------------------------------------------------------------


def test_weights_are_proportional_to_the_accuracies():
    assert member_weights(np.array([0.2, 0.6, 0.0])).tolist() == pytest.approx([0.25, 0.75, 0.0], abs=1e-15)


@pytest.mark.parametrize(
    "accuracies", [[0.0, 0.0, 0.0], [math.nan] * 3, [0.0, math.nan, 0.0]], ids=["all 0", "unknown", "0 or unknown"]
)
def test_weights_are_uniform_when_no_pattern_got_anything_right_or_nobody_knows(accuracies):
    """The published code divides by zero here."""
    assert member_weights(np.array(accuracies)).tolist() == pytest.approx([1 / 3] * 3, abs=1e-15)


def test_weights_sum_to_one_and_keep_double_precision():
    weights = member_weights(np.random.default_rng(1).random(18).astype(np.float32))
    assert weights.dtype == np.float64
    assert math.fsum(weights) == pytest.approx(1, abs=1e-15)


def test_a_single_member_has_all_the_weight():
    assert member_weights(np.array([0.1])).tolist() == [1.0]


def test_the_accuracies_given_are_left_alone():
    accuracies = np.array([math.nan, 0.5])
    member_weights(accuracies)
    assert math.isnan(accuracies[0])


# ---- pooling -------------------------------------------------------------------------------------------------------


def test_pooling_is_the_weighted_mean_of_raw_scores(scores):
    accuracies = [0.3, 0.0, 0.9, 0.5, 0.1]
    pooled = pool_scores(scores, member_weights(np.array(accuracies)))
    for text in range(TEXTS):
        for label in range(LABELS):
            terms = [w * float(scores[m, text, label]) for m, w in enumerate(accuracies)]
            assert pooled[text, label] == pytest.approx(math.fsum(terms) / math.fsum(accuracies), abs=1e-12)


def test_uniform_pooling_is_the_mean(scores):
    pooled = pool_scores(scores, member_weights(np.zeros(MEMBERS)))
    np.testing.assert_allclose(pooled, scores.astype(np.float64).mean(axis=0), atol=1e-12)


def test_pooling_one_member_changes_nothing(scores):
    np.testing.assert_array_equal(pool_scores(scores[:1], np.array([1.0])), scores[0])


def test_scores_and_not_probabilities_are_pooled():
    """One member that is very sure outvotes two that are a little against it; their mean probability would not."""
    sure = np.array([[[9.0, 0.0]], [[0.0, 2.0]], [[0.0, 2.0]]])
    uniform = member_weights(np.zeros(3))
    assert pool_scores(sure, uniform)[0].argmax() == 0
    assert np.mean([soften(one) for one in sure], axis=0)[0].argmax() == 1


# ---- softening -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
def test_softening_is_a_softmax_of_scores_over_temperature(scores, temperature):
    softened = soften(scores[0], temperature)
    for row, got in zip(scores[0].tolist(), softened.tolist(), strict=True):
        powers = [math.exp(value / temperature) for value in row]
        assert got == pytest.approx([power / math.fsum(powers) for power in powers], abs=1e-14)


def test_a_higher_temperature_is_less_sure_and_keeps_the_order(scores):
    cold, warm = soften(scores[0], 1.0), soften(scores[0], 2.0)
    assert (warm.max(-1) < cold.max(-1)).all()
    assert (warm.argsort(-1) == cold.argsort(-1)).all()


def test_huge_scores_neither_overflow_nor_lose_a_row():
    softened = soften(np.array([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4]]))
    np.testing.assert_allclose(softened, [[1, 0, 0], [1 / 3, 1 / 3, 1 / 3]], atol=1e-15)


# ---- agreement -----------------------------------------------------------------------------------------------------


def test_agreement_is_the_mean_share_of_equal_predictions_over_pairs(scores):
    predicted = [[max(range(LABELS), key=row.__getitem__) for row in member] for member in scores.tolist()]
    shares = [
        sum(one == other for one, other in zip(predicted[i], predicted[j], strict=True)) / TEXTS
        for i in range(MEMBERS)
        for j in range(i + 1, MEMBERS)
    ]
    assert agreement(scores) == pytest.approx(sum(shares) / len(shares), abs=1e-12)


def test_members_that_say_the_same_agree_fully_and_opposites_not_at_all(scores):
    assert agreement(np.stack([scores[0], 3 * scores[0], scores[0] + 1])) == 1.0
    assert agreement(np.array([[[1.0, 0.0]], [[0.0, 1.0]]])) == 0.0


def test_a_single_member_agrees_with_itself(scores):
    assert agreement(scores[:1]) == 1.0


# ---- even shares ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("labels", "spread"), [(2, 1.0), (4, 8.0), (10, 20.0)])
def test_with_the_shift_all_labels_are_equally_probable_over_the_texts(labels, spread):
    rng = np.random.default_rng(labels)
    scores = rng.normal(rng.normal(0, 3, labels), spread, size=(500, labels))
    shift = align_prior(scores)
    powers = np.exp(scores + shift)
    np.testing.assert_allclose((powers / powers.sum(1, keepdims=True)).mean(0), 1 / labels, atol=1e-5)
    assert shift.mean() == pytest.approx(0, abs=1e-12)


def test_the_shift_is_the_one_that_alternate_scaling_comes_to():
    """Independent: multiply each label by what it lacks until nothing is lacking (iterative proportional fitting)."""
    scores = np.random.default_rng(3).normal([0, 1, -2], 2, size=(300, 3))
    factors = np.ones(3)
    for _ in range(2000):
        powers = np.exp(scores) * factors
        factors *= (1 / 3) / (powers / powers.sum(1, keepdims=True)).mean(0)
    np.testing.assert_allclose(align_prior(scores), np.log(factors) - np.log(factors).mean(), atol=1e-4)


def test_scores_that_are_even_already_are_not_shifted():
    scores = np.random.default_rng(4).normal(size=(100, 3))
    turned = np.concatenate([np.roll(scores, turn, axis=1) for turn in range(3)])
    np.testing.assert_allclose(align_prior(turned), 0, atol=1e-6)


def test_a_label_nobody_gives_is_shifted_up_as_far_as_it_takes():
    scores = np.random.default_rng(5).normal([0, -40], 1, size=(200, 2))
    assert align_prior(scores) == pytest.approx([-20, 20], abs=0.3)


# ---- disagreement --------------------------------------------------------------------------------------------------


def test_disagreement_is_the_members_weighted_divergence_from_their_mean_distribution(scores):
    weights = np.array([0.1, 0.4, 0.0, 0.3, 0.2])
    found = disagreement(scores, weights)
    for text in range(TEXTS):
        said = [[math.exp(float(one) - float(max(row))) for one in row] for row in scores[:, text]]
        said = [[one / math.fsum(row) for one in row] for row in said]
        mean = [math.fsum(w * row[label] for w, row in zip(weights, said, strict=True)) for label in range(LABELS)]
        divergence = [sum(p * math.log(p / q) for p, q in zip(row, mean, strict=True)) for row in said]
        assert found[text] == pytest.approx(float(np.dot(weights, divergence)), abs=1e-9)


def test_disagreement_is_nothing_among_those_who_say_the_same_and_at_most_the_logarithm_of_their_number():
    same = np.array([[[3.0, 1.0, -2.0]]] * 4)
    assert disagreement(same, np.full(4, 0.25)) == pytest.approx(0, abs=1e-12)
    opposed = np.array([[[90.0, 0.0]], [[0.0, 90.0]]])
    assert disagreement(opposed, np.array([0.5, 0.5])) == pytest.approx(math.log(2))
