"""Plain classifiers, as the student and the supervised baseline both are: build, train, score. No artifact here."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from pet import models
from pet.encoding import Batch, Encoder, Rows, TokenizedTexts, pad_rows, plain_pattern, training_width
from pet.examples import Texts
from pet.inference import score_rows
from pet.runtime import seed_everything
from pet.settings import BaselineSettings, DistillSettings
from pet.stages.work import Work
from pet.training import TrainingReport, endless_order, train

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Scores [B, L] and the targets of the same rows -> a scalar."""


class Classifier:
    """A transformers sequence classifier with a fresh head, and its tokenizer.

    A text is read as its first field and, as second segment, the others. `seed`: of the head's weights, of dropout and
    of the order of the batches.
    """

    def __init__(self, work: Work, model: str | None, seed: int) -> None:
        """
        Raises:
            ModelError: the model cannot be loaded or has no classification head.
        """
        self.work = work
        self.seed = seed
        self.speller = work.speller_of(model)
        seed_everything(seed)
        self.model = models.load_classifier(work.model_settings(model), work.card.labels).to(work.runtime.device)
        self.model.eval()

    def encode(self, texts: Texts) -> Rows:
        """Texts as rows."""
        encoder = Encoder(self.speller, plain_pattern(self.work.card.fields), self.work.settings.model.max_length)
        return encoder.encode(TokenizedTexts(self.speller, texts))

    def train(
        self, rows: Rows, targets: torch.Tensor, loss: Loss, settings: DistillSettings | BaselineSettings, name: str
    ) -> TrainingReport:
        """Train in place on rows with targets [N, ...] (labels or teacher scores)."""
        device = self.work.runtime.device
        models.freeze_lower(self.model, settings.frozen_layers)

        def draw() -> Iterator[tuple[Batch, torch.Tensor]]:
            for chosen in endless_order(len(rows), settings.batch, np.random.default_rng(self.seed)):
                batch = pad_rows(rows, chosen, self.speller, training_width(rows, chosen))
                yield batch.to(device), targets[torch.from_numpy(chosen)].to(device)

        def losses(given: tuple[Batch, torch.Tensor]) -> dict[str, torch.Tensor]:
            batch, wanted = given
            return {"loss": loss(self.model(**batch.inputs).logits, wanted)}

        return train(self.model, settings, draw(), losses, self.work.runtime, name)

    def score(self, rows: Rows, name: str) -> NDArray[np.float32]:
        """Label scores [N, L]."""

        def scores(batch: Batch) -> torch.Tensor:
            return torch.as_tensor(self.model(**batch.inputs).logits)

        return score_rows(scores, rows, self.speller, self.work.runtime, name)

    def features(self, rows: Rows, name: str) -> NDArray[np.float32]:
        """Hidden states of the last layer, averaged over each row's tokens, at unit length [N, H]."""

        def features(batch: Batch) -> torch.Tensor:
            return mean_features(self.model.base_model(**batch.inputs).last_hidden_state, batch.attention_mask)

        return score_rows(features, rows, self.speller, self.work.runtime, name)


def mean_features(states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Hidden states [B, T, H] averaged over the row's tokens, scaled to unit length [B, H]."""
    weights = attention_mask.unsqueeze(-1).float()
    mean = (states.float() * weights).sum(1) / weights.sum(1)
    return torch.nn.functional.normalize(mean, dim=-1)
