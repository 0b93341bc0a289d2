"""Labels for a file of rows, a chunk at a time."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from pet.errors import SHOWN_PROBLEMS, TaskError, raise_problems
from pet.pipeline.runs import Run
from pet.store.files import new_file
from pet.tasks.card import FilesSource, Source, paths_of
from pet.tasks.readers import DELIMITERS, Broken, ReadingRules, Row, RowFile, format_of, rules_by_name, suffix_of
from pet.tasks.sources import columns_of, read_field, rules_of
from pet.tasks.texts import CHUNK
from pet.tasks.writers import RowWriter
from pet.tools.inference.predictor import DECIMALS, Prediction, Predictor, check_text, fields_of, find_reading


@dataclass
class FileReport:
    """What became of a file's rows. `problems`: of the first few that were left out, each with file and line;
    `names`: what the new columns are called."""

    predicted: int = 0
    left_out: int = 0
    abstained: int = 0
    problems: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Reading:
    """How the rows of one file become texts: by the card's own source, or by columns named like the fields."""

    file: RowFile
    source: Source
    fields: tuple[str, ...]

    def texts(self) -> Iterator[tuple[Row, dict[str, str]] | Broken]:
        """Each row with its text."""
        needed = columns_of(self.source, self.fields)
        for row in self.file.rows():
            if isinstance(row, Broken):
                yield row
                continue
            try:
                yield row, check_text(fill(self.source, self.fields, needed, row))
            except ValueError as problem:
                yield Broken(row.where, f"the text {problem}")


def fill(source: Source, fields: Sequence[str], needed: Sequence[str], row: Row) -> dict[str, str]:
    """The fields of a row; ValueError when a column is missing or holds no text."""
    values = {}
    for name in needed:
        value = row.values.get(name)
        if name not in row.values:
            raise ValueError(f"has no {name!r}")
        if isinstance(value, bool | list | dict | bytes):
            raise ValueError(f"has a {type(value).__name__} in {name!r}")
        values[name] = None if value != value else value  # NaN: what pandas writes where there is nothing
    return {one: read_field(one, source, Row(row.where, values)) for one in fields}


def open_layout(run: Run, path: Path) -> Reading:
    """How a file is to be read: the card's first source whose columns it has, else by columns named like the fields. A
    CSV or TSV file without a header line is one of the card's own, if those have none either. Quotation marks and
    encodings are those of the card's files where the format is theirs.

    Raises:
        TaskError: the file cannot be read, or has not the columns.
    """
    fields, reading = fields_of(run), find_reading(run)
    known, own = (reading.sources, reading.files) if reading else ([], None)
    rules = rules_for(path, own)
    if own and own.columns and rules.format in DELIMITERS:
        file = RowFile(path, replace(rules, columns=own.columns))
        cells = set(first := file.first_cells())
        headed = any(set(columns_of(source, fields)) <= cells for source in (*known, Source()))
        if len(first) == len(own.columns) and not headed:
            return Reading(file, own, fields)
    file = RowFile(path, rules)
    if rules.format == "lines" and len(fields) == 1:  # a line is a whole text, whatever columns the card makes one of
        return Reading(file, Source(fields={fields[0]: "{text}"}, replace=known[0].replace if known else {}), fields)
    for source in (*known, Source()):
        if set(columns_of(source, fields)) <= set(file.names):
            return Reading(file, source, fields)
    wanted = " or ".join(dict.fromkeys(str(columns_of(source, fields)) for source in (Source(), *known)))
    raise TaskError(f"{path} has the columns {file.names}; expected {wanted} among them")


def rules_for(path: Path, own: FilesSource | None) -> ReadingRules:
    """How a file with a header line is laid out: as the card's `own` files where its name ends like theirs, whatever
    that end stands for elsewhere; else as its name says, with what the card says of the same format.

    Raises:
        TaskError: its name ends in nothing that is known.
    """
    if own and suffix_of(path) in {suffix_of(Path(name)) for name in paths_of(own)}:
        return replace(rules_of(own), columns=None)
    rules = rules_by_name(path)
    return replace(rules_of(own), columns=None) if own and own.format == rules.format else rules


def predict_file(
    predictor: Predictor, reading: Reading, output: Path | None, abstain: float | None = None
) -> FileReport:
    """Write every row of a file with its prediction, a chunk at a time; rows without a text are left out.

    `output`: `None` is standard output, as CSV. New columns stand behind the row's own: `label`, `probability` and one
    `probability_<label>` a label; one whose name is taken is called `predicted_...`.

    Raises:
        TaskError: no row can be used, or a file cannot be read or written.
    """
    import pyarrow

    report = FileReport(names=new_names(reading.file.names, predictor.labels))
    added = [pyarrow.string(), *[pyarrow.float64()] * (len(report.names) - 1)]
    types = {**reading.file.types, **dict(zip(report.names, added, strict=True))}
    rows = usable(reading, report)
    with new_file(output, TaskError) if output else nullcontext() as draft, ExitStack() as stack:
        writer = None
        while chunk := list(islice(rows, CHUNK)):
            writer = writer or RowWriter(draft, types, stack)
            start = report.predicted + 1
            name = f"rows {start:,} to {start + len(chunk) - 1:,}"
            found = predictor.predict_filled([text for _, text in chunk], abstain, name)
            writer.write(
                [
                    {**row.values, **dict(zip(report.names, values_of(one), strict=True))}
                    for (row, _), one in zip(chunk, found, strict=True)
                ]
            )
            report.predicted += len(chunk)
            report.abstained += sum(one.label is None for one in found)
        if writer is None:
            raise_problems(TaskError, f"{reading.file.path} has no row with a text", report.problems)
            raise TaskError(f"{reading.file.path} has no rows; expected texts")
    return report


def usable(reading: Reading, report: FileReport) -> Iterator[tuple[Row, dict[str, str]]]:
    """The rows that have a text; the others are noted."""
    for one in reading.texts():
        if isinstance(one, Broken):
            report.left_out += 1
            if len(report.problems) < SHOWN_PROBLEMS:
                report.problems.append(f"{one.where}: {one.reason}")
        else:
            yield one


def refuse_broken(reading: Reading) -> None:
    """Read a file to its end, predicting nothing.

    Raises:
        TaskError: names its first row without a text.
    """
    for one in reading.texts():
        if isinstance(one, Broken):
            raise TaskError(f"{one.where}: {one.reason}; nothing was written; mend the row, or leave out --strict")


def values_of(prediction: Prediction) -> list[str | float | None]:
    """The new cells of a row."""
    numbers = [prediction.probability, *prediction.probabilities.values()]
    return [prediction.label, *[round(one, DECIMALS) for one in numbers]]


def new_names(taken: Sequence[str], labels: Sequence[str]) -> list[str]:
    """What the new columns are called: their own name, or the first of predicted_..., predicted_predicted_... that is
    free."""
    names: list[str] = []
    for name in ("label", "probability", *(f"probability_{label}" for label in labels)):
        while name in taken or name in names:
            name = f"predicted_{name}"
        names.append(name)
    return names


def check_files(source: Path, output: Path | None) -> None:
    """Fail before a model is loaded.

    Raises:
        TaskError: the output's format is unknown, its folder is not there, or it is a folder or the input.
    """
    if output is None:
        return
    format_of(output, "output")
    if output.is_dir() or not output.absolute().parent.is_dir():
        raise TaskError(
            f"output {output} cannot be a file: {output.absolute().parent} must be a folder, and {output.name} none"
        )
    if output.exists() and source.exists() and output.samefile(source):
        raise TaskError(f"output {output} is the input; name another file")
