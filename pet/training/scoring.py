"""Scoring many rows: sorted by length, cut into batches of equal size in tokens, results in the rows' own order; and
the copy of a model that computes. Of several ranks each scores its share. Where bf16 is the faster precision, the
copy's encoder holds its weights in it, and so are its hidden states: half the memory traffic of autocast. Heads stay in
fp32, so scores are not rounded to three digits.
"""

import copy
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from pet.modeling import packing
from pet.modeling.backbones import Backbone
from pet.modeling.batch import Batch, Layout, round_up
from pet.modeling.classifier import ClassifierModel
from pet.modeling.prompts import EncodedTexts
from pet.training.compile import compile_layers, warm_up
from pet.training.device import Runtime
from pet.training.distributed import ALONE, Ranks
from pet.training.finite import Origin
from pet.training.losses import compiled_token_losses

Float = NDArray[np.float32]

M = TypeVar("M", Backbone, ClassifierModel)

WINDOW = 65_536
"""Rows that are sorted at a time, so that memory does not grow with the pool."""


def score_rows(
    score: Callable[[Batch], torch.Tensor],
    rows: EncodedTexts,
    layout: Layout,
    runtime: Runtime,
    name: str,
    origin: Origin | None = None,
) -> Float:
    """Apply `score` (a batch of B rows -> [B, D]) to all rows and return [len(rows), D] in their order, on every rank.

    In which precision is the model's own affair: see `computing_copy`.

    `name` is for the progress bar and, with `origin`, for the error.

    Raises:
        NotFinite: a score is NaN or infinite; on every rank.
    """
    found = np.zeros((0, 0), dtype=np.float32)
    with torch.inference_mode(), runtime.reporter.track(name, len(rows), "text") as advance:
        for start in range(0, len(rows), WINDOW):
            window = slice(start, min(start + WINDOW, len(rows)))
            part = score_window(score, rows, window, layout, runtime, advance)
            wrong = ~np.isfinite(part)
            if wrong.any():
                text = f"the score of text {start + int(wrong.any(1).argmax()) + 1:,}"
                low = runtime.dtype is not None
                raise (origin or Origin()).bad_score(name, text, float(part[wrong][0]), low)
            found = found if len(found) else np.empty((len(rows), part.shape[1]), dtype=np.float32)
            found[window] = part
    return found


def score_window(
    score: Callable[[Batch], torch.Tensor],
    rows: EncodedTexts,
    window: slice,
    layout: Layout,
    runtime: Runtime,
    advance: Callable[[int], None],
) -> Float:
    """The scores of one stretch of rows. Of R ranks each takes every R-th in the order of their lengths: as many rows
    and, to some, as many tokens."""
    order, found, ranks = [np.empty(0, dtype=np.int64)], [], runtime.ranks
    count = left = window.stop - window.start
    for chosen in token_batches(rows.lengths(window), runtime.batch_tokens, layout, ranks):
        order.append(chosen)
        found.append(score(rows.batch(window.start + chosen, layout).to(runtime.device)).float())
        done = min(left, ranks.size * len(chosen))  # the others are as far
        advance(done)
        left -= done
        # Where to look is not to wait, what cannot be used is not computed for hours. The rest stays 0, on this rank.
        if runtime.device.type == "cpu" and not found[-1].isfinite().all():
            break
    result = torch.cat(found).cpu().numpy() if found else None
    advance(left)
    return ranks.gather_rows(result, np.concatenate(order), count)


def token_batches(
    lengths: NDArray[np.int64], budget: int, layout: Layout, ranks: Ranks = ALONE
) -> Iterator[NDArray[np.int64]]:
    """Row numbers in batches of at most `budget` tokens (at least one row), padding counted, the longest rows first;
    those of this rank.

    Sorted by length, so that little is padding; the longest first, so that memory runs out at once or never.
    """
    order = np.argsort(-lengths, kind="stable")[ranks.rank :: ranks.size]
    start = 0
    while start < len(order):
        width = round_up(int(lengths[order[start]]), layout.width_multiple)
        stop = start + max(1, budget // width)
        yield order[start:stop]
        start = stop


def computing_copy(model: M, runtime: Runtime, alike: bool = False) -> M:
    """The model to compute with: in fp32 the model itself; else a copy whose encoder is in the runtime's precision.
    `alike`: see `compile_layers`.

    `refresh` brings it up to date. Where the head cannot be taken apart, all of the copy is in that precision. It is
    warmed up for scoring; who trains it calls `warm_up` first.
    """
    compute_model = model
    if runtime.dtype is not None:
        compute_model = copy.deepcopy(model)
        (compute_model.lm.base_model if compute_model.shortcut else compute_model.lm).to(runtime.dtype)
    if compile_layers(compute_model.lm, runtime, alike):
        compute_model.compiled = not alike
        if isinstance(compute_model, Backbone):
            compute_model.token_losses = compiled_token_losses(alike)
        warm_up(compute_model, padded=not packing.is_packed(compute_model.lm))
    return compute_model


@torch.no_grad()
def refresh(compute_model: M, model: M) -> None:
    """Give a scoring copy the weights that its model has now."""
    if compute_model is not model:
        torch._foreach_copy_(list(compute_model.parameters()), list(model.parameters()))
