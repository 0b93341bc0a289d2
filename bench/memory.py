"""Memory of a GPU in training and labelling: the original's loop against ours, RoBERTa-large's shape, AG News lengths.

    python bench/memory.py [--steps 60] [--members 18]

Prints what is allocated at most and, for training, what is left of it between steps: weights, moments, captured inputs.
LoRA members are to need one frozen model and, for each trained number, sixteen bytes (itself, gradient, two moments).
"""

import gc

import numpy as np
import torch
from common import WORDS, build_large, draw_lengths, random_rows, start
from reference import Reference
from train_step import Measured, time_reference, train_full, train_lora

from pet.config.schema import FinetuneSettings, RuntimeSettings
from pet.modeling import packing
from pet.modeling.backbones import MaskedLM
from pet.modeling.lora import find_targets
from pet.modeling.verbalizers import Verbalizer
from pet.training.device import Runtime, open_runtime
from pet.training.scoring import computing_copy, score_rows

GIB = 2**30


def main() -> None:
    """Measure and print."""
    options, device, _ = start(__doc__, steps=60, members=18, texts=20_000)
    lengths, rng = draw_lengths(options.texts), np.random.default_rng(0)
    lm = build_large(device)
    model, rows, runtime = MaskedLM(lm), random_rows(lengths), open_runtime(RuntimeSettings(compile=True))
    settings = FinetuneSettings(steps=options.steps)
    lora = settings.model_copy(update={"method": "lora"})

    size = sum(one.numel() for one in lm.parameters())
    maps = [lm.get_submodule(name) for name in find_targets(lm, lora.lora.targets, lora.frozen_layers)]
    adapters = options.members * sum(lora.lora.rank * (one.in_features + one.out_features) for one in maps)
    print(
        f"the model: {size / 1e6:.0f} M weights, {6 * size / GIB:.2f} GiB in fp32 and bf16; "
        f"{options.members} adapters: {adapters / 1e6:.1f} M weights, {16 * adapters / GIB:.2f} GiB to train them"
    )

    tell("training, reference", peak_of(lambda: time_reference(lm, lengths, device)))
    tell("training, full", train_full(model, rows, settings, runtime))
    free()
    tell(f"training, {options.members} lora members", train_lora(model, rows, lora, runtime, options.members))
    free()
    tell("labelling, reference", peak_of(lambda: Reference(lm, WORDS).score(lengths[:80], rng)))
    tell("labelling", peak_of(lambda: label(model, rows, runtime)))


def label(model: MaskedLM, rows: object, runtime: Runtime) -> None:
    """Score all rows, as the stages do."""
    compute_model, words = (
        computing_copy(model.eval(), runtime),
        Verbalizer(torch.tensor(WORDS), torch.eye(len(WORDS))),
    )
    words = words.to(runtime.device)
    layout = packing.scoring_layout(compute_model.lm)
    score_rows(lambda batch: compute_model.label_scores(batch, words), rows, layout, runtime, "texts")  # type: ignore[arg-type]


def peak_of(action: object) -> Measured:
    """The peak while something is done; nothing is said of what is left."""
    free()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    action()  # type: ignore[operator]
    return Measured(0.0, torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0)


def free() -> None:
    """Let go of captured graphs and what they hold."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def tell(name: str, found: Measured) -> None:
    """One line."""
    kept = f", {found.kept / GIB:6.2f} GiB between steps" if found.kept else ""
    print(f"{name:28} {found.peak / GIB:6.2f} GiB at most{kept}", flush=True)


if __name__ == "__main__":
    main()
