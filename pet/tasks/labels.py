"""The labels of a task: their numbers, and how scores become probabilities and decisions. Arrays only.

A text has exactly one label. Whatever depends on that, outside the losses, is in `LabelSpace`.

Shapes: N texts, L labels.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pet.algorithms.calibration import one_hot
from pet.algorithms.ensemble import Array, soften
from pet.algorithms.metrics import Metric, confusion, score_predictions

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class LabelSpace:
    """The labels that a text can have, in the card's order."""

    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def encode(self, labels: Iterable[str | None]) -> Numbers:
        """Labels as numbers [N]; -1 where there is none."""
        number: dict[str | None, int] = {None: -1, **{name: place for place, name in enumerate(self.names)}}
        return np.asarray([number[label] for label in labels], dtype=np.int64)

    def decode(self, numbers: Iterable[Any]) -> list[str]:
        """Numbers [N] as labels."""
        return [self.names[number] for number in numbers]

    def one_hot(self, numbers: Numbers) -> Array:
        """Known labels [N] as distributions [N, L]."""
        return one_hot(numbers, len(self))

    def probabilities(self, scores: NDArray[Any], temperature: float = 1.0) -> Array:
        """Probabilities [..., L] of the labels, from raw scores."""
        return soften(scores, temperature)

    def decide(self, scores: NDArray[Any]) -> Numbers:
        """The label [...] that scores or probabilities [..., L] speak for."""
        return np.asarray(np.asarray(scores).argmax(-1))

    def count(self, numbers: Numbers) -> Numbers:
        """How many texts have each label [L]."""
        return np.bincount(numbers, minlength=len(self))

    def absent(self, labels: Sequence[str | None]) -> list[str]:
        """Those that no text has."""
        found = set(labels)
        return [name for name in self.names if name not in found]

    def confusion(self, gold: Numbers, scores: NDArray[Any]) -> Numbers:
        """Counts [L, L]: row is the gold label, column the decision."""
        return confusion(gold, self.decide(scores), len(self))

    def evaluate(self, gold: Numbers, scores: NDArray[Any], metric: Metric) -> dict[str, Any]:
        """Value, low and high, in percent, of raw scores [N, L] against labels [N]."""
        return dict(score_predictions(gold, self.decide(scores), len(self), metric).as_dict())
