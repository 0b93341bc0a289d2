"""Temperature and expected calibration error against a few lines of independent code."""

import numpy as np
import pytest
import torch

from pet.algorithms.calibration import (
    BINS,
    COLDEST,
    Calibration,
    calibrate,
    expected_calibration_error,
    fit_temperature,
    leave_one_out,
    one_hot,
    soft_calibration_error,
)


def invent(seed: int, sharpness: float = 1.0, size: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Scores [N, 4], and labels drawn from softmax(scores / sharpness): `sharpness` is the right temperature."""
    rng = np.random.default_rng(seed)
    scores = 3 * rng.normal(size=(size, 4))
    gumbel = -np.log(-np.log(rng.random(scores.shape)))
    return scores, (scores / sharpness + gumbel).argmax(1)


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 2.5])
def test_the_temperature_that_labels_were_drawn_with_is_found_again(sharpness):
    scores, labels = invent(0, sharpness)
    assert fit_temperature(scores, one_hot(labels, 4)) == pytest.approx(sharpness, rel=0.08)


def test_the_temperature_is_the_one_of_least_cross_entropy_to_soft_labels():
    scores, _ = invent(1, size=200)
    targets = torch.softmax(torch.tensor(np.random.default_rng(2).normal(size=(200, 4)) + scores / 3), 1)
    grid = np.linspace(0.1, 10, 991)
    losses = [torch.nn.functional.cross_entropy(torch.tensor(scores / one), targets).item() for one in grid]
    assert fit_temperature(scores, targets.numpy()) == pytest.approx(grid[int(np.argmin(losses))], abs=0.02)


def test_scores_whose_best_label_is_always_right_end_at_the_coldest():
    scores, _ = invent(3, size=50)
    assert fit_temperature(scores, one_hot(scores.argmax(1), 4)) == pytest.approx(COLDEST, rel=0.01)


def ece_by_loops(probabilities: np.ndarray, gold: np.ndarray) -> float:
    """Guo et al. 2017, equation 3, as it is written."""
    total = 0.0
    for number in range(15):
        inside = [row for row, one in enumerate(probabilities) if number / 15 < max(one) <= (number + 1) / 15]
        if inside:
            accuracy = sum(int(np.argmax(probabilities[row])) == gold[row] for row in inside) / len(inside)
            confidence = sum(max(probabilities[row]) for row in inside) / len(inside)
            total += len(inside) / len(gold) * abs(accuracy - confidence)
    return 100 * total


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 3.0])
def test_the_calibration_error_is_the_one_of_the_paper_s_formula(sharpness):
    scores, gold = invent(4, sharpness, size=500)
    probabilities = torch.softmax(torch.tensor(scores), 1).numpy()
    assert BINS == 15
    assert expected_calibration_error(probabilities, gold) == pytest.approx(ece_by_loops(probabilities, gold))


def test_the_calibration_error_of_what_can_be_counted_by_hand():
    certain = np.asarray([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert expected_calibration_error(certain, np.asarray([0, 0, 1, 0])) == pytest.approx(25)
    unsure = np.full((4, 2), 0.5)
    assert expected_calibration_error(unsure, np.asarray([0, 1, 0, 1])) == pytest.approx(0)


def test_each_member_is_held_to_the_weighted_mean_of_the_others():
    scores = np.random.default_rng(5).normal(size=(3, 7, 2))
    others, best = leave_one_out(scores, np.asarray([0.5, 0.3, 0.2]))
    np.testing.assert_allclose(others[:7], (0.3 * scores[1] + 0.2 * scores[2]) / 0.5)
    np.testing.assert_allclose(others[14:], (0.5 * scores[0] + 0.3 * scores[1]) / 0.8)
    np.testing.assert_array_equal(best[7:14].argmax(1), scores[1].argmax(1))
    others, _ = leave_one_out(scores, np.asarray([1.0, 0.0, 0.0]))
    np.testing.assert_allclose(others[:7], (scores[1] + scores[2]) / 2)


# ---- fits that are none --------------------------------------------------------------------------------------------


def outliers():
    """Two labels, 500 texts: scores of 3 are right as often as they say, but ten texts are wrong with scores of 60. The
    fit believes those."""
    scores = np.zeros((500, 2))
    scores[:, 0], scores[:10, 0] = 3, 60
    labels = np.zeros(500, dtype=np.int64)
    labels[:34] = 1
    return scores, one_hot(labels, 2)


def test_a_fit_that_is_none_to_go_by_is_refused_and_says_why():
    rng = np.random.default_rng(6)
    scores = rng.normal(size=(40, 3))
    right, wrong = one_hot(scores.argmax(1), 3), one_hot(scores.argmin(1), 3)
    soft = np.full((40, 3), 1 / 3)
    with_nan, with_infinity = soft.copy(), scores.copy()
    with_nan[3, 1], with_infinity[5, 0] = np.nan, -np.inf
    cases = [
        (scores, right, "the fit ended at the lowest temperature that is looked at, 0.05"),
        (scores, wrong, "the fit ended at the highest temperature that is looked at, 20"),
        (scores, soft, "the fit ended at the highest temperature that is looked at, 20"),
        (1e6 * scores, right[::-1], "the fit ended at the highest temperature that is looked at, 20"),
        (scores[:1], soft[:1], "1 text is too few to fit a temperature on, which takes 10"),
        (scores[:0], soft[:0], "0 texts are too few to fit a temperature on, which takes 10"),
        (scores, with_nan, "the scores or targets to fit a temperature on are not all finite numbers"),
        (with_infinity, soft, "the scores or targets to fit a temperature on are not all finite numbers"),
        (np.ones((40, 3)), right, "no text to fit a temperature on has a label that scores higher than another"),
        (*outliers(), "the fit made the error on its own texts worse, 2.2 to 41.3 points"),
    ]
    for given, targets, problem in cases:
        assert calibrate(given, targets) == Calibration(1.0, problem)


def test_a_refused_fit_would_have_made_the_error_worse():
    """What the flag is for, by numbers: scores of a coin toss that is always right by luck."""
    rng = np.random.default_rng(7)
    scores = rng.normal(size=(30, 2))
    test, gold = rng.normal(size=(500, 2)), rng.integers(0, 2, 500)
    temperature = fit_temperature(scores, one_hot(scores.argmax(1), 2))
    before, after = (expected_calibration_error(softened(test, one), gold) for one in (1.0, temperature))
    assert after > before + 20
    assert calibrate(scores, one_hot(scores.argmax(1), 2)).temperature == 1


def softened(scores, temperature):
    return torch.softmax(torch.tensor(scores / temperature), 1).numpy()


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 2.5])
def test_a_fit_that_helps_is_kept_as_it_is(sharpness):
    scores, labels = invent(8, sharpness, size=400)
    targets = one_hot(labels, 4)
    assert calibrate(scores, targets) == Calibration(fit_temperature(scores, targets))


def test_against_soft_targets_a_text_is_as_right_as_its_target_says():
    probabilities = np.asarray([[0.9, 0.1], [0.9, 0.1]])
    assert soft_calibration_error(probabilities, np.asarray([[0.7, 0.3], [0.9, 0.1]])) == pytest.approx(10)
