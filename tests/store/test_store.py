"""The store: a publication leaves either everything behind or nothing, and what is found is as it was written."""

import errno
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from pet.errors import Busy, DamagedArtifact, StoreError
from pet.store import draft as draft_module
from pet.store import manifest
from pet.store.files import digest_file, read_json
from pet.store.key import Key
from pet.store.manifest import MANIFEST, write_manifest
from pet.store.store import DAMAGED, Artifact, Store, is_damaged

KEY = Key("label", 3, {"steps": 250}, {"prepare": "p1", "model": "m1"})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")


def publish(store: Store, key: Key = KEY, label: str = "mine", content: Any = "one") -> Artifact:
    with store.publish(key, label, seed=7) as draft:
        assert draft is not None
        draft.write_json("result.json", content)
    found = store.find(key)
    assert found is not None
    return found


def everything_in(folder: Path) -> list[str]:
    """But for the locks."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if ".locks" not in path.parts)


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


def test_what_is_there_is_not_made_again(store):
    first = publish(store, content="first")
    stamp = (first.path / MANIFEST).stat().st_mtime_ns
    with store.publish(KEY, "other label") as draft:
        assert draft is None
    second = store.find(KEY)
    assert second == first
    assert second.read_json("result.json") == "first"
    assert (second.path / MANIFEST).stat().st_mtime_ns == stamp
    assert len(everything_in(store.root)) == 4, "and there is no draft"


def test_of_two_that_want_one_identity_at_once_the_second_waits_and_then_has_nothing_to_make(store):
    told, found = threading.Event(), []

    def second() -> None:
        with Store(store.root).publish(KEY, "mine", waiting=lambda who: told.set()) as draft:
            found.append(draft)

    with store.publish(KEY, "mine") as draft:
        other = threading.Thread(target=second)
        other.start()
        assert told.wait(20)
        draft.write_json("result.json", "first")
        assert found == [], "it waits"
    other.join(20)
    assert found == [None]
    assert store.find(KEY).read_json("result.json") == "first"
    assert len(everything_in(store.root)) == 4


def test_the_second_makes_it_when_the_first_one_fails(store):
    told = threading.Event()

    def second() -> None:
        with Store(store.root).publish(KEY, "mine", waiting=lambda who: told.set()) as draft:
            draft.write_json("result.json", "second")

    with pytest.raises(RuntimeError), store.publish(KEY, "mine") as draft:
        other = threading.Thread(target=second)
        other.start()
        assert told.wait(20)
        draft.write_json("result.json", "first")
        raise RuntimeError
    other.join(20)
    assert store.find(KEY).read_json("result.json") == "second"


def test_whoever_does_not_wait_is_told_and_others_are_not_in_the_way(store):
    with store.publish(KEY, "mine"):

        def second() -> None:
            with pytest.raises(Busy, match=f"label {KEY.identity}"), store.publish(KEY, "mine", waiting=None):
                pytest.fail("the block must not run")
            with store.publish(Key("label", 3, {}, {}), "mine", waiting=None) as draft:
                refused.append(draft.final.name)

        refused: list[str] = []
        other = threading.Thread(target=second)
        other.start()
        other.join(20)
        assert refused == [f"mine-{Key('label', 3, {}, {}).identity}"]
    assert store.find(KEY) is not None


def test_other_identities_of_a_stage_stand_beside_each_other(store):
    other = Key("label", 3, {"steps": 1}, {})
    publish(store, content="one")
    publish(store, other, content="other")
    assert store.find(KEY).read_json("result.json") == "one"
    assert store.find(other).read_json("result.json") == "other"


# ---- what is not as it was written ----------------------------------------------------------------------------------


def test_a_folder_without_manifest_is_damaged_and_is_not_overwritten(store):
    left = publish(store, content="first").path
    (left / MANIFEST).unlink()
    with pytest.raises(DamagedArtifact, match=r"manifest\.json is damaged, missing or of an older version") as raised:
        store.find(KEY)
    assert raised.value.folder == left
    with pytest.raises(DamagedArtifact), store.publish(KEY, "mine"):
        pytest.fail("the block must not run")
    assert read_json(left / "result.json") == "first"
    assert everything_in(store.root / "label") == [left.name, f"{left.name}/result.json"]
    with pytest.raises(DamagedArtifact), store.publish(KEY, "mine", waiting=None):
        pytest.fail("nor is its lock held")


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: "[" * 100_000,
        lambda text: text.replace('"seed": 7', '"seed": 8'),
        lambda text: text.replace('"seed": 7', '"seed":  7'),
        lambda text: text + " ",
        lambda text: "\0" * len(text),
        lambda text: '{"stage": "label"}',
    ],
    ids=["half", "empty", "list", "deep", "value", "blank", "longer", "zeros", "parts"],
)
def test_a_changed_manifest_is_damage(store, change):
    path = publish(store).path / MANIFEST
    text = path.read_text(encoding="utf-8")
    path.write_text(change(text), encoding="utf-8")
    assert path.read_text(encoding="utf-8") != text
    with pytest.raises(DamagedArtifact, match="give the command that made it once more"):
        store.find(KEY)
    assert is_damaged(path.parent)


def change_content(path: Path) -> None:
    """One bit, size and time of change as they were."""
    state = path.stat()
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def test_a_file_that_is_gone_or_of_another_size_is_seen_when_the_artifact_is_found(store):
    path = publish(store).path / "result.json"
    content = path.read_bytes()
    path.write_bytes(content + b" ")
    with pytest.raises(DamagedArtifact, match=r"result\.json is damaged: 7 bytes, 6 were written"):
        store.find(KEY)
    path.unlink()
    with pytest.raises(DamagedArtifact, match=r"result\.json is missing"):
        store.open(path.parent)


def test_a_file_of_other_content_is_seen_when_it_is_read_and_before(store):
    found = publish(store)
    change_content(found.path / "result.json")
    again = store.find(KEY)
    for read in (again.read_json, again.file):
        with pytest.raises(DamagedArtifact, match=r"result\.json is damaged: its content has changed") as raised:
            read("result.json")
        assert raised.value.folder == found.path
    with pytest.raises(DamagedArtifact, match="content has changed"):
        Store(store.root, verify=True).find(KEY)


def test_a_folder_of_files_is_read_when_every_one_of_them_is_as_it_was(store):
    with store.publish(KEY, "mine") as draft:
        (draft.path / "model").mkdir()
        for name in ("model/one", "model/two", "models"):
            (draft.path / name).write_text(name)
    found = store.find(KEY)
    assert found.file("model") == found.path / "model"
    change_content(found.path / "models")
    assert found.file("model") == found.path / "model", "another file"
    change_content(found.path / "model" / "two")
    assert found.file("model/one") == found.path / "model" / "one"
    (found.path / "model" / "two").touch()
    with pytest.raises(DamagedArtifact, match="model/two is damaged"):
        found.file("model")


def test_a_file_that_was_read_is_not_hashed_again_unless_it_was_touched(store, monkeypatch):
    hashed = []

    def note(path: Path) -> str:
        hashed.append(path.name)
        return digest_file(path)

    found = publish(store)
    monkeypatch.setattr(manifest, "digest_file", note)
    for _ in range(3):
        assert found.read_json("result.json") == "one"
    assert hashed == ["result.json"]
    path = found.path / "result.json"
    path.write_text(path.read_text().replace("one", "two"), encoding="utf-8")
    os.utime(path, ns=(0, 0))
    with pytest.raises(DamagedArtifact):
        found.file("result.json")


def test_what_the_manifest_does_not_list_is_no_file_of_it(store):
    found = publish(store)
    (found.path / "notes.txt").write_text("mine")
    assert found.has("result.json")
    assert not found.has("notes.txt")
    assert not found.has("result")
    with pytest.raises(DamagedArtifact, match=r"notes\.txt is not in the manifest"):
        found.file("notes.txt")


# ---- damage is set aside --------------------------------------------------------------------------------------------


def damage_of(store: Store) -> DamagedArtifact:
    with pytest.raises(DamagedArtifact) as raised:
        store.find(KEY).read_json("result.json")
    return raised.value


def test_what_is_damaged_is_set_aside_and_can_be_made_anew(store):
    left = publish(store, content="first").path
    change_content(left / "result.json")
    writer = store.set_aside(damage_of(store))
    assert writer.parent == left.parent
    assert writer.name.startswith(f"{DAMAGED}{left.name}-")
    assert sorted(path.name for path in writer.iterdir()) == [MANIFEST, "result.json"], "to be looked at"
    assert store.find(KEY) is None
    assert publish(store, content="again").path == left


def test_what_another_process_has_mended_or_taken_away_stays_as_it_is(store):
    left = publish(store).path
    content = (left / "result.json").read_bytes()
    change_content(left / "result.json")
    damage = damage_of(store)
    (left / "result.json").write_bytes(content)
    before = everything_in(store.root)
    assert store.set_aside(damage) is None
    assert everything_in(store.root) == before
    change_content(left / "result.json")
    store.set_aside(damage)
    before = everything_in(store.root)
    assert store.set_aside(damage) is None, "it is gone"
    assert everything_in(store.root) == before


def test_nothing_is_set_aside_while_another_process_makes_it(store):
    """It waits, and finds what that one has made."""
    damage = DamagedArtifact(store.root / "label" / f"mine-{KEY.identity}", "gone")
    found, begun = [], threading.Event()

    def second() -> None:
        begun.set()
        found.append(store.set_aside(damage))

    with store.publish(KEY, "mine") as draft:
        other = threading.Thread(target=second)
        other.start()
        assert begun.wait(20)
        draft.write_json("result.json", 1)
        assert found == []
    other.join(20)
    assert found == [None]
    assert store.find(KEY).read_json("result.json") == 1


def test_whole_is_what_is_as_it_was_written(store):
    found = publish(store)
    assert not is_damaged(found.path)
    assert not is_damaged(found.path.with_name("never-there")), "what is gone is not damaged"
    write_manifest(found.path, {**{k: v for k, v in found.manifest.items() if k != "digest"}, "files": []})
    assert not is_damaged(found.path)
    change_content(found.path / MANIFEST)
    assert is_damaged(found.path)


# ---- what is not there ----------------------------------------------------------------------------------------------


def test_an_empty_store_finds_nothing_and_is_not_made(store):
    assert store.find(KEY) is None
    assert not store.root.exists()


# ---- stores that cannot be written ---------------------------------------------------------------------------------


@pytest.fixture
def file_store(tmp_path: Path) -> Store:
    """A store that is a file: nobody can write into it, not even root."""
    path = tmp_path / "runs"
    path.write_text("a file, not a folder")
    return Store(path)


def test_a_store_that_cannot_be_written_is_said_before_any_work(file_store):
    with pytest.raises(StoreError, match=r"runs is no folder; give the folder that keeps the artifacts with --store"):
        file_store.check_writable()
    with pytest.raises(StoreError, match="--store"), file_store.publish(KEY, "mine"):
        pytest.fail("the block must not run")
    assert file_store.root.read_text() == "a file, not a folder"


def test_a_store_that_fails_while_publishing_is_said(store, monkeypatch):
    def full(draft: Path, final: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(draft_module, "rename_into_place", full)
    with pytest.raises(StoreError, match=r"runs cannot be written \(No space left on device\)"):
        publish(store)
    assert everything_in(store.root) == ["label"]


def test_a_store_that_is_removed_while_it_is_written_is_said_whatever_the_problem_names(store):
    with (
        pytest.raises(StoreError, match=r"runs cannot be written \(No such file or directory\)"),
        store.publish(KEY, "mine"),
    ):
        shutil.rmtree(store.root)
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")


def test_another_file_that_is_gone_is_no_matter_of_the_store(store):
    with pytest.raises(FileNotFoundError), store.publish(KEY, "mine"):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "elsewhere.csv")


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
