"""Scores against scikit-learn's; intervals against Wilson's formula, gamma variates, and a bootstrap that resamples
texts one by one."""

import json
import warnings

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

from pet.algorithms import metrics
from pet.algorithms.metrics import DRAWS, Score, Spread, confusion, holm, measure, paired_p, score_predictions, spread


def invent(seed: int, size: int = 300, num_labels: int = 4, right: float = 0.7) -> tuple[np.ndarray, np.ndarray]:
    """Gold labels of uneven frequency and predictions that are right about `right` of the time."""
    rng = np.random.default_rng(seed)
    gold = rng.choice(num_labels, size=size, p=rng.dirichlet(np.full(num_labels, 3.0)))
    return gold, np.where(rng.random(size) < right, gold, rng.integers(num_labels, size=size))


def reference(gold: np.ndarray, predicted: np.ndarray, num_labels: int, metric: str) -> float:
    if metric == "accuracy":
        return float(accuracy_score(gold, predicted))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of the labels that count as 0
        return float(f1_score(gold, predicted, labels=range(num_labels), average="macro"))


@pytest.mark.parametrize("metric", ["accuracy", "macro-f1"])
@pytest.mark.parametrize("seed", range(8))
def test_values_are_those_of_scikit_learn_in_percent(metric, seed):
    gold, predicted = invent(seed, right=seed / 8)
    expected = 100 * reference(gold, predicted, 4, metric)
    assert score_predictions(gold, predicted, 4, metric).value == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("metric", ["accuracy", "macro-f1"])
@pytest.mark.parametrize(
    ("gold", "predicted"),
    [([0, 1, 1], [0, 0, 0]), ([0, 0], [0, 0]), ([2, 2], [1, 1]), ([0, 1, 2], [0, 1, 2]), ([1], [1])],
    ids=["never predicted", "one label only", "all wrong", "all right", "one text"],
)
def test_labels_that_are_absent_count_as_in_scikit_learn(metric, gold, predicted):
    score = score_predictions(np.array(gold), np.array(predicted), 3, metric)
    assert score.value == pytest.approx(100 * reference(np.array(gold), np.array(predicted), 3, metric), abs=1e-10)
    assert 0 <= score.low <= score.high <= 100


def test_confusion_has_gold_in_rows_and_predictions_in_columns():
    gold, predicted = invent(0)
    assert (confusion(gold, predicted, 4) == confusion_matrix(gold, predicted, labels=range(4))).all()
    assert confusion(np.array([0]), np.array([2]), 3)[0, 2] == 1


def test_many_matrices_are_measured_at_once():
    one, other = (confusion(*invent(seed), 4) for seed in (0, 1))
    for metric in ("accuracy", "macro-f1"):
        together = measure(np.stack([one, other]), metric)
        assert together.tolist() == [float(measure(one, metric)), float(measure(other, metric))]


# ---- intervals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("right", "size"), [(0, 1), (1, 1), (3, 4), (20, 20), (350, 500)])
def test_the_interval_of_an_accuracy_is_wilsons(right, size):
    """Where z standard deviations of a proportion p lie p from the one that was seen (Wilson 1927)."""
    z, seen = 1.959964, right / size
    middle = (seen + z**2 / (2 * size)) / (1 + z**2 / size)
    reach = z / (1 + z**2 / size) * (seen * (1 - seen) / size + z**2 / (4 * size**2)) ** 0.5
    predicted = np.array([0] * right + [1] * (size - right))
    score = score_predictions(np.zeros(size, dtype=np.int64), predicted, 2, "accuracy")
    assert (score.low, score.high) == pytest.approx((100 * (middle - reach), 100 * (middle + reach)), abs=1e-4)


@pytest.mark.parametrize(("size", "right"), [(300, 0.7), (60, 0.5)])
def test_the_interval_of_macro_f1_is_that_of_resampling_the_texts(size, right):
    """Where there are texts enough; both have their own noise."""
    gold, predicted = invent(3, size, 3, right)
    rng = np.random.default_rng(99)
    values = []
    for _ in range(DRAWS):
        rows = rng.integers(size, size=size)
        drawn, said = gold[rows], predicted[rows]
        # 2 TP / (2 TP + FP + FN), label by label
        hits = [int(((drawn == label) & (said == label)).sum()) for label in range(3)]
        seen = [int((drawn == label).sum() + (said == label).sum()) for label in range(3)]
        values.append(100 * sum(2 * a / b if b else 0.0 for a, b in zip(hits, seen, strict=True)) / 3)
    low, high = np.quantile(values, [0.025, 0.975])
    score = score_predictions(gold, predicted, 3, "macro-f1")
    noise = 0.15 * float(np.std(values))  # an end of the interval has a standard error of 0.06 standard deviations
    assert score.low == pytest.approx(low, abs=noise + 100 / size / 2)
    assert score.high == pytest.approx(high, abs=noise + 100 / size / 2)
    assert score.low < score.value < score.high


@pytest.mark.parametrize(
    ("gold", "predicted"),
    [
        ([0], [0]),
        ([0], [1]),
        ([0, 1] * 10, [0, 1] * 10),
        ([0, 1, 2] * 7, [0, 1, 2] * 7),
        ([0, 1, 2] * 7, [1, 2, 0] * 7),
    ],
    ids=["one right text", "one wrong text", "all right, a label missing", "all right", "all wrong"],
)
def test_an_interval_of_macro_f1_does_not_collapse_and_holds_its_value(gold, predicted):
    score = score_predictions(np.array(gold), np.array(predicted), 3, "macro-f1")
    assert score.low <= score.value <= score.high
    assert score.high - score.low > 10, "a few texts leave much open"
    right = np.array(gold) == np.array(predicted)
    assert (score.high == 100) == right.all()
    assert (score.low == 0) == (not right.any())


def test_where_two_labels_are_seen_evenly_macro_f1_is_as_sure_as_the_accuracy():
    """20 right texts of 20: a uniform prior of the share that is right gives at least 0.025^(1/21) = 83.9 %; each
    label has fewer texts, so macro-F1 is a little less sure."""
    gold = np.array([0, 1] * 10)
    score = score_predictions(gold, gold, 2, "macro-f1")
    assert 100 * 0.025 ** (1 / 21) - 6 < score.low < 100 * 0.025 ** (1 / 21)


def test_a_posterior_is_that_of_gamma_variates_worked_out_for_one_matrix():
    """Goutte & Gaussier 2005: F1 is U / (U + V) of gamma variates, here with the shapes of each label's counts; of two
    labels V is shared: both have all wrong texts."""
    counts = np.array([[30, 4], [6, 10]])
    rng = np.random.default_rng(7)
    right = [rng.gamma(count + 1 / 2, size=40_000) for count in (30, 10)]
    wrong = rng.gamma(4 + 6 + 1, size=40_000)  # the prior: half a text for each confusion
    expected = np.quantile(sum(2 * one / (2 * one + wrong) for one in right) / 2, [0.025, 0.975])
    gold, predicted = (np.repeat(where, counts.ravel()) for where in np.divmod(np.arange(4), 2))
    score = score_predictions(gold, predicted, 2, "macro-f1")
    assert (score.low, score.high) == pytest.approx(tuple(100 * expected), abs=0.8)


@pytest.mark.parametrize("num_labels", [2, 20])
def test_of_many_texts_it_is_the_bootstraps_to_tenths_of_a_point(num_labels):
    gold, predicted = invent(3, 20_000, num_labels, 0.8)
    counts = confusion(gold, predicted, num_labels)
    drawn = np.random.default_rng(1).multinomial(counts.sum(), counts.ravel() / counts.sum(), size=DRAWS)
    values = 100 * measure(drawn.reshape(DRAWS, num_labels, num_labels), "macro-f1")
    score = score_predictions(gold, predicted, num_labels, "macro-f1")
    assert (score.low, score.high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])), abs=0.15)


@pytest.mark.parametrize(("size", "right", "num_labels"), [(20, 0.95, 2), (20, 0.95, 3), (50, 0.8, 3), (200, 0.6, 4)])
def test_about_95_of_100_intervals_of_macro_f1_hold_the_truth(size, right, num_labels, monkeypatch):
    """The bootstrap's hold it 65 times of a hundred in the first case: it is sure of what was never wrong."""
    monkeypatch.setattr(metrics, "DRAWS", 400)
    rng, held = np.random.default_rng(11), 0
    shares = np.full((num_labels, num_labels), (1 - right) / (num_labels - 1) / num_labels)
    np.fill_diagonal(shares, right / num_labels)
    truth = 100 * float(measure(shares, "macro-f1"))
    cells = np.arange(num_labels**2)
    for _ in range(200):
        drawn = np.repeat(cells, rng.multinomial(size, shares.ravel()))
        score = score_predictions(*np.divmod(drawn, num_labels), num_labels, "macro-f1")
        held += score.low <= truth <= score.high
    assert 178 <= held <= 200


def test_matrices_of_many_labels_are_drawn_some_at_a_time(monkeypatch):
    gold, predicted = invent(4, 200, 12)
    whole = score_predictions(gold, predicted, 12, "macro-f1")
    monkeypatch.setattr(metrics, "AT_A_TIME", 5 * 144)
    assert score_predictions(gold, predicted, 12, "macro-f1") == whole


# ---- what is missing -----------------------------------------------------------------------------------------------


def test_a_label_that_no_test_text_has_is_named_with_what_it_does_to_the_number():
    assert metrics.describe_absent([], "macro-f1", 3) == ""
    said = metrics.describe_absent(["rain"], "macro-f1", 3)
    assert said == "no test text has the label 'rain', which counts as 0: macro-F1 is 66.7 at most"
    said = metrics.describe_absent(["rain", "snow"], "accuracy", 3)
    assert said == "no test text has the labels 'rain', 'snow': accuracy says nothing of them"
    said = metrics.describe_absent([f"l{number}" for number in range(9)], "macro-f1", 18)
    assert "'l4' and 4 more, which count as 0: macro-F1 is 50.0 at most" in said


def test_about_95_of_100_intervals_hold_the_truth():
    rng = np.random.default_rng(5)
    held = 0
    for _ in range(200):
        predicted = (rng.random(400) < 0.2).astype(np.int64)  # wrong one time in five
        score = score_predictions(np.zeros(400, dtype=np.int64), predicted, 2, "accuracy")
        held += score.low <= 80 <= score.high
    assert 180 <= held <= 199


def test_intervals_are_the_same_whenever_they_are_computed():
    gold, predicted = invent(1)
    one = score_predictions(gold, predicted, 4, "macro-f1")
    assert score_predictions(gold, predicted, 4, "macro-f1") == one
    assert score_predictions(gold, predicted, 4, "macro-f1", seed=1).value == one.value


def test_more_texts_give_narrower_intervals():
    widths = []
    for size in (100, 1600):
        score = score_predictions(*invent(2, size), 4, "accuracy")
        widths.append(score.high - score.low)
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.4), "with the root of their number"


def test_json_gets_hundredths_of_a_point():
    assert json.dumps(Score(66.66666, 0.125001, 100.0).as_dict()) == '{"value": 66.67, "low": 0.13, "high": 100.0}'


# ---- over several seeds --------------------------------------------------------------------------------------------


def test_a_spread_is_mean_sample_deviation_and_students_interval():
    """Of 80, 84 and 91: t of two degrees of freedom at 97.5 % is 4.3027 (any table)."""
    found = spread([80.0, 84.0, 91.0])
    assert found.mean == pytest.approx(85)
    assert found.deviation == pytest.approx(31**0.5)
    half = 4.302653 * (31 / 3) ** 0.5
    assert (found.low, found.high) == (pytest.approx(85 - half), pytest.approx(85 + half))


def test_an_interval_ends_at_nothing_and_everything():
    assert (spread([99.0, 90.0]).high, spread([1.0, 9.0]).low) == (100.0, 0.0)


def test_values_that_are_all_the_same_have_no_interval():
    assert spread([85.0, 85.0, 85.0]) == Spread(85.0, 0.0, None, None)
    assert spread([0.1 + 0.2, 0.3]).low is None, "nor where decimals round them apart"


def test_of_one_seed_no_spread_is_known():
    assert spread([50.0]) == Spread(50.0, None, None, None)


def test_the_paired_test_is_students_on_the_differences():
    """Differences 1, 2, 6: mean 3, deviation sqrt 7, t = 3 / sqrt(7/3) = 1.964; with two degrees of freedom
    P(|T| > t) = 1 - t / sqrt(t^2 + 2)."""
    t = 3 / (7 / 3) ** 0.5
    found = paired_p([71.0, 82.0, 56.0], [70.0, 80.0, 50.0])
    assert found == pytest.approx(1 - t / (t * t + 2) ** 0.5)
    assert found == paired_p([70.0, 80.0, 50.0], [71.0, 82.0, 56.0])


@pytest.mark.parametrize("values", [[71.0], [71.0, 81.0], [70.0, 80.0]])
def test_a_paired_test_that_says_nothing_is_none(values):
    assert paired_p(values, [70.0, 80.0][: len(values)]) is None


def test_the_same_difference_is_one_also_where_decimals_round_it_apart():
    assert 79.0 - 72.2 != 76.4 - 69.6
    assert paired_p([79.0, 76.4], [72.2, 69.6]) is None


def test_holm_multiplies_the_smallest_by_all_and_never_falls():
    """Worked by hand: sorted .01 .02 .03 .04 times 4 3 2 1 is .04 .06 .06 .04, and the last may not be below .06."""
    assert holm([0.04, 0.01, None, 0.03, 0.02]) == pytest.approx([0.06, 0.04, None, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([None]) == [None]
