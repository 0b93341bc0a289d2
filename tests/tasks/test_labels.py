"""LabelSpace: numbers, probabilities and decisions, beside scikit-learn and scipy."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import confusion_matrix, f1_score

from pet.tasks.labels import LabelSpace

SPACE = LabelSpace(("sports", "tech", "world"))
SCORES = np.random.default_rng(0).normal(size=(50, 3)) * 3
GOLD = np.random.default_rng(1).integers(0, 3, 50)


def test_labels_become_numbers_in_the_card_s_order_and_come_back():
    assert SPACE.encode(["tech", None, "sports"]).tolist() == [1, -1, 0]
    assert SPACE.decode(SPACE.encode(["world", "tech"])) == ["world", "tech"]
    assert SPACE.encode([]).shape == (0,)
    with pytest.raises(KeyError, match="spotrs"):
        SPACE.encode(["spotrs"])


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_probabilities_are_the_softmax_at_a_temperature(temperature):
    found = SPACE.probabilities(SCORES, temperature)
    np.testing.assert_allclose(found, softmax(SCORES / temperature, axis=-1), rtol=1e-12)
    assert (SPACE.decide(found) == SPACE.decide(SCORES)).all()


def test_decisions_are_made_text_by_text_whatever_stands_before_the_labels():
    members = np.stack([SCORES, -SCORES])  # [M, N, L]
    assert SPACE.decide(members).tolist() == [[row.argmax() for row in one] for one in members]
    assert SPACE.count(SPACE.decide(SCORES)).tolist() == [(SCORES.argmax(1) == number).sum() for number in range(3)]
    assert SPACE.count(np.asarray([0, 0])).tolist() == [2, 0, 0], "also of labels that no text has"


def test_known_labels_are_distributions_that_are_sure():
    assert SPACE.one_hot(np.asarray([2, 0])).tolist() == [[0, 0, 1], [1, 0, 0]]


def test_labels_that_no_text_has_are_named():
    assert SPACE.absent(["tech", None, "tech"]) == ["sports", "world"]


@pytest.mark.parametrize("metric", ["accuracy", "macro-f1"])
def test_scores_are_evaluated_as_scikit_learn_evaluates_the_decisions(metric):
    predicted = SCORES.argmax(1)
    expected = (predicted == GOLD).mean() if metric == "accuracy" else f1_score(GOLD, predicted, average="macro")
    found = SPACE.evaluate(GOLD, SCORES, metric)
    assert found["value"] == pytest.approx(100 * expected, abs=0.005)
    assert found["low"] < found["value"] < found["high"]
    assert SPACE.confusion(GOLD, SCORES).tolist() == confusion_matrix(GOLD, predicted).tolist()
