"""The three losses, and which tokens the MLM loss asks for. Tensors in, scalars out; no model.

Shapes: B rows, N tokens, L labels, K MLM targets, V vocabulary, M members trained in one batch.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

IGNORED = -100
KEPT, MASKED = 0.1, 0.8
"""Of the MLM targets 80 % are replaced by the mask, 10 % by a random token, 10 % stay (BERT; P1 uses the same)."""


def label_loss(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of label scores [..., B, L] against labels [..., B], mean over rows (P1 section 3.1)."""
    each = functional.cross_entropy(scores.float().flatten(0, -2), labels.flatten(), reduction="none")
    return each.view(labels.shape).mean(-1)


def mlm_loss(logits: torch.Tensor, targets: torch.Tensor, members: torch.Tensor, num_members: int) -> torch.Tensor:
    """Cross-entropy of vocabulary logits [K, V] at the target positions against tokens [K]; for each member [M] the
    mean over its targets that are not IGNORED, 0 if it has none. `members`: whose each target is [K]."""
    each = functional.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="none")
    sums = each.new_zeros(num_members).index_add(0, members, each)
    counts = each.new_zeros(num_members).index_add(0, members, (targets != IGNORED).float())
    return sums / counts.clamp(min=1)


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


def mask_tokens(
    input_ids: NDArray[np.int64],
    maskable: NDArray[np.bool_],
    probability: float,
    mask_id: int,
    vocabulary_size: int,
    rng: np.random.Generator,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Choose MLM targets among `maskable` tokens and hide most of them.

    `input_ids`, `maskable`: [N]. Returns the changed ids [N] and the targets [N], IGNORED where nothing is asked. The
    input is not modified.
    """
    chosen = maskable & (rng.random(input_ids.shape) < probability)
    fate = rng.random(input_ids.shape)
    random_tokens = rng.integers(0, vocabulary_size, size=input_ids.shape)
    changed = np.where(chosen, disguise(input_ids, fate, random_tokens, mask_id), input_ids)
    return changed, np.where(chosen, input_ids, IGNORED)


def disguise(
    tokens: NDArray[np.int64], fate: NDArray[np.float64], random_tokens: NDArray[np.int64], mask_id: int
) -> NDArray[np.int64]:
    """MLM targets [K] as the model gets to see them: the mask, a random token or themselves, by `fate` in [0, 1)."""
    shown = np.where(fate < MASKED, mask_id, random_tokens)
    return np.where(fate >= 1 - KEPT, tokens, shown)
