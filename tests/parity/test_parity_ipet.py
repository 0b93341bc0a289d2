"""iPET against the published method: sizes, texts of each label, and the chances with which texts are drawn. References
and the table of claims: tests/support/parity.py and tests/parity/test_parity.py."""

from collections import Counter

import numpy as np
import pytest
from scipy.stats import chisquare
from support.parity import pair_chances, published_counts, published_sizes

from pet.algorithms.self_training import apportion, draw_texts, generations_for, schedule
from pet.config.schema import Settings
from pet.tasks.splits import divide_evenly

IPET = Settings().ipet

GENERATIONS = {0: 4, 4: 4, 8: 3, 10: 3, 12: 3, 50: 2, 100: 2, 500: 1, 1000: 0}
"""Ensembles after generation 0: ceil(log_5(1000 / |T|)), without labelled texts one more than from 10 (section 4)."""


@pytest.mark.parametrize("labelled", GENERATIONS)
def test_training_sets_are_as_many_and_as_large_as_published(labelled):
    found = generations_for(labelled, IPET.growth, IPET.first_examples)
    assert found == GENERATIONS[labelled]
    sizes = schedule(labelled, 40_000, found, IPET.growth, IPET.first_examples, IPET.pool_share)
    assert sizes == published_sizes(labelled, found + 1)
    assert sizes[-1] >= 1000


@pytest.mark.parametrize("labels", [2, 3, 4, 5, 10])
@pytest.mark.parametrize("labelled", GENERATIONS)
def test_a_training_set_has_as_many_new_texts_of_each_label_as_published(labelled, labels):
    counts = divide_evenly(labelled, labels)
    for size in published_sizes(labelled, GENERATIONS[labelled] + 1)[1:]:
        expected = published_counts(counts, size - labelled)
        assert apportion(size - labelled, counts if labelled else [1] * labels) == expected
        assert sum(expected) == size - labelled


def test_proportions_that_are_not_even_are_kept_as_published():
    """Of 20 texts 9, 8, 2 and 1; with a growth of 5 every count is whole."""
    assert apportion(80, [9, 8, 2, 1]) == published_counts([9, 8, 2, 1], 80) == [36, 32, 8, 4]


PROBABILITIES = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4], [0.52, 0.48], [0.3, 0.7], [0.1, 0.9]])
"""Five texts that are given the first label, two the second."""


def drawn_pairs(samples: int, candidates: int | None = None) -> Counter[frozenset[int]]:
    rng = np.random.default_rng(7)
    found = (draw_texts(PROBABILITIES, [2, 1], rng, candidates)[0].rows.tolist() for _ in range(samples))
    return Counter(frozenset(rows) for rows in found)


@pytest.mark.parametrize("candidates", [None, 3])
def test_texts_are_drawn_without_replacement_in_proportion_to_the_probability_of_their_label(candidates):
    """Ten pairs, or three from the three texts that fit the label best (zero-shot): 4,000 draws, chi-square."""
    chances = pair_chances(PROBABILITIES[: candidates or 5, 0])
    found = drawn_pairs(4000, candidates)
    assert set(found) == set(chances)
    expected = [4000 * chance for chance in chances.values()]
    assert chisquare([found[pair] for pair in chances], expected).pvalue > 0.01
    even = [4000 / len(chances)] * len(chances)
    assert chisquare([found[pair] for pair in chances], even).pvalue < 1e-4, "else this test could not tell"


def test_a_text_is_drawn_for_one_label_only_where_the_published_code_may_draw_it_for_two():
    """Without labelled texts: there each label draws from all texts that fit it best
    (docs/explanation/paper-recipe.md)."""
    flat = np.full((6, 2), 0.5)
    for seed in range(50):
        first, second = draw_texts(flat, [3, 3], np.random.default_rng(seed), candidates=6)
        assert not set(first.rows) & set(second.rows)
