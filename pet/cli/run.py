"""`pet run`: walk through the stages of a pipeline. What `pet ipet` shares with it is here too."""

import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from pet.cli.options import OPTIONS, Command, shared
from pet.errors import SettingsError
from pet.pipeline import STEPS

if TYPE_CHECKING:
    from pet.config.schema import ModelSettings
    from pet.pipeline.context import RunContext
    from pet.pipeline.event_log import EventLog
    from pet.pipeline.runner import Step
    from pet.store.store import Artifact, Store

    Go = Callable[[RunContext], Artifact | None]


def walk_options(command: Command) -> Command:
    """Give a command what one takes that walks through a pipeline."""
    return click.argument("pipeline", required=False)(shared(*OPTIONS)(command))


@click.command()
@click.option(
    "--stage", type=click.Choice(("all", *STEPS)), default="all", show_default=True, help="Which stage to run."
)
@walk_options
def run(stage: str, **given: Any) -> None:
    """Run a PIPELINE, all stages or one of them, and show what came out.

    PIPELINE is a shipped name or a YAML file. Without it, `demo` is run; with --task but no PIPELINE, `quick`.
    What is in the store already is reused.

    \b
    Examples:
        pet run
        pet run --seed 0 --seed 1 --seed 2
        pet run agnews --data archives/ag_news_csv --train-examples 100
        pet run --stage distill --set distill.steps=200
        pet run --train-file to_label.csv
    """
    from pet.pipeline.runner import plan, run_stage

    walk(lambda ctx: run_stage(ctx, stage), lambda ctx: plan(ctx, stage=stage), **given)


def walk(
    go: "Callable[[RunContext], Artifact | None]",
    steps: "Callable[[RunContext], list[Step]]",
    pipeline: str | None,
    seeds: tuple[int, ...],
    assignments: tuple[str, ...],
    store: str,
    verify: bool,
    tracker: str,
    dry_run: bool,
    verbose: bool,
    **flags: Any,
) -> None:
    """Walk through a pipeline, once a seed, and show what came out. `go`: makes the run's artifact, if it comes to
    that; `steps`: what it would make."""
    from pet.cli.screen import Screen
    from pet.pipeline.trackers import check_kind
    from pet.store.store import Store

    check_kind(tracker)
    overrides = flag_overrides(flags, PLACES, assignments)
    if seeds:
        refuse_again(assignments, {"seed": f"--seed {seeds[0]}"})
    if pipeline is None:
        pipeline = "demo" if flags["task"] is None else "quick"
    screen = Screen(verbose)
    wanted = require_different(seeds) or (None,)
    works = [open_context(screen, pipeline, overrides, seed, Store(store, verify)) for seed in wanted]
    if dry_run:
        for ctx in works:
            screen.show_plan(steps(ctx))
        return
    if (size := works[0].runtime.ranks.size) > 1:
        works[0].runtime.reporter.say(f"{size} processes share each batch; what they train is an artifact of its own")
    runs = run_tasks if works[0].settings.runtime.executor == "ray" else run_here
    summaries = list(runs(screen, go, works, tracker))
    if len(summaries) > 1:
        screen.show_seeds(summaries)
    works[0].runtime.ranks.leave()


def open_context(
    screen: Any, pipeline: str, overrides: list[Mapping[str, Any]], seed: int | None, store: "Store"
) -> "RunContext":
    """What the stages are given.

    Raises:
        SettingsError: the pipeline is a table's, of several tasks, and none of them is named; or as `resolve_settings`.
    """
    from pet.config.resolve import resolve_settings
    from pet.pipeline.context import RunContext
    from pet.training.device import open_runtime

    settings = resolve_settings(pipeline, {} if seed is None else {"seed": seed}, *overrides)
    if settings.table.tasks and "name" not in settings.task.model_fields_set:
        tasks = ", ".join(settings.table.tasks)
        raise SettingsError(f"{pipeline} is for `pet table`, over {tasks}; name one of them with --task")
    warn_of_code(screen, settings.model, settings.distill.model, settings.baseline.model)
    return RunContext(settings, store, open_runtime(settings.runtime, screen), typed_options())


def warn_of_code(screen: Any, model: "ModelSettings", *others: str | None) -> None:
    """Say loudly whose code is run, where any is; `others`: models that stand in for it."""
    from pet.modeling.mini import EMBEDDED

    foreign = [one for one in dict.fromkeys((model.name, *others)) if one is not None and one not in EMBEDDED]
    if model.trust_remote_code and foreign:
        names = ", ".join(foreign)
        screen.warn(f"PYTHON CODE OF {names} IS RUN, IF IT BRINGS ANY (model.trust_remote_code); IT MAY DO ALL YOU MAY")


def run_here(screen: Any, go: "Go", works: "Sequence[RunContext]", tracker: str) -> Iterator[Mapping[str, Any]]:
    """One walk after another; the summaries of those that came to that."""
    for ctx in works:
        with logged(screen, ctx), tracked(screen, tracker, ctx):
            artifact = go(ctx)
            if artifact is not None:
                yield show(screen, artifact)


def run_tasks(screen: Any, go: "Go", works: "Sequence[RunContext]", tracker: str) -> Iterator[Mapping[str, Any]]:
    """All walks at a time, as tasks of a cluster; as `run_here`."""
    from pet.pipeline.executors.ray import raised, task_spec
    from pet.pipeline.executors.ray_cluster import open_cluster

    with (
        tracked(screen, tracker, works[0]),
        open_cluster(works[0].settings.runtime, works[0].store) as executor,
    ):
        executor.get_ready(works[0])
        several = len(works) > 1
        names = [f"seed {ctx.settings.seed}" if several else "" for ctx in works]
        orders = [task_spec(ctx, go, walks=True, name=name) for ctx, name in zip(works, names, strict=True)]
        with executor.run(orders, screen) as results:
            found = {number: raised(artifact) for number, artifact in results}
        yield from (show(screen, found[number]) for number in sorted(found) if found[number] is not None)


def show(screen: Any, artifact: "Artifact") -> Mapping[str, Any]:
    """Show what a run came to, tell the tracker, and return it."""
    summary: Mapping[str, Any] = artifact.read_json("summary.json")
    screen.show_summary(summary, str(artifact.path))
    if screen.tracker:
        screen.tracker.summarise(summary)
    return summary


def logged(screen: Any, ctx: "RunContext") -> "EventLog":
    """A context in which what the walk says is also written to the store's logs."""
    from pet.pipeline.event_log import open_log

    settings = ctx.settings.model_dump(mode="json")
    return open_log(ctx.store.root, ctx.draw_label, screen, settings, seed=ctx.settings.seed)


def tracked(screen: Any, kind: str, ctx: Any) -> Any:
    """A context in which the screen's numbers go to a tracker."""
    from pet.pipeline.trackers import open_tracker

    kind = kind if ctx.runtime.ranks.is_main else "none"
    screen.tracker = open_tracker(kind, ctx.label, ctx.settings.model_dump(mode="json"), ctx.store.root, screen.warn)
    return screen.tracker


PLACES = {
    "task": "task.name",
    "data": "task.data",
    "model": "model.name",
    "trust_remote_code": "model.trust_remote_code",
    "train_examples": "data.train_examples",
    "train_file": "data.train_files",
    "seed": "seed",
    "generations": "ipet.generations",
    "device": "runtime.device",
    "precision": "runtime.precision",
    "executor": "runtime.executor",
}
"""Flag -> the setting that it sets."""


def flag_overrides(
    flags: Mapping[str, Any], places: Mapping[str, str], assignments: tuple[str, ...]
) -> list[Mapping[str, Any]]:
    """Flags and --set as layers of settings. `places`: flag -> the setting that it sets.

    Raises:
        SettingsError: a flag and --set set the same.
    """
    from pet.config.resolve import nest, parse_assignment

    given = {place: flag for flag, place in places.items() if flags.get(flag) is not None}
    refuse_again(assignments, {place: as_typed(flag, flags[flag]) for place, flag in given.items()})
    return [*(nest(place, flags[flag]) for place, flag in given.items()), *map(parse_assignment, assignments)]


def as_typed(flag: str, value: Any) -> str:
    """A flag as a person types it."""
    values = [] if value is True else value if isinstance(value, tuple) else [value]
    return " ".join([f"--{flag.replace('_', '-')}", *map(str, values)])


def refuse_again(assignments: tuple[str, ...], given: Mapping[str, str]) -> None:
    """Refuse --set of what something else sets; `given`: setting -> what does.

    Raises:
        SettingsError: names both.
    """
    for text in assignments:
        name = text.partition("=")[0].strip()
        if name in given:
            raise SettingsError(f"--set {text} and {given[name]} set the same; leave one of them out")


def require_different(seeds: tuple[int, ...]) -> tuple[int, ...]:
    """The seeds.

    Raises:
        SettingsError: one is given twice.
    """
    if len(set(seeds)) < len(seeds):
        raise SettingsError(f"--seed got {', '.join(map(str, seeds))}; give each seed once")
    return seeds


def typed_options() -> str:
    """What was typed after `pet run`, without --stage, to suggest another stage with the same options."""
    words = sys.argv[2:]
    while "--stage" in words:
        place = words.index("--stage")
        del words[place : place + 2]
    return shlex.join(word for word in words if not word.startswith("--stage="))
