"""Bits that flip, files cut short or gone: in every file of every kind of artifact, found, named and remade."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.killing import differences, published
from support.rows import find_all, killable, pet

from pet.errors import DamagedArtifact
from pet.store.store import Store

pytestmark = pytest.mark.slow

KINDS = "prepare corpus adapt finetune label draw distill baseline evaluate run".split()
"""In the order in which they are made first."""


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """A command that makes every kind of artifact."""
    return [*killable(tmp_path_factory.mktemp("ground"))[0], "--set=runtime.checkpoint_minutes=5"]


@pytest.fixture(scope="module")
def whole(walk: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What it makes; never write into it."""
    store = tmp_path_factory.mktemp("whole") / "store"
    pet(*walk, "--store", store)
    return store


def flip(path: Path, rng: random.Random) -> None:
    """One bit, anywhere."""
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def cut(path: Path, rng: random.Random) -> None:
    """Some or all of its end is missing."""
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def lose(path: Path, rng: random.Random) -> None:
    """The whole file is."""
    path.unlink()


DAMAGES: tuple[Callable[[Path, random.Random], None], ...] = (flip, cut, lose)


def files_of_artifacts(store: Path) -> list[Path]:
    """Every file of every artifact, manifests too."""
    return [path for path in sorted(store.glob("[!.]*/[!.]*/**/*")) if path.is_file() and path.parent.name != "logs"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_of_any_file_is_found_and_named(whole, tmp_path, damage):
    rng, store, cases = random.Random(1), Store(whole, verify=True), 0
    for path in files_of_artifacts(whole):
        if not path.stat().st_size:
            continue
        folder = whole.joinpath(*path.relative_to(whole).parts[:2])
        copy = tmp_path / "stage" / folder.name
        shutil.copytree(folder, copy)
        name = path.relative_to(folder)
        damage(copy / name, rng)
        with pytest.raises(DamagedArtifact) as raised:
            store.open(copy)
        assert str(copy) in str(raised.value)
        assert str(name) in raised.value.problem
        shutil.rmtree(copy)
        cases += 1
    assert cases > 100, "each of three damages"


def test_what_is_whole_is_not_said_to_be_damaged(whole):
    store = Store(whole, verify=True)
    stages = {store.open(path.parent).manifest["stage"] for path in whole.glob("[!.]*/*/manifest.json")}
    assert stages == set(KINDS)


@pytest.mark.parametrize("damage", DAMAGES)
def test_whatever_is_damaged_is_set_aside_and_made_again_as_it_was(walk, whole, tmp_path, damage):
    """Every artifact of the store is damaged at once, each in another of its files."""
    store, rng = tmp_path / "store", random.Random(2)
    shutil.copytree(whole, store)
    folders = [path.parent for path in store.glob("[!.]*/[!.]*/manifest.json")]
    for folder in folders:
        damage(rng.choice([path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]), rng)
    done = pet(*walk, "--store", store, "--verify")
    for folder in folders:
        assert f"{folder.parent.name}/{folder.name} is damaged" in done.stderr
        assert list(folder.parent.glob(f".damaged-{folder.name}-*"))
    assert "nothing was removed" in pet("runs", "gc", "--store", store, "--dry-run").stdout
    pet("runs", "gc", "--store", store, "--yes")
    assert differences(store, whole) == []


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        ("prepare", "pool.parquet"),
        ("finetune", "training.json"),
        ("adapt", "model/model.safetensors"),
        ("draw", "train.parquet"),
        ("label", "soft_labels.parquet"),
        ("distill", "scores.safetensors"),
        ("run", "summary.json"),
    ],
)
def test_a_file_that_is_read_is_looked_at_first_without_being_told_to(walk, whole, tmp_path, stage, name):
    """A bit flips in one file, and what was made of it is gone."""
    store = tmp_path / "store"
    shutil.copytree(whole, store)
    folder = find_all(store, stage)[-1]
    flip(folder / name, random.Random(3))
    later = [store / one for one in KINDS[KINDS.index(stage) + 1 :]]
    for gone in [*later, *(find_all(store, "finetune", "-g1-") if stage == "draw" else [])]:
        shutil.rmtree(gone)
    done = pet(*walk, "--store", store)
    assert (
        f"{stage}/{folder.name} is damaged ({name} is damaged: its content has changed (sha256)); set aside"
        in done.stderr
    )
    assert published(folder) == published(whole / stage / folder.name)


def test_a_stage_alone_names_what_is_damaged_and_the_command_that_makes_it(walk, whole, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(whole, store)
    member = find_all(store, "finetune", "p0-r0")[-1]
    cut(member / "scores.safetensors", random.Random(4))
    run = ["run", walk[1], "--store", store, "--stage", "label"]
    done = pet(*run, code=2)
    assert f"finetune/{member.name} is damaged" in done.stderr
    assert "run first: pet run --stage finetune" in done.stderr


def test_a_dry_run_shows_what_is_damaged_and_touches_nothing(walk, whole, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(whole, store)
    member = find_all(store, "finetune", "p0-r0")[-1]
    flip(member / "manifest.json", random.Random(5))
    done = pet(*walk, "--store", store, "--dry-run")
    (line,) = [line for line in done.stdout.splitlines() if "to be made" in line and "artifacts" not in line]
    assert member.name.rpartition("-")[2] in line
    assert "damaged, to be made again" in line
    assert "1 of " in done.stdout
    assert member.is_dir()
