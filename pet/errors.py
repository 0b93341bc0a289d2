"""The errors a user can cause, as a tree; nothing here knows what raised them.

    PetError
    +-- SettingsError    a pipeline file, a flag or --set
    +-- TaskError        a task card, its patterns and verbalizers, or the data it reads
    +-- CorpusError      texts to train a masked language model on
    +-- ModelError       a model or tokenizer that cannot be used
    +-- NotFinite        a model, as it is or in training, computes NaN or infinity
    +-- StoreError       the artifact store
        +-- MissingArtifact   an earlier stage has not been run
        +-- DamagedArtifact   an artifact is not as it was written
        +-- Busy              another process is making what is wanted

Each message is one sentence for the person at the keyboard: what was given, what was expected, what to do. The command
line prints it and exits with code 2. Mistakes of the programmer are `assert`s, not these.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

SHOWN = 1_600
"""Characters of a message, most of them from its beginning: a screenful. What it repeats of somebody's file may be a
megabyte."""

SHOWN_END = 300
"""Of them, those from its end, which says what to do."""


class PetError(Exception):
    """Something the user gave cannot be used; the message says what to do. It is one line, and holds no character that
    a terminal obeys."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class SettingsError(PetError):
    """A setting, pipeline file or flag is wrong."""


class TaskError(PetError):
    """A task card, pattern, verbalizer or data file is wrong."""


class CorpusError(PetError):
    """A file of texts is missing, damaged or too small."""


class ModelError(PetError):
    """A model or tokenizer is missing, unreachable or of the wrong kind."""


class NotFinite(PetError):
    """A loss or a score is NaN or infinite, so nothing can be made of it."""


class StoreError(PetError):
    """The artifact store cannot be read or written."""


class MissingArtifact(StoreError):
    """A stage needs an artifact that has not been made."""


class DamagedArtifact(StoreError):
    """An artifact is not as it was written. `folder`: where it lies; `written`: the digest of its manifest, where it is
    as it was written, and is of no use all the same."""

    def __init__(self, folder: Path, problem: str, written: str | None = None) -> None:
        super().__init__(
            f"{folder}: {problem}; give the command that made it once more (the store's logs/ has it): what is damaged "
            "is made again"
        )
        self.folder = folder
        self.problem = problem
        self.written = written

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder, self.problem, self.written)


class Busy(StoreError):
    """Another process is making what is wanted."""


def one_line(text: str) -> str:
    """A text without line breaks, its other unprintable characters written as Python escapes, cut to SHOWN."""
    text = cut(text)  # a megabyte is not looked through
    if text.isprintable():
        return text
    return cut(
        "".join(
            one if one.isprintable() else " " if one in "\n\r\t" else one.encode("unicode_escape").decode()
            for one in text
        )
    )


def cut(text: str, most: int = SHOWN, end: int = SHOWN_END) -> str:
    """A text without its middle, if it is longer than `most`; `end`: characters that are kept of its end."""
    return text if len(text) <= most else f"{text[: most - end]} [...] {text[-end:]}"


SHOWN_PROBLEM = 250
"""Characters of one problem where several are listed: its file, line, what was found there and what was expected."""

SHOWN_PROBLEMS = 5
"""How many problems of one input are listed before the rest is only counted."""


def raise_problems(kind: type[PetError], what: str, problems: Sequence[str]) -> None:
    """Raise `kind` naming every problem of one input (the first few in full); do nothing when there is none."""
    if not problems:
        return
    most = SHOWN_PROBLEM if len(problems) > 1 else len(problems[0])
    shown = "; ".join(cut(one, most, most // 2) for one in problems[:SHOWN_PROBLEMS])
    more = len(problems) - SHOWN_PROBLEMS
    raise kind(f"{what}: {shown}" + (f"; and {more} more" if more > 0 else ""))
