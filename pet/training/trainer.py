"""The one training loop: members, student and the supervised baseline differ only in their batches and their loss.

    for each optimizer step:
        for each micro-batch: loss / accumulation, backward
        clip, step, decay the rate, clear

A loss is a scalar, or one value for each of M members that are trained in one batch and share no parameter.

On a GPU a small model is fast enough that starting its kernels one by one takes most of a step. So the whole step is
captured once per batch shape as a CUDA graph (`CapturedSteps`) and replayed; the numbers are the same. Nothing here
knows of patterns, soft labels or files.

Several ranks share the rows of each micro-batch: a rank's loss is its rows' part of that of all, gradients and losses
are summed over the ranks before the gradient is clipped, so the step is that of one process. But for dropout: a rank's
random numbers are its own (those of `lora` are the tokens', and stay).
"""

import copy
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic

import torch

from pet.config.schema import Optimisation
from pet.errors import NotFinite
from pet.modeling.batch import receive
from pet.store import interrupts
from pet.training.cuda_graphs import B, CapturedSteps, Losses
from pet.training.device import Runtime
from pet.training.finite import Origin
from pet.training.optim import build_optimizer, clip_to
from pet.training.schedule import rate_factor

LOG_EVERY = 10
"""Steps between reports; each is read when the next is due, because to read a loss is to wait for the device."""


@dataclass(frozen=True)
class TrainingReport:
    """Losses along the way: name -> mean over each stretch of LOG_EVERY steps; `steps`: the last step of each."""

    steps: list[int]
    losses: dict[str, list[float]]


@dataclass(frozen=True)
class State:
    """How far a training is: steps done, the report of each member, and the losses of the steps since."""

    step: int
    reports: list[TrainingReport]
    recent: list[Losses]


@dataclass(frozen=True)
class Lost:
    """The first step of a training with a loss that is NaN or infinite, that loss, and the numbers of the members whose
    it is."""

    step: int
    value: float
    members: list[int]


@dataclass
class ResumePoint:
    """A training that may go on from an earlier one, be saved on its way, or end before its last step. `start`: where
    it is already, weights and optimizer too (`None`: at its beginning); `way`: how many steps it counts as to have done
    so many, for the learning rate, and to end when it is all; `after`: called after every step with the number of steps
    done, what gives the state there, for which it waits (`None`: a loss is not finite, there is nothing to go on from),
    and whether the process was asked to stop."""

    start: State | None = None
    way: Callable[[int], float] = float
    after: Callable[[int, Callable[[], State | None], bool], None] = lambda step, state, stopping: None


class Trainer(Generic[B]):
    """A model with its loss, and what outlives one training: the optimizer, and on a GPU the captured steps.

    `losses` maps a micro-batch on the device (a tensor, or a dataclass or list of such) to its losses; `clip` clips the
    model's gradients to a norm, default: all together. `master`: the same model in fp32, where `model` computes in
    lower precision: its weights are the ones that are trained, `model` is given them after every step. `held`: as of
    `build_optimizer`. `origin`: what is to blame where a loss is not finite.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        settings: Optimisation,
        losses: Callable[[B], Losses],
        runtime: Runtime,
        clip: Callable[[float], None] | None = None,
        master: torch.nn.Module | None = None,
        held: torch.nn.Module | None = None,
        origin: Origin | None = None,
    ) -> None:
        self.origin = origin or Origin(setting="learning_rate", rate=settings.learning_rate)
        self.model = model
        self.settings = settings
        self.losses = losses
        self.runtime = runtime
        self.trained = [one for one in model.parameters() if one.requires_grad]
        self.summed: list[torch.nn.Parameter] | None = None
        self.optimizer = build_optimizer(model, master, settings, runtime.device, held)
        self.clip = clip or (lambda max_norm: clip_to(model, self.optimizer, max_norm))
        self.run_step: Callable[[list[B]], Losses] = self.step
        if runtime.captures:
            self.run_step = CapturedSteps(self.step, runtime.device)

    def run(
        self, batches: Iterator[B], *names: str, steps: int | None = None, resume: ResumePoint | None = None
    ) -> list[TrainingReport]:
        """Train in place for exactly `steps` optimizer steps (default: those of the settings) and leave the model in
        eval mode.

        Every run starts with a fresh optimizer; the model's weights are the caller's to reset. `batches` must not end,
        and begins where the course does. `names`: of the members, for the tracker; one report each. `resume`: where it
        starts and ends, if not so.

        Raises:
            Stopped: a signal came; the step it came in was done, and the course was told.
            NotFinite: a loss is NaN or infinite; names the first step and whose it is. All ranks raise it at the same
                step, as they have the same losses, at most two reports after it.
        """
        settings, resume = self.settings, resume or ResumePoint()
        if steps is not None:
            settings = settings.model_copy(update={"steps": steps})
        start = resume.start or State(0, [TrainingReport([], {}) for _ in names], [])
        if not start.step:
            self.optimizer.reset()
        reports, recent = copy.deepcopy(start.reports), list(start.recent)
        untold: list[Callable[[], Lost | None]] = []
        lost: list[Lost] = []

        def tell() -> None:
            while untold:
                lost.extend(filter(None, [untold.pop()()]))

        def check() -> None:
            if lost:
                raise self.failure(lost[0], names, settings.steps)

        def state() -> State | None:
            tell()  # no check: one rank alone asks for the state, and all are to fail together
            return None if lost else State(step, reports, recent)

        self.model.train()
        title = names[0] if len(names) == 1 else f"{len(names)} members"
        ranks, device = self.runtime.ranks, self.runtime.device
        try:
            with (
                interrupts.deferred(),
                ranks.apart(device),
                self.runtime.reporter.track(title, settings.steps, "step") as advance,
            ):
                advance(start.step)
                for step in range(start.step + 1, settings.steps + 1):
                    self.optimizer.set_rate(settings.learning_rate * rate_factor(resume.way(step - 1), settings))
                    recent.append(self.run_step([next(batches) for _ in range(settings.accumulation)]))
                    advance(1)
                    last = resume.way(step) >= settings.steps
                    if step % LOG_EVERY == 0 or last:
                        means = receive(means_of(recent, len(names)), self.runtime.device)
                        tell()  # of the steps before these, which are still being computed
                        check()
                        untold.append(functools.partial(record, reports, names, step, means, recent, self.runtime))
                        recent = []
                    stopping = self.is_stopping(step)
                    resume.after(step, state, stopping)
                    if last or stopping:
                        break
            tell()
            check()
        finally:  # what failed may be trained anew
            self.optimizer.zero_grad()
            self.model.eval()
        return reports

    def failure(self, lost: Lost, names: Sequence[str], steps: int) -> NotFinite:
        """What is raised for a loss that is not finite."""
        first, *more = [names[number] for number in lost.members]
        name = f"{first} (and {len(more)} more)" if more else first
        return self.origin.bad_loss(name, lost.value, lost.step, steps, self.runtime.dtype is not None)

    def is_stopping(self, step: int) -> bool:
        """Whether the process was asked to stop; several ranks agree on it, every LOG_EVERY steps."""
        if self.runtime.ranks.size == 1:
            return interrupts.asked()
        stopping = step % LOG_EVERY == 0 and self.runtime.ranks.any_of([interrupts.asked()])[0]
        if stopping:
            interrupts.ask()
        return stopping

    def step(self, micro_batches: Sequence[B]) -> Losses:
        """One optimizer step; the mean of each loss over its micro-batches."""
        total: Losses = {}
        self.optimizer.zero_grad()
        for batch in micro_batches:
            found = self.losses(batch)
            torch.autograd.backward(found["loss"].sum() / len(micro_batches))
            for key, value in found.items():
                share = value.detach().float() / len(micro_batches)
                total[key] = total[key] + share if key in total else share
        if self.runtime.ranks.size > 1:
            self.sum_over_ranks(total)
        self.clip(self.settings.max_grad_norm)
        self.optimizer.step()
        return total

    def sum_over_ranks(self, losses: Losses) -> None:
        """Sum gradients and losses over all ranks, in place: of the same parameters on each, those that had a gradient
        on any of them in the first step."""
        ranks = self.runtime.ranks
        if self.summed is None:
            flags = ranks.any_of([one.grad is not None for one in self.trained])
            self.summed = [one for one, has in zip(self.trained, flags, strict=True) if has]
        for one in self.summed:
            if one.grad is None:
                one.grad = torch.zeros_like(one)
        ranks.sum_tensors([*(one.grad for one in self.summed if one.grad is not None), *losses.values()])


def means_of(recent: list[Losses], num_members: int) -> list[tuple[str, torch.Tensor]]:
    """Mean of each loss over these steps [M], by name."""
    return [(key, torch.stack([one[key] for one in recent]).mean(0).expand(num_members)) for key in recent[0]]


def record(
    reports: list[TrainingReport],
    names: Sequence[str],
    step: int,
    means: Callable[[], list[tuple[str, torch.Tensor]]],
    recent: list[Losses],
    runtime: Runtime,
) -> Lost | None:
    """Keep what `means_of` found in the `recent` losses up to this step and tell the tracker, member by member; or say
    where one is not finite."""
    values = {key: found.tolist() for key, found in means()}
    if not all(math.isfinite(one) for of_members in values.values() for one in of_members):
        return find_lost(recent, step, len(names))
    for number, (report, name) in enumerate(zip(reports, names, strict=True)):
        report.steps.append(step)
        for key, of_members in values.items():
            report.losses.setdefault(key, []).append(round(of_members[number], 6))
        runtime.reporter.log(name, {key: of_members[number] for key, of_members in values.items()}, step)
    return None


def find_lost(recent: list[Losses], last: int, num_members: int) -> Lost:
    """The first of the steps up to `last` with a loss that is not finite, as their means are not."""
    for step, losses in enumerate(recent, last - len(recent) + 1):
        found = torch.stack([one.expand(num_members) for one in losses.values()]).cpu()  # [losses, M]
        wrong = ~found.isfinite()
        if wrong.any():
            return Lost(step, float(found[wrong][0]), wrong.any(0).nonzero().flatten().tolist())
    return Lost(last, math.inf, list(range(num_members)))  # each is finite, and their sum too large
