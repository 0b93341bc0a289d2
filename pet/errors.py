"""The errors a user can cause, as a tree; nothing here knows what raised them.

    PetError
    +-- SettingsError    a pipeline file, a flag or --set
    +-- TaskError        a task card, its patterns and verbalizers, or the data it reads
    +-- CorpusError      texts to train a masked language model on
    +-- ModelError       a model or tokenizer that cannot be used
    +-- StoreError       the artifact store
        +-- MissingArtifact   an earlier stage has not been run
        +-- DamagedArtifact   an artifact is not as it was written
        +-- Busy              another process is making what is wanted

Each message is one sentence for the person at the keyboard: what was given, what was expected, what to do. The command
line prints it and exits with code 2. Mistakes of the programmer are `assert`s, not these.
"""

from collections.abc import Sequence
from pathlib import Path


class PetError(Exception):
    """Something the user gave cannot be used; the message says what to do."""


class SettingsError(PetError):
    """A setting, pipeline file or flag is wrong."""


class TaskError(PetError):
    """A task card, pattern, verbalizer or data file is wrong."""


class CorpusError(PetError):
    """A file of texts is missing, damaged or too small."""


class ModelError(PetError):
    """A model or tokenizer is missing, unreachable or of the wrong kind."""


class StoreError(PetError):
    """The artifact store cannot be read or written."""


class MissingArtifact(StoreError):
    """A stage needs an artifact that has not been made."""


class DamagedArtifact(StoreError):
    """An artifact is not as it was written. `folder`: where it lies."""

    def __init__(self, folder: Path, problem: str) -> None:
        super().__init__(f"{folder}: {problem}; the command that made it sets it aside and makes it again")
        self.folder = folder
        self.problem = problem


class Busy(StoreError):
    """Another process is making what is wanted."""


SHOWN_PROBLEMS = 5
"""How many problems of one input are listed before the rest is only counted."""


def raise_problems(kind: type[PetError], what: str, problems: Sequence[str]) -> None:
    """Raise `kind` naming every problem of one input (the first few in full); do nothing when there is none."""
    if not problems:
        return
    shown = "; ".join(problems[:SHOWN_PROBLEMS])
    more = len(problems) - SHOWN_PROBLEMS
    raise kind(f"{what}: {shown}" + (f"; and {more} more" if more > 0 else ""))
