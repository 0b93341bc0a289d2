"""transformers and the libraries under it, kept quiet."""

import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError


@contextmanager
def silenced(*loggers: str) -> Iterator[None]:
    """No warnings, and of these loggers errors alone."""
    before = [(one, one.level) for one in map(logging.getLogger, loggers)]
    for one, _ in before:
        one.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for one, level in before:
            one.setLevel(level)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and load reports of transformers; its errors still come through."""
    from transformers.utils import logging as transformers_logging

    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with silenced("transformers", "huggingface_hub"):
            yield
    finally:
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


@contextmanager
def os_errors() -> Iterator[None]:
    """Raise what safetensors says of a disk, `... (os error 28)` in an error of its own, as Python's OSError."""
    try:
        yield
    except SafetensorError as problem:
        number = re.search(r"\(os error (\d+)\)", str(problem))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from problem
