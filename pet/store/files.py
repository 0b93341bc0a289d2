"""Files and folders, JSON, YAML and digests: writing that leaves nothing half-written under a final name. Knows nothing
of stores and stages."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from pet.errors import PetError, StoreError

# ---- JSON, YAML and digests ----------------------------------------------------------------------------------------


def canonical_json(content: Any) -> str:
    """One text per value: sorted keys, no spaces, no NaN."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def readable_json(content: Any) -> str:
    """JSON that a person can read; NaN is refused."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def readable_yaml(content: Any, **style: Any) -> str:
    """YAML that a person can read and `load_yaml` reads as it was.

    Letters of all languages stand as they are, and what joins or parts them (Persian, emoji). All is escaped where
    there is a U+0085 or another character like it: PyYAML leaves them, and they end a line for those who read YAML.

    Args:
        content: plain values, as `yaml.safe_dump` takes them.
        style: more arguments of `yaml.safe_dump`.
    """
    text, escaped = (yaml.safe_dump(content, sort_keys=False, allow_unicode=one, **style) for one in (True, False))
    return str(escaped if len(text.replace("\n", "").splitlines()) > 1 else text)


def flow(value: Any) -> str:
    """A list or mapping as YAML on one line."""
    dumped = readable_yaml(value, default_flow_style=True, width=10**9).rstrip("\n")
    if "\n" in dumped:
        dumped = readable_yaml(value, default_flow_style=True, default_style='"', width=10**9).rstrip("\n")
    return dumped


def scalar(value: str) -> str:
    """A string as YAML on one line, in quotes where YAML would read something else."""
    return flow([value])[1:-1]


def digest_json(content: Any) -> str:
    """sha256 of the canonical JSON of `content`."""
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def digest_file(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write `readable_json`."""
    path.write_text(readable_json(content), encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        StoreError: the file is missing or damaged; says what to do.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        raise StoreError(f"{path} cannot be read ({problem}); remove {path.parent} and run its stage again") from None


# ---- folders -------------------------------------------------------------------------------------------------------


def files_below(folder: Path) -> dict[str, Path]:
    """Every file by its path from `folder`, in a fixed order; names of folders with / whatever the system."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return dict(sorted(found.items()))


def open_to_all(folder: Path) -> None:
    """Let everyone read the files who may read their folder: safetensors lets only their owner."""
    for path in files_below(folder).values():
        path.chmod(path.parent.stat().st_mode & 0o666)


def sync(path: Path) -> None:
    """Wait until a file, or the list of a folder's files, is on the disk and not only on its way there."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        if path.is_dir():  # Windows opens no folders
            return
        raise
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_all(folder: Path) -> None:
    """`sync` of everything in a folder, and of itself."""
    for path in (*folder.rglob("*"), folder):
        sync(path)


@contextmanager
def write_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which is `out` once the block has ended well, and gone if it raises; nothing stands under the
    name of `out` before it is whole. Folders above are made.

    Raises:
        StoreError: `out` is there and is no empty folder, or cannot be written.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise StoreError(f"{out} exists already; name a new folder, or remove it")
    above = next(folder for folder in out.absolute().parents if folder.exists())
    try:
        with tempfile.TemporaryDirectory(prefix=".pet-draft-", dir=above) as draft:
            folder = Path(draft) / "folder"  # of the user's own mode: a temporary one is closed to others
            folder.mkdir()
            yield folder
            open_to_all(folder)
            sync_all(folder)
            out.parent.mkdir(parents=True, exist_ok=True)
            folder.rename(out)
    except OSError as problem:
        raise StoreError(f"{out} cannot be written ({problem.strerror or problem}); name another folder") from None


@contextmanager
def new_file(path: Path, error: type[PetError] = StoreError, remedy: str = "name another file") -> Iterator[Path]:
    """Where to write what is to be the file `path` outside a store: beside it, and renamed when the block ends well.

    Raises:
        error: it cannot be written; `remedy` says what to do.
    """
    place = path.absolute().parent / ".pet-"
    try:
        with tempfile.TemporaryDirectory(prefix=place.name, dir=place.parent) as draft:
            yield Path(draft) / path.name
            (Path(draft) / path.name).replace(path)
    except OSError as problem:
        if not str(problem.filename or place).startswith(str(place)):
            raise  # of another file, which the block reads
        raise error(f"{path} cannot be written ({problem.strerror or problem}); {remedy}") from None
