"""Which settings are part of an artifact's identity.

Each field of `schema.py` says so itself, in its annotation: `Annotated[bool, InIdentity.NEVER]`. A field that says
nothing is part of the identity of its stage and of the run. What one stage does not read although others do is left
out there by name (`fields_of`).
"""

from collections.abc import Set
from enum import Enum
from typing import Any

from pydantic import BaseModel


class InIdentity(Enum):
    """When a field is part of an identity, if not always."""

    NEVER = "never"
    """It changes no result, or its content is part of the identity under another name."""

    OF_RUN = "of the run alone"
    """It says what a run consists of. Its artifacts are the same in another run, or know it from their inputs."""

    UNLESS_DEFAULT = "unless it has its default"
    """It was added later: artifacts that were made before keep their identity."""


def identity_settings(section: BaseModel, of_run: bool = False, without: Set[str] = frozenset()) -> dict[str, Any]:
    """The settings of a section that are part of an identity, as JSON values.

    Args:
        section: the settings.
        of_run: whether it is the identity of a run, or of an artifact of one stage.
        without: names of fields that this identity leaves out, checked by `fields_of`.
    """
    values = section.model_dump(mode="json")
    found = {}
    for name in type(section).model_fields:
        if name in without or not _is_part(section, name, of_run):
            continue
        value = getattr(section, name)
        found[name] = identity_settings(value, of_run) if isinstance(value, BaseModel) else values[name]
    return found


def fields_of(model: type[BaseModel], *names: str) -> frozenset[str]:
    """These names, each of which is a field of the model. Call it while modules are loaded: a name that is misspelled,
    or left behind when its field is renamed, then stops every command, and changes no identity in silence.

    Raises:
        AttributeError: one is none.
    """
    unknown = [name for name in names if name not in model.model_fields]
    if unknown:
        raise AttributeError(f"{model.__name__} has no fields {unknown}; expected some of {list(model.model_fields)}")
    return frozenset(names)


def _is_part(section: BaseModel, name: str, of_run: bool) -> bool:
    """Whether a field is part of an identity."""
    marks = _marks(type(section), name)
    if InIdentity.NEVER in marks or (InIdentity.OF_RUN in marks and not of_run):
        return False
    if InIdentity.UNLESS_DEFAULT in marks:
        default = type(section).model_fields[name].get_default(call_default_factory=True)
        return bool(getattr(section, name) != default)
    return True


def _marks(model: type[BaseModel], name: str) -> set[InIdentity]:
    """What a field says of itself, here or in a section that this one extends: another default loses no mark."""
    sections = [base for base in model.__mro__ if issubclass(base, BaseModel)]
    said = [one for base in sections if name in base.model_fields for one in base.model_fields[name].metadata]
    return {one for one in said if isinstance(one, InIdentity)}
