"""Which tokens of blocks are hidden from a masked language model.

Nothing here knows of models or files; what replaces a hidden token is up to `apply_mlm_mask`.

Shapes: B blocks of T tokens, N = B T of them, V words, K places.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pet.modeling.backbones.masked_lm import apply_mlm_mask
from pet.modeling.batch import Batch, round_up, send
from pet.modeling.token_losses import IGNORED
from pet.modeling.tokenization import PromptTokenizer
from pet.training import mlm_corpus
from pet.training.distributed import ALONE, Ranks

TARGET_MULTIPLE = 64
"""MLM targets of a micro-batch are brought to a multiple of it, as matrix products on a GPU want."""


@dataclass(frozen=True)
class MaskedBatch:
    """Blocks with MLM targets hidden in them: `places`, which of the N tokens, and what they were, or IGNORED [K];
    `weight`: what the mean of this rank's losses is in that of all ranks [1], `None`: it has all blocks."""

    batch: Batch
    places: torch.Tensor
    targets: torch.Tensor
    weight: torch.Tensor | None = None


def hide(
    ids: NDArray[np.int64],
    probability: float,
    prompt_tokenizer: PromptTokenizer,
    packed: bool,
    rng: np.random.Generator,
    device: torch.device,
    ranks: Ranks = ALONE,
) -> MaskedBatch:
    """Hide a share of the tokens of blocks [B, T], every token but special ones as readily as any other; the result on
    a device. The places come to a multiple of TARGET_MULTIPLE, the same for every batch of a size, each once: attention
    takes it that a block may have as many targets as tokens; of those in excess nothing is asked. Of R ranks each keeps
    every R-th block."""
    flat = ids.ravel()
    hideable = np.isin(flat, prompt_tokenizer.tokenizer.all_special_ids, invert=True)
    wanted = max(1, round(probability * flat.size))
    count = min(round_up(wanted, TARGET_MULTIPLE), flat.size)
    wanted = min(wanted, int(np.count_nonzero(hideable)))
    order = np.where(hideable, rng.exponential(size=flat.size), np.inf)
    places = np.argpartition(order, np.unique([max(wanted - 1, 0), count - 1]))[:count]
    hidden = places[:wanted]
    targets, changed = np.full(len(places), IGNORED), flat.copy()
    targets[: len(hidden)] = flat[hidden]
    random_tokens = rng.integers(0, len(prompt_tokenizer.tokenizer), len(hidden))
    changed[hidden] = apply_mlm_mask(flat[hidden], rng.random(len(hidden)), random_tokens, prompt_tokenizer.mask_id)
    shown, weight = changed.reshape(ids.shape), None
    if ranks.size > 1:
        shown, places, targets, share = part_of(shown, hidden, flat[hidden], ranks)
        weight = send(torch.tensor([share]), device)
    return MaskedBatch(
        mlm_corpus.lay_blocks(shown, prompt_tokenizer.has_types, not packed, device),
        send(torch.from_numpy(places), device),
        send(torch.from_numpy(targets), device),
        weight,
    )


def part_of(
    shown: NDArray[np.int64], hidden: NDArray[np.int64], targets: NDArray[np.int64], ranks: Ranks
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], float]:
    """A rank's blocks, the places in them and their targets as of `hide`, and the share of all targets that are its.

    The number of places varies from rank to rank; so it is brought to what six standard deviations hardly ever exceed.
    """
    (num, length), blocks = shown.shape, ranks.own(len(shown))
    owners = hidden // length % ranks.size
    mine = hidden[owners == ranks.rank]  # none where the block is a filler
    found = mine // length // ranks.size * length + mine % length
    expected = len(hidden) * len(blocks) / num
    most = max(int(np.bincount(owners).max(initial=0)), int(expected + 6 * np.sqrt(expected)))
    size = len(blocks) * length
    capacity = min(round_up(most, TARGET_MULTIPLE), size)
    rest = np.setdiff1d(np.arange(size), found)[: capacity - len(found)]
    asked = np.full(capacity, IGNORED)
    asked[: len(found)] = targets[owners == ranks.rank]
    return shown[blocks], np.concatenate([found, rest]), asked, len(found) / max(1, len(hidden))
