"""The untuned masked LM, asked which words it expects at the mask. For commands that propose label words."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pet.config.schema import ModelSettings
from pet.modeling import backbones, packing
from pet.modeling.backbones import Backbone
from pet.modeling.prompts import Encoder
from pet.modeling.tokenization import TokenizedTexts
from pet.training.device import Runtime
from pet.training.finite import Origin
from pet.training.scoring import computing_copy, score_rows


def load_untuned(settings: ModelSettings, runtime: Runtime) -> Backbone:
    """The model, ready to be asked.

    Raises:
        ModelError: it cannot be loaded.
    """
    return computing_copy(backbones.load(settings, runtime.device), runtime)


def word_log_probabilities(
    cloze: Backbone, encoder: Encoder, texts: TokenizedTexts, tokens: Sequence[int], runtime: Runtime, what: str
) -> NDArray[np.float32]:
    """Log-probabilities [N, W] of words at the mask, among the whole vocabulary.

    Args:
        cloze: the model, from `load_untuned`.
        encoder: fills texts into one pattern.
        texts: the texts [N].
        tokens: the token of each word [W].
        runtime: where it is computed.
        what: what is scored, for the progress bar and for messages.
    """
    words = torch.tensor(tokens, dtype=torch.long, device=runtime.device)
    return score_rows(
        lambda batch: cloze.word_log_probabilities(batch, words),
        encoder.encode(texts),
        packing.scoring_layout(cloze.lm),
        runtime,
        what,
        Origin(texts.prompt_tokenizer.name),
    )
