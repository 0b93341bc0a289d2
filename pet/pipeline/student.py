"""Plain classifiers, as the student and the supervised baseline both are: build, train, score; and one that
was saved, to be asked. No artifact here."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pet.config.schema import BaselineSettings, DistillSettings, ModelSettings
from pet.modeling import backbones, loading, packing
from pet.modeling.batch import Batch, Layout, send
from pet.modeling.classifier import ClassifierModel
from pet.modeling.prompts import EncodedTexts, Encoder, plain_pattern
from pet.modeling.tokenization import TokenizedTexts
from pet.pipeline.context import RunContext, Start
from pet.store.draft import Draft
from pet.tasks.texts import TextSource
from pet.training.checkpoint import train_saved
from pet.training.compile import warm_up
from pet.training.device import Runtime, seed_everything
from pet.training.distributed import Ranks, shard
from pet.training.finite import Origin
from pet.training.schedule import endless_order
from pet.training.scoring import computing_copy, refresh, score_rows
from pet.training.trainer import Trainer, TrainingReport

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Scores [B, L] and the targets of the same rows -> a scalar."""


class Classifier:
    """A transformers sequence classifier with a fresh head, and its tokenizer.

    A text is read as its first field and, as second segment, the others. `seed`: of the head's weights, of dropout and
    of the order of the batches. `seen`: which rows it was trained on [N], once it is.
    """

    def __init__(self, ctx: RunContext, start: Start, seed: int) -> None:
        """
        Raises:
            ModelError: the model cannot be loaded or has no classification head.
        """
        self.ctx = ctx
        self.seed = seed
        self.seen = np.zeros(0, dtype=np.bool_)
        settings = start.settings
        self.prompt_tokenizer = backbones.load_tokenizer(settings)
        self.origin = Origin(settings.name)
        """What is to blame where a loss or a score is not finite."""
        seed_everything(seed)
        self.model = loading.load_classifier(settings, ctx.card.labels).to(ctx.runtime.device).eval()
        self.classifier = ClassifierModel(self.model)
        self.compute_model = computing_copy(self.classifier, ctx.runtime)

    def encode(self, texts: TextSource) -> EncodedTexts:
        """Texts as rows."""
        encoder = Encoder(
            self.prompt_tokenizer, plain_pattern(self.ctx.card.fields), self.ctx.settings.model.max_length
        )
        return encoder.encode(TokenizedTexts(self.prompt_tokenizer, texts))

    def train(
        self,
        rows: EncodedTexts,
        targets: torch.Tensor,
        loss: Loss,
        settings: DistillSettings | BaselineSettings,
        name: str,
        draft: Draft,
    ) -> TrainingReport:
        """Train in place on rows with targets [N, ...] (labels or teacher scores). Of R ranks each takes every R-th row
        of a batch, and knows of all which were seen, those of the steps before a checkpoint among them. `draft`: keeps
        the checkpoint; it is of the stage that the settings are of.

        Raises:
            NotFinite: the loss is NaN or infinite.
        """
        setting = f"{draft.key.stage}.learning_rate"
        self.origin = dataclasses.replace(self.origin, setting=setting, rate=settings.learning_rate)
        runtime, ranks = self.ctx.runtime, self.ctx.runtime.ranks
        for model in (self.model, self.compute_model.lm):
            loading.freeze_lower(model, settings.frozen_layers)
        layout = packing.training_layout(self.model, runtime.captures)
        warm_up(self.compute_model, layout.padded, training=True)

        def draw(steps: int) -> Iterator[tuple[Batch, torch.Tensor]]:
            order = endless_order(len(rows), settings.batch, np.random.default_rng(self.seed))
            self.seen = np.zeros(len(rows), dtype=np.bool_)
            for chosen in itertools.islice(order, steps * settings.accumulation):  # before the checkpoint
                self.seen[chosen] = True
            return map(batch_of, order)

        def batch_of(chosen: NDArray[np.int64]) -> tuple[Batch, torch.Tensor]:
            self.seen[chosen] = True
            mine, of_all = chosen[ranks.own(len(chosen))], layout
            if ranks.size > 1:
                of_all = layout_of_all(rows.lengths(chosen), layout, ranks)
            return send((rows.batch(mine, of_all), targets[torch.from_numpy(mine)]), runtime.device)

        def losses(given: tuple[Batch, torch.Tensor]) -> dict[str, torch.Tensor]:
            batch, wanted = given
            found = loss(self.compute_model.logits(batch), wanted)
            return {"loss": found if ranks.size == 1 else found * ranks.share(settings.batch)}

        master = None if self.compute_model is self.classifier else self.classifier
        trainer = Trainer(self.compute_model, settings, losses, runtime, master=master, origin=self.origin)
        checkpoints = self.ctx.checkpoints(draft, self.classifier, trainer.optimizer, name, [name])
        (report,) = train_saved(
            trainer, checkpoints, draw, name, restored=lambda: refresh(self.compute_model, self.classifier)
        )
        draft.count_from(draft.seconds + checkpoints.before)
        return report

    def score(self, rows: EncodedTexts, name: str) -> NDArray[np.float32]:
        """Label scores [N, L]."""
        return self._score(self.compute_model.logits, rows, name)

    def features(self, rows: EncodedTexts, name: str) -> NDArray[np.float32]:
        """Features [N, H] of `modeling/classifier`."""
        ask = self.compute_model.features
        warm_up(self.compute_model, not packing.is_packed(self.model), ask=ask)
        return self._score(ask, rows, name)

    def _score(self, score: Callable[[Batch], torch.Tensor], rows: EncodedTexts, name: str) -> NDArray[np.float32]:
        layout = packing.scoring_layout(self.model)
        return score_rows(score, rows, layout, self.ctx.runtime, name, self.origin)


def layout_of_all(lengths: NDArray[np.int64], layout: Layout, ranks: Ranks) -> Layout:
    """The layout that makes all ranks' parts of a batch of rows of these lengths one shape."""
    most = max(int(lengths[some].sum()) for some in shard(len(lengths), ranks.size))
    return dataclasses.replace(layout, width=layout.width_of(lengths), least_tokens=most)


class Checkpoint:
    """A classifier as it was saved, to be asked: what its folder holds, and what its artifact says of it."""

    def __init__(
        self, folder: Path, fields: Sequence[str], labels: Sequence[str], max_length: int, runtime: Runtime
    ) -> None:
        """
        Raises:
            ModelError: the folder is gone, damaged, or has no classifier in it.
        """
        settings = ModelSettings(name=str(folder.resolve()), max_length=max_length)
        self.runtime = runtime
        self.prompt_tokenizer = backbones.load_tokenizer(settings)
        self.encoder = Encoder(self.prompt_tokenizer, plain_pattern(fields), max_length)
        self.origin = Origin(settings.name, remedy="use another run, or make it anew")
        model = loading.load_classifier(settings, labels).to(runtime.device).eval()
        self.compute_model = computing_copy(ClassifierModel(model), runtime)

    def score(self, texts: TextSource, name: str) -> NDArray[np.float32]:
        """Label scores [N, L]."""
        rows = self.encoder.encode(TokenizedTexts(self.prompt_tokenizer, texts))
        layout = packing.steady_layout(self.compute_model.lm)
        return score_rows(self.compute_model.logits, rows, layout, self.runtime, name, self.origin)
