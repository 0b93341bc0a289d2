"""AdamW (Loshchilov & Hutter 2019) in two forms with the same methods. The loop around it is `training`.

`FusedAdamW` is torch's own. `MasterAdamW` is for a model that computes in bf16: it keeps the weights that count in fp32
and reads gradients and writes the model's bf16 weights in the same pass. At RoBERTa-large's size a training step is
mostly moving weights through memory; this moves 30 bytes for each instead of 48 (3.7 ms on one H100, bench/RESULTS.md).
"""

import functools
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from pet.config.schema import Optimisation

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

    def state(self) -> dict[str, torch.Tensor]:
        """All moments and step counts, by name; the tensors themselves."""

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from what `state` gave in a training of the same parameters."""


def build_optimizer(
    model: torch.nn.Module,
    master: torch.nn.Module | None,
    settings: Optimisation,
    device: torch.device,
    held: torch.nn.Module | None = None,
) -> Optimizer:
    """The optimizer of a model; `master`: its copy in fp32, where the model computes in lower precision; `held`: the
    part of what is kept in fp32 whose matrices are decayed to what they are now, and nothing else is decayed."""
    if master is None and held is None:
        return FusedAdamW(model, settings, device)
    return MasterAdamW(master or model, model, settings, held)


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

    def state(self) -> dict[str, torch.Tensor]:
        """All moments and step counts, by name; the tensors themselves."""
        return {
            f"{number}.{name}": value
            for number, one in enumerate(self._parameters())
            for name, value in self.inner.state.get(one, {}).items()
        }

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from what `state` gave in a training of the same parameters."""
        parameters = self._parameters()
        for key, value in state.items():
            number, _, name = key.partition(".")
            one = parameters[int(number)]
            mine = self.inner.state[one]
            if name in mine:  # a captured step reads it where it is
                mine[name].copy_(value)
                continue
            on_host = name == "step" and not self.inner.param_groups[0]["capturable"]
            mine[name] = value.clone() if on_host else value.to(one.device, copy=True)

    def _parameters(self) -> list[torch.Tensor]:
        return [one for group in self.inner.param_groups for one in group["params"]]


@dataclass(frozen=True)
class Piece:
    """Parameters whose n numbers are updated as one: a matrix, or all vectors of one precision, which are too small to
    be worth a kernel each. `kept`: the weights in fp32, `used`: those of the model; `goals`: what they are decayed to
    [n], if not to 0; moments [n]."""

    kept: list[torch.Tensor]
    used: list[torch.Tensor]
    decay: float
    goals: list[torch.Tensor]
    first: torch.Tensor
    second: torch.Tensor


class MasterAdamW:
    """AdamW on the fp32 weights of `master`, from the gradients of `model`, which gets the new weights in its own
    precision. The parameters of both come in the same order; both may be one. `held`: as of `build_optimizer`."""

    def __init__(
        self,
        master: torch.nn.Module,
        model: torch.nn.Module,
        settings: Optimisation,
        held: torch.nn.Module | None = None,
    ) -> None:
        stay = {one.data_ptr() for one in held.parameters()} if held is not None else set()
        both = zip(master.parameters(), model.parameters(), strict=True)
        trained = [(kept.detach(), used) for kept, used in both if used.requires_grad]
        self.pieces = []
        for kept, used in trained:
            if is_decayed(kept):
                stays = kept.data_ptr() in stay
                decay = settings.weight_decay if stays or held is None else 0.0
                self.pieces.append(make_piece([(kept, used)], decay, [kept.flatten().clone()] if stays else []))
        vectors = [pair for pair in trained if not is_decayed(pair[0])]
        for dtype in {used.dtype: None for _, used in vectors}:
            self.pieces.append(make_piece([pair for pair in vectors if pair[1].dtype == dtype], 0.0))
        device = trained[0][0].device
        self.epsilon = settings.adam_epsilon
        self.rate = torch.tensor(settings.learning_rate, device=device)
        self.grad_scale = torch.ones((), device=device)
        self.count = torch.zeros((), device=device, dtype=torch.float64)  # 1 - 0.999 has four digits in fp32
        self.update = fused_update() if device.type == "cuda" else update

    @torch.no_grad()
    def step(self) -> None:
        """Change the weights by their gradients."""
        self.count += 1
        numbers = [self.rate, self.grad_scale, *((1 - beta**self.count).float() for beta in BETAS)]
        for piece in self.pieces:
            if any(used.grad is not None for used in piece.used):
                self.update_piece(piece, numbers)

    def update_piece(self, piece: Piece, numbers: list[torch.Tensor]) -> None:
        """One step of a piece; `numbers` as in `update`."""
        # Vectors are not decayed, so a gradient of 0 leaves one alone that has never had any.
        filled = [torch.zeros_like(used) if used.grad is None else used.grad for used in piece.used]
        kept, used, gradient = (join(tensors) for tensors in (piece.kept, piece.used, filled))
        flat = [kept, used, gradient, piece.first, piece.second, *piece.goals]
        self.update(flat, numbers, piece.decay, self.epsilon)
        if len(piece.used) > 1:  # copies were updated
            sizes = [one.numel() for one in piece.kept]
            torch._foreach_copy_([one.view(-1) for one in piece.kept], torch.split(kept, sizes))
            torch._foreach_copy_([one.detach().view(-1) for one in piece.used], torch.split(used, sizes))

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for piece in self.pieces:
            for used in piece.used:
                used.grad = None

    def set_rate(self, rate: float) -> None:
        """The learning rate of the next steps."""
        self.rate.fill_(rate)

    def reset(self) -> None:
        """Forget all moments and step counts, in place."""
        for value in self.state().values():
            value.zero_()

    def state(self) -> dict[str, torch.Tensor]:
        """All moments and the step count, by name; the tensors themselves."""
        moments = {
            f"{number}.{name}": value
            for number, piece in enumerate(self.pieces)
            for name, value in (("first", piece.first), ("second", piece.second))
        }
        return {"count": self.count, **moments}

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from what `state` gave in a training of the same parameters."""
        for name, value in self.state().items():
            value.copy_(state[name])


def make_piece(
    pairs: list[tuple[torch.Tensor, torch.Tensor]], decay: float, goals: list[torch.Tensor] | None = None
) -> Piece:
    """Pairs of a weight in fp32 and the model's, as one piece with moments of 0."""
    size, device = sum(kept.numel() for kept, _ in pairs), pairs[0][0].device
    first, second = (torch.zeros(size, device=device) for _ in range(2))
    return Piece([kept for kept, _ in pairs], [used for _, used in pairs], decay, goals or [], first, second)


def join(tensors: list[torch.Tensor]) -> torch.Tensor:
    """One tensor flat, in place; several copied one after another."""
    flat = [one.detach().view(-1) for one in tensors]
    return flat[0] if len(flat) == 1 else torch.cat(flat)


def update(flat: list[torch.Tensor], numbers: list[torch.Tensor], decay: float, epsilon: float) -> None:
    """One step of AdamW for one tensor, in place, as torch.optim.AdamW computes it.

    `flat`: weights in fp32, weights in use, gradient, first and second moment, and what the weights are decayed to if
    that is not 0 (L2-SP, Li et al. 2018, decoupled from the gradient as AdamW's decay is), each [n]; `numbers`: scalar
    tensors, the rate, what gradients are divided by, and both bias corrections.
    """
    kept, used, gradient, first, second, *goals = flat
    rate, scale, first_correction, second_correction = numbers
    scaled = gradient.float() / scale
    mean = BETAS[0] * first + (1 - BETAS[0]) * scaled
    square = BETAS[1] * second + (1 - BETAS[1]) * scaled * scaled
    moved = mean / first_correction / ((square / second_correction).sqrt() + epsilon)
    changed = kept * (1 - rate * decay) - rate * moved
    for goal in goals:
        changed = changed + rate * decay * goal
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
    # One precision at a time: where several are mixed, torch starts a kernel for each tensor.
    alike = ([one for one in gradients if one.dtype == dtype] for dtype in {one.dtype: None for one in gradients})
    norms = [norm for some in alike for norm in torch._foreach_norm(some, 2.0, torch.float32)]
    optimizer.grad_scale = (torch.linalg.vector_norm(torch.stack(norms)) / max_norm).clamp(min=1.0)
