"""A small task made of invented texts, the settings of a run of seconds, and `pet` as it is typed: for the stages,
the pipeline and the command line.

Every text of a label holds some of the label's own words, so that the task can be learned.
"""

import csv
import hashlib
import itertools
import json
import os
import random
import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from click.testing import CliRunner, Result

from pet.cli import main
from pet.config.resolve import resolve_settings
from pet.config.schema import Settings
from pet.pipeline import STEPS
from pet.pipeline.context import RunContext
from pet.pipeline.executors.local import LocalExecutor
from pet.pipeline.graph import build_graph
from pet.pipeline.node import Node
from pet.pipeline.runner import run_stage
from pet.pipeline.stages.finetune import Members
from pet.store import draft as draft_module
from pet.store import manifest as manifest_module
from pet.store.draft import Draft
from pet.store.key import Key
from pet.store.store import Artifact, Store
from pet.training.device import open_runtime
from pet.training.reporter import Reporter
from pet.training.trainer import Trainer
from support.tiny import KIND_OF, TOKENIZERS, tiny_model

torch.set_num_threads(1)  # models this small lose more by waiting for a second core than they gain

TOPICS = {
    "sports": "goal team match score river boat".split(),
    "business": "market price bank share profit".split(),
    "tech": "engine code robot screen".split(),
}
LABELS = list(TOPICS)
FILLERS = "the a it was good bad in all just quick warm cold fine rain city table slow loud".split()

PATTERNS = ["{mask} news : {headline} {body}", "{headline} || {body} ( {mask} )"]
CARD = {
    "name": "topics",
    "title": "three invented topics",
    "fields": ["headline", "body"],
    "labels": LABELS,
    "patterns": PATTERNS,
    "verbalizers": {"default": {label: [label] for label in LABELS}},
    "files": {"format": "csv", "train": "train.csv", "test": "test.csv"},
}
MAX_LENGTH = 28
"""Enough for every text, and no multiple of what rows are padded to."""

TRAIN, HIDDEN, TEST = 60, 12, 20
"""Rows of train.csv, how many of them have no label, rows of test.csv."""

PIPELINE: dict[str, Any] = {
    "data": {"train_examples": 12, "pool_per_label": 10},
    "finetune": {
        "repetitions": 2,
        "steps": 2,
        "labelled_batch": 3,
        "unlabelled_batch": 3,
        "learning_rate": 1e-3,
    },
    "distill": {"steps": 3, "batch": 4, "learning_rate": 1e-3},
    "baseline": {"steps": 2, "batch": 4, "learning_rate": 1e-3},
}
"""Two patterns twice: four members."""

Row = tuple[str, str, str]


def invent_rows(size: int, rng: random.Random, unlabelled: int = 0) -> list[Row]:
    """(label, headline, body); the label of the last `unlabelled` rows is empty."""
    rows = []
    for number in range(size):
        label = LABELS[number % len(LABELS)]
        headline = " ".join([*rng.sample(FILLERS, 1), *rng.sample(TOPICS[label], 1)])
        body = " ".join([*rng.sample(FILLERS, rng.randint(2, 6)), *rng.sample(TOPICS[label], 2)])
        rows.append(("" if number >= size - unlabelled else label, headline, body))
    return rows


def write_csv(path: Path, rows: Iterable[tuple[str, ...]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("label", "headline", "body"), *rows])


@dataclass(frozen=True)
class Ground:
    """A task card with its files, and a pipeline that names it."""

    folder: Path

    @property
    def card(self) -> Path:
        return self.folder / "task.yaml"

    @property
    def pipeline(self) -> str:
        return str(self.folder / "pipeline.yaml")

    def change_card(self, **changes: Any) -> None:
        values = yaml.safe_load(self.card.read_text()) | changes
        self.card.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def lay_ground(folder: Path, model: Path, **changes: Mapping[str, Any]) -> Ground:
    """Card, texts and pipeline in a new folder. `changes`: sections of the pipeline, laid over PIPELINE."""
    folder.mkdir(parents=True, exist_ok=True)
    ground = Ground(folder)
    rng = random.Random(0)
    write_csv(folder / "train.csv", invent_rows(TRAIN, rng, HIDDEN))
    write_csv(folder / "test.csv", invent_rows(TEST, rng))
    ground.card.write_text(yaml.safe_dump(CARD, sort_keys=False), encoding="utf-8")
    sections = {
        "task": {"name": str(ground.card)},
        "model": {"name": str(model), "max_length": MAX_LENGTH},
        **PIPELINE,
    }
    merged = {name: {**sections.get(name, {}), **changes.get(name, {})} for name in {**sections, **changes}}
    Path(ground.pipeline).write_text(yaml.safe_dump(merged), encoding="utf-8")
    return ground


# ---- pet, as it is typed -------------------------------------------------------------------------------------------


def pet(*arguments: object, code: int = 0, env: Mapping[str, str] | None = None) -> Result:
    """What `pet ARGUMENTS` does; it must end with exit code `code`, and never with a traceback."""
    done = CliRunner().invoke(main, [str(one) for one in arguments], catch_exceptions=False, env=env)
    assert done.exit_code == code, done.output
    return done


def pet_run(ground: Ground, store: Path, *arguments: object, **more: Any) -> Result:
    """`pet run PIPELINE --store STORE ARGUMENTS`."""
    return pet("run", ground.pipeline, "--store", store, *arguments, **more)


def open_context(
    ground: Ground, store: Path, reporter: Reporter | None = None, **sections: Mapping[str, Any]
) -> RunContext:
    """What `pet run` gives its stages. `sections`: of the settings, laid over the ground's pipeline."""
    settings: Settings = resolve_settings(ground.pipeline, sections)
    return RunContext(settings, Store(store), open_runtime(settings.runtime, reporter))


def node_of(ctx: RunContext, stage: str) -> Node:
    """The only node of a stage in a run."""
    (found,) = (node for node in build_graph(ctx).nodes if node.stage.name == stage)
    return found


def members_of(ctx: RunContext) -> Members:
    """The members of generation 0, made or not."""
    return build_graph(ctx).generations[0].members


def make(ctx: RunContext, node: Node) -> Artifact:
    """The artifact of a node, all that it was given being there."""
    if ctx.store.find(node.key) is None:
        LocalExecutor().make(ctx, [node])
    return node.artifact


def make_up_to(ctx: RunContext, last: str) -> list[Artifact]:
    """The stages up to this one; its artifacts."""
    for stage in STEPS[: STEPS.index(last) + 1]:
        if stage != "adapt" or ctx.settings.adapt.enabled:
            run_stage(ctx, stage)
    return [node.artifact for node in build_graph(ctx).nodes if node.stage.name == last]


def spare_draft(folder: Path) -> Draft:
    """Where a training may keep its checkpoint, in a store of its own; nothing is published."""
    draft = draft_module.open_draft(folder, Key("spare", 1, {}, {}), "spare", None)
    assert draft is not None
    return draft


def stop_at(patch: pytest.MonkeyPatch, step: int, number: int = signal.SIGTERM) -> None:
    """Send this process a signal while it computes the so-manyth step of training from now on."""
    steps, compute = itertools.count(1), Trainer.step

    def stopped(self: Trainer[Any], batches: Sequence[Any]) -> Any:
        if next(steps) == step:
            os.kill(os.getpid(), number)
        return compute(self, batches)

    patch.setattr(Trainer, "step", stopped)


# ---- what is in a store --------------------------------------------------------------------------------------------


def find_all(store: Path, stage: str, part: str = "") -> list[Path]:
    """The artifacts of a stage whose folder's name contains `part`."""
    found = sorted(path.parent for path in store.glob(f"{stage}/*{part}*/manifest.json"))
    return [path for path in found if not path.name.startswith(".")]


def find_one(store: Path, stage: str, part: str = "") -> Path:
    found = find_all(store, stage, part)
    assert len(found) == 1, found
    return found[0]


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def files_of(folder: Path) -> set[str]:
    """Every file below a folder, hidden ones included, but for locks and logs, of which each call of pet begins one."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and is_kept(path)}


def is_kept(path: Path) -> bool:
    """Whether something in a store is more than a lock or a log."""
    return not {".locks", "logs"} & set(path.parts)


def logs_of(store: Path) -> list[Path]:
    """The logs of a store, the oldest first."""
    return sorted((store / "logs").glob("*"))


def declare(folder: Path) -> None:
    """Let the manifest of an artifact that was changed by hand say what is in its folder now."""
    manifest = manifest_module.read_manifest(folder)
    del manifest["digest"]
    files = [
        {"path": name, "size": path.stat().st_size, "sha256": digest(path)}
        for name, path in manifest_module.content_of(folder).items()
    ]
    manifest_module.write_manifest(folder, manifest | {"files": files})


def garble(path: Path) -> bytes:
    """Other bytes into a file, as many: only who reads it can see that. What was there before."""
    before = path.read_bytes()
    path.write_bytes(bytes(one ^ 255 for one in before))
    return before


def hidden_in(store: Path) -> list[Path]:
    """Drafts, checkpoints and what was set aside; not the locks."""
    return [path for path in store.rglob("*") if path.name.startswith(".") and is_kept(path)]


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Everything below a folder with its time of change and size, but for a store's locks and logs."""
    found = {path.relative_to(folder).as_posix(): path.stat() for path in folder.rglob("*") if is_kept(path)}
    return {name: (one.st_mtime_ns, one.st_size) for name, one in found.items()}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---- what is made once ---------------------------------------------------------------------------------------------


def save_lively(folder: Path, family: str = "bert", **more: Any) -> Path:
    """A tiny model whose answers differ from text to text, and its tokenizer. The usual small random weights of a tiny
    model give every text the same label, which hides mistakes."""
    tokenizer = TOKENIZERS[KIND_OF.get(family, "wordpiece")]()
    transformers.utils.logging.disable_progress_bar()
    tiny_model(family, tokenizer, seed=1, initializer_range=0.3, **more).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@cache
def lively_model(base: Path) -> Path:
    """The model of all runs here; never write into it. `base`: pytest's own folder."""
    return save_lively(base / "lively")


@dataclass(frozen=True)
class Finished:
    """A ground, the store of one whole run over it, and what was printed. Never write into it."""

    ground: Ground
    store: Path
    result: Result

    def one(self, stage: str, part: str = "") -> Path:
        """The one artifact of a stage whose folder's name contains `part`."""
        return find_one(self.store, stage, part)


@cache
def finish_run(base: Path) -> Finished:
    """A whole run over the small task; the same one whoever asks. `base`: pytest's own folder."""
    folder = base / "finished"
    ground = lay_ground(folder / "ground", lively_model(base))
    return Finished(ground, folder / "store", pet_run(ground, folder / "store"))


def killable(folder: Path) -> list[list[object]]:
    """Commands that go through every stage, each saving its trainings after every step: full members and generations on
    an adapted model; members trained together as adapters; a model trained on a corpus."""
    from pet.pipeline.stages import pretrain  # noqa: F401 - what a run needs is there before it is forked

    model = save_lively(folder / "model")
    steps = {"finetune": {"steps": 12}, "distill": {"steps": 14}, "baseline": {"steps": 13}}
    adapt = {"enabled": True, "steps": 8, "length": 16, "blocks": 4, "held_out": 0.2}
    saving = {"checkpoint_minutes": 0, "device": "cpu", "precision": "fp32"}
    ipet = lay_ground(folder / "ipet", model, **steps, adapt=adapt, runtime=saving, ipet={"generations": 1, "steps": 3})
    lora = lay_ground(folder / "lora", model, **steps, runtime=saving)
    (folder / "corpus.txt").write_text("\n".join(f"{one[1]} {one[2]}" for one in invent_rows(200, random.Random(1))))
    settings = {"steps": 12, "length": 16, "blocks": 4, "held_out_blocks": 4, "warmup_steps": 2}
    sets = [f"--set=pretrain.{name}={value}" for name, value in settings.items()]
    return [
        ["ipet", ipet.pipeline],
        ["run", lora.pipeline, "--set=finetune.method=lora", "--set=finetune.frozen_layers=1"],
        [
            *("pretrain", "--corpus", folder / "corpus.txt", "--model", model, "--device", "cpu"),
            *("--precision", "fp32", "--set=runtime.checkpoint_minutes=0", "--set=corpus.held_out=0.2", *sets),
        ],
    ]
