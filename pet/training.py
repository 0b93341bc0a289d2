"""The one training loop: members, student and the supervised baseline differ only in their batches and their loss.

    for each optimizer step:
        for each micro-batch: loss / accumulation, backward
        clip, step, decay the rate, clear

Nothing here knows of patterns, soft labels or files.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from pet.runtime import Runtime
from pet.settings import Optimisation

B = TypeVar("B")
Losses = dict[str, torch.Tensor]
"""Scalars by name; `loss` is the one that is minimised."""

LOG_EVERY = 10
"""Steps between reports. Reading a loss makes the host wait for the device, so it is not done every step."""


@dataclass(frozen=True)
class TrainingReport:
    """Losses along the way: name -> mean over each stretch of LOG_EVERY steps; `steps`: the last step of each."""

    steps: list[int]
    losses: dict[str, list[float]]


def train(
    model: torch.nn.Module,
    settings: Optimisation,
    batches: Iterator[B],
    losses: Callable[[B], Losses],
    runtime: Runtime,
    name: str,
) -> TrainingReport:
    """Train `model` in place for exactly `settings.steps` optimizer steps and leave it in eval mode.

    `batches` must not end; `losses` maps a micro-batch to its scalars. `name`: for the progress bar and the tracker.
    """
    optimizer = build_optimizer(model, settings)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step, settings))
    report = TrainingReport([], {})
    recent: list[Losses] = []
    model.train()
    with runtime.reporter.track(name, settings.steps, "step") as advance:
        for step in range(1, settings.steps + 1):
            for _ in range(settings.accumulation):
                with runtime.autocast():
                    found = losses(next(batches))
                torch.autograd.backward(found["loss"] / settings.accumulation)
                recent.append({key: value.detach() for key, value in found.items()})
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            advance(1)
            if step % LOG_EVERY == 0 or step == settings.steps:
                record(report, step, recent, runtime, name)
                recent = []
    model.eval()
    return report


def build_optimizer(model: torch.nn.Module, settings: Optimisation) -> torch.optim.AdamW:
    """AdamW; biases and norm weights, the parameters with one dimension, are not decayed (P1 Tab 5)."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [one for one in trained if one.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [one for one in trained if one.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, eps=settings.adam_epsilon, fused=True)


def rate_factor(step: int, settings: Optimisation) -> float:
    """Share of the peak rate after `step` steps: linear from 0 during warm-up, then linear to 0 at the end."""
    if step < settings.warmup_steps:
        return step / settings.warmup_steps
    return max(0.0, (settings.steps - step) / max(1, settings.steps - settings.warmup_steps))


def record(report: TrainingReport, step: int, recent: list[Losses], runtime: Runtime, name: str) -> None:
    """Mean of each loss since the last record, kept and told to the tracker."""
    means = {key: float(torch.stack([one[key].float() for one in recent]).mean()) for key in recent[0]}
    report.steps.append(step)
    for key, value in means.items():
        report.losses.setdefault(key, []).append(round(value, 6))
    runtime.reporter.log(name, means, step)


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
