"""The store: what an identity depends on, and that a publication leaves either everything behind or nothing."""

import hashlib
import json
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pet import artifacts
from pet.artifacts import Artifact, Store
from pet.drafts import MANIFEST, code_state
from pet.errors import MissingArtifact, StoreError
from pet.files import canonical_json, digest_file, digest_json, read_json, write_json
from pet.identity import Key

KEY = Key(
    "label", 3, {"steps": 250, "rate": 1e-5, "nested": {"b": [1, 2], "a": None}}, {"prepare": "p1", "model": "m1"}
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")


def publish(store: Store, key: Key = KEY, label: str = "mine", content: Any = "one") -> Artifact:
    with store.publish(key, label, seed=7) as draft:
        draft.write_json("result.json", content)
    found = store.find(key)
    assert found is not None
    return found


def everything_in(folder: Path) -> list[str]:
    """But for the locks."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if ".locks" not in path.parts)


# ---- identity ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other",
    [
        Key("distill", 3, KEY.settings, KEY.inputs),
        Key("label", 4, KEY.settings, KEY.inputs),
        Key("label", 3, {**KEY.settings, "steps": 251}, KEY.inputs),
        Key("label", 3, {**KEY.settings, "more": None}, KEY.inputs),
        Key("label", 3, {**KEY.settings, "nested": {"b": [2, 1], "a": None}}, KEY.inputs),
        Key("label", 3, KEY.settings, {**KEY.inputs, "prepare": "p2"}),
        Key("label", 3, KEY.settings, {"prepare": "m1", "model": "p1"}),
    ],
    ids=["stage", "version", "setting", "setting more", "order of a list", "input", "inputs swapped"],
)
def test_identity_depends_on_stage_version_settings_and_inputs(other):
    assert other.identity != KEY.identity


def test_identity_does_not_depend_on_the_order_of_keys():
    settings = {"nested": {"a": None, "b": [1, 2]}, "rate": 0.00001, "steps": 250}
    assert Key("label", 3, settings, {"model": "m1", "prepare": "p1"}).identity == KEY.identity


def test_identity_is_a_digest_anyone_can_compute():
    text = '{"inputs":{"prepare":"é"},"settings":{"a":1.5,"b":[true,null]},"stage":"label","version":1}'
    key = Key("label", 1, {"b": [True, None], "a": 1.5}, {"prepare": "é"})
    assert key.identity == hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def test_nan_has_no_identity():
    with pytest.raises(ValueError, match="not JSON compliant"):
        Key("label", 1, {"rate": float("nan")}, {}).identity  # noqa: B018


def test_what_cannot_be_written_as_json_has_no_identity():
    with pytest.raises(TypeError):
        digest_json({"path": Path("x")})


def test_canonical_json_is_one_text_per_value():
    assert canonical_json({"b": 1, "a": ["ü", 2.0]}) == '{"a":["ü",2.0],"b":1}'


# ---- publishing ----------------------------------------------------------------------------------------------------


def test_published_files_lie_under_stage_label_and_identity(store):
    found = publish(store)
    assert found.path == store.root / "label" / f"mine-{KEY.identity}"
    assert found.identity == KEY.identity
    assert found.read_json("result.json") == "one"
    assert everything_in(store.root) == [
        "label",
        f"label/mine-{KEY.identity}",
        f"label/mine-{KEY.identity}/manifest.json",
        f"label/mine-{KEY.identity}/result.json",
    ], "and no draft beside them"


def test_the_manifest_lists_every_file_with_its_size_and_digest(store):
    with store.publish(KEY, "mine") as draft:
        (draft.path / "deep" / "er").mkdir(parents=True)
        (draft.path / "deep" / "er" / "blob.bin").write_bytes(b"\x00\xff" * 70_000)
        (draft.path / "empty").write_bytes(b"")
        draft.write_json("ü.json", ["ü"])
    found = store.find(KEY)
    contents = {name: (found.path / name).read_bytes() for name in ("deep/er/blob.bin", "empty", "ü.json")}
    assert found.manifest["files"] == [
        {"path": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in sorted(contents.items())
    ], "all of them, in a fixed order, and not the manifest itself"


def test_the_manifest_says_what_was_made_and_how(store):
    before = datetime.now(UTC).replace(microsecond=0)
    with store.publish(KEY, "mine", seed=7) as draft:
        draft.note(device="cpu", peak_memory_bytes=12)
        draft.note(peak_memory_bytes=13)
    manifest = store.find(KEY).manifest
    assert set(manifest) == {
        *("stage", "version", "identity", "label", "settings", "inputs", "files", "seed", "seconds", "created"),
        *("device", "peak_memory_bytes", "python", "packages", "code"),
    }
    assert (manifest["stage"], manifest["version"], manifest["label"]) == ("label", 3, "mine")
    assert (manifest["settings"], manifest["inputs"]) == (KEY.settings, KEY.inputs)
    assert (manifest["seed"], manifest["device"], manifest["peak_memory_bytes"]) == (7, "cpu", 13)
    assert 0 <= manifest["seconds"] < 60
    assert before <= datetime.fromisoformat(manifest["created"]) <= datetime.now(UTC)
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", manifest["python"])
    assert {"pet", "numpy", "torch", "transformers"} <= set(manifest["packages"])


def test_the_identity_can_be_computed_again_from_the_manifest(store):
    manifest = publish(store).manifest
    again = Key(manifest["stage"], manifest["version"], manifest["settings"], manifest["inputs"])
    assert again.identity == manifest["identity"]


def test_seconds_are_those_of_the_block(store, monkeypatch):
    times = iter([100.0, 112.3456])
    monkeypatch.setattr(artifacts.time, "perf_counter", lambda: next(times))
    assert publish(store).manifest["seconds"] == 12.346


def test_the_manifest_is_written_last_and_then_one_rename_publishes(store, monkeypatch):
    events = []
    real_write, real_rename = artifacts.write_json, artifacts.rename

    def write(path: Path, content: Any) -> None:
        events.append(path.name)
        assert list((store.root / "label").glob("mine-*")) == [], "nothing is published while files are written"
        real_write(path, content)

    def rename(draft: Path, final: Path) -> None:
        assert everything_in(draft) == [MANIFEST, "result.json"]
        events.append("rename")
        real_rename(draft, final)

    monkeypatch.setattr(artifacts, "write_json", write)
    monkeypatch.setattr(artifacts, "rename", rename)
    publish(store)
    assert events == ["result.json", MANIFEST, "rename"]


def test_files_can_be_read_by_whoever_may_read_their_folder(store):
    with store.publish(KEY, "mine") as draft:
        (draft.path / "model").mkdir(mode=0o750)
        for path in (draft.path / "one", draft.path / "model" / "two"):
            path.touch(mode=0o600)
        draft.path.chmod(0o755)
    found = store.find(KEY)
    assert found is not None
    modes = {path.name: path.stat().st_mode & 0o777 for path in found.path.rglob("*") if path.is_file()}
    assert (modes["one"], modes["two"]) == (0o644, 0o640)


def test_a_draft_is_not_found_before_it_is_published(store):
    with store.publish(KEY, "mine") as draft:
        assert draft.path.parent == store.root / "label", "a sibling, so that the rename stays on one file system"
        assert draft.path.name.startswith(".")
        assert store.find(KEY) is None
    assert store.find(KEY) is not None


@pytest.mark.parametrize("problem", [RuntimeError("out of memory"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_an_exception_in_the_block_leaves_nothing_behind(store, problem):
    with pytest.raises(type(problem)), store.publish(KEY, "mine") as draft:
        draft.write_json("result.json", 1)
        raise problem
    assert everything_in(store.root) == ["label"]
    assert store.find(KEY) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_is_refused_and_nothing_is_published(store, value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        publish(store, content={"loss": value})
    with pytest.raises(ValueError, match="not JSON compliant"), store.publish(KEY, "mine") as draft:
        draft.note(loss=value)
    assert everything_in(store.root) == ["label"]


# ---- nothing is overwritten ----------------------------------------------------------------------------------------


def test_a_second_publication_of_an_identity_keeps_the_first(store):
    first = publish(store, content="first")
    stamp = (first.path / MANIFEST).stat().st_mtime_ns
    second = publish(store, content="second")
    assert second == first
    assert second.read_json("result.json") == "first"
    assert (second.path / MANIFEST).stat().st_mtime_ns == stamp
    assert len(everything_in(store.root)) == 4, "and the second draft is gone"


def test_of_two_that_publish_one_identity_at_once_the_first_to_finish_stays(store):
    with store.publish(KEY, "mine") as slow:
        slow.write_json("result.json", "slow")
        publish(store, content="fast")
    assert store.find(KEY).read_json("result.json") == "fast"
    assert len(everything_in(store.root)) == 4


def test_other_identities_of_a_stage_stand_beside_each_other(store):
    other = Key("label", 3, {"steps": 1}, {})
    publish(store, content="one")
    publish(store, other, content="other")
    assert store.find(KEY).read_json("result.json") == "one"
    assert store.find(other).read_json("result.json") == "other"


# ---- what is no artifact -------------------------------------------------------------------------------------------


def test_a_folder_without_manifest_is_no_artifact(store):
    found = publish(store)
    (found.path / MANIFEST).unlink()
    assert store.find(KEY) is None


def test_a_folder_without_manifest_is_not_overwritten_either(store):
    left = publish(store, content="first").path
    (left / MANIFEST).unlink()
    with pytest.raises(StoreError, match=re.escape(str(store.root))):
        publish(store, content="second")
    assert everything_in(left) == ["result.json"]
    assert read_json(left / "result.json") == "first"
    assert everything_in(store.root / "label") == [left.name, f"{left.name}/result.json"]


def test_a_damaged_manifest_is_named_with_what_to_do(store):
    path = publish(store).path / MANIFEST
    path.write_text('{"stage": "lab', encoding="utf-8")
    with pytest.raises(
        StoreError, match=f"{re.escape(str(path))} cannot be read .*; remove .* and run its stage again"
    ):
        store.find(KEY)


def test_a_missing_or_binary_file_of_an_artifact_is_named(store):
    found = publish(store)
    (found.path / "result.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StoreError, match=r"result\.json cannot be read"):
        found.read_json("result.json")
    with pytest.raises(StoreError, match=r"other\.json cannot be read"):
        found.read_json("other.json")


def test_an_empty_store_finds_nothing_and_is_not_made(store):
    assert store.find(KEY) is None
    assert not store.root.exists()


def test_what_has_not_been_made_is_named_with_the_command_that_makes_it(store):
    with pytest.raises(MissingArtifact) as raised:
        store.need(KEY, "soft labels", "pet run --stage label agnews")
    message = str(raised.value)
    assert "soft labels" in message
    assert message.endswith(": pet run --stage label agnews")
    assert KEY.identity in message
    assert str(store.root) in message


def test_what_is_there_is_given_when_needed(store):
    found = publish(store)
    assert store.need(KEY, "soft labels", "pet run") == found


# ---- stores that cannot be written ---------------------------------------------------------------------------------


@pytest.fixture
def file_store(tmp_path: Path) -> Store:
    """A store that is a file: nobody can write into it, not even root."""
    path = tmp_path / "runs"
    path.write_text("a file, not a folder")
    return Store(path)


def test_a_store_that_cannot_be_written_is_said_before_any_work(file_store):
    with pytest.raises(StoreError, match=r"runs cannot be written \(.+\); give a writable folder with --store"):
        file_store.check_writable()
    with pytest.raises(StoreError, match="--store"), file_store.publish(KEY, "mine"):
        pytest.fail("the block must not run")
    assert file_store.root.read_text() == "a file, not a folder"


def test_a_store_that_fails_while_publishing_is_said(store, monkeypatch):
    def full(draft: Path, final: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(artifacts, "rename", full)
    with pytest.raises(StoreError, match=r"runs cannot be written \(No space left on device\)"):
        publish(store)
    assert everything_in(store.root) == ["label"]


def test_trying_a_store_leaves_nothing_in_it(store):
    store.check_writable()
    assert everything_in(store.root) == []


def test_a_store_can_be_tried_while_another_run_tries_it_or_was_killed_trying(store):
    (store.root / "probe" / ".draft-0-1-deadbeef").mkdir(parents=True)
    store.check_writable()
    assert everything_in(store.root) == ["probe", "probe/.draft-0-1-deadbeef"], "theirs stays"


def test_the_store_may_be_below_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Store("~/runs").root == tmp_path / "runs"


# ---- files and code ------------------------------------------------------------------------------------------------


def test_json_files_are_for_people_and_come_back_as_they_were(tmp_path):
    content = {"b": ["grün", None, 1.5], "a": {"x": True}}
    write_json(tmp_path / "x.json", content)
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert "grün" in text
    assert text.startswith('{\n  "b"')
    assert text.endswith("}\n")
    assert read_json(tmp_path / "x.json") == content == json.loads(text)


def test_a_files_digest_is_its_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"pet" * 100_000)
    assert digest_file(tmp_path / "x") == hashlib.sha256(b"pet" * 100_000).hexdigest()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh checkout that `code_state` takes for this one."""
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "checkout"
    (folder / "pet").mkdir(parents=True)
    (folder / "pet" / "artifacts.py").write_text("one")
    monkeypatch.setattr(artifacts, "__file__", str(folder / "pet" / "artifacts.py"))
    return folder


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    return subprocess.run(
        ["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_the_commit_is_recorded_and_whether_the_code_was_changed_since(checkout):
    git(checkout, "init", "--quiet")
    git(checkout, "add", ".")
    git(checkout, "commit", "--quiet", "-m", "one")
    head = git(checkout, "rev-parse", "HEAD")
    (checkout / "notes.txt").write_text("not of the code")
    assert code_state() == {"commit": head, "dirty": False}
    (checkout / "pet" / "artifacts.py").write_text("two")
    assert code_state() == {"commit": head, "dirty": True}


def test_code_outside_a_checkout_has_no_commit(checkout):
    assert code_state() is None


def test_a_checkout_that_git_cannot_read_has_no_commit(checkout, monkeypatch):
    (checkout / ".git").mkdir()
    assert code_state() is None, "git fails"
    monkeypatch.setenv("PATH", str(checkout))
    assert code_state() is None, "there is no git"


def test_packages_that_are_not_installed_are_left_out(monkeypatch):
    monkeypatch.setattr(artifacts, "RECORDED_PACKAGES", ("numpy", "no-such-package-of-this-name"))
    found = artifacts.environment.__wrapped__()
    assert set(found["packages"]) == {"numpy"}
