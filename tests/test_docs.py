"""What the pages say is what the program says."""

import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGE = runpy.run_path(str(DOCS / "commands.py"))
COMMANDS = dict(PAGE["commands"](PAGE["main"], "pet"))


def test_the_command_reference_is_what_help_says():
    assert (DOCS / "commands.md").read_text(encoding="utf-8") == PAGE["reference"](), "stale: make docs"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_of_itself_in_its_help(name):
    _, _, examples = (COMMANDS[name].help or "").partition("Example")
    assert f"    {name} " in f"{examples} " or f"    {name}\n" in f"{examples}\n", "no example"
