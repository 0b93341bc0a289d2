"""The store: published, immutable outputs of stages. Knows files, digests and names; not what is in the files.

    <store>/<stage>/<label>-<identity>/
        manifest.json        written last; without it the folder is no artifact
        ...                  JSON, Parquet and safetensors only: nothing that executes on load

The identity is a digest of what determines the result: stage name, stage version, settings, identities of the inputs.
One process at a time is at an identity, in a hidden folder (`draft`); one rename publishes. An identity that is there
is reused; nothing is ever overwritten. A file is compared with its digest before it is read, once a process.
"""

import errno
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pet.errors import DamagedArtifact, StoreError
from pet.store.draft import Draft, open_draft
from pet.store.files import read_json
from pet.store.key import Key
from pet.store.lock import acquire
from pet.store.manifest import MANIFEST, read_manifest, wrong_file, wrong_files

DAMAGED = ".damaged-"
"""What the name of a folder begins with that was an artifact, and is none any more because it was damaged."""

_checked: set[tuple[str, int, int, str]] = set()
"""Files of this process that were as their manifests say: path, time of change, size and digest."""


@dataclass(frozen=True)
class Artifact:
    """A published artifact: where it lies and what its manifest says."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def identity(self) -> str:
        """The identity it was published under."""
        return str(self.manifest["identity"])

    def has(self, name: str) -> bool:
        """Whether it has a file, or a folder with files, of that name."""
        return any(one["path"] == name or one["path"].startswith(f"{name}/") for one in self.manifest["files"])

    def file(self, name: str) -> Path:
        """One of its files or folders, to be read: it is as it was written.

        Raises:
            DamagedArtifact: it is not, or is gone.
        """
        listed = [one for one in self.manifest["files"] if one["path"] == name or one["path"].startswith(f"{name}/")]
        if not listed:
            raise DamagedArtifact(self.path, f"{name} is not in the manifest")
        for one in listed:
            check(self.path, one)
        return self.path / name

    def read_json(self, name: str) -> Any:
        """The content of one of its JSON files.

        Raises:
            DamagedArtifact: it is not as it was written, or is gone.
        """
        return read_json(self.file(name))


def check(folder: Path, listed: Mapping[str, Any]) -> None:
    """Compare a file with its digest, unless this process has and it has not been touched since.

    Raises:
        DamagedArtifact: it is not as it was written.
    """
    path = folder / listed["path"]
    try:
        state = path.stat()
    except OSError:
        raise DamagedArtifact(folder, f"{listed['path']} is missing") from None
    seen = (str(path), state.st_mtime_ns, state.st_size, str(listed["sha256"]))
    if seen in _checked:
        return
    problem = wrong_file(folder, listed)
    if problem:
        raise DamagedArtifact(folder, problem)
    _checked.add(seen)


class Store:
    """All artifacts below one folder. `verify`: compare every file of an artifact with its digest when it is found, and
    not only those that are read, when they are."""

    def __init__(self, root: str | Path, verify: bool = False) -> None:
        self.root = Path(root).expanduser()
        self.verify = verify

    def __reduce__(self) -> tuple[type["Store"], tuple[Path, bool]]:
        """The same store for another process, which may be in another folder."""
        return Store, (self.root.absolute(), self.verify)

    def find(self, key: Key) -> Artifact | None:
        """The artifact of that identity, or `None`.

        Raises:
            DamagedArtifact: its manifest is damaged, or a file is gone or has another size.
        """
        for path in sorted((self.root / key.stage).glob(f"[!.]*-{key.identity}")):
            if path.is_dir():
                return self.open(path)
        return None

    def open(self, path: Path) -> Artifact:
        """The artifact in a folder that is known to be one.

        Raises:
            DamagedArtifact: as `find`.
        """
        try:
            manifest = read_manifest(path)
        except StoreError:
            raise DamagedArtifact(path, f"{MANIFEST} is damaged, missing or of an older version of pet") from None
        for problem in wrong_files(path, manifest, read=False):
            raise DamagedArtifact(path, problem)
        for one in manifest["files"] if self.verify else ():
            check(path, one)
        return Artifact(path, manifest)

    @contextmanager
    def publish(
        self, key: Key, label: str, *, seed: int | None = None, waiting: Callable[[str], None] | None = lambda who: None
    ) -> Iterator[Draft | None]:
        """A draft folder that this process alone fills; when the block ends well it is published, when it raises only
        the checkpoint of its training stays. `None`: another process has published that identity meanwhile.

        `waiting`: is told who is at it already, before that process is waited for; `None`: nobody waits.

        Raises:
            StoreError: the store cannot be written.
            Busy: another process is at it, and nobody is to wait.
        """
        with self.writable(), acquire(self.root, key.stage, key.identity, waiting):
            draft = None if self.find(key) else open_draft(self.root, key, label, seed)
            if draft is None:
                yield None
                return
            try:
                yield draft
                draft.publish()
            finally:
                draft.close()

    @contextmanager
    def writable(self) -> Iterator[None]:
        """Turn what the disk says of the store into one sentence.

        Raises:
            StoreError: the store cannot be written.
        """
        try:
            yield
        except OSError as problem:
            if not self._is_ours(problem):
                raise
            remedy = (
                "make room" if problem.errno in (errno.ENOSPC, errno.EDQUOT) else "give a writable folder with --store"
            )
            raise StoreError(
                f"the store {self.root} cannot be written ({problem.strerror or problem}); {remedy}: nothing "
                "half-written stays, and the same command goes on"
            ) from problem

    def _is_ours(self, problem: OSError) -> bool:
        """Whether it was the store that failed, and not some other file the stage read. Whoever reports that a file is
        gone does not always say which: nothing can be written to a store that is gone itself."""
        full = problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
        return full or str(problem.filename or "").startswith(str(self.root)) or not self.root.is_dir()

    def check_writable(self) -> None:
        """Fail now rather than after an hour of training.

        Raises:
            StoreError: no file can be made in the store.
        """
        self.check_folder()
        with self.writable():
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root):
                pass

    def check_folder(self) -> None:
        """Refuse a store that is a file.

        Raises:
            StoreError: names it.
        """
        if self.root.exists() and not self.root.is_dir():
            raise StoreError(
                f"the store {self.root} is no folder; give the folder that keeps the artifacts with --store"
            )

    def set_aside(self, damage: DamagedArtifact) -> Path | None:
        """Take a damaged artifact away, so that it can be made anew; where it lies now. `None`: it is whole, or gone:
        another process has seen to it.

        Raises:
            StoreError: the store cannot be written.
        """
        folder = damage.folder
        identity = folder.name.rpartition("-")[2]
        with self.writable(), acquire(self.root, folder.parent.name, identity, lambda who: None):
            if not is_damaged(folder, damage.written):
                return None
            aside = folder.with_name(f"{DAMAGED}{folder.name}-{uuid.uuid4().hex[:8]}")
            folder.rename(aside)
            return aside


def is_damaged(folder: Path, written: str | None = None) -> bool:
    """Whether an artifact is not as it was written, or has the manifest with the digest `written`, which is of no use;
    every file is read. What is gone is not."""
    if not folder.is_dir():
        return False
    try:
        manifest = read_manifest(folder)
        return manifest["digest"] == written or any(wrong_files(folder, manifest))
    except StoreError:
        return True
