"""The learning rate at each step, and the order in which rows are drawn."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pet.config.schema import Optimisation


def rate_factor(step: float, settings: Optimisation) -> float:
    """Share of the peak rate after `step` steps: linear from 0 during warm-up, then linear to 0 at the end."""
    if step < settings.warmup_steps:
        return step / settings.warmup_steps
    return max(0.0, (settings.steps - step) / max(1, settings.steps - settings.warmup_steps))


def endless_order(size: int, batch: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Row numbers [batch], for ever: one shuffled pass over `size` rows after another, cut into equal batches.

    No row comes a second time before every other one has come once; with fewer rows than `batch` a batch repeats them.
    """
    waiting = np.empty(0, dtype=np.int64)
    while True:
        while len(waiting) < batch:
            waiting = np.concatenate([waiting, rng.permutation(size)])
        yield waiting[:batch]
        waiting = waiting[batch:]
