"""AdamW (Loshchilov & Hutter 2019) in two forms with the same four methods. The loop around it is `training`.

`FusedAdamW` is torch's own. `MasterAdamW` is for a model that computes in bf16: it keeps the weights that count in fp32
and reads gradients and writes the model's bf16 weights in the same pass. At RoBERTa-large's size a training step is
mostly moving weights through memory; by count this moves 30 bytes for each instead of 48. No GPU has timed it yet.
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import Protocol

import torch

from pet.settings import Optimisation

BETAS = (0.9, 0.999)
"""torch's and the paper's (P1 names no others)."""


class Optimizer(Protocol):
    """What a trainer needs. `grad_scale`: gradients are divided by it as they are read; a scalar tensor."""

    grad_scale: torch.Tensor

    def step(self) -> None:
        """Change the weights by their gradients."""

    def zero_grad(self) -> None:
        """Forget the gradients."""

    def set_rate(self, rate: float) -> None:
        """The learning rate of the next steps."""

    def reset(self) -> None:
        """Forget all moments and step counts, in place, as a captured step expects them where they are."""


def build_optimizer(
    model: torch.nn.Module, master: torch.nn.Module | None, settings: Optimisation, device: torch.device
) -> Optimizer:
    """The optimizer of a model; `master`: its copy in fp32, where the model computes in lower precision."""
    if master is None:
        return FusedAdamW(model, settings, device)
    return MasterAdamW(master, model, settings)


def is_decayed(parameter: torch.Tensor) -> bool:
    """Biases and norm weights, the parameters with one dimension, are not decayed (P1 Tab 5)."""
    return parameter.ndim > 1


class FusedAdamW:
    """torch's fused AdamW; on a GPU its rate is a tensor, which a captured step reads."""

    def __init__(self, model: torch.nn.Module, settings: Optimisation, device: torch.device) -> None:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        groups = [
            {"params": [one for one in trained if is_decayed(one)], "weight_decay": settings.weight_decay},
            {"params": [one for one in trained if not is_decayed(one)], "weight_decay": 0.0},
        ]
        on_gpu = device.type == "cuda"
        rate = torch.tensor(settings.learning_rate, device=device) if on_gpu else settings.learning_rate
        self.inner = torch.optim.AdamW(
            groups, lr=rate, betas=BETAS, eps=settings.adam_epsilon, fused=True, capturable=on_gpu
        )

    @property
    def grad_scale(self) -> torch.Tensor:
        """As torch.amp hands it to a fused optimizer."""
        return self.inner.grad_scale  # type: ignore[attr-defined, no-any-return]

    @grad_scale.setter
    def grad_scale(self, value: torch.Tensor) -> None:
        self.inner.grad_scale = value  # type: ignore[attr-defined]

    def step(self) -> None:
        """Change the weights by their gradients."""
        self.inner.step()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self.inner.zero_grad(set_to_none=True)

    def set_rate(self, rate: float) -> None:
        """The learning rate of the next steps."""
        for group in self.inner.param_groups:
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def reset(self) -> None:
        """Forget all moments and step counts, in place."""
        for state in self.inner.state.values():
            for value in state.values():
                value.zero_()


class MasterAdamW:
    """AdamW on the fp32 weights of `master`, from the gradients of `model`, which gets the new weights in its own
    precision. The parameters of both come in the same order."""

    def __init__(self, master: torch.nn.Module, model: torch.nn.Module, settings: Optimisation) -> None:
        pairs = zip(master.parameters(), model.parameters(), strict=True)
        self.pairs = [(kept.detach(), used) for kept, used in pairs if used.requires_grad]
        self.moments = [(torch.zeros_like(kept), torch.zeros_like(kept)) for kept, _ in self.pairs]
        device = self.pairs[0][0].device
        self.decays = [settings.weight_decay if is_decayed(kept) else 0.0 for kept, _ in self.pairs]
        self.epsilon = settings.adam_epsilon
        self.rate = torch.tensor(settings.learning_rate, device=device)
        self.grad_scale = torch.ones((), device=device)
        self.count = torch.zeros((), device=device, dtype=torch.float64)  # 1 - 0.999 has four digits in fp32
        self.update = fused_update() if device.type == "cuda" else update

    @torch.no_grad()
    def step(self) -> None:
        """Change the weights by their gradients."""
        self.count += 1
        corrections = [(1 - beta**self.count).float() for beta in BETAS]
        for (kept, used), (first, second), decay in zip(self.pairs, self.moments, self.decays, strict=True):
            if used.grad is not None:
                flat = [one.view(-1) for one in (kept, used.detach(), used.grad, first, second)]
                self.update(flat, [self.rate, self.grad_scale, *corrections], decay, self.epsilon)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for _, used in self.pairs:
            used.grad = None

    def set_rate(self, rate: float) -> None:
        """The learning rate of the next steps."""
        self.rate.fill_(rate)

    def reset(self) -> None:
        """Forget all moments and step counts, in place."""
        self.count.zero_()
        for pair in self.moments:
            for one in pair:
                one.zero_()


def update(flat: list[torch.Tensor], numbers: list[torch.Tensor], decay: float, epsilon: float) -> None:
    """One step of AdamW for one tensor, in place, as torch.optim.AdamW computes it.

    `flat`: weights in fp32, weights in use, gradient, first and second moment, each [n]; `numbers`: scalar tensors, the
    rate, what gradients are divided by, and both bias corrections.
    """
    kept, used, gradient, first, second = flat
    rate, scale, first_correction, second_correction = numbers
    scaled = gradient.float() / scale
    mean = BETAS[0] * first + (1 - BETAS[0]) * scaled
    square = BETAS[1] * second + (1 - BETAS[1]) * scaled * scaled
    moved = mean / first_correction / ((square / second_correction).sqrt() + epsilon)
    changed = kept * (1 - rate * decay) - rate * moved
    first.copy_(mean)
    second.copy_(square)
    kept.copy_(changed)
    used.copy_(changed)


@functools.cache
def fused_update() -> Callable[[list[torch.Tensor], list[torch.Tensor], float, float], None]:
    """`update` as one kernel, where it can be compiled."""
    return torch.compile(update, dynamic=True) if importlib.util.find_spec("triton") else update


def clip_to(model: torch.nn.Module, optimizer: Optimizer, max_norm: float) -> None:
    """Clip the gradient of all parameters together: the optimizer divides by what it is too long."""
    gradients = [one.grad for one in model.parameters() if one.grad is not None]
    norms = torch.stack(torch._foreach_norm(gradients, 2.0, torch.float32))
    optimizer.grad_scale = (torch.linalg.vector_norm(norms) / max_norm).clamp(min=1.0)
