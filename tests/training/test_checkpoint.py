"""Checkpoints: a training goes on from one as if nothing had happened, and nothing that is wrong with one stops it."""

import copy
import errno
import itertools
import json
import math
import re
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from support.rows import garble
from torch import nn

from pet.config.schema import Optimisation
from pet.errors import NotFinite
from pet.store.files import digest_file
from pet.store.manifest import STATE, facts_of
from pet.training import checkpoint
from pet.training.checkpoint import LEAST_RATIO, Checkpoint, CheckpointManager, Snapshot, train_saved
from pet.training.device import Runtime
from pet.training.optim import FusedAdamW, MasterAdamW
from pet.training.reporter import Silent
from pet.training.trainer import State, Trainer, TrainingReport

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
STEPS = 24
SETTINGS = Optimisation(learning_rate=0.02, steps=STEPS, warmup_steps=3, weight_decay=0.1)
NAMES = ("p0-r0", "p1-r0")

Rows = tuple[torch.Tensor, torch.Tensor]


class Training:
    """Two members of a sort, trained together with dropout. `low`: with weights in fp32 beside those that compute."""

    def __init__(self, folder: Path, names: tuple[str, ...] = NAMES, low: bool = False, frozen: bool = False) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Dropout(0.3), nn.Linear(8, 2))
        self.model[0].weight.requires_grad_(not frozen)
        self.used = copy.deepcopy(self.model) if low else None
        self.said: list[str] = []
        self.calls = 0
        runtime = Runtime(CPU, None, 2048, Silent())
        trained = self.model if self.used is None else self.used
        master = None if self.used is None else self.model
        self.trainer: Trainer[Rows] = Trainer(trained, SETTINGS, self.losses, runtime, master=master)
        self.checkpoint = Checkpoint(folder, self.model, self.trainer.optimizer, runtime, names)
        self.checkpoints = CheckpointManager(self.checkpoint, 0, "finetune", self.said.append)
        self.names = names

    def losses(self, given: Rows) -> dict[str, torch.Tensor]:
        """One loss for each output, and another by the way."""
        rows, wanted = given
        found = ((self.model if self.used is None else self.used)(rows) - wanted).square().mean(0)
        return {"loss": found, "more": found.detach() * 2}

    def restored(self) -> None:
        """What computes is given the weights."""
        self.calls += 1
        if self.used is not None:
            self.used.load_state_dict(self.model.state_dict())

    def run(self) -> list[TrainingReport]:
        return train_saved(self.trainer, self.checkpoints, draw, *self.names, restored=self.restored)

    def stop_after(self, steps: int) -> None:
        """Train so far and no farther, saved."""

        def batches(done: int) -> Iterator[Rows]:
            yield from islice(draw(done), steps - done)
            raise RuntimeError("stopped")

        with pytest.raises(RuntimeError, match="stopped"):
            train_saved(self.trainer, self.checkpoints, batches, *self.names, restored=self.restored)
        torch.manual_seed(99)  # what another process would begin with

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that was trained, copied."""
        everything = self.model.state_dict() | {f"o.{key}": one for key, one in self.trainer.optimizer.state().items()}
        return {name: one.clone() for name, one in everything.items()}


def draw(done: int) -> Iterator[Rows]:
    """Batches for ever, those after so many."""
    number = done
    while True:
        generator = torch.Generator().manual_seed(number)
        yield torch.randn(5, 6, generator=generator), torch.randn(5, 2, generator=generator)
        number += 1


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


# ---- what is put back ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 10, 13, STEPS - 1])
@pytest.mark.parametrize(
    "how", [{}, {"low": True}, {"frozen": True}, {"low": True, "frozen": True}], ids=["plain", "low", "frozen", "both"]
)
def test_a_training_that_was_stopped_anywhere_ends_as_if_nothing_had_happened(tmp_path, steps, how):
    whole = Training(tmp_path / "whole", **how)
    expected = whole.run()
    assert len(expected) == 2 and expected[0].losses != expected[1].losses
    Training(tmp_path / "stopped", **how).stop_after(steps)
    again = Training(tmp_path / "stopped", **how)
    assert again.run() == expected
    assert same(again.tensors(), whole.tensors())
    assert again.said[0] == f"finetune: going on after step {steps}"


def test_weights_moments_random_state_and_losses_are_exactly_those_that_were_saved(tmp_path):
    first = Training(tmp_path)
    first.stop_after(13)
    reports = [TrainingReport([10], {"loss": [0.5, 0.25][number : number + 1]}) for number in range(2)]
    recent = [{"more": torch.randn(2), "loss": torch.randn(2)} for _ in range(12)]
    random = torch.get_rng_state()
    first.checkpoint.write(first.checkpoint.take(State(13, reports, recent), 123.5))
    expected = first.tensors()
    torch.manual_seed(1)
    second = Training(tmp_path)
    assert not same(second.tensors(), expected)
    found = second.checkpoint.restore()
    assert found is not None
    state, seconds = found
    assert (state.step, seconds, state.reports) == (13, 123.5, reports)
    assert len(state.recent) == 12, "in the order of the steps, also beyond nine"
    assert all(same(one, other) for one, other in zip(state.recent, recent, strict=True))
    assert {tuple(one) for one in state.recent} == {("more", "loss")}, "and so in that in which they were"
    assert same(second.tensors(), expected)
    assert torch.equal(torch.get_rng_state(), random)


def test_what_is_frozen_is_not_saved(tmp_path):
    Training(tmp_path, frozen=True).stop_after(2)
    saved = load_file(tmp_path / "state-2.safetensors")
    assert not any(name.startswith("model.0.weight") for name in saved)
    assert "model.0.bias" in saved


def test_there_is_one_state_at_a_time_and_facts_for_people(tmp_path):
    Training(tmp_path).stop_after(7)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state-7.safetensors", STATE]
    facts = facts_of(tmp_path)
    assert (facts["step"], facts["names"], facts["file"]) == (7, list(NAMES), "state-7.safetensors")
    assert facts["sha256"] == digest_file(tmp_path / "state-7.safetensors")
    assert facts_of(tmp_path / "nowhere") is None


def test_what_computes_is_given_the_weights_only_when_some_were_put_back(tmp_path):
    fresh = Training(tmp_path)
    fresh.stop_after(2)
    assert fresh.calls == 0
    again = Training(tmp_path)
    again.run()
    assert again.calls == 1


# ---- what is of no use ---------------------------------------------------------------------------------------------


def change_facts(folder: Path, **changes: Any) -> None:
    facts = json.loads((folder / STATE).read_text())
    (folder / STATE).write_text(json.dumps(facts | changes))


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """And the digest with them."""
    path = next(folder.glob("state-*.safetensors"))
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    change_facts(folder, sha256=digest_file(path))


HARM: dict[str, Callable[[Path], object]] = {
    "facts cut short": lambda folder: (folder / STATE).write_text((folder / STATE).read_text()[:-9]),
    "facts are bytes": lambda folder: garble(folder / STATE),
    "facts are deep": lambda folder: (folder / STATE).write_text("[" * 100_000),
    "facts are a list": lambda folder: (folder / STATE).write_text("[]"),
    "facts lack some": lambda folder: (folder / STATE).write_text("{}"),
    "facts of another kind": lambda folder: change_facts(folder, reports=[{"weeks": []}]),
    "no state": lambda folder: next(folder.glob("state-*.safetensors")).unlink(),
    "state changed": lambda folder: garble(next(folder.glob("state-*.safetensors"))),
    "state cut short": lambda folder: next(folder.glob("state-*.safetensors")).write_bytes(b""),
    "no tensors": lambda folder: (
        next(folder.glob("state-*.safetensors")).write_bytes(b"none"),
        change_facts(folder, sha256=digest_file(next(folder.glob("state-*.safetensors")))),
    ),
    "a weight is missing": lambda folder: change_tensors(folder, lambda tensors: tensors.pop("model.3.bias")),
    "no random state": lambda folder: change_tensors(folder, lambda tensors: tensors.pop("random.cpu")),
}


@pytest.mark.parametrize("harm", HARM)
def test_a_damaged_checkpoint_is_said_and_training_starts_anew(tmp_path, harm):
    whole = Training(tmp_path / "whole")
    expected = whole.run()
    Training(tmp_path / "stopped").stop_after(13)
    HARM[harm](tmp_path / "stopped")
    again = Training(tmp_path / "stopped")
    before = copy.deepcopy(again.model.state_dict())
    with pytest.raises(ValueError):
        again.checkpoint.restore()
    assert same(again.model.state_dict(), before), "nothing of it was put in place"
    again = Training(tmp_path / "stopped")
    assert again.run() == expected
    assert again.said[0].startswith("finetune: the checkpoint is of no use, training starts anew: ")
    assert same(again.tensors(), whole.tensors())


@pytest.mark.parametrize("low", [False, True])
def test_a_checkpoint_of_another_precision_is_said_and_training_starts_anew(tmp_path, low):
    """`auto` may be fp32 on one machine and bf16 on the next, which go by the same name."""
    whole = Training(tmp_path / "whole", low=low)
    expected = whole.run()
    other = Training(tmp_path / "stopped", low=not low)
    assert {type(one.trainer.optimizer) for one in (whole, other)} == {FusedAdamW, MasterAdamW}
    other.stop_after(13)
    again = Training(tmp_path / "stopped", low=low)
    assert again.run() == expected
    assert "training starts anew: it was made in another precision" in again.said[0]
    assert same(again.tensors(), whole.tensors())


@pytest.mark.parametrize("names", [("p1-r0", "p0-r0"), ("p0-r0", "p0-r1")], ids=["order", "others"])
def test_other_members_do_not_go_on_from_it(tmp_path, names):
    Training(tmp_path).stop_after(13)
    again = Training(tmp_path, names)
    assert again.checkpoints.begin() is None
    assert again.said == []
    assert not tmp_path.exists()


def test_without_a_checkpoint_nothing_is_said(tmp_path):
    training = Training(tmp_path / "none")
    assert training.checkpoints.begin() is None
    assert training.said == []


def test_a_name_in_the_facts_does_not_lead_out_of_the_folder(tmp_path):
    Training(tmp_path / "one").stop_after(3)
    (tmp_path / "one" / "state-3.safetensors").rename(tmp_path / "state-3.safetensors")
    change_facts(tmp_path / "one", file="../state-3.safetensors")
    with pytest.raises(ValueError, match="cannot be read"):
        Training(tmp_path / "one").checkpoint.restore()


# ---- disks that are full -------------------------------------------------------------------------------------------


FULL = [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("No space left on device (os error 28)")]


def failing(monkeypatch: pytest.MonkeyPatch, problem: Exception, fails: Callable[[int], bool]) -> None:
    """States of some steps are written in part and no farther."""

    def write(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if fails(int(path.stem.partition("-")[2])):
            path.write_bytes(b"half")
            raise problem
        save_file(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", write)


@pytest.mark.parametrize("problem", FULL, ids=["told by Python", "told by safetensors"])
def test_on_a_full_disk_the_training_goes_on_and_says_so_once(tmp_path, monkeypatch, problem):
    expected = Training(tmp_path / "whole").run()
    failing(monkeypatch, problem, lambda step: True)
    training = Training(tmp_path / "full")
    assert training.run() == expected
    (line,) = training.said
    assert line.startswith("finetune: no checkpoint can be saved (")
    assert "No space left on device" in line
    assert line.endswith("; the training goes on without")
    assert list((tmp_path / "full").iterdir()) == [], "half a state takes no room from what is made"


def test_the_checkpoint_before_stays_when_the_next_cannot_be_saved(tmp_path, monkeypatch):
    whole = Training(tmp_path / "whole")
    expected = whole.run()
    with monkeypatch.context() as patch:
        failing(patch, FULL[0], lambda step: step > 12)
        Training(tmp_path / "full").stop_after(15)
    again = Training(tmp_path / "full")
    assert again.run() == expected
    assert again.said[0] == "finetune: going on after step 12"
    assert same(again.tensors(), whole.tensors())


def test_that_there_is_no_room_is_said_again_when_there_was_some_between(tmp_path, monkeypatch):
    failing(monkeypatch, FULL[0], lambda step: step in (3, 4, 9, 10))
    training = Training(tmp_path)
    training.run()
    assert len(training.said) == 2


# ---- when it is time -----------------------------------------------------------------------------------------------


class Clock:
    """A clock that goes on when told, and by `cost` at every state that is written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cost: float) -> None:
        self.now, self.cost = 1000.0, cost
        self.saved: list[tuple[float, int]] = []
        monkeypatch.setattr(checkpoint, "time", SimpleNamespace(perf_counter=lambda: self.now))
        monkeypatch.setattr(Checkpoint, "write", self.write)

    def write(self, snapshot: Snapshot) -> None:
        self.now += self.cost
        self.saved.append((self.now - 1000, snapshot.facts["step"]))

    def train(self, training: Training, steps: int, each: float = 1.0) -> None:
        """So many steps, which take a second each."""
        for step in range(1, steps + 1):
            self.now += each
            training.checkpoints.after(step, lambda step=step: State(step, [], []), False)


@pytest.mark.parametrize(("minutes", "cost", "seconds"), [(5, 0.0, 300), (5, 5.5, 300), (5, 30.0, 30 * LEAST_RATIO)])
def test_between_two_checkpoints_are_the_minutes_asked_for_or_fifty_times_what_one_takes(
    tmp_path, monkeypatch, minutes, cost, seconds
):
    clock = Clock(monkeypatch, cost)
    training = Training(tmp_path)
    training.checkpoints.minutes = minutes
    clock.train(training, 5000)
    assert clock.saved[0] == (300 + cost, 300), "the first, whose cost is not known, when the minutes are over"
    between = {later - cost - earlier for (earlier, _), (later, _) in zip(clock.saved, clock.saved[1:], strict=False)}
    assert between == {seconds}
    assert len(clock.saved) * cost <= 0.02 * 5000 + cost, "2 % of the time"


def test_with_no_minutes_every_step_is_saved_whatever_that_takes(tmp_path, monkeypatch):
    clock = Clock(monkeypatch, 30.0)
    clock.train(Training(tmp_path), 5)
    assert [step for _, step in clock.saved] == [1, 2, 3, 4, 5]


def test_when_asked_to_stop_it_is_saved_however_early_and_that_is_said(tmp_path, monkeypatch):
    clock = Clock(monkeypatch, 1.0)
    training = Training(tmp_path)
    training.checkpoints.minutes = 60
    training.checkpoints.after(1234, lambda: State(1234, [], []), True)
    assert [step for _, step in clock.saved] == [1234]
    assert training.said == ["finetune: saved after step 1,234"]


def test_the_seconds_of_earlier_processes_are_counted(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr(checkpoint, "time", SimpleNamespace(perf_counter=lambda: now))
    first = Training(tmp_path)
    now = 40.0
    first.stop_after(3)
    assert facts_of(tmp_path)["seconds"] == 40
    now = 1000.0
    second = Training(tmp_path)
    second.checkpoints.begin()
    now = 1005.0
    assert second.checkpoints.spent() == 45


# ---- beside a GPU that goes on -------------------------------------------------------------------------------------


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """A training as on a GPU: what is saved is a copy, and written in a thread, when `go` lets it."""
    training, go, written = Training(tmp_path), threading.Event(), []
    take, write = Checkpoint.take, Checkpoint.write

    def wait_and_write(self, snapshot):
        assert go.wait(30)
        written.append(snapshot.facts["step"])
        write(self, snapshot)

    monkeypatch.setattr(Checkpoint, "take", lambda *arguments: copy.deepcopy(take(*arguments)))
    monkeypatch.setattr(Checkpoint, "write", wait_and_write)
    training.checkpoints.in_background = True
    return training, go, written


def test_a_training_goes_on_while_it_is_written_and_ends_when_it_is(beside, tmp_path):
    training, go, written = beside
    steps = []

    def batches(done: int) -> Iterator[Rows]:
        for number, one in enumerate(draw(done)):
            steps.append(number)
            if number == STEPS - 1:
                assert written == []
                go.set()
            yield one

    train_saved(training.trainer, training.checkpoints, batches, *NAMES, restored=training.restored)
    assert written[0] == 1, "what was begun after the first step"
    assert len(written) in (1, 2), "and while it was written, nothing else"
    assert facts_of(tmp_path)["step"] == written[-1]


def test_what_was_taken_on_the_way_is_what_is_gone_on_with(beside, tmp_path):
    _, go, written = beside
    whole = Training(tmp_path / "whole")
    whole.checkpoints.minutes = 60
    expected = whole.run()
    go.set()
    training = Training(tmp_path)
    training.checkpoints.in_background = True
    training.stop_after(17)
    again = Training(tmp_path)
    again.checkpoints.minutes = 60
    assert again.run() == expected
    assert same(again.tensors(), whole.tensors())
    assert again.said == [f"finetune: going on after step {written[-1]}"]


def test_a_disk_that_is_full_is_said_once_beside_a_gpu_too(beside, monkeypatch):
    training, _, _ = beside

    def full(self, snapshot):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Checkpoint, "write", full)
    training.run()
    assert len(training.said) == 1
    assert "No space left on device" in training.said[0]


def test_asked_to_stop_it_is_written_before_that_is_said(beside):
    training, go, written = beside
    go.set()
    with training.checkpoints:
        training.checkpoints.after(7, lambda: State(7, [], []), True)
    assert written == [7]
    assert training.said == ["finetune: saved after step 7"]


# ---- numbers that are none -----------------------------------------------------------------------------------------


def spoil(training: Training, step: int) -> None:
    """From a step on, the first output's loss is NaN, and so is its gradient."""
    steps, losses = itertools.count(1), training.trainer.losses

    def spoilt(given: Rows) -> dict[str, torch.Tensor]:
        factor = torch.tensor([math.nan if next(steps) >= step else 1.0, 1.0])
        return {name: one * factor for name, one in losses(given).items()}

    training.trainer.losses = spoilt


@pytest.mark.parametrize("step", [4, 10, 11])
def test_no_checkpoint_goes_on_from_nan_and_the_next_process_says_the_same(tmp_path, step):
    """Saved after every step."""
    first = Training(tmp_path)
    spoil(first, step)
    with pytest.raises(NotFinite, match=f"p0-r0: the loss became nan in step {step} of {STEPS}") as said:
        first.run()
    assert facts_of(tmp_path)["step"] == step - 1
    assert not any("cannot be read" in one or "no checkpoint" in one for one in first.said)
    again = Training(tmp_path)
    spoil(again, 1)
    with pytest.raises(NotFinite, match=re.escape(str(said.value))):
        again.run()
    assert again.said == [f"finetune: going on after step {step - 1}"]


def test_asked_to_stop_with_nan_the_training_says_nothing_was_saved(tmp_path):
    stopped = Training(tmp_path)
    stopped.checkpoints.after(5, lambda: None, True)
    assert (stopped.said, list(tmp_path.iterdir())) == ([], [])


@pytest.mark.parametrize("what", ["model.0.bias", "recent.000.000.loss"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_checkpoint_that_an_older_version_made_of_nan_is_not_gone_on_from(tmp_path, what, value):
    Training(tmp_path).stop_after(7)
    path = tmp_path / "state-7.safetensors"
    tensors = load_file(path)
    tensors[what].view(-1)[0] = value
    save_file(tensors, path)
    facts = json.loads((tmp_path / STATE).read_text()) | {"sha256": digest_file(path)}
    (tmp_path / STATE).write_text(json.dumps(facts))
    again = Training(tmp_path)
    again.run()
    assert "of no use, training starts anew: a weight or a loss in it is not finite" in again.said[0]
