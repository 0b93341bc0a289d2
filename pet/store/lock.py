"""One process at an identity: a lock file for each, which is free when its holder dies."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from pet.errors import Busy
from pet.store.key import Key

PREFIX = ".draft-"
LOCKS = ".locks"

POLL_SECONDS = 0.2
"""Between two looks at a lock that another process holds."""


def folder_of(root: Path, key: Key) -> Path:
    """Where the draft of an identity lies."""
    return root / key.stage / f"{PREFIX}{key.identity}"


@contextmanager
def acquire(root: Path, stage: str, identity: str, waiting: Callable[[str], None] | None) -> Iterator[None]:
    """Hold the lock of an identity of a stage in the block. `waiting`: is given the holder's name once, before that is
    waited for; `None`: nobody waits.

    Raises:
        Busy: another process is at it, and nobody is to wait.
        OSError: the store cannot be written.
    """
    (root / LOCKS).mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / LOCKS / f"{stage}-{identity}", mode=0o666)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if waiting is None:
            raise Busy(f"another process is at {stage} {identity}") from None
        waiting(holder(Path(lock.lock_file)))
        lock.acquire(poll_interval=POLL_SECONDS)
    with suppress(OSError):  # for others to read, no more
        Path(lock.lock_file).write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
    try:
        yield
    finally:
        lock.release()


def is_locked(root: Path, stage: str, identity: str) -> bool:
    """Whether a process is at an identity."""
    path = root / LOCKS / f"{stage}-{identity}"
    if not path.is_file():
        return False
    try:
        with FileLock(path).acquire(timeout=0):
            return False
    except Timeout:
        return True


def holder(path: Path) -> str:
    """Who holds a lock."""
    with suppress(OSError, UnicodeDecodeError):
        return path.read_text(encoding="utf-8") or "another process"
    return "another process"
