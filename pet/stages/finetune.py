"""finetune: one masked language model per pattern and repetition, and its scores on the pool and the test set.

Before that, each pattern is asked untuned: its accuracy on the labelled texts is the weight of its members (P1 section
3.3) and its scores on the test set are the zero-shot result. Without labelled texts the untuned patterns are the
ensemble, and nothing is trained.

Writes per member scores.safetensors (train, pool, test: raw label scores [N, L]), training.json (accuracy on the
labelled texts, losses) and, for trained members, model/ (a transformers checkpoint).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pet import models
from pet.artifacts import Artifact, Draft, Key
from pet.cloze import ClozeModel
from pet.encoding import (
    Batch,
    Encoder,
    Rows,
    TokenizedTexts,
    VerbalizerIds,
    encode_verbalizers,
    pad_rows,
    padded_length,
    training_width,
)
from pet.inference import score_rows
from pet.losses import IGNORED, combined_loss, label_loss, mask_tokens, mlm_loss
from pet.patterns import PVP
from pet.runtime import seed_everything
from pet.sampling import derive_seed
from pet.settings import FinetuneSettings
from pet.stages import prepare
from pet.stages.work import Work, begin, finish, label_numbers, training_settings, write_scores
from pet.training import Losses, Trainer, TrainingReport, endless_order

STAGE = "finetune"
VERSION = 1
TARGET_MULTIPLE = 64
"""MLM targets of a batch are padded to a multiple of this."""


@dataclass(frozen=True)
class Plan:
    """One artifact to be: a pattern, and which repetition of it (`None`: untuned)."""

    pvp: PVP
    repetition: int | None

    @property
    def label(self) -> str:
        """Short name: p0-r1, or p0-untuned."""
        return f"p{self.pvp.number}-" + ("untuned" if self.repetition is None else f"r{self.repetition}")


@dataclass(frozen=True)
class Members:
    """`untuned`: number of a pattern -> its artifact. `plans`, `tuned`: the ensemble, in the order of the patterns."""

    untuned: dict[int, Artifact]
    plans: list[Plan]
    tuned: list[Artifact]


def words_of(pvp: PVP) -> dict[str, list[str]]:
    """The verbalizer as JSON."""
    return {label: list(words) for label, words in pvp.words.items()}


def plans(work: Work) -> tuple[list[Plan], list[Plan]]:
    """Untuned patterns, and the members of the ensemble."""
    untuned = [Plan(pvp, None) for pvp in work.pvps]
    if work.settings.data.train_examples == 0:
        return untuned, untuned
    repetitions = range(work.settings.finetune.repetitions)
    return untuned, [Plan(pvp, repetition) for pvp in work.pvps for repetition in repetitions]


def distinct(untuned: list[Plan], members: list[Plan]) -> list[Plan]:
    """Both together; without labelled texts they are the same."""
    return [*untuned, *(plan for plan in members if plan.repetition is not None)]


def key(work: Work, prepared: Artifact, plan: Plan) -> Key:
    """Depends on the draw, the model, this pattern and its words; not on which other patterns there are."""
    settings: dict[str, Any] = {
        "model": work.model_identity(),
        "pattern": plan.pvp.pattern.source,
        "words": words_of(plan.pvp),
        "repetition": plan.repetition,
    }
    if plan.repetition is None:
        settings["truncation"] = work.settings.finetune.truncation
    else:
        settings["finetune"] = training_settings(work.settings.finetune, work.settings, "patterns", "repetitions")
        settings["seed"] = work.settings.seed
    return Key(STAGE, VERSION, settings, {"prepare": prepared.identity})


def check_patterns(work: Work) -> None:
    """Refuse, before anything runs, patterns and label words that the model cannot be asked with.

    Raises:
        ModelError, TaskError, SettingsError: no such model, a label word of several tokens, a pattern that is too long.
    """
    encode_verbalizers(work.speller, work.pvps, work.card.name)
    for pvp in work.pvps:
        Encoder(work.speller, pvp.pattern, work.settings.model.max_length)


def run(work: Work, prepared: Artifact) -> Members:
    """Make every member that is not in the store yet.

    Raises:
        ModelError, TaskError, SettingsError: model, label words or lengths do not fit.
    """
    bench = Bench(work, prepared)
    for plan in distinct(*plans(work)):
        if not work.reuse(key(work, prepared, plan), f"finetune {plan.label}"):
            make(bench, plan)
    return need(work, prepared)


def need(work: Work, prepared: Artifact) -> Members:
    """All members from the store.

    Raises:
        MissingArtifact: one has not been made; says which command makes it.
    """
    untuned, members = plans(work)

    def find(plan: Plan) -> Artifact:
        return work.store.need(key(work, prepared, plan), f"member {plan.label} of these settings", work.command(STAGE))

    asked = {plan.pvp.number: find(plan) for plan in untuned}
    return Members(asked, members, [find(plan) for plan in members])


def make(bench: "Bench", plan: Plan) -> None:
    """Train one member (or take the pattern untuned), score everything, publish."""
    work = bench.work
    begin(work, f"finetune {plan.label}: {plan.pvp.pattern.source}")
    label = f"{work.draw_label}-{work.model_label}-{plan.label}"
    with work.store.publish(key(work, bench.prepared, plan), label, seed=work.settings.seed) as draft:
        asked = bench.ask(plan.pvp)
        bench.reset()
        report = None if plan.repetition is None else train_member(bench, asked, plan)
        splits = ("train", "pool", "test") if report or not len(bench.splits.train) else ("train", "test")
        scores = {split: bench.score(asked, split, plan.label) for split in splits}
        write_member(draft, bench, plan.label, scores, report)
        finish(work, draft)


def write_member(
    draft: Draft, bench: "Bench", name: str, scores: dict[str, NDArray[np.float32]], report: TrainingReport | None
) -> None:
    """Scores, how training went, and the weights if there was any."""
    accuracy = None
    if len(bench.labels):
        accuracy = float((scores["train"].argmax(-1) == bench.labels).mean())
    content: dict[str, Any] = {"train_accuracy": accuracy}
    if accuracy is not None:
        bench.work.runtime.reporter.log(name, {"train_accuracy": accuracy}, report.steps[-1] if report else 0)
    if report:
        content |= {"steps": report.steps, "losses": report.losses}
        with models.quiet_transformers():
            bench.cloze.lm.save_pretrained(draft.path / "model")
            bench.work.speller.tokenizer.save_pretrained(draft.path / "model")
    write_scores(draft, scores)
    draft.write_json("training.json", content)


# ---- what all members share ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """One PVP, ready to be asked: rows per split and the ids of its label words."""

    rows: dict[str, Rows]
    verbalizers: VerbalizerIds


class Bench:
    """Model, tokenised texts and starting weights, loaded when the first member needs them and used by all."""

    def __init__(self, work: Work, prepared: Artifact) -> None:
        self.work = work
        self.prepared = prepared

    @cached_property
    def splits(self) -> prepare.Splits:
        """The texts."""
        return prepare.load(self.prepared)

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """Gold labels of the labelled texts, as numbers."""
        return label_numbers(self.splits.train, self.work.card.labels)

    @cached_property
    def tokens(self) -> dict[str, TokenizedTexts]:
        """Every text, tokenised once for all patterns."""
        texts = {"train": self.splits.train, "pool": self.splits.pool, "test": self.splits.test}
        return {split: TokenizedTexts(self.work.speller, found) for split, found in texts.items()}

    @cached_property
    def verbalizers(self) -> dict[int, VerbalizerIds]:
        """Label words of all patterns, checked together so that every problem is told at once."""
        found = encode_verbalizers(self.work.speller, self.work.pvps, self.work.card.name)
        device = self.work.runtime.device
        return {pvp.number: ids.to(device) for pvp, ids in zip(self.work.pvps, found, strict=True)}

    @cached_property
    def cloze(self) -> ClozeModel:
        """The model that every member starts from."""
        cloze = ClozeModel(models.load_masked_lm(self.work.settings.model)).to(self.work.runtime.device)
        if not cloze.shortcut:
            self.work.runtime.reporter.say(
                f"finetune: model family {cloze.family!r} is not known to pet; taking full vocabulary logits (slower)"
            )
        models.freeze_lower(cloze.lm, self.work.settings.finetune.frozen_layers)
        return cloze.eval()

    @cached_property
    def start(self) -> dict[str, torch.Tensor]:
        """The weights before any training, on the CPU."""
        return {name: value.detach().cpu().clone() for name, value in self.cloze.state_dict().items()}

    @cached_property
    def trainer(self) -> "Trainer[ClozeBatch]":
        """The training of a member; what it captured serves the next one."""
        settings = self.work.settings.finetune

        def losses(given: ClozeBatch) -> Losses:
            return member_losses(self.cloze, given, settings.alpha)

        return Trainer(self.cloze, settings, losses, self.work.runtime)

    def reset(self) -> None:
        """Put the starting weights back in place."""
        self.cloze.load_state_dict(self.start)

    def ask(self, pvp: PVP) -> Asked:
        """Fill all texts into a pattern."""
        settings = self.work.settings
        verbalizers = self.verbalizers[pvp.number]
        encoder = Encoder(self.work.speller, pvp.pattern, settings.model.max_length, settings.finetune.truncation)
        return Asked({split: encoder.encode(tokens) for split, tokens in self.tokens.items()}, verbalizers)

    def score(self, asked: Asked, split: str, name: str) -> NDArray[np.float32]:
        """Label scores [N, L] of one split."""

        def label_scores(batch: Batch) -> torch.Tensor:
            return self.cloze.label_scores(self.cloze.states(batch), batch.mask_positions, asked.verbalizers)

        return score_rows(label_scores, asked.rows[split], self.work.speller, self.work.runtime, f"{name} on {split}")


# ---- training one member -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClozeBatch:
    """Labelled rows first, then unlabelled ones. `labels`: [B labelled]; `target_places`: row and column [2, K] of the
    MLM targets; `targets`: their tokens [K], filled up with IGNORED so that few values of K occur."""

    batch: Batch
    labels: torch.Tensor
    target_places: torch.Tensor
    targets: torch.Tensor
    verbalizers: VerbalizerIds

    def to(self, device: torch.device) -> "ClozeBatch":
        """The same batch on a device."""
        return ClozeBatch(
            self.batch.to(device),
            self.labels.to(device),
            self.target_places.to(device),
            self.targets.to(device),
            self.verbalizers.to(device),
        )


def train_member(bench: Bench, asked: Asked, plan: Plan) -> TrainingReport:
    """Train the bench's model on the labelled texts, with the auxiliary MLM loss on the pool."""
    settings = bench.work.settings.finetune
    seed = derive_seed("member", bench.work.settings.seed, plan.pvp.pattern.source, plan.repetition)
    seed_everything(seed)
    batches = draw_batches(bench, asked, settings, np.random.default_rng(seed))
    return bench.trainer.run(batches, plan.label)


def member_losses(cloze: ClozeModel, given: ClozeBatch, alpha: float) -> Losses:
    """Label loss and MLM loss of one micro-batch, from one forward pass."""
    states = cloze.states(given.batch)  # [B, T, H]
    num_labelled = len(given.labels)
    positions = given.batch.mask_positions[:num_labelled]
    scores = cloze.label_scores(states[:num_labelled], positions, given.verbalizers)
    label = label_loss(scores, given.labels)
    if num_labelled == len(states):
        return {"loss": label, "label_loss": label}
    row, column = given.target_places
    mlm = mlm_loss(cloze.vocabulary_logits(states[row, column]), given.targets)
    return {"loss": combined_loss(label, mlm, alpha), "label_loss": label, "mlm_loss": mlm}


def draw_batches(
    bench: Bench, asked: Asked, settings: FinetuneSettings, rng: np.random.Generator
) -> Iterator[ClozeBatch]:
    """Micro-batches for ever: shuffled labelled rows, shuffled pool rows with MLM targets chosen anew each time."""
    speller, device = bench.work.speller, bench.work.runtime.device
    uses_mlm = settings.alpha > 0 and settings.unlabelled_batch > 0
    train_rows, pool_rows = asked.rows["train"], asked.rows["pool"]
    both = Rows(
        train_rows.ids + pool_rows.ids,
        train_rows.types + pool_rows.types,
        np.concatenate([train_rows.mask_positions, pool_rows.mask_positions]),
    )
    fixed_width = bench.work.settings.model.max_length if settings.mask_targets == "any" and uses_mlm else None
    labelled = endless_order(len(train_rows), settings.labelled_batch, rng)
    unlabelled = endless_order(len(pool_rows), settings.unlabelled_batch, rng) if uses_mlm else None
    never = never_masked(bench, settings)
    while True:
        chosen = next(labelled)
        size = len(chosen)
        labels = torch.from_numpy(bench.labels[chosen])
        if unlabelled:
            chosen = np.concatenate([chosen, len(train_rows) + next(unlabelled)])
        batch = pad_rows(both, chosen, speller, fixed_width or training_width(both, chosen))
        places, targets = hide_tokens(batch, size, settings, never, bench, rng)
        given = ClozeBatch(batch, labels, places, targets, asked.verbalizers)
        yield given.to(device)


def never_masked(bench: Bench, settings: FinetuneSettings) -> NDArray[np.int64]:
    """Token ids that are never MLM targets: all special tokens, or (published code) only those of the frame."""
    speller = bench.work.speller
    if settings.mask_targets == "content":
        return np.asarray(speller.tokenizer.all_special_ids)
    frame = speller.frames[2]
    return np.asarray([*frame.before, *frame.between, *frame.after])


def hide_tokens(
    batch: Batch,
    num_labelled: int,
    settings: FinetuneSettings,
    never: NDArray[np.int64],
    bench: Bench,
    rng: np.random.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Replace MLM targets in the unlabelled rows of `batch`, in place; their places [2, K] and tokens [K]."""
    ids = batch.input_ids.numpy()
    maskable = ~np.isin(ids, never)
    maskable[:num_labelled] = False
    changed, targets = mask_tokens(
        ids, maskable, settings.mask_probability, bench.work.speller.mask_id, len(bench.work.speller.tokenizer), rng
    )
    batch.input_ids = torch.from_numpy(changed)
    places = np.nonzero(targets != IGNORED)
    return pad_targets(np.stack(places), targets[places], settings.mask_probability * ids[num_labelled:].size)


def pad_targets(
    places: NDArray[np.int64], targets: NDArray[np.int64], expected: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Places [2, K] and targets [K], filled up to a number that hardly ever varies for batches of one shape.

    `expected`: mean number of targets if every token could be one; half as many again is many standard deviations off.
    """
    capacity = padded_length(max(len(targets), int(1.5 * expected)), TARGET_MULTIPLE)
    missing = capacity - len(targets)
    places = np.pad(places, ((0, 0), (0, missing)))
    targets = np.pad(targets, (0, missing), constant_values=IGNORED)
    return torch.from_numpy(places), torch.from_numpy(targets)
