"""How far a training is, on disk: saved every few minutes and when the process is asked to stop, so that the next one
goes on from there and ends as if nothing had happened. What is trained is the business of others.

    <draft>/.checkpoint/
        state-<step>.safetensors     weights, moments and step counts, random states, losses not yet reported
        state.json                   which file, its digest, whose, how far, losses on the way; written last
"""

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from pet.modeling.batch import all_finite
from pet.store.background import BackgroundWriter
from pet.store.files import digest_file, readable_json, sync
from pet.store.manifest import STATE
from pet.training.device import Runtime
from pet.training.optim import Optimizer
from pet.training.trainer import ResumePoint, State, Trainer, TrainingReport

B = TypeVar("B")

LEAST_RATIO = 50
"""Seconds of training to one of saving, at the least: so it never takes more than 2 % of the time, however large the
model and slow the disk."""


@dataclass(frozen=True)
class Snapshot:
    """A training as it was at one step: tensors by name, and what `state.json` says of them."""

    tensors: dict[str, torch.Tensor]
    facts: dict[str, Any]


class Checkpoint:
    """The checkpoint of one training in a folder. `weights`: the module that holds what is trained; `names`: of the
    members that are trained: it goes on for the same ones only."""

    def __init__(
        self, folder: Path, weights: nn.Module, optimizer: Optimizer, runtime: Runtime, names: Sequence[str]
    ) -> None:
        self.folder = folder
        self.weights = weights
        self.optimizer = optimizer
        self.device = runtime.device
        self.ranks = runtime.ranks
        self.names = list(names)

    def take(self, state: State, seconds: float) -> Snapshot:
        """What is to be written, on the host; on a CPU the tensors are those that are trained, and no copies."""
        facts = {
            "names": self.names,
            "optimizer": type(self.optimizer).__name__,
            "step": state.step,
            "seconds": seconds,
            "reports": [dataclasses.asdict(one) for one in state.reports],
        }
        return Snapshot({name: one.cpu().contiguous() for name, one in self.tensors(state).items()}, facts)

    def write(self, snapshot: Snapshot) -> None:
        """Write it beside the one before, which goes when it is whole.

        Raises:
            OSError, SafetensorError: the disk is full, or not to be written.
        """
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"state-{snapshot.facts['step']}.safetensors"
        try:
            save_file(snapshot.tensors, path)
            sync(path)
        except (OSError, SafetensorError):
            path.unlink(missing_ok=True)  # it would take the room that the artifact needs
            raise
        facts = {"file": path.name, "sha256": digest_file(path), **snapshot.facts}
        draft = self.folder / f"{STATE}.draft"
        draft.write_text(readable_json(facts), encoding="utf-8")
        sync(draft)
        draft.replace(self.folder / STATE)
        sync(self.folder)
        for old in self.folder.glob("state-*.safetensors"):
            if old != path:
                old.unlink()

    def tensors(self, state: State) -> dict[str, torch.Tensor]:
        """Everything that changes on the way."""
        found = {f"model.{name}": one.detach() for name, one in self.trained().items()}
        found |= {f"optimizer.{name}": one for name, one in self.optimizer.state().items()}
        found["random.cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            found["random.cuda"] = torch.cuda.get_rng_state(self.device)
        for number, losses in enumerate(state.recent):
            found |= {f"recent.{number:03}.{place:03}.{name}": losses[name] for place, name in enumerate(losses)}
        return found

    def trained(self) -> dict[str, nn.Parameter]:
        """The weights that training changes."""
        return {name: one for name, one in self.weights.named_parameters() if one.requires_grad}

    def is_sound(self, state: State) -> bool:
        """Whether no weight and no loss is NaN or infinite, so that a training can go on from here."""
        return all_finite([*self.trained().values(), *(loss for one in state.recent for loss in one.values())])

    def restore(self) -> tuple[State, float] | None:
        """Go on from it: weights, moments and random states are put where they were. How far that is, and the seconds
        it took; `None` if there is none, or none of these members.

        Raises:
            ValueError: it is damaged, of a training in another precision, or of one that had failed; says so, and no
                weight was changed.
        """
        if not (self.folder / STATE).is_file():
            return None
        try:
            facts = json.loads((self.folder / STATE).read_text(encoding="utf-8"))
            path = self.folder / Path(facts["file"]).name
            if facts["names"] != self.names:
                return None
            if digest_file(path) != facts["sha256"]:
                raise ValueError(f"{path} has changed (sha256)")
            if facts["optimizer"] != type(self.optimizer).__name__:  # `auto` may be another precision on each machine
                raise ValueError("it was made in another precision")
            tensors = load_file(path)
            if not all_finite(one for name, one in tensors.items() if name.startswith(("model.", "recent."))):
                raise ValueError("a weight or a loss in it is not finite")
            state = State(int(facts["step"]), [TrainingReport(**one) for one in facts["reports"]], recent_of(tensors))
            self.put(tensors)
            return dataclasses.replace(state, recent=[self.here(one) for one in state.recent]), float(facts["seconds"])
        except (OSError, SafetensorError, KeyError, TypeError, AttributeError, RecursionError) as problem:
            raise ValueError(f"{self.folder / STATE} cannot be read ({problem})") from None

    @torch.no_grad()
    def put(self, tensors: dict[str, torch.Tensor]) -> None:
        """Put everything where it was, weights last: what is missing is found before they are touched."""
        weights = {name: tensors[f"model.{name}"] for name in self.trained()}
        prefix = "optimizer."
        self.optimizer.reset()
        self.optimizer.load(
            {name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix)}
        )
        torch.set_rng_state(tensors["random.cpu"])
        if "random.cuda" in tensors and self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random.cuda"], self.device)
        for name, one in self.trained().items():
            one.copy_(weights[name])

    def here(self, losses: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Losses on the device."""
        return {name: one.to(self.device) for name, one in losses.items()}

    def remove(self) -> None:
        """Forget it."""
        shutil.rmtree(self.folder, ignore_errors=True)


def recent_of(tensors: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """The losses that were not reported yet, step by step, in the order in which they were."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key in sorted(one for one in tensors if one.startswith("recent.")):
        _, number, _, name = key.split(".", 3)
        found.setdefault(number, {})[name] = tensors[key]
    return list(found.values())


class CheckpointManager:
    """Begins a training from its checkpoint, and saves it on its way. `minutes`: of training between two checkpoints,
    0: after every step; `title`: of the training, for what is said.

    A GPU goes on while what was copied from it is written, in a thread: RoBERTa-large's 4.3 GB took ten seconds
    (bench/RESULTS.md). Leaving the context waits for that.
    """

    def __init__(self, checkpoint: Checkpoint, minutes: float, title: str, say: Callable[[str], None]) -> None:
        self.checkpoint = checkpoint
        self.minutes = minutes
        self.title = title
        self.say = say
        self.before = 0.0
        self.begun = self.last = time.perf_counter()
        self.cost = 0.0
        self.fails = False
        self.in_background = checkpoint.device.type == "cuda"
        self._writer = BackgroundWriter()

    def __enter__(self) -> "CheckpointManager":
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.wait()

    def begin(self) -> State | None:
        """How far an earlier process has come, put in place; `None`: there is nothing to go on from."""
        try:
            found = self.checkpoint.restore()
        except ValueError as problem:
            self.say(f"{self.title}: the checkpoint is of no use, training starts anew: {problem}")
            found = None
        self.checkpoint.ranks.barrier()
        if found is None:
            if self.checkpoint.ranks.is_main:
                self.checkpoint.remove()
            return None
        state, self.before = found
        self.begun = self.last = time.perf_counter()
        self.say(f"{self.title}: going on after step {state.step:,}")
        return state

    def spent(self) -> float:
        """Seconds of training so far, those of earlier processes among them."""
        return self.before + time.perf_counter() - self.begun

    def after(self, step: int, state: Callable[[], State | None], stopping: bool) -> None:
        """Save, when it is time; see `ResumePoint`. Of several ranks the main one does: all have the same weights."""
        if not self.checkpoint.ranks.is_main:
            return
        if stopping or self.is_due():
            saved = self.save(state)
            if stopping:
                self._writer.wait()
                if saved and not self.fails:
                    self.say(f"{self.title}: saved after step {step:,}")

    def is_due(self) -> bool:
        """Whether it is time to save, and nothing is being written."""
        if self._writer.is_busy:
            return False
        wait = max(60 * self.minutes, LEAST_RATIO * self.cost) if self.minutes else 0.0
        return time.perf_counter() - self.last >= wait

    def save(self, state: Callable[[], State | None]) -> bool:
        """Save what there is now, or begin to; nothing where weights or losses are not finite: the training is about to
        say so, and the checkpoint before stays."""
        self._writer.wait()
        begun = time.perf_counter()
        found = state()
        if found is None or not self.checkpoint.is_sound(found):
            return False
        snapshot = self.checkpoint.take(found, self.spent())
        if self.in_background:
            self._writer.start(lambda: self.checkpoint.write(snapshot), then=self.attempt())
        else:
            with self.attempt():
                self.checkpoint.write(snapshot)
        self.last = time.perf_counter()
        self.cost = self.last - begun
        return True

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Around saving; a training goes on if the disk will not have it, which is said once."""
        try:
            yield
        except (OSError, SafetensorError) as problem:
            if not self.fails:
                self.say(f"{self.title}: no checkpoint can be saved ({problem}); the training goes on without")
            self.fails = True
        else:
            self.fails = False


def train_saved(
    trainer: Trainer[B],
    checkpoints: CheckpointManager,
    batches: Callable[[int], Iterator[B]],
    *names: str,
    steps: int | None = None,
    restored: Callable[[], None],
) -> list[TrainingReport]:
    """`Trainer.run` from the checkpoint, if there is one. `batches`: those after so many steps; `restored`: is called
    when weights were put back, before they compute.

    Raises:
        Stopped: a signal came; what was learnt is saved.
    """
    start = checkpoints.begin()
    if start is not None:
        restored()
    resume = ResumePoint(start, after=checkpoints.after)
    with checkpoints:
        return trainer.run(batches(start.step if start else 0), *names, steps=steps, resume=resume)
