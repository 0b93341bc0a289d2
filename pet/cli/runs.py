"""`pet runs`: what a store holds, run by run."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from pet.cli.options import Command, shared
from pet.errors import StoreError

if TYPE_CHECKING:
    from pet.pipeline.runs import Run
    from pet.store.store import Artifact

store_option = click.option(
    "--store", callback=lambda context, parameter, store: store or context.obj, help="Folder of all artifacts."
)
"""--store of a subcommand; left out, it is the one given to `pet runs`."""


def removal_options(command: Command) -> Command:
    """Give a command what one takes that removes something."""
    dry_run = click.option("--dry-run", is_flag=True, help="Show what would be removed and stop.")
    return click.option("--yes", is_flag=True, help="Do not ask.")(dry_run(store_option(command)))


@click.group(invoke_without_command=True)
@shared("store")
@click.pass_context
def runs(ctx: click.Context, store: str) -> None:
    """List the runs of a store, the newest last, or look after one.

    \b
    Examples:
        pet runs
        pet runs show last
        pet runs rm bbc-n10-s0-mini-f0b1ce6464a739b1 --dry-run
        pet runs verify
        pet runs gc --dry-run
    """
    ctx.obj = store
    if ctx.invoked_subcommand is None:
        show_runs(store)


def show_runs(store: str) -> None:
    """A line a run; what is damaged is named and passed over."""
    from pet.pipeline.runs import damaged_runs, list_runs
    from pet.store.store import Store

    found = list_runs(Store(store))
    for problem in damaged_runs(Store(store)):
        click.echo(f"Warning: {problem}", err=True)
    if not found:
        click.echo(f"{store} has no runs; make one with `pet run`")
        return
    head = ("run", "task", "labels", "model", "seed", "student, 95 % interval", "made (UTC)")
    click.echo(align([head, *map(describe, found)]))


@runs.command()
@click.argument("run")
@store_option
def show(run: str, store: str) -> None:
    """Show the scores of a RUN, its artifacts, their sizes, and what else needs them.

    \b
    Example:
        pet runs show last
    """
    from pet.cli.screen import Screen
    from pet.store.gc import name_of, read_graph

    found = find(run, store)
    Screen().show_summary(found.summary, str(found.path))
    rows = [
        (name_of(one), show_size([one]), ", ".join(map(name_of, users)))
        for one, users in read_graph(found.store).belonging(found.artifact.identity)
    ]
    click.echo("\n" + align([("artifact", "size", "needed by others"), *rows]))


@runs.command()
@click.argument("run")
@removal_options
def rm(run: str, yes: bool, dry_run: bool, store: str) -> None:
    """Remove a RUN and those of its artifacts that nothing else in the store needs.

    Not while another run is being made in the same store: what it is about to reuse may be among them.

    \b
    Examples:
        pet runs rm last --dry-run
        pet runs rm bbc-n10-s0-mini-f0b1ce6464a739b1 --yes
    """
    from pet.store.gc import name_of, read_graph, removable, remove, sweep
    from pet.store.store import Store

    if not dry_run:
        sweep(Store(store))
    found = find(run, store)
    graph = read_graph(found.store)
    gone = removable(graph, found.artifact.identity)
    kept = len(graph.closure(found.artifact.identity)) - len(gone)
    rows = [(name_of(one), show_size([one])) for one in gone]
    total = show_size(gone)
    click.echo(align([("artifact", "size"), *rows]))
    click.echo(f"{count(gone)}, {total}" + (f"; {kept} more stay, as others need them" if kept else ""))
    if not is_meant(dry_run, yes):
        return
    remove(found.store, gone)
    click.echo(f"removed {count(gone)}, {total}")


@runs.command()
@removal_options
def gc(yes: bool, dry_run: bool, store: str) -> None:
    """Remove what killed processes and damaged artifacts have left in the store.

    What a process is at is left alone. A training that was begun and saved would be gone on with by the command that
    began it: removed, it starts anew.

    \b
    Example:
        pet runs gc --dry-run
    """
    from pet.store.gc import leftovers, size_of, sweep_leftovers
    from pet.store.store import Store

    found = leftovers(Store(store))
    if not found:
        click.echo(f"nothing is left behind in {Store(store).root}")
        return
    rows = [(f"{one.path.parent.name}/{one.path.name}", show_bytes(size_of(one.path)), one.what) for one in found]
    click.echo(align([("left behind", "size", ""), *rows]))
    if not is_meant(dry_run, yes):
        return
    total = show_bytes(sum(size_of(one.path) for one in found))
    sweep_leftovers(Store(store), found)
    click.echo(f"removed {total}")


@runs.command("list")
@store_option
def list_all(store: str) -> None:
    """List the runs, as `pet runs` alone does.

    \b
    Example:
        pet runs list --store runs
    """
    show_runs(store)


@runs.command()
@click.argument("run", required=False)
@store_option
def verify(run: str | None, store: str) -> None:
    """Read every file of a RUN's artifacts, or of the whole store, and compare it with what was written.

    Names files that are damaged, missing or not the artifact's own; exit code 1 if there are any.

    \b
    Examples:
        pet runs verify
        pet runs verify last
    """
    from pet.store import gc as gc_module
    from pet.store.store import Store

    found = None if run is None else find(run, store)
    place = found.store if found else Store(store)
    graph = gc_module.read_graph(place)
    damaged, chosen = ([], graph.closure(found.artifact.identity)) if found else (graph.damaged, graph.artifacts)
    for problem in damaged:
        click.echo(problem)
    checked, wrong = graph.sort(chosen), len(damaged)
    for artifact, problems in gc_module.verify(graph, checked):
        wrong += len(problems)
        for problem in problems:
            click.echo(f"{gc_module.name_of(artifact)}: {problem}")
    click.echo(
        f"{count(checked)}, {show_size(checked)} read in {place.root}: {wrong or 'no'} problem{'s' * (wrong != 1)}"
    )
    if wrong:
        sys.exit(1)


def find(run: str, store: str) -> "Run":
    """A run by what was typed."""
    from pet.pipeline.runs import open_run
    from pet.store.store import Store

    return open_run(run, Store(store))


def is_meant(dry_run: bool, yes: bool) -> bool:
    """Whether what was listed is to be removed; exit code 1 for who is asked and says no."""
    if not dry_run and (yes or click.confirm("Remove?")):
        return True
    click.echo("nothing was removed")
    if not dry_run:
        sys.exit(1)
    return False


def describe(run: "Run") -> tuple[str, ...]:
    """The row of a run."""
    try:
        summary = run.summary
    except StoreError:
        return (run.path.name, "summary.json is damaged", "", "", "", "", "")
    score = summary["scores"]["student"]
    return (
        run.path.name,
        summary["task"],
        str(summary["train_examples"]),
        summary["model"],
        str(summary["seed"]),
        f"{score['value']:.1f} ({score['low']:.1f} to {score['high']:.1f}) {summary['metric']}",
        str(run.artifact.manifest["created"])[:16].replace("T", " "),
    )


def show_size(artifacts: "Sequence[Artifact]") -> str:
    """Their size together."""
    from pet.store.gc import size_of

    return show_bytes(sum(size_of(one.path) for one in artifacts))


def show_bytes(size: int) -> str:
    """A size for people."""
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"


def count(artifacts: "Sequence[Artifact]") -> str:
    """How many."""
    return f"{len(artifacts)} artifact{'s' * (len(artifacts) != 1)}"


def align(rows: Sequence[Sequence[str]]) -> str:
    """Columns; never cut or wrapped, so that names can be copied."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
