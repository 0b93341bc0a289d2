"""What happened in a run, as it happens: the records of its reporter, a JSON object per line, for unattended work.

    <store>/logs/<UTC time>-<label>-<pid>.jsonl     while it goes on
    <store>/run/<run>/events.jsonl                  the same up to the moment when the run was written

Every line has `time` and `event`; the first one is `start` and says who runs what. A line is one write to a file opened
to append, so a process that is killed leaves at most one broken line, the last. What is written is part of no identity,
and nothing that goes wrong with it stops a run. What a person sees is the business of the reporter.
"""

import contextlib
import json
import logging
import os
import shlex
import socket
import sys
import traceback
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pet.store.environment import environment
from pet.store.files import digest_json
from pet.store.key import IDENTITY_LENGTH
from pet.training.reporter import Reporter, events

FOLDER = "logs"
FILE = "events.jsonl"


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON: time, event, `about` (what all lines have) and the facts of the event."""

    about: Mapping[str, Any] = {}

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        facts = vars(record).get("facts", {"message": record.getMessage()})
        return as_json({"time": utc(record.created), "event": vars(record).get("event", "say"), **self.about, **facts})


class EventLog(logging.Handler):
    """Inside the block, records of `events` are appended to a file and go to no other log. The first record creates it:
    what is refused before anything is done leaves none. A log that cannot be written is warned of once, and then off.
    """

    def __init__(self, path: Path, start: Mapping[str, Any], reporter: Reporter) -> None:
        super().__init__()
        self.path = path
        self.lines = self.formatter = JsonFormatter()
        self.begins = 0
        """Where in the file the part begins that `save` copies."""
        self._start = start
        self._reporter = reporter
        self._file: int | None = None

    def __enter__(self) -> Reporter:
        self._outer, events.handlers = events.handlers, [self]
        return self._reporter

    def __exit__(self, _: object, problem: BaseException | None, __: object) -> None:
        if self._file is not None:
            self._reporter.note(**ending(problem))
            with contextlib.suppress(OSError):
                os.close(self._file)
        events.handlers = self._outer

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        lines = [self.format(record)]
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
                code = {"version": environment()["packages"].get("pet"), "code": environment()["code"]}
                lines.insert(0, as_json({**self._start, **code}))
            for line in lines:
                content = f"{line}\n".encode("utf-8", "backslashreplace")  # a name may be no Unicode
                if os.write(self._file, content) < len(content):
                    raise OSError("the disk is full")
        except OSError as problem:
            self.setLevel(logging.CRITICAL + 1)
            said = problem.strerror or problem
            self._reporter.warn(f"the log {self.path} cannot be written ({said}); the run goes on")


def open_log(store: Path, label: str, reporter: Reporter, settings: Any, **facts: Any) -> EventLog:
    """A log, in a store, of what this process does. `label`: of its name; `reporter`: what the context gives;
    `settings`: as JSON, of which the log has the digest; `facts`: more of the first line."""
    now = datetime.now(UTC)
    start = {
        "time": utc(now.timestamp()),
        "event": "start",
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "command": shlex.join(["pet", *sys.argv[1:]]),
        **facts,
        "settings": digest_json(settings)[:IDENTITY_LENGTH],
    }
    name = f"{now:%Y%m%dT%H%M%S}.{now.microsecond // 1000:03}Z-{label}-{os.getpid()}.jsonl"
    return EventLog(store / FOLDER / name, start, reporter)


@contextlib.contextmanager
def within(**about: Any) -> Iterator[None]:
    """Write `about` on every line of the block, if there is a log, and let `save` begin with it."""
    log = current()
    if log is None:
        yield
        return
    before = log.lines.about, log.begins
    log.lines.about = {**log.lines.about, **about}
    with contextlib.suppress(OSError):
        log.begins = log.path.stat().st_size
    try:
        yield
    finally:
        log.lines.about, log.begins = before


def save(reporter: Reporter, folder: Path, run: str) -> None:
    """Put what was written so far into the folder of a run, if there is a log: the first line, and those of the block
    that goes on. `run`: the run's name.

    Raises:
        OSError: the folder cannot be written.
    """
    reporter.note("run", name=run)
    log = current()
    if log is None or not log.path.is_file():  # it cannot be written, which has been said
        return
    with log.path.open("rb") as file:
        lines = [file.readline()]
        file.seek(max(log.begins, file.tell()))
        lines += file
    (folder / FILE).write_bytes(b"".join(lines))


def current() -> EventLog | None:
    """The log that is being written."""
    return next((one for one in events.handlers if isinstance(one, EventLog)), None)


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


def utc(seconds: float) -> str:
    """A time, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def as_json(content: Mapping[str, Any]) -> str:
    """JSON in one line; `nan`, `inf` and what JSON does not know become text, and numpy's numbers are numbers."""
    known = json.dumps(content, default=lambda value: value.item() if hasattr(value, "item") else str(value))
    return json.dumps(json.loads(known, parse_constant=lambda name: str(float(name))), ensure_ascii=False)
