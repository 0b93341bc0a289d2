"""One training step of a member: the original's loop against ours, RoBERTa-large's shape, AG News lengths.

    python bench/train_step.py [--steps 200]

4 labelled and 12 unlabelled rows a step. Prints milliseconds a step, the ratio, TFLOP/s on real tokens and their share
of the card's bf16 matmul rate. Ours is `pet.training.Trainer` with the loss and the batches of `stages/finetune.py`:
plain and captured. Needs a GPU for figures that mean anything; `--tiny` shows on a CPU that the script runs.
"""

import argparse

import numpy as np
import torch
from common import LARGE, build_large, card_name, clock, draw_lengths, flops_per_token, matmul_rate, wait
from reference import Reference

from pet.cloze import ClozeModel
from pet.encoding import Rows, VerbalizerIds, pad_rows, training_width
from pet.losses import IGNORED, mask_tokens
from pet.runtime import open_runtime
from pet.settings import FinetuneSettings, RuntimeSettings
from pet.stages.finetune import ClozeBatch, member_losses, pad_targets
from pet.training import Trainer, endless_order

LABELLED, UNLABELLED = 4, 12
WORDS = [100, 200, 300, 400]


class Spelling:
    """What `pad_rows` asks of a tokenizer."""

    pad_id = 1
    mask_id = 4
    has_types = False


def make_rows(lengths: np.ndarray, rng: np.random.Generator) -> Rows:
    """Random rows of these lengths with the mask at position 1."""
    ids = [rng.integers(10, 50_000, size=length).astype(np.int32) for length in lengths]
    for row in ids:
        row[1] = Spelling.mask_id
    return Rows(ids, [np.zeros_like(row) for row in ids], np.ones(len(ids), dtype=np.int32))


def batches(rows: Rows, device: torch.device, rng: np.random.Generator):
    """As `stages.finetune.draw_batches`, without a task."""
    averaging = torch.eye(len(WORDS))
    words = VerbalizerIds(torch.tensor(WORDS), averaging).to(device)
    for chosen in endless_order(len(rows), LABELLED + UNLABELLED, rng):
        batch = pad_rows(rows, chosen, Spelling(), training_width(rows, chosen))
        ids = batch.input_ids.numpy()
        maskable = ids > 4
        maskable[:LABELLED] = False
        changed, targets = mask_tokens(ids, maskable, 0.15, Spelling.mask_id, LARGE["vocab_size"], rng)
        batch.input_ids = torch.from_numpy(changed)
        places = np.nonzero(targets != IGNORED)
        where, wanted = pad_targets(np.stack(places), targets[places], 0.15 * ids[LABELLED:].size)
        yield ClozeBatch(batch, torch.zeros(LABELLED, dtype=torch.long), where, wanted, words).to(device)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    if options.tiny:
        LARGE.update(num_hidden_layers=2, hidden_size=64, num_attention_heads=2, intermediate_size=128)
    runtime = open_runtime(RuntimeSettings())
    device = runtime.device
    lengths = draw_lengths(4096)
    rate = matmul_rate(device) if device.type == "cuda" else float("nan")
    print(f"{card_name(device)}; bf16 matmul {rate / 1e12:.0f} TFLOP/s; mean row {lengths.mean():.1f} tokens")

    lm = build_large(device)
    reference = Reference(lm, WORDS)
    rng = np.random.default_rng(0)
    starts = iter(range(0, 4096, 16))

    def reference_step() -> None:
        start = next(starts)
        reference.train_step(lengths[start : start + 16], rng)

    seconds = {"reference": clock(reference_step, device, 10)}
    lm.zero_grad(set_to_none=True)
    reference.optimizer.state.clear()

    model = ClozeModel(lm)
    rows = make_rows(lengths, rng)
    settings = FinetuneSettings(steps=options.steps)
    for name, capture in (("ours, plain", False), ("ours, captured", True)):
        chosen = open_runtime(RuntimeSettings(capture=capture))
        trainer = Trainer(model, settings, lambda given: member_losses(model, given, settings.alpha), chosen)
        stream = batches(rows, device, rng)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()  # or the reference's peak would be shown as ours
        trainer.run(stream, "warm-up")
        wait(device)
        seconds[name] = clock(lambda: trainer.run(stream, "measured"), device, 1, warmup=0) / options.steps  # noqa: B023
        if device.type == "cuda":
            print(f"{name}: peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
    tokens = lengths.mean() * (LABELLED + UNLABELLED)
    work = 3 * tokens * flops_per_token(lm.config)
    for name, value in seconds.items():
        achieved = work / value
        print(
            f"{name:15} {1000 * value:8.1f} ms/step  {seconds['reference'] / value:6.1f}x  "
            f"{achieved / 1e12:6.1f} TFLOP/s on real tokens, {100 * achieved / rate:5.1f} % of matmul"
        )


if __name__ == "__main__":
    main()
