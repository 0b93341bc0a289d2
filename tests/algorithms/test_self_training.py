"""iPET's arithmetic: sizes, shares, who labels and which texts are drawn."""

import math

import numpy as np
import pytest

from pet.algorithms.self_training import apportion, choose_teachers, draw_texts, generations_for, schedule


def rng(seed=0):
    return np.random.default_rng(seed)


def opinion(size=400, labels=3, seed=0):
    """Probabilities [N, L]."""
    powers = np.exp(2 * rng(seed).normal(size=(size, labels)))
    return powers / powers.sum(1, keepdims=True)


# ---- sizes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labelled", "generations", "sizes"),
    [
        (10, 3, [10, 50, 250, 1250]),  # P1 section 4
        (50, 2, [50, 250, 1250]),
        (100, 2, [100, 500, 2500]),
        (0, 4, [0, 10, 50, 250, 1250]),  # zero-shot
    ],
)
def test_training_sets_grow_as_in_the_paper(labelled, generations, sizes):
    assert schedule(labelled, 40_000, generations, growth=5, first=10, pool_share=0.5) == sizes


@pytest.mark.parametrize(
    ("labelled", "expected"), [(10, 3), (50, 2), (100, 2), (200, 1), (999, 1), (1000, 0), (5000, 0), (0, 4)]
)
def test_there_are_as_many_generations_as_in_the_paper(labelled, expected):
    assert generations_for(labelled, growth=5, first=10) == expected


def test_no_more_than_a_share_of_the_pool_is_drawn():
    assert schedule(10, 1000, 3, growth=5, first=10, pool_share=0.5) == [10, 50, 250, 510]
    assert schedule(0, 12, 2, growth=5, first=10, pool_share=0.5) == [0, 6, 6]


@pytest.mark.parametrize("total", range(0, 60, 7))
@pytest.mark.parametrize("shares", [[3, 3, 2, 2], [1, 1, 1], [5, 0, 1], [1]])
def test_apportioned_numbers_add_up_and_are_off_by_less_than_one(total, shares):
    found = apportion(total, shares)
    assert sum(found) == total
    assert all(abs(number - total * share / sum(shares)) < 1 for number, share in zip(found, shares, strict=True))


# ---- who labels ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("others", "chosen"), [(1, 1), (2, 1), (5, 1), (8, 2), (11, 3), (14, 4), (17, 4)])
def test_a_quarter_of_the_others_label_and_never_none(others, chosen):
    found = choose_teachers(range(others), 0.25, rng())
    assert len(set(found)) == len(found) == chosen
    assert found == sorted(found)


def test_every_other_member_has_the_same_chance_to_label():
    counts = np.bincount([one for seed in range(600) for one in choose_teachers(range(8), 0.25, rng(seed))])
    assert counts.sum() == 1200
    assert (abs(counts - 150) < 5 * np.sqrt(150 * 3 / 4)).all()


# ---- what is drawn -------------------------------------------------------------------------------------------------


def test_drawn_texts_have_the_label_that_the_teachers_gave_and_none_comes_twice():
    probabilities = opinion()
    drawn = draw_texts(probabilities, [30, 20, 10], rng())
    best = probabilities.argmax(1)
    assert [len(one.rows) for one in drawn] == [30, 20, 10]
    for label, one in enumerate(drawn):
        assert set(best[one.rows]) == {label}
        assert (one.predicted, one.filled) == ((best == label).sum(), 0)
    rows = np.concatenate([one.rows for one in drawn])
    assert len(set(rows)) == 60


def test_a_text_is_drawn_the_more_often_the_surer_the_teachers_are():
    """One of three texts: as often as its share of their probabilities."""
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.75, 0.25], [0.1, 0.9]])
    first = [int(draw_texts(probabilities, [1, 0], rng(seed))[0].rows[0]) for seed in range(3000)]
    expected = np.array([0.9, 0.6, 0.75]) / 2.25
    np.testing.assert_allclose(np.bincount(first, minlength=4) / 3000, [*expected, 0], atol=0.04)


def test_the_surest_share_of_a_label_s_texts_is_drawn_from_or_as_many_as_are_wanted():
    probabilities = opinion()
    best = probabilities.argmax(1)

    def surest(label, count):
        own = np.flatnonzero(best == label)
        return set(own[np.argsort(-probabilities[own, label])][:count].tolist())

    def seen(wanted, share):
        draws = [draw_texts(probabilities, wanted, rng(seed), surest=share) for seed in range(200)]
        return [{row for one in draws for row in one[label].rows.tolist()} for label in range(3)]

    quarter = [math.ceil(0.25 * (best == label).sum()) for label in range(3)]
    assert seen([3, 3, 0], 0.25) == [surest(0, quarter[0]), surest(1, quarter[1]), set()]
    assert seen([3, 50, 3], 0.01) == [surest(0, 3), surest(1, 50), surest(2, 3)]


def test_a_label_nobody_predicts_is_filled_with_the_texts_that_come_nearest_to_it():
    probabilities = opinion(60, 3)
    probabilities[:, 2] = np.linspace(0, 0.01, 60)
    probabilities /= probabilities.sum(1, keepdims=True)
    drawn = draw_texts(probabilities, [5, 5, 8], rng())
    taken = {*drawn[0].rows.tolist(), *drawn[1].rows.tolist()}
    nearest = [row for row in np.argsort(-probabilities[:, 2]).tolist() if row not in taken]
    assert drawn[2].rows.tolist() == nearest[:8]
    assert (drawn[2].predicted, drawn[2].filled) == (0, 8)


def test_a_label_with_too_few_texts_takes_all_of_them_and_then_the_nearest():
    probabilities = opinion(60, 2)
    probabilities[:57] = [0.9, 0.1]
    probabilities[20] = [0.8, 0.2]
    probabilities[57:] = [0.2, 0.8]
    first, second = draw_texts(probabilities, [10, 5], rng(4))
    assert sorted(second.rows[:3]) == [57, 58, 59]
    assert (second.predicted, second.filled) == (3, 2)
    assert 20 in [*second.rows[3:], *first.rows]
    assert not set(first.rows) & set(second.rows)


def test_all_of_the_pool_can_be_drawn():
    drawn = draw_texts(opinion(50, 3), [20, 20, 10], rng())
    assert sorted(np.concatenate([one.rows for one in drawn])) == list(range(50))


def test_without_labels_the_first_texts_come_from_those_that_fit_a_label_best_whatever_they_were_given():
    probabilities = opinion(500, 2)
    probabilities[:, 1] /= 1e6  # so that every text is given the first label
    probabilities /= probabilities.sum(1, keepdims=True)
    _, second = draw_texts(probabilities, [5, 5], rng(), candidates=100)
    assert set(second.rows) <= set(np.argsort(-probabilities[:, 1])[:105].tolist())
    assert (second.predicted, second.filled) == (0, 0)
    seen = {row for seed in range(200) for row in draw_texts(probabilities, [0, 5], rng(seed), 100)[1].rows.tolist()}
    assert len(seen) > 50, "drawn, not just the five best"
    assert seen <= set(np.argsort(-probabilities[:, 1])[:100].tolist())


def test_probabilities_that_underflowed_can_be_drawn_from():
    drawn = draw_texts(np.array([[1.0, 0.0]] * 4), [1, 2], rng(), candidates=3)
    assert [len(one.rows) for one in drawn] == [1, 2]


def test_the_same_seed_draws_the_same_texts():
    def rows(seed):
        return [one.rows.tolist() for one in draw_texts(opinion(), [9, 9, 9], rng(seed))]

    assert rows(3) == rows(3) != rows(4)
