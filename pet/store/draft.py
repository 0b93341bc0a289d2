"""What becomes an artifact: a hidden folder that one process at a time fills, seals with a manifest and puts in its
place, and what is found of one whose process died. Knows files, locks and names; not what is in the files.

    <store>/<stage>/.draft-<identity>/
        ...                    as in the artifact
        .checkpoint/           how far its training is; outlives the process, and is no part of the artifact
        manifest.json          seals it: from now on it only needs its name
    <store>/.locks/<stage>-<identity>       locked while a process is at it; empty but for who that is
"""

import shutil
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pet.errors import StoreError
from pet.store import interrupts
from pet.store.background import BackgroundWriter
from pet.store.environment import environment
from pet.store.files import digest_file, open_to_all, sync, sync_all
from pet.store.files import write_json as write_json_file
from pet.store.key import Key
from pet.store.lock import PREFIX, folder_of
from pet.store.manifest import AFTER, CHECKPOINT, MANIFEST, content_of, read_manifest, write_manifest, wrong_files


class Draft:
    """A folder being filled, whose identity this process alone is at. `note` adds facts (device, peak memory, ...) that
    go into the manifest."""

    def __init__(self, root: Path, key: Key, label: str, seed: int | None) -> None:
        self.path = folder_of(root, key)
        self.checkpoint = self.path / CHECKPOINT
        """The folder for what a training that was stopped goes on from."""
        self.final = root / key.stage / f"{label}-{key.identity}"
        self.key, self.label, self.seed = key, label, seed
        self.notes: dict[str, Any] = {}
        self.sealed = self.published = False
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
        with BackgroundWriter() as beside:
            beside.start(lambda: sync_all(self.path))  # the disk writes what is hashed
            manifest = describe(self, self.seconds)
        write_manifest(self.path, manifest)
        self.sealed = True

    def publish(self) -> None:
        """Seal it and put it in its place, whatever signal comes, if that has not been done."""
        with interrupts.deferred():
            self.seal()
            if not self.published:
                rename_into_place(self.path, self.final)
                self.published = True

    def close(self) -> None:
        """Of what was not published only the checkpoint stays."""
        self.sealed = True  # nobody can any more
        clear(self.path)


def open_draft(root: Path, key: Key, label: str, seed: int | None) -> Draft | None:
    """The draft of an identity whose lock is held, with nothing in it but the checkpoint of a process that died, if
    there is one; `None` where that process died after it had sealed the draft, which is published now."""
    draft = Draft(root, key, label, seed)
    manifest = sealed_manifest(draft.path, key)
    if manifest is not None and is_free(draft, root):
        rename_into_place(draft.path, root / key.stage / f"{manifest['label']}-{key.identity}")
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


def rename_into_place(folder: Path, final: Path) -> None:
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
