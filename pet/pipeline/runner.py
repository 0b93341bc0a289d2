"""The walk through the stages: what each needs, what is there already, and the run that is written at the end."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pet.config.resolve import settings_yaml
from pet.errors import DamagedArtifact, SettingsError
from pet.modeling import loading
from pet.pipeline import drawn_texts, event_log
from pet.pipeline import summary as summary_module
from pet.pipeline.context import Work, mending
from pet.pipeline.stages import adapt, baseline, distill, draw, evaluate, finetune, label, prepare
from pet.pipeline.stages.evaluate import Generation
from pet.pipeline.stages.finetune import Members, Plan
from pet.store.draft import Draft
from pet.store.key import Key
from pet.store.store import Artifact

STAGES = ("prepare", "adapt", "finetune", "label", "distill", "evaluate")
RUN_VERSION = 1


def run_stage(work: Work, stage: str) -> Artifact | None:
    """Run `all` stages, or one of them from the published artifacts of those before it.

    Returns the run's artifact when the walk reached `evaluate`, else `None`.

    Raises:
        PetError: of any stage; MissingArtifact when an earlier stage has not been run.
    """
    if stage == "adapt" and not work.settings.adapt.enabled:
        raise SettingsError("--stage adapt, but the settings ask for no in-domain training; --set adapt.enabled=true")
    check(work)
    return mending(work.store, work.runtime, lambda: walk(work, stage))


def walk(work: Work, stage: str) -> Artifact | None:
    """As `run_stage`; a damaged artifact is raised."""
    last = STAGES[-1] if stage == "all" else stage
    alone = stage != "all"

    def here(name: str) -> bool:
        return not alone or name == last

    prepared = prepare.run(work) if here("prepare") else prepare.need(work)
    if last == "prepare":
        return None
    adapted = adapt_model(work, prepared, here("adapt"))
    if last == "adapt":
        return None
    members = finetune.run(work, prepared) if here("finetune") else finetune.need(work, prepared)
    if last == "finetune":
        return None
    labelled = label.run(work, prepared, members) if here("label") else label.need(work, prepared, members)
    if last == "label":
        return None
    student = work.train(distill, prepared, labelled) if here("distill") else distill.need(work, prepared, labelled)
    if last == "distill":
        return None
    scored = evaluate.run(work, prepared, members, labelled, student)
    base = evaluate.find_baseline(work, prepared)
    return publish_run(work, Outcome(prepared, adapted, [Generation(members, labelled)], student, scored, base))


def adapt_model(work: Work, prepared: Artifact, here: bool) -> Artifact | None:
    """The adapted model, trained here or found, if the settings ask for one; the walk goes on from it."""
    if not work.settings.adapt.enabled:
        return None
    work.adapted = work.train(adapt, prepared) if here else adapt.need(work, prepared)
    return work.adapted


def check(work: Work) -> None:
    """Fail on what can be known now, before hours of training.

    Raises:
        StoreError, TaskError, ModelError, SettingsError: the store is not writable; card, patterns, label words or
            model are unusable.
    """
    work.store.check_writable()
    check_models(work)


def check_models(work: Work) -> None:
    """Refuse patterns, label words and models that cannot be used; the student's and the baseline's model included."""
    finetune.check(work)
    if work.settings.adapt.enabled:
        adapt.check(work)
    for name, section in (("distill", work.settings.distill), ("baseline", work.settings.baseline)):
        if section.model not in (None, work.settings.model.name):
            work.speller_of(section.model)
        if section.frozen_layers is not None:
            body = loading.outline(work.model_settings(section.model))
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


def publish_run(work: Work, outcome: Outcome) -> Artifact:
    """Write summary.json, summary.md and settings.yaml, or reuse the run."""

    def fill(draft: Draft) -> None:
        summary = summary_module.build_summary(
            work.settings,
            work.card.name,
            work.card.labels,
            outcome.by_stage(),
            drawn_texts.sizes(outcome.prepared),
            prepare.untested(outcome.prepared),
        )
        if more := prepare.count_word_texts(work, outcome.prepared):
            summary["word_texts"] = more
        if outcome.is_ipet:
            scored = [evaluate.score_generation(work, outcome.prepared, one) for one in outcome.generations]
            summary["generations"] = summary_module.flag_generations(scored)
        draft.write_json("summary.json", summary)
        (draft.path / "summary.md").write_text(summary_module.summary_markdown(summary), encoding="utf-8")
        (draft.path / "settings.yaml").write_text(settings_yaml(work.settings), encoding="utf-8")
        event_log.save(work.runtime.reporter, draft.path, draft.final.name)

    name = f"{work.draw_label}-{work.model_label}" + ("-ipet" if outcome.is_ipet else "")
    made = work.make(run_key(work, outcome), name, "run", fill, seed=work.settings.seed)
    for one in ("summary.json", "summary.md", "settings.yaml"):  # what is damaged is made anew while it can be
        made.file(one)
    return made


def run_key(work: Work, outcome: Outcome) -> Key:
    """Depends on the settings, runtime apart, and on what was scored."""
    unused = {"runtime", "table", *(() if outcome.is_ipet else ("ipet",)), *(() if outcome.adapted else ("adapt",))}
    left_out: dict[str, Any] = {**dict.fromkeys(unused, True), "data": {"train_files"}, "model": {"trust_remote_code"}}
    # The content of the files is prepare's, the code of a model part of its fingerprint.
    settings = work.settings.model_dump(mode="json", exclude=left_out)
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


def plan(work: Work, generations: int = 0) -> list[Step]:
    """Every artifact of the whole walk, made or not; nothing is written. `generations`: of iPET, after generation 0.

    Raises:
        PetError: card, texts, patterns, label words or model are unusable.
    """
    check_models(work)
    prepare.say_notes(work)
    return list(plan_steps(work, generations))


def plan_steps(work: Work, generations: int = 0) -> Iterator[Step]:
    """In the order in which they would be made. `generations`: of iPET, after generation 0."""

    def step(stage: str, name: str, key: Key) -> tuple[Step, Artifact]:
        found, damaged = None, False
        try:
            found = work.store.find(key)
        except DamagedArtifact:
            damaged = True
        expected = found or Artifact(work.store.root, {"stage": key.stage, "identity": key.identity})
        return Step(stage, name, key.identity, found, damaged), expected

    def member(plan: Plan) -> tuple[Step, Artifact]:
        return step("finetune", f"{plan.label}  {plan.pvp.pattern.source}", finetune.key(work, prepared, plan))

    one, prepared = step("prepare", work.draw_label, prepare.key(work))
    yield one
    if work.settings.adapt.enabled:
        one, work.adapted = step("adapt", "masked language model on the pool", adapt.key(work, prepared))
        yield one
    untuned, members_plans = finetune.plans(work)
    made: dict[str, Artifact] = {}
    for each in finetune.distinct(untuned, members_plans):
        one, made[each.label] = member(each)
        yield one
    asked = {each.pvp.number: made[each.label] for each in untuned}
    members = Members(asked, members_plans, [made[each.label] for each in members_plans])
    one, labelled = step("label", "soft labels", label.key(work, prepared, members))
    yield one
    for number in range(1, generations + 1):
        plans, tuned = [], []
        for plan, _, wanted in draw.next_plans(work, prepared, members, number):
            one, drawn = step("draw", f"{plan.label}  training set", wanted)
            yield one
            plans.append(Plan(plan.pvp, plan.repetition, number, drawn))
        for plan in plans:
            one, found = member(plan)
            yield one
            tuned.append(found)
        members = Members(asked, plans, tuned)
        one, labelled = step("label", f"soft labels{label.of(members)}", label.key(work, prepared, members))
        yield one
    one, student = step("distill", "student", distill.key(work, prepared, labelled))
    yield one
    base = None
    if work.num_labelled:
        one, base = step("evaluate", "supervised baselines", baseline.key(work, prepared))
        yield one
    yield step("evaluate", "scores", evaluate.key(work, prepared, members, labelled, student, base))[0]
