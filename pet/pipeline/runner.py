"""The walk through the stages: what each needs, what is there already, and the run that is written at the end."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pet.config.identity import fields_of, identity_settings
from pet.config.resolve import settings_yaml
from pet.config.schema import Settings
from pet.errors import DamagedArtifact, SettingsError
from pet.modeling import loading
from pet.pipeline import drawn_texts, event_log
from pet.pipeline import summary as summary_module
from pet.pipeline.context import RunContext, mending
from pet.pipeline.runs import READING
from pet.pipeline.stages import adapt, baseline, distill, draw, evaluate, finetune, label, prepare
from pet.pipeline.stages.evaluate import Generation
from pet.pipeline.stages.finetune import Members, Plan
from pet.store.draft import Draft
from pet.store.key import Key
from pet.store.store import Artifact
from pet.tasks.card import SOURCES, reading_of

STAGES = ("prepare", "adapt", "finetune", "label", "distill", "evaluate")
RUN_VERSION = 1

IPET, ADAPT = fields_of(Settings, "ipet"), fields_of(Settings, "adapt")
"""Sections that are no part of the identity of a run without generations, and of one without in-domain training."""


def run_stage(ctx: RunContext, stage: str) -> Artifact | None:
    """Run `all` stages, or one of them from the published artifacts of those before it.

    Returns the run's artifact when the walk reached `evaluate`, else `None`.

    Raises:
        PetError: of any stage; MissingArtifact when an earlier stage has not been run.
    """
    if stage == "adapt" and not ctx.settings.adapt.enabled:
        raise SettingsError("--stage adapt, but the settings ask for no in-domain training; --set adapt.enabled=true")
    check(ctx)
    return mending(ctx.store, ctx.runtime, lambda: walk(ctx, stage))


def walk(ctx: RunContext, stage: str) -> Artifact | None:
    """As `run_stage`; a damaged artifact is raised."""
    last = STAGES[-1] if stage == "all" else stage
    alone = stage != "all"

    def here(name: str) -> bool:
        return not alone or name == last

    prepared = prepare.run(ctx) if here("prepare") else prepare.need(ctx)
    if last == "prepare":
        return None
    adapted = adapt_model(ctx, prepared, here("adapt"))
    if last == "adapt":
        return None
    members = finetune.run(ctx, prepared) if here("finetune") else finetune.need(ctx, prepared)
    if last == "finetune":
        return None
    labelled = label.run(ctx, prepared, members) if here("label") else label.need(ctx, prepared, members)
    if last == "label":
        return None
    student = ctx.train(distill, prepared, labelled) if here("distill") else distill.need(ctx, prepared, labelled)
    if last == "distill":
        return None
    scored = evaluate.run(ctx, prepared, members, labelled, student)
    base = evaluate.find_baseline(ctx, prepared)
    return publish_run(ctx, Outcome(prepared, adapted, [Generation(members, labelled)], student, scored, base))


def adapt_model(ctx: RunContext, prepared: Artifact, here: bool) -> Artifact | None:
    """The adapted model, trained here or found, if the settings ask for one; the walk goes on from it."""
    if not ctx.settings.adapt.enabled:
        return None
    ctx.adapted = ctx.train(adapt, prepared) if here else adapt.need(ctx, prepared)
    return ctx.adapted


def check(ctx: RunContext) -> None:
    """Fail on what can be known now, before hours of training.

    Raises:
        StoreError, TaskError, ModelError, SettingsError: the store is not writable; card, patterns, label words or
            model are unusable.
    """
    ctx.store.check_writable()
    check_models(ctx)


def check_models(ctx: RunContext) -> None:
    """Refuse patterns, label words and models that cannot be used; the student's and the baseline's model included."""
    finetune.check(ctx)
    if ctx.settings.adapt.enabled:
        adapt.check(ctx)
    for name, section in (("distill", ctx.settings.distill), ("baseline", ctx.settings.baseline)):
        if section.model not in (None, ctx.settings.model.name):
            ctx.prompt_tokenizer_of(section.model)
        if section.frozen_layers is not None:
            body = loading.outline(ctx.model_settings(section.model))
            loading.freeze_lower(body, section.frozen_layers, f"{name}.frozen_layers")


@dataclass(frozen=True)
class Outcome:
    """All artifacts of one walk. `generations`: of iPET, the last one being that of the student."""

    prepared: Artifact
    adapted: Artifact | None
    generations: Sequence[Generation]
    student: Artifact
    scored: Artifact
    baseline: Artifact | None

    @property
    def is_ipet(self) -> bool:
        """Whether there is more than generation 0."""
        return len(self.generations) > 1

    def by_stage(self) -> dict[str, list[Artifact]]:
        """Stage -> its artifacts; the baselines belong to evaluate."""
        members = [one.members for one in self.generations]
        tuned = [*members[0].untuned.values(), *(made for one in members for made in one.tuned)]
        drawn = [plan.drawn for one in members for plan in one.plans if plan.drawn]
        return {
            "prepare": [self.prepared],
            **({"adapt": [self.adapted]} if self.adapted else {}),
            **({"draw": drawn} if drawn else {}),
            "finetune": list({one.identity: one for one in tuned}.values()),
            "label": [one.labelled for one in self.generations],
            "distill": [self.student],
            "evaluate": [*([self.baseline] if self.baseline else []), self.scored],
        }


def publish_run(ctx: RunContext, outcome: Outcome) -> Artifact:
    """Write summary.json, summary.md, settings.yaml and what the card says about reading, or reuse the run."""

    def fill(draft: Draft) -> None:
        summary = summary_module.build_summary(
            ctx.settings,
            ctx.card.name,
            ctx.card.labels,
            outcome.by_stage(),
            drawn_texts.sizes(outcome.prepared),
            prepare.untested(outcome.prepared),
        )
        if more := prepare.count_word_texts(ctx, outcome.prepared):
            summary["word_texts"] = more
        if outcome.is_ipet:
            scored = [evaluate.score_generation(ctx, outcome.prepared, one) for one in outcome.generations]
            summary["generations"] = summary_module.flag_generations(scored)
        draft.write_json("summary.json", summary)
        (draft.path / "summary.md").write_text(summary_module.summary_markdown(summary), encoding="utf-8")
        (draft.path / "settings.yaml").write_text(settings_yaml(ctx.settings), encoding="utf-8")
        draft.write_json(READING, reading_of(ctx.card).model_dump(mode="json"))
        event_log.save(ctx.runtime.reporter, draft.path, draft.final.name)

    name = f"{ctx.draw_label}-{ctx.model_label}" + ("-ipet" if outcome.is_ipet else "")
    made = ctx.make(run_key(ctx, outcome), name, "run", fill, seed=ctx.settings.seed)
    kept = (READING,) if made.has(READING) else ()  # older runs have none
    for one in ("summary.json", "summary.md", "settings.yaml", *kept):  # what is damaged is made anew while it can be
        made.file(one)
    if kept and (changed := changed_reading(made.read_json(READING), reading_of(ctx.card).model_dump(mode="json"))):
        ctx.runtime.reporter.say(
            f"run {made.path.name} was made when the card said otherwise how texts are read ({', '.join(changed)}), "
            f"and pet predict reads by that; to keep what it says now, remove {made.path} and run again"
        )
    return made


def changed_reading(kept: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What a card says otherwise about reading than it did, as dotted keys. The texts are the same: they are part
    of the run's identity."""
    changed = []
    for part in SOURCES:
        before, after = kept.get(part) or {}, now.get(part) or {}
        both = before.keys() & after.keys()
        changed += [f"{part}.{key}" for key in after if key in both and before[key] != after[key]]
        changed += [part] if bool(before) != bool(after) else []
    return changed


def run_key(ctx: RunContext, outcome: Outcome) -> Key:
    """Depends on the settings, and on what was scored."""
    unused = (frozenset() if outcome.is_ipet else IPET) | (frozenset() if outcome.adapted else ADAPT)
    settings = identity_settings(ctx.settings, of_run=True, without=unused)
    inputs = {"evaluate": outcome.scored.identity}
    if outcome.is_ipet:
        inputs |= {f"generation-{number}": one.labelled.identity for number, one in enumerate(outcome.generations)}
    return Key("run", RUN_VERSION, settings, inputs)


# ---- what would be done --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One artifact of a walk: `found` is where it lies already, `damaged` that what lies there is of no use."""

    stage: str
    name: str
    identity: str
    found: Artifact | None
    damaged: bool = False


def plan(ctx: RunContext, generations: int = 0) -> list[Step]:
    """Every artifact of the whole walk, made or not; nothing is written. `generations`: of iPET, after generation 0.

    Raises:
        PetError: card, texts, patterns, label words or model are unusable.
    """
    check_models(ctx)
    prepare.say_notes(ctx)
    return list(plan_steps(ctx, generations))


def plan_steps(ctx: RunContext, generations: int = 0) -> Iterator[Step]:
    """In the order in which they would be made. `generations`: of iPET, after generation 0."""

    def step(stage: str, name: str, key: Key) -> tuple[Step, Artifact]:
        found, damaged = None, False
        try:
            found = ctx.store.find(key)
        except DamagedArtifact:
            damaged = True
        expected = found or Artifact(ctx.store.root, {"stage": key.stage, "identity": key.identity})
        return Step(stage, name, key.identity, found, damaged), expected

    def member(plan: Plan) -> tuple[Step, Artifact]:
        return step("finetune", f"{plan.label}  {plan.pvp.pattern.source}", finetune.key(ctx, prepared, plan))

    one, prepared = step("prepare", ctx.draw_label, prepare.key(ctx))
    yield one
    if ctx.settings.adapt.enabled:
        one, ctx.adapted = step("adapt", "masked language model on the pool", adapt.key(ctx, prepared))
        yield one
    untuned, members_plans = finetune.plans(ctx)
    made: dict[str, Artifact] = {}
    for each in finetune.distinct(untuned, members_plans):
        one, made[each.label] = member(each)
        yield one
    asked = {each.pvp.number: made[each.label] for each in untuned}
    members = Members(asked, members_plans, [made[each.label] for each in members_plans])
    one, labelled = step("label", "soft labels", label.key(ctx, prepared, members))
    yield one
    for number in range(1, generations + 1):
        plans, tuned = [], []
        for plan, _, wanted in draw.next_plans(ctx, prepared, members, number):
            one, drawn = step("draw", f"{plan.label}  training set", wanted)
            yield one
            plans.append(Plan(plan.pvp, plan.repetition, number, drawn))
        for plan in plans:
            one, found = member(plan)
            yield one
            tuned.append(found)
        members = Members(asked, plans, tuned)
        one, labelled = step("label", f"soft labels{label.of(members)}", label.key(ctx, prepared, members))
        yield one
    one, student = step("distill", "student", distill.key(ctx, prepared, labelled))
    yield one
    base = None
    if ctx.num_labelled:
        one, base = step("evaluate", "supervised baselines", baseline.key(ctx, prepared))
        yield one
    yield step("evaluate", "scores", evaluate.key(ctx, prepared, members, labelled, student, base))[0]
