"""What happened in a run, as it happens: a reporter that also writes a JSON object a line, for unattended work.

    <store>/logs/<UTC time>-<label>-<pid>.jsonl     while it goes on
    <store>/run/<run>/events.jsonl                  the same up to the moment when the run was written

Every line has `time` and `event`; the first one is `start` and says who runs what. A line is one write to a file opened
to append, so a process that is killed leaves at most one broken line, the last. What is written is part of no identity,
and nothing that goes wrong with it stops a run. What a person sees is the business of the reporter that stands behind.
"""

import contextlib
import json
import math
import os
import shlex
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Protocol

from pet.store.environment import environment
from pet.store.files import digest_json
from pet.store.key import IDENTITY_LENGTH
from pet.training.reporter import Advance, Reporter

FOLDER = "logs"
FILE = "events.jsonl"


class Voice(Reporter, Protocol):
    """A reporter that can also warn."""

    def warn(self, message: str) -> None:
        """One line that stands out."""


class Log:
    """A reporter that passes everything on to `behind` and writes it down. The file is begun by its first event: what
    is refused before anything is done leaves none."""

    def __init__(self, path: Path, behind: Voice, start: Mapping[str, Any]) -> None:
        self.path = path
        self._behind = behind
        self._start = {"time": now(), "event": "start", "pid": os.getpid(), "host": socket.gethostname(), **start}
        self._file: int | None = None
        self._off = False
        self._about: dict[str, Any] = {}
        self._from = 0

    def say(self, message: str) -> None:
        """One line for the person watching."""
        self.note("say", message=message)
        self._behind.say(message)

    def warn(self, message: str) -> None:
        """One line that stands out."""
        self.note("warn", message=message)
        self._behind.warn(message)

    @contextlib.contextmanager
    def track(self, label: str, total: int, unit: str) -> Iterator[Advance]:
        """A bar; its beginning and its end are written, the latter with what was done and how long it took."""
        bar: dict[str, Any] = {"label": label, "total": total, "unit": unit}
        begun, done = time.perf_counter(), 0
        self.note("begin", **bar)
        try:
            with self._behind.track(label, total, unit) as advance:

                def count(more: int) -> None:
                    nonlocal done
                    done += more
                    advance(more)

                yield count
        finally:
            self.note("end", **bar, done=done, seconds=round(time.perf_counter() - begun, 3))

    def log(self, name: str, values: Mapping[str, float], step: int) -> None:
        """Numbers."""
        self.note("numbers", name=name, values=values, step=step)
        self._behind.log(name, values, step)

    def note(self, event: str, **facts: Any) -> None:
        """Write one event. A log that cannot be written is warned of once, and off from then on."""
        if self._off:
            return
        try:
            if self._file is None:
                self._open()
            self._write({"time": now(), "event": event, **self._about, **facts})
        except OSError as problem:
            self._off = True
            self._behind.warn(f"the log {self.path} cannot be written ({problem.strerror or problem}); the run goes on")

    @contextlib.contextmanager
    def within(self, **about: Any) -> Iterator[None]:
        """Write `about` on every line of the block, and let `copy` begin with it."""
        before = self._about, self._from
        self._about = self._about | about
        with contextlib.suppress(OSError):
            self._from = self.path.stat().st_size
        try:
            yield
        finally:
            self._about, self._from = before

    def copy(self, path: Path) -> None:
        """Copy what was written so far: the first line, and those of the block that goes on.

        Raises:
            OSError: `path` cannot be written.
        """
        try:
            with self.path.open("rb") as file:
                lines = [file.readline()]
                file.seek(max(self._from, file.tell()))
                lines += file
        except OSError:
            return  # there is none, which has been said
        path.write_bytes(b"".join(lines))

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, _: object, problem: BaseException | None, __: object) -> None:
        if self._file is None:
            return
        self.note(**ending(problem))
        with contextlib.suppress(OSError):
            os.close(self._file)
        self._file, self._off = None, True

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        self._write({**self._start, "version": environment()["packages"].get("pet"), "code": environment()["code"]})

    def _write(self, content: Mapping[str, Any]) -> None:
        text = json.dumps(plain(content), ensure_ascii=False, allow_nan=False) + "\n"
        line = text.encode("utf-8", "backslashreplace")  # of a name that is no Unicode; `\udcff` is JSON, too
        assert self._file is not None
        if os.write(self._file, line) < len(line):
            raise OSError("the disk is full")


def open_log(store: Path, label: str, behind: Voice, settings: Any, **facts: Any) -> Log:
    """The log of what this process does, in a store. `label`: of its name; `settings`: as JSON, of which the log has
    the digest; `facts`: more of the first line."""
    begun = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")[:-3]
    start = {
        "command": shlex.join(["pet", *sys.argv[1:]]),
        **facts,
        "settings": digest_json(settings)[:IDENTITY_LENGTH],
    }
    return Log(store / FOLDER / f"{begun}Z-{label}-{os.getpid()}.jsonl", behind, start)


def ending(problem: BaseException | None) -> dict[str, Any]:
    """The event of how something ended: done, interrupted (`KeyboardInterrupt`, whose argument may be a signal's name),
    or failed, with the traceback."""
    if problem is None:
        return {"event": "done"}
    if isinstance(problem, KeyboardInterrupt):
        return {"event": "interrupted", "signal": str(problem) or "SIGINT"}
    return {
        "event": "failed",
        "type": type(problem).__name__,
        "problem": " ".join(str(problem).split()),
        "traceback": "".join(traceback.format_exception(problem)),
    }


def read_events(path: Path) -> list[dict[str, Any]]:
    """The events of a log. The last line is left out if it is broken: its process was killed.

    Raises:
        OSError: it cannot be read.
        ValueError: another line is no JSON.
    """
    *lines, last = path.read_bytes().split(b"\n")
    events = [json.loads(line) for line in lines]
    with contextlib.suppress(ValueError):
        events.append(json.loads(last))
    return events


# ---- for those who are given any reporter --------------------------------------------------------------------------


def note(reporter: Reporter, event: str, **facts: Any) -> None:
    """Write one event that nobody is told, if there is a log."""
    if isinstance(reporter, Log):
        reporter.note(event, **facts)


def within(reporter: Reporter, **about: Any) -> contextlib.AbstractContextManager[None]:
    """Write `about` on every line of the block, if there is a log."""
    return reporter.within(**about) if isinstance(reporter, Log) else contextlib.nullcontext()


def save(reporter: Reporter, folder: Path, run: str) -> None:
    """Put what was written so far into the folder of a run, if there is a log. `run`: the run's name."""
    if isinstance(reporter, Log):
        reporter.note("run", name=run)
        reporter.copy(folder / FILE)


# ---- lines ---------------------------------------------------------------------------------------------------------


def now() -> str:
    """UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def plain(value: Any) -> Any:
    """A value as JSON has it: `nan`, `inf` and what JSON does not know become text."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, Integral):  # numpy's too
        return int(value)
    if isinstance(value, Real):
        value = float(value)
        return value if math.isfinite(value) else str(value)
    return str(value)
