"""Where the task cards and pipelines that ship with pet lie, and how one is found by name or path."""

import difflib
from pathlib import Path
from typing import Literal

from pet.config.limits import is_file, path_of
from pet.errors import PetError, SettingsError


def shipped_folder(kind: Literal["data", "pipelines"]) -> Path:
    """Where the shipped task cards (`data`) or pipelines lie: in the checkout, or inside the installed package."""
    package = Path(__file__).parents[1]
    installed = package / "shipped" / kind
    return installed if installed.is_dir() else package.parent / kind


def shipped_names(kind: Literal["data", "pipelines"]) -> list[str]:
    """Names of all shipped task cards or pipelines, sorted."""
    folder = shipped_folder(kind)
    found = folder.glob("*/task.yaml") if kind == "data" else folder.glob("*.yaml")
    return sorted(path.parent.name if kind == "data" else path.stem for path in found)


def find_file(kind: Literal["data", "pipelines"], name: str, error: type[PetError] = SettingsError) -> Path:
    """The file of a task card or pipeline given by shipped name or by path.

    Raises:
        error: there is neither; the sentence lists the shipped names.
    """
    given = path_of(name)
    if kind == "data" and is_file(given / "task.yaml"):
        return given / "task.yaml"
    if given.suffix in (".yaml", ".yml") and is_file(given):
        return given
    names = shipped_names(kind)
    if name in names:
        return shipped_folder(kind) / (f"{name}/task.yaml" if kind == "data" else f"{name}.yaml")
    word = "task" if kind == "data" else "pipeline"
    if given.suffix in (".yaml", ".yml"):
        raise error(f"{word} file {name!r} does not exist; check the path, or use one of {', '.join(names)}")
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(names)} or the path of a YAML file"
    raise error(f"unknown {word} {name!r}; {hint}")
