"""One training step: the original's loop against ours, RoBERTa-large's shape, AG News lengths.

    python bench/train_step.py [--steps 500] [--members 18]

4 labelled and 12 unlabelled rows a step and member. Ours is `pet.training.trainer.Trainer` with the losses and batches
of the stages: kernel by kernel, captured as a CUDA graph, with compiled layers, and all members at once as LoRA
adapters. Prints milliseconds a step, the ratio, FLOP/s on real tokens and their share of the card's bf16 matmul rate. A
step with adapters is compared with the reference's steps of as many members. Needs a GPU for figures that mean
anything.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
import torch
from common import (
    LABELLED,
    UNLABELLED,
    WORDS,
    build_large,
    clock,
    draw_lengths,
    flops_per_token,
    random_batches,
    random_rows,
    show,
    start,
    wait,
)
from reference import Reference

from pet.config.schema import FinetuneSettings, RuntimeSettings
from pet.modeling import packing
from pet.modeling.backbones import ClozeBatch, MaskedLM
from pet.modeling.lora import Adapters
from pet.modeling.prompts import EncodedTexts
from pet.pipeline.members.batches import cloze_losses
from pet.training.compile import warm_up, warm_up_losses
from pet.training.cuda_graphs import Losses
from pet.training.device import Runtime, open_runtime
from pet.training.scoring import computing_copy
from pet.training.trainer import Trainer


def main() -> None:
    """Measure and print."""
    options, device, rate = start(__doc__, steps=500, members=18)
    lengths = draw_lengths(4096)
    lm = build_large(device)
    tokens = lengths.mean() * (LABELLED + UNLABELLED)
    forward = tokens * flops_per_token(lm.config)
    reference = time_reference(lm, lengths, device)
    show("reference", reference, reference, 3 * forward, rate)

    rows = random_rows(lengths)
    settings = FinetuneSettings(steps=options.steps)
    model = MaskedLM(lm)
    runtime = open_runtime(RuntimeSettings(compile=False))
    for name, changes in (("plain", {"capture": False}), ("captured", {}), ("captured, compiled", {"compile": True})):
        chosen = dataclasses.replace(runtime, **changes)
        few = settings if chosen.capture else settings.model_copy(update={"steps": 20})
        full = train_full(model, rows, few, chosen).seconds
        show(f"full, {name}", full, reference, 3 * forward, rate)

    lora = settings.model_copy(update={"method": "lora", "steps": max(1, options.steps // 2)})
    together = train_lora(model, rows, lora, dataclasses.replace(runtime, compile=True), options.members).seconds
    # Frozen weights have no gradient: two passes' work instead of three.
    show(f"lora, {options.members} members", together, reference * options.members, 2 * options.members * forward, rate)
    print(f"a step of {options.members} members with adapters takes {together / full:.2f} steps of one full member")


def time_reference(lm: torch.nn.Module, lengths: np.ndarray, device: torch.device) -> float:
    """Seconds of a step of the original's loop."""
    reference = Reference(lm, WORDS)
    rng = np.random.default_rng(0)
    starts = iter(range(0, 4096, 16))

    def step() -> None:
        first = next(starts)
        reference.train_step(lengths[first : first + 16], rng)

    seconds = clock(step, device, 10)
    lm.zero_grad(set_to_none=True)
    return seconds


@dataclasses.dataclass(frozen=True)
class Measured:
    """Seconds of a step once everything is captured; bytes on the GPU at most, and when training is over (weights,
    optimizer, captured steps' inputs)."""

    seconds: float
    peak: int = 0
    kept: int = 0


def measure(
    trainer: Trainer[ClozeBatch], batches: Iterator[ClozeBatch], names: list[str], runtime: Runtime
) -> Measured:
    """Train twice, the second time by the clock."""
    on_gpu = runtime.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    trainer.run(batches, *names)
    wait(runtime.device)
    seconds = clock(lambda: trainer.run(batches, *names), runtime.device, 1, warmup=0) / trainer.settings.steps
    return Measured(seconds, *((torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated()) if on_gpu else ()))


def train_full(model: MaskedLM, rows: EncodedTexts, settings: FinetuneSettings, runtime: Runtime) -> Measured:
    """One member, all weights trained."""
    compute_model = computing_copy(model, runtime)
    master = None if compute_model is model else model
    trainer = Trainer(
        compute_model,
        settings,
        lambda given: cloze_losses(compute_model, given, settings.alpha),
        runtime,
        master=master,
    )
    layout = packing.training_layout(model.lm, runtime.captures)
    warm_up(compute_model, layout.padded, training=True)
    return measure(trainer, random_batches(rows, settings, layout, runtime.device), ["full"], runtime)


def train_lora(
    model: MaskedLM, rows: EncodedTexts, settings: FinetuneSettings, runtime: Runtime, members: int
) -> Measured:
    """All members as adapters, as `stages.finetune.train_adapters`."""
    compute_model = computing_copy(model, runtime)
    adapters = Adapters(compute_model.lm, model.lm, range(members), settings)
    dtype = next(compute_model.lm.base_model.parameters()).dtype

    def losses(given: ClozeBatch) -> Losses:
        adapters.open_gate(given.members, dtype, given.keys)
        return cloze_losses(compute_model, given, settings.alpha)

    layout = packing.training_layout(compute_model.lm, runtime.captures)
    warm_up_losses(compute_model)
    with adapters.installed():
        trainer = Trainer(adapters, settings, losses, runtime, adapters.clip)
        batches = random_batches(rows, settings, layout, runtime.device, range(members))
        return measure(trainer, batches, [f"m{number}" for number in range(members)], runtime)


if __name__ == "__main__":
    main()
