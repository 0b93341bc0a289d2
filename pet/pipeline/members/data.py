"""What all members of a walk share: the model, the starting weights and the tokenised texts. No artifact here."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from pet.modeling import backbones, loading, packing
from pet.modeling.backbones import Backbone, ClozeBatch
from pet.modeling.batch import Layout
from pet.modeling.prompts import EncodedTexts
from pet.modeling.tokenization import TokenizedTexts
from pet.modeling.verbalizers import Verbalizer, encode_verbalizers
from pet.pipeline import drawn_texts
from pet.pipeline.context import RunContext, Start
from pet.pipeline.members.batches import (
    MemberSources,
    cloze_losses,
    collate_members,
    draw_member_batches,
    never_masked,
)
from pet.pipeline.node import Node
from pet.store.background import BackgroundWriter
from pet.store.store import Artifact
from pet.tasks.card import TaskCard
from pet.tasks.patterns import PVP
from pet.tasks.texts import TextFile, Texts, TextSource, read_texts
from pet.training.compile import warm_up
from pet.training.cuda_graphs import Losses
from pet.training.finite import Origin
from pet.training.reporter import Silent
from pet.training.scoring import computing_copy, refresh, score_rows
from pet.training.trainer import Trainer


@dataclass(frozen=True)
class EncodedPattern:
    """One PVP, ready to be asked: rows per split, the labels of those to be trained on, the ids of its label words."""

    rows: dict[str, EncodedTexts]
    labels: NDArray[np.int64]
    verbalizers: Verbalizer


class MemberTrainer:
    """The model that all members of a walk start from, the copy of it that computes, and its training: what needs no
    text of the draw. Everything is loaded when it is needed first."""

    def __init__(self, ctx: RunContext, base: Start) -> None:
        self.ctx = ctx
        self.base = base

    @cached_property
    def verbalizers(self) -> dict[int, Verbalizer]:
        """Label words of all patterns, checked together so that every problem is told at once."""
        found = encode_verbalizers(self.ctx.prompt_tokenizer, self.ctx.pvps, self.ctx.card.name)
        return {pvp.number: ids for pvp, ids in zip(self.ctx.pvps, found, strict=True)}

    @cached_property
    def cloze(self) -> Backbone:
        """The model that every member starts from."""
        cloze = backbones.load(self.base.settings, self.ctx.runtime.device)
        if cloze.note:
            self.ctx.say(f"finetune: {cloze.note}")
        loading.freeze_lower(cloze.lm, self.ctx.settings.finetune.frozen_layers)
        return cloze

    @cached_property
    def start(self) -> list[torch.Tensor]:
        """The weights before any training."""
        return [one.detach().clone() for one in self.cloze.parameters()]

    @cached_property
    def compute_model(self) -> Backbone:
        """The model that computes: the same, or a copy in lower precision."""
        return computing_copy(self.cloze, self.ctx.runtime)

    @cached_property
    def trainer(self) -> "Trainer[ClozeBatch]":
        """The training of a member that is a model of its own; what it captured serves the next one."""
        settings = self.ctx.settings.finetune

        def losses(given: ClozeBatch) -> Losses:
            return cloze_losses(self.compute_model, given, settings.alpha)

        warm_up(self.compute_model, self.layout().padded, training=True)
        master = None if self.compute_model is self.cloze else self.cloze
        return Trainer(self.compute_model, settings, losses, self.ctx.runtime, master=master, origin=self.tuned)

    @property
    def untuned(self) -> Origin:
        """What is to blame where an untuned pattern's scores are not finite."""
        return Origin(self.base.settings.name)

    @property
    def tuned(self) -> Origin:
        """What is to blame where a member's losses or scores are not."""
        settings = self.ctx.settings.finetune
        if settings.method == "lora":
            return replace(self.untuned, setting="finetune.lora.learning_rate", rate=settings.lora.learning_rate)
        return replace(self.untuned, setting="finetune.learning_rate", rate=settings.learning_rate)

    @cached_property
    def _host(self) -> dict[str, torch.Tensor]:
        """Room for the model's state on the host. What is one tensor in the model is one here."""
        pinned = self.ctx.runtime.device.type == "cuda"
        room: dict[int, torch.Tensor] = {}
        found = {}
        for name, value in self.cloze.lm.state_dict().items():
            if value.data_ptr() not in room:
                room[value.data_ptr()] = torch.empty_like(value, device="cpu", pin_memory=pinned)
            found[name] = room[value.data_ptr()]
        return found

    def state_on_host(self) -> dict[str, torch.Tensor]:
        """The weights of the transformers model as they are now, in memory that the next call uses again."""
        for name, value in self.cloze.lm.state_dict().items():
            self._host[name].copy_(value)
        return dict(self._host)

    @torch.no_grad()
    def reset(self) -> None:
        """Put the starting weights back in place."""
        for mine, first in zip(self.cloze.parameters(), self.start, strict=True):
            mine.copy_(first)
        refresh(self.compute_model, self.cloze)

    def layout(self) -> Layout:
        """How rows are laid out in training. Rows of several members must be of one width where they are padded."""
        settings = self.ctx.settings.finetune
        whole = settings.mask_targets == "any" or (settings.method == "lora" and not packing.is_packed(self.cloze.lm))
        return packing.training_layout(
            self.cloze.lm, self.ctx.runtime.captures, self.ctx.settings.model.max_length if whole else None
        )

    def sources(self, asked: EncodedPattern) -> MemberSources:
        """What a member of this pattern is trained on."""
        never = never_masked(self.ctx.prompt_tokenizer, self.ctx.settings.finetune.mask_targets)
        train, pool = asked.rows["train"], asked.rows["pool"]
        return MemberSources(train, asked.labels, pool, asked.verbalizers, never, type(self.cloze))

    def rehearse(self) -> None:
        """Train a step and score a batch of made-up texts, so that all is loaded and compiled before the first member
        is begun, which then comes out as it would have: it starts from the same weights, and `warm_up` sees to the
        rest."""
        ctx, pvp = self.ctx, self.ctx.pvps[0]
        texts = made_up_texts(ctx.card)
        rows, words = (
            ctx.encoder(pvp).encode(TokenizedTexts(ctx.prompt_tokenizer, texts)),
            self.verbalizers[pvp.number],
        )
        self.reset()
        if ctx.num_labelled and ctx.settings.finetune.method == "full":
            asked = EncodedPattern({"train": rows, "pool": rows}, ctx.labels.encode(texts.labels), words)
            settings, layout, rng = ctx.settings.finetune, self.layout(), np.random.default_rng(0)
            share = next(draw_member_batches(self.sources(asked), settings, layout, rng))
            self.compute_model.train()
            self.trainer.run_step(
                [collate_members([share], settings, layout).to(ctx.runtime.device)] * settings.accumulation
            )
            self.compute_model.eval()
            self.reset()
        score_rows(
            lambda batch: self.compute_model.label_scores(batch, words.to(ctx.runtime.device)),
            rows,
            packing.scoring_layout(self.compute_model.lm),
            replace(ctx.runtime, reporter=Silent()),
            "rehearsal",
            self.untuned,
        )


def made_up_texts(card: TaskCard) -> Texts:
    """Texts that say nothing, with labels."""
    numbers = range(64)
    said = ["a " * (1 + number % 7) for number in numbers]
    labels: list[str | None] = [card.labels[number % len(card.labels)] for number in numbers]
    return Texts([str(number) for number in numbers], dict.fromkeys(card.fields, said), labels)


class MemberData:
    """What all members of a draw share: its texts, tokenised when the first member needs them."""

    def __init__(self, ctx: RunContext, prepared: Artifact, member_trainer: MemberTrainer) -> None:
        self.ctx = ctx
        self.prepared = prepared
        self.member_trainer = member_trainer

    @cached_property
    def splits(self) -> drawn_texts.Splits[TextFile]:
        """The texts."""
        return drawn_texts.load(self.prepared)

    @cached_property
    def tokens(self) -> dict[str, TokenizedTexts]:
        """Every text, tokenised once for all patterns."""
        texts: dict[str, TextSource] = {"train": self.splits.train, "pool": self.splits.pool, "test": self.splits.test}
        return {split: TokenizedTexts(self.ctx.prompt_tokenizer, found) for split, found in texts.items()}

    def ask(self, pvp: PVP, drawn: Node | None = None) -> EncodedPattern:
        """Fill all texts into a pattern. `drawn`: holds the texts to be trained on; default: the labelled ones."""
        return EncodedPattern(*self._fill(pvp, drawn), self.member_trainer.verbalizers[pvp.number])

    def _fill(self, pvp: PVP, drawn: Node | None) -> tuple[dict[str, EncodedTexts], NDArray[np.int64]]:
        """Rows and labels."""
        encoder = self.ctx.encoder(pvp)
        train, tokens = self.splits.train, self.tokens
        if drawn is not None:
            train = read_texts(drawn.artifact.file("train.parquet"))
            tokens = tokens | {"train": TokenizedTexts(self.ctx.prompt_tokenizer, train)}
        rows = {split: encoder.encode(found) for split, found in tokens.items()}
        return rows, self.ctx.labels.encode(train.labels)

    def begin(self, pvp: PVP, drawn: Node | None = None) -> EncodedPattern:
        """As `ask`, the model being reset meanwhile: the first time, texts are tokenised and weights loaded."""
        words = self.member_trainer.verbalizers[pvp.number]  # first: no tokenizer may be loaded beside a model
        with BackgroundWriter() as beside:
            beside.start(lambda: self._fill(pvp, drawn))
            self.member_trainer.reset()
            rows, labels = beside.wait()
            return EncodedPattern(rows, labels, words)

    def score(
        self, asked: EncodedPattern, splits: Sequence[str], name: str, tuned: bool
    ) -> dict[str, NDArray[np.float32]]:
        """Label scores [N, L] of the model as it is now, by split. `tuned`: it was trained.

        Raises:
            NotFinite: one is NaN or infinite.
        """
        origin = self.member_trainer.tuned if tuned else self.member_trainer.untuned
        runtime, compute_model = self.ctx.runtime, self.member_trainer.compute_model
        words = asked.verbalizers.to(runtime.device)
        return {
            split: score_rows(
                lambda batch: compute_model.label_scores(batch, words),
                asked.rows[split],
                packing.scoring_layout(compute_model.lm),
                runtime,
                f"{name} on {split}",
                origin,
            )
            for split in splits
        }
