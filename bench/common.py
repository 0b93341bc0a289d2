"""What all benchmarks share: AG News lengths, a model of RoBERTa-large's shape, the card's matmul rate, clocks.

Not a benchmark itself. Run the others from the checkout: `python bench/train_step.py`.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

LENGTHS = Path(__file__).parent / "agnews_lengths.json"
VOCABULARY = 50_265
PATTERN_TOKENS = 6
"""Special tokens, mask and pattern words that a row has besides its text."""

LARGE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
"""RoBERTa-large's config.json."""


def draw_lengths(num: int, seed: int = 0) -> NDArray[np.int64]:
    """Row lengths as AG News has them, at most 256 tokens."""
    counts = json.loads(LENGTHS.read_text())["counts"]
    lengths = np.asarray([int(length) for length in counts])
    weights = np.asarray(list(counts.values()), dtype=np.float64)
    drawn = np.random.default_rng(seed).choice(lengths, size=num, p=weights / weights.sum())
    return np.minimum(drawn + PATTERN_TOKENS, 256)


def build_large(device: torch.device) -> Any:
    """A random masked LM of RoBERTa-large's shape, in fp32."""
    from transformers import RobertaConfig, RobertaForMaskedLM

    torch.manual_seed(0)
    with torch.device(device):
        return RobertaForMaskedLM(RobertaConfig(**LARGE))


def flops_per_token(config: Any) -> float:
    """Multiply-adds of the encoder's linear maps for one token, forward, times two (attention products left out)."""
    hidden, inner = config.hidden_size, config.intermediate_size
    return 2.0 * config.num_hidden_layers * (4 * hidden * hidden + 2 * hidden * inner)


def matmul_rate(device: torch.device, size: int = 8192, repeats: int = 20) -> float:
    """FLOP/s of a large bf16 matrix product on this card."""
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = clock(lambda: left @ right, device, repeats, warmup=5)
    return 2.0 * size**3 / seconds


def clock(action: Callable[[], Any], device: torch.device, repeats: int, warmup: int = 2) -> float:
    """Mean seconds of an action, the device's queue drained before and after."""
    for _ in range(warmup):
        action()
    wait(device)
    start = time.perf_counter()
    for _ in range(repeats):
        action()
    wait(device)
    return (time.perf_counter() - start) / repeats


def wait(device: torch.device) -> None:
    """Until the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def card_name(device: torch.device) -> str:
    """For the head of a result."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
