"""Which tokens of blocks are hidden from a masked language model.

Nothing here knows of models or files; what replaces a hidden token is said in `losses`.

Shapes: B blocks of T tokens, N = B T of them, V words, K places.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pet import corpus
from pet.encoding import Batch, Speller, round_up
from pet.losses import IGNORED, disguise
from pet.runtime import send

TARGETS = 64
"""MLM targets of a micro-batch are brought to a multiple of it, as matrix products on a GPU want."""


@dataclass(frozen=True)
class MaskedBatch:
    """Blocks with MLM targets hidden in them: `places`, which of the N tokens, and what they were, or IGNORED [K]."""

    batch: Batch
    places: torch.Tensor
    targets: torch.Tensor


def hide(
    ids: NDArray[np.int64],
    probability: float,
    speller: Speller,
    packed: bool,
    rng: np.random.Generator,
    device: torch.device,
) -> MaskedBatch:
    """Hide a share of the tokens of blocks [B, T], every token but special ones as readily as any other; the result on
    a device. The places come to a multiple of TARGETS, the same for every batch of a size, each once: attention is told
    that no block has more targets than tokens; of those in excess nothing is asked."""
    flat = ids.ravel()
    hideable = np.isin(flat, speller.tokenizer.all_special_ids, invert=True)
    wanted = max(1, round(probability * flat.size))
    count = min(round_up(wanted, TARGETS), flat.size)
    wanted = min(wanted, int(np.count_nonzero(hideable)))
    order = np.where(hideable, rng.exponential(size=flat.size), np.inf)
    places = np.argpartition(order, np.unique([max(wanted - 1, 0), count - 1]))[:count]
    hidden = places[:wanted]
    targets, changed = np.full(len(places), IGNORED), flat.copy()
    targets[: len(hidden)] = flat[hidden]
    random_tokens = rng.integers(0, len(speller.tokenizer), len(hidden))
    changed[hidden] = disguise(flat[hidden], rng.random(len(hidden)), random_tokens, speller.mask_id)
    return MaskedBatch(
        corpus.lay_blocks(changed.reshape(ids.shape), speller.has_types, not packed, device),
        send(torch.from_numpy(places), device),
        send(torch.from_numpy(targets), device),
    )
