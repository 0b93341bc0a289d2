"""The manifest of an artifact: written last, with the size and digest of every file, and checked on reading."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pet.errors import StoreError
from pet.store.files import digest_file, digest_json, files_below, readable_json, sync

STATE = "state.json"


def facts_of(folder: Path) -> dict[str, Any] | None:
    """What a checkpoint says of itself, for people; `None` if there is none."""
    try:
        return dict(json.loads((folder / STATE).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


MANIFEST = "manifest.json"
CHECKPOINT = ".checkpoint"
AFTER = ".after"


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
