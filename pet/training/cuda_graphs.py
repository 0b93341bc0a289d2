"""A training step as one CUDA graph for each shape of batch."""

import contextlib
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from pet.modeling.batch import map_tensors, plain_values_of, tensors_of

B = TypeVar("B")
Losses = dict[str, torch.Tensor]
"""Scalars, or one value per member [M], by name; the (sum of) `loss` is minimised."""

MAX_CAPTURED = 24
"""Batch shapes that are captured; rarer ones run kernel by kernel. On AG News a step's 16 rows come to some ten numbers
of tokens in steps of 64, in two widths (`packing`)."""


@dataclass
class Captured:
    """A captured step: the tensors it reads, and those it leaves its losses in."""

    graph: torch.cuda.CUDAGraph
    inputs: list[torch.Tensor]
    losses: Losses


class CapturedSteps(Generic[B]):
    """`step`, captured once per shape of its micro-batches.

    The first step of a shape runs as it is, which also brings every lazily made buffer into being; the second is
    captured. Dropout draws from the device's generator, whose state a graph reads, so a seed set between two replays
    counts.
    """

    def __init__(self, step: Callable[[list[B]], Losses], device: torch.device) -> None:
        self.step = step
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.pool = torch.cuda.graph_pool_handle()
        self.seen: set[tuple[Any, ...]] = set()
        self.captured: dict[tuple[Any, ...], Captured] = {}

    def __call__(self, micro_batches: list[B]) -> Losses:
        """One optimizer step."""
        tensors = tensors_of(micro_batches)
        shape = (*((tensor.shape, tensor.dtype) for tensor in tensors), *plain_values_of(micro_batches))
        if shape in self.captured:
            return self.replay(self.captured[shape], tensors)
        if shape not in self.seen or len(self.captured) == MAX_CAPTURED:
            self.seen.add(shape)
            return self.run_plain(micro_batches)
        self.captured[shape] = self.capture(micro_batches)
        return self.replay(self.captured[shape], tensors)

    def run_plain(self, micro_batches: list[B]) -> Losses:
        """Kernel by kernel, on the stream that captures."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            losses = self.step(micro_batches)
        torch.cuda.current_stream().wait_stream(self.stream)
        return losses

    def capture(self, micro_batches: list[B]) -> Captured:
        """Record the step on copies of these micro-batches; nothing is computed."""
        own = map_tensors(micro_batches, torch.Tensor.clone)
        graph = torch.cuda.CUDAGraph()
        with no_collection(), torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            losses = self.step(own)
        return Captured(graph, tensors_of(own), losses)

    def replay(self, captured: Captured, tensors: list[torch.Tensor]) -> Losses:
        """Copy the inputs into place and run the graph."""
        torch._foreach_copy_(captured.inputs, tensors)
        captured.graph.replay()
        return {key: value.clone() for key, value in captured.losses.items()}


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """No garbage collection inside: to free an older graph or pinned memory while one is recorded would spoil it. None
    before it either: that takes 0.3 s of each of a training's dozen shapes."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
