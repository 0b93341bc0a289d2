"""Several processes of one host that walk together: one of them is a rank, and each has a GPU of its own.

`torchrun` or `accelerate launch` starts them; accelerate's `PartialState` connects them. Every rank runs the same
program and draws the same random choices. What they share is work: rows that are scored, and rows of each micro-batch.
Nothing here knows of models, batches or files.

Shapes: N rows, D numbers of each, R ranks.
"""

import contextlib
import gc
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from pet.errors import SettingsError

T = TypeVar("T")

PATIENCE = timedelta(hours=12)
"""How long a rank waits for the others: the main one may be tokenising or writing for hours. When one fails, what
started them ends the others at once."""

BUCKET = 1 << 25
"""Numbers that are summed over the ranks at a time: this bounds the copy (128 MB in fp32) that makes one call of what
would be hundreds. Torch's DDP takes 25 MB, to overlap with the backward pass, which is not done here."""


@dataclass(frozen=True)
class Ranks:
    """This process among `size` of them, its number being `rank`. `host`: torch's process group for what is on the host
    (gloo); gradients go through the default one.

    All but `own` and `share` must be called by all ranks, in the same order. One rank alone costs nothing.
    """

    rank: int = 0
    size: int = 1
    host: Any = field(default=None, repr=False, compare=False)

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes and talks."""
        return self.rank == 0

    def own(self, count: int) -> NDArray[np.int64]:
        """Which of `count` rows are this rank's, as of `deal`."""
        return shard(count, self.size)[self.rank]

    def share(self, count: int) -> float:
        """The share of `count` rows that is this rank's; 0 where `own` is a filler."""
        return len(range(self.rank, count, self.size)) / count

    def gather_rows(
        self, found: NDArray[np.float32] | None, numbers: NDArray[np.int64], count: int
    ) -> NDArray[np.float32]:
        """All `count` rows [N, D] from those that each rank found [n, D]; `numbers`: which they are [n]. `None`: none.

        Every row must be some rank's, and of one rank only.
        """
        width = torch.tensor(0 if found is None else found.shape[1])
        if self.size > 1:
            torch.distributed.all_reduce(width, torch.distributed.ReduceOp.MAX, group=self.host)
        whole = np.zeros((count, int(width)), dtype=np.float32)
        if found is not None:
            whole[numbers] = found
        if self.size > 1:
            torch.distributed.all_reduce(torch.from_numpy(whole), group=self.host)  # in place
        return whole

    @torch.no_grad()
    def sum_tensors(self, tensors: Sequence[torch.Tensor]) -> None:
        """Sum each of these over the ranks, in place, in its own precision: gradients in bf16 are rounded once more.
        All ranks get the same numbers to the bit.

        The host does not wait, so this can be part of a CUDA graph; the first call must not be: it connects the GPUs.
        """
        if self.size == 1:
            return
        for bucket in buckets_of(tensors):
            flat = torch.cat([one.reshape(-1) for one in bucket])
            torch.distributed.all_reduce(flat)
            parts = torch.split(flat, [one.numel() for one in bucket])
            torch._foreach_copy_(bucket, [part.view(one.shape) for part, one in zip(parts, bucket, strict=True)])

    def any_of(self, flags: Sequence[bool]) -> list[bool]:
        """For each of these whether it is so on any rank."""
        if self.size == 1:
            return list(flags)
        found = torch.tensor(flags, dtype=torch.uint8)
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX, group=self.host)
        return [bool(one) for one in found.tolist()]

    def broadcast(self, value: T) -> T:
        """The main rank's value (what JSON can say), whatever the others give."""
        if self.size == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0, group=self.host)
        return box[0]

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        if self.size > 1:
            torch.distributed.barrier(group=self.host)

    @contextlib.contextmanager
    def apart(self, device: torch.device) -> Iterator[None]:
        """Inside, torch's random numbers are each rank's own, as dropout of different rows must be; afterwards they go
        on as if nothing had been drawn, the same on all ranks. One rank alone draws as ever."""
        if self.size == 1:
            yield
            return
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(int(torch.randint(1 << 62, ())) + self.rank)
            yield

    def leave(self) -> None:
        """Part, at the end of a program that went well; nothing of this may be used afterwards."""
        if self.size > 1:
            gc.collect()  # NCCL waits for ever for CUDA graphs that it is part of, and a trainer holds itself
            self.barrier()
            torch.distributed.destroy_process_group()


ALONE = Ranks()
"""One process, as ever."""


def shard(count: int, size: int) -> list[NDArray[np.int64]]:
    """Which of `count` rows each of `size` ranks gets: every size-th. A rank that would get none gets row 0, as filler:
    it must count for nothing (`Ranks.share`), but all ranks then run the same program."""
    return [np.arange(rank, count, size) if rank < count else np.arange(min(count, 1)) for rank in range(size)]


def buckets_of(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """The tensors in lists of one precision and at most BUCKET numbers, or of one tensor."""
    for dtype in {one.dtype: None for one in tensors}:
        bucket: list[torch.Tensor] = []
        size = 0
        for one in tensors:
            if one.dtype != dtype:
                continue
            if bucket and size + one.numel() > BUCKET:
                yield bucket
                bucket, size = [], 0
            bucket.append(one)
            size += one.numel()
        yield bucket


# ---- how they come together ----------------------------------------------------------------------------------------


def join_ranks(device: str) -> Ranks:
    """This process among those that were started with it (WORLD_SIZE, as torchrun and accelerate set it).

    `device`: as the settings say it. On a CPU they are connected by gloo, on GPUs by NCCL; `PartialState` then says
    which GPU is this rank's.

    Raises:
        SettingsError: a device by name, several hosts, fewer GPUs than ranks, or no way to connect them.
    """
    size = int(os.environ.get("WORLD_SIZE") or 1)
    if size == 1:
        return ALONE
    check_launch(device, size)
    from accelerate import PartialState

    # Without `cpu`, accelerate does not connect processes that find no GPU: each would think itself alone.
    on_cpu = device == "cpu" or not torch.accelerator.is_available()
    state = PartialState(cpu=on_cpu, timeout=PATIENCE)
    if state.num_processes != size:
        raise SettingsError(
            f"{size} processes were started, but accelerate cannot connect them on device {state.device.type!r}; "
            "use --device cpu, or start one"
        )
    host = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
    return Ranks(state.process_index, size, host)


def check_launch(device: str, size: int) -> None:
    """Refuse what several ranks cannot be started with; as `join_ranks`."""
    if device not in ("auto", "cpu"):
        raise SettingsError(
            f"device {device!r} with {size} processes: each takes a GPU of its own; use --device auto or cpu"
        )
    local = int(os.environ.get("LOCAL_WORLD_SIZE") or size)
    if local != size:
        raise SettingsError(f"{size} processes were started, {local} of them here; start all on one host")
    gpus = torch.cuda.device_count() if device == "auto" and torch.cuda.is_available() else size
    if size > gpus:
        raise SettingsError(
            f"{size} processes were started, and there are {gpus} GPUs; start {gpus}, or use --device cpu"
        )
