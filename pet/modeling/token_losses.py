"""Cross-entropy of tokens over the vocabulary, as losses per token."""

from collections.abc import Callable

import torch
from torch.nn import functional

TokenLosses = Callable[[torch.Tensor, torch.Tensor | None, torch.Tensor], torch.Tensor]

IGNORED = -100


def token_losses(products: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of vocabulary logits `products` + `bias` ([V, K], [V]) against tokens [K]; each in fp32 [K], 0 for
    IGNORED. Words first: K can be chosen round, V is what it is, and matrix products want rows of a round size."""
    if products.requires_grad:
        # The gradient comes back by targets, in rows of V.
        products.register_hook(torch.Tensor.contiguous)  # type: ignore[no-untyped-call]
    logits = products if bias is None else products + bias[:, None]
    # Contiguous: a softmax across what is stored by columns takes a hundred times as long (bench/RESULTS.md).
    by_target = logits.T.contiguous().float()
    return functional.cross_entropy(by_target, targets, ignore_index=IGNORED, reduction="none")
