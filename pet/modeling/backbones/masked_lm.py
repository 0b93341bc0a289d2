"""A masked language model as an answerer of cloze questions: label scores at the mask, logits at MLM targets.

Shapes: B rows, N tokens of all rows together, H hidden size, V vocabulary, W label words, L labels, K MLM targets.

Only the hidden states that are asked for go through the LM head, and for label scores only the rows of the label words
are multiplied: a projection of every position onto the vocabulary is most of the original's cost. How a head is built
differs by family, and `families` says it for those that are tested against the full logits. Any other family takes the
full path, slower and right, and `MaskedLM.shortcut` is False.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from pet.config.schema import ModelSettings
from pet.modeling import loading, packing
from pet.modeling.backbones.base import Backbone, ClozeBatch
from pet.modeling.batch import Batch
from pet.modeling.families import family_of
from pet.modeling.token_losses import IGNORED
from pet.modeling.tokenization import PromptTokenizer
from pet.modeling.verbalizers import Verbalizer

KEPT, MASKED = 0.1, 0.8
"""Of the MLM targets 80 % are replaced by the mask, 10 % by a random token, 10 % stay (BERT; P1 uses the same)."""


class MaskedLM(Backbone):
    """A masked LM with its head taken apart, if its family is known."""

    def __init__(self, lm: Any) -> None:
        super().__init__(lm)
        family = family_of(lm)
        self.lm_head = family.lm_head
        self.shortcut = self.lm_head is not None
        if not self.shortcut:
            self.note = (
                f"model family {family.model_type!r} is not known to pet; taking full vocabulary logits (slower)"
            )
        packing.install(lm)

    @classmethod
    def takes(cls, config: Mapping[str, Any]) -> bool:
        """Any: loading it says what is wrong with one that has no head for it."""
        return True

    @classmethod
    def load_lm(cls, model: ModelSettings, new_head: bool = False) -> Any:
        """As `loading.load_masked_lm`."""
        return loading.load_masked_lm(model, new_head)

    @staticmethod
    def hide(
        batch: Batch,
        maskable: NDArray[np.bool_],
        probability: float,
        prompt_tokenizer: PromptTokenizer,
        rng: np.random.Generator,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """By `mask_tokens`."""
        ids, vocabulary_size = batch.input_ids.numpy(), len(prompt_tokenizer.tokenizer)
        return mask_tokens(ids, maskable, probability, prompt_tokenizer.mask_id, vocabulary_size, rng)

    # ---- label scores and losses ----

    def label_scores(self, batch: Batch, verbalizer: Verbalizer) -> torch.Tensor:
        """Scores [B, L] of labels, by their words at the mask."""
        return self.scores_at(self.states_at(batch, batch.mask_positions, most=1), verbalizer)

    def word_log_probabilities(self, batch: Batch, words: torch.Tensor) -> torch.Tensor:
        """Log-probabilities [B, W] of some words at the mask, among the whole vocabulary; `words`: token ids [W]."""
        at_mask = self.states_at(batch, batch.mask_positions, most=1)
        everything = torch.arange(self.lm.config.vocab_size, device=words.device)
        return self.word_logits(at_mask, everything).log_softmax(-1)[:, words]

    def lm_losses(
        self, batch: Batch, places: torch.Tensor, targets: torch.Tensor, most: int | None = None
    ) -> torch.Tensor:
        """MLM losses [K]."""
        return self.target_losses(self.states_at(batch, places, most), targets)

    def answers(self, given: ClozeBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores at the masks of labelled rows, MLM losses at the targets of the others."""
        count = len(given.label_places)
        states = self.states_at(given.batch, torch.cat([given.label_places, given.target_places]))
        losses = self.target_losses(states[count:], given.targets) if len(given.targets) else states.new_zeros(0)
        return self.scores_at(states[:count], given.verbalizer), losses

    # ---- states and the head ----

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

    def scores_at(self, at_mask: torch.Tensor, verbalizer: Verbalizer) -> torch.Tensor:
        """Label scores from what `states` has at the masks, [B, H] or [B, V]; the shape is that of
        `Verbalizer.scores`."""
        return verbalizer.scores(lambda words: self.word_logits(at_mask, words))

    def empty_products(self, count: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """In the precision of the head, where it is known."""
        if self.lm_head is None:
            return super().empty_products(count)
        _, weight, bias = self.lm_head(self.lm)
        return weight.new_zeros(len(weight), count), bias


# ---- what is hidden ------------------------------------------------------------------------------------------------


def mask_tokens(
    input_ids: NDArray[np.int64],
    maskable: NDArray[np.bool_],
    probability: float,
    mask_id: int,
    vocabulary_size: int,
    rng: np.random.Generator,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Choose MLM targets among `maskable` tokens and hide most of them.

    `input_ids`, `maskable`: [N]. Returns the changed ids [N] and the targets [N], IGNORED where nothing is asked. The
    input is not modified.
    """
    chosen = maskable & (rng.random(input_ids.shape) < probability)
    fate = rng.random(input_ids.shape)
    random_tokens = rng.integers(0, vocabulary_size, size=input_ids.shape)
    changed = np.where(chosen, apply_mlm_mask(input_ids, fate, random_tokens, mask_id), input_ids)
    return changed, np.where(chosen, input_ids, IGNORED)


def apply_mlm_mask(
    tokens: NDArray[np.int64], fate: NDArray[np.float64], random_tokens: NDArray[np.int64], mask_id: int
) -> NDArray[np.int64]:
    """MLM targets [K] as the model gets to see them: the mask, a random token or themselves, by `fate` in [0, 1)."""
    shown = np.where(fate < MASKED, mask_id, random_tokens)
    return np.where(fate >= 1 - KEPT, tokens, shown)
