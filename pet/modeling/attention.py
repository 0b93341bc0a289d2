"""Attention of rows that lie end to end, as transformers calls it: each row attends to itself.

On a GPU in bf16 by torch's own kernels for rows of any length; elsewhere rows are padded for the attention alone. Which
models use it is the business of `packing`. The kernels are private to torch, as public ones cost more: `has_kernels`
checks that they are what they were, and without them rows are padded on a GPU, too.

Shapes: B rows, N tokens of all rows together, Q of them asked about, T places (padded), h heads, d size of one.
"""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "pet_packed"
"""Its name with transformers."""

KERNELS = {
    "_flash_attention_forward": "Tensor query, Tensor key, Tensor value, Tensor cum_seq_q, Tensor cum_seq_k, "
    "int max_q, int max_k, float dropout_p, bool is_causal, bool return_debug_mask",
    "_efficient_attention_forward": "Tensor query, Tensor key, Tensor value, Tensor bias, Tensor cu_seqlens_q, "
    "Tensor cu_seqlens_k, int max_seqlen_q, int max_seqlen_k, float dropout_p, int custom_mask_type, "
    "bool compute_log_sumexp",
    "_efficient_attention_backward": "Tensor grad_out_, Tensor query, Tensor key, Tensor value, Tensor bias, "
    "Tensor out, Tensor cu_seqlens_q, Tensor cu_seqlens_k, int max_seqlen_q, int max_seqlen_k, Tensor logsumexp, "
    "float dropout_p, Tensor philox_seed, Tensor philox_offset, int custom_mask_type, bool bias_requires_grad",
}
"""torch's private operators, and the arguments that they get here by position; `scale` is given by name."""


def has_kernels(operators: Any) -> bool:
    """Whether all of KERNELS exist and take these arguments. If not, a line in the log says so.

    Args:
        operators: a namespace of operators, such as `torch.ops.aten`.
    """
    for name, given in KERNELS.items():
        packet, wanted = getattr(operators, name, None), given.split(", ")
        arguments = packet.default._schema.arguments if packet else []
        types = [str(one.type).removeprefix("Optional[").removesuffix("]") for one in arguments]
        found = [f"{kind} {one.name}" for kind, one in zip(types, arguments, strict=True)]
        others_are_optional = all(one.has_default_value() for one in arguments[len(wanted) :])
        if found[: len(wanted)] != wanted or "float scale" not in found or not others_are_optional:
            logging.getLogger(__name__).warning(
                "torch %s lacks the operator %s as pet calls it: on a GPU, rows are padded for attention, which is "
                "slower",
                torch.__version__,
                name,
            )
            return False
    return True


HAS_KERNELS = has_kernels(torch.ops.aten)


def takes_kernels(query: torch.Tensor) -> bool:
    """Whether there are kernels for rows of any length for this query."""
    return HAS_KERNELS and query.is_cuda and query.dtype in (torch.bfloat16, torch.float16)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    starts: torch.Tensor | None = None,
    rows: torch.Tensor | None = None,
    places: torch.Tensor | None = None,
    width: int = 0,
    full: bool = False,
    **rest: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of each row to itself; query, key and value [1, h, N, d] -> [1, N, h, d].

    `full`: all rows are of this width, so it is attention as anyone knows it, in torch's fastest form. As transformers
    calls it; without `starts`, on rows that are not packed, its own `sdpa`.
    """
    if starts is None or rows is None or places is None:
        found, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **rest
        )
        return found, None
    num_rows = starts.shape[0] - 1
    if takes_kernels(query) and not full:
        q, k, v = (one[0].transpose(0, 1) for one in (query, key, value))  # [N, h, d]
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        width = min(width, q.shape[0])  # the kernel wants no more
        if dropout == 0:
            return short_row_attention(q, k, v, starts, width, scale)[0][None], None
        return flash_attention(q, k, v, starts, starts, width, width, dropout, scale), None
    q, k, v = (unpack(one[0].transpose(0, 1), rows, places, num_rows, width) for one in (query, key, value))
    seen = None if full else visible(starts, width)
    found = functional.scaled_dot_product_attention(q, k, v, seen, dropout, scale=scaling).transpose(1, 2)
    return (found.flatten(0, 1) if full else found[rows, places])[None], None


@dataclass(frozen=True)
class Reads:
    """Q tokens of a batch in their order, the only ones that are asked about. `tokens`: which of N; `rows`, `places`:
    which row each is of, and its number among those of that row [Q]; `starts`: how many come before each row, and Q
    [B + 1]; `most`: no row has more."""

    tokens: torch.Tensor
    rows: torch.Tensor
    places: torch.Tensor
    starts: torch.Tensor
    most: int


def read_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    dropout: float,
    reads: Reads,
    starts: torch.Tensor,
    rows: torch.Tensor,
    places: torch.Tensor,
    width: int,
) -> torch.Tensor:
    """Attention of some tokens to their rows; query [1, h, Q, d], key and value [1, h, N, d] -> [1, Q, h, d]."""
    q, k, v = (one[0].transpose(0, 1) for one in (query, key, value))  # [N, h, d]
    if takes_kernels(query):
        return flash_attention(q, k, v, reads.starts, starts, reads.most, width, dropout, scaling)
    num_rows = starts.shape[0] - 1
    q = unpack(q, reads.rows, reads.places, num_rows, reads.most)
    k, v = (unpack(one, rows, places, num_rows, width) for one in (k, v))
    found = functional.scaled_dot_product_attention(q, k, v, visible(starts, width), dropout, scale=scaling)
    return found.transpose(1, 2)[reads.rows, reads.places][None]


def visible(starts: torch.Tensor, width: int) -> torch.Tensor:
    """Which places of each padded row are tokens [B, 1, 1, T]; of a row of nothing its first."""
    sizes = (starts[1:] - starts[:-1]).clamp(min=1)
    return (torch.arange(width, device=starts.device) < sizes[:, None])[:, None, None]


def unpack(flat: torch.Tensor, rows: torch.Tensor, places: torch.Tensor, num_rows: int, width: int) -> torch.Tensor:
    """[N, h, d] -> [B, h, T, d], zeros in the gaps."""
    if len(flat) == num_rows * width:  # no gaps, as where all texts are cut at the same length
        return flat.view(num_rows, width, *flat.shape[1:]).transpose(1, 2)
    padded = flat.new_zeros(num_rows, width, *flat.shape[1:])
    return padded.index_put((rows, places), flat).transpose(1, 2)


def flash_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_starts: torch.Tensor,
    starts: torch.Tensor,
    most: int,
    width: int,
    dropout: float,
    scale: float | None,
) -> torch.Tensor:
    """torch's flash attention on rows end to end, query [Q, h, d], key and value [N, h, d] -> [1, Q, h, d]; `most`,
    `width`: no row has more queries, or is longer."""
    found: torch.Tensor = torch.ops.aten._flash_attention_forward(
        query, key, value, query_starts, starts, most, width, dropout, False, False, scale=scale
    )[0]
    return found[None]


@torch.library.custom_op("pet::short_row_attention", mutates_args=())
def short_row_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, starts: torch.Tensor, width: int, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """torch's memory-efficient attention on rows end to end [N, h, d], without dropout; also what backward needs.

    Its tiles of 64 suit short rows better than flash attention's of 128: 0.38 to 0.48 ms for 1,170 rows of AG News,
    with backward 0.52 to 0.65 ms for 288 (H100, bench/RESULTS.md). Wrapped, because torch 2.11 cannot compile its
    backward.
    """
    output, statistics, *_ = torch.ops.aten._efficient_attention_forward(
        query[None], key[None], value[None], None, starts, starts, width, width, 0.0, 0, True, scale=scale
    )
    return output[0], statistics


@short_row_attention.register_fake
def _(query: torch.Tensor, key: Any, value: Any, starts: torch.Tensor, width: int, scale: Any) -> Any:
    aligned = -(-width // 32) * 32  # the kernel keeps its statistics in blocks of 32
    return query.new_empty(query.shape), query.new_empty(
        starts.shape[0] - 1, query.shape[1], aligned, dtype=torch.float32
    )


@torch.library.custom_op("pet::short_row_attention_backward", mutates_args=())
def short_row_attention_backward(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    statistics: torch.Tensor,
    starts: torch.Tensor,
    width: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients [N, h, d] of query, key and value."""
    nothing = torch.zeros((), dtype=torch.long, device=query.device)  # dropout's random state: there is none
    found = torch.ops.aten._efficient_attention_backward(
        gradient[None],
        query[None],
        key[None],
        value[None],
        None,
        output[None],
        starts,
        starts,
        width,
        width,
        statistics,
        0.0,
        nothing,
        nothing,
        0,
        False,
        scale=scale,
    )
    return found[0][0], found[1][0], found[2][0]


@short_row_attention_backward.register_fake
def _(gradient: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any) -> Any:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    query, key, value, starts, ctx.width, ctx.scale = inputs
    ctx.save_for_backward(query, key, value, *output, starts)


def _backward(ctx: Any, gradient: torch.Tensor, _: torch.Tensor) -> tuple[Any, ...]:
    query, key, value, output, statistics, starts = ctx.saved_tensors
    found = short_row_attention_backward(
        gradient.contiguous(), query, key, value, output, statistics, starts, ctx.width, ctx.scale
    )
    return (*found, None, None, None)


short_row_attention.register_autograd(_backward, setup_context=_keep)

AttentionInterface.register(ATTENTION, packed_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
