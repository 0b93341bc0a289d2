"""Options that several commands share: each has its name, its default and its help here."""

from collections.abc import Callable
from typing import Any

from click import Context, Parameter, option

from pet.errors import SettingsError

Command = Callable[..., Any]


def not_empty(context: Context, parameter: Parameter, store: str) -> str:
    """The store.

    Raises:
        SettingsError: it has no name.
    """
    if not store:
        raise SettingsError("--store is empty; give the folder that keeps the artifacts")
    return store


STORE: dict[str, Any] = {"envvar": "PET_STORE", "default": "runs", "show_default": True, "callback": not_empty}
MANY: dict[str, Any] = {"multiple": True, "callback": lambda context, parameter, given: given or None}

OPTIONS: dict[str, Callable[[Command], Command]] = {
    "task": option("--task", help="Task card: a shipped name or the path of a task.yaml."),
    "model": option("--model", help="Masked language model: `mini`, a folder or a hub id."),
    "train-examples": option("--train-examples", type=int, help="Number of labelled texts; 0 for zero-shot."),
    "train-file": option(
        "--train-file", **MANY, help="CSV of texts labelled by hand, as `pet suggest` writes it; may be repeated."
    ),
    "seeds": option(
        "--seed", "seeds", type=int, multiple=True, help="Seed of the draw and the training; repeat for several."
    ),
    "set": option(
        "--set", "assignments", multiple=True, metavar="A.B=C", help="Override any setting; may be repeated."
    ),
    "data": option("--data", help="Folder with the task's files."),
    "store": option("--store", **STORE, help="Folder of all artifacts."),
    "verify": option(
        "--verify", is_flag=True, help="Read every file of what is reused; what is damaged is made again."
    ),
    "device": option("--device", help="auto, cpu, cuda, cuda:1, mps."),
    "precision": option("--precision", help="auto, fp32, bf16."),
    "executor": option("--executor", help="local, or ray: tasks of the cluster at RAY_ADDRESS or of this host."),
    "tracker": option("--tracker", default="none", show_default=True, help="none, wandb, tensorboard."),
    "trust": option(
        "--trust-remote-code", is_flag=True, default=None, help="Run Python code that the model brings along."
    ),
    "dry-run": option("--dry-run", is_flag=True, help="Show what would be made and stop."),
    "verbose": option("-v", "--verbose", is_flag=True, help="Also show losses and metrics as they are logged."),
}
"""In the order in which a command that has all of them shows them."""


def shared(*names: str) -> Callable[[Command], Command]:
    """Give a command these of OPTIONS, shown in this order."""

    def decorate(command: Command) -> Command:
        for name in reversed(names):
            command = OPTIONS[name](command)
        return command

    return decorate
