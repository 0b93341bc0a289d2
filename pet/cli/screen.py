"""What a person sees while a run goes on: lines, progress bars with rate and time left, and the table at the end."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from pet.pipeline import summary as summary_module
from pet.pipeline.runner import Step
from pet.pipeline.trackers import Tracker
from pet.training.reporter import Advance, Reporter, events


class Rate(ProgressColumn):
    """Units per second."""

    def render(self, task: Task) -> Text:
        """For example: 57.3 text/s."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} {task.fields['unit']}/s", style="progress.data.speed")


class Screen(Reporter):
    """A reporter for the terminal: messages and bars on standard error (no bars if it is no terminal), numbers to the
    tracker, and with `verbose` also to the screen."""

    loggers = (events,)

    def __init__(self, verbose: bool = False) -> None:
        # Names and paths are shown as they are: `[a]` is no markup, `:b:` no emoji.
        self.err = Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)
        self.out = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
        self.verbose = verbose
        self.tracker: Tracker | None = None
        self._bars: Progress | None = None

    def say(self, message: str) -> None:
        """One line."""
        super().say(message)
        self.err.print(Text(message))

    def warn(self, message: str) -> None:
        """One line that stands out."""
        super().warn(message)
        self.err.print(Text(f"Warning: {message}", style="yellow"))

    @contextlib.contextmanager
    def bar(self, label: str, total: int, unit: str) -> Iterator[Advance]:
        """A bar that disappears when it is full; several at a time stand below each other."""
        bars = self._bars = self._bars or self.open_bars()
        task = bars.add_task(label, total=total, unit=unit)
        try:
            yield lambda done: bars.advance(task, done)
        finally:
            bars.refresh()  # what took no time is seen once
            bars.remove_task(task)
            if not bars.tasks:
                bars.stop()
                self._bars = None

    def open_bars(self) -> Progress:
        """A place for bars, shown from now on."""
        columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
        bars = Progress(*columns, console=self.err, transient=True, disable=not self.err.is_terminal)
        bars.start()
        return bars

    def log(self, name: str, values: Mapping[str, float], step: int) -> None:
        """To the tracker."""
        super().log(name, values, step)
        if self.verbose:
            shown = ", ".join(f"{key} {value:.4f}" for key, value in values.items())
            self.err.print(Text(f"  {name} step {step}: {shown}", style="dim"))
        if self.tracker:
            self.tracker.log(name, values, step)

    def show_summary(self, summary: Mapping[str, Any], path: str) -> None:
        """The table of one run."""
        table = Table(title=summary_module.headline(summary), title_justify="left", title_style="bold")
        table.add_column("")
        table.add_column(summary["metric"], justify="right")
        table.add_column("95 % interval", justify="right")
        for name, score in summary_module.score_rows(summary):
            style = "bold" if name == summary_module.NAMES["student"] else ""
            table.add_row(name, f"{score['value']:.1f}", f"{score['low']:.1f} to {score['high']:.1f}", style=style)
        self.out.print(table)
        for line in summary_module.score_notes(summary):
            self.out.print(line)
        if "generations" in summary:
            self.show_generations(summary)
        # The store may have been moved, and older runs name artifacts by where they lay before: the last part is good.
        (student,) = (Path(path).parents[1] / "distill" / Path(one).name for one in summary["artifacts"]["distill"])
        self.out.print(
            f"cost of making it: {summary_module.cost_line(summary)}\nrun: {path}\nstudent: {student / 'student'}"
        )

    def show_generations(self, summary: Mapping[str, Any]) -> None:
        """The table of iPET's generations."""
        table = Table(box=None, pad_edge=False)  # no lines: it must fit 80 columns
        for name in summary_module.GENERATION_COLUMNS:
            table.add_column(name, justify="right", no_wrap=name != "furthest label")
        for row in summary_module.generation_rows(summary):
            table.add_row(*row)
        self.out.print(table)
        for line in summary_module.generation_notes(summary):
            self.out.print(Text(line))

    def show_seeds(self, summaries: Sequence[Mapping[str, Any]]) -> None:
        """The table over several seeds."""
        table = Table(title="over seeds " + ", ".join(str(one["seed"]) for one in summaries), title_justify="left")
        for name in ("", "mean", "std", "per seed"):
            table.add_column(name, justify="right" if name else "left")
        for name, average, deviation, values in summary_module.across_seeds(summaries):
            each = "  ".join(f"{value:.1f}" for value in values)
            table.add_row(name, f"{average:.1f}", f"{deviation:.1f}", each)
        self.out.print(table)

    def show_plan(self, steps: Sequence[Step]) -> None:
        """What --dry-run says."""
        for step in steps:
            missing = "damaged, to be made again" if step.damaged else "to be made"
            state = f"there: {step.found.path}" if step.found else missing
            node = step.node
            self.out.print(Text(f"{node.stage.step:<9} {node.identity}  {node.about}  ({state})"))
        todo = sum(step.found is None for step in steps)
        self.out.print(Text(f"{todo} of {len(steps)} artifacts to be made; nothing was run"))
