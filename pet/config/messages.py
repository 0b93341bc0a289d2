"""Pydantic's validation errors as sentences for people."""

import difflib
import json
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from pet.config.schema import M
from pet.errors import PetError, raise_problems


def parse_model(model: type[M], values: Mapping[str, Any], what: str, error: type[PetError]) -> M:
    """Validate `values` as `model`; every problem in one sentence, raised as `error`."""
    try:
        return model.model_validate(values)
    except ValidationError as invalid:
        found = invalid.errors()
    # A list without its bad entries is too short for pydantic, which is no news.
    bad = {problem["loc"][:depth] for problem in found for depth in range(len(problem["loc"]))}
    problems = [describe_problem(model, one) for one in found if one["type"] != "too_short" or one["loc"] not in bad]
    raise_problems(error, what, problems)
    raise AssertionError("a validation error without a problem")


def describe_problem(model: type[BaseModel], problem: Any) -> str:
    """One pydantic error as words: the dotted key, what is wrong, the nearest known key."""
    # In <> what a union was taken for, which is no key.
    key = ".".join(str(part) for part in problem["loc"] if not str(part).startswith("<"))
    if problem["type"] != "extra_forbidden":
        given = problem.get("input")
        shown = "" if isinstance(given, dict) or problem["type"] == "missing" else f" (given: {show_value(given)})"
        if problem["loc"][-1:] == ("[key]",):
            return f"{key.removesuffix('.[key]')}: names are text; write {given} in quotes"
        if problem["type"] in ("model_type", "dict_type"):
            return f"{key or 'the file'}: expected names with values below it{shown}"
        # Python's word, not YAML's; and what our own checks say needs no heading.
        said = problem["msg"].replace("tuple", "list").replace("Tuple", "List").removeprefix("Value error, ")
        return f"{key or 'the file'}: {said[0].lower()}{said[1:]}{shown}"
    known = known_keys(model)
    prefix, _, name = key.rpartition(".")
    siblings = {one.rpartition(".")[2]: one for one in known if one.rpartition(".")[0] == prefix}
    # Names are compared without their prefix: with it, anything in a section looks like its neighbours.
    near = [siblings[one] for one in difflib.get_close_matches(name, siblings, n=1)]
    near = near or sorted((one for one in known if one.endswith(f".{name}")), key=lambda one: one.count("."))[:1]
    listed = ", ".join(siblings.values())
    hint = f"did you mean {near[0]!r}?" if near else f"expected one of {listed}" if listed else "correct or remove it"
    return f"unknown setting {key!r}; {hint}"


SHOWN_VALUE = 80
"""Characters of a value that is repeated in a message."""


def show_value(value: Any) -> str:
    """A value of a YAML file as a message repeats it."""
    plain = value is None or isinstance(value, str | bool | int | float)
    text = repr(value) if plain else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= SHOWN_VALUE else f"{text[:SHOWN_VALUE]} ..."


def kind_of(value: Any) -> str:
    """What a value of a YAML file is, as a person calls it."""
    names = {
        list: "a list",
        dict: "a mapping",
        str: "a text",
        int: "a number",
        float: "a number",
        bool: "true or false",
    }
    return names.get(type(value), "another kind of value")


def known_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """All dotted names of the fields of `model`, nested ones included."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        for one in (field.annotation, *get_args(field.annotation)):  # the arguments: `FilesSource | None`
            if isinstance(one, type) and issubclass(one, BaseModel):
                keys += known_keys(one, f"{prefix}{name}.")
    return keys
