"""The runs of a few-shot table: methods, numbers of labelled texts and seeds, each one graph, made in whole or in part.

What is there is reused; a run that failed is a hole that is shown. `table_report` says what the runs come to.
"""

import errno
import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pet.config.schema import Method, RuntimeSettings, Settings
from pet.errors import PetError, SettingsError, StoreError
from pet.pipeline import drawn_texts, event_log
from pet.pipeline.context import RunContext, TaskTexts
from pet.pipeline.executors.ray import task_spec
from pet.pipeline.executors.ray_cluster import open_cluster
from pet.pipeline.graph import Graph, build_graph
from pet.pipeline.node import Stage
from pet.pipeline.runner import check, make_graph, run_ipet, run_stage
from pet.pipeline.stages import adapt, baseline, draw, evaluate, finetune, prepare
from pet.store.store import Artifact, Store
from pet.tasks.card import load_card
from pet.training.device import Runtime

Score = Mapping[str, float]


@dataclass(frozen=True)
class Cell:
    """One run: a method on one draw of so many labelled texts."""

    task: str
    size: int
    seed: int
    method: Method

    def __str__(self) -> str:
        return f"{self.task}, {self.size:,} labelled texts, seed {self.seed}: {self.method}"


@dataclass
class Table:
    """What came out. `runs`: a line for each run and row; `texts`: of each task's runs, the sizes of the splits and the
    labels that no test text has; `problems`: runs that failed, and why."""

    runs: list[dict[str, Any]] = field(default_factory=list)
    texts: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    problems: list[tuple[Cell, str]] = field(default_factory=list)
    artifacts: dict[str, Artifact] = field(default_factory=dict)


def by_name(settings: Mapping[str, Settings]) -> dict[str, Settings]:
    """The settings of each task by its card's own name.

    Raises:
        SettingsError: two cards have one name, or texts were labelled by hand, which a table's sizes do not count.
        TaskError: a card is unusable.
    """
    found: dict[str, Settings] = {}
    for chosen in settings.values():
        name = load_card(chosen.task.name)[0].name
        if chosen.data.train_files:
            raise SettingsError(
                f"data.train_files of task {name!r}: a table draws its labelled texts, as many as its sizes say; leave "
                "the setting out, or use `pet run`"
            )
        if name in found:
            raise SettingsError(f"table.tasks: two cards are named {name!r}; change `name:` in one of them")
        found[name] = chosen
    return found


def cells(settings: Mapping[str, Settings]) -> list[Cell]:
    """Every run, those together that share artifacts. `settings`: of each task.

    Raises:
        SettingsError: a task has none.
    """
    found = [
        Cell(task, size, seed, method)
        for task, chosen in settings.items()
        for seed in chosen.table.seeds
        for size in chosen.table.sizes
        for method in chosen.table.methods
        if applies(method, size, chosen)
    ]
    for task in settings.keys() - {cell.task for cell in found}:
        chosen = settings[task].table
        raise SettingsError(
            f"table: of {', '.join(chosen.methods)} none has a result for {', '.join(map(str, chosen.sizes))} labelled "
            f"texts of {task}; zero-shot has for 0, supervised and pet for more, ipet for less than 1,000"
        )
    return found


def applies(method: Method, size: int, settings: Settings) -> bool:
    """Whether a method has a result for so many labelled texts: without any only zero-shot and iPET have; with as many
    as its last generation would train on, iPET has none (P1 Tab 1), unless generations are asked for."""
    if method == "ipet":
        return settings.ipet.generations is not None or draw.enough(settings, size) > 0
    return (size == 0) == (method == "zero-shot")


Texts = Mapping[str, TaskTexts]


def open_cell(cell: Cell, settings: Mapping[str, Settings], store: Store, runtime: Runtime, texts: Texts) -> RunContext:
    """The context of one run. `texts`: of each task, which its runs share."""
    chosen = settings[cell.task]
    data = chosen.data.model_copy(update={"train_examples": cell.size})
    light = chosen.runtime.model_copy(update={"keep_members": False})  # hundreds of them
    changes = {"seed": cell.seed, "data": data, "runtime": light}
    return RunContext(chosen.model_copy(update=changes), store, runtime, task=texts[cell.task])


def open_texts(settings: Mapping[str, Settings]) -> dict[str, TaskTexts]:
    """The texts of each task, read when they are first asked for."""
    return {name: TaskTexts(one.task.name, one.task.data) for name, one in settings.items()}


def check_all(settings: Mapping[str, Settings], store: Store, runtime: Runtime) -> None:
    """Refuse what no run of a task could do with.

    Raises:
        StoreError, SettingsError, TaskError, ModelError: as `runner.check`; or the task's texts cannot be read.
    """
    wanted, texts = cells(settings), open_texts(settings)
    for task in settings:
        check(open_cell(next(one for one in wanted if one.task == task), settings, store, runtime, texts))
        texts[task].digests  # noqa: B018 - that they can be read


def make(settings: Mapping[str, Settings], store: Store, runtime: Runtime) -> Table:
    """Run what is missing, and collect. A run that fails is told, and the next one is begun."""
    wanted = cells(settings)
    chosen = settings[wanted[0].task].runtime
    if chosen.executor == "ray":
        return make_by_tasks(wanted, settings, store, runtime, chosen)
    table, texts = Table(), open_texts(settings)
    reporter = runtime.reporter
    for number, cell in enumerate(wanted, 1):
        with event_log.within(cell=asdict(cell)):
            reporter.say(f"table: {cell} ({number} of {len(wanted)})")
            problem = attempt(table, cell, open_cell(cell, settings, store, runtime, texts))
            reporter.note(**event_log.ending(problem))
            if problem is None:
                continue
            table.problems.append((cell, tell(problem)))
            reporter.say(f"table: failed: {table.problems[-1][1]}")
        if is_lost(store, problem):
            table.problems += [(one, "not begun, as the store cannot be written") for one in wanted[number:]]
            reporter.say(f"table: the store {store.root} cannot be written, so no other run is begun")
            break
        del problem
        gc.collect()  # what failed may hold memory that the next one needs
    return table


def make_by_tasks(
    wanted: Sequence[Cell], settings: Mapping[str, Settings], store: Store, runtime: Runtime, chosen: RuntimeSettings
) -> Table:
    """As `make`, all runs at a time, as tasks of a cluster; `chosen`: which."""
    table, reporter, texts = Table(), runtime.reporter, open_texts(settings)
    works = [open_cell(cell, settings, store, runtime, texts) for cell in wanted]
    with open_cluster(chosen, store) as executor:
        executor.get_ready(works[0])
        both = zip(wanted, works, strict=True)
        orders = [task_spec(ctx, run_cell, cell.method, walks=True, name=str(cell)) for cell, ctx in both]
        results: dict[int, Any] = {}
        with executor.run(orders, reporter) as coming:
            for number, found in coming:
                results[number] = found
                how = f"failed: {tell(found)}" if isinstance(found, Exception) else "done"
                reporter.say(f"table: {wanted[number]}: {how} ({len(results)} of {len(wanted)})")
    for number, cell in enumerate(wanted):
        if isinstance(results[number], Exception):
            table.problems.append((cell, tell(results[number])))
        else:
            put(table, cell, *results[number])
    return table


def attempt(table: Table, cell: Cell, ctx: RunContext) -> Exception | None:
    """Run one cell and put it down. What went wrong is returned: whatever it is, hundreds of others must not be lost
    to it."""
    try:
        found = run_cell(ctx, cell.method)
    except Exception as problem:
        return problem
    put(table, cell, *found)
    return None


def run_cell(ctx: RunContext, method: Method) -> tuple[dict[str, Score], list[Artifact], dict[str, Any]]:
    """Scores of a cell by row of the table, what was made for them, the sizes of its splits and `untested` labels."""
    scores, made = RUNNERS[method](ctx)
    return scores, made, {**drawn_texts.sizes(made[0]), "untested": prepare.untested(made[0])}


def put(table: Table, cell: Cell, scores: dict[str, Score], made: list[Artifact], texts: dict[str, Any]) -> None:
    """Put down what a cell came to."""
    table.artifacts |= {one.identity: one for one in made}
    table.texts.setdefault(cell.task, []).append(texts)
    for row, score in scores.items():
        table.runs.append({"task": cell.task, "labels": cell.size, "seed": cell.seed, "row": row, **score})


def tell(problem: Exception) -> str:
    """A problem in one line; its kind, too, where the sentence is not ours."""
    kind, said = type(problem).__name__, " ".join(str(problem).split())
    if isinstance(problem, PetError):
        return said or kind
    return f"{kind}: {said}" if said else kind


def is_lost(store: Store, problem: BaseException | None) -> bool:
    """Whether every later run would fail, too: the disk is full, or the store cannot be written any more. On some full
    disks a folder can still be made, so the problem itself is looked at, and what it came from."""
    while problem is not None:
        if isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            return True
        problem = problem.__cause__ or problem.__context__
    try:
        store.check_writable()
    except StoreError:
        return True
    return False


# ---- one run -------------------------------------------------------------------------------------------------------


def make_part(ctx: RunContext, *stages: Stage) -> Graph:
    """The graph of a run, of which the nodes of some stages are made."""
    graph = build_graph(ctx)
    needed = (prepare.STAGE, adapt.STAGE, *stages)
    make_graph(ctx, [node for node in graph.nodes if node.stage in needed])
    return Graph(graph.of(*needed), graph.generations)


def run_zero_shot(ctx: RunContext) -> tuple[dict[str, Score], list[Artifact]]:
    """The untuned patterns."""
    graph = make_part(ctx, finetune.STAGE)
    score: Score = evaluate.score_untuned(ctx, graph.nodes[0], graph.generations[0].members)
    return {"zero-shot": score}, [node.artifact for node in graph.nodes]


def run_supervised(ctx: RunContext) -> tuple[dict[str, Score], list[Artifact]]:
    """Both baselines."""
    graph = make_part(ctx, baseline.STAGE)
    scores = evaluate.score_baseline(ctx, graph.nodes[0], graph.nodes[-1])
    found: dict[str, Score] = {name.replace("_", "-"): one for name, one in scores.items()}
    return found, [node.artifact for node in graph.nodes]


def run_pet(ctx: RunContext) -> tuple[dict[str, Score], list[Artifact]]:
    """The ensemble and its student."""
    done = run_stage(ctx, "all")
    assert done is not None
    return collect(ctx, done, "pet")


def run_generations(ctx: RunContext) -> tuple[dict[str, Score], list[Artifact]]:
    """The last generation's ensemble and its student."""
    return collect(ctx, run_ipet(ctx), "ipet")


def collect(ctx: RunContext, done: Artifact, method: str) -> tuple[dict[str, Score], list[Artifact]]:
    """Scores and artifacts of a run, whose store may have been moved since: the last two parts of a path are good."""
    summary = done.read_json("summary.json")
    paths = [Path(path) for of_stage in summary["artifacts"].values() for path in of_stage]
    made = [ctx.store.open(ctx.store.root / path.parent.name / path.name) for path in paths]
    scores = summary["scores"]
    return {f"{method}-ensemble": scores["ensemble"], method: scores["student"]}, [*made, done]


RUNNERS: dict[Method, Callable[[RunContext], tuple[dict[str, Score], list[Artifact]]]] = {
    "zero-shot": run_zero_shot,
    "supervised": run_supervised,
    "pet": run_pet,
    "ipet": run_generations,
}
