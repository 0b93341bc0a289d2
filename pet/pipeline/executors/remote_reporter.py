"""What tasks of a cluster say, and who hears it: a hub with a box for each walk, a reporter that puts words into a box,
and what tells another reporter what came. Of Ray it knows that an actor's method is called by `remote`, no more.
"""

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

from pet.training.reporter import Advance, Reporter, events

TOLD_EVERY = 0.3
"""Seconds between two words of a task about how far it is, and between two looks at what was said."""


class MessageActor:
    """Where all tasks say how it goes; an actor."""

    def __init__(self) -> None:
        self.said: dict[str, list[tuple[Any, ...]]] = {}

    def put(self, box: str, event: tuple[Any, ...]) -> None:
        """One word of a task."""
        self.said.setdefault(box, []).append(event)

    def drain(self, box: str) -> list[tuple[Any, ...]]:
        """Everything said since the last time."""
        return self.said.pop(box, [])

    def heard(self) -> None:
        """Nothing: who has an answer knows that what it said before has come."""


class RemoteReporter(Reporter):
    """A reporter that tells the hub. `name`: what its words begin with, if anything."""

    loggers = (events,)

    def __init__(self, hub: Any, box: str, name: str) -> None:
        self.hub, self.box = hub, box
        self.prefix = f"{name}: " if name else ""

    def put(self, *event: Any) -> None:
        """One word."""
        self.hub.put.remote(self.box, event)

    def say(self, message: str) -> None:
        """One line."""
        super().say(message)
        self.put("say", self.prefix + message)

    def warn(self, message: str) -> None:
        """One line that stands out."""
        super().warn(message)
        self.put("say", f"{self.prefix}Warning: {message}")

    @contextlib.contextmanager
    def bar(self, label: str, total: int, unit: str) -> Iterator[Advance]:
        """A bar."""
        bar = f"{os.uname().nodename}-{os.getpid()}-{time.monotonic_ns()}"
        self.put("open", bar, self.prefix + label, total, unit)
        done, told = 0, time.monotonic()

        def advance(more: int) -> None:
            nonlocal done, told
            done += more
            if time.monotonic() - told > TOLD_EVERY:
                self.put("advance", bar, done)
                done, told = 0, time.monotonic()

        try:
            yield advance
        finally:
            self.put("close", bar, done)

    def log(self, name: str, values: Mapping[str, float], step: int) -> None:
        """Numbers."""
        super().log(name, values, step)
        self.put("log", self.prefix + name, dict(values), step)


class Replayer:
    """Tells a reporter what tasks said."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter
        self.bars: dict[str, tuple[AbstractContextManager[Advance], Advance]] = {}

    def show(self, said: list[tuple[Any, ...]]) -> None:
        """Everything, in order."""
        for kind, *facts in said:
            if kind == "say":
                self.reporter.say(*facts)
            elif kind == "log":
                self.reporter.log(*facts)
            elif kind == "open":
                bar = self.reporter.track(*facts[1:])
                self.bars[facts[0]] = (bar, bar.__enter__())
            elif facts[0] in self.bars:
                self.bars[facts[0]][1](facts[1])
                if kind == "close":
                    self.bars.pop(facts[0])[0].__exit__(None, None, None)

    def close(self) -> None:
        """Close the bars of tasks that were lost."""
        for bar, _ in self.bars.values():
            bar.__exit__(None, None, None)
        self.bars.clear()
