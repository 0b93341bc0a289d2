"""What pet asks of a language model, whatever its kind.

Shapes: B rows, N tokens of all rows together, V vocabulary, W words, L labels, M members, n labelled rows of each, K
tokens that the language-model loss asks for.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pet.config.schema import ModelSettings
from pet.modeling.batch import Batch, send
from pet.modeling.token_losses import TokenLosses, token_losses
from pet.modeling.tokenization import PromptTokenizer
from pet.modeling.verbalizers import Verbalizer


@dataclass(frozen=True)
class ClozeBatch:
    """What M members are trained on at once.

    `members`: which member each token belongs to [N]; `keys`: a random number for each token, of its member's stream
    [N] (int32); `labels` [M, n] and `label_places`: which tokens are the masks of the labelled rows [M n];
    `target_places`: which tokens the language-model loss asks for, `target_members` whose they are and `targets` what
    they were [K], where shapes should be few filled up with IGNORED; `verbalizer`: of all members; `weights`: what the
    means of this rank's label and language-model losses are in those of all ranks [2, M], `None`: it has all rows."""

    batch: Batch
    members: torch.Tensor
    keys: torch.Tensor
    labels: torch.Tensor
    label_places: torch.Tensor
    target_places: torch.Tensor
    target_members: torch.Tensor
    targets: torch.Tensor
    verbalizer: Verbalizer
    weights: torch.Tensor | None = None

    def to(self, device: torch.device) -> "ClozeBatch":
        """The same batch on a device."""
        return send(self, device)


class Backbone(nn.Module, ABC):
    """A language model that answers cloze questions. Each kind is a subclass in a file of its own, and made known in
    `pet.modeling.backbones`."""

    shortcut = False
    """Whether the head can be used without the body. In lower precision it then stays in fp32."""

    compiled = False
    """Whether layers and token losses are compiled for any number of tokens; `computing_copy` says so."""

    note = ""
    """What a user should know of this model, in half a sentence."""

    def __init__(self, lm: Any) -> None:
        """`lm`: the transformers model."""
        super().__init__()
        self.lm = lm
        self.token_losses: TokenLosses = token_losses
        """In which form; `computing_copy` decides."""

    # ---- the kind ----

    @classmethod
    @abstractmethod
    def takes(cls, config: Mapping[str, Any]) -> bool:
        """Whether a model with this configuration (config.json) is of this kind."""

    @classmethod
    @abstractmethod
    def load_lm(cls, model: ModelSettings, new_head: bool = False) -> Any:
        """The transformers model, in fp32; see `backbones.load`."""

    @classmethod
    def prompt_tokenizer(cls, tokenizer: Any, name: str) -> PromptTokenizer:
        """The tokenizer as prompts need it: what stands at the mask's place, and how label words are spelled there."""
        return PromptTokenizer(tokenizer, name)

    @staticmethod
    @abstractmethod
    def hide(
        batch: Batch,
        maskable: NDArray[np.bool_],
        probability: float,
        prompt_tokenizer: PromptTokenizer,
        rng: np.random.Generator,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Make a language-model task of the tokens that are `maskable` [N], each with this probability. `batch` is on
        the CPU and is not changed.

        Returns:
            The token ids [N] that the model is shown, and the targets [N], IGNORED where nothing is asked.
        """

    # ---- a model ----

    @abstractmethod
    def label_scores(self, batch: Batch, verbalizer: Verbalizer) -> torch.Tensor:
        """Scores [B, L] of labels, by their words at the mask."""

    @abstractmethod
    def word_log_probabilities(self, batch: Batch, words: torch.Tensor) -> torch.Tensor:
        """Log-probabilities [B, W] of some words at the mask, among the whole vocabulary; `words`: token ids [W]."""

    @abstractmethod
    def lm_losses(
        self, batch: Batch, places: torch.Tensor, targets: torch.Tensor, most: int | None = None
    ) -> torch.Tensor:
        """Language-model losses [K] of a batch that `hide` changed; 0 for IGNORED.

        Args:
            batch: the rows.
            places: which of the N tokens are asked for [K].
            targets: what they were [K].
            most: no row has more of them, if that is known.
        """

    @abstractmethod
    def answers(self, given: ClozeBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """What a training step is about, from one forward pass: label scores of the labelled rows, in the shape of
        `Verbalizer.scores`, and the losses [K] of `lm_losses`."""

    # ---- what is compiled ----

    def probe(self, batch: Batch) -> None:
        """Ask of the layers what scoring and training ask; for `warm_up`."""
        nothing = Verbalizer(torch.zeros(1, dtype=torch.long), torch.ones(1, 1)).to(batch.input_ids.device)
        self.label_scores(batch, nothing)

    def empty_products(self, count: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Vocabulary logits of nothing [V, count] and the bias, as `token_losses` gets them; for `warm_up`."""
        return next(self.lm.parameters()).new_zeros(self.lm.config.vocab_size, count), None
