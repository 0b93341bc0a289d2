"""Pictures of a table: accuracy against the number of labelled texts, one for each task. Draws what it is given."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pet.tools.reports.table_report import NAMES

LINES = {"supervised": "#7f7f7f", "supervised-even": "#bcbd22", "pet": "#1f77b4", "ipet": "#d62728"}
"""Rows that are drawn as lines, and their colours; zero-shot is a point."""

WIDTH, HEIGHT, DOTS = 6.0, 4.0, 150
"""Inches, and dots an inch."""


def draw_all(folder: Path, found: Mapping[str, Any]) -> list[Path]:
    """A PNG and an SVG in `folder` for each task; `found`: what table.json has. Returns the files."""
    tasks = dict.fromkeys(line["task"] for line in found["lines"])
    return [path for task in tasks for path in draw(folder, found, task)]


def draw(folder: Path, found: Mapping[str, Any], task: str) -> list[Path]:
    """The pictures of one task: means over seeds with their standard deviation."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "pet"  # the same numbers give the same file
    from matplotlib import pyplot

    lines = [line for line in found["lines"] if line["task"] == task and line["mean"] is not None]
    sizes = sorted({line["labels"] for line in lines})
    figure, axes = pyplot.subplots(figsize=(WIDTH, HEIGHT))
    for row, colour in {"zero-shot": "black", **LINES}.items():
        points = [line for line in lines if line["row"] == row]
        if points:
            axes.errorbar(
                [sizes.index(line["labels"]) for line in points],
                [line["mean"] for line in points],
                yerr=[line["deviation"] or 0 for line in points],
                marker="o" if row in LINES else "s",
                capsize=3,
                color=colour,
                label=NAMES[row],
            )
    axes.set_xticks(range(len(sizes)), [f"{size:,}" for size in sizes])
    axes.set_xlabel("labelled texts")
    axes.set_ylabel(f"{found['tasks'][task]['metric']} in percent, ± standard deviation")
    # A dollar sign of a name is none of matplotlib's, which would read mathematics there and fail.
    axes.set_title(f"{task} on {found['tasks'][task]['model']}".replace("$", r"\$"))
    axes.grid(alpha=0.3)
    if lines:
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)  # below: it hides nothing
    figure.tight_layout()
    files = []
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        files.append(folder / f"{task}.{kind}")
        figure.savefig(files[-1], dpi=DOTS, metadata=metadata)
    pyplot.close(figure)
    return files
