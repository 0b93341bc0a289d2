"""Scoring texts for soft labels: the original's loop against ours, RoBERTa-large's shape, AG News lengths.

    python bench/labelling.py [--texts 40000]

Prints texts a second, the ratio, FLOP/s on real tokens and their share of the card's bf16 matmul rate. Ours is
`pet.training.scoring.score_rows` with `pet.modeling.backbones`, in batches of `batch_tokens`: in autocast's stead, the
encoder's weights are in bf16 (`computing_copy`), its layers plain or compiled.
"""

import dataclasses

import numpy as np
import torch
from common import WORDS, build_large, clock, draw_lengths, flops_per_row, flops_per_token, random_rows, show, start
from reference import Reference

from pet.config.schema import RuntimeSettings
from pet.modeling import packing
from pet.modeling.backbones import MaskedLM
from pet.modeling.batch import Batch
from pet.modeling.verbalizers import Verbalizer
from pet.training.device import open_runtime
from pet.training.scoring import computing_copy, score_rows


def main() -> None:
    """Measure and print."""
    options, device, rate = start(__doc__, texts=40_000)
    lengths = draw_lengths(options.texts)
    lm = build_large(device)
    flops = lengths.mean() * flops_per_token(lm.config)
    few, rng = lengths[:400], np.random.default_rng(0)
    reference = clock(lambda: Reference(lm, WORDS).score(few, rng), device, 1, warmup=1) / len(few)
    show("reference", reference, reference, flops, rate, "texts/s")

    rows = random_rows(lengths)
    words = Verbalizer(torch.tensor(WORDS), torch.eye(len(WORDS))).to(device)
    for compiled in (False, True):
        runtime = dataclasses.replace(open_runtime(RuntimeSettings()), compile=compiled)
        scorer = computing_copy(MaskedLM(lm).eval(), runtime)
        layout = packing.scoring_layout(scorer.lm)

        def score(batch: Batch, scorer: MaskedLM = scorer) -> torch.Tensor:
            return scorer.label_scores(batch, words)

        def run(score=score, layout=layout, runtime=runtime) -> None:
            score_rows(score, rows, layout, runtime, "texts")

        seconds = clock(run, device, 1, warmup=1) / len(lengths)
        done = flops_per_row(lm.config, lengths.mean())
        show("compiled" if compiled else "plain", seconds, reference, done, rate, "texts/s")


if __name__ == "__main__":
    main()
