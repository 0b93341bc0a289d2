"""What comes from other people, read within limits: regular files, packed ones, YAML, and paths that stay in a folder.

Every limit is one constant here with its reason. What is in a file is the business of whoever reads it.
"""

import gzip
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from pet.errors import PetError

MAX_UNPACKED = 4 << 30
"""Bytes of one file that is read whole, unpacked. The largest of the paper's has 0.8 GB; gzip can make a thousandfold
of what is sent."""

MAX_FIELD = 10_000_000
"""Characters of one cell, or of one text made from cells; the csv module's own limit (131,072) is shorter than some
reviews."""

MAX_LINE = 4 * MAX_FIELD
"""Characters of one line where a file is read a line at a time: memory must not grow with one that has no line ends."""

MAX_COLUMNS = 10_000
"""Columns of a table: each row is a dictionary of them."""

READ_AT_ONCE = 1 << 20


def path_of(name: str) -> Path:
    """A path as a person types it: `~` is home, where there is one."""
    try:
        return Path(name).expanduser()
    except RuntimeError:  # nobody is called that
        return Path(name)


def is_file(path: Path) -> bool:
    """Whether there is a regular file; of a name that cannot be one, no: there `Path.is_file` raises."""
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: Path) -> bool:
    """Whether there is a folder; of a name that cannot be one, no."""
    return os.path.isdir(path)  # noqa: PTH112


def require_file(path: Path, error: type[PetError]) -> None:
    """Refuse what is no regular file: reading a pipe or a device may never end.

    Raises:
        error: says what it is.
    """
    if is_file(path):
        return
    if is_folder(path):
        raise error(f"{path} is a folder; expected a file")
    if os.path.exists(path):  # noqa: PTH110
        raise error(f"{path} is no regular file; copy what it gives into one")
    raise error(f"there is no file {path}; check the name")


def read_bytes(path: Path, error: type[PetError], most: int = MAX_UNPACKED) -> bytes:
    """The content of a file, unpacked if its name ends in .gz; `most`: bytes of it.

    Raises:
        error: no regular file, unreadable, damaged or too large.
    """
    require_file(path, error)
    with opened(path, error) as file:
        return b"".join(bounded(file, path, error, most))


@contextmanager
def opened(path: Path, error: type[PetError]) -> Iterator[IO[bytes]]:
    """A file, unpacked if its name ends in .gz; what a disk or gzip has to say while it is read becomes one sentence.

    Raises:
        error: that sentence.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            yield file  # type: ignore[misc]
    except (OSError, EOFError, zlib.error) as problem:
        raise error(f"{path} cannot be read: {getattr(problem, 'strerror', None) or problem}") from None


def bounded(file: IO[bytes], path: Path, error: type[PetError], most: int = MAX_UNPACKED) -> Iterator[bytes]:
    """A file a piece at a time.

    Raises:
        error: it has more than `most` bytes.
    """
    size = 0
    while part := file.read(READ_AT_ONCE):
        size += len(part)
        if size > most:
            raise error(f"{path} has more than {most:,} bytes (unpacked), which is too much; give a smaller file")
        yield part


def stays_inside(name: str) -> bool:
    """Whether a path that somebody wrote into a file cannot lead out of a folder, links apart."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return not (name[:1] in ("/", "\\", "~") or ".." in parts or "://" in name or re.match(r"[A-Za-z]:", name))


def leads_inside(path: Path, root: Path) -> bool:
    """Whether a path below `root` is still below it when all links are followed."""
    try:
        return path.resolve().is_relative_to(root.resolve())
    except (OSError, ValueError, RuntimeError):  # a link to itself
        return False


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: it has no half of a surrogate pair."""
    return re.search("[\ud800-\udfff]", text) is None
