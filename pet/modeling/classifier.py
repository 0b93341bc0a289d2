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

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.head = family_of(model).classifier_head
        self.shortcut = self.head is not None and packing.install(model)

    @property
    def transformer(self) -> Any:
        """The transformers model."""
        return self.model

    def logits(self, batch: Batch) -> torch.Tensor:
        """Logits [B, L]."""
        if self.head is None or not self.shortcut:
            packing.warm_up(self.model, batch)
            return torch.as_tensor(self.model(**packing.inputs_of(self.model, batch)).logits)
        first = packing.states_at(self.model, batch, batch.starts[: len(batch)], most=1)
        return self.head(self.model, first)

    def features(self, batch: Batch) -> torch.Tensor:
        """Hidden states of the last layer, averaged over each row's tokens, at unit length [B, H]."""
        states = packing.hidden_states(self.model, batch).float()
        if batch.attention_mask is not None:
            states = states * batch.attention_mask[:, None]
        # Not `index_add`: a GPU adds in whatever order it comes to.
        sums = torch.segment_reduce(states, "sum", offsets=batch.starts.long(), initial=0)[: len(batch)]
        return nn.functional.normalize(sums, dim=-1)  # the mean's length does not matter
