"""What a stage reports its progress to: `logging`, and whoever shows it. In a notebook,

    logging.basicConfig(level=logging.INFO)

prints what is said; with DEBUG numbers are printed too, and when a bar begins and ends.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

Advance = Callable[[int], None]

logger = logging.getLogger("pet")
"""For the user, who decides what is shown of it."""

events = logging.getLogger("pet.events")
"""Everything, for `pet.pipeline.event_log`, whatever the user wants to see."""
events.setLevel(logging.DEBUG)
events.propagate = False
for each in (logger, events):
    each.addHandler(logging.NullHandler())

LEVELS = {"say": logging.INFO, "warn": logging.WARNING}
"""Event -> its level; the others are for debugging."""


class Reporter:
    """Where a stage says how it goes: each event is a record with `event` and `facts`, a dictionary. What shows it in
    another way is a subclass, which leaves `pet` out of its `loggers`, so that nothing is shown twice."""

    loggers: ClassVar[tuple[logging.Logger, ...]] = (logger, events)

    def say(self, message: str) -> None:
        """One line for the person watching."""
        self.note("say", message=message)

    def warn(self, message: str) -> None:
        """One line that stands out."""
        self.note("warn", message=message)

    @contextlib.contextmanager
    def track(self, label: str, total: int, unit: str) -> Iterator[Advance]:
        """A progress bar of `total` units; the context's value is called with the units just done."""
        bar: dict[str, Any] = {"label": label, "total": total, "unit": unit}
        started, done = time.perf_counter(), 0
        self.note("begin", **bar)
        try:
            with self.bar(**bar) as shown:

                def advance(more: int) -> None:
                    nonlocal done
                    done += more
                    shown(more)

                yield advance
        finally:
            self.note("end", **bar, done=done, seconds=round(time.perf_counter() - started, 3))

    def bar(self, label: str, total: int, unit: str) -> contextlib.AbstractContextManager[Advance]:
        """How the bar of `track` is shown: not at all."""
        return contextlib.nullcontext(lambda more: None)

    def log(self, name: str, values: Mapping[str, float], step: int) -> None:
        """Numbers for the tracker, named `name/...`, at training step `step`."""
        self.note("numbers", name=name, values=dict(values), step=step)

    def note(self, event: str, **facts: Any) -> None:
        """Log one event."""
        text = facts.get("message") or f"{event}: " + ", ".join(f"{name} {fact}" for name, fact in facts.items())
        for one in self.loggers:
            one.log(LEVELS.get(event, logging.DEBUG), text, extra={"event": event, "facts": facts})


class Silent(Reporter):
    """A reporter that says nothing."""

    loggers = ()
