"""finetune: one masked language model per pattern and repetition, and its scores on the pool and the test set.

Before that, each pattern is asked untuned: its accuracy on the labelled texts is the weight of its members (P1 section
3.3) and its scores on the test set are the zero-shot result. Without labelled texts the untuned patterns are the
ensemble, and nothing is trained.

A member of a later generation of iPET is trained on more than the labelled texts: on what `draw` published for it.

Writes per member scores.safetensors (train, pool, test: raw label scores [N, L]), training.json (accuracy on the
labelled texts, losses) and, for trained members, model/ (a transformers checkpoint, if members are to be kept) or, with
`method: lora`, adapter/ (a peft adapter).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pet.config.schema import FinetuneSettings
from pet.errors import Busy
from pet.modeling import loading, quiet
from pet.modeling.lora import Adapters, find_targets
from pet.modeling.prompts import Encoder
from pet.modeling.verbalizers import encode_verbalizers
from pet.pipeline.context import Work, begin, finish, publish, training_settings
from pet.pipeline.members.batches import ClozeBatch, cloze_losses, combine, draw_shares
from pet.pipeline.members.data import Aside, Asked, Bench
from pet.pipeline.score_files import write_scores
from pet.store import interrupts
from pet.store.draft import Draft
from pet.store.key import Key
from pet.store.store import Artifact
from pet.tasks.patterns import PVP
from pet.tasks.splits import derive_seed
from pet.training.checkpoint import train_saved
from pet.training.cuda_graphs import Losses
from pet.training.device import seed_everything
from pet.training.scoring import refresh
from pet.training.trainer import Trainer, TrainingReport

STAGE = "finetune"
VERSION = 2


@dataclass(frozen=True)
class Plan:
    """One artifact to be: a pattern, and which repetition of it (`None`: untuned). In a later generation of iPET,
    `drawn` is the training set; in generation 0 the labelled texts are."""

    pvp: PVP
    repetition: int | None
    generation: int = 0
    drawn: Artifact | None = None

    @property
    def label(self) -> str:
        """Short name: p0-r1, p0-untuned, or g2-p0-r1."""
        name = f"p{self.pvp.number}-" + ("untuned" if self.repetition is None else f"r{self.repetition}")
        return f"g{self.generation}-{name}" if self.generation else name


@dataclass(frozen=True)
class Members:
    """`untuned`: number of a pattern -> its artifact. `plans`, `tuned`: the ensemble, in the order of the patterns."""

    untuned: dict[int, Artifact]
    plans: list[Plan]
    tuned: list[Artifact]

    @property
    def generation(self) -> int:
        """Which of iPET's; PET's ensemble is generation 0."""
        return self.plans[0].generation


def words_of(pvp: PVP) -> dict[str, list[str]]:
    """The verbalizer as JSON."""
    return {label: list(words) for label, words in pvp.words.items()}


def plans(work: Work) -> tuple[list[Plan], list[Plan]]:
    """Untuned patterns, and the members of the ensemble."""
    untuned = [Plan(pvp, None) for pvp in work.pvps]
    if work.num_labelled == 0:
        return untuned, untuned
    return untuned, [Plan(*one) for one in members_of(work)]


def members_of(work: Work) -> list[tuple[PVP, int]]:
    """Pattern and repetition of every member that is trained."""
    return [(pvp, number) for pvp in work.pvps for number in range(work.settings.finetune.repetitions)]


def distinct(untuned: list[Plan], members: list[Plan]) -> list[Plan]:
    """Both together; without labelled texts they are the same."""
    return [*untuned, *(plan for plan in members if plan.repetition is not None)]


def key(work: Work, prepared: Artifact, plan: Plan) -> Key:
    """Depends on the draw, the model, this pattern and its words; not on which other patterns are run."""
    settings: dict[str, Any] = {
        "model": work.model_identity(),
        "pattern": plan.pvp.pattern.source,
        "words": words_of(plan.pvp),
        "repetition": plan.repetition,
    }
    if plan.repetition is None:
        settings["truncation"] = work.settings.finetune.truncation
    else:
        unused = ("learning_rate",) if work.settings.finetune.method == "lora" else ("lora",)
        settings["finetune"] = training_settings(work, settings_of(work, plan), "patterns", "repetitions", *unused)
        settings["seed"] = work.settings.seed
        if plan.pvp.repeated:
            settings["name"] = plan.pvp.name  # that of its random stream: without it, these shared one
    inputs = {"prepare": prepared.identity} | ({"draw": plan.drawn.identity} if plan.drawn else {})
    return Key(STAGE, VERSION, settings, inputs)


def settings_of(work: Work, plan: Plan) -> FinetuneSettings:
    """How a member is trained."""
    steps = work.settings.ipet.steps if plan.generation else None
    return work.settings.finetune.model_copy(update={"steps": steps}) if steps else work.settings.finetune


def check(work: Work) -> None:
    """Refuse, before anything runs, patterns and label words that the model cannot be asked with, and layers and maps
    that it does not have.

    Raises:
        ModelError, TaskError, SettingsError: no such model, a label word of several tokens, a pattern that is too long,
            fewer layers than are to be frozen, nothing for LoRA to adapt.
    """
    encode_verbalizers(work.speller, work.pvps, work.card.name)
    for pvp in work.pvps:
        Encoder(work.speller, pvp.pattern, work.settings.model.max_length)
    settings = work.settings.finetune
    if settings.frozen_layers is not None or settings.method == "lora":
        body = loading.outline(work.settings.model)
        loading.freeze_lower(body, settings.frozen_layers, "finetune.frozen_layers")
        if settings.method == "lora":
            find_targets(body, settings.lora.targets, settings.frozen_layers)


def run(work: Work, prepared: Artifact) -> Members:
    """Make every member of generation 0 that is not in the store yet.

    Raises:
        ModelError, TaskError, SettingsError: model, label words or lengths do not fit.
        NotFinite: a loss or a score is NaN or infinite.
    """
    make(Bench(work, prepared), distinct(*plans(work)))
    return need(work, prepared)


def make(bench: Bench, wanted: Sequence[Plan]) -> None:
    """Make every one of these that is not in the store yet.

    Raises:
        ModelError, TaskError, SettingsError: as `run`.
    """
    work = bench.work
    missing = [plan for plan in wanted if not work.reuse(key(work, bench.prepared, plan), f"finetune {plan.label}")]
    if work.executor is not None:
        work.executor.members(work, bench.prepared, missing)
        return
    make_each(bench, [plan for plan in missing if not is_together(work, plan)])
    make_together(bench, [plan for plan in missing if is_together(work, plan)])


def is_together(work: Work, plan: Plan) -> bool:
    """Whether this one is trained in one batch with others, as an adapter."""
    return plan.repetition is not None and work.settings.finetune.method == "lora"


def make_each(bench: Bench, plans: Sequence[Plan], wait: bool = True) -> None:
    """Make each by itself, as `share_out` does."""
    with quiet.quiet_transformers(), Aside() as aside:
        share_out(lambda plan, wait: make_one(bench, plan, aside, wait), plans, wait)


def share_out(make_one: Callable[[Plan, bool], None], plans: Sequence[Plan], wait: bool = True) -> None:
    """Make each; those that another process is at come last and are waited for, or, without `wait`, left to it. So
    processes that want the same members share them out among themselves."""
    others = []
    for plan in plans:
        try:
            make_one(plan, False)
        except Busy:
            others.append(plan)
    for plan in others if wait else ():
        make_one(plan, True)


def make_one(bench: Bench, plan: Plan, aside: Aside, wait: bool) -> None:
    """As `make_untuned` or `make_alone`."""
    if plan.repetition is None:
        make_untuned(bench, plan, wait)
    else:
        make_alone(bench, plan, aside, wait)


def need(work: Work, prepared: Artifact) -> Members:
    """All members from the store.

    Raises:
        MissingArtifact: one has not been made; says which command makes it.
    """
    untuned, members = plans(work)
    asked = dict(zip((plan.pvp.number for plan in untuned), find(work, prepared, untuned), strict=True))
    return Members(asked, members, find(work, prepared, members))


def find(work: Work, prepared: Artifact, wanted: Sequence[Plan]) -> list[Artifact]:
    """These members from the store; as `need`."""
    return [
        work.store.need(key(work, prepared, plan), f"member {plan.label} of these settings", work.command(STAGE))
        for plan in wanted
    ]


# ---- making members ------------------------------------------------------------------------------------------------


def announce(bench: Bench, plans: Sequence[Plan]) -> None:
    """Say what is being made."""
    for plan in plans:
        begin(bench.work, f"finetune {plan.label}: {plan.pvp.pattern.source}")


def member_seed(work: Work, plan: Plan) -> int:
    """Of everything random about a member."""
    later = [plan.generation] if plan.generation else []
    return derive_seed("member", work.settings.seed, plan.pvp.name, plan.repetition, *later)


def splits_of(bench: Bench, plan: Plan) -> tuple[str, ...]:
    """What a member is asked about: an untuned pattern that is no member, not about the pool."""
    if plan.repetition is None and len(bench.splits.train):
        return ("train", "test")
    return ("train", "pool", "test")


def make_untuned(bench: Bench, plan: Plan, wait: bool) -> None:
    """Score a pattern untuned, publish. `wait`: for another process that is at it.

    Raises:
        Busy: there is one, and nobody waits.
    """
    with open_draft(bench, plan, wait) as draft:
        if draft is None:
            return
        announce(bench, [plan])
        asked = bench.begin(plan.pvp)
        scores = bench.score(asked, splits_of(bench, plan), plan.label, tuned=False)
        write_member(draft, bench, plan, asked, scores)


def make_alone(bench: Bench, plan: Plan, aside: Aside, wait: bool) -> None:
    """Train one member as a model of its own, score everything; publish while the next one is trained. `wait`: for
    another process that is at it.

    Raises:
        Busy: there is one, and nobody waits.
    """
    with ExitStack() as stack:
        draft = stack.enter_context(open_draft(bench, plan, wait))
        if draft is None:
            return
        announce(bench, [plan])
        asked = bench.begin(plan.pvp, plan.drawn)
        seed, learner = member_seed(bench.work, plan), bench.learner
        seed_everything(seed)
        steps = settings_of(bench.work, plan).steps
        saver = bench.work.saver(
            draft, learner.cloze, learner.trainer.optimizer, f"finetune {plan.label}", [plan.label]
        )
        (report,) = train_saved(
            learner.trainer,
            saver,
            lambda done: draw_batches(bench, [asked], [seed], done),
            plan.label,
            steps=steps,
            restored=lambda: refresh(learner.twin, learner.cloze),
        )
        draft.count_from(draft.seconds + saver.before)
        scores = bench.score(asked, splits_of(bench, plan), plan.label, tuned=True)
        write_member(draft, bench, plan, asked, scores, steps=report.steps, losses=report.losses)
        if not bench.work.settings.runtime.keep_members:
            return
        if bench.work.runtime.ranks.size > 1:  # which all wait until it is published
            write_member_model(bench, draft, learner.cloze.lm.state_dict())
            return
        aside.wait()  # before the memory that it reads is used again
        state = learner.state_on_host()
        publishing = stack.pop_all()

    def write_model() -> None:
        with publishing:
            write_member_model(bench, draft, state)

    aside.start(write_model)


def write_member_model(bench: Bench, draft: Draft, state: dict[str, torch.Tensor]) -> None:
    """Write a member's weights, and its tokenizer."""
    bench.learner.cloze.lm.save_pretrained(draft.path / "model", state_dict=state)
    bench.work.speller.tokenizer.save_pretrained(draft.path / "model")


def make_together(bench: Bench, plans: Sequence[Plan]) -> None:
    """Train members as adapters on one frozen model, all in one batch. They are published together, too: trained in
    another company, a member is the same but for rounding."""
    work = bench.work
    while plans := [plan for plan in plans if work.find(key(work, bench.prepared, plan)) is None]:
        with ExitStack() as stack:
            # In one order whoever it is, so that no two processes wait for each other.
            ordered = sorted(plans, key=lambda plan: key(work, bench.prepared, plan).identity)
            drafts = {plan.label: stack.enter_context(open_draft(bench, plan)) for plan in ordered}
            found = {label: draft for label, draft in drafts.items() if draft is not None}
            if len(found) == len(plans):  # else somebody has made one meanwhile
                fill_together(bench, plans, found)


def fill_together(bench: Bench, plans: Sequence[Plan], drafts: Mapping[str, Draft]) -> None:
    """Train, score, write and publish the members of these drafts, which are in the order in which they were taken; the
    first one keeps the checkpoint."""
    announce(bench, plans)
    work, model = bench.work, bench.learner.twin.lm
    if len(plans) > 1:
        work.runtime.reporter.say(f"finetune: training these {len(plans)} members together")
    base = work.model_settings(None)
    bench.learner.reset()
    asked = [bench.ask(plan.pvp, plan.drawn) for plan in plans]
    seeds = [member_seed(work, plan) for plan in plans]
    settings = settings_of(work, plans[0])  # all are of one generation
    adapters = Adapters(model, bench.learner.cloze.lm, seeds, settings)
    with adapters.installed():
        names, spent = [plan.label for plan in plans], dict[Draft, float]()
        first, *others = drafts.values()
        reports, seconds = train_adapters(
            bench, adapters, settings, lambda done: draw_batches(bench, asked, seeds, done), names, first
        )
        for number, (plan, one, report) in enumerate(zip(plans, asked, reports, strict=True)):
            draft = drafts[plan.label]
            draft.count_from(seconds / len(plans))
            adapters.fold(number)
            scores = bench.score(one, splits_of(bench, plan), plan.label, tuned=True)
            adapters.save(number, draft.path / "adapter", loading.lasting_name(base), base.revision)
            write_member(draft, bench, plan, one, scores, steps=report.steps, losses=report.losses, trained_with=names)
            spent[draft] = draft.seconds  # to score the next one is no part of it
        with interrupts.deferred():  # all of them or none
            for draft in (*others, first):
                draft.count_from(spent[draft])
                draft.seal(after=None if draft is first else first.key.identity)
            for draft in (first, *others):
                draft.publish()


def train_adapters(
    bench: Bench,
    adapters: Adapters,
    settings: FinetuneSettings,
    batches: Callable[[int], Iterator[ClozeBatch]],
    names: Sequence[str],
    draft: Draft,
) -> tuple[list[TrainingReport], float]:
    """Train installed adapters: one report each, and the seconds of all. The frozen model stays in eval mode: dropout
    is the adapters' own. `draft`: keeps the checkpoint."""
    dtype = next(bench.learner.twin.lm.base_model.parameters()).dtype

    def losses(given: ClozeBatch) -> Losses:
        adapters.open_gate(given.members, dtype, given.keys)
        return cloze_losses(bench.learner.twin, given, settings.alpha)

    chosen = settings.model_copy(update={"learning_rate": settings.lora.learning_rate})
    trainer = Trainer(adapters, chosen, losses, bench.work.runtime, adapters.clip, origin=bench.learner.tuned)
    saver = bench.work.saver(draft, adapters, trainer.optimizer, "finetune", names)
    reports = train_saved(trainer, saver, batches, *names, restored=lambda: None)
    adapters.close_gate()
    return reports, saver.spent()


def draw_batches(bench: Bench, asked: Sequence[Asked], seeds: Sequence[int], done: int = 0) -> Iterator[ClozeBatch]:
    """Micro-batches of these members for ever, each with its own random stream, those after `done` steps."""
    settings, layout, ranks = bench.work.settings.finetune, bench.learner.layout(), bench.work.runtime.ranks
    shares = [
        draw_shares(bench.learner.sources(one), settings, layout, np.random.default_rng(seed), ranks)
        for one, seed in zip(asked, seeds, strict=True)
    ]
    for share in shares:
        for _ in range(done * settings.accumulation):
            next(share)
    while True:
        yield combine([next(one) for one in shares], settings, layout).to(bench.work.runtime.device)


def open_draft(bench: Bench, plan: Plan, wait: bool = True) -> AbstractContextManager[Draft | None]:
    """Where a member is written; as of `publish`."""
    work = bench.work
    label = f"{work.draw_label}-{work.model_label}-{plan.label}"
    what, wanted = f"finetune {plan.label}", key(work, bench.prepared, plan)
    return publish(work.store, work.runtime, wanted, label, what, work.settings.seed, wait)


def write_member(
    draft: Draft, bench: Bench, plan: Plan, asked: Asked, scores: dict[str, NDArray[np.float32]], **training: Any
) -> None:
    """Scores, and how training went."""
    accuracy = None
    if len(asked.labels):
        accuracy = float((scores["train"].argmax(-1) == asked.labels).mean())
        step = training["steps"][-1] if training else 0
        bench.work.runtime.reporter.log(plan.label, {"train_accuracy": accuracy}, step)
    write_scores(draft, scores)
    draft.write_json("training.json", {"train_accuracy": accuracy, **training})
    finish(bench.work, draft)
