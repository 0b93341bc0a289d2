"""Which tokens are hidden: how many, and which."""

import numpy as np
import pytest
import torch
from support.tiny import TOKENIZERS

from pet.modeling.token_losses import IGNORED
from pet.modeling.tokenization import PromptTokenizer
from pet.training.mlm_masking import hide

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def prompt_tokenizer():
    return PromptTokenizer(TOKENIZERS["wordpiece"](), "bert")


def test_targets_are_words_in_the_number_asked_for_and_eight_of_ten_are_masked(prompt_tokenizer):
    rng = np.random.default_rng(0)
    ids = rng.integers(0, len(prompt_tokenizer.tokenizer), size=(400, 64))
    ids[:, 0], ids[:, -1] = 2, 3
    found = hide(ids, 0.15, prompt_tokenizer, True, rng, CPU)
    places, targets = found.places.numpy(), found.targets.numpy()
    assert len(places) == len(set(places)) == round(0.15 * ids.size)
    assert (ids.ravel()[places] == targets).all()
    assert not set(targets) & set(prompt_tokenizer.tokenizer.all_special_ids)
    shown = found.batch.input_ids.numpy()
    others = np.setdiff1d(np.arange(ids.size), places)
    assert (shown[others] == ids.ravel()[others]).all()
    masked = shown[places] == prompt_tokenizer.mask_id
    kept = shown[places] == targets
    assert abs(masked.mean() - 0.8) < 0.04
    assert abs(kept.mean() - 0.1) < 0.03


def test_where_too_few_words_are_there_the_rest_asks_for_nothing(prompt_tokenizer):
    ids = np.full((2, 8), prompt_tokenizer.tokenizer.sep_token_id)
    ids[0, 2] = 20
    found = hide(ids, 0.5, prompt_tokenizer, True, np.random.default_rng(0), CPU)
    assert found.targets.tolist() == [20] + [IGNORED] * 15
    assert found.places[0] == 2
    assert sorted(found.places.tolist()) == [*range(16)]


def test_the_places_of_a_batch_are_a_round_number(prompt_tokenizer):
    ids = np.random.default_rng(0).integers(5, len(prompt_tokenizer.tokenizer), size=(20, 50))
    found = hide(ids, 0.15, prompt_tokenizer, True, np.random.default_rng(1), CPU)
    asked = found.targets != IGNORED
    assert int(asked.sum()) == 150
    assert len(found.places) == len(found.targets) == 192 == len(set(found.places.tolist()))
    changed = np.flatnonzero(found.batch.input_ids.numpy() != ids.ravel())
    assert set(changed) <= set(found.places[asked].tolist())
    assert np.abs(found.places[asked].numpy().mean() - 500) < 100  # from everywhere


def test_every_word_is_hidden_as_readily_as_any_other(prompt_tokenizer):
    """Two words, one ten times as frequent."""
    rng = np.random.default_rng(0)
    ids = rng.choice([20, 21], p=[10 / 11, 1 / 11], size=(200, 100))
    found = np.concatenate([hide(ids, 0.3, prompt_tokenizer, True, rng, CPU).targets.numpy() for _ in range(10)])
    assert (found[found != IGNORED] == 21).mean() == pytest.approx((ids == 21).mean(), abs=0.005)
