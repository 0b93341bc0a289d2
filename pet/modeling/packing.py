"""How a transformers encoder reads a `Batch`: rows end to end and no padding where its family allows it.

All that an encoder does apart from attention, it does token by token. So the rows of a batch can lie end to end, as
one row, if attention is told where each begins: no token of padding is computed. `families` says for which families
this is tested; the others are given padded rows (`scoring_layout`, `training_layout`). Nothing here knows of heads.

Shapes: B rows, N tokens, Q of them asked about, T places (padded), H hidden size.
"""

import functools
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from pet.modeling.attention import ATTENTION, Reads
from pet.modeling.batch import Batch, Layout
from pet.modeling.families import family_of
from pet.modeling.loading import layer_stack

WIDTH_MULTIPLE = 8
TRAINING_WIDTHS = {True: 32, False: 256}
TOKEN_MULTIPLE = 64
"""What batches are rounded up to. On a GPU each shape of a training step is captured, so there must be few: padded rows
go to a multiple of 32; packed ones are brought to a multiple of 64 tokens in all, and their width, which only bounds
the attention, to one of 256."""


def install(model: Any) -> bool:
    """Let a transformers model read packed batches, if its family can; says whether."""
    family = family_of(model)
    if family.packs:
        model.set_attn_implementation(ATTENTION)
    if family.read_layer is not None:
        stack = layer_stack(model)
        stack[-1] = reading_layer(stack[-1], family.read_layer)
    return family.packs


def reading_layer(layer: nn.Module, over: type) -> nn.Module:
    """A layer to take this one's place, of its class with `over` (`Family.read_layer`) laid over it. It has the same
    parts and weights under the same names. A layer that has `over` already is returned as it is."""
    if isinstance(layer, over):
        return layer
    kind: type[nn.Module] = reading_class(type(layer), over)  # type: ignore[arg-type]
    made = kind.__new__(kind)  # no `__init__`: it would draw weights
    made.__setstate__(layer.__getstate__())  # type: ignore[no-untyped-call]
    return made


@functools.cache
def reading_class(kind: type, over: type) -> type:
    """A layer's class with another laid over it; one for all models: torch.compile starts anew for each class."""
    return type(f"Read{kind.__name__}", (over, kind), {})


def scoring_layout(model: Any) -> Layout:
    """How rows are laid out for scoring."""
    return Layout(padded=not is_packed(model), width_multiple=WIDTH_MULTIPLE)


def steady_layout(model: Any) -> Layout:
    """How rows are laid out where scoring goes on and on: batches come in few sizes. On a CPU, bf16 products of ever
    new sizes took 0.7 KB a text that was never given back (measured: 65 MB after 100,000 short texts)."""
    return replace(scoring_layout(model), token_multiple=TOKEN_MULTIPLE)


def training_layout(model: Any, captures: bool, padded_to: int | None = None) -> Layout:
    """How rows are laid out for training. `captures`: steps are captured as CUDA graphs, so batches should come in few
    shapes. `padded_to`: pad every row to this width, whatever the model."""
    padded = padded_to is not None or not is_packed(model)
    if not captures:
        return Layout(padded, padded_to, WIDTH_MULTIPLE)
    return Layout(padded, padded_to, TRAINING_WIDTHS[padded], TOKEN_MULTIPLE)


def is_packed(model: Any) -> bool:
    """Whether `install` was of use."""
    return bool(model.config._attn_implementation == ATTENTION)


def inputs_of(model: Any, batch: Batch) -> dict[str, Any]:
    """Keyword arguments of a transformers model or its body for this batch: one row [1, N], or B padded ones [B, T]."""
    if batch.attention_mask is not None:
        shape = (len(batch), batch.width)
        padded = {"input_ids": batch.input_ids.view(shape), "attention_mask": batch.attention_mask.view(shape)}
        if batch.token_type_ids is not None:
            padded["token_type_ids"] = batch.token_type_ids.view(shape)
        return padded
    family = family_of(model)
    assert family.packs, f"rows of a {family.model_type} model are padded"
    inputs: dict[str, Any] = {
        "input_ids": batch.input_ids[None],
        "position_ids": batch.places[None] + family.first_position(model.config),
        "starts": batch.starts,
        "rows": batch.rows,
        "places": batch.places,
        "width": batch.width,
        "full": batch.full,
    }
    if batch.token_type_ids is not None:
        inputs["token_type_ids"] = batch.token_type_ids[None]
    return inputs


def states_at(model: Any, batch: Batch, tokens: torch.Tensor, most: int | None = None) -> torch.Tensor:
    """Last hidden states [Q, H] of some tokens of a transformers model's body. `tokens`: which of N [Q]; `most`: no row
    has more of them, if that is known."""
    saves = len(tokens) < len(batch.input_ids)
    if batch.attention_mask is not None or family_of(model).read_layer is None or not saves:
        return hidden_states(model, batch)[tokens]
    order = tokens.argsort()
    found = hidden_states(model, batch, find_reads(batch, tokens[order], most))
    return torch.empty_like(found).index_copy(0, order, found)


def find_reads(batch: Batch, tokens: torch.Tensor, most: int | None) -> Reads:
    """Where these tokens, in their order, lie in the batch."""
    rows = batch.rows[tokens]
    starts = torch.searchsorted(rows, torch.arange(len(batch.starts), device=rows.device))
    places = torch.arange(len(tokens), device=rows.device) - starts[rows]
    if most is None:  # on a GPU the host would have to wait for the answer
        most = len(tokens) if tokens.is_cuda or not len(tokens) else int(places.max()) + 1
    return Reads(tokens, rows, places, starts.int(), most)


def hidden_states(model: Any, batch: Batch, reads: Reads | None = None) -> torch.Tensor:
    """Last hidden states of a transformers model's body, of all tokens [N, H] or of some [Q, H]."""
    asked = {} if reads is None else {"reads": reads}
    return torch.as_tensor(model.base_model(**inputs_of(model, batch), **asked).last_hidden_state).flatten(0, 1)


def full_logits(model: Any, batch: Batch) -> torch.Tensor:
    """Logits [N, V] of a transformers masked LM."""
    return torch.as_tensor(model(**inputs_of(model, batch)).logits).flatten(0, 1)
