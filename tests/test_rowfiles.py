"""Files of rows: what is read is what was written, and a row that cannot be read is told with its line."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from pet.errors import TaskError
from pet.rowfiles import Broken, RowFile, as_json, as_text, draft_of
from pet.tasks import Row


def write(path, content):
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def read(path, **more):
    """(line, values, or what is wrong) of every row."""
    rows = RowFile(path, **more).rows()
    return [(int(one.where.rpartition(":")[2]), one.values if isinstance(one, Row) else one.reason) for one in rows]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'id,text\n1,"one, ""two""\nthree"\n\n2,caf\u00e9\n'),
        ("a.csv.gz", '\ufeffid,text\r\n1,"one, ""two""\nthree"\r\n\r\n2,caf\u00e9\r\n'),
        ("a.tsv", 'id\ttext\n1\t"one, ""two""\nthree"\n\n2\tcaf\u00e9\n'),
    ],
)
def test_delimited_rows_are_read_with_the_line_that_they_begin_on(name, content, tmp_path):
    found = read(write(tmp_path / name, content))
    assert found == [(2, {"id": "1", "text": 'one, "two"\nthree'}), (5, {"id": "2", "text": "caf\u00e9"})]


def test_a_file_without_a_header_line_is_read_by_the_names_given(tmp_path):
    assert read(write(tmp_path / "a.csv", "1,one\n"), headless=["id", "text"]) == [(1, {"id": "1", "text": "one"})]


def test_delimited_rows_that_cannot_be_read_are_told_and_the_others_read(tmp_path):
    content = b'id,text\n1,one\n2\n3,caf\xe9\n4,"a"b\n5,a,b\n6,six\n7,"never\nclosed\n'
    found = read(write(tmp_path / "a.csv", content))
    assert [line for line, one in found if isinstance(one, str)] == [3, 4, 5, 6, 8]
    assert [one["id"] for _, one in found if not isinstance(one, str)] == ["1", "6"]
    said = [one for _, one in found if isinstance(one, str)]
    assert said[0] == "1 columns, expected 2"
    assert said[1] == "not UTF-8 text"
    assert "with the 1 line after it" in said[-1]


def test_json_rows_that_cannot_be_read_are_told_and_the_others_read(tmp_path):
    content = b'{"a": 1}\n\nno\n[1]\n{"a": "\xff"}\n{"a": "\\ud800"}\n{"b": "\\u00e9"}'
    found = read(write(tmp_path / "a.jsonl.gz", content))
    assert [(line, one) for line, one in found if not isinstance(one, str)] == [(1, {"a": 1}), (7, {"b": "\u00e9"})]
    assert [line for line, one in found if isinstance(one, str)] == [3, 4, 5, 6]


def test_a_json_file_s_columns_are_all_keys_and_their_types_are_what_holds_all_values(tmp_path):
    rows = [{"n": 1, "f": 1, "b": True, "m": 1, "big": 2**70}, {"f": 0.5, "m": "x", "list": [1], "none": None}]
    file = RowFile(write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows))))
    found = {name: str(kind) for name, kind in file.types.items()}
    assert found == {
        "n": "int64", "f": "double", "b": "bool", "m": "string", "big": "string", "list": "string", "none": "string"
    }  # fmt: skip


@pytest.mark.parametrize("name", ["a.parquet", "a.parquet.gz"])
def test_parquet_rows_keep_their_types(name, tmp_path):
    table = pyarrow.table({"id": pyarrow.array([1, 2], pyarrow.int16()), "text": ["one", None]})
    pyarrow.parquet.write_table(table, tmp_path / "plain", row_group_size=1)
    file = write(tmp_path / name, (tmp_path / "plain").read_bytes())
    assert read(file) == [(1, {"id": 1, "text": "one"}), (2, {"id": 2, "text": None})]
    assert str(RowFile(file).types["id"]) == "int16"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "", "is empty"),
        ("a.jsonl", "", "is empty"),
        ("a.csv", "a,b,a\n1,2,3\n", "several columns 'a'"),
        ("a.csv", "\xff\xfea".encode("latin-1"), "line 1: not UTF-8"),
        ("a.parquet", "no parquet", "is not a Parquet file"),
        ("a.txt", "text\n", "must end in .csv"),
    ],
)
def test_a_file_that_cannot_be_read_at_all_is_one_sentence(name, content, said, tmp_path):
    with pytest.raises(TaskError, match=said):
        RowFile(write(tmp_path / name, content))


def test_a_gz_that_breaks_off_is_one_sentence(tmp_path):
    whole = gzip.compress(b"text\n" + b"".join(b"%d\n" % pow(7919, number, 10**9) for number in range(9000)))
    (tmp_path / "a.csv.gz").write_bytes(whole[: len(whole) // 2])
    file = RowFile(tmp_path / "a.csv.gz")
    with pytest.raises(TaskError, match="cannot be read"):
        assert not any(isinstance(one, Broken) for one in file.rows())


def test_values_are_written_as_text_and_as_json_that_any_reader_takes():
    assert [as_text(one) for one in (None, "", 'a"', 3, 0.5, True, [1, "x"])] == [
        "", "", 'a"', "3", "0.5", "true", '[1, "x"]'
    ]  # fmt: skip
    assert json.loads(as_json({"a": float("nan"), "b": [float("inf"), "\u00e9"]})) == {"a": None, "b": [None, "\u00e9"]}


def test_a_file_has_its_name_only_when_it_is_complete(tmp_path):
    path = tmp_path / "out.csv"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), draft_of(path) as draft:
        draft.write_text("half")
        raise KeyboardInterrupt
    assert [one.name for one in tmp_path.iterdir()] == ["out.csv"]
    assert path.read_text() == "old"
    with draft_of(path) as draft:
        draft.write_text("new")
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("out.csv", "new")]
