"""The walk through the stages: what each needs, what is there already, and the run that is written at the end."""

from collections.abc import Iterator
from dataclasses import dataclass

from pet import models, report
from pet.artifacts import Artifact, Key
from pet.settings import settings_yaml
from pet.stages import baseline, distill, evaluate, finetune, label, prepare
from pet.stages.finetune import Members
from pet.stages.work import Work

STAGES = ("prepare", "finetune", "label", "distill", "evaluate")
RUN_VERSION = 1


def run_stage(work: Work, stage: str) -> Artifact | None:
    """Run `all` stages, or one of them from the published artifacts of those before it.

    Returns the run's artifact when the walk reached `evaluate`, else `None`.

    Raises:
        PetError: of any stage; MissingArtifact when an earlier stage has not been run.
    """
    check(work)
    last = STAGES[-1] if stage == "all" else stage
    alone = stage != "all"

    def here(name: str) -> bool:
        return not alone or name == last

    prepared = prepare.run(work) if here("prepare") else prepare.need(work)
    if last == "prepare":
        return None
    members = finetune.run(work, prepared) if here("finetune") else finetune.need(work, prepared)
    if last == "finetune":
        return None
    labelled = label.run(work, prepared, members) if here("label") else label.need(work, prepared, members)
    if last == "label":
        return None
    student = distill.run(work, prepared, labelled) if here("distill") else distill.need(work, prepared, labelled)
    if last == "distill":
        return None
    scored = evaluate.run(work, prepared, members, labelled, student)
    base = evaluate.find_baseline(work, prepared)
    return publish_run(work, Outcome(prepared, members, labelled, student, scored, base))


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
    for name, section in (("distill", work.settings.distill), ("baseline", work.settings.baseline)):
        if section.model not in (None, work.settings.model.name):
            work.speller_of(section.model)
        if section.frozen_layers is not None:
            body = models.outline(work.model_settings(section.model))
            models.freeze_lower(body, section.frozen_layers, f"{name}.frozen_layers")


@dataclass(frozen=True)
class Outcome:
    """All artifacts of one walk."""

    prepared: Artifact
    members: Members
    labelled: Artifact
    student: Artifact
    scored: Artifact
    baseline: Artifact | None

    def by_stage(self) -> dict[str, list[Artifact]]:
        """Stage -> its artifacts; the baselines belong to evaluate."""
        tuned = [*self.members.untuned.values(), *self.members.tuned]
        return {
            "prepare": [self.prepared],
            "finetune": list({one.identity: one for one in tuned}.values()),
            "label": [self.labelled],
            "distill": [self.student],
            "evaluate": [*([self.baseline] if self.baseline else []), self.scored],
        }


def publish_run(work: Work, outcome: Outcome) -> Artifact:
    """Write summary.json, summary.md and settings.yaml, or reuse the run."""
    key = run_key(work, outcome)
    found = work.reuse(key, "run")
    if found:
        return found
    with work.publish(key, f"{work.draw_label}-{work.model_label}", seed=work.settings.seed) as draft:
        summary = report.build_summary(
            work.settings, work.card.name, work.card.labels, outcome.by_stage(), prepare.sizes(outcome.prepared)
        )
        draft.write_json("summary.json", summary)
        (draft.path / "summary.md").write_text(report.summary_markdown(summary), encoding="utf-8")
        (draft.path / "settings.yaml").write_text(settings_yaml(work.settings), encoding="utf-8")
    return work.published(key)


def run_key(work: Work, outcome: Outcome) -> Key:
    """Depends on the settings, runtime apart, and on what was scored."""
    settings = work.settings.model_dump(mode="json", exclude={"runtime"})
    return Key("run", RUN_VERSION, settings, {"evaluate": outcome.scored.identity})


# ---- what would be done --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One artifact of a walk: `found` is where it lies already."""

    stage: str
    name: str
    identity: str
    found: Artifact | None


def plan(work: Work) -> list[Step]:
    """Every artifact of the whole walk, made or not; nothing is written.

    Raises:
        PetError: card, texts, patterns, label words or model are unusable.
    """
    check_models(work)
    return list(plan_steps(work))


def plan_steps(work: Work) -> Iterator[Step]:
    """In the order in which they would be made."""

    def step(stage: str, name: str, key: Key) -> tuple[Step, Artifact]:
        found = work.store.find(key)
        expected = found or Artifact(work.store.root, {"identity": key.identity})
        return Step(stage, name, key.identity, found), expected

    one, prepared = step("prepare", work.draw_label, prepare.key(work))
    yield one
    untuned, members_plans = finetune.plans(work)
    made: dict[str, Artifact] = {}
    for each in finetune.distinct(untuned, members_plans):
        name = f"{each.label}  {each.pvp.pattern.source}"
        one, made[each.label] = step("finetune", name, finetune.key(work, prepared, each))
        yield one
    asked = {each.pvp.number: made[each.label] for each in untuned}
    members = Members(asked, members_plans, [made[each.label] for each in members_plans])
    one, labelled = step("label", "soft labels", label.key(work, prepared, members))
    yield one
    one, student = step("distill", "student", distill.key(work, prepared, labelled))
    yield one
    base = None
    if work.settings.data.train_examples:
        one, base = step("evaluate", "supervised baselines", baseline.key(work, prepared))
        yield one
    yield step("evaluate", "scores", evaluate.key(work, prepared, members, labelled, student, base))[0]
