"""`pet init`: a first task card for a file of texts."""

import csv
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pet.tools.authoring.label_words import FirstWords
    from pet.tools.authoring.new_card import Plan

SHOWN_LABELS = 20
"""Labels that are listed with their counts; more are only counted."""

FEW_TESTS = 20
"""Test texts below which an accuracy says little: at 20 the 95 % interval of 0.8 is 0.6 to 1."""


@click.command()
@click.argument("name")
@click.option("--input", "source", required=True, type=click.Path(path_type=Path), help="File of the texts.")
@click.option("--text", metavar="COLUMN", help="Column of the text.  [default: guessed from the names]")
@click.option("--text-b", metavar="COLUMN", help="Column of a second text, where a row has two.")
@click.option("--label", metavar="COLUMN", help="Column of the label.  [default: guessed from the names]")
@click.option("--labels", metavar="A,B,...", help="Names of the labels, in this order.  [default: those in the file]")
@click.option("--model", default="mini", show_default=True, help="Masked language model: `mini`, a folder or a hub id.")
@click.option("--out", type=click.Path(path_type=Path), help="New folder for the card.  [default: NAME]")
def init(
    name: str,
    source: Path,
    text: str | None,
    text_b: str | None,
    label: str | None,
    labels: str | None,
    model: str,
    out: Path | None,
) -> None:
    """Write a task card for a file of texts: NAME/task.yaml, to be looked over and then run.

    The file may be CSV, TSV, JSONL or Parquet (each also .gz), or .txt with one text a line. Rows without a label
    are the unlabelled pool. It is copied beside the card, plain lines to texts.csv with a label column to be
    filled. A label's words are its own name where that is one token of the model, else parts of it, else what the
    model proposes: the card says which. For proposals the labels of up to half of the labelled rows are read; the card
    lists these rows (words_from), and no run tests on them.

    \b
    Examples:
        pet init mails --input mails.csv
        pet init mails --input mails.csv --text message --label category --model roberta-large
        pet init notes --input notes.txt --labels complaint,praise
    """
    from pet.cli.screen import Screen
    from pet.config.resolve import nest, resolve_settings
    from pet.tasks.patterns import parse_pattern
    from pet.tools.authoring import new_card
    from pet.tools.authoring.label_words import propose_words
    from pet.tools.rendering import render
    from pet.training.device import open_runtime

    new_card.check_name(name, out or Path(name))
    table = new_card.read_input(source)
    columns = new_card.choose_columns(table, text, text_b, label)
    found = new_card.survey(table, columns)
    about = {"path": source, "columns": columns, "found": found, "shown_labels": SHOWN_LABELS}
    click.echo(render("survey.txt.jinja", printable=printable, repr=repr, **about), nl=False)
    named = [one.strip() for one in next(csv.reader([labels], skipinitialspace=True))] if labels else []
    chosen = new_card.choose_labels(found, columns, named, source)
    plan = new_card.Plan(name, table, columns, chosen, model, out or Path(name))
    patterns = [parse_pattern(one, list(columns.fields)) for one in plan.patterns]
    settings = resolve_settings("quick", nest("model.name", model))  # of the run that is proposed below
    runtime = open_runtime(settings.runtime, Screen())
    proposed = propose_words(plan.labels, patterns, plan.texts(), settings.model, runtime)
    path = new_card.write_card(plan, proposed)
    show_next(path, plan, proposed)


def printable(text: str) -> str:
    """A label on one line, and nothing in it that a terminal obeys."""
    return text if text.isprintable() else repr(text)


def show_next(path: Path, plan: "Plan", proposed: "FirstWords") -> None:
    """The card that was written, and what to type next, with numbers that work for this file."""
    from pet.tools.authoring.new_card import propose_sizes
    from pet.tools.rendering import render

    shown = render(
        "next.txt.jinja",
        path=path,
        plan=plan,
        proposed=proposed,
        sizes=propose_sizes(plan.texts(), plan.labels, proposed.read),
        few_tests=FEW_TESTS,
        printable=printable,
        quote=shlex.quote,
    )
    click.echo(shown, nl=False)
