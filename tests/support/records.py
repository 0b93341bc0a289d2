"""What a user who configures `logging` sees: `caplog` would show also what goes to no root logger."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def root_records(level: int, formatter: logging.Formatter | None = None) -> Iterator[list[logging.LogRecord]]:
    """The records of the block that `logging.basicConfig(level=level)` would print; `message` is what is printed."""
    handler, root, found = logging.Handler(), logging.getLogger(), list[logging.LogRecord]()
    handler.setFormatter(formatter)

    def keep(record: logging.LogRecord) -> None:
        record.message = handler.format(record)
        found.append(record)

    handler.emit = keep  # type: ignore[method-assign]
    before = root.level
    root.setLevel(level)
    root.addHandler(handler)
    try:
        yield found
    finally:
        root.removeHandler(handler)
        root.setLevel(before)
