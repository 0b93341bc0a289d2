"""A run is found by what a person types, and leads to the artifacts it was made from."""

import shutil

import pytest

from pet.errors import MissingArtifact, StoreError
from pet.pipeline.runs import list_runs, open_run
from pet.store.manifest import write_manifest
from pet.store.store import Store


def test_a_run_is_found_by_folder_name_identity_its_beginning_and_last(done, tmp_path):
    store, path = Store(done.store), done.one("run")
    identity = path.name.rsplit("-", 1)[1]
    for given in (path.name, identity, identity[:5], "last"):
        assert open_run(given, store).path == path
    assert open_run(str(path), Store(tmp_path)).student.path.parent.parent.samefile(done.store)
    assert [run.path for run in list_runs(store)] == [path]


def test_a_run_leads_to_its_artifacts(done):
    run = open_run("last", Store(done.store))
    assert run.student.path == done.one("distill")
    assert run.labelled.path == done.one("label")
    assert run.prepared.path == done.one("prepare")
    named = [one["identity"] for one in run.labelled.read_json("ensemble.json")["members"]]
    assert [one.identity for one in run.members] == named
    assert run.settings.model.name == run.summary["model"]
    assert run.labels == tuple(run.summary["labels"])


def test_what_is_no_run_is_told_with_the_runs_there_are(done, tmp_path):
    with pytest.raises(StoreError, match=f"no run of .*{done.one('run').name}"):
        open_run("nonsense", Store(done.store))
    with pytest.raises(StoreError, match="is an artifact of distill, not a run"):
        open_run(str(done.one("distill")), Store(done.store))
    with pytest.raises(StoreError, match="has no runs"):
        open_run("last", Store(tmp_path))


def test_two_runs_that_begin_alike_are_named(done, tmp_path):
    store = tmp_path / "store"
    for name, identity in (("a-1f00", "1f00"), ("b-1f11", "1f11")):
        folder = store / "run" / name
        folder.mkdir(parents=True)
        write_manifest(folder, {"stage": "run", "identity": identity, "created": identity, "files": []})
    with pytest.raises(StoreError, match="'1f' is the beginning of b-1f11, a-1f00"):
        open_run("1f", Store(store))
    assert open_run("1f0", Store(store)).path.name == "a-1f00"


def test_an_artifact_that_is_gone_is_named(done, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(done.store, store, ignore=lambda folder, names: ["label"] if folder == str(done.store) else [])
    with pytest.raises(MissingArtifact, match=r"made from label/\.\.\.-"):
        _ = open_run("last", Store(store)).labelled
