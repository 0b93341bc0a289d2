"""JSON, digests, and writing that leaves nothing half-written under a final name."""

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pet.config.safe_yaml import load_yaml
from pet.errors import StoreError, TaskError
from pet.store import files
from pet.store.files import (
    canonical_json,
    digest_file,
    digest_json,
    flow,
    new_file,
    read_json,
    readable_yaml,
    scalar,
    sync_all,
    write_folder,
    write_json,
)

# ---- JSON and digests ----------------------------------------------------------------------------------------------


def test_what_cannot_be_written_as_json_has_no_digest():
    with pytest.raises(TypeError):
        digest_json({"path": Path("x")})


def test_canonical_json_is_one_text_per_value():
    assert canonical_json({"b": 1, "a": ["ü", 2.0]}) == '{"a":["ü",2.0],"b":1}'


BREAKS = ("\x85", "\u2028", "\u2029", "\x0b", "\x0c", "\x1c", "\r", "\ufeff", "\xa0", "\x1b", "\n", "\t", "\x7f")


@pytest.mark.parametrize("one", BREAKS)
def test_yaml_comes_back_whatever_ends_a_line_for_somebody(one):
    for text in (one, f"a{one}b", f" {one}", f"# {one}: x", f"{one}'{one}"):
        for value in (text, [text, "größe"], {text: {"a": [text]}}):
            assert load_yaml(readable_yaml(value)) == value
            assert load_yaml(readable_yaml(value, width=1000, default_flow_style=None)) == value
            assert load_yaml(f"# {scalar(text)}\nkey: {scalar(text)}\nother: {flow([value])}") == {
                "key": text,
                "other": [value],
            }
            assert len(readable_yaml(value).replace("\n", "").splitlines()) == 1


@settings(max_examples=200, derandomize=True, database=None, deadline=None)
@given(
    st.recursive(
        st.text(st.one_of(st.sampled_from(BREAKS), st.characters(codec="utf-8", exclude_characters="\0"))),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(st.sampled_from("a:#\x85'")), inner, max_size=3)
        ),
        max_leaves=6,
    )
)
def test_yaml_of_odd_texts_comes_back(value):
    assert load_yaml(readable_yaml(value)) == value
    line = flow([value])
    assert load_yaml(line) == [value]
    assert "\n" not in line


def test_yaml_is_for_people_who_write_in_any_letters():
    assert readable_yaml({"größe": ["中", "naïve 😀"]}, default_flow_style=None) == "größe: [中, naïve 😀]\n"
    joined = ["نمی\u200cشود", "l\u00a0état", "👩\u200d🚀"]  # Persian, French, an emoji of two
    assert all(one in readable_yaml(joined) and one in flow(joined) for one in joined)


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


def test_json_that_is_no_json_is_named_with_what_to_do(tmp_path):
    for content in (b"\xff\xfe\x00", b'{"a": ', b"[" * 100_000):
        (tmp_path / "x.json").write_bytes(content)
        with pytest.raises(StoreError, match=r"x\.json cannot be read .*; remove .* and run its stage again"):
            read_json(tmp_path / "x.json")
    with pytest.raises(StoreError, match=r"y\.json cannot be read"):
        read_json(tmp_path / "y.json")


# ---- folders and files outside a store ----------------------------------------------------------------------------


def test_everything_in_a_folder_is_on_the_disk_files_before_the_folder_that_lists_them(tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "one").write_text("1")
    (tmp_path / "two").write_text("2")
    synced = []
    monkeypatch.setattr(files.os, "fsync", lambda number: synced.append(os.fstat(number).st_ino))
    sync_all(tmp_path)
    everything = [*tmp_path.rglob("*"), tmp_path]
    assert set(synced) == {path.stat().st_ino for path in everything}
    assert synced[-1] == tmp_path.stat().st_ino


def fill(folder: Path) -> None:
    (folder / "model").mkdir()
    (folder / "model" / "one").touch(mode=0o600)
    (folder / "two").write_text("2")


def test_a_folder_is_there_when_it_is_whole_and_open_to_those_who_may_read_it(tmp_path):
    out = tmp_path / "new" / "out"
    with write_folder(out) as folder:
        fill(folder)
        assert not out.exists()
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*")) == ["model", "model/one", "two"]
    assert (out / "model" / "one").stat().st_mode & 0o777 == (out / "model").stat().st_mode & 0o666
    assert [path.name for path in tmp_path.iterdir()] == ["new"], "and no draft"


@pytest.mark.parametrize("problem", [RuntimeError("ours"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_a_folder_that_was_not_filled_leaves_nothing(tmp_path, problem):
    with pytest.raises(type(problem)), write_folder(tmp_path / "new" / "out") as folder:
        fill(folder)
        raise problem
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_not_written_unless_it_is_empty(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with write_folder(out) as folder:
        fill(folder)
    with pytest.raises(StoreError, match="out exists already; name a new folder"), write_folder(out):
        pytest.fail("the block must not run")
    with pytest.raises(StoreError, match="two exists already"), write_folder(out / "two"):
        pytest.fail("the block must not run")


def test_a_file_is_there_when_it_is_whole_and_the_one_before_stays_until_then(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt), new_file(path) as draft:
        draft.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "before"
    with new_file(path) as draft:
        draft.write_text("after")
        assert path.read_text() == "before"
    assert path.read_text() == "after"
    assert [one.name for one in tmp_path.iterdir()] == ["page.html"]


def test_a_file_that_cannot_be_written_is_said_and_that_another_one_cannot_be_read_is_not_its_fault(tmp_path):
    missing = pytest.raises(
        TaskError, match=r"no/out\.csv cannot be written \(No such file or directory\); name another"
    )
    with missing, new_file(tmp_path / "no" / "out.csv", TaskError):
        pytest.fail("the block must not run")
    full = pytest.raises(StoreError, match=r"out\.csv cannot be written \(No space left on device\); make room")
    with full, new_file(tmp_path / "out.csv", remedy="make room"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(FileNotFoundError), new_file(tmp_path / "out.csv"):
        (tmp_path / "in.csv").read_text()
    assert list(tmp_path.iterdir()) == []
