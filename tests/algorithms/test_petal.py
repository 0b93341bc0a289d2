"""PETAL's scores, against the formulas written out row by row, and words whose choice is known."""

import math

import numpy as np
import pytest

from pet.algorithms.petal import Tally, choose, likeliest, likelihood_ratio, preselect, words_of_labels
from pet.tools.authoring.label_words import above_mean

LABELS, WORDS = 3, 7


@pytest.fixture
def rows() -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities [N, W] of words of a larger vocabulary, and labels [N], not equally many of each."""
    logits = np.random.default_rng(0).normal(0, 3, size=(11, WORDS + 5))
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return log_p[:, :WORDS].astype(np.float32), np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2])


def tally_of(log_p: np.ndarray, labels: np.ndarray) -> Tally:
    tally = Tally.empty(LABELS, WORDS)
    tally.add(log_p, labels)
    return tally


def ratio_of(tally: Tally) -> np.ndarray:
    return likelihood_ratio(tally.log_odds, tally.rows)


def test_the_likelihood_ratio_is_the_papers_with_its_correction_for_imbalance(rows):
    log_p, labels = rows
    found = ratio_of(tally_of(log_p, labels))
    for label in range(LABELS):
        positive = [row for row in range(len(labels)) if labels[row] == label]
        negative = [row for row in range(len(labels)) if labels[row] != label]
        for word in range(WORDS):
            p = [math.exp(float(one)) for one in log_p[:, word]]
            score = len(negative) / len(positive) * sum(math.log(p[row]) - math.log(1 - p[row]) for row in positive)
            score += sum(math.log(1 - p[row]) - math.log(p[row]) for row in negative)
            assert found[label, word] == pytest.approx(score, abs=1e-4)


def test_the_score_that_is_shown_is_the_difference_of_mean_log_odds(rows):
    log_p, labels = rows
    _, shown = words_of_labels(tally_of(log_p, labels), 2)
    odds = np.log(np.exp(log_p) / (1 - np.exp(log_p)))
    for label in range(LABELS):
        expected = odds[labels == label].mean(0) - odds[labels != label].mean(0)
        np.testing.assert_allclose(shown[label], expected, atol=1e-4)


def test_rows_may_be_counted_a_part_at_a_time(rows):
    log_p, labels = rows
    whole, parts = tally_of(log_p, labels), Tally.empty(LABELS, WORDS)
    for part in (slice(0, 4), slice(4, 5), slice(5, 11)):
        parts.add(log_p[part], labels[part])
    np.testing.assert_allclose(ratio_of(parts), ratio_of(whole), atol=1e-9)
    assert parts.rows.tolist() == [6, 3, 2]


def test_a_word_that_the_model_is_certain_of_has_a_finite_score():
    tally = Tally.empty(2, 1)
    tally.add(np.array([[0.0], [-3.0]], dtype=np.float32), np.array([0, 1]))
    assert np.isfinite(ratio_of(tally)).all()


def test_candidates_are_the_likeliest_words_of_the_labels_own_texts(rows):
    log_p, labels = rows
    chosen = preselect(tally_of(log_p, labels), 3)
    for label in range(LABELS):
        sums = {word: sum(float(log_p[row, word]) for row in np.flatnonzero(labels == label)) for word in range(WORDS)}
        assert set(np.flatnonzero(chosen[label])) == set(sorted(sums, key=sums.__getitem__)[-3:])


def test_a_rare_word_is_no_candidate_however_telling_it_is():
    """Word 0 is never likely and tells the labels apart best."""
    log_p = np.log([[1e-4, 0.5, 0.3], [1e-8, 0.3, 0.5]])
    tally = Tally.empty(2, 3)
    tally.add(log_p, np.array([0, 1]))
    assert ratio_of(tally)[0].argmax() == 0
    assert choose(ratio_of(tally), preselect(tally, 2), 1) == [[1], [2]]


def test_each_label_gets_its_own_words_the_best_first():
    scores = np.array([[5.0, 4.0, 1.0, 0.0], [6.0, 0.0, 3.0, 2.0]])
    allowed = np.ones_like(scores, dtype=bool)
    assert choose(scores, allowed, 2) == [[1, 3], [0, 2]], "word 0 is label 1's, which wants it more"
    allowed[1, 0] = False
    assert choose(scores, allowed, 1) == [[0], [2]]
    assert choose(scores, allowed, 9) == [[0, 1], [2, 3]], "no more than there are"


def test_words_for_a_new_card_are_rated_by_the_same_ratio_with_a_row_for_every_label():
    expected = np.random.default_rng(3).normal(-8, 2, size=(3, 20)).astype(np.float32)
    np.testing.assert_allclose(above_mean(expected), expected - expected.mean(0), atol=1e-5)
    others = np.stack([np.delete(expected, row, 0).mean(0) for row in range(3)])
    ratio = likelihood_ratio(expected, np.ones(3, dtype=np.int64))
    np.testing.assert_allclose(ratio, 2 * (expected - others), atol=1e-4)


def test_one_label_alone_has_nothing_to_be_compared_with():
    assert not above_mean(np.array([[-3.0, -1.0]])).any()


def test_the_likeliest_words_come_first_and_equal_ones_in_their_order():
    assert likeliest(np.array([-3.0, -1.0, -2.0, -1.0]), 3).tolist() == [1, 3, 2]
