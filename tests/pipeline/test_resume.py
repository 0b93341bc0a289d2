"""Asked to stop in the middle of a training, a run saves it, says how to go on, and does: to the same bytes."""

import os
import signal
from pathlib import Path

import pytest
from support.killing import differences
from support.rows import killable, pet

from pet.training.checkpoint import CheckpointManager

pytestmark = pytest.mark.slow

SAVED = "--set=runtime.checkpoint_minutes=5"
"""Nothing is saved but when a signal comes."""


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> list[list[object]]:
    return killable(tmp_path_factory.mktemp("ground"))


@pytest.fixture(scope="module")
def whole(commands, tmp_path_factory) -> list[Path]:
    """What each makes undisturbed, with the precision that computes on a copy too; never write into it."""
    found = []
    for number, command in enumerate(commands):
        found.append(tmp_path_factory.mktemp("whole") / str(number))
        pet(*command, "--store", found[-1], SAVED)
    return found


def stop_at(monkeypatch: pytest.MonkeyPatch, title: str, step: int, number: signal.Signals) -> None:
    """Send the process a signal while a step of a training is computed."""
    after = CheckpointManager.after

    def stop(self: CheckpointManager, done: int, state: object, stopping: bool) -> None:
        after(self, done, state, stopping)  # type: ignore[arg-type]
        if self.title == title and done == step - 1:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(CheckpointManager, "after", stop)


@pytest.mark.parametrize(
    ("which", "title", "step", "number"),
    [
        (0, "adapt", 5, signal.SIGTERM),
        (0, "finetune p0-r1", 7, signal.SIGINT),
        (0, "finetune g1-p1-r0", 2, signal.SIGTERM),
        (0, "student", 12, signal.SIGINT),
        (0, "supervised", 13, signal.SIGTERM),
        (1, "finetune", 7, signal.SIGINT),
        (2, "pretrain", 7, signal.SIGTERM),
    ],
    ids=lambda value: value.name if isinstance(value, signal.Signals) else str(value),
)
def test_a_training_that_was_asked_to_stop_goes_on_and_ends_in_the_same_bytes(
    commands, whole, tmp_path, monkeypatch, which, title, step, number
):
    command = [*commands[which], "--store", tmp_path / "store", SAVED]
    with monkeypatch.context() as patch:
        stop_at(patch, title, step, number)
        stopped = pet(*command, code=128 + number)
    assert f"{title}: saved after step {step}" in stopped.stderr
    assert "the same command goes on from there" in stopped.stderr
    assert f"{title}: going on after step {step}" in pet(*command).stderr
    assert differences(tmp_path / "store", whole[which]) == []


def test_where_a_copy_of_lower_precision_computes_it_goes_on_as_well(commands, tmp_path, monkeypatch):
    command = [*commands[1], SAVED, "--set=finetune.method=full", "--precision=bf16"]
    command = [one for one in command if one not in ("--set=finetune.method=lora",)]
    pet(*command, "--store", tmp_path / "whole")
    for title, step in (("finetune p1-r1", 3), ("student", 4)):
        with monkeypatch.context() as patch:
            stop_at(patch, title, step, signal.SIGTERM)
            pet(*command, "--store", tmp_path / "store", code=143)
    pet(*command, "--store", tmp_path / "store")
    assert differences(tmp_path / "store", tmp_path / "whole") == []
