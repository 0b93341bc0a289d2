"""Making the graph of a run, in whole or in part, or only listing it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from pet.errors import DamagedArtifact, MissingArtifact, SettingsError
from pet.modeling import loading
from pet.pipeline import STEPS
from pet.pipeline.context import RunContext
from pet.pipeline.executors.local import LocalExecutor
from pet.pipeline.graph import build_graph
from pet.pipeline.node import Node
from pet.pipeline.publishing import mending, reuse
from pet.pipeline.stages import adapt, draw, finetune, prepare, run
from pet.store.store import Artifact


def run_stage(ctx: RunContext, stage: str) -> Artifact | None:
    """Run `all` stages, or one of them from the published artifacts of those before it.

    Returns the run's artifact when it reached `evaluate`, else `None`.

    Raises:
        PetError: of any stage; MissingArtifact when an earlier stage has not been run.
    """
    check_stage(ctx, stage)
    check(ctx)
    return make_graph(ctx, build_graph(ctx).nodes, lambda node: stage in ("all", node.stage.step))


def run_ipet(ctx: RunContext) -> Artifact:
    """All generations, the student and the run's artifact; what is in the store already is reused.

    Raises:
        PetError: of any stage.
    """
    check(ctx)
    say_schedule(ctx)
    made = make_graph(ctx, build_graph(ctx, draw.generations(ctx)).nodes)
    assert made is not None
    return made


def say_schedule(ctx: RunContext) -> None:
    """Print what iPET is going to do."""
    for line in draw.describe_schedule(ctx):
        ctx.say(line)


def make_graph(
    ctx: RunContext, nodes: Sequence[Node], wanted: Callable[[Node], bool] = lambda node: True
) -> Artifact | None:
    """Make those of these nodes that are wanted; the run's artifact, if it is one. What is damaged is made anew."""
    return mending(ctx.store, ctx.runtime, lambda: make_nodes(ctx, nodes, wanted))


def make_nodes(ctx: RunContext, nodes: Sequence[Node], wanted: Callable[[Node], bool]) -> Artifact | None:
    """As `make_graph`; a damaged artifact is raised.

    Raises:
        MissingArtifact: what comes before a wanted node is not there.
    """
    executor = ctx.executor or LocalExecutor()
    last = max(number for number, node in enumerate(nodes) if wanted(node))
    if wanted(nodes[0]):
        prepare.say_notes(ctx)
    for stage, group in groupby(nodes[: last + 1], lambda node: node.stage):
        of_stage = list(group)
        if not wanted(of_stage[0]):
            require(ctx, of_stage)
        elif missing := [node for node in of_stage if not reuse(ctx, node)]:
            executor.make(ctx, missing)
        if stage is run.STAGE:
            return run.checked(ctx, of_stage[0].artifact)
    return None


def require(ctx: RunContext, nodes: Sequence[Node]) -> None:
    """Refuse to go on from what has not been made.

    Raises:
        MissingArtifact: says which command makes it.
    """
    for node in nodes:
        if ctx.store.find(node.key) is None:
            raise MissingArtifact(
                f"{node.title} has not been run with these settings ({ctx.store.root} has no {node.key.stage}/...-"
                f"{node.identity}); run first: " + f"pet run --stage {node.stage.step} {ctx.invocation}".strip()
            )


def check_stage(ctx: RunContext, stage: str) -> None:
    """Refuse a stage that this run does not have.

    Raises:
        SettingsError: it is unknown, or the settings leave it out.
    """
    if stage not in ("all", *STEPS):
        raise SettingsError(f"stage {stage!r} is unknown; expected all, {', '.join(STEPS)}")
    if stage == "adapt" and not ctx.settings.adapt.enabled:
        raise SettingsError("--stage adapt, but the settings ask for no in-domain training; --set adapt.enabled=true")


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
class Step:
    """One artifact of a dry run: `found` is where it lies already, `damaged` that what lies there is of no use."""

    node: Node
    found: Artifact | None
    damaged: bool = False


def plan(ctx: RunContext, generations: int = 0, stage: str = "all") -> list[Step]:
    """Every artifact of a whole run or of one of its stages, made or not; nothing is written. `generations`: of iPET,
    after generation 0.

    Raises:
        PetError: what a run would refuse before it makes anything, but for a store that cannot be written.
    """
    check_stage(ctx, stage)
    ctx.store.check_folder()
    check_models(ctx)
    prepare.say_notes(ctx)
    nodes = build_graph(ctx, generations).nodes
    return [look_up(ctx, node) for node in nodes if stage in ("all", node.stage.step)]


def plan_ipet(ctx: RunContext) -> list[Step]:
    """As `plan`, of all generations."""
    say_schedule(ctx)
    return plan(ctx, draw.generations(ctx))


def look_up(ctx: RunContext, node: Node) -> Step:
    """Whether a node's artifact is there."""
    try:
        return Step(node, ctx.store.find(node.key))
    except DamagedArtifact:
        return Step(node, None, damaged=True)
