"""A finished run as a classifier: labels and probabilities of new texts, from Python (`pet.load`) or of a file's rows.

Works from a run's artifacts alone; the task card, if it is still there, is only asked how its own files are laid out.
What a file looks like is the business of `rowfiles`, how a temperature is found of `calibration`.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pet import members
from pet.algorithms.ensemble import soften
from pet.config.limits import is_unicode
from pet.config.schema import RuntimeSettings
from pet.errors import SHOWN_PROBLEMS, NotFinite, PetError, SettingsError, TaskError, raise_problems
from pet.pipeline.runs import Run, open_run
from pet.pipeline.student import Checkpoint
from pet.store.store import Store
from pet.tasks.card import Source, TaskCard, load_card
from pet.tasks.readers import Broken, Row, RowFile, format_of
from pet.tasks.sources import columns_of, read_field
from pet.tasks.texts import CHUNK, Texts
from pet.tasks.writers import RowWriter, draft_of
from pet.training.device import open_runtime
from pet.training.reporter import Reporter

Kind = Literal["student", "ensemble"]
DECIMALS = 6
"""Of a probability in a file; a float32 has no more."""


@dataclass(frozen=True)
class Prediction:
    """What one text is. `label`: the most probable, `None` where its `probability` is below what was asked for;
    `probabilities`: of every label, 1 in sum."""

    label: str | None
    probability: float
    probabilities: dict[str, float]


class Scorer(Protocol):
    """A classifier that gives raw scores."""

    def score(self, texts: Texts, name: str) -> NDArray[np.floating[Any]]:
        """Scores [N, L] of all texts in order; `name` is for the progress bar."""


@dataclass(frozen=True)
class Predictor:
    """A loaded classifier. `fields`: the texts that it reads; `temperature`: what raw scores are divided by, `None`
    where the run is too old to have one: 1 then; `problem`: why its probabilities are raw, `None` where they are
    calibrated."""

    fields: tuple[str, ...]
    labels: tuple[str, ...]
    scorer: Scorer
    temperature: float | None
    problem: str | None = None

    def predict(self, texts: Sequence[Any], abstain: float | None = None) -> list[Prediction]:
        """What each text is.

        `texts`: strings (the first field; others are empty), tuples of all fields in order, or dictionaries with one
        text a field. `abstain`: no label below this probability.

        Raises:
            TaskError: a text that is none, or empty; all are named, numbered from 1.
            SettingsError: `abstain` is not from 0 to 1.
            NotFinite: the classifier computes NaN or infinity.
        """
        check_abstain(abstain)
        if isinstance(texts, str):
            raise TaskError("predict got one string; give a list of texts")
        filled, problems = [], []
        for number, one in enumerate(texts, 1):
            try:
                filled.append(check_text(self._read(one)))
            except ValueError as problem:
                problems.append(f"text {number} {problem}")
        raise_problems(TaskError, "predict", problems)
        found: list[Prediction] = []
        for start in range(0, len(filled), CHUNK):
            found += self.predict_filled(filled[start : start + CHUNK], abstain, f"{start:,} and on")
        return found

    def predict_filled(self, texts: Sequence[Mapping[str, str]], abstain: float | None, name: str) -> list[Prediction]:
        """The same for texts that are complete and checked, all at once.

        Raises:
            NotFinite: a text has no probability; whatever was to be abstained from, NaN is below nothing.
        """
        if not texts:
            return []
        columns = {field: [one[field] for one in texts] for field in self.fields}
        scores = self.scorer.score(Texts([str(one) for one in range(len(texts))], columns, [None] * len(texts)), name)
        probabilities = soften(scores, self.temperature or 1.0)
        wrong = ~np.isfinite(probabilities).all(1)
        if wrong.any():
            raise NotFinite(
                f"{name}: text {int(wrong.argmax()) + 1:,} has no probabilities, as its scores or the temperature "
                f"{self.temperature} are damaged; use another run, or make it anew"
            )
        return [self._judge(one, abstain) for one in probabilities]

    def _judge(self, probabilities: NDArray[np.floating[Any]], abstain: float | None) -> Prediction:
        best = int(probabilities.argmax())
        probability = float(probabilities[best])
        label = None if abstain is not None and probability < abstain else self.labels[best]
        return Prediction(label, probability, dict(zip(self.labels, probabilities.tolist(), strict=True)))

    def _read(self, given: Any) -> dict[str, str]:
        """A text's fields; ValueError with what is wrong with it."""
        if isinstance(given, str):
            given = (given, *[""] * (len(self.fields) - 1))
        if isinstance(given, Mapping):
            wrong = [name for name in self.fields if name not in given] + [
                name for name in given if name not in self.fields
            ]
            if wrong:
                raise ValueError(f"has the fields {list(given)}, expected {list(self.fields)}")
            values = [given[name] for name in self.fields]
        elif isinstance(given, tuple | list) and len(given) == len(self.fields):
            values = list(given)
        else:
            raise ValueError(f"is {given!r:.60}; expected a string, or all of {list(self.fields)}")
        if any(not (value is None or isinstance(value, str)) for value in values):
            raise ValueError(f"is {given!r:.60}; its fields must be strings")
        return dict(zip(self.fields, [value or "" for value in values], strict=True))


def check_text(filled: dict[str, str]) -> dict[str, str]:
    """A text's fields; ValueError when all are empty or one cannot be written as UTF-8, and so not tokenised."""
    if not any(one.strip() for one in filled.values()):
        raise ValueError("is empty")
    if not all(map(is_unicode, filled.values())):
        raise ValueError("has half a surrogate pair, which is no character")
    return filled


def check_abstain(abstain: float | None) -> None:
    """
    Raises:
        SettingsError: it is no probability.
    """
    if abstain is not None and not 0 <= abstain <= 1:
        raise SettingsError(f"abstain got {abstain:g}; give a probability from 0 to 1, such as 0.7")


# ---- loading -------------------------------------------------------------------------------------------------------


def load(run: str | Path, store: str | Path = "runs", kind: Kind = "student", device: str = "auto") -> Predictor:
    """A finished run's classifier; see `pet.load`."""
    return load_predictor(open_run(str(run), Store(store)), kind, RuntimeSettings(device=device))


def load_predictor(run: Run, kind: Kind, runtime: RuntimeSettings, reporter: Reporter | None = None) -> Predictor:
    """A finished run's student, or the ensemble that its soft labels come from.

    Raises:
        SettingsError: no such device, or no such classifier.
        StoreError, ModelError: artifacts or models are missing or damaged.
    """
    if kind not in ("student", "ensemble"):
        raise SettingsError(f"a run has no classifier {kind!r}; expected student or ensemble")
    fields = fields_of(run)
    machine = open_runtime(runtime, reporter)
    scorer: Scorer
    if kind == "student":
        length = run.student.manifest["settings"]["model"]["max_length"]
        scorer = Checkpoint(run.student.file("student"), fields, run.labels, length, machine)
    else:
        scorer = members.Ensemble(run, fields, machine)
    return Predictor(fields, run.labels, scorer, run.temperature_of(kind), run.problem_of(kind))


def fields_of(run: Run) -> tuple[str, ...]:
    """The texts that a run's classifiers read, in order."""
    return tuple(run.prepared.manifest["settings"]["fields"])


def find_card(run: Run) -> TaskCard | None:
    """The task card of the run if it is there, readable, and still of these fields and labels."""
    try:
        card, _ = load_card(run.settings.task.name)
    except PetError:
        return None
    return card if (card.fields, card.labels) == (fields_of(run), run.labels) else None


# ---- files ---------------------------------------------------------------------------------------------------------


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
    CSV or TSV file without a header line is one of the card's own, if those have none either.

    Raises:
        TaskError: the file cannot be read, or has not the columns.
    """
    file, fields, card = RowFile(path), fields_of(run), find_card(run)
    known = [source for source in (card.files, card.folder, card.hub) if source] if card else []
    for source in (*known, Source()):
        if set(columns_of(source, fields)) <= set(file.names):
            return Reading(file, source, fields)
    own = card.files if card else None
    if own and own.columns and file.format in ("csv", "tsv") and len(own.columns) == len(file.names):
        return Reading(RowFile(path, own.columns), own, fields)
    wanted = " or ".join(dict.fromkeys(str(columns_of(source, fields)) for source in (Source(), *known)))
    raise TaskError(f"{path} has the columns {file.names}; expected {wanted} among them")


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
    with draft_of(output) as draft, ExitStack() as stack:
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
