"""Labels that a person gave to texts of a task: the CSV file that they are written into, and how it is read back.

A label belongs to a text, and the file names the text by its id. Where a source has no ids of its own, an id is a row
number (`train.csv:7`), and names another text once a row is inserted. So the file carries the text too, and what it
carries is compared with the text of that id: where they differ, the label goes to the text that the file carries.
"""

import unicodedata
from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pet.config.limits import path_of
from pet.errors import TaskError, raise_problems
from pet.tasks.card import FolderSource, Source, TaskCard
from pet.tasks.readers import ReadingRules, Row, read_rows
from pet.tasks.sources import columns_of, read_field, read_label
from pet.tasks.texts import Texts

COLUMNS = ("id", "label", "suggested_label", "probability", "disagreement")
"""Columns of the file that are not texts."""

GUARD = "'"
"""Before a cell that a spreadsheet would take for a formula, it makes the cell a text."""

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What a formula may begin with; the last four are the full-width = + - @ (OWASP, CSV injection)."""

SHOWN_IDS = 3
"""Ids that are named where a text stands in several rows."""


def guarded(text: str) -> str:
    """A cell of a file that a person opens in a spreadsheet: none that comes from somebody's texts is calculated."""
    return GUARD + text if text.startswith(FORMULA) else text


def field_columns(fields: Sequence[str]) -> dict[str, str]:
    """Field -> the column that has its text; `text_` stands before a name that the file needs for something else."""
    names: dict[str, str] = {}
    for field in fields:
        name = field
        while name in COLUMNS or name in names.values() or (name != field and name in fields):
            name = f"text_{name}"
        names[field] = name
    return names


@dataclass(frozen=True)
class GivenFile:
    """What one file gave: rows with a label and rows without; labels that went to a text which has another id now; and
    labels whose text is named by a row number alone."""

    path: Path
    labelled: int
    skipped: int
    moved: int
    unchecked: int

    def notes(self) -> list[str]:
        """How many labels it gave, and what a person should look at, a sentence each."""
        skipped = f"; {self.skipped} rows without one skipped" if self.skipped else ""
        return [f"{self.labelled} labels given by {self.path}{skipped}", *self.remarks()]

    def remarks(self) -> list[str]:
        """What a person should look at."""
        found = []
        if self.moved:
            found.append(
                f"{self.moved} of the labels of {self.path} went to the text that their row carries, which has another "
                "id now: the task's texts have changed since the file was written"
            )
        if self.unchecked:
            found.append(
                f"{self.unchecked} of the labels of {self.path} name their text by a row number alone: if a row was "
                "inserted or removed since, they are on other texts; keep the columns of texts that `pet suggest` "
                "writes, or give the task's card an `id:` column"
            )
        return found


@dataclass(frozen=True)
class GivenLabels:
    """Texts of the task that were labelled by hand: id -> label, sorted by id; and what each file gave."""

    labels: dict[str, str]
    files: tuple[GivenFile, ...] = ()


def read_given_labels(card: TaskCard, source: Source, paths: Sequence[str], texts: Texts) -> GivenLabels:
    """The labels in CSV files with the columns `id` and `label`; rows without a label are skipped.

    A row may carry its text, in columns named like the card's fields (as `pet suggest` writes them) or like the
    source's columns. Then the label goes to that text, whatever its id is now.

    Args:
        card: Names the fields and the labels.
        source: Where the texts come from: whether their ids are row numbers, and how fields are made of columns.
        paths: The files.
        texts: Those that may be labelled.

    Raises:
        TaskError: A file cannot be read or has no label at all; or, all of them with their lines, rows whose label is
            unknown, whose text cannot be found, or that give a text a second label.
    """
    places = Places(card, source, texts)
    labels: dict[str, str] = {}
    files = []
    problems: list[str] = []
    for path in map(path_of, paths):
        labelled = skipped = moved = unchecked = 0
        for row in read_rows(path, ReadingRules("csv")):
            missing = [name for name in ("id", "label") if name not in row.values]
            if missing:
                raise TaskError(
                    f"{path} has no column {missing[0]!r} in its first line; expected `id` and `label`, as "
                    f"`pet suggest` writes them, found {list(row.values)}"
                )
            try:
                known = Row(row.where, {"label": as_known(row.values["label"], card.labels)})
                label = read_label(card, Source(), known)
                place = None if label is None else places.find(row)
            except ValueError as problem:
                problems.append(f"{row.where}: {problem}")
                continue
            if label is None or place is None:
                skipped += 1
            elif labels.setdefault(place.id, label) != label:
                problems.append(f"{row.where}: id {place.id!r} is {label!r} here and {labels[place.id]!r} before")
            else:
                labelled += 1
                moved += place.moved
                unchecked += place.unchecked
        files.append(GivenFile(path, labelled, skipped, moved, unchecked))
    raise_problems(TaskError, "labels given by hand", problems)
    empty = [f"{file.path} gives no text a label; fill in its column `label`" for file in files if not file.labelled]
    raise_problems(TaskError, "labels given by hand", empty)
    return GivenLabels(dict(sorted(labels.items())), tuple(files))


def as_known(cell: str, known: Container[str]) -> str:
    """What is known by the name in a cell: as it stands there, else without what `guarded` put before it."""
    bare = cell.strip()
    names = (cell, bare, cell.removeprefix(GUARD), bare.removeprefix(GUARD))
    return next((name for name in names if name in known), bare)


# ---- which text a row means ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """The text that a row means. `moved`: it was found by the text that the row carries, as the row's id is no longer
    its own; `unchecked`: the id is a row number, and the row carries no text to compare."""

    id: str
    moved: bool
    unchecked: bool


class Places:
    """The texts that may be labelled, to be found by id and by what they say."""

    def __init__(self, card: TaskCard, source: Source, texts: Texts) -> None:
        self.card = card
        self.source = source
        self.texts = texts
        self.by_number = source.id is None and not isinstance(source, FolderSource)
        self.rows: dict[str, list[int]] = defaultdict(list)
        for number, name in enumerate(texts.ids):
            self.rows[name].append(number)
        self._ids: dict[tuple[str, ...], dict[tuple[str, ...], set[str]]] = {}

    def find(self, row: Row) -> Place:
        """The text that a row of a labels file means; ValueError with what is wrong where none or several could be."""
        name = as_known(row.values["id"], self.rows)
        carried = self.carried(row)
        if name in self.rows and (not carried or any(self.agrees(name, one) for one in carried)):
            return Place(name, moved=False, unchecked=self.by_number and not carried)
        found = sorted(set().union(*(self.ids_of(one) for one in carried)))
        if len(found) == 1:
            return Place(found[0], moved=True, unchecked=False)
        if found:
            shown = ", ".join(map(repr, found[:SHOWN_IDS])) + (", ..." if len(found) > SHOWN_IDS else "")
            raise ValueError(f"its text is not that of id {name!r} and stands at {shown}; write the id that is meant")
        if name in self.rows:
            raise ValueError(
                f"its text is not that of id {name!r}, and no other text is the same; correct it, or empty its cells, "
                "and the id alone counts"
            )
        nor = ", and no text is the same" if carried else ""
        raise ValueError(f"id {name!r} is of no text that task {self.card.name!r} has outside its test file{nor}")

    def carried(self, row: Row) -> list[dict[str, str]]:
        """The text that a row carries, field by field: as `pet suggest` writes it, and as the source's columns have it;
        nothing where there are no such columns, or they are all empty."""
        values = row.values
        columns = {field: as_known(guarded(name), values) for field, name in field_columns(self.card.fields).items()}
        written = {field: values[name] for field, name in columns.items() if name in values}
        copied = {}
        for field in self.card.fields:
            needed = columns_of(self.source, [field])
            if needed and all(name in values and name not in COLUMNS for name in needed):
                copied[field] = read_field(field, self.source, row)
        return [one for one in (written, copied) if any(map(comparable, one.values()))]

    def agrees(self, name: str, carried: Mapping[str, str]) -> bool:
        """Whether a text of that id says what a row carries."""
        return any(
            all(is_same(one, self.texts.fields[field][number]) for field, one in carried.items())
            for number in self.rows[name]
        )

    def ids_of(self, carried: Mapping[str, str]) -> set[str]:
        """The ids of all texts that say what a row carries. They are compared all at once, when first asked for."""
        fields = tuple(carried)
        if fields not in self._ids:
            found: dict[tuple[str, ...], set[str]] = defaultdict(set)
            columns = (map(comparable, self.texts.fields[field]) for field in fields)
            for name, said in zip(self.texts.ids, zip(*columns, strict=True), strict=True):
                found[said].add(name)
            self._ids[fields] = found
        return self._ids[fields].get(tuple(map(comparable, carried.values())), set())


def comparable(text: str) -> str:
    """What of a text a spreadsheet leaves as it is: white space, characters that nobody sees, the way in which accents
    are written and a quotation mark before it may all be different."""
    seen = unicodedata.normalize("NFC", text)
    if not seen.isprintable():  # few texts are not, and to look at each character takes long
        seen = "".join(one if one.isprintable() else " " if one.isspace() else "" for one in seen)
    return " ".join(" ".join(seen.split()).removeprefix(GUARD).split())


def is_same(cell: str, text: str) -> bool:
    """Whether a cell has a text, as far as a spreadsheet can keep it."""
    return comparable(cell) == comparable(text) or ("?" in cell and is_same_but_lost(cell, text))


def is_same_but_lost(cell: str, text: str) -> bool:
    """Whether a cell has a text that was saved in an encoding without some of its characters: `?` stands for each of
    them, two where UTF-16 needs two units. At least half of the text must be there."""
    ours, theirs = (" ".join(one.split()).removeprefix(GUARD) for one in (cell, text))
    theirs = "".join("\ufffd\ufffd" if one > "\uffff" else one for one in theirs)
    same = sum(one == other for one, other in zip(ours, theirs, strict=False))
    lost = sum(one == "?" and not other.isascii() for one, other in zip(ours, theirs, strict=False))
    return len(ours) == len(theirs) == same + lost and same >= lost
