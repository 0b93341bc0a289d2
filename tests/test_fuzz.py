"""What other people's files may hold: cards, pipelines, --set and data files, bent in every way hypothesis thinks of.

The promise is always the same one: a valid value, or one sentence of ours; never another exception, a warning (pytest
makes them errors) or a hang. The cases are the same ones every time.
"""

import datetime
import io
import json
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import yaml
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.rows import CARD, HIDDEN, LABELS, PIPELINE, TRAIN, invent_rows, lay_ground, lively_model
from support.tiny import save_tiny

from pet.cli import main
from pet.config import messages as messages_module
from pet.config import resolve as resolve_module
from pet.config import schema as schema_module
from pet.config.resolve import parse_assignment, resolve_pretraining, resolve_settings, resolve_tasks
from pet.config.schema import ModelSettings
from pet.errors import PetError
from pet.modeling.loading import load_masked_lm, load_tokenizer
from pet.tasks import annotations, sources
from pet.tasks import card as card_module
from pet.tasks.readers import Broken, RowFile
from pet.tools.authoring.new_card import choose_columns, read_input, survey
from pet.training.mlm_corpus import find_files, read_documents

pytestmark = pytest.mark.slow

LONGEST = 2000
"""Characters of a sentence."""

PATIENCE = 30
"""Seconds after which a case hangs: most take milliseconds."""

CLASSES = [
    name
    for module in (messages_module, card_module)
    for name, one in vars(module).items()
    if isinstance(one, type) and one.__module__.startswith("pet.") and name not in ("Settings", "Row", "Source")
]


def cases(number: int) -> Callable[[Any], Any]:
    """So many of them, the same ones every time."""
    return settings(
        max_examples=number,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@contextmanager
def no_hang() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError("a case that hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def check_sentence(said: str) -> None:
    """One line for a person, no name of a class in it."""
    assert said.strip()
    assert said.isprintable(), ascii(said)
    assert len(said) <= LONGEST, said
    for word in ("<class", " object at 0x", "Traceback", "<function", *CLASSES):
        assert word not in said, said


def clean(call: Callable[..., Any], *arguments: Any) -> Any:
    """What the call returns, or `None` if it refuses in a sentence of ours."""
    with no_hang():
        try:
            return call(*arguments)
        except PetError as problem:
            check_sentence(str(problem))
            return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A card, a pipeline and data files that are all as they should be."""
    found = tmp_path_factory.mktemp("fuzz")
    lay_ground(found, lively_model(tmp_path_factory.getbasetemp()))
    return found


# ---- values that nobody expects ------------------------------------------------------------------------------------


def nested(depth: int) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = [value]
    return value


# fmt: off
ODD_TEXTS = [
    "", " ", "x" * 5000, "\u202e\u0301\U0001f600", "\x1b[31m", "a\nb", "null", "yes", "1e5", "=1+1", "$x_{$",
    "../x", "/etc/passwd", "/dev/zero", "~nobody/x", "~", "file:///etc/passwd", "C:\\x", "a/../../x", ".", "..",
    "{mask}", "{a.__class__}", "{a:>999999999}", "{a!r}", "{0}", "{}", "{", "}", "{headline}{headline}", "{mask}||",
    "utf-16", "utf-7", "rot13", "idna", "hex", "os.path", "antigravity.x", "__main__", "bbc", "mnli", "task.yaml",
    "csv", "||", "a" * 300, "<script>",
]
ODD_VALUES = [
    None, True, False, 0, -1, 1, 10**30, -(10**30), 1e300, float("nan"), float("inf"), 0.5,
    datetime.date(2001, 1, 1), b"\xff", [], {}, [[]], {"": ""}, {1: 2}, [None], ["a", "a"], {None: None}, {True: 1},
    nested(15), nested(60), ["a"] * 2000, {str(number): number for number in range(300)}, ["{mask} {headline}"] * 200,
]
# fmt: on
PLAIN = st.text(st.characters(exclude_categories=["Cs"]), max_size=30).filter(lambda text: text not in CLASSES)
"""Hypothesis takes names out of the source, which then stand in a sentence because they were given."""
VALUES = st.one_of(
    st.sampled_from(ODD_TEXTS),
    st.sampled_from(ODD_VALUES),
    PLAIN,
    st.integers(),
    st.floats(),
    st.recursive(
        st.none() | st.booleans() | st.integers() | PLAIN,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(PLAIN, inner, max_size=3),
        max_leaves=6,
    ),
)


def spots(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a nested value."""
    for key, one in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, key)
        yield from spots(one, (*path, key))


def copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: copied(one) for key, one in value.items()}
    return [copied(one) for one in value] if isinstance(value, list) else value


@st.composite
def bent(draw: st.DrawFn, value: Any) -> Any:
    """A nested value, changed in one to four places."""
    value = copied(value)
    for _ in range(draw(st.integers(1, 4))):
        places = list(spots(value))
        if not places:
            break
        *above, last = draw(st.sampled_from(places))
        inside = value
        for key in above:
            inside = inside[key]
        kind = draw(st.sampled_from(["replace", "replace", "replace", "drop", "wrap", "add", "name", "stretch"]))
        if kind == "drop":
            del inside[last]
        elif kind == "wrap":
            inside[last] = draw(st.sampled_from([[inside[last]], {"x": inside[last]}, str(inside[last])]))
        elif kind == "add" and isinstance(inside, dict):
            inside[draw(st.sampled_from(ODD_TEXTS) | PLAIN)] = copied(draw(VALUES))
        elif kind == "add":
            inside.append(copied(draw(VALUES)))
        elif kind == "name" and isinstance(inside, dict):
            inside[draw(PLAIN)] = inside.pop(last)
        elif kind == "stretch" and isinstance(inside[last], str):
            inside[last] += draw(st.sampled_from(ODD_TEXTS) | PLAIN)
        else:
            inside[last] = copied(draw(VALUES))
    return value


# fmt: off
SPLINTERS = [
    b"&a ", b"*a", b"<<: *a", b"!!python/object/apply:os.system [x]", b"!!timestamp x", b"!!binary x", b"!!set ",
    b"!x ", b"\t", b"- ", b": ", b"? ", b"\0", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"{", b"[", b"'", b'"',
    b"|", b">",
    b"%YAML 9.9\n", b"---\n", b"...\n", b"#", b"\n", b"\r", b"\r\n", b",", b";", b"\\", b"\\ud800", b"2001-99-99",
    b"9" * 5000, b"[" * 3000, b"1:1", b"=", b"\x1b[2J", b"\x85", b"\xe2\x80\xa8", b"NaN", b"1e999", b"x" * 200_000,
]
# fmt: on


@st.composite
def broken(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes, changed in one to five places: cut, doubled, moved, overwritten, or with something put in."""
    for _ in range(draw(st.integers(1, 5))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.sampled_from([0, 1, 1, 2, 5, 20, 1000])))
        piece = content[start:end]
        kind = draw(st.integers(0, 5))
        if kind == 0:
            content = content[:start] + content[end:]
        elif kind == 1:
            content = content[:end] + piece + content[end:]
        elif kind == 2:
            content = content[:start] + draw(st.binary(max_size=4)) + content[end:]
        elif kind == 3:
            content = content[:start]
        else:
            content = content[:start] + draw(st.sampled_from(SPLINTERS)) + content[end if kind == 4 else start :]
    return content


# ---- cards ---------------------------------------------------------------------------------------------------------

WHOLE_CARD: dict[str, Any] = {
    **CARD,
    "metric": "accuracy",
    "patterns": [*CARD["patterns"], {"pattern": "{mask} | {body|unpunctuated|whole}", "verbalizer": "default"}],
    "files": {
        **CARD["files"],
        "label": "label",
        "fields": {"headline": "{headline} {body}"},
        "labels": {label: label for label in LABELS},
        "replace": {"a": "b"},
        "where": {},
        "columns": None,
        "quoted": True,
        "encodings": ["utf-8-sig", "cp1252"],
    },
    "folder": None,
    "hub": {"path": "nobody/nothing", "label": "label"},
}


def read_card(path: Path) -> None:
    """As every command does: the card, its patterns, its texts."""
    card, beside = card_module.load_card(str(path))
    card.pvps()
    if card.files and not card.folder:  # not a package of this machine, nor the hub
        sources.load_texts(card, beside, str(beside))


@cases(500)
@given(bent(WHOLE_CARD))
def test_any_card_is_read_or_refused_in_a_sentence(folder, values):
    path = folder / "bent.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8", errors="replace")
    clean(read_card, path)


@cases(350)
@given(broken(yaml.safe_dump(WHOLE_CARD, sort_keys=False).encode()))
def test_any_bytes_in_the_place_of_a_card_are_read_or_refused_in_a_sentence(folder, content):
    (folder / "broken.yaml").write_bytes(content)
    clean(read_card, folder / "broken.yaml")


# ---- pipelines and --set -------------------------------------------------------------------------------------------

WHOLE_PIPELINE: dict[str, Any] = {
    "extends": "quick",
    "recipe": "paper",
    "seed": 1,
    "task": {"name": "bbc", "data": None},
    "model": {"name": "mini", "max_length": 64, "trust_remote_code": False},
    **copied(PIPELINE),
    "label": {"weighting": "accuracy"},
    "ipet": {"growth": 2.0, "generations": 1},
    "table": {"sizes": [0, 10], "seeds": [0], "methods": ["pet"], "tasks": {"bbc": {"data": {"test": 5}}}},
    "runtime": {"device": "cpu", "precision": "fp32"},
}


def read_settings(path: Path) -> None:
    """As `pet run`, `pet table` and `pet pretrain` do."""
    found = clean(resolve_settings, str(path))
    if found is not None:
        again = yaml.safe_load(resolve_module.settings_yaml(found))
        assert resolve_settings(None, again) == found, "what a run writes down is what it was given"
    clean(resolve_tasks, str(path))
    clean(resolve_pretraining, str(path))


@cases(130)
@given(bent(WHOLE_PIPELINE))
def test_any_pipeline_is_read_or_refused_in_a_sentence(folder, values):
    path = folder / "bent-pipeline.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8", errors="replace")
    read_settings(path)


@cases(120)
@given(broken(yaml.safe_dump(WHOLE_PIPELINE, sort_keys=False).encode()))
def test_any_bytes_in_the_place_of_a_pipeline_are_read_or_refused_in_a_sentence(folder, content):
    path = folder / "broken-pipeline.yaml"
    path.write_bytes(content)
    read_settings(path)


KEYS = st.sampled_from(messages_module.known_keys(schema_module.Settings)) | st.sampled_from(ODD_TEXTS) | PLAIN
WRITTEN = st.one_of(
    st.sampled_from(ODD_TEXTS),
    VALUES.map(
        lambda value: json.dumps(value, default=str, ensure_ascii=False) if not isinstance(value, dict) else "{a: 1}"
    ),
    st.sampled_from(SPLINTERS).map(lambda piece: piece.decode("latin-1")[:3000]),
    PLAIN,
)


@cases(200)
@given(KEYS, st.sampled_from(["=", "=", "=", "", " = ", "=="]), WRITTEN)
def test_anything_after_set_is_read_or_refused_in_a_sentence(key, equals, value):
    assignment = clean(parse_assignment, f"{key}{equals}{value}")
    if assignment is not None:
        clean(resolve_settings, "quick", assignment)
        clean(resolve_pretraining, None, {"corpus": {"files": ["x"]}}, assignment)


# ---- data files ----------------------------------------------------------------------------------------------------

ROWS = invent_rows(9, random.Random(1), unlabelled=2)
DICTS = [dict(zip(("label", "headline", "body"), row, strict=True)) for row in ROWS]
ODD_CELLS = st.sampled_from(ODD_TEXTS) | PLAIN


def csv_bytes(rows: list[list[str]], separator: str = ",") -> bytes:
    quoted = (separator.join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows)
    return "\n".join(quoted).encode("utf-8", "replace")


def parquet_bytes(rows: list[dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


TABLE = [["label", "headline", "body"], *map(list, ROWS)]
CONTENTS = {
    "csv": csv_bytes(TABLE),
    "tsv": csv_bytes(TABLE, "\t"),
    "jsonl": "".join(json.dumps(one) + "\n" for one in DICTS).encode(),
    "parquet": parquet_bytes(DICTS),
}


def read_data(path: Path, kind: str) -> None:
    """As a run, `pet predict`, `pet init` and `pet pretrain` do."""
    source = card_module.FilesSource(format=kind, train=path.name)
    card = card_module.TaskCard.model_validate({**CARD, "files": source})
    clean(sources.load_texts, card, path.parent)
    clean(lambda: [isinstance(one, Broken) or one.values for one in RowFile(path).rows()])
    table = clean(read_input, path)
    if table is not None:
        columns = clean(choose_columns, table, None, None, None)
        if columns is not None:
            survey(table, columns)
    clean(lambda: list(read_documents(find_files([str(path)]))))


@pytest.mark.parametrize("kind", CONTENTS)
@cases(150)
@given(st.data())
def test_any_bytes_in_the_place_of_a_data_file_are_read_or_refused_in_a_sentence(folder, kind, data):
    path = folder / f"data.{kind}"
    path.write_bytes(data.draw(broken(CONTENTS[kind])))
    read_data(path, kind)


@cases(120)
@given(bent(TABLE))
def test_any_table_is_read_or_refused_in_a_sentence(folder, table):
    rows = [[str(cell) for cell in row] if isinstance(row, list) else [str(row)] for row in table]
    (folder / "table.csv").write_bytes(csv_bytes(rows))
    read_data(folder / "table.csv", "csv")


@cases(120)
@given(bent(DICTS))
def test_any_objects_are_read_or_refused_in_a_sentence(folder, rows):
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(one, default=str) for one in rows), encoding="utf-8")
    read_data(folder / "rows.jsonl", "jsonl")


COLUMNS = st.sampled_from(["label", "headline", "body", "id", "", "x"])
ARROWS = [
    pyarrow.array(column)
    for column in (
        ["a", "b", None],
        [1, 2, 3],
        [1.5, float("nan"), None],
        [True, None, False],
        [b"\xff", b"", None],
        [["a"], [], None],
        [{"x": 1}, {"x": 2}, None],
        [None, None, None],
        [datetime.date(1, 1, 1), datetime.date(9999, 12, 31), None],
    )
] + [
    pyarrow.array([2**62, 0, None], pyarrow.timestamp("us")),
    pyarrow.array([2**62, 0, None], pyarrow.timestamp("ns", "Nowhere/At_all")),
    pyarrow.array([2**62, 0, None], pyarrow.duration("s")),
    pyarrow.array(["a", "b", "a"]).dictionary_encode(),
    pyarrow.array([b"\xff\xfe", b"a", None]).view(pyarrow.string()),
]


@cases(120)
@given(st.lists(st.tuples(COLUMNS, st.sampled_from(ARROWS)), min_size=1, max_size=4))
def test_any_columns_of_parquet_are_read_or_refused_in_a_sentence(folder, columns):
    table = pyarrow.Table.from_arrays([array for _, array in columns], names=[name for name, _ in columns])
    pyarrow.parquet.write_table(table, folder / "columns.parquet")
    read_data(folder / "columns.parquet", "parquet")


GIVEN = csv_bytes(
    [
        ["id", "label", "headline", "more"],
        *(
            [f"train.csv:{number}", LABELS[number % 3], headline, "x"]
            for number, (_, headline, _) in enumerate(invent_rows(TRAIN, random.Random(0), HIDDEN)[:7], 2)
        ),
    ]
)


@cases(150)
@given(broken(GIVEN))
def test_any_labels_given_by_hand_are_read_or_refused_in_a_sentence(folder, content):
    path = folder / "given.csv"
    path.write_bytes(content)
    card, _ = card_module.load_card(str(folder))
    texts = sources.load_texts(card, folder)["train"]
    found = clean(annotations.read_given_labels, card, card.files, [str(path)], texts)
    assert found is None or set(found.labels.values()) <= set(LABELS)


# ---- folders of models ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
@cases(12)
@given(st.data())
def test_any_bytes_in_a_folder_of_a_model_are_read_or_refused_in_a_sentence(tmp_path_factory, name, data):
    model = tmp_path_factory.mktemp("model")
    save_tiny(model)
    path = model / name
    path.write_bytes(data.draw(broken(path.read_bytes())))
    named = ModelSettings(name=str(model), max_length=16)
    clean(load_tokenizer, named)
    clean(load_masked_lm, named)


# ---- commands ------------------------------------------------------------------------------------------------------


def command(*arguments: object) -> None:
    """A command as it is typed: done, something found (1), or refused in a sentence (2)."""
    with no_hang():
        result = CliRunner().invoke(main, [str(one) for one in arguments], catch_exceptions=False)
    assert result.exit_code in (0, 1, 2), result.output
    assert "Traceback" not in result.output
    if result.exit_code == 2:
        said = result.stderr.split("Error: ", 1)[1]
        check_sentence(said.rstrip("\n"))


@cases(40)
@given(bent(WHOLE_CARD))
def test_pet_check_of_any_card_ends_well_or_with_a_sentence(folder, values):
    values = {**values, "folder": None, "hub": None}
    path = folder / "checked.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8", errors="replace")
    model = yaml.safe_load((folder / "pipeline.yaml").read_text())["model"]["name"]
    small = ["--sample", 5, "--train-examples", 6, "--set", "data.test=6", "--set", "model.max_length=28"]
    frozen = [word for one in ("finetune", "distill", "baseline") for word in ("--set", f"{one}.frozen_layers=1")]
    command("check", path, "--model", model, *small, *frozen)


@cases(40)
@given(st.data())
def test_a_dry_run_of_any_pipeline_ends_well_or_with_a_sentence(folder, data):
    values = yaml.safe_load((folder / "pipeline.yaml").read_text())
    path = folder / "tried.yaml"
    bent_values = data.draw(bent(values))
    path.write_text(
        yaml.safe_dump(bent_values, sort_keys=False, allow_unicode=True), encoding="utf-8", errors="replace"
    )
    command("run", path, "--store", folder / "store", "--dry-run", "--device", "cpu")
    assert not (folder / "store").exists()
