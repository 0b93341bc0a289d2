"""A builder of `datasets` to put in the place of the library, whose import alone takes seconds."""

import sys
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pyarrow
import pytest


class Table(list[dict[str, Any]]):
    """Rows of one split, as `datasets` hands them over."""

    def with_format(self, kind: str) -> "Table":
        assert kind == "arrow", "nothing is decoded"
        return self

    def iter(self, size: int) -> Iterator[pyarrow.Table]:
        return (pyarrow.Table.from_pylist(self[start : start + size]) for start in range(0, len(self), size))


def patch_hub(
    monkeypatch: pytest.MonkeyPatch,
    rows: Callable[[str], list[dict[str, Any]]],
    reader: str = "parquet",
    files: Sequence[str] | None = None,
    commit: str = "c" * 40,
) -> list[Any]:
    """Put a builder in the place of the library. Returns what it is asked, filled as it is.

    `rows`: of a split; `reader`: which builder it is; `files`: what it would read; `commit`: of what it has.
    """
    asked: list[Any] = []

    class Builder:
        __module__ = f"datasets.packaged_modules.{reader}.{reader}"
        hash = commit

        def __init__(self, path: str, config: str | None, revision: str | None) -> None:
            asked.append((path, config, revision))
            found = [f"{path}@{commit}/a.parquet"] if files is None else files
            self.config = SimpleNamespace(data_files={"train": list(found)})

        def download_and_prepare(self) -> None:
            asked.append("download")

        def as_dataset(self, split: str) -> Table:
            asked.append(split)
            return Table(rows(split))

    fake = SimpleNamespace(load_dataset_builder=Builder, disable_progress_bars=lambda: None)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    return asked
