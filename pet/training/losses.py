"""The three losses. Tensors in, scalars out; no model.

Shapes: B rows, N tokens, L labels, K MLM targets, V vocabulary, M members trained in one batch.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from pet.modeling.token_losses import IGNORED, TokenLosses


def label_loss(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of label scores [..., B, L] against labels [..., B], mean over rows (P1 section 3.1)."""
    each = functional.cross_entropy(scores.float().flatten(0, -2), labels.flatten(), reduction="none")
    return each.view(labels.shape).mean(-1)


class FusibleTokenLosses(torch.autograd.Function):
    """The same in two parts for torch.compile, `losses_and_totals` and `products_gradient`: each reads the products
    once, and neither turns them round or writes anything of their size but their gradient."""

    @staticmethod
    def forward(ctx: Any, products: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor, *parts: Any) -> Any:
        """`parts`: the two functions, compiled or not."""
        losses, totals = parts[0](products, bias, targets)
        ctx.save_for_backward(products, bias, targets, totals)
        ctx.part = parts[1]
        return losses

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        """Gradients of products and bias."""
        return (*ctx.part(*ctx.saved_tensors, gradient), None, None, None)


def losses_and_totals(
    products: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`token_losses` [K], and the logarithm of the sum that each softmax is divided by [K]."""
    logits = products.float() if bias is None else products.float() + bias[:, None]
    # Not `logsumexp`: torch finds maximum and sum in one pass only where it sees a softmax.
    most = logits.amax(0, keepdim=True)
    totals = (most + (logits - most).exp().sum(0, keepdim=True).log())[0]
    wanted = logits.gather(0, targets.clamp(min=0)[None])[0]
    return torch.where(targets == IGNORED, 0.0, totals - wanted), totals


def products_gradient(
    products: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    totals: torch.Tensor,
    gradient: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Gradients of products [V, K] and bias [V] from that of the losses [K]."""
    logits = products.float() if bias is None else products.float() + bias[:, None]
    wanted = torch.arange(len(logits), device=logits.device)[:, None] == targets
    each = ((logits - totals).exp() - wanted.float()) * torch.where(targets == IGNORED, 0.0, gradient)
    return each.to(products.dtype), None if bias is None else each.sum(1)


def fusible_token_losses(
    products: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    parts: Sequence[Any] = (losses_and_totals, products_gradient),
) -> torch.Tensor:
    """`token_losses` by `FusibleTokenLosses`; `parts`: its two functions, compiled or not."""
    return FusibleTokenLosses.apply(products, bias, targets, *parts)  # type: ignore


@functools.cache
def compiled_token_losses(alike: bool) -> TokenLosses:
    """The same as a few kernels. `alike`: for one number of targets, or two; else for any, after `warm_up_losses`."""
    parts = [torch.compile(one, dynamic=not alike) for one in (losses_and_totals, products_gradient)]
    return functools.partial(fusible_token_losses, parts=parts)


def mlm_loss(losses: torch.Tensor, targets: torch.Tensor, members: torch.Tensor, num_members: int) -> torch.Tensor:
    """For each member [M] the mean of the losses [K] of its targets that are not IGNORED, 0 if it has none. `targets`,
    `members`: what each was and whose it is [K]."""
    own = members == torch.arange(num_members, device=members.device)[:, None]  # [M, K]
    # Not `index_add`: a GPU adds in whatever order it comes to, and no two runs would tell the same loss.
    sums = torch.where(own, losses, 0.0).sum(1)
    return sums / (own & (targets != IGNORED)).sum(1).clamp(min=1)


def combined_loss(label: torch.Tensor, mlm: torch.Tensor, alpha: float) -> torch.Tensor:
    """(1 - alpha) label + alpha MLM (P1 section 3.2; the code's --alpha is 1 - alpha, fact sheet 2.4 item 1)."""
    return (1 - alpha) * label + alpha * mlm


def distillation_loss(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL(softmax(teacher / t) || softmax(student / t)) * t^2, mean over rows; both are raw scores [B, L].

    Temperature on both sides and its square as in the published code (fact sheet 3.5; Hinton et al. 2015).
    """
    target = functional.softmax(teacher.float() / temperature, dim=-1)
    log_student = functional.log_softmax(student.float() / temperature, dim=-1)
    return functional.kl_div(log_student, target, reduction="batchmean") * temperature**2
