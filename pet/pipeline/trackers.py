"""Weights & Biases or TensorBoard, through accelerate's trackers. A tracker that fails never stops a run."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pet.errors import SettingsError

KINDS = ("none", "wandb", "tensorboard")
PROJECT = "pet"


class Tracker:
    """Numbers by name and step. `warn` is told once when the tracker fails."""

    def __init__(self, backend: Any, warn: Callable[[str], None]) -> None:
        self._backend = backend
        self._warn = warn

    def log(self, name: str, values: Mapping[str, float], step: int) -> None:
        """Log `name/value` for each value. The step is a value of its own: each member starts again at 1."""
        named = {f"{name}/{key}": value for key, value in {**values, "step": step}.items()}
        self._try(lambda backend: backend.log(named))

    def summarise(self, summary: Mapping[str, Any]) -> None:
        """Log the scores of a whole run."""
        scores = {name: one["value"] for name, one in summary["scores"].items() if isinstance(one, Mapping)}
        self._try(lambda backend: backend.log({f"scores/{name}": value for name, value in scores.items()}))

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, *_: object) -> None:
        self._try(lambda backend: backend.finish())
        self._backend = None

    def _try(self, action: Callable[[Any], None]) -> None:
        if self._backend is None:
            return
        try:
            action(self._backend)
        except Exception as problem:  # whatever a tracker does, the run goes on
            self._backend = None
            self._warn(f"the tracker failed and is off from here on ({type(problem).__name__}: {problem})")


def open_tracker(kind: str, name: str, config: Mapping[str, Any], folder: Path, warn: Callable[[str], None]) -> Tracker:
    """Start a tracker that writes below `folder`; `none` gives one that ignores everything.

    W&B runs offline when there is no key (`wandb sync` uploads later). A tracker that cannot start is told to `warn`.

    Raises:
        SettingsError: unknown kind.
    """
    check_kind(kind)
    backend: Any = None
    try:
        if kind != "none":
            from accelerate import PartialState

            PartialState()  # accelerate's trackers report through it, and a run on a named device has not made it
        if kind == "wandb":
            backend = start_wandb(name, config, folder, warn)
        elif kind == "tensorboard":
            backend = start_tensorboard(name, config, folder)
    except Exception as problem:  # whatever a tracker does, the run goes on
        remedy = f"; pip install {problem.name}" if isinstance(problem, ModuleNotFoundError) else ""
        warn(
            f"tracker {kind} could not be started ({type(problem).__name__}: {problem}){remedy}; "
            "the run goes on without it"
        )
    return Tracker(backend, warn)


def check_kind(kind: str) -> None:
    """Refuse a tracker that is none.

    Raises:
        SettingsError: names those there are.
    """
    if kind not in KINDS:
        raise SettingsError(f"unknown tracker {kind!r}; expected one of {', '.join(KINDS)}")


def start_wandb(name: str, config: Mapping[str, Any], folder: Path, warn: Callable[[str], None]) -> Any:
    """A W&B run, offline when nobody is logged in."""
    from accelerate.tracking import WandBTracker

    if not os.environ.get("WANDB_MODE") and not has_wandb_key():
        os.environ["WANDB_MODE"] = "offline"
        warn(f"no W&B key is set: writing offline to {folder / 'wandb'}; upload it later with `wandb sync`")
    folder.mkdir(parents=True, exist_ok=True)
    backend = WandBTracker(PROJECT, name=name, dir=str(folder), settings={"silent": True})
    backend.start()
    backend.store_init_configuration(dict(config))
    return backend


def has_wandb_key() -> bool:
    """Whether W&B would find a key: in the environment or in the netrc file it writes at login."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return netrc.is_file() and "wandb" in netrc.read_text(errors="ignore")


def start_tensorboard(name: str, config: Mapping[str, Any], folder: Path) -> Any:
    """A TensorBoard writer."""
    from accelerate.tracking import TensorBoardTracker

    backend = TensorBoardTracker(name, logging_dir=str(folder / "tensorboard"))
    backend.start()
    backend.store_init_configuration(flatten(config))
    return _Stepping(backend)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Nested settings as `section.field` -> value, the only kind TensorBoard takes; what is no number becomes text."""
    flat: dict[str, bool | int | float | str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, bool | int | float) else str(value)
    return flat


class _Stepping:
    """TensorBoard needs a global step: the one of the values, as they are logged under a name of their own."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def log(self, values: Mapping[str, float]) -> None:
        step = next((int(value) for name, value in values.items() if name.endswith("/step")), 0)
        self._backend.log({name: value for name, value in values.items() if not name.endswith("/step")}, step=step)

    def finish(self) -> None:
        self._backend.finish()
