"""Trackers: what they are told, and that nothing they do can stop a run."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from accelerate import tracking as accelerate_tracking
from accelerate.state import PartialState

from pet.config.resolve import resolve_settings
from pet.errors import SettingsError
from pet.pipeline.trackers import Tracker, flatten, has_wandb_key, open_tracker

pytestmark = pytest.mark.slow

SUMMARY = {"task": "weather", "scores": {"student": {"value": 86.0, "low": 84.4}, "members": [{"value": 1.0}]}}


class Recorder:
    """A backend that remembers, and raises at the call whose number it is given."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.calls: list[Any] = []
        self._fails_at = fails_at

    def log(self, values: Any) -> None:
        self._remember(values)

    def finish(self) -> None:
        self._remember("finish")

    def _remember(self, call: Any) -> None:
        self.calls.append(call)
        if self._fails_at == len(self.calls):
            raise ConnectionError("no route to host")


@pytest.fixture
def warned() -> list[str]:
    return []


# ---- what a backend is told ----------------------------------------------------------------------------------------


def test_numbers_get_the_name_of_their_member_and_their_own_step(warned):
    backend = Recorder()
    with Tracker(backend, warned.append) as tracker:
        tracker.log("p0-r1", {"loss": 0.5, "rate": 1e-5}, 1)
        tracker.log("p2-r0", {"loss": 0.7}, 1)
        tracker.summarise(SUMMARY)
    assert backend.calls == [
        {"p0-r1/loss": 0.5, "p0-r1/rate": 1e-5, "p0-r1/step": 1},
        {"p2-r0/loss": 0.7, "p2-r0/step": 1},
        {"scores/student": 86.0},
        "finish",
    ]
    assert warned == []


def test_a_tracker_that_is_closed_is_told_no_more(warned):
    backend = Recorder()
    with Tracker(backend, warned.append) as tracker:
        pass
    tracker.log("p0-r0", {"loss": 1.0}, 1)
    assert backend.calls == ["finish"]


def test_an_error_of_the_run_still_closes_the_tracker_and_is_not_hidden(warned):
    backend = Recorder()
    with pytest.raises(KeyError, match="of the run"), Tracker(backend, warned.append):
        raise KeyError("of the run")
    assert backend.calls == ["finish"]


# ---- trackers that fail --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails_at", [1, 2, 3, 4], ids=["at first", "later", "at the summary", "at the end"])
def test_a_backend_that_raises_is_dropped_with_one_warning_and_never_stops_a_run(fails_at, warned):
    backend = Recorder(fails_at)
    with Tracker(backend, warned.append) as tracker:
        tracker.log("p0-r0", {"loss": 1.0}, 1)
        tracker.log("p0-r0", {"loss": 0.9}, 2)
        tracker.summarise(SUMMARY)
    assert len(backend.calls) == fails_at, "it is left alone from then on"
    assert len(warned) == 1
    assert "ConnectionError: no route to host" in warned[0]
    assert "off from here on" in warned[0]


def test_ctrl_c_is_not_a_failure_of_the_tracker(warned):
    class Interrupted(Recorder):
        def log(self, values: Any) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Tracker(Interrupted(), warned.append) as tracker:
        tracker.log("p0-r0", {"loss": 1.0}, 1)
    assert warned == []


def test_an_unknown_kind_is_a_mistake_of_the_user(tmp_path, warned):
    with pytest.raises(SettingsError, match="unknown tracker 'mlflow'; expected one of none, wandb, tensorboard"):
        open_tracker("mlflow", "mine", {}, tmp_path, warned.append)


def test_no_tracker_ignores_everything_and_writes_nothing(tmp_path, warned):
    with open_tracker("none", "mine", {}, tmp_path, warned.append) as tracker:
        tracker.log("p0-r0", {"loss": 1.0}, 1)
        tracker.summarise(SUMMARY)
    assert (list(tmp_path.iterdir()), warned) == ([], [])


def fail_to_start(*_: Any, **__: Any) -> None:
    raise OSError("disk full")


@pytest.mark.parametrize(("kind", "backend"), [("wandb", "WandBTracker"), ("tensorboard", "TensorBoardTracker")])
def test_a_tracker_that_cannot_start_is_said_once_and_the_run_goes_on(kind, backend, tmp_path, warned, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(accelerate_tracking, backend, fail_to_start)
    with open_tracker(kind, "mine", {}, tmp_path, warned.append) as tracker:
        tracker.log("p0-r0", {"loss": 1.0}, 1)
        tracker.summarise(SUMMARY)
    assert warned == [f"tracker {kind} could not be started (OSError: disk full); the run goes on without it"]


def test_tensorboard_that_is_not_installed_is_said_and_the_run_goes_on(tmp_path, warned, monkeypatch):
    for name in ("tensorboard", "tensorboardX"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with open_tracker("tensorboard", "mine", {"a": 1}, tmp_path, warned.append) as tracker:
        tracker.log("p0-r0", {"loss": 1.0}, 1)
    assert len(warned) == 1
    assert warned[0].startswith("tracker tensorboard could not be started (ModuleNotFoundError: ")
    assert "; pip install tensorboardX; the run goes on" in warned[0]


# ---- TensorBoard ---------------------------------------------------------------------------------------------------


class FakeTensorBoard:
    """accelerate's TensorBoard tracker, with its one rule for settings: they are flat and plain."""

    def __init__(self, run_name: str, logging_dir: str) -> None:
        self.place = (run_name, logging_dir)
        self.calls: list[Any] = []
        started.append(self)

    def start(self) -> None:
        self.calls.append("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        for value in values.values():
            if not isinstance(value, int | float | str | bool):
                raise ValueError("value should be one of int, float, str, bool, or torch.Tensor")
        self.calls.append(values)

    def log(self, values: dict[str, float], step: int) -> None:
        self.calls.append((values, step))

    def finish(self) -> None:
        self.calls.append("finish")


started: list[FakeTensorBoard] = []


def test_tensorboard_gets_the_step_of_the_values_and_settings_it_can_take(tmp_path, warned, monkeypatch):
    monkeypatch.setattr(accelerate_tracking, "TensorBoardTracker", FakeTensorBoard)
    started.clear()
    config = resolve_settings("demo").model_dump(mode="json")
    with open_tracker("tensorboard", "mine", config, tmp_path, warned.append) as tracker:
        tracker.log("p0-r0", {"loss": 1.0}, 20)
        tracker.summarise(SUMMARY)
    assert warned == []
    (backend,) = started
    assert backend.place == ("mine", str(tmp_path / "tensorboard"))
    start, stored, *rest = backend.calls
    assert start == "start"
    assert stored["finetune.steps"] == config["finetune"]["steps"]
    assert rest == [({"p0-r0/loss": 1.0}, 20), ({"scores/student": 86.0}, 0), "finish"]


def test_nested_settings_become_flat_and_lose_nothing():
    nested = {"seed": 1, "a": {"rate": 0.1, "on": True, "b": {"name": "x"}}, "patterns": [0, 1], "model": None}
    assert flatten(nested) == {
        **{"seed": 1, "a.rate": 0.1, "a.on": True, "a.b.name": "x"},
        **{"patterns": "[0, 1]", "model": "None"},
    }


# ---- Weights & Biases ----------------------------------------------------------------------------------------------


@pytest.fixture
def no_wandb_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder in which nobody ever logged in; what is set in the environment is undone after the test."""
    for name in [name for name in os.environ if name.startswith("WANDB_") or name == "XDG_CACHE_HOME"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "")  # remembered, so that it is undone
    monkeypatch.delenv("WANDB_MODE")
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / ".netrc"))
    return home


def test_a_key_is_found_in_the_environment_or_where_login_wrote_it(no_wandb_key, monkeypatch):
    assert not has_wandb_key()
    netrc = no_wandb_key / ".netrc"
    netrc.write_text("machine example.org login me password secret\n")
    assert not has_wandb_key(), "a key for something else"
    netrc.write_text("machine api.wandb.ai login user password 0000\n")
    assert has_wandb_key()
    monkeypatch.delenv("NETRC")
    assert has_wandb_key(), "by default in the home folder"
    netrc.unlink()
    assert not has_wandb_key()
    monkeypatch.setenv("WANDB_API_KEY", "0000")
    assert has_wandb_key()


class FakeWandb(Recorder):
    """accelerate's W&B tracker."""

    def __init__(self, run_name: str, **settings: Any) -> None:
        super().__init__()
        self.calls += [run_name, settings]

    def start(self) -> None:
        self.calls.append(os.environ.get("WANDB_MODE"))

    def store_init_configuration(self, values: Any) -> None:
        self.calls.append(values)


@pytest.mark.parametrize("mode", ["online", "disabled"])
def test_a_mode_that_the_user_chose_stays(mode, tmp_path, warned, no_wandb_key, monkeypatch):
    monkeypatch.setattr(accelerate_tracking, "WandBTracker", FakeWandb)
    monkeypatch.setenv("WANDB_MODE", mode)
    open_tracker("wandb", "mine", {"seed": 1}, tmp_path / "runs", warned.append)
    assert (os.environ["WANDB_MODE"], warned) == (mode, [])


def test_a_key_means_that_nothing_is_said_and_nothing_is_changed(tmp_path, warned, no_wandb_key, monkeypatch):
    monkeypatch.setattr(accelerate_tracking, "WandBTracker", FakeWandb)
    monkeypatch.setenv("WANDB_API_KEY", "0000")
    open_tracker("wandb", "mine", {}, tmp_path / "runs", warned.append)
    assert "WANDB_MODE" not in os.environ
    assert warned == []


@pytest.fixture
def no_accelerate_state() -> Iterator[None]:
    """As in a run with `--device cpu`: nothing has made accelerate's state, which its trackers cannot do without."""
    before = dict(PartialState._shared_state)
    PartialState._reset_state()
    yield
    PartialState._shared_state.update(before)


@pytest.fixture
def real_wandb(no_wandb_key: Path) -> Iterator[ModuleType]:
    """wandb itself; its service ends with the test."""
    import wandb

    yield wandb
    wandb.teardown()


def test_wandb_without_a_key_writes_offline_and_says_so(tmp_path, warned, real_wandb, no_accelerate_state, capfd):
    folder = tmp_path / "runs"
    config = resolve_settings("demo").model_dump(mode="json")
    with open_tracker("wandb", "mine", config, folder, warned.append) as tracker:
        tracker.log("p0-r0", {"loss": 0.123456789}, 1)
        tracker.summarise(SUMMARY)
    assert warned == [f"no W&B key is set: writing offline to {folder / 'wandb'}; upload it later with `wandb sync`"]
    assert real_wandb.run is None, "finished"
    real_wandb.teardown()  # its service writes on its own, on a busy machine after the run is finished
    (run,) = (folder / "wandb").glob("offline-run-*")
    (log,) = run.glob("run-*.wandb")
    written = log.read_bytes()
    for wanted in (b"p0-r0/loss", b"0.123456789", b"scores/student", b"pool_per_label", b"mine"):
        assert wanted in written, wanted
    assert capfd.readouterr().out == "", "standard output belongs to the results"
