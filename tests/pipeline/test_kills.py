"""Killed at any moment of any stage, a run goes on and ends as if nothing had happened; several at once share the work.

In a process of its own that forks: pytest's has threads, and a fork of those is not sound.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.killing import LONG

pytestmark = pytest.mark.slow

KILLS, CROWD = 20, 4
TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `support.killing` finds."""
    folder = tmp_path_factory.mktemp("kills")
    command = [sys.executable, "-m", "support.killing", folder, "--kills", KILLS, "--crowd", CROWD]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=900, check=True, env=env)
    return dict(json.loads(done.stdout))


def test_killed_again_and_again_a_run_ends_with_what_an_undisturbed_one_makes_and_leaves_nothing_else(found):
    assert found["problems"] == []
    assert found["kills"] >= KILLS
    assert set(found["at_work"]) >= LONG, "each was hit while it was made"


def test_of_several_processes_that_want_the_same_at_once_one_makes_each_member_and_all_end_well(found):
    members = {"p0-untuned", "p1-untuned", *(f"{g}p{p}-r{r}" for g in ("", "g1-") for p in (0, 1) for r in (0, 1))}
    expected = {"ipet": members, "lora": {one for one in members if not one.startswith("g1")}}
    for case, crowd in found["crowds"].items():
        assert set(crowd["codes"]) == {0}, case
        assert crowd["made"] == {f"finetune {one}": 1 for one in expected[case.partition(",")[0]]}
        assert crowd["problems"] == []
