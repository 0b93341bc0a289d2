"""A masked language model as an answerer of cloze questions: label scores at the mask, logits at MLM targets.

Shapes: B rows, N tokens of all rows together, H hidden size, V vocabulary, W label words, L labels, K MLM targets.

Only the hidden states that are asked for go through the LM head, and for label scores only the rows of the label words
are multiplied: a projection of every position onto the vocabulary is most of the original's cost. How a head is built
differs by family, and `families` says it for those that are tested against the full logits. Any other family takes the
full path, slower and right, and `ClozeModel.shortcut` is False.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from pet.modeling import packing
from pet.modeling.batch import Batch
from pet.modeling.families import family_of
from pet.modeling.token_losses import TokenLosses, token_losses
from pet.modeling.verbalizers import Verbalizer


class ClozeModel(nn.Module):
    """A masked LM with its head taken apart, if its family is known."""

    def __init__(self, lm: Any) -> None:
        super().__init__()
        self.lm = lm
        self.family: str = lm.config.model_type
        self.lm_head = family_of(lm).lm_head
        self.shortcut = self.lm_head is not None
        self.token_losses: TokenLosses = token_losses
        """In which form; `computing_copy` decides."""
        packing.install(lm)

    @property
    def transformer(self) -> Any:
        """The transformers model."""
        return self.lm

    def states(self, batch: Batch) -> torch.Tensor:
        """What the head needs at every token: hidden states [N, H], or logits [N, V] on the full path."""
        return packing.hidden_states(self.lm, batch) if self.shortcut else packing.full_logits(self.lm, batch)

    def states_at(self, batch: Batch, tokens: torch.Tensor, most: int | None = None) -> torch.Tensor:
        """The same at some tokens only [Q, H] or [Q, V], for less; arguments as of `packing.states_at`."""
        if self.shortcut:
            return packing.states_at(self.lm, batch, tokens, most)
        return self.states(batch)[tokens]

    def target_losses(self, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Cross-entropy at selected states [K, H] against tokens [K], as `token_losses`."""
        return self.token_losses(*self.products(states), targets)

    def products(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Vocabulary logits of selected states [K, H] without the head's bias [V, K], and that bias [V]."""
        if self.lm_head is None:
            return states.T, None
        transform, weight, bias = self.lm_head(self.lm)
        # The head is in fp32 at least, though states and embeddings may be in less, as the body is. Its own product is
        # then computed in less too: what is to be multiplied by embeddings in bf16 is rounded to that anyway.
        lower = weight.dtype.itemsize < 4
        with torch.autocast(states.device.type, weight.dtype, enabled=lower, cache_enabled=False):
            transformed = transform(states.to(torch.promote_types(states.dtype, torch.float32)))
        return weight @ transformed.T.to(weight.dtype), bias

    @property
    def bias(self) -> torch.Tensor | None:
        """The LM head's bias [V], where the head is known and has one."""
        return self.lm_head(self.lm)[2] if self.lm_head is not None else None

    def word_logits(self, at_mask: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """Logits [B, W] of some words, in fp32 whatever the encoder computes in.

        `at_mask`: what `states` has at the masks, [B, H] or [B, V]; `words`: token ids [W].
        """
        at_mask = at_mask.float()
        if self.lm_head is None:
            return at_mask[:, words]
        transform, weight, bias = self.lm_head(self.lm)
        return functional.linear(
            transform(at_mask), weight[words].float(), None if bias is None else bias[words].float()
        )

    def word_log_probabilities(self, batch: Batch, words: torch.Tensor) -> torch.Tensor:
        """Log-probabilities [B, W] of some words at the mask, among the whole vocabulary; `words`: token ids [W]."""
        at_mask = self.states_at(batch, batch.mask_positions, most=1)
        everything = torch.arange(self.lm.config.vocab_size, device=words.device)
        return self.word_logits(at_mask, everything).log_softmax(-1)[:, words]

    def label_scores(self, batch: Batch, verbalizers: Verbalizer) -> torch.Tensor:
        """Scores [B, L] of labels, by their words at the mask."""
        return self.scores_at(self.states_at(batch, batch.mask_positions, most=1), verbalizers)

    def scores_at(self, at_mask: torch.Tensor, verbalizers: Verbalizer) -> torch.Tensor:
        """The same from what `states` has at the masks, [B, H] or [B, V]; the shape is that of `Verbalizer.scores`."""
        return verbalizers.scores(lambda words: self.word_logits(at_mask, words))
