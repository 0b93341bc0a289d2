"""Task cards, and the texts they point at: from `data/<task>/task.yaml` to `Texts` per split.

A card says what the texts are (fields, labels), what to ask (patterns, verbalizers) and where the texts come from. A
source may be `files` (CSV, TSV, JSONL, Parquet, each also .gz), a `folder` with one sub-folder per label, or a `hub`
dataset. Nothing here samples, tokenises or trains.
"""

import codecs
import csv
import importlib.util
import io
import itertools
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from pet.config.hub import hub_reachable
from pet.config.limits import (
    MAX_COLUMNS,
    MAX_FIELD,
    MAX_UNPACKED,
    is_file,
    is_folder,
    is_unicode,
    leads_inside,
    path_of,
    read_bytes,
    stays_inside,
)
from pet.config.messages import parse_model
from pet.config.resolve import read_extended
from pet.config.schema import Concern, Revision, spelled
from pet.config.shipped import find_file
from pet.errors import SHOWN_PROBLEMS, StoreError, TaskError, raise_problems
from pet.examples import CHUNK, Texts, concatenate
from pet.patterns import PVP, parse_pattern
from pet.store.files import digest_json

SPLITS = ("train", "test", "unlabelled")
SOURCES = ("files", "folder", "hub")
SUFFIXES = ("", ".gz")
NOT_TEXT = ("idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined", "mbcs", "oem")
"""Encodings of Python that no text file has; some take time that grows with the square of its length."""

PackageName = Annotated[str, spelled(r"[A-Za-z][A-Za-z0-9_]*", "the name of an installed Python package")]
Requirement = Annotated[str, spelled(r"[A-Za-z0-9][A-Za-z0-9._=,\[\]-]*", "what pip installs, as in name==1.0")]
DatasetName = Annotated[
    str,
    spelled(
        r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?",
        "OWNER/NAME as the hub shows it; local files are named in `files:`",
    ),
]
ConfigName = Annotated[str, spelled(r"[\w(][\w ().,+=@-]*", "the name of a configuration, as the hub shows it")]
Mark = Annotated[str, spelled(r"[0-9a-f]{16}", "digests of 16 hexadecimal digits")]


class Source(Concern):
    """What every source says: how its columns become the card's fields and labels."""

    label: str | None = Field("label", description="column with the label; null: the source has none")
    id: str | None = Field(None, description="column with an id; default: the row's file and line")
    fields: dict[str, str] = Field({}, description="field -> template over columns, e.g. '{title} {body}'")
    labels: dict[str, str] = Field({}, description="label as written in the source -> label of the card")
    replace: dict[str, str] = Field({}, description="applied in order to every text: what -> by what")
    where: dict[str, str] = Field({}, description="keep only rows whose column has this value")


class FilesSource(Source):
    """One file per split, in the card's folder or the one given by --data; `.gz` is found too."""

    format: Literal["csv", "tsv", "jsonl", "parquet"]
    train: str | None = None
    test: str | None = None
    unlabelled: str | None = None
    columns: tuple[str, ...] | None = Field(None, description="names of the columns of a file without a header line")
    quoted: bool = Field(True, description="false: quotation marks have no meaning (GLUE's TSV files)")
    encodings: tuple[str, ...] = Field(("utf-8-sig",), description="tried in this order")


class FolderSource(Source):
    """One text file per example in one sub-folder per label; columns `label`, `headline` (first line), `body`."""

    package: PackageName | None = Field(
        None, description="installed Python package that carries the folder; it is not imported"
    )
    install: Requirement | None = Field(None, description="what to install when the package is missing")
    folder: str = "."
    encodings: tuple[str, ...] = ("utf-8-sig",)


class HubSource(Source):
    """A dataset on the Hugging Face hub, read through `datasets`."""

    path: DatasetName
    config: ConfigName | None = None
    revision: Revision | None = None
    train: str | None = "train"
    test: str | None = "test"
    unlabelled: str | None = None


class PatternEntry(Concern):
    """A pattern that names its verbalizer."""

    pattern: str
    verbalizer: str = "default"


Entry = Annotated[
    Annotated[str, Tag("<line>")] | Annotated[PatternEntry, Tag("<entry>")],
    Discriminator(lambda given: "<line>" if isinstance(given, str) else "<entry>"),
]

MAX_WORDS_FROM = 30_000
"""Marks that a card may have: so many fit into the limits of its YAML."""

Verbalizer = dict[str, Annotated[tuple[str, ...], Field(min_length=1)]]


class TaskCard(Concern):
    """`task.yaml`, checked: see `load_card` for what is refused."""

    # What is compared with each other is counted: a card of a thousand patterns would be checked for minutes.
    name: Annotated[
        str, Field(max_length=80), spelled(r"[a-z0-9][a-z0-9._-]*", "small letters, digits, '.', '_' and '-'")
    ]  # part of folders' names
    title: str
    fields: Annotated[tuple[str, ...], Field(min_length=1, max_length=20)]
    labels: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=2, max_length=1000)]
    patterns: Annotated[tuple[Entry, ...], Field(min_length=1, max_length=100)]
    verbalizers: Annotated[dict[str, Verbalizer], Field(min_length=1, max_length=100)]
    metric: Literal["accuracy", "macro-f1"] = "accuracy"
    words_from: Annotated[
        tuple[Mark, ...],
        Field(max_length=MAX_WORDS_FROM),
    ] = Field((), description="`marks` of the texts whose labels chose the label words; none is ever a test text")
    files: FilesSource | None = None
    folder: FolderSource | None = None
    hub: HubSource | None = None

    def pvps(self) -> list[PVP]:
        """All pattern-verbalizer pairs, numbered as in the card."""
        counts = Counter(entry.pattern for entry in self.entries)
        return [
            PVP(
                number,
                parse_pattern(entry.pattern, self.fields),
                {label: self.verbalizers[entry.verbalizer][label] for label in self.labels},
                repeated=counts[entry.pattern] > 1,
            )
            for number, entry in enumerate(self.entries)
        ]

    @property
    def entries(self) -> list[PatternEntry]:
        """The patterns, each with the name of its verbalizer."""
        return [one if isinstance(one, PatternEntry) else PatternEntry(pattern=one) for one in self.patterns]


# ---- cards ---------------------------------------------------------------------------------------------------------


def load_card(name: str) -> tuple[TaskCard, Path]:
    """The task card of that name or path, and the folder it lies in.

    Raises:
        TaskError: no such card, not YAML, unknown keys, a pattern that does not parse, a verbalizer that lacks a label.
    """
    path = find_file("data", name, TaskError)
    card = parse_model(TaskCard, read_extended(path, "data", lay_over, TaskError), f"task card {path}", TaskError)
    raise_problems(TaskError, f"task card {path}", card_problems(card))
    return card, path.parent


def lay_over(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """A card over the one it extends: the keys of a source one by one, everything else whole.

    Whole, because a card with fewer labels could not get rid of the other labels' words otherwise.
    """
    sources = {
        name: {**base[name], **values[name]}
        for name in SOURCES
        if isinstance(base.get(name), dict) and isinstance(values.get(name), dict)
    }
    return {**base, **values, **sources}


def card_problems(card: TaskCard) -> list[str]:
    """Everything pydantic cannot see: fields, verbalizers and patterns that do not fit each other."""
    problems = []
    if "mask" in card.fields or len(set(card.fields)) < len(card.fields):
        problems.append(f"fields {list(card.fields)} must be different names other than 'mask'")
    if len(set(card.labels)) < len(card.labels):
        problems.append(f"labels {list(card.labels)} must be different")
    known = set(card.labels)
    for name, words in card.verbalizers.items():
        missing = [label for label in card.labels if label not in words]
        unknown = [label for label in words if label not in known]
        counts = Counter(word for label_words in words.values() for word in set(label_words))
        shared = [word for word, count in counts.items() if count > 1]
        if shared:
            problems.append(f"verbalizer {name!r} uses {shared} for several labels; give each label its own words")
        if missing:
            problems.append(f"verbalizer {name!r} has no words for {missing}")
        if unknown:
            problems.append(f"verbalizer {name!r} has words for {unknown}, which are not among the card's labels")
    for entry in card.entries:
        problems += pattern_problems(card, entry)
    counted = Counter((entry.pattern, frozen_words(card, entry)) for entry in card.entries)
    problems += [
        f"pattern {pattern!r} stands {'twice' if count == 2 else f'{count} times'} with the same words; keep one of "
        "them, or give the others words of their own"
        for (pattern, _), count in counted.items()
        if count > 1
    ]
    for source in (card.files, card.folder, card.hub):
        problems += source_problems(card, source)
    return problems


def frozen_words(card: TaskCard, entry: PatternEntry) -> frozenset[tuple[str, frozenset[str]]]:
    """The words that a pattern is asked with, equal for equal ones: their order and their verbalizer's name do not
    count. A verbalizer that is not there has none."""
    words = card.verbalizers.get(entry.verbalizer, {entry.verbalizer: ()})
    return frozenset((label, frozenset(one)) for label, one in words.items())


def pattern_problems(card: TaskCard, entry: PatternEntry) -> list[str]:
    """What is wrong with one pattern line."""
    text, verbalizer = entry.pattern, entry.verbalizer
    problems = []
    if verbalizer not in card.verbalizers:
        problems.append(f"pattern {text!r} names verbalizer {verbalizer!r}; known: {list(card.verbalizers)}")
    try:
        parse_pattern(text, card.fields)
    except TaskError as problem:
        problems.append(str(problem))
    return problems


def source_problems(card: TaskCard, source: Source | None) -> list[str]:
    """Fields or labels of a source that the card does not know, or a source with nothing to learn from."""
    if source is None:
        return []
    problems = [
        f"a source fills {field!r}, which is not a field" for field in source.fields if field not in card.fields
    ]
    if isinstance(source, HubSource) and "/" not in source.path:
        problems.append(
            f"hub dataset {source.path!r} has no owner; write OWNER/NAME as the hub shows it, or name local files in "
            "`files:`"
        )
    if isinstance(source, FilesSource | HubSource) and not (source.train or source.unlabelled):
        problems.append("a source names neither `train` nor `unlabelled` texts")
    if isinstance(source, FilesSource | FolderSource):
        problems += [
            f"{name!r} lies outside the card's folder; put it there, or only name the file and give its folder by "
            "--data"
            for name in paths_of(source)
            if not stays_inside(name)
        ]
        problems += [f"encoding {one!r} is none; try utf-8" for one in source.encodings if not is_encoding(one)]
        problems += [] if source.encodings else ["`encodings` is empty; leave it out for UTF-8"]
    problems += [
        f"{template!r} is no template; write text and columns in braces, as in '{{title}} {{body}}'"
        for template in source.fields.values()
        if not is_template(template)
    ]
    if "" in source.replace:
        problems.append("`replace` has nothing to look for in one line; write what is to be replaced")
    return problems + [
        f"a source maps {raw!r} to {label!r}, which is not a label"
        for raw, label in source.labels.items()
        if label not in card.labels
    ]


def paths_of(source: FilesSource | FolderSource) -> list[str]:
    """The paths that a source names."""
    if isinstance(source, FolderSource):
        return [source.folder]
    return [name for split in SPLITS if (name := getattr(source, split)) is not None]


def is_encoding(name: str) -> bool:
    """Whether Python knows an encoding of texts by that name."""
    if not re.fullmatch(r"[\w-]+", name, re.ASCII):
        return False
    try:
        found = codecs.lookup(name)
        return found.name.replace("-", "_") not in NOT_TEXT and isinstance("".encode(name), bytes)
    except LookupError:  # unknown, or of bytes to bytes
        return False


def is_template(template: str) -> bool:
    """Whether it has only plain `{column}` in it: what else Python can format reads attributes, or pads to any size."""
    try:
        parts = list(Formatter().parse(template))
    except ValueError:
        return False
    return all(
        name is None or (not spec and conversion is None and re.fullmatch(r"(?!\d+$)[^][.!:{}]+", name))
        for _, name, spec, conversion in parts
    )


# ---- texts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One row as the source has it. `where`: file and line (or key) for error messages and as the default id."""

    where: str
    values: Mapping[str, Any]


def load_texts(card: TaskCard, folder: Path, data: str | None = None) -> dict[str, Texts]:
    """All texts of a task, by split (`train`, and where the source has them `test` and `unlabelled`).

    `folder`: where the card lies; `data`: --data, the folder that holds the card's files instead.
    With --data, `files` (or `folder`) is read from there; else an installed package, then files beside the card, then
    the hub.

    Raises:
        TaskError: every problem of the texts of one split, the first few with file and line.
    """
    source, rows = open_source(card, folder, data)
    return {split: build_texts(card, source, split, found) for split, found in rows.items()}


def open_source(card: TaskCard, folder: Path, data: str | None) -> tuple[Source, dict[str, Iterable[Row]]]:
    """The source that applies, and its rows per split."""
    source, root = choose_source(card, folder, data)
    if isinstance(source, FilesSource):
        return source, file_splits(card.name, source, root)
    if isinstance(source, FolderSource):
        return source, {"train": folder_rows(source, root)}
    return source, hub_splits(card.name, source)


def choose_source(
    card: TaskCard, folder: Path, data: str | None
) -> tuple[FilesSource | FolderSource | HubSource, Path]:
    """The source that applies, and the folder that it is read from; no text is read. Arguments: see `load_texts`.

    Raises:
        TaskError: the card has no source, or not the one that `data` is for, or a package is missing.
    """
    if data is not None:
        root = path_of(data)
        if not is_folder(root):
            raise TaskError(
                f"--data {data!r} is not a folder; give the folder that holds the files of task {card.name!r}"
            )
        if local := card.files or card.folder:
            return local, root
        raise TaskError(
            f"task {card.name!r} names no files, so --data {data!r} cannot be used; add `files:` to its card"
        )
    if card.folder:
        return card.folder, folder_root(card, card.folder, folder)
    if card.files and (card.hub is None or find_split(card.files.train, folder)):
        return card.files, folder
    if card.hub:
        return card.hub, folder
    raise TaskError(f"task {card.name!r} names no source; add `files:`, `folder:` or `hub:` to its card")


def build_texts(card: TaskCard, source: Source, split: str, rows: Iterable[Row]) -> Texts:
    """Rows as `Texts`, every problem of the split collected before failing."""
    if split == "unlabelled":
        # Labels that nobody may look at need not be there, nor be any of the card's.
        source = source.model_copy(update={"label": None})
    texts = Texts([], {field: [] for field in card.fields}, [])
    problems: list[str] = []
    for row in rows:
        try:
            if all(str(row.values[column]) == value for column, value in source.where.items()):
                add_row(texts, card, source, row)
        except KeyError as missing:
            headed = isinstance(source, FilesSource) and source.format in ("csv", "tsv")
            where = row.where.rpartition(":")[0] if headed else row.where
            raise TaskError(
                f"{where}: no column {missing.args[0]!r}; task {card.name!r} expects it, found {list(row.values)}"
            ) from None
        except ValueError as problem:
            problems.append(f"{row.where}: {problem}")
    if len(problems) > SHOWN_PROBLEMS and not texts.ids:
        raise TaskError(
            f"task {card.name!r}, {split} texts: none of the {len(problems):,} rows fits the card ({problems[0]}); "
            "give the folder with the files of this task by --data, or mend the card"
        )
    raise_problems(TaskError, f"task {card.name!r}, {split} texts", problems)
    problems = [f"id {name!r} stands in {count} rows" for name, count in Counter(texts.ids).items() if count > 1]
    raise_problems(TaskError, f"task {card.name!r}, {split} texts need different ids", problems)
    if not len(texts):
        raise TaskError(f"task {card.name!r} has no {split} texts; check the files or the `where:` of its card")
    return texts


def add_row(texts: Texts, card: TaskCard, source: Source, row: Row) -> None:
    """Append one row; ValueError with the reason when its text is empty or its label unknown."""
    label = read_label(card, source, row)
    filled = {field: read_field(field, source, row) for field in card.fields}
    if not any(filled.values()):
        raise ValueError("the text is empty; remove the row or fill it")
    name = str(row.values[source.id]) if source.id else row.where
    for text in (name, *filled.values()):
        if "\0" in text or not is_unicode(text):
            raise ValueError("a NUL character or half a surrogate pair, which no text has; remove it")
    texts.ids.append(name)
    texts.labels.append(label)
    for field, text in filled.items():
        texts.fields[field].append(text)


def read_label(card: TaskCard, source: Source, row: Row) -> str | None:
    """The card's label of a row; `None` when the cell is empty or the source has no labels."""
    if source.label is None:
        return None
    written = as_text(source.label, row)
    if written not in (source.labels or card.labels):
        written = written.strip()
    if not written:
        return None
    label = source.labels.get(written, None if source.labels else written)
    if label not in card.labels:
        expected = list(source.labels) if source.labels else list(card.labels)
        raise ValueError(
            f"label {written!r} is not in the card; expected one of {expected}: correct the row, or add the label"
        )
    return label


def read_field(field: str, source: Source, row: Row) -> str:
    """The text of one field: its column, or its template over several, cleaned."""
    template = source.fields.get(field)
    if template is None:
        parts = [as_text(field, row)]
    else:
        parts = [
            one for before, name in parse_template(template) for one in (before, name and as_text(name, row)) if one
        ]
    if sum(map(len, parts)) > MAX_FIELD:
        raise ValueError(f"the text has more than {MAX_FIELD:,} characters")
    text = "".join(parts)
    for what, by in source.replace.items():
        if len(by) > len(what) and len(text) + text.count(what) * (len(by) - len(what)) > MAX_FIELD:
            raise ValueError(f"the text has more than {MAX_FIELD:,} characters after `replace`")
        text = text.replace(what, by)
    return text.strip()


@cache
def parse_template(template: str) -> tuple[tuple[str, str | None], ...]:
    """Text and the column after it, in turn; `None`: there is none."""
    return tuple((before, name) for before, name, _, _ in Formatter().parse(template))


def columns_of(source: Source, fields: Sequence[str]) -> list[str]:
    """The columns that a source's fields are read from."""
    read = (
        [name for _, name in parse_template(source.fields[field]) if name] if field in source.fields else [field]
        for field in fields
    )
    return list(dict.fromkeys(itertools.chain.from_iterable(read)))


def as_text(column: str, row: Row) -> str:
    """A cell as text; ValueError where it holds several values or bytes."""
    value = row.values[column]
    if isinstance(value, list | tuple | dict | bytes):
        raise ValueError(
            f"column {column!r} holds {'bytes' if isinstance(value, bytes) else 'several values'}, no text"
        )
    return "" if value is None or value != value else str(value)  # NaN: what pandas writes where there is nothing


# ---- files ---------------------------------------------------------------------------------------------------------


def find_split(name: str | None, root: Path) -> Path | None:
    """The file of a split under `root`, gzipped or not; `None` when there is none."""
    if name is None:
        return None
    return next((path for suffix in SUFFIXES if is_file(path := root / (name + suffix))), None)


def file_splits(task: str, source: FilesSource, root: Path) -> dict[str, Iterable[Row]]:
    """The rows of each split that the source names; every named file must exist."""
    named = {split: getattr(source, split) for split in SPLITS if getattr(source, split)}
    found = {split: find_split(name, root) for split, name in named.items()}
    missing = [name for split, name in named.items() if found[split] is None]
    if missing:
        raise TaskError(
            f"task {task!r} expects {' and '.join(missing)} (or .gz) in {root}; "
            "give the folder that has them with --data"
        )
    for path in found.values():
        refuse_outside(path, root)
    return {split: file_rows(source, path) for split, path in found.items() if path}


def refuse_outside(path: Path | None, root: Path) -> None:
    """
    Raises:
        TaskError: a file that a card names lies outside the folder in which it was looked for, by way of a link.
    """
    if path is not None and not leads_inside(path, root):
        raise TaskError(f"{path} is a link that leads out of {root}; copy the file there, or give its folder by --data")


def file_rows(source: FilesSource, path: Path) -> Iterator[Row]:
    """The rows of one file, whatever its format."""
    if source.format == "parquet":
        return parquet_rows(path)
    text = read_text(path, source.encodings)
    if source.format == "jsonl":
        return jsonl_rows(path, text, source.label)
    return delimited_rows(source, path, text)


def read_text(path: Path, encodings: Iterable[str]) -> str:
    """A whole file decoded by the first encoding that fits.

    Raises:
        TaskError: none fits; names the line of the first byte that does not. Or there is a NUL character.
    """
    content = read_bytes(path, TaskError)
    tried = list(encodings)
    for encoding in tried:
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError as problem:
            line = content.count(b"\n", 0, problem.start) + 1
            continue
        if (at := text.find("\0")) >= 0:
            line = text.count("\n", 0, at) + 1
            raise TaskError(f"{path}, line {line}: a NUL character, which no text has; convert the file to UTF-8")
        return text
    raise TaskError(
        f"{path}, line {line}: not {' or '.join(tried).replace('utf-8-sig', 'UTF-8')} text; convert the file to UTF-8"
    )


def delimited_rows(source: FilesSource, path: Path, text: str) -> Iterator[Row]:
    """Rows of a CSV or TSV file.

    Raises:
        TaskError: rows with another number of columns than the header or the card says, with their lines; or two
            columns of one name.
    """
    csv.field_size_limit(MAX_FIELD)
    lines = csv.reader(
        io.StringIO(text, newline=""),
        delimiter="\t" if source.format == "tsv" else "," if source.columns else separator_of(text),
        quoting=csv.QUOTE_MINIMAL if source.quoted else csv.QUOTE_NONE,
        strict=True,
    )
    names = list(source.columns or ())
    problems, rows, line = [], [], 1
    try:
        for cells in lines:
            start, line = line, lines.line_num + 1
            if not names:
                names = different(cells, path)
            elif len(cells) == len(names):
                rows.append(Row(f"{path.name}:{start}", dict(zip(names, cells, strict=True))))
            elif cells:
                problems.append(f"line {start} has {len(cells)} columns, expected {len(names)} ({', '.join(names)})")
    except csv.Error as problem:
        problems.append(f"line {lines.line_num}: {problem}")
    if problems and len(names) == 1:
        problems = [
            f"its first line has the one column {names[0]!r}; separate columns by {lines.dialect.delimiter!r}, "
            "as a spreadsheet does if told to"
        ]
    if len(problems) > SHOWN_PROBLEMS and not rows:
        raise TaskError(
            f"{path}: none of its lines has the columns {', '.join(names)} ({problems[0]}); give another file"
        )
    raise_problems(TaskError, str(path), problems)
    yield from rows


def separator_of(text: str) -> str:
    """What separates the columns of a CSV file: `;` where its first line has one column by commas, and several by `;`,
    as spreadsheets write it where a comma is the decimal sign. What stands in quotation marks separates nothing."""
    first = re.sub('"[^"]*("|$)', "", next((line for line in io.StringIO(text) if line.strip()), ""))
    return ";" if ";" in first and "," not in first else ","


def different(names: Sequence[str], path: Path) -> list[str]:
    """The names of columns; some may have none.

    Raises:
        TaskError: two have the same, or there are too many.
    """
    if len(names) > MAX_COLUMNS:
        raise TaskError(f"{path} has {len(names):,} columns, more than {MAX_COLUMNS:,}; leave out those without a text")
    repeated = [name for name, count in Counter(names).items() if count > 1 and name]
    if repeated:
        raise TaskError(f"{path} has several columns {repeated[0]!r}; give each its own name in the first line")
    return list(names)


def jsonl_rows(path: Path, text: str, label: str | None) -> Iterator[Row]:
    """Rows of a file with one JSON object a line; every malformed line is named."""
    problems, rows = [], []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            values = None
        if isinstance(values, dict):
            rows.append(Row(f"{path.name}:{number}", values))
        else:
            problems.append(f"line {number} is not a JSON object")
    raise_problems(TaskError, str(path), problems)
    # A line without a label may leave it out; where all do, the column is missing.
    blank = {label: None} if label is not None and any(label in row.values for row in rows) else {}
    for row in rows:
        yield Row(row.where, {**blank, **row.values})


def parquet_rows(path: Path) -> Iterator[Row]:
    """Rows of a Parquet file."""
    import pyarrow.parquet

    content = pyarrow.BufferReader(read_bytes(path, TaskError))
    number = size = 0
    try:
        with pyarrow.parquet.ParquetFile(content) as file:
            different(file.schema_arrow.names, path)
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(CHUNK, row_groups=[group]):
                    size += batch.nbytes
                    if size > MAX_UNPACKED:
                        raise TaskError(f"{path} has more than {MAX_UNPACKED:,} bytes unpacked, which is too much")
                    for values in batch.to_pylist():
                        number += 1
                        yield Row(f"{path.name}:{number}", values)
    except TaskError:
        raise
    except Exception as problem:  # pyarrow has a dozen kinds for a damaged file, and leaves times to Python
        raise TaskError(f"{path} is not a Parquet file, or a damaged one: {problem}") from None


# ---- folders and the hub -------------------------------------------------------------------------------------------


def folder_root(card: TaskCard, source: FolderSource, beside: Path) -> Path:
    """The folder of label folders: inside an installed package (found, not imported), or beside the card."""
    if source.package is None:
        return beside
    found = find_package(source.package)
    if found is None:
        raise TaskError(
            f"task {card.name!r} reads texts of the package {source.package!r}, which is not installed; "
            f"its card names: pip install {source.install or source.package}"
        )
    return found


def find_package(name: str) -> Path | None:
    """The folder of an installed package, which is found and not imported; `None`: there is none.

    A folder without `__init__.py` is none, nor is one in the current folder, where `python -m pet` looks, too: a card
    could name any folder of texts there.
    """
    try:
        spec = importlib.util.find_spec(name)  # of a name with a dot it would import what is before that
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations or not spec.origin:
        return None
    found = Path(spec.submodule_search_locations[0])
    return None if found.resolve().parent == Path.cwd().resolve() else found


def folder_rows(source: FolderSource, root: Path) -> Iterator[Row]:
    """One row per text file: its folder is the label, its first line the headline, the rest the body."""
    top = root / source.folder
    top = top if is_folder(top) else root
    paths = sorted(top.glob("*/*.txt"))
    if not paths:
        raise TaskError(f"{top} has no text files; expected one sub-folder per label with .txt files in it")
    for path in paths:
        if source.package is None:  # an installed package may consist of links
            refuse_outside(path, root)
        headline, _, body = read_text(path, source.encodings).strip().partition("\n")
        where = f"{path.parent.name}/{path.name}"
        yield Row(where, {"label": path.parent.name, "headline": headline, "body": " ".join(body.split())})


HUB_READERS = ("arrow", "csv", "json", "parquet", "text")
"""Builders of `datasets` that a dataset may be read by: tables and lines of text. All others, those of versions to come
among them, are refused: some unpickle, open what a row names, or hand bytes to decoders of pictures and sounds."""

HUB_CACHE = "cache"
"""The builder that reads what another one has left in the local cache."""


def hub_splits(task: str, source: HubSource) -> dict[str, Iterable[Row]]:
    """The rows of each split of a hub dataset, downloaded or from the local cache; never a file of this machine.

    Raises:
        TaskError: the hub cannot be reached and the cache does not have it, there is no such dataset or split, or it
            is not made of tables in its own repository.
    """
    if not hub_reachable():
        os.environ.setdefault("HF_DATASETS_OFFLINE", "1")  # read by datasets when it is imported
    import datasets

    datasets.disable_progress_bars()
    try:
        # Without hf:// a folder of that name would be read in its place.
        builder = datasets.load_dataset_builder(f"hf://datasets/{source.path}", source.config, revision=source.revision)
        refuse_foreign_data(task, source, builder)
        builder.download_and_prepare()
        return {
            split: hub_rows(name, builder.as_dataset(split=name))
            for split in SPLITS
            if (name := getattr(source, split)) is not None
        }
    except TaskError:
        raise
    except Exception as problem:
        reason = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
        raise TaskError(
            f"dataset {source.path!r} of task {task!r} could not be read from the hub ({reason}); "
            "check the connection, or give local files with --data"
        ) from None


def refuse_foreign_data(task: str, source: HubSource, builder: Any) -> None:
    """Look at what a builder of `datasets` would read, before it does: the page of a dataset can name any file.

    Raises:
        TaskError: files outside the dataset's own repository, a reader that is none of HUB_READERS, or a cached commit
            other than the one asked for.
    """
    what = f"dataset {source.path!r} of task {task!r}"
    reader = type(builder).__module__.rpartition(".")[2]
    if reader == HUB_CACHE:
        if is_commit(source.revision) and builder.hash != source.revision:
            raise TaskError(
                f"{what} is in the local cache at commit {builder.hash}, not at {source.revision}; connect to the hub, "
                "or change `revision` in the card"
            )
        return
    if reader not in HUB_READERS:
        raise TaskError(
            f"{what} is read by {reader!r} of `datasets`, which is not allowed; give one made of "
            f"{', '.join(HUB_READERS)} files"
        )
    files = [str(one) for split in (builder.config.data_files or {}).values() for one in split]
    foreign = next((one for one in files if not one.startswith(f"hf://datasets/{source.path}@")), None)
    if foreign is not None or not files:
        raise TaskError(
            f"{what} names {foreign or 'no file'!r}, which is not in its own repository; give a dataset that holds its "
            "texts itself"
        )


def is_commit(revision: str | None) -> bool:
    """Whether a revision names one commit, not a branch or tag."""
    return revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision) is not None


def hub_rows(split: str, table: Any) -> Iterator[Row]:
    """Rows of one split. Nothing in them is decoded: a picture stays bytes or a path, which is not opened."""
    batches = table.with_format("arrow").iter(CHUNK)
    for number, values in enumerate(itertools.chain.from_iterable(batch.to_pylist() for batch in batches)):
        yield Row(f"{split}:{number}", values)


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
