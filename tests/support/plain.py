"""A batch as a user of transformers would ask it: one row at a time, without padding. What references are made of."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from pet.modeling.backbones import MaskedLM
from pet.modeling.batch import Batch, Layout
from pet.modeling.families import FAMILIES
from pet.modeling.prompts import EncodedTexts, Encoder
from pet.modeling.tokenization import PromptTokenizer, TokenizedTexts
from pet.tasks.patterns import parse_pattern
from pet.tasks.texts import Texts
from support.tiny import KIND_OF, TOKENIZERS, WORDS

OTHERS = {"electra": "wordpiece", "camembert": "byte-bpe"}
"""Families whose head nobody took apart, with a tokenizer."""

PACKED = tuple(name for name, one in FAMILIES.items() if one.packs)
"""Families whose rows lie end to end."""

FILLED = Layout(False, None, 128, 64)
"""Rows end to end as on a GPU: a multiple of 64 tokens."""

LIVELY = {"initializer_range": 0.3}
"""Of tiny models whose answers differ from row to row; the usual small random weights hide mistakes."""

SIZES = (1, 30, 12, 0, 22, 5, 47)
"""Words of the rows of `some_rows`. All together have more tokens than a tiny model has positions."""


def vocabulary_logits(cloze: MaskedLM, states: torch.Tensor) -> torch.Tensor:
    """Logits [V, K] of selected states [K, H]."""
    products, bias = cloze.products(states)
    return products if bias is None else products + bias[:, None]


def kind(family: str) -> str:
    """The tokenizer of a family."""
    return KIND_OF.get(family) or OTHERS[family]


def some_rows(family: str, source: str = "{a} ? || It was {mask} . {a}", max_length: int = 60) -> EncodedTexts:
    """Rows of very different lengths, in two segments; the last one is cut."""
    prompt_tokenizer = PromptTokenizer(TOKENIZERS[kind(family)](), family)
    columns = [" ".join(WORDS[start : start + size]) for start, size in zip(range(0, 70, 5), SIZES, strict=False)]
    texts = Texts([str(number) for number in range(len(SIZES))], {"a": columns}, [None] * len(SIZES))
    return Encoder(prompt_tokenizer, parse_pattern(source, ["a"]), max_length).encode(
        TokenizedTexts(prompt_tokenizer, texts)
    )


def some_batch(family: str, layout: Layout) -> Batch:
    """All of them, not in the order of their lengths."""
    return some_rows(family).batch(np.arange(len(SIZES)), layout)


def alone(batch: Batch) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
    """Per row the keyword arguments of a transformers model [1, T], and which of the batch's N tokens they are [T]."""
    for start, stop in zip(batch.starts[: len(batch)].tolist(), batch.starts[1:].tolist(), strict=False):
        tokens = torch.arange(start, stop)
        if batch.attention_mask is not None:
            tokens = tokens[batch.attention_mask[tokens] == 1]
        inputs = {"input_ids": batch.input_ids[tokens][None]}
        if batch.token_type_ids is not None:
            inputs["token_type_ids"] = batch.token_type_ids[tokens][None]
        yield inputs, tokens


def tokens_of(batch: Batch) -> torch.Tensor:
    """The batch's tokens that are of a row: neither padding nor what fills it up."""
    return torch.cat([tokens for _, tokens in alone(batch)])


def assert_near(found: Any, expected: torch.Tensor, share: float = 1e-5) -> None:
    """Nowhere farther off than this share of the largest value."""
    torch.testing.assert_close(found, expected, rtol=0, atol=share * float(expected.abs().max()))


def gradients(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of every parameter that gets one that is not zero (or that is not a number)."""
    model.zero_grad()
    loss.backward()
    return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None and one.grad.any()}


def assert_same_gradients(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """The same parameters get the same gradients, measured by the largest of all."""
    assert set(found) == set(expected)
    scale = max(float(one.abs().max()) for one in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(
            found[name], gradient, rtol=1e-5, atol=1e-5 * scale, msg=lambda text, n=name: n + text
        )
