"""Micro-batches of cloze training and their losses. Training itself is `training`, what is trained is `finetune`.

A batch serves M members at once, each with its own labelled texts, pool texts, pattern and random stream; a member that
is a model of its own is trained with M = 1. Of R ranks each draws the same rows and keeps its own: every R-th labelled
one, every R-th of the others.

Shapes: R ranks, M members, n labelled rows of each, N tokens of all rows together, K MLM targets, W label words, L
labels.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pet.config.schema import FinetuneSettings
from pet.modeling.backbones import Backbone, ClozeBatch, MaskedLM
from pet.modeling.batch import Batch, Layout, join_batches, pad_to_multiples, round_up, take_rows
from pet.modeling.prompts import EncodedTexts, collate
from pet.modeling.token_losses import IGNORED
from pet.modeling.tokenization import PromptTokenizer
from pet.modeling.verbalizers import Verbalizer
from pet.training.cuda_graphs import Losses
from pet.training.distributed import ALONE, Ranks, shard
from pet.training.losses import combined_loss, label_loss, mlm_loss
from pet.training.mlm_masking import TARGET_MULTIPLE
from pet.training.schedule import endless_order

KEY_STEP = 2_654_435_761
"""Between the keys of neighbouring tokens: 2^32 over the golden ratio, so that they are spread evenly."""


def cloze_losses(cloze: Backbone, given: ClozeBatch, alpha: float) -> Losses:
    """Label loss and MLM loss [M] of one micro-batch, from one forward pass (P1 section 3.2). Of several ranks, each
    one's part: the sum over all is the mean over all rows."""
    scores, losses = cloze.answers(given)
    label = label_loss(scores, given.labels)
    if given.weights is not None:
        label = label * given.weights[0]
    if len(given.batch) == given.labels.numel():  # there are no unlabelled rows
        return {"loss": label, "label_loss": label}
    mlm = mlm_loss(losses, given.targets, given.target_members, len(given.labels))
    if given.weights is not None:
        mlm = mlm * given.weights[1]
    return {"loss": combined_loss(label, mlm, alpha), "label_loss": label, "mlm_loss": mlm}


# ---- one member's batches ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MemberBatch:
    """One member's part of a micro-batch: this rank's rows, the labelled ones first, in the layout that the batch will
    have.

    `labels`: [n]; `targets`: [N], IGNORED where nothing is asked; `keys`: of each token [N]; `sizes`: tokens and
    targets of every rank [R, 2]; `weights`: as of `ClozeBatch` [2].
    """

    batch: Batch
    keys: NDArray[np.int64]
    labels: NDArray[np.int64]
    targets: NDArray[np.int64]
    verbalizers: Verbalizer
    sizes: NDArray[np.int64]
    weights: tuple[float, float]


@dataclass(frozen=True)
class MemberSources:
    """Where one member's rows come from, what is never hidden in them (token ids), and the kind of the model that
    they are for."""

    labelled: EncodedTexts
    labels: NDArray[np.int64]
    pool: EncodedTexts
    verbalizers: Verbalizer
    never_masked: NDArray[np.int64]
    kind: type[Backbone] = MaskedLM


def draw_member_batches(
    sources: MemberSources, settings: FinetuneSettings, layout: Layout, rng: np.random.Generator, ranks: Ranks = ALONE
) -> Iterator[MemberBatch]:
    """For ever: shuffled labelled rows, shuffled pool rows with MLM targets chosen anew each time; this rank's."""
    layout = dataclasses.replace(layout, token_multiple=1)  # `combine` fills up
    (keys,) = rng.spawn(1)
    uses_mlm = settings.alpha > 0 and settings.unlabelled_batch > 0
    labelled = endless_order(len(sources.labelled), settings.labelled_batch, rng)
    unlabelled = endless_order(len(sources.pool), settings.unlabelled_batch, rng) if uses_mlm else None
    while True:
        chosen = next(labelled)
        from_pool = next(unlabelled) if unlabelled else chosen[:0]
        batch = collate([sources.labelled, sources.pool], [chosen, from_pool], layout)
        targets = hide_tokens(batch, len(chosen), sources, settings.mask_probability, rng)
        of_tokens = int(keys.integers(2**31)) + np.arange(len(targets)) * KEY_STEP
        whole = np.asarray([[len(targets), np.count_nonzero(targets != IGNORED)]])
        share = MemberBatch(batch, of_tokens, sources.labels[chosen], targets, sources.verbalizers, whole, (1.0, 1.0))
        yield share if ranks.size == 1 else part_of(share, ranks)


def part_of(share: MemberBatch, ranks: Ranks) -> MemberBatch:
    """A rank's part of the share of all. Labelled and other rows are dealt out from opposite ends, so that where both
    leave a remainder no rank gets both."""
    num_labelled, num_others = len(share.labels), len(share.batch) - len(share.labels)
    labelled = shard(num_labelled, ranks.size)
    others = [num_labelled + some for some in reversed(shard(num_others, ranks.size))]
    starts, asked = share.batch.starts.numpy(), share.targets != IGNORED
    of_rows = np.stack([np.diff(starts), np.add.reduceat(asked, starts[:-1], dtype=np.int64)], 1)  # no row is empty
    sizes = np.stack([of_rows[np.concatenate(rows)].sum(0) for rows in zip(labelled, others, strict=True)])
    mine = np.concatenate([labelled[ranks.rank], others[ranks.rank]])
    batch, tokens = take_rows(share.batch, mine)
    targets = share.targets[tokens]
    if num_others <= ranks.size - 1 - ranks.rank:
        targets = np.full_like(targets, IGNORED)  # only a filler
    part = (targets != IGNORED).sum() / max(1, asked.sum())
    return MemberBatch(
        batch,
        share.keys[tokens],
        share.labels[labelled[ranks.rank]],
        targets,
        share.verbalizers,
        sizes,
        (ranks.share(num_labelled), float(part)),
    )


def never_masked(prompt_tokenizer: PromptTokenizer, mask_targets: str) -> NDArray[np.int64]:
    """Token ids that are never MLM targets: all special tokens, or (published code) only those of the frame."""
    if mask_targets == "content":
        return np.asarray(prompt_tokenizer.tokenizer.all_special_ids)
    frame = prompt_tokenizer.frames[2]
    return np.asarray([*frame.before, *frame.between, *frame.after])


def hide_tokens(
    batch: Batch, num_labelled: int, sources: MemberSources, probability: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Replace MLM targets in the unlabelled rows of `batch`, in place; what they were [N], IGNORED elsewhere."""
    maskable = ~np.isin(batch.input_ids.numpy(), sources.never_masked)
    maskable[: int(batch.starts[num_labelled])] = False
    changed, targets = sources.kind.hide(batch, maskable, probability, sources.pool.encoder.prompt_tokenizer, rng)
    batch.input_ids = torch.from_numpy(changed)
    return targets


# ---- several members' shares as one batch --------------------------------------------------------------------------


def collate_members(shares: Sequence[MemberBatch], settings: FinetuneSettings, layout: Layout) -> ClozeBatch:
    """One micro-batch of all members' shares, in their order."""
    # The more rows, the more their tokens vary in number; the number of shapes should not.
    several = max(1, len(shares) // 2) if layout.token_multiple > 1 else 1
    layout = dataclasses.replace(layout, token_multiple=layout.token_multiple * several)
    weights, most_targets = None, 0
    if len(shares[0].sizes) > 1:  # several ranks
        sizes = np.sum([share.sizes for share in shares], 0)  # of all members [R, 2]
        most_tokens, most_targets = sizes.max(0).tolist()
        layout = dataclasses.replace(layout, least_tokens=most_tokens)
        weights = torch.tensor([share.weights for share in shares]).T.contiguous()
    batch = pad_to_multiples(join_batches([share.batch for share in shares]), layout)
    extra = len(batch.input_ids) - sum(len(share.targets) for share in shares)
    members = np.pad(np.repeat(np.arange(len(shares)), [len(share.targets) for share in shares]), (0, extra))
    targets = np.pad(np.concatenate([share.targets for share in shares]), (0, extra), constant_values=IGNORED)
    labels = np.stack([share.labels for share in shares])  # [M, n]
    first_rows = np.arange(len(shares)) * len(shares[0].batch)
    labelled_rows = (first_rows[:, None] + np.arange(labels.shape[1])).ravel()
    unlabelled = 1 - labels.shape[1] / len(shares[0].batch)  # not their tokens' own share: it varies among equal shapes
    places = np.flatnonzero(targets != IGNORED)
    if layout.token_multiple > 1:
        places = pad_targets(places, settings.mask_probability * unlabelled * len(targets), most_targets)
    keys = np.concatenate([share.keys for share in shares])
    return ClozeBatch(
        batch,
        torch.from_numpy(members),
        torch.from_numpy(np.pad(keys, (0, extra)).astype(np.int32)),  # wraps
        torch.from_numpy(labels),
        batch.mask_positions[torch.from_numpy(labelled_rows)],
        torch.from_numpy(np.maximum(places, 0)),
        torch.from_numpy(members[places]),
        torch.from_numpy(np.where(places < 0, IGNORED, targets[places])),
        join_verbalizers([share.verbalizers for share in shares]),
        weights,
    )


def pad_targets(places: NDArray[np.int64], expected: float, most: int = 0) -> NDArray[np.int64]:
    """Places [K], filled up with -1 to a number that hardly ever varies for batches of one shape.

    `expected`: mean number of targets if every token could be one; six standard deviations more are hardly ever needed.
    `most`: targets of the rank that has most.
    """
    capacity = round_up(max(len(places), most, int(expected + 6 * np.sqrt(expected))), TARGET_MULTIPLE)
    return np.pad(places, (0, capacity - len(places)), constant_values=-1)


def join_verbalizers(parts: Sequence[Verbalizer]) -> Verbalizer:
    """Label words of all members, and how each member's scores are averaged from their logits."""
    averaging = torch.zeros(len(parts), sum(len(one.words) for one in parts), parts[0].averaging.shape[1])
    start = 0
    for member, one in enumerate(parts):
        averaging[member, start : start + len(one.words)] = one.averaging
        start += len(one.words)
    return Verbalizer(torch.cat([one.words for one in parts]), averaging)
