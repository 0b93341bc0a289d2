"""Texts in columns: what a task reads, a stage samples and an encoder tokenises. No files, no model."""

import itertools
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pet.errors import StoreError
from pet.store.files import digest_json

CHUNK = 8192
"""Texts that are held at a time where they are streamed."""


class TextSource(Protocol):
    """Texts that can be read in chunks: `Texts`, or a file of them."""

    def __len__(self) -> int:
        """How many."""

    def chunks(self) -> "Iterator[Texts]":
        """All of them in order, at most CHUNK at a time."""

    def id_of(self, row: int) -> str:
        """The id of one text."""


@dataclass(frozen=True, slots=True)
class Texts:
    """`n` texts of one task, column by column.

    `ids`: n strings, unique within a source, kept from file to soft label.
    `fields`: field name -> n strings (for AG News: headline, body), in the order of the task card.
    `labels`: n label names, `None` where a text has no label.
    """

    ids: list[str]
    fields: dict[str, list[str]]
    labels: list[str | None]

    def __post_init__(self) -> None:
        lengths = {len(self.ids), len(self.labels), *(len(column) for column in self.fields.values())}
        assert len(lengths) == 1, "columns of different lengths"

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Sequence[int]) -> "Texts":
        """The texts at `rows`, in that order."""
        return Texts(
            ids=[self.ids[row] for row in rows],
            fields={name: [column[row] for row in rows] for name, column in self.fields.items()},
            labels=[self.labels[row] for row in rows],
        )

    def unlabelled(self) -> "Texts":
        """The same texts with every label forgotten: what the pool is made of."""
        return Texts(self.ids, self.fields, [None] * len(self))

    def chunks(self) -> "Iterator[Texts]":
        """The texts in order, at most CHUNK at a time."""
        for start in range(0, len(self), CHUNK):
            yield self.take(range(start, min(start + CHUNK, len(self))))

    def id_of(self, row: int) -> str:
        """The id of one text."""
        return self.ids[row]

    def joined(self, row: int) -> str:
        """All fields of one text, as one string."""
        return " ".join(column[row] for column in self.fields.values())


def concatenate(parts: Sequence[Texts]) -> Texts:
    """The texts of all `parts` (same fields), one after another."""
    assert len({tuple(part.fields) for part in parts}) == 1, "texts of different fields"
    return Texts(
        ids=[one for part in parts for one in part.ids],
        fields={name: [one for part in parts for one in part.fields[name]] for name in parts[0].fields},
        labels=[one for part in parts for one in part.labels],
    )


# ---- texts whose labels chose the label words ----------------------------------------------------------------------


def marks(texts: Texts) -> list[str]:
    """What each text is known by where rows and ids may change: a digest of its fields, white space evened out."""
    fields = texts.fields.values()
    evened = ([" ".join(unicodedata.normalize("NFC", text).split()) for text in column] for column in fields)
    return [digest_json(text)[:16] for text in zip(*evened, strict=True)]


def rows_from(texts: Texts, chosen: Collection[str]) -> list[int]:
    """The rows of the texts that have one of these marks."""
    return [row for row, mark in enumerate(marks(texts)) if mark in chosen] if chosen else []


# ---- texts as the stages keep them ---------------------------------------------------------------------------------


def write_texts(path: Path, texts: Texts, labelled: bool = True) -> None:
    """Write texts as Parquet: columns `id`, one per field, and `label` if asked for."""
    import pyarrow
    import pyarrow.parquet

    columns: dict[str, Any] = {"id": texts.ids, **{f"text_{name}": column for name, column in texts.fields.items()}}
    if labelled:
        columns["label"] = pyarrow.array(texts.labels, pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=CHUNK)


def read_texts(path: Path) -> Texts:
    """Read what `write_texts` wrote; labels are `None` where there is no such column.

    Raises:
        StoreError: the file is missing or damaged; says what to do.
    """
    import pyarrow.parquet

    try:
        return texts_of(pyarrow.parquet.read_table(path).to_pydict())
    except (OSError, pyarrow.ArrowException) as problem:
        raise StoreError(f"{path} cannot be read ({problem}); remove {path.parent} and run its stage again") from None


def texts_of(columns: dict[str, list[Any]]) -> Texts:
    """The columns of `write_texts` as texts."""
    ids = columns.pop("id")
    labels = columns.pop("label", [None] * len(ids))
    return Texts(ids, {name.removeprefix("text_"): column for name, column in columns.items()}, labels)


class TextFile:
    """What `write_texts` wrote, read in chunks: memory does not grow with it."""

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet

        self.path = path
        self._count: int = pyarrow.parquet.read_metadata(path).num_rows

    def __len__(self) -> int:
        return self._count

    def chunks(self) -> Iterator[Texts]:
        """All texts in order, at most CHUNK at a time."""
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(self.path) as file:
            for group in range(file.num_row_groups):  # pyarrow's iterator over all of them holds something for each
                yield texts_of(file.read_row_group(group).to_pydict())

    def take(self, rows: Sequence[int]) -> Texts:
        """The texts at `rows`, in that order."""
        place = {row: number for number, row in enumerate(sorted(rows))}
        parts, start = [], 0
        for chunk in self.chunks():
            parts.append(chunk.take([row - start for row in place if start <= row < start + len(chunk)]))
            start += len(chunk)
        return concatenate(parts).take([place[row] for row in rows])

    def id_of(self, row: int) -> str:
        """The id of one text."""
        return next(itertools.islice((one for chunk in self.chunks() for one in chunk.ids), row, None))
