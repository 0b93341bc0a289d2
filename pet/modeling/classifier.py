"""A plain sequence classifier on batches of rows end to end: its logits, and features for a linear probe.

Shapes: B rows, N tokens of all rows together, H hidden size, L labels.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pet.modeling import packing
from pet.modeling.batch import Batch


def bert_head(model: Any, first: torch.Tensor) -> torch.Tensor:
    """BERT: pooler, dropout, one linear map."""
    pooled = model.bert.pooler(like(first, model.bert.pooler)[:, None])
    return torch.as_tensor(model.classifier(model.dropout(like(pooled, model.classifier))))


def albert_head(model: Any, first: torch.Tensor) -> torch.Tensor:
    """ALBERT: the same, its pooler a plain linear map."""
    body = model.albert
    pooled = body.pooler_activation(body.pooler(like(first, body.pooler)))
    return torch.as_tensor(model.classifier(model.dropout(like(pooled, model.classifier))))


def roberta_head(model: Any, first: torch.Tensor) -> torch.Tensor:
    """RoBERTa and XLM-R."""
    return torch.as_tensor(model.classifier(like(first, model.classifier)[:, None]))


def like(states: torch.Tensor, module: torch.nn.Module) -> torch.Tensor:
    """States in the precision of a module's weights: a pooler belongs to the body, which may be in a lower one."""
    return states.to(next(module.parameters()).dtype)


HEADS: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "albert": albert_head,
    "bert": bert_head,
    "roberta": roberta_head,
    "xlm-roberta": roberta_head,
}
"""config.model_type -> its head: first hidden state of each row [B, H] -> logits [B, L]. Other families are asked as a
whole, on padded rows."""


class ClassifierModel(nn.Module):
    """A transformers sequence classifier."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.family: str = model.config.model_type
        self.shortcut = self.family in HEADS and packing.install(model)

    @property
    def transformer(self) -> Any:
        """The transformers model."""
        return self.model

    def logits(self, batch: Batch) -> torch.Tensor:
        """Logits [B, L]."""
        if not self.shortcut:
            packing.warm_up(self.model, batch)
            return torch.as_tensor(self.model(**packing.inputs_of(self.model, batch)).logits)
        first = packing.states_at(self.model, batch, batch.starts[: len(batch)], most=1)
        return HEADS[self.family](self.model, first)

    def features(self, batch: Batch) -> torch.Tensor:
        """Hidden states of the last layer, averaged over each row's tokens, at unit length [B, H]."""
        states = packing.hidden_states(self.model, batch).float()
        if batch.attention_mask is not None:
            states = states * batch.attention_mask[:, None]
        # Not `index_add`: a GPU adds in whatever order it comes to.
        sums = torch.segment_reduce(states, "sum", offsets=batch.starts.long(), initial=0)[: len(batch)]
        return nn.functional.normalize(sums, dim=-1)  # the mean's length does not matter
