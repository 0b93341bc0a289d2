"""Draws and near-duplicates: what goes where, whatever the seed, and the sentence when there is not enough."""

import re
from collections import Counter

import numpy as np
import pytest

from pet.errors import TaskError
from pet.tasks.near_duplicates import DUPLICATE_JACCARD, NearDuplicateIndex, count_near_duplicates, shingles
from pet.tasks.splits import Draw, derive_seed, divide_evenly, draw_by_seed, draw_first, take_per_label

NAMES = ("sun", "rain", "snow")
SEEDS = range(20)


def make_labels(per_label: int, unknown: int = 0) -> list[str | None]:
    """Labels in blocks, as badly ordered as a file can be; the unlabelled rows come last."""
    return [name for name in NAMES for _ in range(per_label)] + [None] * unknown


def draw(labels: list[str | None], seed: int, /, train: int = 9, pool: int = 1000, **changes: int | None) -> Draw:
    sizes = {"test_size": None, "test_rows": 50} | changes
    return draw_by_seed(labels, NAMES, train, pool, sizes["test_size"], seed, sizes["test_rows"])


def refusal(*arguments: object, **named: int | None) -> str:
    with pytest.raises(TaskError) as raised:
        draw(*arguments, **named)
    return str(raised.value)


# ---- shares and seeds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "num_shares", "shares"),
    [(10, 3, [4, 3, 3]), (9, 3, [3, 3, 3]), (10, 4, [3, 3, 2, 2]), (2, 3, [1, 1, 0]), (0, 2, [0, 0]), (7, 1, [7])],
)
def test_shares_differ_by_at_most_one_and_the_larger_come_first(total, num_shares, shares):
    assert divide_evenly(total, num_shares) == shares


def test_every_use_of_the_runs_seed_has_its_own_stream():
    seeds = [derive_seed(use, seed) for use in ("draw", "finetune", "distill") for seed in range(200)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_derived_seeds_are_the_same_on_every_machine():
    # printf draw/0 | sha256sum | cut -c 1-8
    assert derive_seed("draw", 0) == 0x234D5594, "a change here changes the texts of every published result"


# ---- recipe `fixed` ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("test_rows", [None, 50])
def test_a_seed_gives_one_draw_and_another_seed_another(test_rows):
    labels = make_labels(40, unknown=30)
    draws = [draw(labels, seed, test_size=20, test_rows=test_rows) for seed in SEEDS]
    assert draws == [draw(labels, seed, test_size=20, test_rows=test_rows) for seed in SEEDS]
    for split in ("train", "pool", "test"):
        assert len({tuple(sorted(getattr(one, split))) for one in draws}) > len(SEEDS) // 2, split


def test_the_state_of_numpys_own_generator_does_not_matter():
    labels = make_labels(40)
    np.random.seed(1)
    one = draw(labels, 0)
    np.random.seed(2)
    assert draw(labels, 0) == one


@pytest.mark.parametrize("seed", SEEDS)
def test_the_labelled_texts_are_balanced(seed):
    labels = make_labels(40, unknown=30)
    assert Counter(labels[row] for row in draw(labels, seed, train=10).train) == {"sun": 4, "rain": 3, "snow": 3}


@pytest.mark.parametrize("seed", SEEDS)
def test_labelled_texts_pool_and_test_set_share_no_row_of_one_source(seed):
    labels = make_labels(40, unknown=30)
    one = draw(labels, seed, test_rows=None, test_size=25)
    rows = one.train + one.pool + one.test
    assert sorted(rows) == list(range(150)), "every row has one place"
    assert (len(one.train), len(one.test)) == (9, 25)


@pytest.mark.parametrize("seed", SEEDS)
def test_with_a_test_set_of_its_own_pool_and_labelled_texts_share_no_row(seed):
    labels = make_labels(40, unknown=30)
    one = draw(labels, seed, test_size=25)
    assert sorted(one.train + one.pool) == list(range(150))
    assert len(set(one.test)) == 25
    assert set(one.test) <= set(range(50))


@pytest.mark.parametrize("test_rows", [None, 50])
def test_unlabelled_rows_go_to_the_pool_and_nowhere_else(test_rows):
    labels = make_labels(40, unknown=30)
    unknown = set(range(120, 150))
    one = draw(labels, 0, test_rows=test_rows)
    assert unknown <= set(one.pool)
    if test_rows is None:
        assert not unknown & {*one.train, *one.test}


def test_the_pool_is_drawn_whatever_the_label():
    labels: list[str | None] = ["sun"] * 900 + ["rain"] * 50 + ["snow"] * 50
    one = draw(labels, 0, train=3, pool=500)
    assert len(one.pool) == 500
    assert Counter(labels[row] for row in one.pool)["sun"] == pytest.approx(450, abs=30), "as frequent as in the source"


def test_a_source_without_test_set_gives_half_of_its_labelled_texts_when_no_size_is_named():
    assert len(draw(make_labels(40, unknown=30), 0, test_rows=None).test) == 60


def test_a_test_set_of_its_own_is_taken_whole_and_in_its_order_when_no_size_is_named():
    assert draw(make_labels(40), 0).test == list(range(50))


def test_no_labelled_texts_are_a_draw_too():
    one = draw(make_labels(5), 0, train=0)
    assert one.train == []
    assert len(one.pool) == 15


def test_row_numbers_are_plain_integers():
    one = draw(make_labels(40), 0, test_size=10)
    assert {type(row) for row in one.train + one.pool + one.test} == {int}, "numpy's own cannot be written as JSON"


# ---- texts that are labelled by hand -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("test_rows", [50, None], ids=["test file", "no test file"])
def test_given_rows_of_the_pool_leave_labelled_texts_and_test_set_as_they_are(seed, test_rows):
    labels = make_labels(40, unknown=5)
    before = draw(labels, seed, test_size=20, test_rows=test_rows)
    given = sorted(before.pool[3:8])
    after = draw_by_seed(labels, NAMES, 9, 1000, 20, seed, test_rows, given)
    assert after.train == [*before.train, *given]
    assert after.test == before.test
    assert set(after.pool) == set(before.pool) - set(given)


@pytest.mark.parametrize("seed", SEEDS)
def test_given_rows_are_labelled_texts_once_and_nothing_else_whatever_the_seed(seed):
    labels, given = make_labels(20), [0, 5, 22, 41, 59]
    one = draw_by_seed(labels, NAMES, 9, 1000, None, seed, None, given)
    assert Counter(labels[row] for row in one.train if row not in given) == dict.fromkeys(NAMES, 3)
    assert sorted([*one.train, *one.pool, *one.test]) == list(range(60))
    assert len(one.test) == 30
    assert one.train[-5:] == given


def test_the_papers_pool_does_not_hold_given_rows():
    one = draw_first(make_labels(5), NAMES, 3, 3, None, 7, [0, 14])
    assert one.train == [1, 5, 10, 0, 14]
    assert one.pool == [1, 2, 3, 5, 6, 7, 10, 11, 12]


# ---- recipe `paper` ------------------------------------------------------------------------------------------------


def test_the_papers_draw_takes_the_first_of_each_label_in_file_order():
    labels: list[str | None] = ["rain", "sun", "sun", None, "snow", "rain", "sun", "snow", "rain", "snow", "sun"]
    one = draw_first(labels, NAMES, 4, 3, 2, 5)
    assert one.train == [0, 1, 2, 4], "2 suns, 1 rain, 1 snow"
    assert one.pool == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], "3 of each, the labelled texts and the unlabelled row among them"
    assert one.test == [0, 1]


def test_the_papers_pool_holds_the_labelled_texts():
    one = draw_first(make_labels(40), NAMES, 10, 20, None, 7)
    assert set(one.train) < set(one.pool)
    assert Counter(row // 40 for row in one.pool) == {0: 20, 1: 20, 2: 20}
    assert one.test == list(range(7))


# ---- not enough ----------------------------------------------------------------------------------------------------


def test_every_label_that_has_too_few_texts_is_named_and_no_other():
    labels: list[str | None] = ["sun"] * 9 + ["rain"] * 2
    message = refusal(labels, 0)
    assert "'rain' has 2, needs 3, 'snow' has 0, needs 3" in message
    assert "'sun'" not in message
    assert "9 training examples" in message
    assert "--train-examples" in message


def test_the_papers_draw_names_the_labels_too():
    with pytest.raises(TaskError, match=r"'snow' has 0, needs 1; lower --train-examples"):
        draw_first(["sun", "rain"], NAMES, 3, 5, None, 5)


def test_texts_are_taken_in_the_order_given():
    assert take_per_label([3, 1, 2, 0], ["sun", "sun", "rain", "sun"], ("sun", "rain"), (2, 1)) == [3, 1, 2]


def test_nothing_left_for_the_pool_is_said():
    assert "no texts are left for the unlabelled pool" in refusal(make_labels(3), 0)


def test_the_test_set_is_as_large_as_it_can_be_up_to_the_size_asked_for():
    assert len(draw(make_labels(40), 0, test_size=60).test) == 50, "all that the test side has"
    drawn = draw(make_labels(4, unknown=90), 0, train=0, test_rows=None, test_size=20)
    assert len(drawn.test) == 6, "half of the twelve labelled rows"
    assert "no labelled texts are left for the test set" in refusal(make_labels(40), 0, test_rows=0)


# ---- near-duplicates -----------------------------------------------------------------------------------------------

SYLLABLES = "ba co di fu ge ha li mo nu pe ra so ti vu wa".split(" ")


def invent(rng: np.random.Generator, num_words: int) -> list[str]:
    return ["".join(rng.choice(SYLLABLES, size=3)) for _ in range(num_words)]


def reference_jaccard(one: str, other: str) -> float:
    """The definition in words, without hashes."""

    def runs(text: str) -> set[tuple[str, ...]]:
        words = [word for word in re.split(r"[^a-z0-9]+", text.lower()) if word]
        return {tuple(words[i : i + 5]) for i in range(len(words) - 4)} or {tuple(words)}

    left, right = runs(one), runs(other)
    return len(left & right) / len(left | right)


def find_near_duplicates(left: list[str], right: list[str]) -> list[tuple[int, int]]:
    """Pairs (row of `left`, row of `right`), in the order of `right`."""
    known = NearDuplicateIndex(left)
    return [(row, other) for other, text in enumerate(right) for row in known.like(shingles(text))]


def test_exact_copies_are_found_and_unrelated_texts_are_not():
    rng = np.random.default_rng(0)
    texts = [" ".join(invent(rng, 60)) for _ in range(50)]
    assert find_near_duplicates(texts, texts[::-1]) == [(49 - row, row) for row in range(50)]
    assert find_near_duplicates(texts[:25], texts[25:]) == []


def test_case_and_punctuation_do_not_hide_a_copy():
    left = "The river rose by two metres; nobody was hurt, the mayor said."
    right = 'THE RIVER ROSE BY TWO METRES - "nobody was hurt," the Mayor said'
    assert find_near_duplicates([left], [right]) == [(0, 0)]


def test_a_copy_with_a_small_edit_is_found():
    rng = np.random.default_rng(1)
    left, right = [], []
    for _ in range(200):
        words = invent(rng, 80)
        left.append(" ".join(words))
        words[rng.integers(5, 75)] = "edited"
        right.append(" ".join(words))
    assert find_near_duplicates(left, right) == [(row, row) for row in range(200)]


def test_nearly_all_pairs_above_the_threshold_are_found_and_none_below():
    """Against all pairs by definition, texts of one stock of sentences edited more and more."""
    rng = np.random.default_rng(2)
    left = [invent(rng, 100) for _ in range(40)]
    right = []
    for row in range(400):
        words = list(left[row % 40])
        for place in rng.integers(0, 100, size=rng.integers(1, 5)):
            words[place] = "edited"
        right.append(" ".join(words))
    joined = [" ".join(words) for words in left]
    wanted = {
        (row, other)
        for row in range(40)
        for other in range(row, 400, 40)
        if reference_jaccard(joined[row], right[other]) >= DUPLICATE_JACCARD
    }
    found = set(find_near_duplicates(joined, right))
    assert found <= wanted
    assert 150 < len(wanted) < 350, "the test has pairs on both sides"
    assert len(wanted - found) <= 0.01 * len(wanted)


def test_short_texts_are_compared_as_a_whole():
    assert find_near_duplicates(["good food", "bad food"], ["Good food!", "food good"]) == [(0, 0)]


def test_one_text_may_repeat_several():
    assert find_near_duplicates(["same", "same", "other"], ["same", "new", "same"]) == [(0, 0), (1, 0), (0, 2), (1, 2)]


def test_texts_without_a_word_are_copies_of_each_other_only():
    assert find_near_duplicates(["", "word"], ["...", "word"]) == [(0, 0), (1, 1)]


def test_no_texts_have_no_duplicates():
    assert find_near_duplicates([], ["word"]) == find_near_duplicates(["word"], []) == []


def test_texts_are_counted_once_however_many_they_repeat():
    train, test = ["one", "two"], ["two", "three", "four", "three"]
    pool = ["three", "Three!", "two", "two.", "five", "one"]
    found = count_near_duplicates(iter(train), iter(pool), iter(test))
    assert found == {"test_of_train": 1, "test_of_pool": 3, "pool_of_train": 3}


def test_a_text_has_one_shingle_per_run_of_five_words():
    assert [len(shingles(" ".join("abcdefgh"[:count]))) for count in range(9)] == [1, 1, 1, 1, 1, 1, 2, 3, 4]
