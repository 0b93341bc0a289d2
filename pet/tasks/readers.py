"""Files of rows as a stream: CSV, TSV and JSONL (each also .gz) and Parquet (also .gz), read and written a row at a
time, so that memory does not grow with the file. A row that cannot be read is handed over as such, with its line.

What a row means is not known here: see `sources` for a card's own files, which are read whole, and
`tools/inference/predict_file`.
"""

import csv
import gzip
import io
import itertools
import json
import re
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from pet.config.limits import MAX_COLUMNS, MAX_FIELD, MAX_LINE, bounded, is_unicode, require_file
from pet.errors import TaskError
from pet.tasks.texts import CHUNK

# ---- texts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One row as the source has it. `where`: file and line (or key) for error messages and as the default id."""

    where: str
    values: Mapping[str, Any]


def separator_of(text: str) -> str:
    """What separates the columns of a CSV file: `;` where its first line has one column by commas, and several by `;`,
    as spreadsheets write it where a comma is the decimal sign. What stands in quotation marks separates nothing."""
    first = re.sub('"[^"]*("|$)', "", next((line for line in io.StringIO(text) if line.strip()), ""))
    return ";" if ";" in first and "," not in first else ","


FORMATS = ("csv", "tsv", "jsonl", "parquet")
Line = TypeVar("Line", str, bytes)
DELIMITERS = {"csv": ",", "tsv": "\t"}


@dataclass(frozen=True)
class Broken:
    """A row that cannot be read. `where`: file and line."""

    where: str
    reason: str


def format_of(path: Path, what: str) -> str:
    """The format that a file's name ends in.

    Raises:
        TaskError: none that is known; `what` says which file it is.
    """
    suffix = Path(path.name.removesuffix(".gz")).suffix.removeprefix(".").lower()
    if suffix not in FORMATS:
        raise TaskError(f"{what} {path}: its name must end in {', '.join('.' + one for one in FORMATS)} (or with .gz)")
    return suffix


# ---- reading -------------------------------------------------------------------------------------------------------


class RowFile:
    """The rows of one file, to be read as often as need be.

    `names`: its columns, of JSONL every key in the order of its first appearance; `types`: name -> type as of pyarrow.
    `headless`: the columns' names where the first line is a row already.
    """

    def __init__(self, path: Path, headless: Sequence[str] | None = None) -> None:
        """
        Raises:
            TaskError: the file is missing, empty, damaged, has two columns of one name or another kind of name.
        """
        require_file(path, TaskError)
        self.path = path
        self.format = format_of(path, "input")
        self.headless = headless
        self.types = self._find_types()
        self.names = list(self.types)
        if not self.names:
            raise TaskError(f"{path} is empty; expected rows of texts")

    def rows(self) -> Iterator[Row | Broken]:
        """Every row in order; blank lines are none."""
        with self._readable():
            if self.format == "parquet":
                yield from self._parquet_rows()
            elif self.format == "jsonl":
                yield from self._json_rows()
            else:
                yield from self._delimited_rows()

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """One sentence for what a disk, gzip or pyarrow has to say."""
        try:
            yield
        except (OSError, EOFError, zlib.error) as problem:  # pyarrow's ArrowInvalid is turned into OSError below
            raise TaskError(f"{self.path} cannot be read: {getattr(problem, 'strerror', None) or problem}") from None

    def _open(self) -> IO[bytes]:
        return gzip.open(self.path, "rb") if self.path.suffix == ".gz" else self.path.open("rb")  # type: ignore[return-value]

    def _place(self, line: int) -> str:
        return f"{self.path.name}:{line}"

    def _find_types(self) -> dict[str, Any]:
        import pyarrow

        with self._readable():
            if self.format == "parquet":
                with self._open_parquet() as file:
                    schema = file.schema_arrow
                    return dict(zip(self._different(schema.names), schema.types, strict=True))
            if self.format == "jsonl":
                return {name: json_type(kinds) for name, kinds in self._json_kinds().items()}
            names = self.headless or self._different(self._header())
            return dict.fromkeys(names, pyarrow.string())

    def _different(self, names: Sequence[str]) -> Sequence[str]:
        repeated = [name for number, name in enumerate(names) if name in names[:number]]
        if len(names) > MAX_COLUMNS:
            raise TaskError(f"{self.path} has {len(names):,} columns; leave out those without a text")
        if repeated:
            raise TaskError(
                f"{self.path} has several columns {repeated[0]!r}; give each its own name in the first line"
            )
        return names

    # -- CSV and TSV

    @contextmanager
    def _lines(self) -> Iterator[Any]:
        """A csv reader over the file. A byte that is not UTF-8 becomes a lone surrogate, which `is_unicode` finds."""
        csv.field_size_limit(MAX_FIELD)
        with self._open() as raw, io.TextIOWrapper(raw, "utf-8-sig", "surrogateescape", newline="") as text:
            first = text.readline(MAX_LINE)
            separator = separator_of(first) if self.format == "csv" and not self.headless else DELIMITERS[self.format]
            rest = iter(lambda: text.readline(MAX_LINE), "")
            yield csv.reader(map(self._refuse_long, itertools.chain([first], rest)), delimiter=separator, strict=True)

    def _refuse_long(self, line: Line) -> Line:
        if len(line) >= MAX_LINE:
            raise TaskError(f"{self.path} has a line of more than {MAX_LINE:,} characters; is it a file of rows?")
        return line

    def _header(self) -> list[str]:
        with self._lines() as lines:
            try:
                names: list[str] = next((cells for cells in lines if cells), [])
            except csv.Error as problem:
                raise TaskError(f"{self.path}, line {lines.line_num}: {problem}; expected the columns' names") from None
        if not all(map(is_unicode, names)):
            raise TaskError(f"{self.path}, line 1: not UTF-8 text; convert the file to UTF-8")
        return names

    def _delimited_rows(self) -> Iterator[Row | Broken]:
        with self._lines() as lines:
            awaiting_header = self.headless is None
            while True:
                start = lines.line_num + 1
                try:
                    cells = next(lines)
                except StopIteration:
                    return
                except csv.Error as problem:
                    lost = lines.line_num - start
                    rest = f", with the {lost} line{'s' * (lost > 1)} after it" if lost else ""
                    yield Broken(self._place(start), f"{problem}{rest}")
                    continue
                if not cells:
                    continue
                if awaiting_header:
                    awaiting_header = False
                elif len(cells) != len(self.names):
                    yield Broken(self._place(start), f"{len(cells)} columns, expected {len(self.names)}")
                elif not all(map(is_unicode, cells)):
                    yield Broken(self._place(start), "not UTF-8 text")
                else:
                    yield Row(self._place(start), dict(zip(self.names, cells, strict=True)))

    # -- JSONL

    def _json_rows(self) -> Iterator[Row | Broken]:
        with self._open() as lines:
            for number, line in enumerate(iter(lambda: lines.readline(MAX_LINE), b""), 1):
                if self._refuse_long(line).strip():
                    yield self._read_json(self._place(number), line)

    def _read_json(self, where: str, line: bytes) -> Row | Broken:
        try:
            values = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError:
            return Broken(where, "not UTF-8 text")
        except (ValueError, RecursionError) as problem:
            return Broken(where, f"no valid JSON ({problem})")
        if not isinstance(values, dict):
            return Broken(where, "no JSON object")
        if b"\\u" in line and not is_unicode(json.dumps(values, ensure_ascii=False)):
            return Broken(where, "half a surrogate pair, which is no character")
        return Row(where, values)

    def _json_kinds(self) -> dict[str, set[type]]:
        """Every key, and which types its values have but null: one pass over the file."""
        found: dict[str, set[type]] = {}
        for row in self._json_rows():
            if isinstance(row, Row):
                for name, value in row.values.items():
                    found.setdefault(name, set()).update([] if value is None else [kind_of(value)])
        return found

    # -- Parquet

    @contextmanager
    def _open_parquet(self) -> Iterator[Any]:
        import pyarrow.parquet
        from pyarrow.lib import ArrowException

        with ExitStack() as stack:
            raw = stack.enter_context(self._open())
            if self.path.suffix == ".gz":  # Parquet is read from its end
                packed, raw = raw, stack.enter_context(tempfile.TemporaryFile())
                raw.writelines(bounded(packed, self.path, TaskError))
            try:
                with pyarrow.parquet.ParquetFile(raw) as file:
                    yield file
            except (
                ArrowException,
                ValueError,
                OverflowError,
            ) as problem:  # Python's own: dates, bytes that are no text
                raise TaskError(f"{self.path} is not a Parquet file: {problem}") from None

    def _parquet_rows(self) -> Iterator[Row | Broken]:
        number = 0
        with self._open_parquet() as file:
            for group in range(file.num_row_groups):  # pyarrow's iterator over all of them holds something for each
                for batch in file.iter_batches(CHUNK, row_groups=[group]):
                    for values in batch.to_pylist():
                        number += 1
                        yield Row(self._place(number), values)


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
