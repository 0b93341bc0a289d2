"""`pet report`: one run as an HTML page."""

from pathlib import Path

import click

from pet.cli.options import shared
from pet.errors import SettingsError


@click.command()
@click.argument("run")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="The page, replaced if it is there; RUN's name with .html if left out.",
)
@shared("store")
def report(run: str, output: Path | None, store: str) -> None:
    """Write what a RUN found as one HTML page that needs nothing else, to look at or to send.

    RUN is a folder, a name in the store, the beginning of an identity, or `last`. The page shows scores, patterns and
    members, soft labels, confusions, calibration, the pool's most disputed texts, settings and costs.

    \b
    Examples:
        pet report last
        pet report bbc-n10-s0-mini-f0b1ce6464a739b1 --output report.html
    """
    from pet.pipeline.runs import open_run
    from pet.store.store import Store
    from pet.tools.reports import html

    found = open_run(run, Store(store))
    output = output or Path(f"{found.path.name}.html")
    if output.suffix.lower() not in (".html", ".htm"):
        raise SettingsError(f"--output {output}: expected the name of a page, one that ends in .html")
    html.write(found, output)
    click.echo(f"report: {output}")
