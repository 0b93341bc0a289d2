"""The wheel carries everything a run needs, and one function finds it there."""

import subprocess
import sys
import zipfile

import pytest
from hatchling.builders.wheel import WheelBuilder

from pet.config.shipped import shipped_folder, shipped_names

pytestmark = pytest.mark.slow

ROOT = shipped_folder("data").parent


def test_an_unpacked_wheel_finds_every_card_and_pipeline_far_from_the_checkout(tmp_path):
    wheel = next(WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"]))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    program = (
        "from pet.config.resolve import resolve_pretraining, resolve_settings\n"
        "from pet.config.shipped import shipped_folder, shipped_names\n"
        "from pet.tasks.card import load_card\n"
        "from pet.modeling.mini import MINI_DELTA\n"
        "assert 'site' in str(shipped_folder('data')), shipped_folder('data')\n"
        "assert MINI_DELTA.is_file()\n"
        "[load_card(name) for name in shipped_names('data')]\n"
        "[resolve_settings(name) for name in shipped_names('pipelines') if name != 'mini']\n"
        "resolve_pretraining('mini', {'corpus': {'files': ['any.txt']}})\n"
        "print(*shipped_names('data'), *shipped_names('pipelines'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == shipped_names("data") + shipped_names("pipelines")
