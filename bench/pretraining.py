"""Masked-LM training on full blocks: tokens a second and the share of the card's matmul rate, by a model's size.

    python bench/pretraining.py [--steps 100]

`pet.training.trainer.Trainer` with the batches and the loss of `pipeline/stages/pretrain.py` on random tokens, 131,072
a step, 15 % masked. `plain` is transformers' own forward pass in bf16 autocast with torch's fused AdamW, as a few lines
of one's own would be: no graph, every position through the LM head. Figures of a CPU mean nothing.
"""

import dataclasses
from typing import Any

import numpy as np
import torch
from common import RandomSpeller, clock, start, wait
from torch.nn import functional

from pet.config.schema import Pretraining, RuntimeSettings
from pet.modeling import packing
from pet.modeling.backbones import MaskedLM
from pet.modeling.token_losses import IGNORED
from pet.modeling.tokenization import SpecialTokens
from pet.pipeline.stages.pretrain import draw_batches, losses_of
from pet.training.device import open_runtime
from pet.training.mlm_corpus import Blocks
from pet.training.scoring import computing_copy
from pet.training.throughput import flops_per_token
from pet.training.trainer import Trainer

TOKENS, LENGTH = 131_072, 128
SHAPES: dict[str, dict[str, Any]] = {
    "mini": {
        "model_type": "bert",
        "vocab_size": 30_522,
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    },
    "roberta-base": {
        "model_type": "roberta",
        "vocab_size": 50_265,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "pad_token_id": 1,
    },
}
"""What differs from transformers' defaults, which are BERT-base's shape."""


class Specials(RandomSpeller):
    """A speller of a vocabulary whose first five tokens are special."""

    class tokenizer:
        """Its size and special tokens, which is all that is asked."""

        all_special_ids = (0, 1, 2, 3, 4)

        def __init__(self, size: int) -> None:
            self.size = size

        def __len__(self) -> int:
            return self.size

    def __init__(self, size: int) -> None:
        self.tokenizer = Specials.tokenizer(size)  # type: ignore[assignment, misc]


def main() -> None:
    """Measure and print."""
    options, device, rate = start(__doc__, steps=100)
    for name, shape in SHAPES.items():
        small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
        measure(name, shape | (small if options.tiny else {}), options, device, rate)


def measure(name: str, shape: dict[str, Any], options: Any, device: torch.device, rate: float) -> None:
    """One shape, plain and ours."""
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(**shape, attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0)
    with torch.device(device):
        lm = transformers.AutoModelForMaskedLM.from_config(config)
    tokens = 2048 if options.tiny else TOKENS
    settings = Pretraining.model_validate(
        {
            "corpus": {"files": ["random"]},
            "pretrain": {"steps": options.steps, "length": LENGTH, "blocks": tokens // LENGTH},
        }
    )
    stream = np.random.default_rng(0).integers(5, config.vocab_size, size=4 * tokens).astype("<u2")
    blocks = Blocks(stream, SpecialTokens([0], [], [2], [0], [], [0], (0, 0)), LENGTH)
    runtime = dataclasses.replace(open_runtime(RuntimeSettings()), compile=True)
    cloze = MaskedLM(lm.eval())
    flops = flops_per_token(cloze, settings.pretrain)
    packed = packing.is_packed(lm)
    prompt_tokenizer: Any = Specials(config.vocab_size)
    batches = draw_batches([blocks], settings, runtime, prompt_tokenizer, packed, 0)

    few = settings.pretrain.model_copy(update={"blocks": settings.pretrain.blocks // 8})  # all logits must fit
    some = draw_batches([blocks], settings.model_copy(update={"pretrain": few}), runtime, prompt_tokenizer, packed, 0)
    plain = clock(plain_step(lm, next(some), LENGTH), device, 5)
    tell(f"{name}, plain", tokens / 8 / plain, flops, rate)
    lm.zero_grad(set_to_none=True)
    compute_model = computing_copy(cloze, runtime, alike=True)
    master = None if compute_model is cloze else cloze
    trainer = Trainer(
        compute_model, settings.pretrain, lambda given: losses_of(compute_model, given), runtime, master=master
    )
    trainer.run(batches, "warm-up")
    wait(device)
    seconds = clock(lambda: trainer.run(batches, "measured"), device, 1, warmup=0) / options.steps
    tell(f"{name}, pet", tokens / seconds, flops, rate)
    if device.type == "cuda":
        print(f"peak memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB", flush=True)


def plain_step(lm: Any, given: Any, length: int) -> Any:
    """A training step as one would write it."""
    optimizer = torch.optim.AdamW(lm.parameters(), lr=1e-4, fused=True)
    ids = given.batch.input_ids.view(-1, length)
    labels = torch.full_like(given.batch.input_ids, IGNORED)
    labels[given.places] = given.targets

    def step() -> None:
        with torch.autocast(ids.device.type, torch.bfloat16):
            logits = lm(input_ids=ids).logits
        functional.cross_entropy(logits.flatten(0, 1).float(), labels, ignore_index=IGNORED).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def tell(name: str, tokens: float, flops: float, rate: float) -> None:
    """One line: tokens a second, FLOP/s, share of the matmul rate."""
    share = 100 * tokens * flops / rate
    print(f"{name:20} {tokens:12,.0f} tokens/s  {tokens * flops / 1e12:6.1f} TFLOP/s, {share:5.1f} %", flush=True)


if __name__ == "__main__":
    main()
