"""`pet runs`: what a store holds is listed, removed only where nothing else needs it, and checked file by file."""

import json
import shutil
from pathlib import Path

import pytest
from support.rows import Finished, files_of, find_all, find_one, garble, pet, pet_run, snapshot

from pet.pipeline.runs import list_runs, open_run
from pet.store import gc
from pet.store.files import readable_json
from pet.store.key import Key
from pet.store.manifest import read_manifest, write_manifest
from pet.store.store import Artifact, Store

pytestmark = pytest.mark.slow


@pytest.fixture
def store(done, tmp_path) -> Path:
    """A copy of its store."""
    return Path(shutil.copytree(done.store, tmp_path / "store"))


@pytest.fixture(scope="module")
def several(done, tmp_path_factory) -> Path:
    """A store with that run, one of iPET that goes on from its members, and one that adapts its model first."""
    store = Path(shutil.copytree(done.store, tmp_path_factory.mktemp("several") / "store"))
    pet("ipet", done.ground.pipeline, "--store", store, *GENERATIONS)
    pet_run(done.ground, store, *ADAPTED)
    return store


GENERATIONS = ("--generations", 1, "--set", "ipet.growth=2", "--set", "ipet.steps=2")
ADAPTED = (
    "--set",
    "adapt.enabled=true",
    "--set",
    "adapt.steps=1",
    "--set",
    "adapt.held_out=0.2",
    "--set",
    "adapt.length=16",
)


def run_of(store: Path, kind: str) -> Path:
    """`plain`, `ipet` or `adapted`."""
    found = {}
    for run in list_runs(Store(store)):
        found["adapted" if run.summary["adapted"] else "ipet" if "ipet" in run.path.name else "plain"] = run.path
    return found[kind]


def missing(done: Finished, store: Path, command: str, *arguments: object) -> str:
    """What would have to be made again."""
    return pet(command, done.ground.pipeline, "--store", store, *arguments, "--dry-run").stdout.splitlines()[-1]


# ---- list and show -------------------------------------------------------------------------------------------------


def test_runs_are_listed_with_what_was_run_and_the_students_score(done, several):
    lines = pet("runs", "--store", several).stdout.splitlines()
    assert len(lines) == 4
    run = open_run(str(run_of(several, "plain")), Store(several))
    score = run.summary["scores"]["student"]
    row = next(line for line in lines if run.path.name in line)
    assert row.split()[:3] == [run.path.name, "topics", "12"]
    assert f"{score['value']:.1f} ({score['low']:.1f} to {score['high']:.1f}) accuracy" in row
    assert row.endswith(run.artifact.manifest["created"][:16].replace("T", " "))


def test_an_empty_store_says_so(tmp_path):
    assert "has no runs" in pet("runs", "--store", tmp_path).stdout
    assert "has no runs" in pet("runs", "show", "last", "--store", tmp_path, code=2).output
    assert "is no folder" in pet("runs", "--store", tmp_path / "none", "verify", code=2).output


def test_a_run_that_is_damaged_is_said_and_is_not_in_the_way_of_others(several, tmp_path):
    store = Path(shutil.copytree(several, tmp_path / "store"))
    first, second, third = (run_of(store, kind) for kind in ("plain", "ipet", "adapted"))
    (first / "summary.json").unlink()
    garble(second / "summary.json")
    told = pet("runs", "--store", store)
    assert f"Warning: {first}: summary.json is missing" in told.stderr
    rows = {line.split()[0]: line for line in told.stdout.splitlines()[1:]}
    assert rows.keys() == {second.name, third.name}
    assert rows[second.name].endswith("summary.json is damaged")
    assert "accuracy" in rows[third.name]
    assert third.name in pet("runs", "show", third.name, "--store", store).stdout.replace("\n", "")


def test_show_has_the_scores_and_every_artifact_with_who_else_needs_it(several):
    text = pet("runs", "show", run_of(several, "plain")).stdout
    assert "PET student" in text
    _, _, table = text.partition("\nartifact ")
    rows = {line.split()[0]: line for line in table.splitlines()[1:]}
    plain = open_run(str(run_of(several, "plain")), Store(several))
    for one in (*plain.members, plain.prepared, plain.scored, plain.student, plain.labelled):
        assert gc.name_of(one) in rows
    assert run_of(several, "ipet").name in rows[gc.name_of(plain.members[0])]
    assert run_of(several, "adapted").name in rows[gc.name_of(plain.prepared)]
    assert not any(one.name in rows[gc.name_of(plain.student)] for one in (several / "run").iterdir())


def test_show_names_the_student_where_it_is_now(done, store):
    assert f"student: {store}" in pet("runs", "show", "last", "--store", store).stdout.replace("\n", "")


# ---- rm ------------------------------------------------------------------------------------------------------------


def test_the_only_run_takes_everything_with_it(store):
    pet("runs", "rm", "last", "--yes", "--store", store)
    left = {path.name for path in store.iterdir()}
    assert left == {"logs", ".locks"}, "of what was done, if not of what it came to"


@pytest.mark.parametrize(("gone", "stays"), [("plain", "ipet"), ("ipet", "plain"), ("plain", "adapted")])
def test_what_another_run_needs_stays(done, several, tmp_path, gone, stays):
    store = Path(shutil.copytree(several, tmp_path / "store"))
    commands = {"plain": ("run",), "ipet": ("ipet", *GENERATIONS), "adapted": ("run", *ADAPTED)}
    students = len(find_all(store, "distill"))
    pet("runs", "rm", run_of(store, gone), "--yes")
    assert len(find_all(store, "distill")) == students - 1
    assert missing(done, store, *commands[stays]).startswith("0 of")
    assert not missing(done, store, *commands[gone]).startswith("0 of")
    pet("runs", "verify", "--store", store)


def test_an_adapted_model_stays_with_its_members_and_goes_with_the_last_of_them(several, tmp_path):
    store = Path(shutil.copytree(several, tmp_path / "store"))
    adapted = find_one(store, "adapt")
    assert adapted.name in pet("runs", "rm", run_of(store, "adapted"), "--dry-run").stdout
    for kind in ("adapted", "ipet", "plain"):
        pet("runs", "rm", run_of(store, kind), "--yes")
        assert not adapted.exists()
    assert files_of(store) == set()


def test_what_was_made_for_a_run_that_never_ended_stays_with_what_it_needs(done, store):
    changed = ("--set", "distill.steps=2")
    pet_run(done.ground, store, "--stage", "distill", *changed)
    pet("runs", "rm", "last", "--yes", "--store", store)
    assert len(find_all(store, "distill")) == 1
    assert missing(done, store, "run", *changed).startswith("5 of")  # untuned patterns, baselines, scores, summary


def test_a_model_that_a_run_names_by_its_folder_stays_and_is_kept_for_it(tmp_path):
    store = Store(tmp_path)

    def publish(stage: str, *inputs: Artifact, **settings: dict[str, str]) -> Artifact:
        key = Key(stage, 1, settings, {one.identity: one.identity for one in inputs})
        with store.publish(key, "any"):
            pass
        found = store.find(key)
        assert found is not None
        return found

    pretrained, member = publish("pretrain"), publish("finetune")
    first = publish("run", member, model={"name": str(pretrained.path / "model")})
    graph = gc.read_graph(store)
    assert {one.path for one in gc.removable(graph, first.identity)} == {first.path, member.path}
    publish("run", distill={"model": str(member.path / "model")})
    graph = gc.read_graph(store)
    assert {one.path for one in gc.removable(graph, first.identity)} == {first.path}


def test_nothing_goes_without_a_yes(store):
    before = snapshot(store)
    dry = pet("runs", "rm", "last", "--dry-run", "--store", store).stdout
    assert len([line for line in dry.splitlines() if "/" in line]) == len(find_all(store, "*"))
    pet("runs", "rm", "last", "--store", store, code=1)  # nobody answers
    assert snapshot(store) == before


def test_a_removal_that_is_interrupted_leaves_no_half_artifact(store, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(gc.shutil, "rmtree", interrupt)
        pet("runs", "rm", "last", "--yes", "--store", store, code=130)
    assert list(store.rglob("manifest.json")) == []
    assert "has no runs" in pet("runs", "--store", store).stdout
    pet("runs", "rm", "last", "--yes", "--store", store, code=2)
    assert files_of(store) == set()


def interrupt(*_, **__):
    raise KeyboardInterrupt


def test_nothing_goes_while_a_manifest_cannot_be_read(store):
    (find_one(store, "label") / "manifest.json").write_text("{")
    told = pet("runs", "rm", "last", "--yes", "--store", store, code=2).output
    assert "nothing can be removed" in told and "label" in told
    assert find_one(store, "distill")


# ---- verify --------------------------------------------------------------------------------------------------------


def verify(store: Path, *arguments: str) -> list[str]:
    return pet("runs", "verify", *arguments, "--store", store, code=1).stdout.splitlines()


def test_a_store_as_it_was_written_has_no_problem(several):
    assert pet("runs", "verify", "--store", several).stdout.endswith("no problems\n")


def test_every_damaged_missing_and_foreign_file_is_named(store):
    scores = find_one(store, "distill") / "scores.safetensors"
    content = bytearray(scores.read_bytes())
    content[-1] ^= 1
    scores.write_bytes(content)
    short = find_one(store, "label") / "soft_labels.parquet"
    short.write_bytes(short.read_bytes()[:-7])
    (find_one(store, "evaluate") / "scores.json").unlink()
    (find_one(store, "prepare") / "notes.txt").write_text("mine")
    lines = verify(store)
    assert lines[-1].endswith("4 problems")
    told = {line.partition("-")[0]: line for line in lines[:-1]}
    assert "scores.safetensors is damaged: its content has changed" in told["distill/topics"]
    assert "soft_labels.parquet is damaged" in told["label/topics"]
    assert told["evaluate/topics"].endswith("scores.json is missing")
    assert told["prepare/topics"].endswith("notes.txt is not in the manifest")
    assert verify(store, "last")[-1].endswith("4 problems")


@pytest.mark.parametrize(
    ("written", "told"),
    [
        (lambda manifest: "{", "manifest.json is damaged"),
        (lambda manifest: "[]", "manifest.json is damaged"),
        (lambda manifest: json.dumps(manifest | {"files": [1]}), "manifest.json is damaged"),
        (lambda manifest: json.dumps(manifest | {"settings": {}}), "manifest.json is damaged"),
        (lambda manifest: readable_json(manifest | {"seconds": 1}), "manifest.json is damaged"),
    ],
)
def test_a_changed_manifest_is_told(store, written, told):
    path = find_one(store, "label") / "manifest.json"
    path.write_text(written(json.loads(path.read_text())))
    assert any(told in line and path.parent.name in line for line in verify(store))


def test_a_manifest_that_was_written_for_something_else_is_told(store):
    """With a digest that is right."""
    folder = find_one(store, "label")
    manifest = read_manifest(folder)
    del manifest["digest"]
    write_manifest(folder, manifest | {"settings": {}})
    assert any("its identity is not that of its content" in line for line in verify(store))


def test_an_artifact_that_is_gone_is_told_by_those_made_from_it(store):
    shutil.rmtree(find_one(store, "label"))
    lines = verify(store)
    assert all("its input label" in line for line in lines[:-1]) and len(lines) == 3
    (find_one(store, "prepare") / "manifest.json").unlink()
    assert any("manifest.json is damaged" in line for line in verify(store))
