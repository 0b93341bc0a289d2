"""Task cards, and the texts they point at: from `data/<task>/task.yaml` to `Texts` per split.

A card says what the texts are (fields, labels), what to ask (patterns, verbalizers) and where the texts come from. A
source may be `files` (CSV, TSV, JSONL, Parquet, each also .gz), a `folder` with one sub-folder per label, or a `hub`
dataset. Nothing here samples, tokenises or trains.
"""

import csv
import gzip
import importlib.util
import io
import itertools
import json
import os
import socket
import zlib
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field

from pet.errors import StoreError, TaskError, raise_problems
from pet.examples import CHUNK, Texts, concatenate
from pet.patterns import PVP, parse_pattern
from pet.settings import Concern, find_file, parse_model, read_extended

SPLITS = ("train", "test", "unlabelled")
SOURCES = ("files", "folder", "hub")
SUFFIXES = ("", ".gz")
MAX_FIELD = 10_000_000
"""Characters one CSV field may have; the csv module's own limit (131,072) is shorter than some reviews."""


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

    package: str | None = Field(
        None, description="installed Python package that carries the folder; it is not imported"
    )
    install: str | None = Field(None, description="what to install when the package is missing")
    folder: str = "."
    encodings: tuple[str, ...] = ("utf-8-sig",)


class HubSource(Source):
    """A dataset on the Hugging Face hub, read through `datasets`."""

    path: str
    config: str | None = None
    revision: str | None = None
    train: str | None = "train"
    test: str | None = "test"
    unlabelled: str | None = None


class PatternEntry(Concern):
    """A pattern that names its verbalizer."""

    pattern: str
    verbalizer: str = "default"


Verbalizer = dict[str, Annotated[tuple[str, ...], Field(min_length=1)]]


class TaskCard(Concern):
    """`task.yaml`, checked: see `load_card` for what is refused."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    title: str
    fields: Annotated[tuple[str, ...], Field(min_length=1)]
    labels: Annotated[tuple[str, ...], Field(min_length=2)]
    patterns: Annotated[tuple[str | PatternEntry, ...], Field(min_length=1)]
    verbalizers: Annotated[dict[str, Verbalizer], Field(min_length=1)]
    metric: Literal["accuracy", "macro-f1"] = "accuracy"
    files: FilesSource | None = None
    folder: FolderSource | None = None
    hub: HubSource | None = None

    def pvps(self) -> list[PVP]:
        """All pattern-verbalizer pairs, numbered as in the card."""
        pairs = []
        for number, entry in enumerate(self.patterns):
            entry = entry if isinstance(entry, PatternEntry) else PatternEntry(pattern=entry)
            words = self.verbalizers[entry.verbalizer]
            pairs.append(
                PVP(number, parse_pattern(entry.pattern, self.fields), {label: words[label] for label in self.labels})
            )
        return pairs


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
    for name, words in card.verbalizers.items():
        missing = [label for label in card.labels if label not in words]
        unknown = [label for label in words if label not in card.labels]
        counts = Counter(word for label_words in words.values() for word in set(label_words))
        shared = [word for word, count in counts.items() if count > 1]
        if shared:
            problems.append(f"verbalizer {name!r} uses {shared} for several labels; give each label its own words")
        if missing:
            problems.append(f"verbalizer {name!r} has no words for {missing}")
        if unknown:
            problems.append(f"verbalizer {name!r} has words for {unknown}, which are not among the card's labels")
    for entry in card.patterns:
        problems += pattern_problems(card, entry)
    repeated = [entry for number, entry in enumerate(card.patterns) if entry in card.patterns[:number]]
    problems += [f"pattern {entry!r} stands twice" for entry in repeated]
    for source in (card.files, card.folder, card.hub):
        problems += source_problems(card, source)
    return problems


def pattern_problems(card: TaskCard, entry: str | PatternEntry) -> list[str]:
    """What is wrong with one pattern line."""
    text = entry if isinstance(entry, str) else entry.pattern
    verbalizer = "default" if isinstance(entry, str) else entry.verbalizer
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
    if isinstance(source, FilesSource | HubSource) and not (source.train or source.unlabelled):
        problems.append("a source names neither `train` nor `unlabelled` texts")
    return problems + [
        f"a source maps {raw!r} to {label!r}, which is not a label"
        for raw, label in source.labels.items()
        if label not in card.labels
    ]


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
    if data is not None:
        root = Path(data).expanduser()
        if not root.is_dir():
            raise TaskError(
                f"--data {data!r} is not a folder; give the folder that holds the files of task {card.name!r}"
            )
        if card.files:
            return card.files, file_splits(card.name, card.files, root)
        if card.folder:
            return card.folder, {"train": folder_rows(card.folder, root)}
        raise TaskError(
            f"task {card.name!r} names no files, so --data {data!r} cannot be used; add `files:` to its card"
        )
    if card.folder:
        return card.folder, {"train": folder_rows(card.folder, folder_root(card, card.folder, folder))}
    if card.files and (card.hub is None or find_split(card.files.train, folder)):
        return card.files, file_splits(card.name, card.files, folder)
    if card.hub:
        return card.hub, hub_splits(card.name, card.hub)
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
            raise TaskError(
                f"{row.where}: no column {missing.args[0]!r}; task {card.name!r} expects it, found {list(row.values)}"
            ) from None
        except ValueError as problem:
            problems.append(f"{row.where}: {problem}")
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
    texts.ids.append(str(row.values[source.id]) if source.id else row.where)
    texts.labels.append(label)
    for field, text in filled.items():
        texts.fields[field].append(text)


def read_label(card: TaskCard, source: Source, row: Row) -> str | None:
    """The card's label of a row; `None` when the cell is empty or the source has no labels."""
    if source.label is None:
        return None
    raw = row.values[source.label]
    written = "" if raw is None else str(raw).strip()
    if not written:
        return None
    label = source.labels.get(written, None if source.labels else written)
    if label not in card.labels:
        expected = list(source.labels) if source.labels else list(card.labels)
        raise ValueError(f"label {written!r} is not in the card; expected one of {expected}")
    return label


def read_field(field: str, source: Source, row: Row) -> str:
    """The text of one field: its column, or its template over several, cleaned."""
    template = source.fields.get(field, f"{{{field}}}")
    text = template.format_map({name: "" if value is None else str(value) for name, value in row.values.items()})
    for what, by in source.replace.items():
        text = text.replace(what, by)
    return text.strip()


# ---- files ---------------------------------------------------------------------------------------------------------


def find_split(name: str | None, root: Path) -> Path | None:
    """The file of a split under `root`, gzipped or not; `None` when there is none."""
    if name is None:
        return None
    return next((path for suffix in SUFFIXES if (path := root / (name + suffix)).is_file()), None)


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
    return {split: file_rows(source, path) for split, path in found.items() if path}


def file_rows(source: FilesSource, path: Path) -> Iterator[Row]:
    """The rows of one file, whatever its format."""
    if source.format == "parquet":
        return parquet_rows(path)
    text = read_text(path, source.encodings)
    if source.format == "jsonl":
        return jsonl_rows(path, text, source.label)
    return delimited_rows(source, path, text)


def read_bytes(path: Path) -> bytes:
    """The content of a file, unpacked if its name ends in .gz."""
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as problem:
        raise TaskError(f"{path} cannot be read: {problem}") from None


def read_text(path: Path, encodings: Iterable[str]) -> str:
    """A whole file decoded by the first encoding that fits.

    Raises:
        TaskError: none fits; names the line of the first byte that does not.
    """
    content = read_bytes(path)
    tried = list(encodings)
    for encoding in tried:
        try:
            return content.decode(encoding)
        except UnicodeDecodeError as problem:
            line = content.count(b"\n", 0, problem.start) + 1
    raise TaskError(
        f"{path}, line {line}: not {' or '.join(tried).replace('utf-8-sig', 'UTF-8')} text; convert the file to UTF-8"
    )


def delimited_rows(source: FilesSource, path: Path, text: str) -> Iterator[Row]:
    """Rows of a CSV or TSV file.

    Raises:
        TaskError: rows with another number of columns than the header or the card says, with their lines.
    """
    csv.field_size_limit(MAX_FIELD)
    lines = csv.reader(
        io.StringIO(text, newline=""),
        delimiter="\t" if source.format == "tsv" else ",",
        quoting=csv.QUOTE_MINIMAL if source.quoted else csv.QUOTE_NONE,
        strict=True,
    )
    names = list(source.columns or ())
    problems, rows, line = [], [], 1
    try:
        for cells in lines:
            start, line = line, lines.line_num + 1
            if not names:
                names = cells
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
    raise_problems(TaskError, str(path), problems)
    yield from rows


def jsonl_rows(path: Path, text: str, label: str | None) -> Iterator[Row]:
    """Rows of a file with one JSON object a line; every malformed line is named."""
    problems, rows = [], []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except ValueError:
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
    from pyarrow.lib import ArrowInvalid

    content = pyarrow.BufferReader(read_bytes(path))
    try:
        table = pyarrow.parquet.read_table(content)
    except (ArrowInvalid, OSError) as problem:
        raise TaskError(f"{path} is not a Parquet file: {problem}") from None
    for number, values in enumerate(table.to_pylist(), 1):
        yield Row(f"{path.name}:{number}", values)


# ---- labels given by hand ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GivenLabels:
    """Texts of the task that were labelled by hand: id -> label, sorted by id; and per file how many rows had a label
    and how many had none."""

    labels: dict[str, str]
    counts: dict[str, tuple[int, int]]


def read_given_labels(card: TaskCard, paths: Sequence[str], known: Container[str]) -> GivenLabels:
    """The labels in CSV files with the columns `id` and `label`; other columns are not looked at, and rows without a
    label are skipped.

    `known`: ids of the texts that may be labelled.

    Raises:
        TaskError: a file cannot be read or has no label at all; or every row whose id or label is unknown or that
            gives a text a second label, with its line.
    """
    source = FilesSource(format="csv", id="id")
    labels: dict[str, str] = {}
    counts = {}
    problems = []
    for path in map(Path, paths):
        marked, skipped = 0, 0
        for row in delimited_rows(source, path, read_text(path, source.encodings)):
            try:
                label = read_label(card, source, row)
                name = row.values["id"].strip()
            except KeyError as missing:
                raise TaskError(
                    f"{path} has no column {missing.args[0]!r}; expected `id` and `label`, as `pet suggest` writes "
                    f"them, found {list(row.values)}"
                ) from None
            except ValueError as problem:
                problems.append(f"{row.where}: {problem}")
                continue
            if label is None:
                skipped += 1
            elif name not in known:
                problems.append(
                    f"{row.where}: id {name!r} is of no text that task {card.name!r} has outside its test file"
                )
            elif labels.setdefault(name, label) != label:
                problems.append(f"{row.where}: id {name!r} is {label!r} here and {labels[name]!r} before")
            else:
                marked += 1
        counts[str(path)] = (marked, skipped)
    raise_problems(TaskError, "labels given by hand", problems)
    raise_problems(
        TaskError,
        "labels given by hand",
        [
            f"{path} gives no text a label; fill in its column `label`"
            for path, (marked, _) in counts.items()
            if not marked
        ],
    )
    return GivenLabels(dict(sorted(labels.items())), counts)


# ---- folders and the hub -------------------------------------------------------------------------------------------


def folder_root(card: TaskCard, source: FolderSource, beside: Path) -> Path:
    """The folder of label folders: inside an installed package (found, not imported), or beside the card."""
    if source.package is None:
        return beside
    spec = importlib.util.find_spec(source.package)
    if spec is None or not spec.submodule_search_locations:
        raise TaskError(
            f"task {card.name!r} reads texts of the package {source.package!r}, which is not installed; "
            f"run: pip install {source.install or source.package}"
        )
    return Path(spec.submodule_search_locations[0])


def folder_rows(source: FolderSource, root: Path) -> Iterator[Row]:
    """One row per text file: its folder is the label, its first line the headline, the rest the body."""
    top = root / source.folder
    top = top if top.is_dir() else root
    paths = sorted(top.glob("*/*.txt"))
    if not paths:
        raise TaskError(f"{top} has no text files; expected one sub-folder per label with .txt files in it")
    for path in paths:
        headline, _, body = read_text(path, source.encodings).strip().partition("\n")
        where = f"{path.parent.name}/{path.name}"
        yield Row(where, {"label": path.parent.name, "headline": headline, "body": " ".join(body.split())})


def hub_splits(task: str, source: HubSource) -> dict[str, Iterable[Row]]:
    """The rows of each split of a hub dataset, downloaded or from the local cache.

    Raises:
        TaskError: the hub cannot be reached and the cache does not have it, or there is no such dataset or split.
    """
    if not hub_reachable():
        os.environ.setdefault("HF_DATASETS_OFFLINE", "1")  # read by datasets when it is imported
    import datasets

    datasets.disable_progress_bars()
    found: dict[str, Iterable[Row]] = {}
    for split in SPLITS:
        name = getattr(source, split)
        if name is None:
            continue
        try:
            table = datasets.load_dataset(source.path, source.config, split=name, revision=source.revision)
        except Exception as problem:
            reason = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
            raise TaskError(
                f"dataset {source.path!r} of task {task!r} could not be read from the hub ({reason}); "
                "check the connection, or give local files with --data"
            ) from None
        found[split] = hub_rows(name, table)
    return found


@cache
def hub_reachable() -> bool:
    """Whether the hub's name resolves. If not, its libraries would try again for a minute; the local cache is read at
    once instead."""
    from huggingface_hub import constants

    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return not constants.HF_HUB_OFFLINE


def hub_rows(split: str, table: Any) -> Iterator[Row]:
    """Rows of one split, with label numbers written as text."""
    for number, values in enumerate(table):
        yield Row(f"{split}:{number}", values)


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
