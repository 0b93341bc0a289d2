"""Options that several commands share mean the same everywhere."""

import click
import pytest
from support.rows import pet

from pet.cli import main

WITH_STORE = sorted(name for name, one in main.commands.items() if any(given.name == "store" for given in one.params))


def test_the_commands_that_read_a_store_are_known():
    assert WITH_STORE == ["export", "ipet", "predict", "pretrain", "report", "run", "runs", "suggest", "table"]


@pytest.mark.parametrize("name", WITH_STORE)
def test_a_store_without_a_name_is_refused_by_every_command(name):
    required = [one for one in main.commands[name].params if one.required]
    given = [word for one in required for word in ([] if isinstance(one, click.Argument) else [one.opts[0]]) + ["x"]]
    told = pet(name, *given, "--store", "", code=2)
    assert "Error: --store is empty; give the folder that keeps the artifacts\n" in told.stderr
