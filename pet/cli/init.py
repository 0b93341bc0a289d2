"""`pet init`: a first task card for a file of texts."""

import csv
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pet.tasks.texts import Texts
    from pet.tools.authoring.new_card import Columns, Plan, Survey

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
    from pet.tools.authoring.label_words import propose_words
    from pet.tools.authoring.new_card import (
        Plan,
        check_name,
        choose_columns,
        choose_labels,
        read_input,
        survey,
        write_card,
    )
    from pet.training.device import open_runtime

    check_name(name, out or Path(name))
    table = read_input(source)
    columns = choose_columns(table, text, text_b, label)
    found = survey(table, columns)
    show_survey(source, columns, found)
    named = [one.strip() for one in next(csv.reader([labels], skipinitialspace=True))] if labels else []
    plan = Plan(name, table, columns, choose_labels(found, columns, named, source), model, out or Path(name))
    patterns = [parse_pattern(one, list(columns.fields)) for one in plan.patterns]
    settings = resolve_settings("quick", nest("model.name", model))  # of the run that is proposed below
    runtime = open_runtime(settings.runtime, Screen())
    proposed = propose_words(plan.labels, patterns, plan.texts(), settings.model, runtime)
    path = write_card(plan, proposed)
    click.echo(f"\n{path} written, with {len(patterns)} patterns and these label words:")
    for one, proposal in proposed.words.items():
        whose = {"name": "its name", "parts": "parts of its name", "model": "proposed by the model: have a look"}
        click.echo(f"  {printable(one)}: {', '.join(proposal.words)}  ({whose[proposal.origin]})")
    if len(proposed.read):
        click.echo(
            f"  the labels of {len(proposed.read)} rows were read for these words; the card lists these rows "
            "(words_from), and no run tests on them"
        )
    show_commands(path, plan, proposed.read)


def printable(text: str) -> str:
    """A label on one line, and nothing in it that a terminal obeys."""
    return text if text.isprintable() else repr(text)


def show_survey(path: Path, columns: "Columns", found: "Survey") -> None:
    """What is in the file."""
    for one in columns.guessed:
        click.echo(
            f"column {one!r} is taken for the {'label' if one == columns.label else 'text'} (guessed by its name)"
        )
    click.echo(
        f"{path}: {found.rows:,} rows, {found.rows - found.unlabelled:,} with a label, {found.unlabelled:,} without"
    )
    for number, (label, count) in enumerate(found.labels.items()):
        if number < SHOWN_LABELS:
            click.echo(f"  {printable(label)}: {count:,}")
    if len(found.labels) > SHOWN_LABELS:
        click.echo(f"  and {len(found.labels) - SHOWN_LABELS:,} more labels")
    for unit, (least, median, most) in (("words", found.words), ("characters", found.characters)):
        click.echo(f"  {unit} of a text: {least:,} to {most:,}, half of them up to {median:,}")
    click.echo(f"  empty texts: {len(found.empty):,}; texts that stood before, word for word: {found.repeated:,}")
    if found.disputed:
        click.echo(f"  {found.disputed:,} of those stood there with another label")


def show_commands(path: Path, plan: "Plan", read: "Texts") -> None:
    """What to type next, with numbers that work for this file."""
    from pet.tools.authoring.new_card import propose_sizes

    card, model = shlex.quote(str(path)), shlex.quote(plan.model)
    sizes = propose_sizes(plan.texts(), plan.labels, read)
    wanted = f" --train-examples {sizes[0]} --set data.test={sizes[1]}" if sizes else ""
    click.echo(f"\nNext:\n  pet check {card} --model {model}{wanted}")
    if sizes is None:
        click.echo(
            f"then label some rows in {path.parent / plan.data_name}, two of each label at least: a run needs texts "
            "to learn from and others to be tested on"
        )
        return
    more = "" if plan.model == "mini" else f" --model {model}"
    click.echo(f"  pet run quick --task {card}{more}{wanted}")
    if sizes[0] == 0:
        click.echo("with too few labelled rows to learn from, that asks the model untuned; label two of each at least")
    elif sizes[1] < FEW_TESTS:
        click.echo(
            f"accuracy on so few test texts ({sizes[1]}) says little: label more, or give the card a `test:` file"
        )
