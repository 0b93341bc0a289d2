"""A training of minutes to days: how far it is by the clock, when it is saved, how fast it was. What it learns is the
business of `pretrain`.
"""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from pet import models, packing
from pet.cloze import ClozeModel
from pet.errors import StoreError
from pet.optimizer import Optimizer
from pet.runtime import Runtime, matmul_rate
from pet.settings import PretrainSettings
from pet.training import TrainingReport


class Checkpoint:
    """A training as it is now, in one file: weights, moments, random states, steps and seconds. `weights`: the module
    that holds what is trained."""

    def __init__(self, path: Path, weights: nn.Module, optimizer: Optimizer) -> None:
        self.path = path
        self.weights = weights
        self.optimizer = optimizer

    def save(self, step: int, seconds: float, report: TrainingReport) -> None:
        """Write it beside the old one, then put it in its place."""
        tensors = {f"model.{name}": one.detach() for name, one in self.weights.named_parameters()}
        tensors |= {f"optimizer.{name}": one for name, one in self.optimizer.state().items()}
        tensors["random.cpu"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors["random.cuda"] = torch.cuda.get_rng_state()
        draft = self.path.with_suffix(".draft")
        facts = {"progress": json.dumps({"step": step, "seconds": seconds, "report": dataclasses.asdict(report)})}
        save_file({name: one.contiguous() for name, one in tensors.items()}, draft, facts)
        draft.replace(self.path)

    def restore(self) -> tuple[int, float, TrainingReport]:
        """Go on from it, if there is one; steps done, seconds spent and losses on the way.

        Raises:
            StoreError: it is damaged.
        """
        if not self.path.is_file():
            return 0, 0.0, TrainingReport([], {})
        try:
            with safe_open(self.path, framework="pt") as file:
                progress = json.loads(file.metadata()["progress"])
                report = TrainingReport(**progress["report"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as problem:
            raise StoreError(f"{self.path} is damaged ({problem}); remove it to start anew") from None
        with torch.no_grad():
            for name, one in self.weights.named_parameters():
                one.copy_(tensors[f"model.{name}"])
        prefix = "optimizer."
        moments = {name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix)}
        self.optimizer.load(moments)
        torch.set_rng_state(tensors["random.cpu"])
        if torch.cuda.is_available() and "random.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random.cuda"])
        return int(progress["step"]), float(progress["seconds"]), report


class Watch:
    """Tells a training by the clock how far it is, and when to save it. `spent`: seconds before this process."""

    def __init__(self, settings: PretrainSettings, spent: float, saved: Checkpoint) -> None:
        self.settings = settings
        self.saved = saved
        self.before = spent
        self.begun = self.last = time.perf_counter()
        self.marks: list[tuple[int, float]] = []
        self.seconds = 0.0

    def stop(self) -> None:
        """Training is over; `seconds` is what it took."""
        self.seconds = self.spent()

    def spent(self) -> float:
        """Seconds of training so far."""
        return self.before + time.perf_counter() - self.begun

    def way(self, step: int) -> float:
        """Steps done, or what the time that is gone comes to in steps, if that is more."""
        if self.settings.minutes is None:
            return step
        return max(step, self.settings.steps * self.spent() / (60 * self.settings.minutes))

    def after(self, step: int, report: Callable[[], TrainingReport]) -> None:
        """Save what has been learnt, when it is time; as of `Course`."""
        now = time.perf_counter()
        self.marks.append((step, now))
        if now - self.last >= 60 * self.settings.checkpoint_minutes:
            self.saved.save(step, self.spent(), report())
            self.last = time.perf_counter()

    def speed(self, cloze: ClozeModel, runtime: Runtime) -> dict[str, float]:
        """Tokens a second, FLOP/s and their share of the matmul rate, all of the median stretch between two reports: to
        compile, to capture and to save is no part of it."""
        if len(self.marks) < 3:
            return {}
        steps, seconds = np.diff(self.marks, axis=0).T
        tokens = self.settings.blocks * self.settings.accumulation * self.settings.length
        rate = tokens / float(np.median(seconds / steps))
        flops = rate * flops_per_token(cloze, self.settings)
        ceiling = matmul_rate(runtime.device, runtime.dtype)
        return {"tokens_per_second": rate, "flops": flops, "matmul_rate": ceiling, "share_of_matmul": flops / ceiling}


def flops_per_token(cloze: ClozeModel, settings: PretrainSettings) -> float:
    """Of a training step, for each token of its blocks: matrix products alone, those of attention among them
    (Chowdhery et al. 2022, appendix B). Each is computed once forward and once for the gradient of what it is given, a
    product with weights once more for theirs, if they are trained. LM head, and where it can the last layer, are
    computed for MLM targets only; nothing has a gradient below the first layer that is trained.
    """
    config, frozen = cloze.lm.config, settings.frozen_layers or 0
    asked = settings.mask_probability
    ends_early = config.model_type in packing.READS and packing.is_packed(cloze.lm)
    layers = models.layers_of(cloze.lm) or [cloze.lm.base_model]
    total = 0.0
    for number, layer in enumerate(layers):
        maps = [one for one in layer.modules() if isinstance(one, nn.Linear)]
        passes = [2.0 + one.weight.requires_grad if number >= frozen else 1.0 for one in maps]
        sizes = [one.weight.numel() * count for one, count in zip(maps, passes, strict=True)]
        attention = 2 * settings.length * config.hidden_size * (3 if number >= frozen else 1)
        if ends_early and number == len(layers) - 1:
            both = 2 * config.hidden_size**2 * max(passes)  # keys and values, which all tokens need
            total += both + asked * (sum(sizes) - both + attention)
        else:
            total += sum(sizes) + attention
    body = {id(one) for one in cloze.lm.base_model.modules()}
    heads = [one for one in cloze.lm.modules() if isinstance(one, nn.Linear) and id(one) not in body]
    return 2.0 * (total + asked * sum(one.weight.numel() * (2.0 + one.weight.requires_grad) for one in heads))
