"""What becomes an artifact: a hidden folder that one process at a time fills, seals with a manifest and puts in its
place, and what is found of one whose process died. Knows files, locks and names; not what is in the files.

    <store>/<stage>/.draft-<identity>/
        ...                    as in the artifact
        .checkpoint/           how far its training is; outlives the process, and is no part of the artifact
        manifest.json          seals it: from now on it only needs its name
    <store>/.locks/<stage>-<identity>       locked while a process is at it; empty but for who that is
"""

import json
import os
import platform
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pet import signals
from pet.errors import Busy, StoreError
from pet.files import digest_file, digest_json, files_below, open_to_all, readable_json, sync, sync_all
from pet.files import write_json as write_json_file
from pet.identity import Key

MANIFEST = "manifest.json"
CHECKPOINT = ".checkpoint"
AFTER = ".after"
PREFIX = ".draft-"
LOCKS = ".locks"

POLL_SECONDS = 0.2
"""Between two looks at a lock that another process holds."""

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


class Draft:
    """A folder being filled, whose identity this process alone is at. `note` adds facts (device, peak memory, ...) that
    go into the manifest."""

    def __init__(self, root: Path, key: Key, label: str, seed: int | None, lock: FileLock | None) -> None:
        self.path = folder_of(root, key)
        self.checkpoint = self.path / CHECKPOINT
        """The folder for what a training that was stopped goes on from."""
        self.final = root / key.stage / f"{label}-{key.identity}"
        self.key, self.label, self.seed = key, label, seed
        self.notes: dict[str, Any] = {}
        self.sealed = self.published = False
        self._lock = lock
        self.count_from(0.0)

    @property
    def seconds(self) -> float:
        """What the result has taken so far."""
        return time.perf_counter() - self._begun

    def count_from(self, spent: float) -> None:
        """Count the seconds that the result takes from now on, on top of those `spent` before."""
        self._begun = time.perf_counter() - spent

    def note(self, **facts: Any) -> None:
        """Record facts about how the result was made; none of them is part of the identity."""
        self.notes.update(facts)

    def write_json(self, name: str, content: Any) -> None:
        """Write one JSON file."""
        write_json_file(self.path / name, content)

    def seal(self, after: str | None = None) -> None:
        """Write the manifest; nothing can be added any more. `after`: identity of a draft of the same stage, without
        which, sealed or published, this one counts for nothing: members that are trained together are published
        together, so that what is left of them is never trained by itself."""
        if self.sealed:
            return
        open_to_all(self.path)
        if after is not None:
            (self.path / AFTER).write_text(after, encoding="utf-8")
        with ThreadPoolExecutor(1) as beside:  # the disk writes what is hashed
            synced = beside.submit(sync_all, self.path)
            manifest = describe(self, self.seconds)
            synced.result()
        write_manifest(self.path, manifest)
        self.sealed = True

    def publish(self) -> None:
        """Seal it and put it in its place, whatever signal comes, if that has not been done."""
        with signals.deferred():
            self.seal()
            if not self.published:
                settle(self.path, self.final)
                self.published = True

    def close(self) -> None:
        """Let others be at it; of what was not published only the checkpoint stays."""
        try:
            clear(self.path)
        finally:
            if self._lock is not None:
                self._lock.release()


def folder_of(root: Path, key: Key) -> Path:
    """Where the draft of an identity lies."""
    return root / key.stage / f"{PREFIX}{key.identity}"


def take(root: Path, stage: str, identity: str, waiting: Callable[[str], None] | None) -> FileLock:
    """The lock of an identity of a stage, locked. `waiting`: is told once who holds it, before that is waited for;
    `None`: nobody waits.

    Raises:
        Busy: another process is at it, and nobody is to wait.
        OSError: the store cannot be written.
    """
    (root / LOCKS).mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / LOCKS / f"{stage}-{identity}", thread_local=False, mode=0o666)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if waiting is None:
            raise Busy(f"another process is at {stage} {identity}") from None
        waiting(holder(Path(lock.lock_file)))
        lock.acquire(poll_interval=POLL_SECONDS)
    with suppress(OSError):  # for others to read, no more
        Path(lock.lock_file).write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
    return lock


def is_locked(root: Path, stage: str, identity: str) -> bool:
    """Whether a process is at an identity."""
    path = root / LOCKS / f"{stage}-{identity}"
    if not path.is_file():
        return False
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def holder(path: Path) -> str:
    """Who holds a lock."""
    with suppress(OSError, UnicodeDecodeError):
        return path.read_text(encoding="utf-8") or "another process"
    return "another process"


def open_draft(root: Path, key: Key, label: str, seed: int | None, lock: FileLock) -> Draft | None:
    """The draft of an identity whose lock is held, with nothing in it but the checkpoint of a process that died, if
    there is one; `None` where that process died after it had sealed the draft, which is published now."""
    draft = Draft(root, key, label, seed, lock)
    manifest = sealed_manifest(draft.path, key)
    if manifest is not None and is_free(draft, root):
        settle(draft.path, root / key.stage / f"{manifest['label']}-{key.identity}")
        return None
    clear(draft.path)
    draft.path.mkdir(parents=True, exist_ok=True)
    return draft


def sealed_manifest(folder: Path, key: Key) -> dict[str, Any] | None:
    """The manifest of a draft, if it has one and every file is as it says."""
    if not (folder / MANIFEST).is_file():
        return None
    with suppress(StoreError, OSError):
        manifest = read_manifest(folder)
        if manifest["identity"] == key.identity and not any(wrong_files(folder, manifest)):
            return manifest
    return None


def is_free(draft: Draft, root: Path) -> bool:
    """Whether a sealed draft waits for no other one."""
    try:
        other = (draft.path / AFTER).read_text(encoding="utf-8")
    except FileNotFoundError:
        return True
    stage = root / draft.key.stage
    return (stage / f"{PREFIX}{other}" / MANIFEST).is_file() or any(stage.glob(f"[!.]*-{other}/{MANIFEST}"))


def clear(folder: Path) -> None:
    """Remove a draft, but for its checkpoint."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if path.name == CHECKPOINT:
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with suppress(OSError):  # there is a checkpoint
        folder.rmdir()


def settle(folder: Path, final: Path) -> None:
    """Give a sealed draft its name; keep what is there already if it is complete."""
    shutil.rmtree(folder / CHECKPOINT, ignore_errors=True)
    (folder / AFTER).unlink(missing_ok=True)
    try:
        folder.rename(final)
    except OSError:
        if not (final / MANIFEST).is_file():
            raise
        shutil.rmtree(folder)
    sync(final.parent)


# ---- the manifest --------------------------------------------------------------------------------------------------


def describe(draft: Draft, seconds: float) -> dict[str, Any]:
    """The manifest: identity and its parts, files with size and digest, and how it was made."""
    key = draft.key
    return {
        "stage": key.stage,
        "version": key.version,
        "identity": key.identity,
        "label": draft.label,
        "settings": key.settings,
        "inputs": dict(key.inputs),
        "files": [
            {"path": name, "size": path.stat().st_size, "sha256": digest_file(path)}
            for name, path in content_of(draft.path).items()
        ],
        "seed": draft.seed,
        "seconds": round(seconds, 3),
        **draft.notes,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **environment(),
    }


def content_of(folder: Path) -> dict[str, Path]:
    """The files of an artifact or draft by name: neither the manifest nor what is the draft's alone."""
    ours = (MANIFEST, AFTER)
    return {
        name: path
        for name, path in files_below(folder).items()
        if name not in ours and not name.startswith(f"{CHECKPOINT}/")
    }


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write a manifest with its own digest; on the disk when this returns."""
    text = readable_json({**manifest, "digest": digest_json(manifest)})
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    sync(folder / MANIFEST)
    sync(folder)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder, as it was written to the last byte.

    Raises:
        StoreError: it cannot be read, or is not as it was written.
    """
    path = folder / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text)
        own = {name: value for name, value in found.items() if name != "digest"}
        whole = found["digest"] == digest_json(own) and text == readable_json(found)
    except (OSError, ValueError, RecursionError, AttributeError, KeyError, TypeError):
        whole = False
    if not whole:
        raise StoreError(f"{path} is damaged or gone")
    return dict(found)


def wrong_files(folder: Path, manifest: Mapping[str, Any], read: bool = True) -> Iterator[str]:
    """What is wrong with the files of an artifact or draft. `read`: all of them, not only their sizes."""
    found = (wrong_file(folder, one, read) for one in manifest["files"])
    yield from filter(None, found)


def wrong_file(folder: Path, listed: Mapping[str, Any], read: bool = True) -> str | None:
    """What is wrong with a file that a manifest lists, if anything; `read`: not only its size."""
    path, name = folder / listed["path"], listed["path"]
    if not path.is_file():
        return f"{name} is missing"
    size = path.stat().st_size
    if size != listed["size"]:
        return f"{name} is damaged: {size:,} bytes, {listed['size']:,} were written"
    if read and digest_file(path) != listed["sha256"]:
        return f"{name} is damaged: its content has changed (sha256)"
    return None


# ---- what it was made with -----------------------------------------------------------------------------------------


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
