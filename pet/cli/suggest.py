"""`pet suggest`: which pool texts to label next."""

import shlex
from pathlib import Path

import click

from pet.cli.options import shared

METHODS = ("disagreement", "random")


@click.command()
@click.argument("run")
@click.option("-n", "count", type=click.IntRange(min=1), default=20, show_default=True, help="Number of texts.")
@click.option("--method", type=click.Choice(METHODS), default=METHODS[0], show_default=True, help="How to choose.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of what is random about it.")
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), required=True, metavar="FILE", help="The CSV to write."
)
@shared("store")
def suggest(run: str, count: int, method: str, seed: int, output: Path, store: str) -> None:
    """Write the pool texts of RUN that are most worth a label to a CSV file, to be filled in.

    RUN is a run's folder, its name, the beginning of its identity, or `last`. `disagreement` takes texts that the
    members disagree about most (Jensen-Shannon divergence), spread over different contents; `random` is what it is to
    be compared with. Neither takes a text that nearly repeats another one or a labelled text.

    Fill in the column `label` (rows left empty are skipped) and give the file back with --train-file. Keep the columns
    of texts: an id may be a row number of the task's file, and by its text a row finds its way when others were
    inserted since.

    \b
    Examples:
        pet suggest last -n 20 --output to_label.csv
        pet run --train-file to_label.csv
    """
    from pet.pipeline.runs import open_run
    from pet.store.store import Store
    from pet.tools.inference.suggest import refuse_existing, write_suggestions
    from pet.tools.inference.suggest import suggest as choose

    refuse_existing(output)
    found = open_run(run, Store(store))
    chosen = choose(found, count, method, seed)
    write_suggestions(output, chosen)
    if len(chosen.texts) < count:
        click.echo(f"the pool has only {len(chosen.texts)} texts that repeat neither each other nor a labelled one")
    click.echo(f"{output}: {len(chosen.texts)} texts; write one of {', '.join(found.labels)} into the column label")
    again = "ipet" if "generations" in found.summary else "run"
    files = [*found.settings.data.train_files, str(output)]
    words = [
        "pet",
        again,
        str(found.path / "settings.yaml"),
        *(part for one in files for part in ("--train-file", one)),
    ]
    click.echo(f"then: {shlex.join([*words, '--store', str(found.store.root)])}")
