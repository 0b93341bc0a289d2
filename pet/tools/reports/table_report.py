"""What the runs of a table come to: a line a task, size and row, with the test of it and the paper's number; and files.

table.csv (a line a run), table.json (everything) and table.md (for people) are written at the end, each put in place
whole. `plot` draws from what table.json has. Nothing here runs anything but `table.make`.
"""

import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean
from typing import Any

from pet.algorithms.metrics import describe_absent, holm, paired_p, spread
from pet.config.schema import Settings
from pet.errors import StoreError
from pet.pipeline.summary import markdown_row
from pet.pipeline.table import Table, applies, check_all, make
from pet.store.environment import code_state
from pet.store.files import new_file, write_json
from pet.store.store import Store
from pet.tasks.card import TaskCard, load_card
from pet.tasks.writers import as_text, delimited_line
from pet.tools.rendering import render
from pet.tools.reports import paper_numbers
from pet.training.device import Runtime

SIGNIFICANT = 0.05
UNKNOWN = {"mean": None, "deviation": None, "low": None, "high": None}

NAMES = {
    "zero-shot": "zero-shot: patterns untuned, pooled (paper: their mean)",
    "probe": "supervised: linear probe",
    "supervised": "supervised: fine-tuned",
    "supervised-even": "supervised: fine-tuned, shares even",
    "pet-ensemble": "PET, not distilled",
    "pet": "PET",
    "ipet-ensemble": "iPET, not distilled",
    "ipet": "iPET",
}
"""Rows of a table, in this order."""

SUPERVISED = ("probe", "supervised", "supervised-even")
"""Of them, those that nothing but labelled texts went into."""


def summarise(table: Table, settings: Mapping[str, Settings]) -> list[dict[str, Any]]:
    """A line a task, size and row: values by seed; mean, deviation and interval where no seed is missing; Student's
    paired test against the fine-tuned classifier of the same draws, Holm-corrected over the whole table; the paper's
    number."""
    lines = []
    for task, size, row in wanted_rows(settings):
        seeds = settings[task].table.seeds
        found = values(table, task, size, row)
        base = {} if row in SUPERVISED else values(table, task, size, comparison(settings[task]))
        ours = [found[seed] for seed in seeds if seed in found]
        theirs = [base[seed] for seed in seeds if seed in base]
        complete, comparable = len(ours) == len(seeds), len(ours) == len(theirs) == len(seeds)
        number = paper_numbers.find(task, size, row)
        lines.append(
            {
                "task": task,
                "labels": size,
                "row": row,
                "values": {str(seed): found.get(seed) for seed in seeds},
                **(asdict(spread(ours)) if complete else UNKNOWN),
                "gain": mean(ours) - mean(theirs) if comparable else None,
                "p": paired_p(ours, theirs) if comparable else None,
                "paper": {"mean": number[0], "deviation": number[1], "model": paper_numbers.BACKBONE}
                if number
                else None,
            }
        )
    for line, chance in zip(lines, holm([one["p"] for one in lines]), strict=True):
        line["p_holm"] = chance
    return lines


def wanted_rows(settings: Mapping[str, Settings]) -> Iterator[tuple[str, int, str]]:
    """Task, size and row of every line, in the table's order."""
    for task, chosen in settings.items():
        of_method = {
            "zero-shot": ("zero-shot",),
            "supervised": ("probe", "supervised", comparison(chosen)),
            "pet": ("pet-ensemble", "pet"),
            "ipet": ("ipet-ensemble", "ipet"),
        }
        for size in chosen.table.sizes:
            rows = {
                row for method in chosen.table.methods if applies(method, size, chosen) for row in of_method[method]
            }
            yield from ((task, size, row) for row in NAMES if row in rows)


def comparison(settings: Settings) -> str:
    """The row that others are tested against: the baseline that is told as much of the labels' shares as they are."""
    return "supervised-even" if settings.label.shares == "even" else "supervised"


def values(table: Table, task: str, size: int, row: str) -> dict[int, float]:
    """Seed -> value."""
    wanted = (task, size, row)
    return {one["seed"]: one["value"] for one in table.runs if (one["task"], one["labels"], one["row"]) == wanted}


def describe(table: Table, settings: Mapping[str, Settings], name: str, command: str, seconds: float) -> dict[str, Any]:
    """table.json."""
    manifests = [one.manifest for one in table.artifacts.values()]
    return {
        "name": name,
        "tasks": {task: describe_task(chosen, table.texts.get(task, [])) for task, chosen in settings.items()},
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


def describe_task(settings: Settings, sizes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a task's numbers are of, with the least and the most texts of its splits; `sizes`: of every run."""
    texts = {name: [one[name] for one in sizes] for name in ("pool", "test")}
    backbone = Path(settings.model.name).name
    started = {"student": settings.distill.model, "baseline": settings.baseline.model}
    classifiers = {which: Path(model or backbone).name for which, model in started.items()}
    card, _ = load_card(settings.task.name)
    return {
        "metric": card.metric,
        "model": backbone + (", adapted to the pool" if settings.adapt.enabled else ""),
        "recipe": settings.recipe,
        "draw": settings.data.draw,
        "shares": settings.label.shares,
        "classifiers": classifiers if set(classifiers.values()) != {backbone} else None,
        **({"words_from": len(set(card.words_from))} if card.words_from else {}),
        **{name: [min(counts), max(counts)] for name, counts in texts.items() if counts},
        **({"untested": untested} if (untested := describe_untested(card, sizes)) else {}),
    }


def describe_untested(card: TaskCard, runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is to be known of labels that no test text has, one sentence for each set of them; `runs`: texts of each."""
    lacking = Counter(tuple(one["untested"]) for one in runs if one["untested"])
    return [
        f"in {count:,} of {len(runs):,} runs " + describe_absent(names, card.metric, len(card.labels))
        for names, count in lacking.items()
    ]


def write(folder: Path, found: Mapping[str, Any]) -> None:
    """table.json, table.csv and table.md, each put in place whole. A run that failed is a line without a value."""
    holes = [
        {"task": line["task"], "labels": line["labels"], "row": line["row"], "seed": int(seed)}
        for line in found["lines"]
        for seed, value in line["values"].items()
        if value is None
    ]
    columns = ("task", "labels", "row", "seed", "value", "low", "high")
    runs = [columns, *([as_text(one.get(name)) for name in columns] for one in [*found["runs"], *holes])]
    for name, put in (
        ("table.json", lambda path: write_json(path, dict(found))),
        ("table.csv", lambda path: path.write_text("".join(map(delimited_line, runs)), encoding="utf-8", newline="")),
        ("table.md", lambda path: path.write_text(markdown(found), encoding="utf-8")),
    ):
        with new_file(folder / name, remedy="move what is there") as draft:
            put(draft)


def check_place(folder: Path) -> None:
    """Fail now rather than after all runs.

    Raises:
        StoreError: the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as problem:
        raise StoreError(
            f"the folder {folder} cannot be written ({problem.strerror}); give another with --out or --name"
        ) from None


# ---- for people ----------------------------------------------------------------------------------------------------


def markdown(found: Mapping[str, Any]) -> str:
    """table.md."""
    tasks = found["tasks"]
    by_place = {(line["task"], line["labels"], line["row"]): line for line in found["lines"]}
    shown = [task for task in tasks if any(line["task"] == task for line in found["lines"])]
    compared = {line["task"] for line in found["lines"] if line["paper"]}
    head = ["labels", "method"]
    for task in shown:
        head += [
            f"{task}: {tasks[task]['model']}",
            *([f"{paper_numbers.BACKBONE} (paper)"] if task in compared else []),
        ]
    rows = [head, ["---:", "---", *["---:"] * (len(head) - 2)]]
    places = {(line["labels"], line["row"]) for line in found["lines"]}
    for size, row in sorted(places, key=lambda place: (place[0], list(NAMES).index(place[1]))):
        rows.append([f"{size:,}", NAMES[row]])
        for task in shown:
            ours, theirs = show(by_place.get((task, size, row)))
            rows[-1] += [ours, *([theirs] if task in compared else [])]
    return render(
        "table.md.jinja",
        found=found,
        rows=rows,
        markdown_row=markdown_row,
        seeds=len(found["lines"][0]["values"]) if found["lines"] else 0,
        each_draws={one["draw"] for one in tasks.values()} == {"seed"},
        even=[task for task, one in tasks.items() if one["shares"] == "even"],
        significant=SIGNIFICANT,
    )


def show(line: Mapping[str, Any] | None) -> tuple[str, str]:
    """Our number, bold where it is above the fine-tuned classifier by more than chance, and the paper's."""
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
    if line["low"] is not None:
        ours += f" ({line['low']:.1f} to {line['high']:.1f})"
    above = line["p_holm"] is not None and line["p_holm"] < SIGNIFICANT and line["gain"] > 0
    return f"**{ours}**" if above else ours, theirs


def run(settings: Mapping[str, Settings], store: Store, runtime: Runtime, folder: Path, command: str) -> dict[str, Any]:
    """Run what is missing and write the table into `folder`; what table.json has."""
    begun = time.perf_counter()
    check_all(settings, store, runtime)
    check_place(folder)
    table = make(settings, store, runtime)
    found = describe(table, settings, folder.name, command, time.perf_counter() - begun)
    write(folder, found)
    return found
