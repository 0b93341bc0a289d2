"""The machine a run uses: device, precision, random states, memory, and who is told how it goes.

Nothing here changes a result beyond rounding. Progress and tracking are a `Reporter`, handed down from the command
line, so that no stage knows of terminals or Weights & Biases.
"""

import importlib.util
import os
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pet.config.schema import RuntimeSettings
from pet.errors import SettingsError
from pet.training.distributed import ALONE, Ranks, join_ranks
from pet.training.reporter import Reporter, Silent

BATCH_TOKENS = {"cuda": 131_072, "cpu": 2_048}
"""Tokens per batch when scoring, padding counted. GPU: 14,051 texts/s on one H100, 13,850 with 65,536. CPU: small
enough for progress to show; on two cores 1,024 to 8,192 tokens were within a third of each other, in no clear order."""

COMPILE_FROM = 100_000_000
"""Parameters from which compiling pays: on one H100 it took 47 s, fewer since embeddings and last layer are left alone,
and of RoBERTa-large's step it saved 2 ms in 16.5 (bench/RESULTS.md)."""

CPU_BF16 = frozenset({"avx512_bf16", "amx_bf16"})
"""A CPU must have one of these for bf16 to be its faster precision: on two Zen 4 cores a matrix product of `mini`'s
shape then ran at 2.1 times the rate of fp32, without them at half of it or less (measured, bench/RESULTS.md). AMX is
taken to be no slower; it was not timed."""

# oneDNN keeps a compiled product for each shape, 1,024 of them, and rows end to end have a shape of their own in every
# batch: finetune of AG News on mini peaked at 1.6 GB with 64, the whole run at 2.4 with 1,024. Read at first use.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


@dataclass(frozen=True)
class Runtime:
    """Device, dtype of matrix products (`None`: fp32), tokens per scoring batch, reporter, on a GPU whether training
    steps are captured as CUDA graphs and layers compiled (`None`: those of large models), and this process among those
    that work together."""

    device: torch.device
    dtype: torch.dtype | None
    batch_tokens: int
    reporter: Reporter
    capture: bool = True
    compile: bool | None = None
    ranks: Ranks = ALONE

    @property
    def captures(self) -> bool:
        """Whether training steps become CUDA graphs."""
        return self.capture and self.device.type == "cuda"

    def compiles(self, num_parameters: int) -> bool:
        """Whether the layers of a model of this size are compiled."""
        wanted = num_parameters >= COMPILE_FROM if self.compile is None else self.compile
        return wanted and self.device.type == "cuda" and importlib.util.find_spec("triton") is not None

    def facts(self) -> dict[str, str]:
        """Device and precision, for a manifest."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        name = name if self.ranks.size == 1 else f"{self.ranks.size} x {name}"
        return {"device": name, "precision": "fp32" if self.dtype is None else "bf16"}


def open_runtime(settings: RuntimeSettings, reporter: Reporter | None = None) -> Runtime:
    """Resolve `auto` and check that the device exists. Of several processes only the main one tells the reporter.

    Raises:
        SettingsError: no such device here, or, as of `join_ranks`, none for each of several processes.
    """
    ranks = join_ranks(settings.device)
    device = choose_device(settings.device)
    wants_bf16 = settings.precision == "bf16" or (settings.precision == "auto" and is_bf16_faster(device))
    tokens = settings.batch_tokens or BATCH_TOKENS.get(device.type, BATCH_TOKENS["cpu"])
    dtype = torch.bfloat16 if wants_bf16 else None
    told = reporter or Reporter() if ranks.is_main else Silent()
    return Runtime(device, dtype, tokens, told, settings.capture, settings.compile, ranks)


def choose_device(name: str) -> torch.device:
    """`auto` is what accelerate finds (a GPU if there is one); anything else must exist."""
    if name == "auto":
        from accelerate import PartialState

        return torch.device(PartialState().device)
    try:
        device = torch.device(name)
        if device.type == "cpu" and device.index:
            raise RuntimeError("a host is one device to torch, whatever number it is given")
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError, ImportError):
        have = "cpu" + "".join(f", cuda:{index}" for index in range(torch.cuda.device_count()))
        raise SettingsError(f"device {name!r} is not to be had here; use --device auto or one of {have}") from None
    use(device)
    return device


def use(device: torch.device) -> None:
    """Make a GPU the one that this process means where none is named: streams, events and compiled kernels go there."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def is_bf16_faster(device: torch.device) -> bool:
    """Whether bf16 beats fp32 there; `False` where it is not known."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # an older torch cannot tell
    return device.type == "cpu" and any(capabilities.get(name) for name in CPU_BF16)


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch on all devices."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def matmul_rate(device: torch.device, dtype: torch.dtype | None, seconds: float | None = None) -> float:
    """FLOP/s of a large matrix product, kept up for so long (default: a second, on a CPU a tenth). For an instant a
    card is faster than it can sustain, which would be no ceiling for what takes minutes. `dtype`: `None` is fp32."""
    on_gpu = device.type == "cuda"
    size, seconds = 8192 if on_gpu else 1024, seconds or (1.0 if on_gpu else 0.1)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    (left @ right)[0, 0].item()  # the first one also opens the library
    done, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        for _ in range(10 if on_gpu else 1):
            product = left @ right
            done += 1
        product[0, 0].item()  # waits for the device
    return 2.0 * size**3 * done / (time.perf_counter() - begun)
