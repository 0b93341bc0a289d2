"""The store: published, immutable outputs of stages. Knows files, digests and names; not what is in the files.

    <store>/<stage>/<label>-<identity>/
        manifest.json        written last; without it the folder is no artifact
        ...                  JSON, Parquet and safetensors only: nothing that executes on load

The identity is a digest of what determines the result: stage name, stage version, settings, identities of the inputs.
A stage writes into a hidden sibling folder, the manifest is written last, and one rename publishes. An identity that is
there is reused; nothing is ever overwritten.
"""

import errno
import hashlib
import json
import os
import platform
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from pet.errors import MissingArtifact, StoreError

MANIFEST = "manifest.json"
IDENTITY_LENGTH = 16
"""Hex digits of an identity: 64 bits, so even a million artifacts of one stage collide with probability 3e-8."""

RECORDED_PACKAGES = (
    "pet",
    "accelerate",
    "datasets",
    "numpy",
    "peft",
    "safetensors",
    "scikit-learn",
    "scipy",
    "tokenizers",
    "torch",
    "transformers",
)


@dataclass(frozen=True)
class Key:
    """What an artifact is: enough to compute its identity.

    `version`: raised by hand in the stage's file when its code changes the meaning of its output.
    `settings`: JSON values that change the result, and only those. `inputs`: name -> identity of an artifact.
    """

    stage: str
    version: int
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]

    @property
    def identity(self) -> str:
        """Digest of the canonical JSON of all four."""
        content = {
            "stage": self.stage,
            "version": self.version,
            "settings": self.settings,
            "inputs": dict(self.inputs),
        }
        return digest_json(content)[:IDENTITY_LENGTH]


@dataclass(frozen=True)
class Artifact:
    """A published artifact: where it lies and what its manifest says."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def identity(self) -> str:
        """The identity it was published under."""
        return str(self.manifest["identity"])

    def read_json(self, name: str) -> Any:
        """The content of one of its JSON files."""
        return read_json(self.path / name)


class Draft:
    """A folder being filled. `note` adds facts (device, peak memory, ...) that go into the manifest. `spent`: seconds
    that it took before the folder was opened."""

    spent = 0.0

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes: dict[str, Any] = {}

    def note(self, **facts: Any) -> None:
        """Record facts about how the result was made; none of them is part of the identity."""
        self.notes.update(facts)

    def write_json(self, name: str, content: Any) -> None:
        """Write one JSON file."""
        write_json(self.path / name, content)


class Store:
    """All artifacts below one folder."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser()

    def find(self, key: Key) -> Artifact | None:
        """The artifact of that identity, or `None`.

        Raises:
            StoreError: its manifest cannot be read.
        """
        for path in sorted((self.root / key.stage).glob(f"*-{key.identity}")):
            if (path / MANIFEST).is_file():
                return Artifact(path, read_json(path / MANIFEST))
        return None

    def open(self, path: Path) -> Artifact:
        """The artifact in a folder that is known to be one.

        Raises:
            StoreError: its manifest cannot be read.
        """
        return Artifact(path, read_json(path / MANIFEST))

    def need(self, key: Key, what: str, command: str) -> Artifact:
        """The artifact of that identity.

        Raises:
            MissingArtifact: it has not been made; the sentence says which `command` makes it.
        """
        artifact = self.find(key)
        if artifact is None:
            place = f"{key.stage}/...-{key.identity}"
            raise MissingArtifact(f"no {what} in {self.root} ({place}); run first: {command}")
        return artifact

    @contextmanager
    def publish(self, key: Key, label: str, *, seed: int | None = None) -> Iterator[Draft]:
        """A draft folder; when the block ends well it is published, when it raises it is removed.

        If someone else published the same identity meanwhile, theirs stays and ours is dropped: both are the same.

        Raises:
            StoreError: the store cannot be written.
        """
        start = time.perf_counter()
        draft = Draft(self._make_draft_folder(key))
        try:
            yield draft
            open_to_all(draft.path)
            manifest = describe(key, draft, label, seed, draft.spent + time.perf_counter() - start)
            write_json(draft.path / MANIFEST, manifest)
            rename(draft.path, self.root / key.stage / f"{label}-{key.identity}")
        except OSError as problem:
            if not self._is_ours(problem):
                raise
            raise StoreError(f"the store {self.root} cannot be written ({problem.strerror or problem})") from problem
        finally:
            shutil.rmtree(draft.path, ignore_errors=True)

    def _is_ours(self, problem: OSError) -> bool:
        """Whether it was the store that failed, and not some other file the stage read."""
        full = problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
        return full or str(problem.filename or "").startswith(str(self.root))

    def _make_draft_folder(self, key: Key) -> Path:
        path = self.root / key.stage / f".draft-{key.identity}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        try:
            path.mkdir(parents=True)
        except OSError as problem:
            raise StoreError(
                f"the store {self.root} cannot be written ({problem.strerror}); give a writable folder with --store"
            ) from None
        return path

    def check_writable(self) -> None:
        """Fail now rather than after an hour of training.

        Raises:
            StoreError: no folder can be made in the store.
        """
        probe = self._make_draft_folder(Key("probe", 0, {}, {}))
        probe.rmdir()
        with suppress(OSError):  # another run may be probing, or one was killed while it did
            probe.parent.rmdir()


def open_to_all(draft: Path) -> None:
    """Let everyone read the files who may read their folder: safetensors lets only their owner."""
    for path in draft.rglob("*"):
        if path.is_file():
            path.chmod(path.parent.stat().st_mode & 0o666)


def rename(draft: Path, final: Path) -> None:
    """Publish by one rename; keep what is there already if it is complete."""
    try:
        draft.rename(final)
    except OSError:
        if not (final / MANIFEST).is_file():
            raise


def describe(key: Key, draft: Draft, label: str, seed: int | None, seconds: float) -> dict[str, Any]:
    """The manifest: identity and its parts, files with size and digest, and how it was made."""
    files = sorted(path for path in draft.path.rglob("*") if path.is_file())
    return {
        "stage": key.stage,
        "version": key.version,
        "identity": key.identity,
        "label": label,
        "settings": key.settings,
        "inputs": dict(key.inputs),
        "files": [
            {
                "path": path.relative_to(draft.path).as_posix(),
                "size": path.stat().st_size,
                "sha256": digest_file(path),
            }
            for path in files
        ],
        "seed": seed,
        "seconds": round(seconds, 3),
        **draft.notes,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **environment(),
    }


@cache
def environment() -> dict[str, Any]:
    """Versions, and the commit of the code when it runs from a checkout."""
    versions = {}
    for name in RECORDED_PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {"python": platform.python_version(), "packages": versions, "code": code_state()}


def code_state() -> dict[str, Any] | None:
    """Commit and whether it has uncommitted changes; `None` outside a checkout."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None
    try:
        head = git(root, "rev-parse", "HEAD")
        return {"commit": head, "dirty": bool(git(root, "status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def git(root: Path, *arguments: str) -> str:
    """What a git command prints."""
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.strip()


# ---- folders elsewhere ---------------------------------------------------------------------------------------------


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
            out.parent.mkdir(parents=True, exist_ok=True)
            folder.rename(out)
    except OSError as problem:
        raise StoreError(f"{out} cannot be written ({problem.strerror or problem}); name another folder") from None


# ---- files ---------------------------------------------------------------------------------------------------------


def canonical_json(content: Any) -> str:
    """One text per value: sorted keys, no spaces, no NaN."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_json(content: Any) -> str:
    """sha256 of the canonical JSON of `content`."""
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Where to write what is to be the file `path` outside a store: beside it, and renamed when the block ends well."""
    with tempfile.TemporaryDirectory(prefix=".pet-", dir=path.absolute().parent) as draft:
        yield Path(draft) / path.name
        (Path(draft) / path.name).rename(path)


def digest_file(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write JSON that a person can read; NaN is refused."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        StoreError: the file is missing or damaged; says what to do.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise StoreError(f"{path} cannot be read ({problem}); remove {path.parent} and run its stage again") from None
