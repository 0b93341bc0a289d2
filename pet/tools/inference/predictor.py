"""A finished run as a classifier: labels and probabilities of new texts, from Python (`pet.load`) or of a file's rows.

Works from a run's artifacts alone. How texts are read is kept in the run; of older runs the task card is asked, if it
is still there. What a file looks like is the business of `tasks/readers`, how a temperature is found of `calibration`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pet.algorithms.ensemble import soften
from pet.config.limits import is_unicode
from pet.config.schema import RuntimeSettings
from pet.errors import NotFinite, PetError, SettingsError, TaskError, raise_problems
from pet.pipeline.runs import Run, open_run
from pet.pipeline.student import Checkpoint
from pet.store.store import Store
from pet.tasks.card import CardReading, load_card, reading_of
from pet.tasks.texts import CHUNK, Texts
from pet.tools.inference import ensemble
from pet.training.device import open_runtime
from pet.training.reporter import Reporter

Kind = Literal["student", "ensemble"]
DECIMALS = 6
"""Of a probability in a file; a float32 has no more."""


@dataclass(frozen=True)
class Prediction:
    """What one text is.

    Attributes:
        label: The most probable label; `None` where its probability is below what was asked for.
        probability: The probability of the most probable label.
        probabilities: The probability of every label, 1 in sum.
    """

    label: str | None
    probability: float
    probabilities: dict[str, float]


class Scorer(Protocol):
    """A classifier that gives raw scores."""

    def score(self, texts: Texts, name: str) -> NDArray[np.floating[Any]]:
        """Scores [N, L] of all texts in order; `name` is for the progress bar."""


@dataclass(frozen=True)
class Predictor:
    """A loaded classifier.

    Attributes:
        fields: The names of the texts that it reads.
        labels: The labels, in the order of scores.
        scorer: What computes raw scores.
        temperature: What raw scores are divided by; `None`, which counts as 1, for a run too old to have one.
        problem: Why its probabilities are raw; `None` where they are calibrated.
    """

    fields: tuple[str, ...]
    labels: tuple[str, ...]
    scorer: Scorer
    temperature: float | None
    problem: str | None = None

    def predict(self, texts: Sequence[Any], abstain: float | None = None) -> list[Prediction]:
        """Label texts.

        Args:
            texts: Each a string (the first field; others are empty), a tuple of all fields in order, or a dictionary
                with one text per field.
            abstain: Give no label where its probability is below this.

        Returns:
            One prediction per text, in the same order.

        Raises:
            TaskError: Something is not a text, or is empty; all of them are named, numbered from 1.
            SettingsError: `abstain` is not from 0 to 1.
            NotFinite: The classifier computes NaN or infinity.
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
        scorer = ensemble.Ensemble(run, fields, machine)
    return Predictor(fields, run.labels, scorer, run.temperature_of(kind), run.problem_of(kind))


def fields_of(run: Run) -> tuple[str, ...]:
    """The texts that a run's classifiers read, in order."""
    return tuple(run.prepared.manifest["settings"]["fields"])


def find_reading(run: Run) -> CardReading | None:
    """What the run's card said about reading, as the run kept it. Of a run that kept nothing it is what the card says
    now, if it is there, readable, and still of these fields and labels.

    Raises:
        StoreError: what the run kept cannot be read.
    """
    if run.reading:
        return run.reading
    try:
        card, _ = load_card(run.settings.task.name)
    except PetError:
        return None
    return reading_of(card) if (card.fields, card.labels) == (fields_of(run), run.labels) else None
