"""The untuned masked LM, asked which words it expects at the mask: for `pet check`, `pet init` and `pet verbalize`."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pet.config.schema import ModelSettings
from pet.modeling import backbones, packing
from pet.modeling.batch import Batch
from pet.modeling.prompts import EncodedTexts
from pet.modeling.tokenization import PromptTokenizer
from pet.modeling.verbalizers import Verbalizer
from pet.training.device import Runtime
from pet.training.finite import Origin
from pet.training.scoring import computing_copy, score_rows


class UntunedModel:
    """A masked LM as it was loaded, ready to be asked about texts in patterns. `what`, in its methods: what is scored,
    for the progress bar and for messages."""

    def __init__(self, settings: ModelSettings, prompt_tokenizer: PromptTokenizer, runtime: Runtime) -> None:
        """
        Raises:
            ModelError: it cannot be loaded.
        """
        self.cloze = computing_copy(backbones.load(settings, runtime.device), runtime)
        self.prompt_tokenizer, self.max_length, self.runtime = prompt_tokenizer, settings.max_length, runtime

    def label_scores(self, rows: EncodedTexts, words: Verbalizer, what: str) -> NDArray[np.float32]:
        """Scores [N, L] of the labels."""
        there = words.to(self.runtime.device)
        return self._score(lambda batch: self.cloze.label_scores(batch, there), rows, what)

    def word_log_probabilities(self, rows: EncodedTexts, tokens: Sequence[int], what: str) -> NDArray[np.float32]:
        """Log-probabilities [N, W] of words at the mask, each given by its token, among the whole vocabulary."""
        words = torch.tensor(tokens, dtype=torch.long, device=self.runtime.device)
        return self._score(lambda batch: self.cloze.word_log_probabilities(batch, words), rows, what)

    def _score(self, ask: Callable[[Batch], Any], rows: EncodedTexts, what: str) -> NDArray[np.float32]:
        layout = packing.scoring_layout(self.cloze.lm)
        return score_rows(ask, rows, layout, self.runtime, what, Origin(self.prompt_tokenizer.name))
