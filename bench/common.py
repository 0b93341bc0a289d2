"""What all benchmarks share: AG News lengths, a model of RoBERTa-large's shape, the card's matmul rate, clocks.

Not a benchmark itself. Run the others from the checkout: `python bench/train_step.py`.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pet.config.schema import FinetuneSettings
from pet.modeling.backbones import ClozeBatch
from pet.modeling.prompts import EncodedTexts, Joined
from pet.modeling.tokenization import TokenColumn
from pet.modeling.verbalizers import Verbalizer
from pet.pipeline.members.batches import MemberSources, collate_members, draw_member_batches

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


WORDS = [100, 200, 300, 400]
"""Label words, one for each of four labels."""
LABELLED, UNLABELLED = 4, 12


def start(description: str | None, **numbers: int) -> tuple[argparse.Namespace, torch.device, float]:
    """Options, device and its bf16 matmul rate; prints the card. `numbers`: options with their defaults.

    `--tiny` makes the model so small that a CPU shows whether the script runs.
    """
    from pet.config.schema import RuntimeSettings
    from pet.training.device import matmul_rate, open_runtime

    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    if options.tiny:
        LARGE.update(num_hidden_layers=2, hidden_size=64, num_attention_heads=2, intermediate_size=128)
    device = open_runtime(RuntimeSettings()).device
    rate = float("nan")
    if device.type == "cuda":
        instant, rate = (matmul_rate(device, torch.bfloat16, seconds) for seconds in (0.02, 2.0))
        print(f"bf16 matmul: {instant / 1e12:.0f} TFLOP/s for an instant, {rate / 1e12:.0f} kept up", flush=True)
    print(f"{card_name(device)}, torch {torch.__version__}; bf16 matmul {rate / 1e12:.0f} TFLOP/s", flush=True)
    return options, device, rate


def show(name: str, seconds: float, reference: float, flops: float, rate: float, unit: str = "ms/step") -> None:
    """One line: time, ratio to the reference, FLOP/s on real tokens and their share of the card's matmul rate.

    `seconds`: of one step, or of one text for `unit` texts/s; `flops`: that it takes without padding.
    """
    value = f"{1000 * seconds:9.1f} ms/step" if unit == "ms/step" else f"{1 / seconds:9.0f} {unit}"
    achieved = flops / seconds
    print(
        f"{name:28} {value}  {reference / seconds:6.1f}x  {achieved / 1e12:6.1f} TFLOP/s on real tokens, "
        f"{100 * achieved / rate:5.1f} % of matmul",
        flush=True,
    )


class RandomSpeller:
    """What rows and batches ask of a tokenizer."""

    pad_id, mask_id, has_types = 1, 4, False
    tokenizer = range(VOCABULARY)


class RandomEncoder:
    """Rows of random ids with the mask at position 1, without a pattern."""

    class frame:
        """No special tokens besides those drawn."""

        size = 0

    prompt_tokenizer = RandomSpeller()
    max_length = 256

    def join(self, rows: EncodedTexts, chosen: NDArray[np.int64]) -> Joined:
        """As `pet.modeling.prompts.Encoder.join`."""
        sizes = rows.lengths(chosen)
        column = rows.columns[0]
        assert isinstance(column, TokenColumn)
        ids = column.read(chosen, sizes)
        return Joined(ids, np.zeros_like(ids), sizes, np.ones(len(chosen), dtype=np.int64))


def random_rows(lengths: NDArray[np.int64], seed: int = 0) -> EncodedTexts:
    """Random rows of these lengths."""
    rng = np.random.default_rng(seed)

    def row(length: int) -> NDArray[np.int32]:
        ids = rng.integers(10, 50_000, size=length).astype(np.int32)
        ids[1] = RandomSpeller.mask_id
        return ids

    column = TokenColumn([[row(int(length)) for length in lengths]], len(lengths))
    return EncodedTexts(RandomEncoder(), [column], len(lengths))  # type: ignore[arg-type]


def random_batches(
    rows: EncodedTexts, settings: FinetuneSettings, layout: Any, device: torch.device, seeds: Sequence[int] = (0,)
) -> Iterator[ClozeBatch]:
    """As `stages.finetune.draw_batches`: 4 labelled and 12 unlabelled rows of each member, one member a seed."""
    words = Verbalizer(torch.tensor(WORDS), torch.eye(len(WORDS)))
    sources = MemberSources(rows, np.zeros(len(rows), dtype=np.int64), rows, words, np.arange(5))
    shares = [draw_member_batches(sources, settings, layout, np.random.default_rng(seed)) for seed in seeds]
    while True:
        yield collate_members([next(one) for one in shares], settings, layout).to(device)


def draw_lengths(num: int, seed: int = 0) -> NDArray[np.int64]:
    """Row lengths as AG News has them, at most 256 tokens."""
    counts = json.loads(LENGTHS.read_text())["counts"]
    lengths = np.asarray([int(length) for length in counts])
    weights = np.asarray(list(counts.values()), dtype=np.float64)
    drawn = np.random.default_rng(seed).choice(lengths, size=num, p=weights / weights.sum())
    return np.minimum(drawn + PATTERN_TOKENS, 256)


def build_large(device: torch.device, kind: str = "RobertaForMaskedLM") -> Any:
    """A random model of RoBERTa-large's shape, in fp32; `kind`: its class in transformers."""
    import transformers

    torch.manual_seed(0)
    config = transformers.RobertaConfig(**LARGE, num_labels=len(WORDS))
    with torch.device(device):
        return getattr(transformers, kind)(config)


def flops_per_token(config: Any) -> float:
    """Multiply-adds of the encoder's linear maps for one token, forward, times two (attention products left out)."""
    hidden, inner = config.hidden_size, config.intermediate_size
    return 2.0 * config.num_hidden_layers * (4 * hidden * hidden + 2 * hidden * inner)


def flops_per_row(config: Any, tokens: float) -> float:
    """The same for a row of so many tokens whose last layer computes one of them: of the others only keys, values."""
    hidden = config.hidden_size
    layer = flops_per_token(config) / config.num_hidden_layers
    return tokens * (flops_per_token(config) - layer + 4.0 * hidden * hidden) + layer - 4.0 * hidden * hidden


def word_tokenizer(words: Sequence[str]) -> Any:
    """A tokenizer of whole words with RoBERTa's special tokens, their ids first."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"}
    vocabulary = {token: number for number, token in enumerate([*special.values(), *words])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        **{f"{name}_token": token for name, token in special.items()},
        model_input_names=["input_ids", "attention_mask"],
    )


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
