"""One of several processes that walk together, for `test_ranks`: it does everything that ranks share on small invented
things, and writes down what it found. Alone it is what they are compared with.

    PYTHONPATH=tests python -c 'import pathlib; from support import walkers; walkers.build(pathlib.Path("GROUND"))'
    PYTHONPATH=tests torchrun --nproc_per_node 2 tests/support/walkers.py GROUND OUT cpu
"""

import itertools
import math
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from pet.config.schema import Optimisation, RuntimeSettings
from pet.errors import NotFinite
from pet.modeling import packing
from pet.modeling.batch import Layout, plain_values_of, tensors_of
from pet.modeling.prompts import EncodedTexts, Encoder
from pet.modeling.tokenization import PromptTokenizer, TokenizedTexts
from pet.pipeline import runner
from pet.store.draft import Draft
from pet.tasks.patterns import parse_pattern
from pet.tasks.texts import Texts
from pet.training import distributed, scoring
from pet.training.checkpoint import Checkpoint, CheckpointManager, train_saved
from pet.training.device import Runtime, open_runtime
from pet.training.distributed import Ranks
from pet.training.reporter import Silent
from pet.training.scoring import score_rows
from pet.training.trainer import Trainer
from support.rows import Ground, lay_ground, make, node_of, open_context, pet_run, save_lively
from support.tiny import TOKENIZERS, WORDS

EPSILON = {"adam_epsilon": 1e-4}  # with less, AdamW makes whole steps of gradients that are nothing but rounding
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "still": ("bert", STILL),
    "padded": ("distilbert", {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}),
    "lively": ("bert", {}),
}
MEMBERS = {"steps": 4, "repetitions": 1, "alpha": 0.3, "learning_rate": 1e-2, **EPSILON}
STUDENT = {"distill": {"steps": 4, "batch": 5, **EPSILON}, "baseline": {"steps": 4, "batch": 1, **EPSILON}}
ADAPT = {"enabled": True, "steps": 4, "blocks": 5, "length": 16, "warmup_steps": 0, "held_out": 0.2, **EPSILON}
WALKS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "members": ("still", "distill", {"finetune": MEMBERS, **STUDENT}),
    "one labelled text": (
        "still",
        "finetune",
        {"finetune": {**MEMBERS, "labelled_batch": 1, "unlabelled_batch": 3, "accumulation": 2}},
    ),
    "one text of each": (
        "padded",
        "distill",
        {"finetune": {**MEMBERS, "labelled_batch": 1, "unlabelled_batch": 1}, **STUDENT},
    ),
    "no text of the pool": ("padded", "finetune", {"finetune": {**MEMBERS, "alpha": 0}}),
    "adapters": (
        "lively",
        "finetune",
        {"finetune": {**MEMBERS, "method": "lora", "labelled_batch": 3, "unlabelled_batch": 4}},
    ),
    "adapted": ("still", "adapt", {"adapt": ADAPT}),
    "adapted with one block": ("padded", "adapt", {"adapt": {**ADAPT, "blocks": 1, "method": "lora"}}),
}
"""Name -> model, last stage, settings. Rows and blocks of a micro-batch are odd, or fewer than ranks. Only what is
trained with `lora` has dropout: the masks are the tokens' own there."""

CLOCK = {"adapt": {**ADAPT, "steps": 200, "minutes": 0.01, "last_length": 24, "last_share": 0.5}}
"""Ends when the time is over: how many steps that were, no two processes would agree about."""

FEW_SHAPES = {"members": "distill", "adapters": "finetune"}
"""Walked a second time up to this stage, with batches filled up as they are on a GPU (though to a lower number, so that
not all of these small ones are of one shape)."""


def build(ground: Path) -> None:
    """The models and the task."""
    for name, (family, more) in MODELS.items():
        save_lively(ground / name, family, **more)
    lay_ground(ground, ground / "still")
    lay_ground(ground / "run", ground / "still", **dict.fromkeys(("finetune", "distill", "baseline"), EPSILON))


def main(ground: Path, out: Path, device: str = "cpu") -> None:
    """Everything once, in fp32; the numbers go to OUT/RANK.pt, OUT/store/NAME is the store of a walk and OUT/RANK/NAME
    what this rank has written for it. At last `pet run`, after which a rank leaves the others."""
    reporter = Silent()
    machine = open_runtime(RuntimeSettings(device=device, precision="fp32"), reporter)
    found: dict[str, Any] = {
        "ranks": (machine.ranks.rank, machine.ranks.size),
        "main": machine.ranks.is_main,
        "talks": machine.reporter is reporter,
        "device": machine.facts()["device"],
    }
    found |= talk(machine.ranks, machine.device) | scored(machine) | failures(machine, out / "checkpoint")
    shown = out / str(machine.ranks.rank)
    for name, (model, last, sections) in WALKS.items():
        with showing(shown / name):
            walk(ground, out / "store" / name, device, model, last, sections)
    for name, last in FEW_SHAPES.items():
        model, _, sections = WALKS[name]
        with few_shapes(), seen_shapes() as shapes, showing(shown / f"{name}, few shapes"):
            walk(ground, out / "store" / f"{name}, few shapes", device, model, last, sections)
        found[f"shapes of {name}"] = shapes
    with showing(shown / "by the clock"):
        walk(ground, out / "store" / "by the clock", device, "still", "adapt", CLOCK)
    torch.save(found, out / f"{machine.ranks.rank}.pt")
    pet_run(Ground(ground / "run"), out / "store" / "run", "--precision", "fp32", "--device", device)


# ---- what they say to each other -----------------------------------------------------------------------------------


def talk(mine: Ranks, device: torch.device) -> dict[str, Any]:
    """The small things, each as this rank sees it."""
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with mine.apart(device):
        apart = torch.rand(4)
    sums = [torch.full(shape, mine.rank + 1.0, dtype=dtype, device=device) for shape, dtype in SUMMED]
    sums[0] = sums[0].T  # not contiguous
    with mock.patch.object(distributed, "BUCKET", 7):
        mine.sum_tensors(sums)
    mine.barrier()
    return {
        "apart": apart,
        "random state": bool((torch.get_rng_state() == before).all()),
        "sums": [one.cpu() for one in sums],
        "said": mine.broadcast({"from": mine.rank}),
        "any": mine.any_of([mine.rank == 0, mine.rank == mine.size - 1, False]),
        "none": mine.gather_rows(None, np.empty(0, np.int64), 0),
    }


WINDOW = 9
"""Rows that are sorted at a time here."""

SUMMED = [((2, 3), torch.float32), ((5,), torch.bfloat16), ((), torch.float32), ((9,), torch.float32)]


def scored(machine: Runtime) -> dict[str, Any]:
    """Scores of odd numbers of rows, and which rows this rank was asked about."""
    found: dict[str, Any] = {}
    for count in (0, 1, 2, 7, 23):
        asked: list[int] = []
        with watch_rows(asked), mock.patch.object(scoring, "WINDOW", WINDOW):
            scores = score_rows(
                checksum, some_rows(count), Layout(True, None, 8), replace(machine, batch_tokens=60), ""
            )
        found[f"scores of {count}"], found[f"asked of {count}"] = scores, asked
    return found


def failures(machine: Runtime, folder: Path) -> dict[str, Any]:
    """What this rank is told where NaN is computed by the last one alone, saved after every step."""
    model = torch.nn.Linear(3, 1, device=machine.device)
    steps, last = itertools.count(1), machine.ranks.rank == machine.ranks.size - 1

    def losses(batch: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": model(batch).mean() * (math.nan if next(steps) >= 13 and last else 1.0)}

    def score(batch: Any) -> torch.Tensor:
        return checksum(batch) * (math.nan if last else 1.0)

    machine = replace(machine, capture=False)
    trainer = Trainer(model, Optimisation(steps=50, learning_rate=0.1), losses, machine)
    checkpoints = CheckpointManager(Checkpoint(folder, model, trainer.optimizer, machine, ["it"]), 0, "it", print)
    batches = itertools.repeat(torch.ones(2, 3, device=machine.device))
    found: dict[str, Any] = {}
    try:
        train_saved(trainer, checkpoints, lambda done: batches, "it", restored=lambda: None)
    except NotFinite as problem:
        found["training failed"] = str(problem)
    try:
        score_rows(score, some_rows(7), Layout(True, None, 8), replace(machine, batch_tokens=60), "it")
    except NotFinite as problem:
        found["scoring failed"] = str(problem)
    return found


def some_rows(count: int) -> EncodedTexts:
    """Rows of many lengths, no two alike."""
    prompt_tokenizer = PromptTokenizer(TOKENIZERS["wordpiece"](), "test")
    columns = {"a": [" ".join(WORDS[number : number + 1 + number * 7 % 11]) for number in range(count)]}
    texts = Texts([str(number) for number in range(count)], columns, [None] * count)
    return Encoder(prompt_tokenizer, parse_pattern("{a} {mask}", ["a"]), 40).encode(
        TokenizedTexts(prompt_tokenizer, texts)
    )


def checksum(batch: Any) -> torch.Tensor:
    """Two numbers of a row that are exact in fp32 [B, 2]."""
    ids = (batch.input_ids * batch.attention_mask).view(len(batch), -1)
    return torch.stack([ids.sum(1), (ids * (1 + torch.arange(ids.shape[1], device=ids.device))).sum(1)], 1)


@contextmanager
def watch_rows(asked: list[int]) -> Iterator[None]:
    """The numbers of all rows that are put into a batch."""
    batch = EncodedTexts.batch
    with mock.patch.object(
        EncodedTexts, "batch", lambda rows, chosen, layout: asked.extend(chosen) or batch(rows, chosen, layout)
    ):
        yield


# ---- walks ---------------------------------------------------------------------------------------------------------


def walk(ground: Path, store: Path, device: str, model: str, last: str, sections: dict[str, Any]) -> None:
    """The stages up to `last`."""
    machine = {"device": device, "precision": "fp32"}
    ctx = open_context(Ground(ground), store, runtime=machine, model={"name": str(ground / model)}, **sections)
    stages = ("prepare", "finetune", "label", "distill") if last == "distill" else ("prepare", last)
    for stage in stages:
        runner.run_stage(ctx, stage)
    if last == "distill":
        make(ctx, node_of(ctx, "baseline"))


@contextmanager
def showing(folder: Path) -> Iterator[None]:
    """Keep a copy of every draft: of a rank that is not the main one nothing is published."""
    note = Draft.note

    def keep(draft: Draft, **facts: Any) -> None:
        shutil.copytree(draft.path, folder / draft.key.stage / draft.final.name, dirs_exist_ok=True)
        note(draft, **facts)

    with mock.patch.object(Draft, "note", keep):
        yield


@contextmanager
def few_shapes() -> Iterator[None]:
    """Batches for training as they are laid out where steps are captured."""

    def layout(model: Any, machine: Runtime, width: int | None = None) -> Layout:
        padded = width is not None or not packing.is_packed(model)
        return Layout(padded, width, packing.TRAINING_WIDTHS[True], 8)

    with mock.patch.object(packing, "training_layout", layout):
        yield


@contextmanager
def seen_shapes() -> Iterator[list[int]]:
    """Which shape each training step has, numbered by when it came first: where a step is captured and where not."""
    numbers: list[int] = []
    known: dict[Any, int] = {}
    step = Trainer.step

    def watched(trainer: Trainer[Any], batches: Any) -> Any:
        shape = (*((one.shape, one.dtype) for one in tensors_of(batches)), *plain_values_of(batches))
        numbers.append(known.setdefault(shape, len(known)))
        return step(trainer, batches)

    with mock.patch.object(Trainer, "step", watched):
        yield numbers


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
