"""Files of rows: what is read is what was written, and a row that cannot be read is told with its line."""

import gzip
import json
import sys
from contextlib import ExitStack

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pet.config import limits
from pet.errors import TaskError
from pet.tasks import readers
from pet.tasks.card import FilesSource
from pet.tasks.readers import FORMATS, Broken, ReadingRules, Row, RowFile, read_rows
from pet.tasks.sources import file_rows
from pet.tasks.writers import RowWriter, as_json, as_text

CONTROLS = [chr(code) for code in (*range(0x20), *range(0x7F, 0xA0))]
ODD = [
    *CONTROLS,
    *"\u2028\u2029\ufeff\u00ad\u200b\u202e\ufffe\uffff\ue000\U0001f600\U0010ffff \u00a0\"',;|\\",
    "",
    "\r\n",
]
"""What some reader takes for the end of a cell, a line or a file, for a mark, or for nothing."""

FILES = [f"a.{one}{packed}" for one in FORMATS for packed in ("", ".gz")]


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
    assert read(write(tmp_path / "a.csv", "1,one\n"), rules=ReadingRules("csv", columns=("id", "text"))) == [
        (1, {"id": "1", "text": "one"})
    ]


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
        ("a.xlsx", "text\n", "must end in .csv"),
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


WRONG = {
    "a.csv": (
        'a,b\n1,2\n3\n4,"x"y\n5,6,7\n8,9\n',
        "line 3 has 1 columns, expected 2 (a, b)",
        "line 4: ",
        "line 5 has 3",
    ),
    "a.tsv.gz": ("a\tb\n1\t2\n\n3\n5\t6\t7\n8\t9\n", "line 4 has 1 columns", "line 5 has 3 columns"),
    "a.jsonl": ('{"a": "1"}\nno\n[1]\n{"a": "8"}\n', "line 2 is not a JSON object", "line 3 is not a JSON object"),
}


@pytest.mark.parametrize("name", WRONG)
def test_read_strictly_the_right_rows_come_first_and_then_all_that_is_wrong_is_told(name, tmp_path):
    content, *said = WRONG[name]
    path = write(tmp_path / name, content)
    rules = ReadingRules(name.split(".")[1])
    found = []
    with pytest.raises(TaskError) as raised:
        found.extend(read_rows(path, rules))
    assert [next(iter(one.values.values())) for one in found] == ["1", "8"]
    assert all(one in str(raised.value) for one in said)
    assert [one for one in RowFile(path, rules).rows() if isinstance(one, Row)] == found


def test_both_ways_stream(tmp_path, monkeypatch):
    """The first row is there before the others are read."""
    lines = []
    real = readers.Reader._refuse_long
    monkeypatch.setattr(readers.Reader, "_refuse_long", lambda self, line: lines.append(line) or real(self, line))
    for name in ("a.csv", "a.txt", "a.jsonl"):
        path = write(tmp_path / name, '{"a": 1}\n' * 1000)
        rules = ReadingRules(readers.SUFFIXES[name[2:]], quoted=False)
        for rows in (read_rows(path, rules), RowFile(path, rules).rows()):
            lines.clear()
            next(rows)
            assert 0 < len(lines) < 10


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "utf-8-sig", "latin-1"])
@pytest.mark.parametrize("marked", [True, False])
def test_an_encoding_is_read_in_pieces_as_it_is_in_one_go(encoding, marked, tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "READ_AT_ONCE", 3)
    text = "a,b\n\u00e9,\u00fc\n" * 5
    content = text.encode(encoding)
    if not marked and encoding in ("utf-16", "utf-32"):
        content = text.encode(f"{encoding}-{'le' if sys.byteorder == 'little' else 'be'}")
    rules = ReadingRules("csv", encodings=("ascii", encoding), columns=("x", "y"))
    path = write(tmp_path / "a.csv", content)
    expected = [line.split(",") for line in content.decode(encoding).splitlines()]
    for rows in (read_rows(path, rules), RowFile(path, rules).rows()):
        assert [list(one.values.values()) for one in rows] == expected


def test_rows_that_no_encoding_fits_are_told_one_by_one_leniently_and_at_once_strictly(tmp_path):
    path = write(tmp_path / "a.csv", b"a\nx\n\x81\ny\n")
    rules = ReadingRules("csv", encodings=("utf-8", "cp1252"))
    with pytest.raises(TaskError, match="line 3: not utf-8 or cp1252 text; convert the file to UTF-8"):
        read_rows(path, rules)
    assert read(path, rules=rules) == [(2, {"a": "x"}), (3, "not utf-8 text"), (4, {"a": "y"})]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.parquet"])
def test_columns_without_a_name_are_named_by_their_place_where_there_are_several(name, tmp_path):
    names, cells = ["", "text", "", "column_3"], ["1", "one", "2", "3"]
    if name == "a.parquet":
        arrays = [pyarrow.array([one]) for one in cells]
        pyarrow.parquet.write_table(pyarrow.Table.from_arrays(arrays, names=names), tmp_path / name)
    else:
        separator = readers.DELIMITERS[name[2:]]
        write(tmp_path / name, f"{separator.join(names)}\n{separator.join(cells)}\n")
    wanted = dict(zip(["column_1", "text", "_column_3", "column_3"], cells, strict=True))
    assert [one.values for one in read_rows(tmp_path / name, ReadingRules(name[2:]))] == [wanted]
    assert [one.values for one in RowFile(tmp_path / name).rows()] == [wanted]
    assert RowFile(tmp_path / name).names == list(wanted)


def test_limits_hold_however_a_file_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "MAX_LINE", 50)
    for name, content in (("a.csv", "a\n{}\n"), ("a.jsonl", '{{"a": "{}"}}\n'), ("a.txt", "{}\n")):
        path = write(tmp_path / name, content.format("x" * 100))
        for read_all in (lambda one, rules: list(read_rows(one, rules)), lambda one, _: list(RowFile(one).rows())):
            with pytest.raises(TaskError, match="a line of more than 50 characters"):
                read_all(path, readers.rules_by_name(path))
    monkeypatch.setattr(readers, "MAX_LINE", 10_000)
    monkeypatch.setattr(readers, "MAX_FIELD", 20)
    monkeypatch.setattr(readers, "MAX_COLUMNS", 3)
    write(tmp_path / "a.csv", f"a,b\n{'x' * 100},x\ny,y\n")
    with pytest.raises(TaskError, match="line 2: field larger than field limit"):
        list(read_rows(tmp_path / "a.csv", ReadingRules("csv")))
    assert [type(one) for one in RowFile(tmp_path / "a.csv").rows()] == [Broken, Row]
    write(tmp_path / "a.csv", "a,b,c,d\n")
    for read_names in (
        lambda: list(read_rows(tmp_path / "a.csv", ReadingRules("csv"))),
        lambda: RowFile(tmp_path / "a.csv"),
    ):
        with pytest.raises(TaskError, match="has 4 columns, more than 3"):
            read_names()


def write_rows(path, rows):
    """Through the writer of `pet predict`."""
    with ExitStack() as stack:
        RowWriter(path, dict.fromkeys(rows[0], pyarrow.string()), stack).write(rows)
    return path


def read_as_card(path):
    """Through the reader of task cards."""
    kind = path.name.split(".")[1]
    return [one.values for one in file_rows(FilesSource(format=kind, train=path.name, label=None), path)]


def assert_come_back(path, rows):
    write_rows(path, rows)
    assert [one.values for one in RowFile(path).rows()] == rows
    if not any("\0" in text for row in rows for one in row.items() for text in one):  # which no card's text has
        assert read_as_card(path) == rows


@pytest.mark.parametrize("name", FILES)
def test_every_cell_comes_back_exactly_whatever_is_in_it(name, tmp_path):
    cells = [
        cell for one in ODD for cell in (one, f"a{one}b", f"{one}a", f"a{one}", f"{one}{one}", f'"{one}', f"{one};")
    ]
    for some in ([one for one in cells if "\0" not in one], [one for one in cells if "\0" in one]):
        assert_come_back(
            tmp_path / name, [{"id": str(number), "text": one, "end": "x"} for number, one in enumerate(some)]
        )
        assert_come_back(tmp_path / name, [{"text": one} for one in some])


@pytest.mark.parametrize("name", FILES)
def test_every_name_of_a_column_comes_back_exactly(name, tmp_path):
    for one in ODD:
        assert_come_back(tmp_path / name, [{one: "x", f"a{one};": "y, z"}, {one: "", f"a{one};": ""}])
        assert_come_back(tmp_path / name, [{f"{one};a": "x, y; z"}])


@pytest.mark.parametrize("name", FILES)
def test_files_of_odd_texts_come_back(name, tmp_path):
    text = st.text(
        st.one_of(st.sampled_from([one for one in ODD if len(one) == 1]), st.characters(codec="utf-8")), max_size=8
    )
    tables = st.lists(text, min_size=1, max_size=3, unique=True).flatmap(
        lambda names: st.lists(st.fixed_dictionaries(dict.fromkeys(names, text)), min_size=1, max_size=4)
    )

    @settings(max_examples=100, derandomize=True, database=None, deadline=None)
    @given(tables)
    def check(rows):
        assert_come_back(tmp_path / name, rows)

    check()


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_empty_where_a_format_knows_no_null(name, tmp_path):
    rows = [{"a": None, "b": "", "c": "x"}, {"c": "y"}]
    path = write_rows(tmp_path / name, rows[:1])
    kept = None if "parquet" in name or "jsonl" in name else ""
    assert [one.values for one in RowFile(path).rows()] == [{"a": kept, "b": "", "c": "x"}]


def test_plain_cells_have_no_quotation_marks(tmp_path):
    path = write_rows(tmp_path / "a.csv", [{"id": "1", "text": " caf\u00e9: 'x' \u4e2d "}, {"id": "", "text": 'a,"b"'}])
    assert path.read_bytes() == 'id,text\n1, caf\u00e9: \'x\' \u4e2d \n,"a,""b"""\n'.encode()


def test_values_are_written_as_text_and_as_json_that_any_reader_takes():
    assert [as_text(one) for one in (None, "", 'a"', 3, 0.5, True, [1, "x"], float("nan"), b'"')] == [
        "", "", 'a"', "3", "0.5", "true", '[1, "x"]', "", "b'\"'"
    ]  # fmt: skip
    assert json.loads(as_json({"a": float("nan"), "b": [float("inf"), "\u00e9"]})) == {"a": None, "b": [None, "\u00e9"]}
