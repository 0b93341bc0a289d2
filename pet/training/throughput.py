"""A training of minutes to days: how far it is by the clock, and how fast it was. What it learns is the business of
`pretrain`, how it is saved of `checkpoint`.
"""

import time
from collections.abc import Callable

import numpy as np
from torch import nn

from pet.config.schema import PretrainSettings
from pet.modeling import loading, packing
from pet.modeling.backbones import Backbone
from pet.modeling.families import family_of
from pet.training.checkpoint import CheckpointManager
from pet.training.device import Runtime, matmul_rate
from pet.training.trainer import LOG_EVERY, State


class ThroughputMeter:
    """Tells a training by the clock how far it is, and hands on what the saver is to be told."""

    def __init__(self, settings: PretrainSettings, checkpoints: CheckpointManager) -> None:
        self.settings = settings
        self.checkpoints = checkpoints
        self.marks: list[tuple[int, float]] = []
        self.seconds = 0.0

    def stop(self) -> None:
        """Training is over; `seconds` is what it took."""
        self.seconds = self.checkpoints.spent()

    def way(self, step: int) -> float:
        """Steps done, or what the time that is gone comes to in steps, if that is more."""
        if self.settings.minutes is None:
            return step
        return max(step, self.settings.steps * self.checkpoints.spent() / (60 * self.settings.minutes))

    def after(self, step: int, state: Callable[[], State | None], stopping: bool) -> None:
        """As of `Course`."""
        if step % LOG_EVERY == 0:
            self.marks.append((step, time.perf_counter()))
        self.checkpoints.after(step, state, stopping)

    def speed(self, cloze: Backbone, runtime: Runtime) -> dict[str, float]:
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


def flops_per_token(cloze: Backbone, settings: PretrainSettings) -> float:
    """Of a training step, for each token of its blocks: matrix products alone, those of attention among them
    (Chowdhery et al. 2022, appendix B). Each is computed once forward and once for the gradient of what it is given, a
    product with weights once more for theirs, if they are trained. LM head, and where it can the last layer, are
    computed for MLM targets only; nothing has a gradient below the first layer that is trained.
    """
    config, frozen = cloze.lm.config, settings.frozen_layers or 0
    asked = settings.mask_probability
    ends_early = family_of(config).read_layer is not None and packing.is_packed(cloze.lm)
    layers = loading.layers_of(cloze.lm) or [cloze.lm.base_model]
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
