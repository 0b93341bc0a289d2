"""Files of rows, written a row at a time: CSV, TSV, JSONL and Parquet, each also .gz."""

import gzip
import json
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pet.tasks.readers import DELIMITERS, format_of

QUOTED = re.compile('[",;|\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff]')
"""What a reader could take for the end of a cell or of a line, a separator, or a mark at the file's beginning."""


def delimited_line(cells: Sequence[str], separator: str = ",") -> str:
    """One line of a CSV or TSV file, its end included. The csv module leaves a lone carriage return without quotation
    marks, and its own reader then ends the row there."""
    quoted = ('"' + one.replace('"', '""') + '"' if QUOTED.search(one) else one for one in cells)
    return (separator.join(quoted) or '""') + "\n"  # an empty line is no row


class RowWriter:
    """Writes rows to a file, or as CSV to standard output (`None`), a list of them at a time."""

    def __init__(self, path: Path | None, types: Mapping[str, Any], stack: ExitStack) -> None:
        """`types`: name of a column -> its pyarrow type. `stack`: closes what is opened."""
        import pyarrow
        import pyarrow.parquet

        self.names = list(types)
        self.format = format_of(path, "output") if path else "csv"
        self.schema = pyarrow.schema(list(types.items()))
        if path and self.format == "parquet":
            opener: Any = gzip.open if path.suffix == ".gz" else open
            sink = stack.enter_context(opener(path, "wb"))
            self.parquet = stack.enter_context(pyarrow.parquet.ParquetWriter(sink, self.schema))
            return
        self.text: Any = sys.stdout
        if path:
            opener = gzip.open if path.suffix == ".gz" else open
            self.text = stack.enter_context(opener(path, "wt", encoding="utf-8", newline=""))
        if self.format in DELIMITERS:
            self.text.write(delimited_line(self.names, DELIMITERS[self.format]))

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows; a column that a row does not have is empty."""
        import pyarrow

        if self.format == "parquet":
            columns = [[cell(row.get(one.name), one.type) for row in rows] for one in self.schema]
            arrays = [pyarrow.array(one, field.type) for one, field in zip(columns, self.schema, strict=True)]
            self.parquet.write_table(pyarrow.Table.from_arrays(arrays, schema=self.schema))
        elif self.format == "jsonl":
            self.text.writelines(as_json(row) + "\n" for row in rows)
        else:
            self.text.writelines(
                delimited_line([as_text(row.get(name)) for name in self.names], DELIMITERS[self.format]) for row in rows
            )


def cell(value: Any, kind: Any) -> Any:
    """A value as a Parquet column of this type takes it."""
    return as_text(value) if value is not None and str(kind) == "string" else value


def as_text(value: Any) -> str:
    """A value as a cell of text: as it is, nothing for null and NaN, else as JSON."""
    if value is None or value != value:
        return ""
    if isinstance(value, str):
        return value
    found = as_json(value)
    return str(json.loads(found)) if found.startswith('"') else found


def as_json(value: Any) -> str:
    """A value as JSON; dates and the like as text, a number that is none as null."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=str)
    except ValueError:
        return json.dumps(without_nan(value), ensure_ascii=False, allow_nan=False, default=str)


def without_nan(value: Any) -> Any:
    """The same with null for every number that JSON does not have."""
    if isinstance(value, dict):
        return {name: without_nan(one) for name, one in value.items()}
    if isinstance(value, list):
        return [without_nan(one) for one in value]
    return None if isinstance(value, float) and value - value != 0 else value
