"""Batches: rows of tokens end to end or padded, joined, cut, filled up and moved to a device."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

Ids = NDArray[np.int32]

FILLER = 64
"""Tokens of a row of nothing, at most: no wider than any batch on a GPU."""


# ---- batches -------------------------------------------------------------------------------------------------------


@dataclass
class Batch:
    """B rows end to end, N tokens in all.

    `input_ids`, `places` (from 0 in each row), `rows` (which row) [N]; `token_type_ids` [N] or `None`; `starts`: where
    each row begins, and N [B + 1]; `mask_positions`: index of each row's mask among the N tokens [B]; `width`: no row
    is longer. `attention_mask`: `None` where there is no padding; else [N], 0 for padding, and every row has exactly
    `width` tokens. After the B rows may come some of nothing, that bring N to a round number (`fill`). `full`: every
    row has `width` tokens of its own and nothing comes after them.
    """

    input_ids: torch.Tensor
    token_type_ids: torch.Tensor | None
    places: torch.Tensor
    rows: torch.Tensor
    starts: torch.Tensor
    mask_positions: torch.Tensor
    width: int
    attention_mask: torch.Tensor | None = None
    full: bool = False

    def __len__(self) -> int:
        return len(self.mask_positions)

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        return send(self, device)


@dataclass(frozen=True)
class Layout:
    """How rows become a batch. `padded`: every row is padded to the batch's width, for models that need it; otherwise
    they lie end to end. `width`: this one, for all batches; else the longest row's, rounded up to `width_multiple`.
    `token_multiple`: N is brought to a multiple of it (not where rows are padded), so that few shapes occur;
    `least_tokens`: and to no less than this, so that the ranks' parts of one batch are of one shape."""

    padded: bool
    width: int | None = None
    width_multiple: int = 1
    token_multiple: int = 1
    least_tokens: int = 0

    def width_of(self, lengths: NDArray[np.int64]) -> int:
        """Width of a batch of rows of these lengths."""
        return self.width or round_up(int(lengths.max()), self.width_multiple)


def round_up(length: int, multiple: int) -> int:
    """`length` rounded up to a multiple."""
    return -(-length // multiple) * multiple


def join_batches(parts: Sequence[Batch]) -> Batch:
    """Batches (not filled up; of one width, where rows are padded) one after another as one."""
    tokens = np.cumsum([0, *(len(one.input_ids) for one in parts)])
    rows = np.cumsum([0, *(len(one) for one in parts)])
    types = [one.token_type_ids for one in parts if one.token_type_ids is not None]
    attention = [one.attention_mask for one in parts if one.attention_mask is not None]
    starts = [one.starts[:-1] + int(before) for one, before in zip(parts, tokens, strict=False)]
    return Batch(
        torch.cat([one.input_ids for one in parts]),
        torch.cat(types) if types else None,
        torch.cat([one.places for one in parts]),
        torch.cat([one.rows + int(before) for one, before in zip(parts, rows, strict=False)]),
        torch.cat([*starts, torch.tensor([int(tokens[-1])], dtype=torch.int32)]),
        torch.cat(
            [
                torch.where(one.mask_positions < 0, -1, one.mask_positions + int(before))
                for one, before in zip(parts, tokens, strict=False)
            ]
        ),
        max(one.width for one in parts),
        torch.cat(attention) if attention else None,
    )


def take_rows(batch: Batch, chosen: NDArray[np.int64]) -> tuple[Batch, NDArray[np.int64]]:
    """Some rows of a batch (not filled up) as a batch of the same width, and which of the N tokens theirs are."""
    begin = batch.starts.numpy().astype(np.int64)
    sizes = np.diff(begin)[chosen]
    row_of, places = ragged(sizes)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    tokens = begin[chosen][row_of] + places
    masks = batch.mask_positions.numpy()[chosen]
    kept = torch.from_numpy(tokens)
    part = Batch(
        batch.input_ids[kept],
        None if batch.token_type_ids is None else batch.token_type_ids[kept],
        torch.from_numpy(places),
        torch.from_numpy(row_of),
        torch.from_numpy(starts.astype(np.int32)),
        torch.from_numpy(np.where(masks < 0, -1, masks - begin[chosen] + starts[:-1])),
        batch.width,
        None if batch.attention_mask is None else batch.attention_mask[kept],
    )
    return part, tokens


def pad_to_multiples(batch: Batch, layout: Layout) -> Batch:
    """The batch with more rows, of token 0 and at most FILLER of them, that bring N to a multiple of
    `layout.token_multiple`; where it is to have `least_tokens`, with two more of at most its width for each of its own,
    which is enough where another rank has at most twice as many. Their number does not vary; most are of length 0."""
    if layout.padded or layout.token_multiple == 1:
        return batch
    size = len(batch.input_ids)
    total = round_up(max(size, layout.least_tokens), layout.token_multiple)
    rooms = [FILLER] * (round_up(layout.token_multiple, FILLER) // FILLER)
    if layout.least_tokens:
        rooms += [batch.width] * (2 * len(batch))
    ends = np.minimum(size + np.cumsum(rooms), total)
    row_of, places = ragged(np.diff(ends, prepend=size))
    nothing = torch.zeros(total - size, dtype=torch.long)
    return Batch(
        torch.cat([batch.input_ids, nothing]),
        None if batch.token_type_ids is None else torch.cat([batch.token_type_ids, nothing]),
        torch.cat([batch.places, torch.from_numpy(places)]),
        torch.cat([batch.rows, torch.from_numpy(row_of + len(batch))]),
        torch.cat([batch.starts, torch.from_numpy(ends.astype(np.int32))]),
        batch.mask_positions,
        max(batch.width, FILLER),
    )


def ragged(sizes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For rows of these sizes end to end: which row each token belongs to, and its place there."""
    row_of = np.repeat(np.arange(len(sizes)), sizes)
    return row_of, np.arange(len(row_of)) - np.repeat(np.cumsum(sizes) - sizes, sizes)


def spread(values: Ids, mask: NDArray[np.int64], empty: int) -> Ids:
    """Values in order where `mask` is 1, `empty` elsewhere."""
    found = np.full(len(mask), empty, dtype=np.int32)
    found[mask == 1] = values
    return found


# ---- nested batches ------------------------------------------------------------------------------------------------

T = TypeVar("T")


def map_tensors(tree: T, change: Callable[[torch.Tensor], torch.Tensor]) -> T:
    """A nested batch (a tensor, or a dataclass, list or tuple of such) with every tensor changed."""
    found: Any = tree
    if isinstance(tree, torch.Tensor):
        found = change(tree)
    elif isinstance(tree, list | tuple):
        found = type(tree)(map_tensors(part, change) for part in tree)
    elif hasattr(tree, "__dataclass_fields__"):
        names = tree.__dataclass_fields__
        found = type(tree)(**{name: map_tensors(getattr(tree, name), change) for name in names})
    return found  # type: ignore[no-any-return]


def send(tree: T, device: torch.device) -> T:
    """A nested batch on a device; to a GPU through pinned memory, so that the host need not wait for the queue before
    it.

    numpy fills that memory: torch's own copy of a megabyte is shared out among threads that wait for each other; with
    them a batch of 131,072 tokens took a host of 32 cores 57 ms, with one thread 9 (bench/RESULTS.md).
    """

    def move(tensor: torch.Tensor) -> torch.Tensor:
        if device.type != "cuda" or tensor.is_cuda:
            return tensor.to(device)
        pinned = torch.empty_like(tensor, pin_memory=True)
        pinned.numpy()[...] = tensor.numpy()
        return pinned.to(device, non_blocking=True)

    return map_tensors(tree, move)


def receive(tree: T, device: torch.device) -> Callable[[], T]:
    """Start copying a nested batch from a device to the host. What is returned hands the copy over when it is there,
    without waiting for what else the device has been asked to do meanwhile."""
    found = map_tensors(tree, lambda tensor: tensor.to("cpu", non_blocking=True))
    if device.type != "cuda":
        return lambda: found
    there = torch.cuda.Event()  # type: ignore[no-untyped-call]
    there.record()

    def wait() -> T:
        there.synchronize()
        return found

    return wait


def all_finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether no number of these is NaN or infinite. They are read once: a sum shows it; only where that is not finite,
    as it also is of large numbers, one by one."""
    found = [one.detach() for one in tensors]
    sums = [one.sum(dtype=torch.float32) for one in found]
    return not sums or bool(torch.stack(sums).isfinite().all()) or all(bool(one.isfinite().all()) for one in found)


def tensors_of(tree: Any) -> list[torch.Tensor]:
    """All tensors of a nested batch, in a fixed order."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    return [tensor for part in parts_of(tree) for tensor in tensors_of(part)]


def plain_values_of(tree: Any) -> list[Any]:
    """All that is no tensor in a nested batch: a captured step holds it fixed."""
    if isinstance(tree, torch.Tensor):
        return []
    if isinstance(tree, list | tuple) or hasattr(tree, "__dataclass_fields__"):
        return [value for part in parts_of(tree) for value in plain_values_of(part)]
    return [tree]


def parts_of(tree: Any) -> list[Any]:
    """What a batch consists of: the fields of a dataclass, the items of a list or tuple; nothing of a plain value."""
    if isinstance(tree, list | tuple):
        return list(tree)
    names = getattr(tree, "__dataclass_fields__", {})
    return [getattr(tree, name) for name in names]
