"""What a training reports its progress to."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

Advance = Callable[[int], None]


class Reporter(Protocol):
    """Where a stage says how it goes."""

    def say(self, message: str) -> None:
        """One line for the person watching."""

    def track(self, label: str, total: int, unit: str) -> AbstractContextManager[Advance]:
        """A progress bar of `total` units; the context's value is called with the units just done."""

    def log(self, name: str, values: Mapping[str, float], step: int) -> None:
        """Numbers for the tracker, named `name/...`, at training step `step`."""


class Silent:
    """A reporter that says nothing."""

    def say(self, message: str) -> None:
        """Ignore."""

    @contextlib.contextmanager
    def track(self, label: str, total: int, unit: str) -> Iterator[Advance]:
        """No bar."""
        yield lambda done: None

    def log(self, name: str, values: Mapping[str, float], step: int) -> None:
        """Ignore."""
