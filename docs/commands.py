"""Writes commands.md beside this file from what `--help` says: `make docs`. A test says when it is stale."""

from collections.abc import Iterator
from pathlib import Path

import click

from pet.cli import main

WIDTH = 90
HEAD = """# Commands

What `--help` says, written by `make docs`.
"""


def commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    """A command and all below it, by their full names, in the order in which help lists them."""
    yield name, command
    if isinstance(command, click.Group):
        for word in command.list_commands(click.Context(command)):
            yield from commands(command.commands[word], f"{name} {word}")


def reference() -> str:
    """The page."""
    parts = [HEAD]
    for name, command in commands(main, "pet"):
        context = click.Context(command, info_name=name, terminal_width=WIDTH, help_option_names=["-h", "--help"])
        parts.append(f"## {name}\n\n```\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    (Path(__file__).parent / "commands.md").write_text(reference(), encoding="utf-8")
