"""`pet verbalize`: label words for a task."""

import json
import shlex
import textwrap
from pathlib import Path
from typing import Any

import click

from pet.cli.options import MANY, shared
from pet.errors import SettingsError


def one_pattern(context: click.Context, parameter: click.Parameter, text: str) -> tuple[int] | None:
    """The number of a pattern; `None`: all.

    Raises:
        SettingsError: it is neither.
    """
    if text != "all" and not text.isdecimal():
        raise SettingsError(f"--pattern got {text!r}; expected `all` or the number of one of the card's patterns")
    return None if text == "all" else (int(text),)


@click.command()
@click.argument("task")
@shared("model")
@click.option("--words", type=click.IntRange(min=1), default=3, show_default=True, help="Words for each label.")
@click.option("--train-examples", type=int, help="Number of labelled texts.")
@click.option("--train-file", **MANY, help="CSV of texts labelled by hand; may be repeated.")
@click.option("--seed", type=int, help="Seed of the draw.")
@shared("data")
@click.option(
    "--pattern",
    default="all",
    show_default=True,
    callback=one_pattern,
    metavar="all|K",
    help="All patterns together, or one.",
)
@shared("set", "device", "precision")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the task card with the words.",
)
def verbalize(task: str, words: int, assignments: tuple[str, ...], output: Path | None, **flags: Any) -> None:
    """Find label words for TASK (PETAL): those that the untuned model expects in the texts of one label and not in the
    others'.

    TASK is a shipped card or the path of a task.yaml. The labelled texts are those that `pet run quick` would draw;
    pool and test set are not looked at. A word's score is the difference, in nats, of its mean log-odds at the mask
    between the label's texts and all others. The card must have some label words already; its labels will do. Without
    a test file, any of the texts may be drawn for the test set of another seed: the card then lists those whose labels
    were read (words_from), and they are never tested on.

    \b
    Examples:
        pet verbalize bbc
        pet verbalize bbc --train-examples 50 --pattern 2 --output bbc-auto.yaml
        pet run --task bbc-auto.yaml --train-examples 50
    """
    from pet.cli.run import PLACES, flag_overrides, open_context
    from pet.cli.screen import Screen
    from pet.store.store import Store
    from pet.tools.authoring.verbalize import as_yaml, check_output, data_folder, describe, propose, write_card

    if output:
        check_output(output)
    places = PLACES | {"pattern": "finetune.patterns"}
    overrides = flag_overrides({**flags, "task": task}, places, assignments)
    ctx = open_context(Screen(), "quick", overrides, None, Store("runs"))
    found = propose(ctx, words)
    for line in describe(found):
        click.echo(line)
    if output:
        write_card(output, ctx, found)
        data = data_folder(ctx, output)
        sizes = {"--train-examples": flags.get("train_examples"), "--data": data, "--seed": flags["seed"]}
        given = [word for flag, value in sizes.items() if value is not None for word in (flag, str(value))]
        given += [word for one in assignments for word in ("--set", one)]
        example = ["pet", "run", "quick", "--task", str(output), *given]
        click.echo(f"{output}: the card with these words; for example: {shlex.join(example)}")
    else:
        click.echo("\nverbalizers:\n  auto:\n" + textwrap.indent(as_yaml(found.verbalizer), "    "))
        if found.marks:
            click.echo(
                "# The texts whose labels were read: with this in the card they are never test texts.\n"
                f"words_from: {json.dumps(found.marks)}"
            )
