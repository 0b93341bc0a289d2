"""A head taken apart gives the scores, logits and gradients of the whole masked LM, for every family."""

from typing import Any

import numpy as np
import pytest
import torch
from tiny import FAMILIES, KIND_OF, TOKENIZERS, WORDS, tiny_model

from pet.cloze import HEADS, ClozeModel
from pet.encoding import Batch, Encoder, Speller, TokenizedTexts, VerbalizerIds, encode_verbalizers, pad_rows
from pet.examples import Texts
from pet.patterns import PVP, parse_pattern

OTHERS = {"electra": "wordpiece", "camembert": "byte-bpe"}
"""Families whose head nobody took apart, with a tokenizer."""
CASES = [(family, {}) for family in (*FAMILIES, *OTHERS)] + [("deberta-v2", {"legacy": False})]
WORD_GROUPS = {"up": ("good", "great"), "middle": ("okay",), "down": ("bad", "slow", "cold")}


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join([case[0], *case[1]]))
def cloze(request: pytest.FixtureRequest) -> ClozeModel:
    family, more = request.param
    return ClozeModel(tiny_model(family, TOKENIZERS[kind(family)](), **more))


def kind(family: str) -> str:
    return KIND_OF.get(family) or OTHERS[family]


def question(family: str) -> tuple[Batch, VerbalizerIds]:
    """Five rows of different lengths, padded together, and label words that average to three labels."""
    speller = Speller(TOKENIZERS[kind(family)](), family)
    columns = [" ".join(WORDS[start : start + size]) for start, size in ((0, 1), (9, 30), (20, 12), (3, 22), (40, 5))]
    texts = Texts([str(number) for number in range(5)], {"a": columns}, [None] * 5)
    pattern = parse_pattern("{a} ? || It was {mask} .", ["a"])
    rows = Encoder(speller, pattern, 64).encode(TokenizedTexts(speller, texts))
    (verbalizers,) = encode_verbalizers(speller, [PVP(0, pattern, WORD_GROUPS)], "mood")
    return pad_rows(rows, np.arange(5), speller), verbalizers


def whole_logits(lm: Any, batch: Batch) -> torch.Tensor:
    """[B, V] at the mask, a row at a time and without padding: what a user of transformers would write."""
    found = []
    for row, size in enumerate(batch.attention_mask.sum(dim=1)):
        inputs = {name: tensor[row : row + 1, :size] for name, tensor in batch.inputs.items()}
        found.append(lm(**inputs).logits[0, batch.mask_positions[row]])
    return torch.stack(found)


def reference_scores(logits: torch.Tensor, verbalizers: VerbalizerIds) -> torch.Tensor:
    """[B, L]: fact sheet 3.3, label by label."""
    ids = iter(verbalizers.words.tolist())
    means = []
    for words in WORD_GROUPS.values():
        means.append(sum(logits[:, next(ids)] for _ in words) / len(words))
    return torch.stack(means, dim=1)


def gradients(lm: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    lm.zero_grad()
    loss.backward()
    return {name: one.grad.clone() for name, one in lm.named_parameters() if one.grad is not None and one.grad.any()}


def test_the_families_with_a_shortcut_are_the_ones_tested_here():
    assert set(HEADS) == set(FAMILIES)
    assert not set(HEADS) & set(OTHERS)


def test_only_known_families_take_the_shortcut(cloze):
    assert cloze.shortcut == (cloze.family in FAMILIES)
    batch, _ = question(cloze.family)
    with torch.no_grad():
        width = cloze.states(batch).shape[-1]
    assert width == (cloze.lm.config.hidden_size if cloze.shortcut else cloze.lm.config.vocab_size)


def test_label_scores_are_the_mean_logits_of_the_label_words_at_the_mask(cloze):
    batch, verbalizers = question(cloze.family)
    with torch.no_grad():
        scores = cloze.label_scores(cloze.states(batch), batch.mask_positions, verbalizers)
        expected = reference_scores(whole_logits(cloze.lm, batch), verbalizers)
    assert scores.shape == (5, 3)
    assert expected.std() > 0.01, "not all the same"
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)


def test_vocabulary_logits_of_chosen_states_are_those_of_the_whole_model(cloze):
    batch, _ = question(cloze.family)
    chosen = batch.attention_mask.bool() & (torch.arange(batch.input_ids.shape[1]) % 3 == 1)
    with torch.no_grad():
        logits = cloze.vocabulary_logits(cloze.states(batch)[chosen])
        expected = cloze.lm(**batch.inputs).logits[chosen]
    assert logits.shape == (int(chosen.sum()), len(TOKENIZERS[kind(cloze.family)]()))
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


def test_every_parameter_gets_the_gradient_of_the_whole_model(cloze):
    batch, verbalizers = question(cloze.family)
    labels, tokens = torch.tensor([0, 1, 2, 0, 1]), torch.tensor([7, 8, 9, 10, 11])

    def loss(scores: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(scores, labels) + torch.nn.functional.cross_entropy(logits, tokens)

    states = cloze.states(batch)
    mine = gradients(
        cloze.lm,
        loss(
            cloze.label_scores(states, batch.mask_positions, verbalizers),
            cloze.vocabulary_logits(states[torch.arange(5), batch.mask_positions]),
        ),
    )
    logits = cloze.lm(**batch.inputs).logits[torch.arange(5), batch.mask_positions]
    whole = gradients(cloze.lm, loss(reference_scores(logits, verbalizers), logits))
    assert set(mine) == set(whole)
    for name, gradient in whole.items():
        torch.testing.assert_close(mine[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_training_one_step_changes_the_scores():
    batch, verbalizers = question("bert")
    cloze = ClozeModel(tiny_model("bert", TOKENIZERS["wordpiece"](), seed=3))
    optimizer = torch.optim.SGD(cloze.parameters(), lr=0.05)

    def loss() -> torch.Tensor:
        scores = cloze.label_scores(cloze.states(batch), batch.mask_positions, verbalizers)
        return torch.nn.functional.cross_entropy(scores, torch.tensor([0, 1, 2, 0, 1]))

    before = loss()
    before.backward()
    optimizer.step()
    assert loss() < before


def test_scores_are_full_precision_under_autocast():
    batch, verbalizers = question("bert")
    cloze = ClozeModel(tiny_model("bert", TOKENIZERS["wordpiece"]()))
    with torch.no_grad():
        exact = cloze.label_scores(cloze.states(batch), batch.mask_positions, verbalizers)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = cloze.label_scores(cloze.states(batch), batch.mask_positions, verbalizers)
    torch.testing.assert_close(rough.float(), exact, atol=0.1, rtol=0)
