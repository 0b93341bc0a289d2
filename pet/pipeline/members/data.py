"""What all members of a walk share: the model, the starting weights and the tokenised texts. No artifact here."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray

from pet.modeling import loading, packing
from pet.modeling.batch import Layout
from pet.modeling.cloze import ClozeModel
from pet.modeling.prompts import Encoder, Rows
from pet.modeling.tokenization import TokenizedTexts
from pet.modeling.verbalizers import VerbalizerIds, encode_verbalizers
from pet.pipeline import drawn_texts
from pet.pipeline.context import Work
from pet.pipeline.members.batches import ClozeBatch, Sources, cloze_losses, combine, draw_shares, never_masked
from pet.pipeline.score_files import label_numbers
from pet.store.store import Artifact
from pet.tasks.card import TaskCard
from pet.tasks.patterns import PVP
from pet.tasks.texts import TextFile, Texts, TextSource, read_texts
from pet.training.cuda_graphs import Losses
from pet.training.finite import Origin
from pet.training.reporter import Silent
from pet.training.scoring import computing_copy, refresh, score_rows
from pet.training.trainer import Trainer


@dataclass(frozen=True)
class Asked:
    """One PVP, ready to be asked: rows per split, the labels of those to be trained on, the ids of its label words."""

    rows: dict[str, Rows]
    labels: NDArray[np.int64]
    verbalizers: VerbalizerIds


class Aside:
    """One job at a time beside the training: a model of gigabytes is written and hashed while the next one trains.

    Leaving the context waits for the job, also when something else went wrong. A job must not touch the GPU.
    """

    def __enter__(self) -> "Aside":
        self._thread = ThreadPoolExecutor(1)
        self._job: Future[None] | None = None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()
        if kind is None:
            self.wait()

    def start(self, job: Callable[[], None]) -> None:
        """Begin a job when the one before is done; what went wrong in that one is raised here."""
        self.wait()
        self._job = self._thread.submit(job)

    def wait(self) -> None:
        """Until the job is done; raises what it raised."""
        job, self._job = self._job, None
        if job is not None:
            job.result()


class Learner:
    """The model that all members of a walk start from, the copy of it that computes, and its training: what needs no
    text of the draw. Everything is loaded when it is needed first."""

    def __init__(self, work: Work) -> None:
        self.work = work

    @cached_property
    def verbalizers(self) -> dict[int, VerbalizerIds]:
        """Label words of all patterns, checked together so that every problem is told at once."""
        found = encode_verbalizers(self.work.speller, self.work.pvps, self.work.card.name)
        return {pvp.number: ids for pvp, ids in zip(self.work.pvps, found, strict=True)}

    @cached_property
    def cloze(self) -> ClozeModel:
        """The model that every member starts from."""
        cloze = ClozeModel(loading.load_masked_lm(self.work.model_settings(None))).to(self.work.runtime.device)
        if not cloze.shortcut:
            self.work.runtime.reporter.say(
                f"finetune: model family {cloze.family!r} is not known to pet; taking full vocabulary logits (slower)"
            )
        loading.freeze_lower(cloze.lm, self.work.settings.finetune.frozen_layers)
        return cloze.eval()

    @cached_property
    def start(self) -> list[torch.Tensor]:
        """The weights before any training."""
        return [one.detach().clone() for one in self.cloze.parameters()]

    @cached_property
    def twin(self) -> ClozeModel:
        """The model that computes: the same, or a copy in lower precision."""
        return computing_copy(self.cloze, self.work.runtime)

    @cached_property
    def trainer(self) -> "Trainer[ClozeBatch]":
        """The training of a member that is a model of its own; what it captured serves the next one."""
        settings = self.work.settings.finetune

        def losses(given: ClozeBatch) -> Losses:
            return cloze_losses(self.twin, given, settings.alpha)

        master = None if self.twin is self.cloze else self.cloze
        return Trainer(self.twin, settings, losses, self.work.runtime, master=master, origin=self.tuned)

    @property
    def untuned(self) -> Origin:
        """What is to blame where an untuned pattern's scores are not finite."""
        return Origin(self.work.model_settings(None).name)

    @property
    def tuned(self) -> Origin:
        """What is to blame where a member's losses or scores are not."""
        settings = self.work.settings.finetune
        if settings.method == "lora":
            return replace(self.untuned, setting="finetune.lora.learning_rate", rate=settings.lora.learning_rate)
        return replace(self.untuned, setting="finetune.learning_rate", rate=settings.learning_rate)

    @cached_property
    def _host(self) -> dict[str, torch.Tensor]:
        """Room for the model's state on the host. What is one tensor in the model is one here."""
        pinned = self.work.runtime.device.type == "cuda"
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
        refresh(self.twin, self.cloze)

    def layout(self) -> Layout:
        """How rows are laid out in training. Rows of several members must be of one width where they are padded."""
        settings = self.work.settings.finetune
        whole = settings.mask_targets == "any" or (settings.method == "lora" and not packing.is_packed(self.cloze.lm))
        return packing.training_layout(
            self.cloze.lm, self.work.runtime.captures, self.work.settings.model.max_length if whole else None
        )

    def encoder(self, pvp: PVP) -> Encoder:
        """What fills texts into a pattern."""
        settings = self.work.settings
        return Encoder(self.work.speller, pvp.pattern, settings.model.max_length, settings.finetune.truncation)

    def sources(self, asked: Asked) -> Sources:
        """What a member of this pattern is trained on."""
        never = never_masked(self.work.speller, self.work.settings.finetune.mask_targets)
        return Sources(asked.rows["train"], asked.labels, asked.rows["pool"], asked.verbalizers, never)

    def rehearse(self) -> None:
        """Train a step and score a batch of made-up texts, so that all is loaded and compiled before the first member
        is begun, which then comes out as it would have: it starts from the same weights, and `packing.settle` sees to
        the rest."""
        work, pvp = self.work, self.work.pvps[0]
        texts = made_up_texts(work.card)
        rows, words = self.encoder(pvp).encode(TokenizedTexts(work.speller, texts)), self.verbalizers[pvp.number]
        self.reset()
        if work.num_labelled and work.settings.finetune.method == "full":
            asked = Asked({"train": rows, "pool": rows}, label_numbers(texts, work.card.labels), words)
            settings, layout, rng = work.settings.finetune, self.layout(), np.random.default_rng(0)
            share = next(draw_shares(self.sources(asked), settings, layout, rng))
            self.twin.train()
            self.trainer.run_step([combine([share], settings, layout).to(work.runtime.device)] * settings.accumulation)
            self.twin.eval()
            self.reset()
        score_rows(
            lambda batch: self.twin.label_scores(batch, words.to(work.runtime.device)),
            rows,
            packing.scoring_layout(self.twin.lm),
            replace(work.runtime, reporter=Silent()),
            "rehearsal",
            self.untuned,
        )


def made_up_texts(card: TaskCard) -> Texts:
    """Texts that say nothing, with labels."""
    numbers = range(64)
    said = ["a " * (1 + number % 7) for number in numbers]
    labels: list[str | None] = [card.labels[number % len(card.labels)] for number in numbers]
    return Texts([str(number) for number in numbers], dict.fromkeys(card.fields, said), labels)


class Bench:
    """What all members of a draw share: its texts, tokenised when the first member needs them."""

    def __init__(self, work: Work, prepared: Artifact, learner: Learner | None = None) -> None:
        self.work = work
        self.prepared = prepared
        self.learner = learner or Learner(work)

    @cached_property
    def splits(self) -> drawn_texts.Splits[TextFile]:
        """The texts."""
        return drawn_texts.load(self.prepared)

    @cached_property
    def tokens(self) -> dict[str, TokenizedTexts]:
        """Every text, tokenised once for all patterns."""
        texts: dict[str, TextSource] = {"train": self.splits.train, "pool": self.splits.pool, "test": self.splits.test}
        return {split: TokenizedTexts(self.work.speller, found) for split, found in texts.items()}

    def ask(self, pvp: PVP, drawn: Artifact | None = None) -> Asked:
        """Fill all texts into a pattern. `drawn`: holds the texts to be trained on; default: the labelled ones."""
        return Asked(*self._fill(pvp, drawn), self.learner.verbalizers[pvp.number])

    def _fill(self, pvp: PVP, drawn: Artifact | None) -> tuple[dict[str, Rows], NDArray[np.int64]]:
        """Rows and labels."""
        encoder = self.learner.encoder(pvp)
        train, tokens = self.splits.train, self.tokens
        if drawn is not None:
            train = read_texts(drawn.file("train.parquet"))
            tokens = tokens | {"train": TokenizedTexts(self.work.speller, train)}
        rows = {split: encoder.encode(found) for split, found in tokens.items()}
        return rows, label_numbers(train, self.work.card.labels)

    def begin(self, pvp: PVP, drawn: Artifact | None = None) -> Asked:
        """As `ask`, the model being reset meanwhile: the first time, texts are tokenised and weights loaded."""
        words = self.learner.verbalizers[pvp.number]  # first: no tokenizer may be loaded beside a model
        with ThreadPoolExecutor(1) as beside:
            filled = beside.submit(self._fill, pvp, drawn)
            self.learner.reset()
            return Asked(*filled.result(), words)

    def score(self, asked: Asked, splits: Sequence[str], name: str, tuned: bool) -> dict[str, NDArray[np.float32]]:
        """Label scores [N, L] of the model as it is now, by split. `tuned`: it was trained.

        Raises:
            NotFinite: one is NaN or infinite.
        """
        origin = self.learner.tuned if tuned else self.learner.untuned
        runtime, twin = self.work.runtime, self.learner.twin
        words = asked.verbalizers.to(runtime.device)
        return {
            split: score_rows(
                lambda batch: twin.label_scores(batch, words),
                asked.rows[split],
                packing.scoring_layout(twin.lm),
                runtime,
                f"{name} on {split}",
                origin,
            )
            for split in splits
        }
