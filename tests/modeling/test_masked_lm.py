"""A head taken apart gives the scores, logits and gradients of the whole masked LM, for every family."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from support.plain import (
    FILLED,
    LIVELY,
    OTHERS,
    PACKED,
    alone,
    assert_near,
    assert_same_gradients,
    gradients,
    kind,
    some_rows,
    tokens_of,
    vocabulary_logits,
)
from support.tiny import FAMILIES, TOKENIZERS, tiny_model

from pet.modeling.backbones import MaskedLM
from pet.modeling.batch import Batch, Layout
from pet.modeling.families import FAMILIES as KNOWN
from pet.modeling.verbalizers import Verbalizer, encode_verbalizers
from pet.tasks.patterns import PVP

MODELS = [(family, {}) for family in (*FAMILIES, *OTHERS)] + [("deberta-v2", {"legacy": False})]
CASES = [(*model, Layout(True, width_multiple=8)) for model in MODELS]
CASES += [(family, {}, layout) for family in PACKED for layout in (Layout(False), FILLED)]
WORD_GROUPS = {"up": ("good", "great"), "middle": ("okay",), "down": ("bad", "slow", "cold")}


@dataclasses.dataclass
class Asked:
    """A model on our way, the same one untouched, and a question to both."""

    cloze: MaskedLM
    untouched: Any
    batch: Batch
    verbalizers: Verbalizer


def name_of(case: tuple[str, dict[str, object], Layout]) -> str:
    family, more, layout = case
    return "-".join([family, *more, "padded" if layout.padded else f"end to end by {layout.token_multiple}"])


@pytest.fixture(scope="module", params=CASES, ids=name_of)
def asked(request: pytest.FixtureRequest) -> Asked:
    family, more, layout = request.param
    mine, untouched = (tiny_model(family, TOKENIZERS[kind(family)](), **LIVELY, **more) for _ in range(2))
    return Asked(MaskedLM(mine), untouched, *question(family, layout))


def question(family: str, layout: Layout) -> tuple[Batch, Verbalizer]:
    """Five rows of different lengths, one of them twice, and label words that average to three labels."""
    rows = some_rows(family)
    (verbalizers,) = encode_verbalizers(
        rows.encoder.prompt_tokenizer, [PVP(0, rows.encoder.pattern, WORD_GROUPS)], "mood"
    )
    return rows.batch(np.array([0, 6, 2, 2, 5]), layout), verbalizers


def whole_logits(lm: Any, batch: Batch) -> torch.Tensor:
    """[tokens of the rows, V], a row at a time and without padding: what a user of transformers would write."""
    return torch.cat([lm(**inputs).logits[0] for inputs, _ in alone(batch)])


def logits_at_masks(lm: Any, batch: Batch) -> torch.Tensor:
    """[B, V]: where each row has its mask token."""
    return whole_logits(lm, batch)[batch.input_ids[tokens_of(batch)] == mask_of(batch)]


def mask_of(batch: Batch) -> int:
    (one,) = set(batch.input_ids[batch.mask_positions].tolist())
    return one


def reference_scores(logits: torch.Tensor, verbalizers: Verbalizer) -> torch.Tensor:
    """[B, L]: fact sheet 3.3, label by label."""
    ids = iter(verbalizers.words.tolist())
    means = []
    for words in WORD_GROUPS.values():
        means.append(sum(logits[:, next(ids)] for _ in words) / len(words))
    return torch.stack(means, dim=1)


def test_the_families_with_a_shortcut_are_the_ones_tested_here():
    heads = {name for name, one in KNOWN.items() if one.lm_head is not None}
    assert heads == set(FAMILIES)
    assert not heads & set(OTHERS)
    assert set(PACKED) <= heads


def test_only_known_families_take_the_shortcut(asked):
    cloze = asked.cloze
    assert cloze.shortcut == (cloze.lm.config.model_type in FAMILIES)
    with torch.no_grad():
        states = cloze.states(asked.batch)
    width = cloze.lm.config.hidden_size if cloze.shortcut else cloze.lm.config.vocab_size
    assert states.shape == (len(asked.batch.input_ids), width)


def test_label_scores_are_the_mean_logits_of_the_label_words_at_the_mask(asked):
    cloze, batch = asked.cloze, asked.batch
    with torch.no_grad():
        scores = cloze.label_scores(batch, asked.verbalizers)
        expected = reference_scores(logits_at_masks(asked.untouched, batch), asked.verbalizers)
    assert scores.shape == (5, 3)
    assert expected[[0, 1, 2, 4]].std(0).min() > 0.1, "rows differ"
    assert_near(scores, expected)
    torch.testing.assert_close(scores[2], scores[3], rtol=0, atol=1e-5)


def test_word_logits_are_those_of_the_words_at_the_places_that_are_asked(asked):
    cloze, batch = asked.cloze, asked.batch
    words, own = torch.tensor([30, 7, 7, 41]), tokens_of(batch)
    places = torch.tensor([3, 0, len(own) - 1])
    with torch.no_grad():
        found = cloze.word_logits(cloze.states(batch)[own[places]], words)
        expected = whole_logits(asked.untouched, batch)[places][:, words]
    assert found.dtype == torch.float32
    assert_near(found, expected)


def test_vocabulary_logits_of_chosen_states_are_those_of_the_whole_model(asked):
    cloze, batch = asked.cloze, asked.batch
    own = tokens_of(batch)
    chosen = torch.arange(len(own)) % 3 == 1
    with torch.no_grad():
        logits = vocabulary_logits(cloze, cloze.states(batch)[own[chosen]])  # [V, K]
        expected = whole_logits(asked.untouched, batch)[chosen]
    assert logits.shape == (len(TOKENIZERS[kind(cloze.lm.config.model_type)]()), int(chosen.sum()))
    assert_near(logits.T, expected)


def test_log_probabilities_of_words_at_the_mask_are_among_the_whole_vocabulary(asked):
    cloze, batch = asked.cloze, asked.batch
    own, words = tokens_of(batch), torch.tensor([9, 7, 12])
    at_mask = [own.tolist().index(place) for place in batch.mask_positions.tolist()]
    with torch.no_grad():
        expected = whole_logits(asked.untouched, batch)[at_mask].log_softmax(-1)[:, words]
        assert_near(cloze.word_log_probabilities(batch, words), expected)


def test_every_parameter_gets_the_gradient_of_the_whole_model(asked):
    cloze, batch, verbalizers = asked.cloze, asked.batch, asked.verbalizers
    labels, tokens = torch.tensor([0, 1, 2, 0, 1]), torch.tensor([7, 8, 9, 10, 11])

    def loss(scores: torch.Tensor, token_losses: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(scores, labels) + token_losses.mean()

    states = cloze.states(batch)
    scores = cloze.label_scores(batch, verbalizers)
    found = gradients(cloze.lm, loss(scores, cloze.target_losses(states[batch.mask_positions], tokens)))
    logits = logits_at_masks(asked.untouched, batch)
    expected = loss(
        reference_scores(logits, verbalizers), torch.nn.functional.cross_entropy(logits, tokens, reduction="none")
    )
    assert_same_gradients(found, gradients(asked.untouched, expected))


@pytest.mark.parametrize("layout", [Layout(False), FILLED, Layout(True)], ids=["end to end", "filled up", "padded"])
def test_training_one_step_changes_the_scores(layout):
    batch, verbalizers = question("bert", layout)
    cloze = MaskedLM(tiny_model("bert", TOKENIZERS["wordpiece"](), seed=3))
    optimizer = torch.optim.SGD(cloze.parameters(), lr=0.05)

    def loss() -> torch.Tensor:
        scores = cloze.label_scores(batch, verbalizers)
        return torch.nn.functional.cross_entropy(scores, torch.tensor([0, 1, 2, 2, 1]))

    before = loss()
    before.backward()
    optimizer.step()
    assert loss() < before


def test_word_logits_are_in_full_precision_though_the_body_is_in_a_lower_one():
    """As the copy that computes has it on a GPU."""
    batch, verbalizers = question("bert", Layout(False))
    cloze = MaskedLM(tiny_model("bert", TOKENIZERS["wordpiece"](), **LIVELY))

    def logits() -> torch.Tensor:
        return cloze.word_logits(cloze.states(batch)[batch.mask_positions], verbalizers.words)

    with torch.no_grad():
        exact = logits()
        cloze.lm.base_model.to(torch.bfloat16)
        found = logits()
        scores = cloze.label_scores(batch, verbalizers)
    assert_near(scores, exact @ verbalizers.averaging, 0.05)
    assert found.dtype == scores.dtype == torch.float32
    assert_near(found, exact, 0.05)
    assert not torch.equal(found, exact)
    assert not torch.equal(found, found.bfloat16().float()), "not rounded to three digits"


@pytest.mark.parametrize("family", [*FAMILIES, "electra"])
def test_a_body_in_lower_precision_may_have_a_head_in_full(family):
    """As the frozen model of LoRA members has it on a GPU."""
    batch, _ = question(family, Layout(family not in PACKED))
    cloze = MaskedLM(tiny_model(family, TOKENIZERS[kind(family)](), **LIVELY))
    with torch.no_grad():
        exact = vocabulary_logits(cloze, cloze.states(batch)[batch.mask_positions])
        (cloze.lm.base_model if cloze.shortcut else cloze.lm).to(torch.bfloat16)
        assert_near(vocabulary_logits(cloze, cloze.states(batch)[batch.mask_positions]).float(), exact, 0.05)
