"""`pet tasks`: the task cards that pet carries, and one card as a person reads it."""

from typing import TYPE_CHECKING

import click

from pet.cli.group import PetGroup

if TYPE_CHECKING:
    from pet.tasks.card import Source, TaskCard


@click.group(cls=PetGroup, invoke_without_command=True)
@click.pass_context
def tasks(ctx: click.Context) -> None:
    """List the task cards that pet carries, or show one.

    \b
    Examples:
        pet tasks
        pet tasks show bbc
        pet tasks show mails/task.yaml
    """
    if ctx.invoked_subcommand is None:
        list_cards()


@tasks.command()
@click.argument("name")
def show(name: str) -> None:
    """Show the card NAME (shipped, or the path of a task.yaml): its labels, patterns, words and texts.

    \b
    Example:
        pet tasks show agnews
    """
    from pet.cli.screen import Screen
    from pet.config.shipped import find_file
    from pet.errors import TaskError
    from pet.tasks.card import load_card
    from pet.tools.rendering import render

    card, _ = load_card(name)
    path = find_file("data", name, TaskError)
    Screen().out.print(render("task.txt.jinja", card=card, path=path, sources=sources_of(card)), end="")


def list_cards() -> None:
    """One row a card."""
    from rich.table import Table

    from pet.cli.screen import Screen
    from pet.config.shipped import shipped_names
    from pet.tasks.card import load_card

    table = Table()
    for column in ("name", "title", "labels", "patterns", "texts from"):
        table.add_column(column, justify="right" if column in ("labels", "patterns") else "left")
    for name in shipped_names("data"):
        card, _ = load_card(name)
        kinds = " or ".join(kind for kind, _ in sources_of(card))
        table.add_row(name, card.title, str(len(card.labels)), str(len(card.patterns)), kinds)
    out = Screen().out
    out.print(table)
    out.print("pet tasks show NAME shows one of them; pet run quick --task NAME runs it")


def sources_of(card: "TaskCard") -> "list[tuple[str, Source]]":
    """What the card names, as a person calls it."""
    named: list[tuple[str, Source | None]] = [
        ("--data files" if card.hub else "files", card.files),
        ("package" if card.folder and card.folder.package else "folder", card.folder),
        ("hub", card.hub),
    ]
    return [(kind, source) for kind, source in named if source is not None]
