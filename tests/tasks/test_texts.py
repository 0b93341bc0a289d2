"""Texts in columns: rows stay rows, whatever is done to the columns."""

import pytest

from pet.tasks import texts as texts_module
from pet.tasks.texts import Texts, concatenate


@pytest.fixture
def texts() -> Texts:
    return Texts(
        ids=["a", "b", "c"],
        fields={"headline": ["one", "two", "three"], "body": ["eins", "zwei", "drei"]},
        labels=["x", None, "y"],
    )


def test_length_is_the_number_of_rows(texts):
    assert len(texts) == 3
    assert len(Texts([], {"body": []}, [])) == 0


def test_take_gives_whole_rows_in_the_order_asked_for(texts):
    taken = texts.take([2, 0, 2])
    assert taken.ids == ["c", "a", "c"]
    assert taken.fields == {"headline": ["three", "one", "three"], "body": ["drei", "eins", "drei"]}
    assert taken.labels == ["y", "x", "y"]


def test_taking_nothing_keeps_the_fields(texts):
    assert texts.take([]) == Texts([], {"headline": [], "body": []}, [])


def test_unlabelled_forgets_every_label_and_nothing_else(texts):
    pool = texts.unlabelled()
    assert pool.labels == [None, None, None]
    assert (pool.ids, pool.fields) == (texts.ids, texts.fields)
    assert texts.labels == ["x", None, "y"], "the labelled texts must not lose theirs"


@pytest.mark.parametrize(("most", "sizes"), [(1, [1, 1, 1]), (2, [2, 1]), (3, [3]), (50, [3])])
def test_chunks_are_all_texts_in_their_order_and_none_is_larger_than_allowed(texts, monkeypatch, most, sizes):
    monkeypatch.setattr(texts_module, "CHUNK", most)
    found = list(texts.chunks())
    assert [len(chunk) for chunk in found] == sizes
    assert concatenate(found) == texts


def test_no_texts_have_no_chunks():
    assert list(Texts([], {"body": []}, []).chunks()) == []


def test_the_id_of_a_row_is_the_one_it_came_with(texts):
    assert [texts.id_of(row) for row in (0, 2)] == ["a", "c"]
    assert texts.take([2, 0]).id_of(0) == "c"


def test_joined_puts_the_fields_of_one_row_in_their_order(texts):
    assert texts.joined(1) == "two zwei"


def test_concatenate_keeps_the_order_of_parts_and_rows(texts):
    both = concatenate([texts.take([1]), texts.take([0, 2])])
    assert both == texts.take([1, 0, 2])


def test_columns_of_different_lengths_are_a_mistake_of_the_programmer():
    with pytest.raises(AssertionError, match="different lengths"):
        Texts(["a", "b"], {"body": ["one"]}, [None, None])


def test_texts_of_different_fields_cannot_be_concatenated(texts):
    with pytest.raises(AssertionError, match="different fields"):
        concatenate([texts, Texts(["d"], {"body": ["vier"]}, [None])])


def test_texts_cannot_be_changed_in_place(texts):
    with pytest.raises(AttributeError):
        texts.labels = ["x", "x", "x"]
