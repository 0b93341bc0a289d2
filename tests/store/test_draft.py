"""Drafts: what is sealed and published, what the manifest says, and what is found of a process that died."""

import hashlib
import inspect
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.rows import snapshot

from pet.errors import Busy, StoreError
from pet.store import draft as draft_module
from pet.store import environment, interrupts
from pet.store import lock as lock_module
from pet.store import store as store_module
from pet.store.draft import Draft
from pet.store.environment import code_state
from pet.store.key import Key
from pet.store.lock import LOCKS, acquire
from pet.store.manifest import AFTER, CHECKPOINT, MANIFEST, read_manifest
from pet.store.store import Store

KEY, OTHER = Key("finetune", 3, {"steps": 250}, {"prepare": "p1"}), Key("finetune", 3, {"steps": 9}, {})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")


def everything_in(folder: Path) -> list[str]:
    """But for the locks."""
    return sorted(snapshot(folder))


def published(store: Store, key: Key = KEY) -> list[str]:
    """The files of an artifact."""
    found = store.find(key)
    assert found is not None
    return everything_in(found.path)


def half_trained(draft: Draft) -> None:
    """With a checkpoint, and more."""
    draft.checkpoint.mkdir()
    (draft.checkpoint / "state.json").write_text("far")
    (draft.path / "model").mkdir()
    (draft.path / "model" / "half").write_text("half")
    draft.write_json("scores.json", 1)


BEGIN = f"""
import os, signal, sys
from pet.store.store import Store
from pet.store.draft import Draft
from pet.store.lock import acquire
from pet.store.key import Key

{inspect.getsource(half_trained)}
KEY, OTHER = {KEY!r}, {OTHER!r}
store = Store(sys.argv[1])
"""


def die(store: Store, script: str) -> None:
    """Another process does that and is killed where it stands when it has."""
    script = f"{BEGIN}{script}    os.kill(os.getpid(), signal.SIGKILL)\n"
    done = subprocess.run([sys.executable, "-c", script, store.root], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr


HALF_TRAINED = """
with store.publish(KEY, "theirs") as draft:
    half_trained(draft)
"""

FINISHED = f"{HALF_TRAINED}    draft.seal()\n"


def draft_of(store: Store, key: Key = KEY) -> Path:
    """Where it lies."""
    return store.root / key.stage / f".draft-{key.identity}"


# ---- what is published ---------------------------------------------------------------------------------------------


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
        *("device", "peak_memory_bytes", "python", "packages", "code", "digest"),
    }
    assert (manifest["stage"], manifest["version"], manifest["label"]) == ("finetune", 3, "mine")
    assert (manifest["settings"], manifest["inputs"]) == (KEY.settings, KEY.inputs)
    assert (manifest["seed"], manifest["device"], manifest["peak_memory_bytes"]) == (7, "cpu", 13)
    assert 0 <= manifest["seconds"] < 60
    assert before <= datetime.fromisoformat(manifest["created"]) <= datetime.now(UTC)
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", manifest["python"])
    assert {"pet", "numpy", "torch", "transformers"} <= set(manifest["packages"])


def test_the_identity_can_be_computed_again_from_the_manifest(store):
    with store.publish(KEY, "mine"):
        pass
    manifest = store.find(KEY).manifest
    again = Key(manifest["stage"], manifest["version"], manifest["settings"], manifest["inputs"])
    assert again.identity == manifest["identity"]


def test_the_digest_of_a_manifest_is_that_of_all_the_rest_of_it_and_anyone_can_compute_it(store):
    with store.publish(KEY, "m\u00fcne"):
        pass
    rest = dict(store.find(KEY).manifest)
    told = rest.pop("digest")
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert told == hashlib.sha256(text.encode()).hexdigest()


def test_seconds_are_those_of_the_block_and_of_earlier_processes(store, monkeypatch):
    now = 100.0
    monkeypatch.setattr(draft_module, "time", SimpleNamespace(perf_counter=lambda: now))
    with store.publish(KEY, "mine"):
        now = 112.3456
    assert store.find(KEY).manifest["seconds"] == 12.346
    with store.publish(OTHER, "mine") as draft:
        now = 115.3456
        assert draft.seconds == pytest.approx(3)
        draft.count_from(draft.seconds + 1000)
        now = 120.3456
    assert store.find(OTHER).manifest["seconds"] == 1008


def test_the_manifest_is_written_when_all_else_is_on_the_disk_and_then_one_rename_publishes(store, monkeypatch):
    events = []

    def note(name: str) -> None:
        real = getattr(draft_module, name)

        def noted(*given: Any) -> None:
            events.append((name, everything_in(store.root / KEY.stage / f".draft-{KEY.identity}")))
            assert list((store.root / KEY.stage).glob("mine-*")) == [], "nothing is published before"
            real(*given)

        monkeypatch.setattr(draft_module, name, noted)

    for name in ("sync_all", "write_manifest", "rename_into_place"):
        note(name)
    with store.publish(KEY, "mine") as draft:
        draft.write_json("result.json", 1)
    assert events == [
        ("sync_all", ["result.json"]),
        ("write_manifest", ["result.json"]),
        ("rename_into_place", [MANIFEST, "result.json"]),
    ]
    assert published(store) == [MANIFEST, "result.json"]


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


def test_the_checkpoint_of_a_training_is_no_part_of_what_it_made(store):
    with store.publish(KEY, "mine") as draft:
        half_trained(draft)
    assert published(store) == [MANIFEST, "model", "model/half", "scores.json"]
    assert [one["path"] for one in store.find(KEY).manifest["files"]] == ["model/half", "scores.json"]


def test_what_is_sealed_stays_as_it_is(store):
    with store.publish(KEY, "mine") as draft:
        draft.write_json("scores.json", 1)
        draft.seal()
        first = read_manifest(draft.path)
        draft.note(device="late")
        draft.seal(after="nobody")
        assert everything_in(draft.path) == [MANIFEST, "scores.json"]
    assert store.find(KEY).manifest == first


def test_a_signal_while_an_artifact_is_put_in_its_place_is_heeded_when_it_is_there(store, monkeypatch):
    settle = draft_module.rename_into_place

    def stop(*given: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        settle(*given)

    monkeypatch.setattr(draft_module, "rename_into_place", stop)
    with pytest.raises(interrupts.Stopped), interrupts.heeded(), store.publish(KEY, "mine"):
        pass
    assert published(store) == [MANIFEST]


@pytest.mark.parametrize("problem", [RuntimeError("ours"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_of_a_training_that_was_stopped_the_checkpoint_stays_and_the_next_one_has_it(store, problem):
    with pytest.raises(type(problem)), store.publish(KEY, "mine") as draft:
        half_trained(draft)
        raise problem
    assert store.find(KEY) is None
    assert everything_in(draft.path) == [CHECKPOINT, f"{CHECKPOINT}/state.json"]
    with store.publish(KEY, "mine") as again:
        assert again.path == draft.path
        assert (again.checkpoint / "state.json").read_text() == "far"
    assert published(store) == [MANIFEST]
    assert not draft.path.exists()


# ---- what a process left that died ---------------------------------------------------------------------------------


def test_of_a_process_that_died_the_checkpoint_is_taken_over_and_the_rest_goes(store):
    die(store, HALF_TRAINED)
    left = draft_of(store)
    assert len(everything_in(left)) == 5
    with store.publish(KEY, "mine") as draft:
        assert everything_in(draft.path) == [CHECKPOINT, f"{CHECKPOINT}/state.json"]
        draft.write_json("result.json", 1)
    assert published(store) == [MANIFEST, "result.json"]
    assert not left.exists()


def test_of_a_process_that_died_before_it_had_learnt_anything_nothing_is_taken(store):
    die(store, HALF_TRAINED.replace("half_trained(draft)", 'draft.write_json("result.json", "half")'))
    with store.publish(KEY, "mine") as draft:
        assert everything_in(draft.path) == []


def test_what_was_sealed_when_its_process_died_is_published_and_not_made_again(store):
    die(store, FINISHED)
    left = draft_of(store)
    with store.publish(KEY, "mine") as draft:
        assert draft is None
    assert published(store) == [MANIFEST, "model", "model/half", "scores.json"]
    assert store.find(KEY).path.name == f"theirs-{KEY.identity}", "under the name that its manifest has"
    assert not left.exists()


@pytest.mark.parametrize(
    "harm",
    [
        lambda left: (left / "scores.json").write_text("2\n"),
        lambda left: (left / "scores.json").unlink(),
        lambda left: (left / MANIFEST).write_text("{"),
        lambda left: (left / MANIFEST).write_text((left / MANIFEST).read_text().replace("theirs", "others")),
    ],
    ids=["content", "file", "manifest", "value"],
)
def test_what_was_sealed_and_is_not_as_it_was_written_is_made_again(store, harm):
    die(store, FINISHED)
    harm(draft_of(store))
    with store.publish(KEY, "mine") as draft:
        assert everything_in(draft.path) == [CHECKPOINT, f"{CHECKPOINT}/state.json"]
    assert published(store) == [MANIFEST]


def test_what_was_sealed_as_something_else_is_made_again(store):
    die(store, FINISHED.replace("KEY", "OTHER"))
    draft_of(store, OTHER).rename(draft_of(store))
    with store.publish(KEY, "mine") as draft:
        assert draft is not None


# ---- what counts only together --------------------------------------------------------------------------------------


AFTER_OTHER = """
with store.publish(OTHER, "theirs") as one, store.publish(KEY, "theirs") as two:
    two.write_json("scores.json", 2)
    two.seal(after=OTHER.identity)
    one.write_json("scores.json", 1)
"""


def test_a_draft_that_was_sealed_after_another_counts_for_nothing_without_it(store):
    die(store, AFTER_OTHER)
    with store.publish(KEY, "mine") as draft:
        assert everything_in(draft.path) == []


@pytest.mark.parametrize("first", ["seal", "publish"])
@pytest.mark.parametrize("order", [(KEY, OTHER), (OTHER, KEY)], ids=["this one first", "the other first"])
def test_a_draft_that_was_sealed_after_another_is_published_where_that_one_is_finished(store, first, order):
    die(store, f"{AFTER_OTHER}    one.{first}()\n")
    for key in order:
        with store.publish(key, "mine") as draft:
            assert draft is None
        assert published(store, key) == [MANIFEST, "scores.json"], "and nothing says what it waited for"
    assert everything_in(store.root / KEY.stage) == sorted(
        f"theirs-{key.identity}{name}" for key in (KEY, OTHER) for name in ("", f"/{MANIFEST}", "/scores.json")
    )


def test_after_what_is_no_part_of_the_artifact(store):
    with store.publish(KEY, "mine") as draft:
        draft.write_json("scores.json", 1)
        draft.seal(after=OTHER.identity)
        assert everything_in(draft.path) == [AFTER, MANIFEST, "scores.json"]
        assert [one["path"] for one in read_manifest(draft.path)["files"]] == ["scores.json"]


# ---- locks ---------------------------------------------------------------------------------------------------------


HOLD = """
with acquire(store.root, KEY.stage, KEY.identity, None):
    print("held", flush=True)
    sys.stdin.read(1)
"""


def test_a_lock_is_waited_for_and_who_holds_it_is_named_once(store):
    command = [sys.executable, "-c", BEGIN + HOLD, store.root]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "held\n"
    told = []

    def waiting(who: str) -> None:
        told.append(who)
        threading.Timer(0.5, child.stdin.close).start()

    with (
        pytest.raises(Busy, match=f"another process is at {KEY.stage} {KEY.identity}"),
        acquire(store.root, KEY.stage, KEY.identity, None),
    ):
        pytest.fail("it is held")
    with acquire(store.root, KEY.stage, KEY.identity, waiting):
        child.wait(20)
        assert told == [f"process {child.pid} on {socket.gethostname()}"]
        assert (store.root / LOCKS / f"{KEY.stage}-{KEY.identity}").read_text() == (
            f"process {os.getpid()} on {socket.gethostname()}"
        )
    child.stdout.close()


def test_the_lock_of_a_process_that_died_is_free(store):
    die(store, "with acquire(store.root, KEY.stage, KEY.identity, None):\n")
    with acquire(store.root, KEY.stage, KEY.identity, None):
        pass


@pytest.mark.parametrize("content", [b"", b"\xff"])
def test_who_has_not_said_its_name_is_another_process(store, content):
    path = store.root / LOCKS / f"{KEY.stage}-{KEY.identity}"
    assert lock_module.holder(path) == "another process", "nor is it an error that there is no file any more"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    assert lock_module.holder(path) == "another process"


def test_a_lock_that_cannot_say_whose_it_is_is_held_all_the_same(store, monkeypatch):
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", fail)
        with acquire(store.root, KEY.stage, KEY.identity, None):
            assert lock_module.is_locked(store.root, KEY.stage, KEY.identity)
    assert not lock_module.is_locked(store.root, KEY.stage, KEY.identity)


@pytest.mark.parametrize("place", ["open_draft", "acquire"])
def test_a_draft_that_cannot_be_begun_is_said_and_leaves_no_lock(store, monkeypatch, place):
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store_module, place, fail)
        with pytest.raises(StoreError, match="No space left on device"), store.publish(KEY, "mine"):
            pytest.fail("the block must not run")
    with store.publish(KEY, "mine", waiting=None) as draft:
        assert draft is not None


# ---- what it was made with -----------------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh checkout that `code_state` takes for this one."""
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "checkout"
    (folder / "pet").mkdir(parents=True)
    (folder / "pet" / "store").mkdir()
    (folder / "pet" / "store" / "environment.py").write_text("one")
    monkeypatch.setattr(environment, "__file__", str(folder / "pet" / "store" / "environment.py"))
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
    (checkout / "pet" / "store" / "environment.py").write_text("two")
    assert code_state() == {"commit": head, "dirty": True}


def test_code_outside_a_checkout_has_no_commit(checkout):
    assert code_state() is None


def test_a_checkout_that_git_cannot_read_has_no_commit(checkout, monkeypatch):
    (checkout / ".git").mkdir()
    assert code_state() is None, "git fails"
    monkeypatch.setenv("PATH", str(checkout))
    assert code_state() is None, "there is no git"


def test_packages_that_are_not_installed_are_left_out(monkeypatch):
    monkeypatch.setattr(environment, "RECORDED_PACKAGES", ("numpy", "no-such-package-of-this-name"))
    found = environment.environment.__wrapped__()
    assert set(found["packages"]) == {"numpy"}
