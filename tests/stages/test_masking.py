"""Which tokens are hidden: how many, which, and how often each word."""

import numpy as np
import pytest
import torch
from tiny import TOKENIZERS

from pet.encoding import Speller
from pet.losses import IGNORED
from pet.stages import masking
from pet.stages.masking import hide, word_weights

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def speller():
    return Speller(TOKENIZERS["wordpiece"](), "bert")


def test_targets_are_words_in_the_number_asked_for_and_eight_of_ten_are_masked(speller):
    rng = np.random.default_rng(0)
    ids = rng.integers(0, len(speller.tokenizer), size=(400, 64))
    ids[:, 0], ids[:, -1] = 2, 3
    found = hide(ids, 0.15, word_weights(ids, speller, 0.0), speller, True, rng, CPU)
    places, targets = found.places.numpy(), found.targets.numpy()
    assert len(places) == len(set(places)) == round(0.15 * ids.size)
    assert (ids.ravel()[places] == targets).all()
    assert not set(targets) & set(speller.tokenizer.all_special_ids)
    shown = found.batch.input_ids.numpy()
    others = np.setdiff1d(np.arange(ids.size), places)
    assert (shown[others] == ids.ravel()[others]).all()
    masked = shown[places] == speller.mask_id
    kept = shown[places] == targets
    assert abs(masked.mean() - 0.8) < 0.04
    assert abs(kept.mean() - 0.1) < 0.03


def test_where_too_few_words_are_there_the_rest_asks_for_nothing(speller):
    ids = np.full((2, 8), speller.tokenizer.sep_token_id)
    ids[0, 2] = 20
    found = hide(ids, 0.5, word_weights(ids, speller, 0.0), speller, True, np.random.default_rng(0), CPU)
    assert found.targets.tolist() == [20] + [IGNORED] * 15
    assert found.places[0] == 2
    assert sorted(found.places.tolist()) == [*range(16)]


def test_the_places_of_a_batch_are_a_round_number(speller):
    ids = np.random.default_rng(0).integers(5, len(speller.tokenizer), size=(20, 50))
    found = hide(ids, 0.15, word_weights(ids, speller, 0.0), speller, True, np.random.default_rng(1), CPU)
    asked = found.targets != IGNORED
    assert int(asked.sum()) == 150
    assert len(found.places) == len(found.targets) == 192 == len(set(found.places.tolist()))
    changed = np.flatnonzero(found.batch.input_ids.numpy() != ids.ravel())
    assert set(changed) <= set(found.places[asked].tolist())
    assert np.abs(found.places[asked].numpy().mean() - 500) < 100  # from everywhere


def test_with_power_0_all_words_are_hidden_alike_and_special_tokens_never(speller):
    weights = word_weights(np.arange(50), speller, 0.0)
    special = set(speller.tokenizer.all_special_ids)
    assert weights.tolist() == [0.0 if number in special else 1.0 for number in range(len(speller.tokenizer))]


def test_words_are_weighted_by_their_share_within_bounds_to_a_negative_power(speller, monkeypatch):
    monkeypatch.setattr("pet.corpus.COUNTED", 70)
    numbers = {20: 9990, 21: 100_000 - 9990 - 106, 22: 50, 23: 50, 24: 5, 25: 1}
    tokens = np.repeat(np.array(list(numbers), dtype=np.uint16), list(numbers.values()))
    weights = word_weights(tokens, speller, 0.5)
    assert weights[20] == weights[21] == pytest.approx(1e-3**-0.5)
    assert weights[22] == weights[23] == pytest.approx(5e-4**-0.5)
    assert weights[24] == pytest.approx(5e-5**-0.5)
    assert weights[25] == weights[30] == pytest.approx(2e-5**-0.5), "as if in 50,000 once"
    assert not weights[speller.tokenizer.all_special_ids].any()


def test_the_first_drawn_is_each_token_as_often_as_its_weight_says():
    """Against the proportions themselves, and the exact chance of the second under the first."""
    weight, rng = np.array([0.0, 1.0, 2.0, 5.0]), np.random.default_rng(0)
    drawn = np.array([masking.draw_places(weight, 1, 2, rng)[:2] for _ in range(20_000)])
    firsts = np.bincount(drawn[:, 0], minlength=4) / 20_000
    assert firsts == pytest.approx(weight / 8, abs=0.015)
    second = np.bincount(drawn[drawn[:, 0] == 3, 1], minlength=4)
    assert second / second.sum() == pytest.approx([0, 1 / 3, 2 / 3, 0], abs=0.03)


def test_words_are_hidden_as_often_as_they_are_there_times_their_weight(speller, monkeypatch):
    """Two words, one ten times as frequent; few are hidden, so that none runs out."""
    rng = np.random.default_rng(0)
    ids = rng.choice([20, 21], p=[10 / 11, 1 / 11], size=(200, 100))
    others = np.full(40 * ids.size, 30)  # the two are rare enough to be within the bounds
    monkeypatch.setattr(masking, "COMMONEST", 0.1)
    for power, share in ((0.0, 1 / 11), (0.5, 1 / (1 + 10**0.5)), (1.0, 1 / 2)):
        weights = word_weights(np.concatenate([ids.ravel(), others]), speller, power)
        drawn = [hide(ids, 0.01, weights, speller, True, rng, CPU).targets.numpy() for _ in range(30)]
        found = np.concatenate(drawn)
        assert (found[found != IGNORED] == 21).mean() == pytest.approx(share, abs=0.03)
