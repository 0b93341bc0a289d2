"""Ctrl-C and a request to end (SIGTERM): told at once, or, while a step is computed or an artifact is put in its place,
when that is done. Knows nothing of what is stopped."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

HEEDED = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """The process was asked to stop. `code`: what it exits with, 128 and the signal's number, as shells count."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number


class _State:
    """Of the process: signals are its own."""

    deferring = 0
    asked: int | None = None


@contextmanager
def heeded() -> Iterator[None]:
    """Inside, both signals raise `Stopped` in the main thread, unless `deferred`; afterwards all is as it was. In
    another thread, which cannot listen, nothing is changed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _hear) for number in HEEDED}
    _State.asked = None
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _hear(number: int, frame: FrameType | None) -> None:
    if _State.deferring and _State.asked is None:
        _State.asked = number
        return
    _State.asked = None
    raise Stopped(number)


@contextmanager
def deferred() -> Iterator[None]:
    """Inside, the first signal is only noted: `asked` tells. It is raised on leaving; a second one is raised at once.

    Raises:
        Stopped: there was one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _State.deferring += 1
    try:
        yield
    finally:
        _State.deferring -= 1
    heed()


def ask(number: int = signal.SIGTERM) -> None:
    """As if a signal had come: it came to another process of the same work."""
    if _State.asked is None:
        _State.asked = number


def asked() -> bool:
    """Whether a signal is waiting to be heeded."""
    return _State.asked is not None


def heed() -> None:
    """Stop, if a signal is waiting and nobody defers it.

    Raises:
        Stopped: there was one.
    """
    if _State.asked is not None and not _State.deferring:
        number, _State.asked = _State.asked, None
        raise Stopped(number)
