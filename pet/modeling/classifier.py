"""A plain sequence classifier on batches of rows end to end: its logits, and features for a linear probe.

Shapes: B rows, N tokens of all rows together, H hidden size, L labels.
"""

from typing import Any

import torch
from torch import nn

from pet.modeling import packing
from pet.modeling.batch import Batch
from pet.modeling.families import family_of


class ClassifierModel(nn.Module):
    """A transformers sequence classifier."""

    compiled = False
    """Whether its layers are compiled for any number of tokens; `computing_copy` says so."""

    def __init__(self, lm: Any) -> None:
        """`lm`: the transformers model."""
        super().__init__()
        self.lm = lm
        self.head = family_of(lm).classifier_head
        self.shortcut = self.head is not None and packing.install(lm)

    def logits(self, batch: Batch) -> torch.Tensor:
        """Logits [B, L]."""
        if self.head is None or not self.shortcut:
            return torch.as_tensor(self.lm(**packing.inputs_of(self.lm, batch)).logits)
        first = packing.states_at(self.lm, batch, batch.starts[: len(batch)], most=1)
        return self.head(self.lm, first)

    def probe(self, batch: Batch) -> None:
        """Ask of the layers what training and scoring ask; for `warm_up`."""
        self.logits(batch)

    def features(self, batch: Batch) -> torch.Tensor:
        """Hidden states of the last layer, averaged over each row's tokens, at unit length [B, H]."""
        states = packing.hidden_states(self.lm, batch).float()
        if batch.attention_mask is not None:
            states = states * batch.attention_mask[:, None]
        # Not `index_add`: a GPU adds in whatever order it comes to.
        sums = torch.segment_reduce(states, "sum", offsets=batch.starts.long(), initial=0)[: len(batch)]
        return nn.functional.normalize(sums, dim=-1)  # the mean's length does not matter
