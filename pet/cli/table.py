"""`pet table`: methods, numbers of labelled texts and seeds, compared."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pet.cli.options import shared
from pet.cli.run import PLACES as RUN_PLACES
from pet.cli.run import flag_overrides, refuse_again, warn_of_code
from pet.errors import SettingsError

if TYPE_CHECKING:
    from pet.config.schema import Settings

PLACES = RUN_PLACES | {"sizes": "table.sizes", "seeds": "table.seeds", "methods": "table.methods"}
"""Flag -> the setting that it sets."""


def numbers(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    """`0,10` as numbers.

    Raises:
        SettingsError: it is something else.
    """
    try:
        return None if text is None else tuple(int(part) for part in text.split(","))
    except ValueError:
        raise SettingsError(
            f"--{parameter.name} got {text!r}; expected whole numbers with commas, such as 0,10,100"
        ) from None


def words(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[str, ...] | None:
    """`supervised,pet` as words."""
    return None if text is None else tuple(text.split(","))


@click.command()
@click.argument("pipeline")
@click.option(
    "--sizes", callback=numbers, help="Numbers of labelled texts, for example 0,10,100.  [default: the pipeline's]"
)
@click.option(
    "--seeds", callback=numbers, help="Seeds, for example 0,1,2; each draws its own texts.  [default: the pipeline's]"
)
@click.option("--methods", callback=words, help="Of zero-shot,supervised,pet,ipet.  [default: the pipeline's]")
@click.option("--data", multiple=True, help="Folder with the task's files; of several tasks TASK=FOLDER, repeated.")
@shared("model", "set", "store")
@click.option("--out", default="results", show_default=True, help="Folder for the table's own folder.")
@click.option("--name", help="Of the table's folder.  [default: the pipeline's]")
@shared("verify", "device", "precision", "executor", "trust")
@click.option("--dry-run", is_flag=True, help="List the runs and stop.")
@shared("verbose")
def table(
    pipeline: str,
    data: tuple[str, ...],
    assignments: tuple[str, ...],
    store: str,
    out: str,
    name: str | None,
    verify: bool,
    dry_run: bool,
    verbose: bool,
    **flags: Any,
) -> None:
    """Compare methods on a PIPELINE, run what is missing, and write the table.

    PIPELINE is a shipped name or a YAML file; its `table` section says which numbers of labelled texts, seeds and
    methods are compared: 0, 10, 50, 100 and 1,000, three seeds and all of them, if it has none.

    Into OUT/NAME/ go table.md, table.csv, table.json and a plot of accuracy against labelled texts for each task (PNG
    and SVG). A run that fails is shown as a hole, the others go on, and the exit code is 1: the same command fills it.

    \b
    Examples:
        pet table agnews --data archives/ag_news_csv
        pet table agnews --data archives/ag_news_csv --sizes 10,100 --seeds 0,1,2,3,4 --methods supervised,pet
    """
    from pet.cli.screen import Screen
    from pet.config.resolve import resolve_tasks
    from pet.pipeline import table as tables
    from pet.pipeline.event_log import open_log
    from pet.store.store import Store
    from pet.tools.reports import plot, table_report
    from pet.training.device import open_runtime

    refuse_again(
        assignments, {"seed": "the seeds of the table (--seeds)", "data.train_examples": "its sizes (--sizes)"}
    )
    settings = resolve_tasks(pipeline, *flag_overrides(flags, PLACES, assignments))
    settings = tables.by_name(with_data(settings, data))
    runs = tables.cells(settings)
    if dry_run:
        for cell in runs:
            click.echo(str(cell))
        click.echo(f"{len(runs)} runs; nothing was run")
        return
    folder = place(out, Path(pipeline).stem if name is None else name)
    kept = Store(store, verify)
    given = {task: one.model_dump(mode="json") for task, one in settings.items()}
    with open_log(kept.root, f"table-{folder.name}", Screen(verbose), given) as log:
        for one in settings.values():
            warn_of_code(log, one.model, one.distill.model, one.baseline.model)
        runtime = open_runtime(next(iter(settings.values())).runtime, log)
        found = table_report.run(settings, kept, runtime, folder, shlex.join(["pet", *without_places(sys.argv[1:])]))
        plot.draw_all(folder, found)
    click.echo((folder / "table.md").read_text(encoding="utf-8"))
    click.echo(f"table: {folder}")
    if found["failed"]:
        sys.exit(1)


def without_places(arguments: list[str]) -> list[str]:
    """The command line for others to read: where store, results and data lie on this machine is nothing to them."""
    kept: list[str] = []
    rest = iter(arguments)
    for one in rest:
        option, equals, value = one.partition("=")
        if option not in ("--store", "--out", "--data"):
            kept.append(one)
            continue
        value = value if equals else next(rest, "")
        if option == "--data":
            task, given, _ = value.rpartition("=")
            kept += [option, f"{task}{given}DIR"]
    return kept


def place(out: str, name: str) -> Path:
    """The table's own folder.

    Raises:
        SettingsError: no folder, or a name that is no name of one.
    """
    if not out:
        raise SettingsError("--out is empty; give the folder for the table's own folder")
    if name in ("", ".", "..") or Path(name).name != name:
        raise SettingsError(f"--name {name!r} is no name of a folder; give one word, such as agnews-2")
    return Path(out) / name


def with_data(settings: "dict[str, Settings]", folders: tuple[str, ...]) -> "dict[str, Settings]":
    """The settings of each task, with the folder of its files: FOLDER of the only task, TASK=FOLDER of one of several.

    Raises:
        SettingsError: a folder of a task that is none of them.
    """
    for given in folders:
        task, _, folder = given.rpartition("=")
        if len(settings) == 1 and (not task or Path(given).is_dir()):
            task, folder = next(iter(settings)), given
        if task not in settings:
            raise SettingsError(f"--data {given!r}: expected TASK=FOLDER with one of the tasks {', '.join(settings)}")
        place = settings[task].task.model_copy(update={"data": folder})
        settings = settings | {task: settings[task].model_copy(update={"task": place})}
    return settings
