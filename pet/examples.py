"""Texts in columns: what a task reads, a stage samples and an encoder tokenises. No files, no model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

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
