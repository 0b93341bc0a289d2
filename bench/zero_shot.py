"""What a masked language model makes of tasks before it has seen a label: how a pretraining recipe is judged.

    python bench/zero_shot.py MODEL [MODEL ...] [--agnews DIR] [--yelp DIR] [--test 1000]

For each model and task: accuracy of the untuned patterns pooled, of each alone, recall of each label; and of the pooled
scores less their mean over all texts, label by label. The last needs no label either (Zhao et al. 2021 calibrate alike)
and is no result of `pet`: the gap to it is what a model loses because it expects some label words more than others.
Without folders, BBC alone.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from pet.algorithms.ensemble import member_weights, pool_scores
from pet.config.resolve import resolve_settings
from pet.pipeline import drawn_texts
from pet.pipeline.context import RunContext
from pet.pipeline.graph import build_graph
from pet.pipeline.runner import run_stage
from pet.pipeline.score_files import read_scores
from pet.pipeline.stages import finetune, prepare
from pet.store.store import Store
from pet.training.device import open_runtime

LENGTHS = {"bbc": 128, "agnews": 96, "yelp-full": 256}
"""Tokens a text is cut at."""


def main() -> None:
    """Score and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--agnews", help="folder with train.csv and test.csv")
    parser.add_argument("--yelp", help="folder with train.csv and test.csv")
    parser.add_argument("--test", type=int, default=1000, help="test texts at most")
    options = parser.parse_args()
    tasks = {"bbc": None, "agnews": options.agnews, "yelp-full": options.yelp}
    with tempfile.TemporaryDirectory() as folder:
        for model in options.models:
            for task, data in tasks.items():
                if data or task == "bbc":
                    judge(model, task, data, options.test, Store(Path(folder)))


def judge(model: str, task: str, data: str | None, test: int, store: Store) -> None:
    """One line."""
    changes: dict[str, Any] = {
        "task": {"name": task, "data": data},
        "model": {"name": model, "max_length": LENGTHS[task]},
        "data": {"train_examples": 0, "pool_per_label": 2, "test": test},
    }
    settings = resolve_settings(None, changes)
    ctx = RunContext(settings, store, open_runtime(settings.runtime))
    for stage in ("prepare", "finetune"):
        run_stage(ctx, stage)
    prepared, *members = (node.artifact for node in build_graph(ctx).of(prepare.STAGE, finetune.STAGE))
    gold = ctx.labels.encode(drawn_texts.load(prepared).test.labels)
    scores = np.stack([read_scores(one)["test"] for one in members])  # [P, N, L]
    pooled = pool_scores(scores, member_weights(np.zeros(len(scores))))
    recall = [100 * float((pooled.argmax(-1)[gold == label] == label).mean()) for label in range(pooled.shape[1])]
    print(
        f"{Path(model).name:16} {task:10} pooled {accuracy(pooled, gold):.1f}, less its means "
        f"{accuracy(pooled - pooled.mean(0), gold):.1f}; patterns "
        f"{', '.join(f'{accuracy(one, gold):.1f}' for one in scores)}; recall "
        f"{', '.join(f'{label} {value:.0f}' for label, value in zip(ctx.card.labels, recall, strict=True))}",
        flush=True,
    )


def accuracy(scores: Any, gold: Any) -> float:
    """Percent."""
    return 100 * float((scores.argmax(-1) == gold).mean())


if __name__ == "__main__":
    main()
