"""Which tokens of blocks are hidden from a masked language model, and how often which word is.

Nothing here knows of models or files; what replaces a hidden token is said in `losses`.

Shapes: B blocks of T tokens, N = B T of them, V words, K places.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pet import corpus
from pet.encoding import Batch, Speller, round_up
from pet.losses import IGNORED, disguise
from pet.runtime import send

TARGETS = 64
"""MLM targets of a micro-batch are brought to a multiple of it, as matrix products on a GPU want."""

RAREST, COMMONEST = 2e-5, 1e-3
"""Shares of all tokens: words beyond them count as if at them. Label words lie between. With a trained
model's bias shifted so, the same zero-shot accuracy cost 0.28 of its loss without these bounds, 0.09 with them
(results/LOG.md)."""


@dataclass(frozen=True)
class MaskedBatch:
    """Blocks with MLM targets hidden in them: `places`, which of the N tokens, and what they were, or IGNORED [K]."""

    batch: Batch
    places: torch.Tensor
    targets: torch.Tensor


def word_weights(tokens: NDArray[Any], speller: Speller, power: float) -> NDArray[np.float64]:
    """How readily each word is hidden [V]: its share of `tokens`, within bounds, to the minus `power`; special tokens
    never.

    With 0 all words alike, as in BERT. A model expects words as often as they were hidden from it: with more than 0 it
    holds back less with rare ones (Zhang et al. 2023, "Weighted Sampling for Masked Language Modeling").
    """
    size = len(speller.tokenizer)
    weights = np.ones(size)
    if power:
        counts = corpus.count_words(tokens, size)
        weights = np.clip(counts / counts.sum(), RAREST, COMMONEST) ** -power
    weights[list(speller.tokenizer.all_special_ids)] = 0
    return weights


def hide(
    ids: NDArray[np.int64],
    probability: float,
    weights: NDArray[np.float64],
    speller: Speller,
    packed: bool,
    rng: np.random.Generator,
    device: torch.device,
) -> MaskedBatch:
    """Hide a share of the tokens of blocks [B, T], each word as readily as its weight says [V], those of weight 0
    never; on a device. The places come to a multiple of TARGETS, the same for every batch of a size; of those in excess
    nothing is asked."""
    flat = ids.ravel()
    weight = weights[flat]
    wanted = max(1, round(probability * flat.size))
    count = min(round_up(wanted, TARGETS), flat.size)
    wanted = min(wanted, int(np.count_nonzero(weight)))
    places = draw_places(weight, wanted, count, rng)
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


def draw_places(weight: NDArray[np.float64], wanted: int, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """`count` of N tokens, each once: attention is told that no block has more targets than tokens. The first `wanted`
    are drawn one after another, each in proportion to its weight among those that are left (Efraimidis & Spirakis 2006:
    the smallest of exponential times over weights); weight 0 comes last."""
    with np.errstate(divide="ignore"):
        times = rng.exponential(size=len(weight)) / weight
    return np.argpartition(times, np.unique([max(wanted - 1, 0), count - 1]))[:count]
