"""Scoring texts for soft labels: the original's loop against ours, RoBERTa-large's shape, AG News lengths.

    python bench/labelling.py [--texts 40000]

Prints texts a second, the ratio, TFLOP/s on real tokens and their share of the card's bf16 matmul rate. Ours is
`pet.inference.score_rows` with `pet.cloze`, in batches of `batch_tokens`.
"""

import argparse

import numpy as np
import torch
from common import LARGE, build_large, card_name, clock, draw_lengths, flops_per_token, matmul_rate
from reference import Reference
from train_step import WORDS, Spelling, make_rows

from pet.cloze import ClozeModel
from pet.encoding import Batch, VerbalizerIds
from pet.inference import score_rows
from pet.runtime import open_runtime
from pet.settings import RuntimeSettings


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=40_000)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    if options.tiny:
        LARGE.update(num_hidden_layers=2, hidden_size=64, num_attention_heads=2, intermediate_size=128)
    runtime = open_runtime(RuntimeSettings())
    device = runtime.device
    lengths = draw_lengths(options.texts)
    rate = matmul_rate(device) if device.type == "cuda" else float("nan")
    print(f"{card_name(device)}; bf16 matmul {rate / 1e12:.0f} TFLOP/s; mean row {lengths.mean():.1f} tokens")
    lm = build_large(device)
    rng = np.random.default_rng(0)
    few = lengths[:400]
    speeds = {"reference": len(few) / clock(lambda: Reference(lm, WORDS).score(few, rng), device, 1, warmup=1)}

    model = ClozeModel(lm).eval()
    words = VerbalizerIds(torch.tensor(WORDS), torch.eye(len(WORDS))).to(device)

    def score(batch: Batch) -> torch.Tensor:
        return model.label_scores(model.states(batch), batch.mask_positions, words)

    rows = make_rows(lengths, rng)
    seconds = clock(lambda: score_rows(score, rows, Spelling(), runtime, "texts"), device, 1, warmup=1)
    speeds["ours"] = len(lengths) / seconds
    for name, speed in speeds.items():
        achieved = speed * lengths.mean() * flops_per_token(lm.config)
        print(
            f"{name:10} {speed:9.0f} texts/s  {speed / speeds['reference']:6.1f}x  "
            f"{achieved / 1e12:6.1f} TFLOP/s on real tokens, {100 * achieved / rate:5.1f} % of matmul"
        )


if __name__ == "__main__":
    main()
