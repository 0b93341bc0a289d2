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
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pet.config.identity import fields_of
from pet.config.schema import FinetuneSettings
from pet.modeling import loading, quiet
from pet.modeling.backbones import ClozeBatch
from pet.modeling.lora import Adapters, find_targets
from pet.modeling.verbalizers import encode_verbalizers
from pet.pipeline.context import RunContext, training_settings
from pet.pipeline.members.batches import cloze_losses, collate_members, draw_member_batches
from pet.pipeline.members.data import EncodedPattern, MemberData, MemberTrainer
from pet.pipeline.node import Node, Stage
from pet.pipeline.publishing import find, finish, open_node, share_out
from pet.pipeline.score_files import write_scores
from pet.store import interrupts
from pet.store.background import BackgroundWriter
from pet.store.draft import Draft
from pet.tasks.patterns import PVP
from pet.tasks.splits import derive_seed
from pet.training.checkpoint import train_saved
from pet.training.compile import warm_up_losses
from pet.training.cuda_graphs import Losses
from pet.training.device import seed_everything
from pet.training.memory import reset_peak_memory
from pet.training.scoring import refresh
from pet.training.trainer import Trainer, TrainingReport

UNUSED = {"full": fields_of(FinetuneSettings, "lora"), "lora": fields_of(FinetuneSettings, "learning_rate")}
"""Method -> what it does not read, and what is therefore no part of a member's identity."""


@dataclass(frozen=True)
class Plan:
    """One artifact to be: a pattern, and which repetition of it (`None`: untuned). In a later generation of iPET,
    `drawn` is the training set; in generation 0 the labelled texts are."""

    pvp: PVP
    repetition: int | None
    generation: int = 0
    drawn: Node | None = None

    @property
    def label(self) -> str:
        """Short name: p0-r1, p0-untuned, or g2-p0-r1."""
        name = f"p{self.pvp.number}-" + ("untuned" if self.repetition is None else f"r{self.repetition}")
        return f"g{self.generation}-{name}" if self.generation else name


@dataclass(frozen=True)
class Members:
    """`untuned`: number of a pattern -> its node. `plans`, `tuned`: the ensemble, in the order of the patterns."""

    untuned: dict[int, Node]
    plans: list[Plan]
    tuned: list[Node]

    @property
    def generation(self) -> int:
        """Which of iPET's; PET's ensemble is generation 0."""
        return self.plans[0].generation


def words_of(pvp: PVP) -> dict[str, list[str]]:
    """The verbalizer as JSON."""
    return {label: list(words) for label, words in pvp.words.items()}


def first_members(ctx: RunContext, prepared: Node, adapted: Node | None) -> Members:
    """PET's ensemble. Without labelled texts it is the untuned patterns themselves."""
    untuned = {pvp.number: node(ctx, prepared, adapted, Plan(pvp, None)) for pvp in ctx.pvps}
    if ctx.num_labelled == 0:
        return Members(untuned, [Plan(pvp, None) for pvp in ctx.pvps], list(untuned.values()))
    return next_members(ctx, prepared, adapted, untuned, [Plan(*one) for one in members_of(ctx)])


def next_members(
    ctx: RunContext, prepared: Node, adapted: Node | None, untuned: dict[int, Node], plans: list[Plan]
) -> Members:
    """The ensemble of these plans."""
    return Members(untuned, plans, [node(ctx, prepared, adapted, plan) for plan in plans])


def members_of(ctx: RunContext) -> list[tuple[PVP, int]]:
    """Pattern and repetition of every member that is trained."""
    return [(pvp, number) for pvp in ctx.pvps for number in range(ctx.settings.finetune.repetitions)]


def node(ctx: RunContext, prepared: Node, adapted: Node | None, plan: Plan) -> Node:
    """Depends on the draw, the model, this pattern and its words; not on which other patterns are run."""
    start = ctx.start(None, adapted)
    settings: dict[str, Any] = {
        "model": start.identity,
        "pattern": plan.pvp.pattern.source,
        "words": words_of(plan.pvp),
        "repetition": plan.repetition,
    }
    if plan.repetition is None:
        settings["truncation"] = ctx.settings.finetune.truncation
    else:
        chosen = settings_of(ctx, plan)
        settings["finetune"] = training_settings(ctx, chosen, without=UNUSED[chosen.method])
        settings["seed"] = ctx.settings.seed
        if plan.pvp.repeated:
            settings["name"] = plan.pvp.name  # that of its random stream: without it, these shared one
    inputs = {"prepare": prepared.identity, **start.inputs} | ({"draw": plan.drawn.identity} if plan.drawn else {})
    return ctx.node(
        STAGE,
        [prepared, start, plan],
        settings,
        inputs,
        about=f"{plan.label}  {plan.pvp.pattern.source}",
        label=f"{ctx.label}-{plan.label}",
        title=f"finetune {plan.label}",
    )


def settings_of(ctx: RunContext, plan: Plan) -> FinetuneSettings:
    """How a member is trained."""
    steps = ctx.settings.ipet.steps if plan.generation else None
    return ctx.settings.finetune.model_copy(update={"steps": steps}) if steps else ctx.settings.finetune


def check(ctx: RunContext) -> None:
    """Refuse, before anything runs, patterns and label words that the model cannot be asked with, and layers and maps
    that it does not have.

    Raises:
        ModelError, TaskError, SettingsError: no such model, a label word of several tokens, a pattern that is too long,
            fewer layers than are to be frozen, nothing for LoRA to adapt.
    """
    encode_verbalizers(ctx.prompt_tokenizer, ctx.pvps, ctx.card.name)
    for pvp in ctx.pvps:
        ctx.encoder(pvp)
    settings = ctx.settings.finetune
    if settings.frozen_layers is not None or settings.method == "lora":
        body = loading.outline(ctx.settings.model)
        loading.freeze_lower(body, settings.frozen_layers, "finetune.frozen_layers")
        if settings.method == "lora":
            find_targets(body, settings.lora.targets, settings.frozen_layers)


def make_all(ctx: RunContext, nodes: Sequence[Node], kept: dict[str, Any], wait: bool) -> None:
    """Make members of one run, which share the model and the texts; `kept`: those of the last time.

    Raises:
        ModelError, TaskError, SettingsError: model, label words or lengths do not fit.
        NotFinite: a loss or a score is NaN or infinite.
    """
    prepared, start, _ = nodes[0].given
    member_data = kept.get("members")
    if member_data is None or member_data.prepared.identity != prepared.identity:
        trainer = kept.pop("trainer", None) or MemberTrainer(ctx, start)
        member_data = kept["members"] = MemberData(ctx, prepared.artifact, trainer)
    with quiet.quiet_transformers(), BackgroundWriter() as writer:
        each = [node for node in nodes if not is_joint(ctx, node)]
        share_out(lambda node, wait: make_one(member_data, node, writer, wait), each, wait)
    make_together(member_data, [node for node in nodes if is_joint(ctx, node)])


def is_joint(ctx: RunContext, node: Node) -> bool:
    """Whether this one is trained in one batch with others, as an adapter."""
    return plan_of(node).repetition is not None and ctx.settings.finetune.method == "lora"


def plan_of(node: Node) -> Plan:
    """Which member a node is."""
    _, _, plan = node.given
    return plan  # type: ignore[no-any-return]


def make_one(member_data: MemberData, node: Node, writer: BackgroundWriter, wait: bool) -> None:
    """As `make_untuned` or `make_alone`."""
    if wait:
        writer.wait()  # and publish: whoever is waited for may wait for that
    if plan_of(node).repetition is None:
        make_untuned(member_data, node, wait)
    else:
        make_alone(member_data, node, writer, wait)


# ---- making members ------------------------------------------------------------------------------------------------


def announce(ctx: RunContext, plans: Sequence[Plan]) -> None:
    """Print what is being made."""
    reset_peak_memory()
    for plan in plans:
        ctx.say(f"finetune {plan.label}: {plan.pvp.pattern.source}")


def member_seed(ctx: RunContext, plan: Plan) -> int:
    """Of everything random about a member."""
    later = [plan.generation] if plan.generation else []
    return derive_seed("member", ctx.settings.seed, plan.pvp.name, plan.repetition, *later)


def splits_of(member_data: MemberData, plan: Plan) -> tuple[str, ...]:
    """What a member is asked about: an untuned pattern that is no member, not about the pool."""
    if plan.repetition is None and len(member_data.splits.train):
        return ("train", "test")
    return ("train", "pool", "test")


def make_untuned(member_data: MemberData, node: Node, wait: bool) -> None:
    """Score a pattern untuned, publish. `wait`: for another process that is making it.

    Raises:
        Busy: there is one, and `wait` is false.
    """
    plan = plan_of(node)
    with open_node(member_data.ctx, node, wait) as draft:
        if draft is None:
            return
        announce(member_data.ctx, [plan])
        asked = member_data.begin(plan.pvp)
        scores = member_data.score(asked, splits_of(member_data, plan), plan.label, tuned=False)
        write_member(draft, member_data, plan, asked, scores)


def make_alone(member_data: MemberData, node: Node, writer: BackgroundWriter, wait: bool) -> None:
    """Train one member as a model of its own, score everything; publish while the next one is trained. `wait`: for
    another process that is making it.

    Raises:
        Busy: there is one, and `wait` is false.
    """
    ctx, plan = member_data.ctx, plan_of(node)
    with ExitStack() as stack:
        draft = stack.enter_context(open_node(ctx, node, wait))
        if draft is None:
            return
        announce(ctx, [plan])
        asked = member_data.begin(plan.pvp, plan.drawn)
        seed, member_trainer = member_seed(ctx, plan), member_data.member_trainer
        seed_everything(seed)
        checkpoints = ctx.checkpoints(
            draft, member_trainer.cloze, member_trainer.trainer.optimizer, f"finetune {plan.label}", [plan.label]
        )
        (report,) = train_saved(
            member_trainer.trainer,
            checkpoints,
            lambda done: draw_batches(member_data, [asked], [seed], done),
            plan.label,
            steps=settings_of(ctx, plan).steps,
            restored=lambda: refresh(member_trainer.compute_model, member_trainer.cloze),
        )
        draft.count_from(draft.seconds + checkpoints.before)
        scores = member_data.score(asked, splits_of(member_data, plan), plan.label, tuned=True)
        write_member(draft, member_data, plan, asked, scores, steps=report.steps, losses=report.losses)
        if not ctx.settings.runtime.keep_members:
            return
        if ctx.runtime.ranks.size > 1:  # which all wait until it is published
            write_member_model(member_data, draft, member_trainer.cloze.lm.state_dict())
            return
        writer.wait()  # before the memory that it reads is used again
        state = member_trainer.state_on_host()

        def write_model() -> None:
            write_member_model(member_data, draft, state)
            draft.seal()

        writer.start(write_model, then=stack.pop_all())


def write_member_model(member_data: MemberData, draft: Draft, state: dict[str, torch.Tensor]) -> None:
    """Write a member's weights, and its tokenizer."""
    member_data.member_trainer.cloze.lm.save_pretrained(draft.path / "model", state_dict=state)
    member_data.ctx.prompt_tokenizer.tokenizer.save_pretrained(draft.path / "model")


def make_together(member_data: MemberData, nodes: Sequence[Node]) -> None:
    """Train members as adapters on one frozen model, all in one batch. They are published together, too: trained in
    another company, a member is the same but for rounding."""
    ctx = member_data.ctx
    while nodes := [node for node in nodes if find(ctx.store, ctx.runtime, node.key) is None]:
        with ExitStack() as stack:
            # In the same order in every process, so that no two wait for each other.
            ordered = sorted(nodes, key=lambda node: node.identity)
            drafts = {plan_of(node).label: stack.enter_context(open_node(ctx, node)) for node in ordered}
            found = {label: draft for label, draft in drafts.items() if draft is not None}
            if len(found) == len(nodes):  # else another process has made one meanwhile
                fill_together(member_data, [plan_of(node) for node in nodes], found)


def fill_together(member_data: MemberData, plans: Sequence[Plan], drafts: Mapping[str, Draft]) -> None:
    """Train, score, write and publish the members of these drafts, which are in the order in which they were opened;
    the first one keeps the checkpoint."""
    ctx, member_trainer = member_data.ctx, member_data.member_trainer
    announce(ctx, plans)
    if len(plans) > 1:
        ctx.say(f"finetune: training these {len(plans)} members together")
    base = member_trainer.base.settings
    member_trainer.reset()
    asked = [member_data.ask(plan.pvp, plan.drawn) for plan in plans]
    seeds = [member_seed(ctx, plan) for plan in plans]
    settings = settings_of(ctx, plans[0])  # all are of one generation
    adapters = Adapters(member_trainer.compute_model.lm, member_trainer.cloze.lm, seeds, settings)
    with adapters.installed():
        names, spent = [plan.label for plan in plans], dict[Draft, float]()
        first, *others = drafts.values()
        reports, seconds = train_adapters(
            member_data, adapters, settings, lambda done: draw_batches(member_data, asked, seeds, done), names, first
        )
        for number, (plan, one, report) in enumerate(zip(plans, asked, reports, strict=True)):
            draft = drafts[plan.label]
            draft.count_from(seconds / len(plans))
            adapters.fold(number)
            scores = member_data.score(one, splits_of(member_data, plan), plan.label, tuned=True)
            adapters.save(number, draft.path / "adapter", loading.lasting_name(base), base.revision)
            write_member(
                draft, member_data, plan, one, scores, steps=report.steps, losses=report.losses, trained_with=names
            )
            spent[draft] = draft.seconds  # to score the next one is no part of it
        with interrupts.deferred():  # all of them or none
            for draft in (*others, first):
                draft.count_from(spent[draft])
                draft.seal(after=None if draft is first else first.key.identity)
            for draft in (first, *others):
                draft.publish()


def train_adapters(
    member_data: MemberData,
    adapters: Adapters,
    settings: FinetuneSettings,
    batches: Callable[[int], Iterator[ClozeBatch]],
    names: Sequence[str],
    draft: Draft,
) -> tuple[list[TrainingReport], float]:
    """Train installed adapters: one report each, and the seconds of all. The frozen model stays in eval mode: dropout
    is the adapters' own. `draft`: keeps the checkpoint."""
    dtype = next(member_data.member_trainer.compute_model.lm.base_model.parameters()).dtype

    def losses(given: ClozeBatch) -> Losses:
        adapters.open_gate(given.members, dtype, given.keys)
        return cloze_losses(member_data.member_trainer.compute_model, given, settings.alpha)

    chosen = settings.model_copy(update={"learning_rate": settings.lora.learning_rate})
    warm_up_losses(member_data.member_trainer.compute_model)
    trainer = Trainer(
        adapters, chosen, losses, member_data.ctx.runtime, adapters.clip, origin=member_data.member_trainer.tuned
    )
    checkpoints = member_data.ctx.checkpoints(draft, adapters, trainer.optimizer, "finetune", names)
    reports = train_saved(trainer, checkpoints, batches, *names, restored=lambda: None)
    adapters.close_gate()
    return reports, checkpoints.spent()


def draw_batches(
    member_data: MemberData, asked: Sequence[EncodedPattern], seeds: Sequence[int], done: int = 0
) -> Iterator[ClozeBatch]:
    """Micro-batches of these members for ever, each with its own random stream, those after `done` steps."""
    settings, layout, ranks = (
        member_data.ctx.settings.finetune,
        member_data.member_trainer.layout(),
        member_data.ctx.runtime.ranks,
    )
    shares = [
        draw_member_batches(
            member_data.member_trainer.sources(one), settings, layout, np.random.default_rng(seed), ranks
        )
        for one, seed in zip(asked, seeds, strict=True)
    ]
    for share in shares:
        for _ in range(done * settings.accumulation):
            next(share)
    while True:
        yield collate_members([next(one) for one in shares], settings, layout).to(member_data.ctx.runtime.device)


def write_member(
    draft: Draft,
    member_data: MemberData,
    plan: Plan,
    asked: EncodedPattern,
    scores: dict[str, NDArray[np.float32]],
    **training: Any,
) -> None:
    """Scores, and how training went."""
    accuracy = None
    if len(asked.labels):
        accuracy = float((member_data.ctx.labels.decide(scores["train"]) == asked.labels).mean())
        step = training["steps"][-1] if training else 0
        member_data.ctx.runtime.reporter.log(plan.label, {"train_accuracy": accuracy}, step)
    write_scores(draft, scores)
    draft.write_json("training.json", {"train_accuracy": accuracy, **training})
    finish(member_data.ctx, draft)


STAGE = Stage("finetune", version=2, make=make_one, step="finetune", trains=True, make_all=make_all, is_joint=is_joint)
