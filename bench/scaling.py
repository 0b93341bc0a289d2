"""Labelling 10,000, 100,000 and 1,000,000 texts with a tiny model: time per text and peak memory, each in a process.

    python bench/scaling.py [--sizes 10000 100000 1000000]

From the pool's file to the file of soft labels, as the stages do it: tokenised, filled into a pattern, scored in
windows, pooled and written. Two members with the same scores stand for an ensemble. The texts are made-up words, 8 to
24 of them.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

WORDS = 2_000
LABELS = ("yes", "no")


def main() -> None:
    """One process a size; print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--one", type=int, help="this size only, in this process")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(label(options.one)))
        return
    first = None
    for size in options.sizes:
        command = [sys.executable, __file__, "--one", str(size)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        first = first or found
        print(
            f"{size:9,} texts  {found['seconds']:7.1f} s  {1e6 * found['seconds'] / size:6.0f} us/text  "
            f"peak {found['peak'] / 2**20:6.0f} MiB, {(found['peak'] - found['before']) / 2**20:5.0f} above the start",
            flush=True,
        )


def label(size: int) -> dict[str, float]:
    """Seconds and peak memory of labelling so many texts."""
    import torch
    import transformers
    from common import word_tokenizer

    from pet.config.schema import RuntimeSettings
    from pet.modeling import packing
    from pet.modeling.backbones import MaskedLM
    from pet.modeling.prompts import Encoder
    from pet.modeling.tokenization import PromptTokenizer, TokenizedTexts
    from pet.modeling.verbalizers import encode_verbalizers
    from pet.pipeline.stages.label import write_soft_labels
    from pet.tasks.labels import LabelSpace
    from pet.tasks.patterns import PVP, parse_pattern
    from pet.tasks.texts import TextFile
    from pet.training.device import open_runtime
    from pet.training.memory import reset_peak_memory, resident_peak
    from pet.training.scoring import score_rows

    tokenizer = word_tokenizer([*LABELS, ":", *(f"w{number}" for number in range(WORDS))])
    torch.manual_seed(0)
    config = transformers.RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    cloze = MaskedLM(transformers.RobertaForMaskedLM(config).eval())
    pvp = PVP(0, parse_pattern("{mask} : {text}", ["text"]), {name: (name,) for name in LABELS})
    runtime = open_runtime(RuntimeSettings(device="cpu"))

    with tempfile.TemporaryDirectory() as folder:
        pool, out = Path(folder) / "pool.parquet", Path(folder) / "soft_labels.parquet"
        write_pool(pool, size)
        before = resident_peak()
        reset_peak_memory()
        start = time.perf_counter()
        prompt_tokenizer = PromptTokenizer(tokenizer, "made up")
        (verbalizers,) = encode_verbalizers(prompt_tokenizer, [pvp], "scaling")
        texts = TextFile(pool)
        rows = Encoder(prompt_tokenizer, pvp.pattern, 32).encode(TokenizedTexts(prompt_tokenizer, texts))
        scores = score_rows(
            lambda batch: cloze.label_scores(batch, verbalizers),
            rows,
            packing.scoring_layout(cloze.lm),
            runtime,
            "texts",
        )
        write_soft_labels(out, texts, [scores, scores], LabelSpace(tuple(LABELS)), np.asarray([0.5, 0.5]))
        return {"seconds": time.perf_counter() - start, "before": before, "peak": resident_peak()}


def write_pool(path: Path, size: int) -> None:
    """The pool of a prepare artifact, made up chunk by chunk."""
    import pyarrow
    import pyarrow.parquet

    rng = np.random.default_rng(0)
    writer = None
    for start in range(0, size, 8192):
        numbers = range(start, min(start + 8192, size))
        texts = [" ".join(f"w{word}" for word in rng.integers(0, WORDS, size=rng.integers(8, 25))) for _ in numbers]
        table = pyarrow.table({"id": [str(number) for number in numbers], "text_text": texts})
        writer = writer or pyarrow.parquet.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer:
        writer.close()


if __name__ == "__main__":
    main()
