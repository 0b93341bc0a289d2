"""The few-shot table: methods, numbers of labelled texts and seeds compared, every run a walk through the store.

What is there is reused; a run that failed is a hole that is shown and makes its mean unknown. Writes table.csv (a line
a run), table.json (everything) and table.md (for people) at once at the end; `plot` draws from the same numbers.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean
from typing import Any

import pandas

from pet import published
from pet.artifacts import Artifact, Store, code_state, write_json
from pet.errors import PetError, SettingsError, StoreError
from pet.ipet import run_ipet
from pet.metrics import holm, paired_p, spread
from pet.pipeline import adapt_model, check, run_stage
from pet.runtime import Runtime
from pet.settings import Method, Settings
from pet.stages import baseline, draw, evaluate, finetune, prepare
from pet.stages.work import Work
from pet.tasks import load_card

Score = Mapping[str, float]

SIGNIFICANT = 0.05
UNKNOWN = {"mean": None, "deviation": None, "low": None, "high": None}

NAMES = {
    "zero-shot": "zero-shot: patterns untuned, pooled",
    "probe": "supervised: linear probe",
    "supervised": "supervised: fine-tuned",
    "pet-ensemble": "PET, not distilled",
    "pet": "PET",
    "ipet-ensemble": "iPET, not distilled",
    "ipet": "iPET",
}
"""Rows of a table, in this order."""


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
    """What came out. `runs`: a line a run and row; `texts`: sizes of each task's splits; `problems`: runs that failed,
    and why."""

    runs: list[dict[str, Any]] = field(default_factory=list)
    texts: dict[str, list[dict[str, int]]] = field(default_factory=dict)
    problems: list[tuple[Cell, str]] = field(default_factory=list)
    artifacts: dict[str, Artifact] = field(default_factory=dict)


def by_name(settings: Mapping[str, Settings]) -> dict[str, Settings]:
    """The settings of each task by its card's own name.

    Raises:
        SettingsError: two cards have one name.
        TaskError: a card is unusable.
    """
    found: dict[str, Settings] = {}
    for chosen in settings.values():
        name = load_card(chosen.task.name)[0].name
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


def open_cell(cell: Cell, settings: Mapping[str, Settings], store: Store, runtime: Runtime) -> Work:
    """The walk of one run."""
    chosen = settings[cell.task]
    data = chosen.data.model_copy(update={"train_examples": cell.size})
    light = chosen.runtime.model_copy(update={"keep_members": False})  # hundreds of them
    return Work(chosen.model_copy(update={"seed": cell.seed, "data": data, "runtime": light}), store, runtime)


def check_all(settings: Mapping[str, Settings], store: Store, runtime: Runtime) -> None:
    """Refuse what no run of a task could do with.

    Raises:
        StoreError, SettingsError, TaskError, ModelError: as `pipeline.check`; or the task's texts cannot be read.
    """
    wanted = cells(settings)
    for task in settings:
        work = open_cell(next(one for one in wanted if one.task == task), settings, store, runtime)
        check(work)
        assert work.source  # that it can be read


def make(settings: Mapping[str, Settings], store: Store, runtime: Runtime) -> Table:
    """Run what is missing, and collect. A run that fails is told, and the next one is begun."""
    wanted = cells(settings)
    table = Table()
    for number, cell in enumerate(wanted, 1):
        runtime.reporter.say(f"table: {cell} ({number} of {len(wanted)})")
        try:
            scores, made = RUNNERS[cell.method](open_cell(cell, settings, store, runtime))
        except (PetError, RuntimeError, MemoryError) as problem:
            table.problems.append((cell, " ".join(str(problem).split()) or type(problem).__name__))
            runtime.reporter.say(f"table: failed: {table.problems[-1][1]}")
            continue
        table.artifacts |= {one.identity: one for one in made}
        table.texts.setdefault(cell.task, []).append(prepare.sizes(made[0]))
        for row, score in scores.items():
            table.runs.append({"task": cell.task, "labels": cell.size, "seed": cell.seed, "row": row, **score})
    return table


# ---- one run -------------------------------------------------------------------------------------------------------


def begin(work: Work) -> tuple[Artifact, list[Artifact]]:
    """The splits, and what has been made so far; the walk starts from the adapted model if it is to."""
    prepared = prepare.run(work)
    adapted = adapt_model(work, prepared, here=True)
    return prepared, [prepared, *([adapted] if adapted else [])]


def run_zero_shot(work: Work) -> tuple[dict[str, Score], list[Artifact]]:
    """The untuned patterns."""
    prepared, made = begin(work)
    members = finetune.run(work, prepared)
    return {"zero-shot": evaluate.score_untuned(work, prepared, members)}, [*made, *members.tuned]


def run_supervised(work: Work) -> tuple[dict[str, Score], list[Artifact]]:
    """Both baselines."""
    prepared, made = begin(work)
    base = baseline.run(work, prepared)
    return dict(evaluate.score_baseline(work, prepared, base)), [*made, base]


def run_pet(work: Work) -> tuple[dict[str, Score], list[Artifact]]:
    """The ensemble and its student."""
    done = run_stage(work, "all")
    assert done is not None
    return collect(work, done, "pet")


def run_generations(work: Work) -> tuple[dict[str, Score], list[Artifact]]:
    """The last generation's ensemble and its student."""
    return collect(work, run_ipet(work), "ipet")


def collect(work: Work, done: Artifact, method: str) -> tuple[dict[str, Score], list[Artifact]]:
    """Scores and artifacts of a run."""
    summary = done.read_json("summary.json")
    made = [work.store.open(Path(path)) for paths in summary["artifacts"].values() for path in paths]
    scores = summary["scores"]
    return {f"{method}-ensemble": scores["ensemble"], method: scores["student"]}, [*made, done]


RUNNERS: dict[Method, Callable[[Work], tuple[dict[str, Score], list[Artifact]]]] = {
    "zero-shot": run_zero_shot,
    "supervised": run_supervised,
    "pet": run_pet,
    "ipet": run_generations,
}


# ---- what it comes to ----------------------------------------------------------------------------------------------


def summarise(table: Table, settings: Mapping[str, Settings]) -> list[dict[str, Any]]:
    """A line a task, size and row: values by seed; mean, deviation and interval where no seed is missing; Student's
    paired test against the fine-tuned classifier of the same draws, Holm-corrected over the whole table; the paper's
    number."""
    lines = []
    for task, size, row in wanted_rows(settings):
        seeds = settings[task].table.seeds
        found = values(table, task, size, row)
        base = values(table, task, size, "supervised") if row not in ("supervised", "probe") else {}
        ours = [found[seed] for seed in seeds if seed in found]
        theirs = [base[seed] for seed in seeds if seed in base]
        complete, comparable = len(ours) == len(seeds), len(ours) == len(theirs) == len(seeds)
        number = published.find(task, size, row)
        lines.append(
            {
                "task": task,
                "labels": size,
                "row": row,
                "values": {str(seed): found.get(seed) for seed in seeds},
                **(asdict(spread(ours)) if complete else UNKNOWN),
                "gain": mean(ours) - mean(theirs) if comparable else None,
                "p": paired_p(ours, theirs) if comparable else None,
                "paper": {"mean": number[0], "deviation": number[1], "model": published.BACKBONE} if number else None,
            }
        )
    for line, chance in zip(lines, holm([one["p"] for one in lines]), strict=True):
        line["p_holm"] = chance
    return lines


def wanted_rows(settings: Mapping[str, Settings]) -> Iterator[tuple[str, int, str]]:
    """Task, size and row of every line, in the table's order."""
    of_method = {
        "zero-shot": ("zero-shot",),
        "supervised": ("probe", "supervised"),
        "pet": ("pet-ensemble", "pet"),
        "ipet": ("ipet-ensemble", "ipet"),
    }
    for task, chosen in settings.items():
        for size in chosen.table.sizes:
            rows = {
                row for method in chosen.table.methods if applies(method, size, chosen) for row in of_method[method]
            }
            yield from ((task, size, row) for row in NAMES if row in rows)


def values(table: Table, task: str, size: int, row: str) -> dict[int, float]:
    """Seed -> value."""
    wanted = (task, size, row)
    return {one["seed"]: one["value"] for one in table.runs if (one["task"], one["labels"], one["row"]) == wanted}


def describe(table: Table, settings: Mapping[str, Settings], name: str, command: str, seconds: float) -> dict[str, Any]:
    """table.json."""
    manifests = [one.manifest for one in table.artifacts.values()]
    first = next(iter(settings.values()))
    return {
        "name": name,
        "model": first.model.name,
        "adapted": first.adapt.enabled,
        "metrics": {task: load_card(one.task.name)[0].metric for task, one in settings.items()},
        "texts": {task: {name: ends(sizes, name) for name in ("pool", "test")} for task, sizes in table.texts.items()},
        "recipe": first.recipe,
        "draw": first.data.draw,
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "code": code_state(),
        "devices": sorted({one["device"] for one in manifests if "device" in one}),
        "seconds": round(seconds, 1),
        "artifact_seconds": round(sum(one["seconds"] for one in manifests), 1),
        "lines": summarise(table, settings),
        "runs": table.runs,
        "failed": [{**asdict(cell), "problem": problem} for cell, problem in table.problems],
    }


def ends(sizes: Sequence[Mapping[str, int]], name: str) -> list[int]:
    """The least and the most texts of a split."""
    return [min(one[name] for one in sizes), max(one[name] for one in sizes)]


def write(folder: Path, found: Mapping[str, Any]) -> None:
    """table.json, table.csv and table.md, each put in place whole."""
    runs = pandas.DataFrame(found["runs"], columns=["task", "labels", "row", "seed", "value", "low", "high"])
    for name, put in (
        ("table.json", lambda path: write_json(path, dict(found))),
        ("table.csv", lambda path: runs.to_csv(path, index=False)),
        ("table.md", lambda path: path.write_text(markdown(found), encoding="utf-8")),
    ):
        draft = folder / f".{name}.draft"
        try:
            put(draft)
            draft.replace(folder / name)
        except OSError as problem:
            raise StoreError(f"{folder / name} cannot be written ({problem.strerror}); move what is there") from None
        finally:
            draft.unlink(missing_ok=True)


def check_place(folder: Path) -> None:
    """Fail now rather than after all runs.

    Raises:
        StoreError: the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as problem:
        raise StoreError(
            f"the folder {folder} cannot be written ({problem.strerror}); give another with --out or --name"
        ) from None


# ---- for people ----------------------------------------------------------------------------------------------------


def markdown(found: Mapping[str, Any]) -> str:
    """table.md."""
    tasks = list(dict.fromkeys(line["task"] for line in found["lines"]))
    by_place = {(line["task"], line["labels"], line["row"]): line for line in found["lines"]}
    places = list(dict.fromkeys((line["labels"], line["row"]) for line in found["lines"]))
    places.sort(key=lambda place: (place[0], list(NAMES).index(place[1])))
    model = Path(found["model"]).name + (", adapted to the pool" if found["adapted"] else "")
    compared = {line["task"] for line in found["lines"] if line["paper"]}
    head = ["labels", "method"]
    for task in tasks:
        head += [f"{task}: {model}", *([f"{published.BACKBONE} (paper)"] if task in compared else [])]
    lines = [f"# {found['name']}", "", join(head), join(["---:", "---", *["---:"] * (len(head) - 2)])]
    for size, row in places:
        shown = []
        for task in tasks:
            ours, theirs = show(by_place.get((task, size, row)))
            shown += [ours, *([theirs] if task in compared else [])]
        lines.append(join([f"{size:,}", NAMES[row], *shown]))
    return "\n".join([*lines, "", *notes(found)]) + "\n"


def join(parts: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(parts)} |"


def show(line: Mapping[str, Any] | None) -> tuple[str, str]:
    """Our number and the paper's."""
    if line is None:
        return "", ""
    paper = line["paper"]
    theirs = f"{paper['mean']:.1f} ± {paper['deviation']:.1f}" if paper else ""
    missing = [seed for seed, value in line["values"].items() if value is None]
    if missing:
        return f"FAILED: seed {', '.join(missing)}", theirs
    ours = f"{line['mean']:.1f}"
    if line["deviation"] is not None:
        ours += f" ± {line['deviation']:.1f}"
    if line["deviation"]:  # where all seeds agree, there is nothing to estimate an interval from
        ours += f" ({line['low']:.1f} to {line['high']:.1f})"
    return f"**{ours}**" if is_significant(line) else ours, theirs


def is_significant(line: Mapping[str, Any]) -> bool:
    """Whether it is above the fine-tuned classifier by more than chance."""
    return line["p_holm"] is not None and line["p_holm"] < SIGNIFICANT and line["gain"] > 0


def notes(found: Mapping[str, Any]) -> list[str]:
    """What a reader must know, a paragraph each."""
    seeds = len(found["lines"][0]["values"]) if found["lines"] else 0
    code = found["code"] or {}
    commit = (
        f"commit {code['commit'][:7]}{' with changes' if code['dirty'] else ''}" if code else "an installed package"
    )
    draws = "each a draw of its own" if found["draw"] == "seed" else "all on the same texts"
    lines = [
        "; ".join(
            f"{task}: {found['metrics'][task]} in percent, {between(texts['test'])} test and {between(texts['pool'])} "
            "unlabelled texts"
            for task, texts in found["texts"].items()
        ),
        f"Mean ± standard deviation over {seeds} seed{'s' * (seeds != 1)}, {draws}, and the 95 % interval of the mean "
        "(Student's t).",
        f"`{found['command']}`, {found['date'][:10]}, {commit}, on {', '.join(found['devices']) or 'no device'}; this "
        f"call took {found['seconds']:,.0f} s, everything that the table rests on {found['artifact_seconds']:,.0f} s.",
    ]
    if any(line["p"] is not None for line in found["lines"]):
        lines[1] += (
            " Bold: above the fine-tuned classifier of the same draws (paired t-test, "
            f"p < {SIGNIFICANT} after Holm's correction over the whole table)."
        )
    lines += [
        f"FAILED: {one['task']}, {one['size']:,} labelled texts, seed {one['seed']}, {one['method']}: {one['problem']}"
        for one in found["failed"]
    ]
    return [part for line in lines if line for part in (line, "")][:-1]


def between(found: Sequence[int]) -> str:
    """A number, or the least and the most."""
    least, most = found
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def run(settings: Mapping[str, Settings], store: Store, runtime: Runtime, folder: Path, command: str) -> dict[str, Any]:
    """Run what is missing and write the table into `folder`; what table.json has."""
    begun = time.perf_counter()
    check_all(settings, store, runtime)
    check_place(folder)
    table = make(settings, store, runtime)
    found = describe(table, settings, folder.name, command, time.perf_counter() - begun)
    write(folder, found)
    return found
