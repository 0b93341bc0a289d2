"""Scoring many rows: sorted by length, cut into batches of equal padded size, results in the rows' own order."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from pet.encoding import Batch, Rows, Speller, pad_rows, padded_length
from pet.runtime import Runtime

Float = NDArray[np.float32]


def score_rows(
    score: Callable[[Batch], torch.Tensor], rows: Rows, speller: Speller, runtime: Runtime, name: str
) -> Float:
    """Apply `score` (a batch of B rows -> [B, D]) to all rows and return [len(rows), D] in their order.

    Raises nothing of its own; `name` is for the progress bar.
    """
    if not len(rows):
        return np.zeros((0, 0), dtype=np.float32)
    order, found = [], []
    with torch.inference_mode(), runtime.autocast(), runtime.reporter.track(name, len(rows), "text") as advance:
        for chosen in token_batches(rows.lengths, runtime.batch_tokens):
            order.append(chosen)
            found.append(score(pad_rows(rows, chosen, speller).to(runtime.device)).float())
            advance(len(chosen))
    result = torch.cat(found).cpu().numpy()
    back = np.empty(len(rows), dtype=np.int64)
    back[np.concatenate(order)] = np.arange(len(rows))
    return np.asarray(result[back])


def token_batches(lengths: NDArray[np.int64], budget: int) -> Iterator[NDArray[np.int64]]:
    """Row numbers in batches of at most `budget` padded tokens (at least one row), the longest rows first.

    Sorted by length, so that little is padding; the longest first, so that memory runs out at once or never.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        width = padded_length(int(lengths[order[start]]))
        stop = start + max(1, budget // width)
        yield order[start:stop]
        start = stop
