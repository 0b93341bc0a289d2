"""From pipeline files, recipes and `--set` to `Settings`."""

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel

from pet.config.limits import is_file, leads_inside, read_bytes, stays_inside
from pet.config.messages import SHOWN_VALUE, kind_of, parse_model
from pet.config.recipes import RECIPES
from pet.config.safe_yaml import MAX_DEPTH, MAX_YAML, load_yaml
from pet.config.schema import Pretraining, Settings
from pet.config.shipped import find_file, shipped_folder, shipped_names
from pet.errors import PetError, SettingsError


def read_yaml(path: Path, error: type[PetError]) -> dict[str, Any]:
    """A YAML file as a dictionary; raises `error` when it cannot be read or parsed, is beyond a limit of `safe_yaml`,
    or is no mapping."""
    content = read_bytes(path, error, MAX_YAML)
    try:
        found = load_yaml(content.decode("utf-8-sig"))
    except UnicodeDecodeError as problem:
        line = content.count(b"\n", 0, problem.start) + 1
        raise error(f"{path} line {line} is not UTF-8 text; convert the file to UTF-8") from None
    except ValueError as problem:
        reason, number = problem.args
        place = f" line {number}" if number else ""
        raise error(f"{path}{place} is not valid YAML ({reason}); correct it there") from None
    if found is None:
        raise error(f"{path} is empty; expected names and values, or {{}} for none")
    if not isinstance(found, dict):
        raise error(f"{path} holds {kind_of(found)}; expected a mapping of names to values")
    return found


MAX_EXTENDED = 10
"""Files of which each extends the next; of the shipped ones it is 2."""


def read_extended(
    path: Path,
    kind: Literal["data", "pipelines"],
    combine: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]],
    error: type[PetError],
    extending: tuple[Path, ...] = (),
) -> dict[str, Any]:
    """A YAML file laid over the one it `extends`, by `combine`. `extending`: the files that led here.

    A card, which people pass on, extends a shipped one or one in its own folder; a pipeline any file.

    Raises:
        error: as `read_yaml`, or a file that extends itself, or what it may not extend.
    """
    if path in extending:
        raise error(f"{path} extends itself; name another file in `extends:`")
    if len(extending) == MAX_EXTENDED:
        raise error(f"{path} is the {MAX_EXTENDED + 1}th file of which each extends the next; put them together")
    values = read_yaml(path, error)
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise error(f"{path}: `extends:` is {kind_of(base)}; expected the name of a file")
    below = find_extended(path, base, error) if kind == "data" else find_file(kind, base, error)
    return combine(read_extended(below, kind, combine, error, (*extending, path)), values)


def find_extended(card: Path, base: str, error: type[PetError]) -> Path:
    """The card that a card extends: a shipped one, or a file in its own folder.

    Raises:
        error: it is neither.
    """
    if base in shipped_names("data"):
        return shipped_folder("data") / base / "task.yaml"
    found = card.parent / base
    found = found / "task.yaml" if is_file(found / "task.yaml") else found
    if not stays_inside(base) or not leads_inside(found, card.parent):
        raise error(f"{card} extends {base!r}, which lies outside its folder; copy that card there")
    if found.suffix in (".yaml", ".yml") and is_file(found):
        return found
    near = difflib.get_close_matches(base, shipped_names("data"), n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"name one of {', '.join(shipped_names('data'))}, or such a file"
    raise error(f"{card} extends an unknown task {base!r}, neither shipped nor a YAML file in its folder; {hint}")


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries laid over each other; later layers win."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            old = result.get(key)
            result[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def lay_sections(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """`merge` for pipelines: a section that is named and left empty is `None` in YAML and says nothing."""
    return merge(*({key: value for key, value in layer.items() if value is not None} for layer in layers))


def parse_assignment(text: str) -> dict[str, Any]:
    """`finetune.steps=100` -> {"finetune": {"steps": 100}}; the value is read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip() or key.count(".") > MAX_DEPTH:
        raise SettingsError(f"--set got {text!r}; expected NAME=VALUE, for example --set finetune.steps=100")
    try:
        if len(value) > MAX_YAML:
            raise ValueError(f"more than {MAX_YAML:,} characters", None)
        return nest(key.strip(), load_yaml(value))
    except ValueError:
        raise SettingsError(f"--set {key}: {value[:SHOWN_VALUE]!r} is not a YAML value; quote it") from None


def nest(key: str, value: Any) -> dict[str, Any]:
    """`finetune.steps`, 100 -> {"finetune": {"steps": 100}}."""
    nested = value
    for part in reversed(key.split(".")):
        nested = {part: nested}
    return dict(nested)


def resolve_settings(pipeline: str | None = None, *overrides: Mapping[str, Any]) -> Settings:
    """Defaults, recipe, pipeline file and overrides as one `Settings`.

    `pipeline`: a shipped name or a path; `None` uses defaults only.

    Raises:
        SettingsError: unknown pipeline, unreadable file, unknown key or a value out of range; names every problem.
    """
    given, what = read_pipeline(pipeline, *overrides)
    refuse_foreign(given, what, Settings, Pretraining, "pet pretrain")
    recipe = given.get("recipe", "fixed")
    if not isinstance(recipe, str) or recipe not in RECIPES:
        raise SettingsError(f"unknown recipe {recipe!r}; expected one of {', '.join(RECIPES)}")
    return parse_model(Settings, merge(RECIPES[recipe], given), what, SettingsError)


def resolve_pretraining(pipeline: str | None = None, *overrides: Mapping[str, Any]) -> Pretraining:
    """Defaults, pipeline file and overrides as one `Pretraining`; as `resolve_settings`."""
    given, what = read_pipeline(pipeline, *overrides)
    refuse_foreign(given, what, Pretraining, Settings, "pet run")
    settings = parse_model(Pretraining, given, what, SettingsError)
    if not settings.corpus.files and settings.corpus.task is None:
        raise SettingsError(f"{what}: nothing to train on; give --corpus FILE, one document a line, or --task NAME")
    if settings.corpus.data and settings.corpus.task is None:
        raise SettingsError(f"{what}: corpus.data {settings.corpus.data!r} is of no task; give --task NAME too")
    return settings


def resolve_tasks(pipeline: str, *overrides: Mapping[str, Any]) -> dict[str, Settings]:
    """The settings of each task of a table, the sections that `table.tasks` has for it laid over the pipeline's.

    Raises:
        SettingsError: as `resolve_settings`.
    """
    common = resolve_settings(pipeline, *overrides)
    if not common.table.tasks:
        return {common.task.name: common}
    refuse_trust({"table": {"tasks": common.table.tasks}}, "table.tasks")
    return {
        name: resolve_settings(pipeline, sections, nest("task.name", name), *overrides)
        for name, sections in common.table.tasks.items()
    }


def refuse_foreign(
    given: Mapping[str, Any], what: str, own: type[BaseModel], other: type[BaseModel], command: str
) -> None:
    """Refuse sections of the other command's settings with its name.

    Raises:
        SettingsError: names the first of them.
    """
    found = [name for name in given if name in other.model_fields and name not in own.model_fields]
    if found:
        raise SettingsError(f"{what}: `{found[0]}` is a setting of another command; use {command}, or leave it out")


def read_pipeline(pipeline: str | None, *overrides: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Pipeline file and overrides laid over each other, and what to call them in messages."""
    source = find_file("pipelines", pipeline) if pipeline is not None else None
    file = read_extended(source, "pipelines", lay_sections, SettingsError) if source else {}
    typed = merge(*overrides).get("model")
    if not (isinstance(typed, dict) and TRUST in typed):
        refuse_trust(file, f"pipeline {source}")
    return lay_sections(file, *overrides), f"pipeline {source}" if source and not any(overrides) else "settings"


TRUST = "trust_remote_code"


def refuse_trust(values: Mapping[str, Any], what: str) -> None:
    """A file that people pass on cannot say that code of a model is run; whoever types the command can.

    Raises:
        SettingsError: it does, for its model or for that of a task of its table.
    """
    table = values.get("table")
    tasks = table.get("tasks") if isinstance(table, dict) else None
    for one in (values, *(tasks.values() if isinstance(tasks, dict) else ())):
        model = one.get("model") if isinstance(one, Mapping) else None
        if isinstance(model, dict) and model.get(TRUST, False) is not False:
            raise SettingsError(
                f"{what} has model.{TRUST}, which runs code that a model brings along; leave it out of the file, and "
                "give --trust-remote-code if you trust whoever wrote that code"
            )


def settings_yaml(settings: BaseModel) -> str:
    """The resolved settings as a YAML file that can be handed back as a pipeline."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)
