"""Files of rows: CSV, TSV, JSONL, Parquet and plain lines (each also .gz), read a row at a time for whoever needs rows:
a card's files and labels by hand strictly (`read_rows`), the input of `pet predict` leniently (`RowFile`).

There is one reader; `ReadingRules` say how a file is laid out. What a row means is not known here: see `sources`.
"""

import csv
import io
import itertools
import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pet.config.limits import MAX_COLUMNS, MAX_FIELD, MAX_LINE, MAX_UNPACKED, bounded, is_unicode, opened, require_file
from pet.errors import SHOWN_PROBLEMS, TaskError, raise_problems
from pet.tasks.encodings import find_encoding, name_encodings
from pet.tasks.texts import CHUNK

FORMATS = ("csv", "tsv", "jsonl", "parquet")
"""What is read and written."""

SUFFIXES = {**{one: one for one in FORMATS}, "ndjson": "jsonl", "txt": "lines"}
"""End of a file's name -> how it is read. `lines`: each line is a text."""

DELIMITERS = {"csv": ",", "tsv": "\t"}
UTF8 = ("utf-8-sig",)

# ---- rows and rules ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One row as the source has it. `where`: file and line (or key) for error messages and as the default id."""

    where: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Broken:
    """A row that cannot be read. `where`: file and line; `problem`: the reason again, as a sentence about the line."""

    where: str
    reason: str
    problem: str = ""


@dataclass(frozen=True)
class ReadingRules:
    """How a file is laid out.

    `format`: a value of SUFFIXES; `quoted`: whether quotation marks have a meaning; `encodings`: tried in this order;
    `columns`: names of the columns of a CSV or TSV file without a header line, whose separator is not guessed then.
    """

    format: str
    quoted: bool = True
    encodings: tuple[str, ...] = UTF8
    columns: tuple[str, ...] | None = None


def suffix_of(path: Path) -> str:
    """The end of a file's name, without .gz, in small letters."""
    return Path(path.name.removesuffix(".gz")).suffix.removeprefix(".").lower()


def format_of(path: Path, what: str, known: Iterable[str] = FORMATS) -> str:
    """The end of a file's name, as `suffix_of` has it.

    Args:
        path: The file.
        what: Which file it is, for messages.
        known: Ends that it may have.

    Raises:
        TaskError: It has another one.
    """
    suffix = suffix_of(path)
    if suffix not in known:
        raise TaskError(f"{what} {path}: its name must end in {', '.join('.' + one for one in known)} (or with .gz)")
    return suffix


def separator_of(text: str) -> str:
    """What separates the columns of a CSV file: `;` where its first line has one column by commas, and several by `;`,
    as spreadsheets write it where a comma is the decimal sign. What stands in quotation marks separates nothing."""
    first = re.sub('"[^"]*("|$)', "", next((line for line in io.StringIO(text) if line.strip()), ""))
    return ";" if ";" in first and "," not in first else ","


def different(names: Sequence[str], path: Path) -> list[str]:
    """The names of columns, each another. One may have none; where several have none, each is named by its place.

    Raises:
        TaskError: two have the same name, or there are too many.
    """
    if len(names) > MAX_COLUMNS:
        raise TaskError(f"{path} has {len(names):,} columns, more than {MAX_COLUMNS:,}; leave out those without a text")
    counts = Counter(names)
    repeated = [name for name, count in counts.items() if count > 1 and name]
    if repeated:
        raise TaskError(f"{path} has several columns {repeated[0]!r}; give each its own name in the first line")
    if counts[""] < 2:
        return list(names)
    taken, found = set(names), []
    for place, name in enumerate(names, 1):
        own = name or f"column_{place}"
        while not name and own in taken:
            own = f"_{own}"
        found.append(own)
    return found


# ---- the reader ----------------------------------------------------------------------------------------------------


class Reader:
    """The rows of one file by its rules, again and again. `lenient`: a byte that the encoding does not have becomes a
    lone surrogate, and a row with one is broken."""

    def __init__(self, path: Path, rules: ReadingRules, lenient: bool) -> None:
        self.path = path
        self.rules = rules
        self.lenient = lenient
        self.encoding = UTF8[0] if rules.format == "parquet" else find_encoding(path, rules.encodings, lenient)
        self.separator = ""
        self.names: list[str] = []
        """The columns of a CSV or TSV file, once its first line was read."""

    def rows(self) -> Iterator[Row | Broken]:
        """Every row in order; blank lines are none."""
        read = {"parquet": self._parquet, "jsonl": self._json, "lines": self._plain}
        try:
            yield from read.get(self.rules.format, self._delimited)()
        except UnicodeDecodeError:
            raise TaskError(
                f"{self.path} is not {name_encodings([self.encoding])} text; convert the file to UTF-8"
            ) from None

    def _place(self, number: int) -> str:
        return f"{self.path.name}:{number}"

    def _is_text(self, cells: Iterable[str]) -> bool:
        """Whether all could be decoded; where the whole file was, texts are looked at by who reads them."""
        return not self.lenient or all(map(is_unicode, cells))

    def _not_text(self, number: int) -> Broken:
        what = f"not {name_encodings([self.encoding])} text"
        return Broken(self._place(number), what, f"line {number} is {what}")

    @contextmanager
    def _lines(self, newline: str) -> Iterator[Iterator[str]]:
        """The lines of a text, their ends included; `newline`: as of `open`."""
        errors = "surrogateescape" if self.lenient else "strict"
        with opened(self.path, TaskError) as raw, io.TextIOWrapper(raw, self.encoding, errors, newline=newline) as text:
            yield map(self._refuse_long, iter(lambda: text.readline(MAX_LINE), ""))

    def _refuse_long(self, line: str) -> str:
        if len(line) >= MAX_LINE:
            raise TaskError(f"{self.path} has a line of more than {MAX_LINE:,} characters; is it a file of rows?")
        return line

    # -- CSV and TSV

    def header(self) -> list[str]:
        """The cells of the first line, whatever they are."""
        return next((cells for _, cells in self._records() if isinstance(cells, list)), [])

    def _records(self) -> Iterator[tuple[int, list[str] | Broken]]:
        """The line on which a record begins, and its cells or what is wrong with it."""
        csv.field_size_limit(MAX_FIELD)
        with self._lines("") as lines:
            head = []
            for line in lines:
                head.append(line)
                if line.strip():
                    break
            guessed = self.rules.format == "csv" and not self.rules.columns
            reader = csv.reader(
                itertools.chain(head, lines),
                delimiter=separator_of("".join(head)) if guessed else DELIMITERS[self.rules.format],
                quoting=csv.QUOTE_MINIMAL if self.rules.quoted else csv.QUOTE_NONE,
                strict=True,
            )
            self.separator = reader.dialect.delimiter
            while True:
                start = reader.line_num + 1
                try:
                    cells = next(reader)
                except StopIteration:
                    return
                except csv.Error as problem:
                    lost = reader.line_num - start
                    reason = f"{problem}, with the {lost} line{'s' * (lost > 1)} after it" if lost else str(problem)
                    yield start, Broken(self._place(start), reason, f"line {start}: {reason}")
                else:
                    if cells:
                        yield start, cells

    def _delimited(self) -> Iterator[Row | Broken]:
        self.names = different(self.rules.columns or (), self.path)
        for start, cells in self._records():
            if not self.names:
                self.names = self._read_names(start, cells)
            elif isinstance(cells, Broken):
                yield cells
            elif (count := len(cells)) != (expected := len(self.names)):
                reason = f"{count} columns, expected {expected}"
                yield Broken(self._place(start), reason, f"line {start} has {reason} ({', '.join(self.names)})")
            elif not self._is_text(cells):
                yield self._not_text(start)
            else:
                yield Row(self._place(start), dict(zip(self.names, cells, strict=True)))

    def _read_names(self, line: int, cells: list[str] | Broken) -> list[str]:
        if isinstance(cells, Broken):
            raise TaskError(f"{self.path}, line {line}: {cells.reason}; expected the columns' names")
        if not self._is_text(cells):
            raise TaskError(f"{self.path}, line {line}: {self._not_text(line).reason}; convert the file to UTF-8")
        return different(cells, self.path)

    # -- JSONL and lines of text

    def _json(self) -> Iterator[Row | Broken]:
        with self._lines("\n") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield self._read_json(number, line)

    def _read_json(self, number: int, line: str) -> Row | Broken:
        if not self._is_text([line]):
            return self._not_text(number)
        where, problem = self._place(number), f"line {number} is not a JSON object"
        try:
            values = json.loads(line.removeprefix("\ufeff"))  # files put end to end have several
        except (ValueError, RecursionError) as invalid:
            return Broken(where, f"no valid JSON ({invalid})", problem)
        if not isinstance(values, dict):
            return Broken(where, "no JSON object", problem)
        if "\\u" in line and not self._is_text([json.dumps(values, ensure_ascii=False)]):
            return Broken(where, "half a surrogate pair, which is no character", problem)
        return Row(where, values)

    def _plain(self) -> Iterator[Row | Broken]:
        with self._lines("") as lines:
            for number, line in enumerate(lines, 1):
                if not self._is_text([line]):
                    yield self._not_text(number)
                elif line.strip():
                    yield Row(self._place(number), {"text": line.rstrip("\r\n")})

    # -- Parquet

    @contextmanager
    def open_parquet(self) -> Iterator[tuple[Any, list[str]]]:
        """The file as pyarrow opens it, and the names of its columns, which are different."""
        import pyarrow.parquet

        with ExitStack() as stack:
            raw = stack.enter_context(opened(self.path, TaskError))
            if self.path.suffix == ".gz":  # Parquet is read from its end
                packed, raw = raw, stack.enter_context(tempfile.TemporaryFile())
                raw.writelines(bounded(packed, self.path, TaskError))
            try:
                with pyarrow.parquet.ParquetFile(raw) as file:
                    yield file, different(file.schema_arrow.names, self.path)
            except TaskError:
                raise
            except Exception as problem:  # pyarrow has a dozen kinds for a damaged file, and leaves times to Python
                raise TaskError(f"{self.path} is not a Parquet file, or a damaged one: {problem}") from None

    def _parquet(self) -> Iterator[Row | Broken]:
        number = size = 0
        with self.open_parquet() as (file, names):
            for group in range(file.num_row_groups):  # pyarrow's iterator over all of them holds something for each
                for batch in file.iter_batches(CHUNK, row_groups=[group]):
                    size = batch.nbytes + (0 if self.lenient else size)  # leniently, one batch is held at a time
                    if size > MAX_UNPACKED:
                        raise TaskError(f"{self.path} has more than {MAX_UNPACKED:,} bytes unpacked, which is too much")
                    for values in type(batch).from_arrays(batch.columns, names=names).to_pylist():
                        number += 1
                        yield Row(self._place(number), values)


# ---- strictly, and leniently ---------------------------------------------------------------------------------------


def read_rows(path: Path, rules: ReadingRules) -> Iterator[Row]:
    """The rows of a file in which every row must be right.

    Args:
        path: The file. That it is there and its encoding are checked at once, the rest while it is read.
        rules: How it is laid out.

    Returns:
        The rows, one after another; what is wrong with any of them is raised after the last one.

    Raises:
        TaskError: The file cannot be read, or has rows that cannot be: all of them, with their lines.
    """
    require_file(path, TaskError)
    return refuse_broken(Reader(path, rules, lenient=False))


def refuse_broken(reader: Reader) -> Iterator[Row]:
    """The rows of a reader; see `read_rows`."""
    problems, whole = [], 0
    for row in reader.rows():
        if isinstance(row, Row):
            whole += 1
            yield row
        else:
            problems.append(row.problem)
    names = reader.names
    if problems and len(names) == 1:
        problems = [
            f"its first line has the one column {names[0]!r}; separate columns by {reader.separator!r}, as a "
            "spreadsheet does if told to"
        ]
    if names and len(problems) > SHOWN_PROBLEMS and not whole:
        raise TaskError(
            f"{reader.path}: none of its lines has the columns {', '.join(names)} ({problems[0]}); give another file"
        )
    raise_problems(TaskError, str(reader.path), problems)


class RowFile:
    """The rows of one file, to be read as often as need be, those that cannot be read among them as `Broken`.

    `names`: its columns, of JSONL every key in the order of its first appearance; `types`: name -> type as of pyarrow.
    """

    def __init__(self, path: Path, rules: ReadingRules | None = None) -> None:
        """
        Args:
            path: The file.
            rules: How it is laid out; default: as its name says, and in UTF-8.

        Raises:
            TaskError: The file is missing, empty, damaged, has two columns of one name or another kind of name.
        """
        require_file(path, TaskError)
        self.path = path
        self.rules = rules or rules_by_name(path)
        self._reader = Reader(path, self.rules, lenient=True)
        self.types = self._find_types()
        self.names = list(self.types)
        if not self.names:
            raise TaskError(f"{path} is empty; expected rows of texts")

    def rows(self) -> Iterator[Row | Broken]:
        """Every row in order; blank lines are none."""
        return self._reader.rows()

    def first_cells(self) -> list[str]:
        """The cells of the first line of a CSV or TSV file, whether they are names or not."""
        return self._reader.header()

    def _find_types(self) -> dict[str, Any]:
        import pyarrow

        if self.rules.format == "parquet":
            with self._reader.open_parquet() as (file, names):
                return dict(zip(names, file.schema_arrow.types, strict=True))
        if self.rules.format == "jsonl":
            return {name: json_type(kinds) for name, kinds in self._json_kinds().items()}
        next(self.rows(), None)
        names = ["text"] if self.rules.format == "lines" else self._reader.names
        return dict.fromkeys(names, pyarrow.string())

    def _json_kinds(self) -> dict[str, set[type]]:
        """Every key, and which types its values have but null: one pass over the file."""
        found: dict[str, set[type]] = {}
        for row in self.rows():
            if isinstance(row, Row):
                for name, value in row.values.items():
                    found.setdefault(name, set()).update([] if value is None else [kind_of(value)])
        return found


def rules_by_name(path: Path) -> ReadingRules:
    """How a file is read of which nothing but its name is known.

    Raises:
        TaskError: the name's end says nothing.
    """
    return ReadingRules(SUFFIXES[format_of(path, "input", SUFFIXES)])


def kind_of(value: Any) -> type:
    """The type of a JSON value; of a whole number that 64 bits do not hold, that of text."""
    return str if type(value) is int and not -(2**63) <= value < 2**63 else type(value)


def json_type(kinds: set[type]) -> Any:
    """The pyarrow type of a column whose JSON values have these types; what has no common one becomes text."""
    import pyarrow

    if kinds == {bool}:
        return pyarrow.bool_()
    if kinds == {int}:
        return pyarrow.int64()
    if kinds and kinds <= {int, float}:
        return pyarrow.float64()
    return pyarrow.string()
