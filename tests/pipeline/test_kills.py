"""Killed at any moment of any stage, a run goes on and ends as if nothing had happened; several at once share the work.

In a process of its own that forks: pytest's has threads, and a fork of those is not sound.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from support.killing import LONG

KILLS = 27
TESTS = Path(__file__).parents[1]


def run_script(*arguments: object) -> dict[str, Any]:
    """What `support.killing` finds."""
    command = [sys.executable, "-m", "support.killing", *map(str, arguments)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=True, env=env)
    return dict(json.loads(done.stdout))


def test_killed_again_and_again_a_run_ends_with_what_an_undisturbed_one_makes_and_leaves_nothing_else(tmp_path):
    found = run_script(tmp_path, "--kills", KILLS)
    assert found["problems"] == []
    assert found["kills"] >= KILLS
    assert set(found["at_work"]) >= LONG, "each was hit while it was made"


def test_of_several_processes_that_want_the_same_at_once_one_makes_each_member_and_all_end_well(tmp_path):
    members = {"p0-untuned", "p1-untuned", *(f"{g}p{p}-r{r}" for g in ("", "g1-") for p in (0, 1) for r in (0, 1))}
    expected = {"ipet": members, "lora": {one for one in members if not one.startswith("g1")}}
    for case, found in run_script(tmp_path, "--crowd", 2, 8).items():
        assert set(found["codes"]) == {0}, case
        assert found["made"] == {f"finetune {one}": 1 for one in expected[case.partition(",")[0]]}
        assert found["problems"] == []
