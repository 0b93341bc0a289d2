"""What a file of somebody else cannot do: lead out of its folder, run code, or take all memory; SECURITY.md names these
tests."""

import csv
import gzip
import io
import os
import pickle
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import yaml
from support.hub import patch_hub
from support.rows import CARD, finish_run, is_kept, lay_ground, lively_model, pet

from pet.config import limits, safe_yaml
from pet.config.limits import read_bytes, stays_inside
from pet.config.resolve import parse_assignment, read_yaml, resolve_settings, resolve_tasks, settings_yaml
from pet.config.safe_yaml import MAX_DEPTH, MAX_NODES, MAX_YAML, load_yaml
from pet.errors import SHOWN, CorpusError, PetError, SettingsError, TaskError, raise_problems
from pet.tasks import card as card_module
from pet.tasks import hub_source, readers, sources
from pet.tasks.annotations import read_given_labels
from pet.tasks.card import Source, load_card
from pet.tasks.sources import load_texts
from pet.tasks.texts import Texts

pytestmark = pytest.mark.slow

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 10)}]\n" for before, after in zip("abcdef", "bcdefg", strict=True)
)
"""Ten million values in six lines."""


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_card(folder: Path, /, **changes: Any) -> str:
    """A card in `folder`; its texts lie beside it unless `changes` says otherwise."""
    files = {"format": "csv", "train": "train.csv"}
    for name in ("train.csv", "../outside.csv"):
        write(folder / name, "label,headline,body\nsports,a goal,of a team\nbusiness,a price,of a share\ntech,a,b\n")
    values = {key: value for key, value in ({**CARD, "files": files} | changes).items() if value is not None}
    return str(write(folder / "task.yaml", yaml.safe_dump(values, sort_keys=False)))


def refusal(call: Any, *given: Any) -> str:
    with pytest.raises(PetError) as raised:
        call(*given)
    return str(raised.value)


def read(card: str, data: str | None = None) -> Any:
    return load_texts(*load_card(card), data)


# ---- sentences -----------------------------------------------------------------------------------------------------


def test_a_sentence_is_one_line_of_bounded_length_without_anything_that_a_terminal_obeys():
    assert str(TaskError("a\nb\x1b[31m\ud800\u202e")) == r"a b\x1b[31m\ud800\u202e"
    said = str(TaskError("begin " + "x" * 10**6 + " what to do"))
    assert said.startswith("begin x")
    assert said.endswith("x what to do")
    assert len(said) < SHOWN + 10
    assert len(str(TaskError("\U000e0001" * 10**6))) < SHOWN + 10
    with pytest.raises(TaskError) as raised:
        raise_problems(TaskError, "card", ["a" * 10**6 + " end", "second"])
    assert str(raised.value).endswith("a end; second")


# ---- YAML ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (LAUGHS, f"line 5 is not valid YAML (more than {MAX_NODES:,} values, aliases counted)"),
        ("- a\n" * (MAX_NODES + 1), f"(more than {MAX_NODES:,} values)"),
        ("a: &a {b: *a}", "line 1 is not valid YAML (an alias of what it stands in)"),
        ("a: " + "[" * 100_000, f"line 1 is not valid YAML (more than {MAX_DEPTH} levels in each other)"),
        ("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n", "line 5 is not valid YAML (key 'c' stands there twice)"),
        ("a: !!python/object/apply:os.system [x]", "could not determine a constructor for the tag"),
        ("a: 2001-99-99", "(a date, number or tag that is none)"),
        ("a: " + "9" * 5000, "(a date, number or tag that is none)"),
        ('a: "\\0"', "(a NUL character or half a surrogate pair)"),
        ('a: "\\ud800"', "(a NUL character or half a surrogate pair)"),
        ("a: \0", "(special characters are not allowed)"),
        (b"a: 1\nb: \xff", "line 2 is not UTF-8 text; convert the file to UTF-8"),
        ("#" * (MAX_YAML + 1), f"has more than {MAX_YAML:,} bytes"),
        ("", "is empty; expected names and values, or {} for none"),
        ("- a", "holds a list; expected a mapping of names to values"),
    ],
)
def test_yaml_beyond_a_limit_is_refused_with_the_line(tmp_path, content, said):
    assert said in refusal(read_yaml, write(tmp_path / "a.yaml", content), SettingsError)


def test_yaml_as_people_write_it_is_read(tmp_path):
    content = "\ufeffa: &x {one: 1}\nb: *x\nc:\n  <<: *x\n  one: 2\nd: {<<: [*x, *x]}"
    found = read_yaml(write(tmp_path / "a.yaml", content), SettingsError)
    assert found == {"a": {"one": 1}, "b": {"one": 1}, "c": {"one": 2}, "d": {"one": 1}}
    assert load_yaml("a: 1\n---\n".replace("---\n", "")) == {"a": 1}


@pytest.mark.parametrize(
    "value", [LAUGHS.replace("\n", " "), "[" * 100_000, "9" * 5000, "'", "!!timestamp x", "2001-99-99"]
)
def test_what_is_typed_after_set_has_the_same_limits(value):
    assert "is not a YAML value" in refusal(parse_assignment, f"finetune.steps={value}")
    assert "expected NAME=VALUE" in refusal(parse_assignment, "a." * 1000 + "a=1")


# ---- files ---------------------------------------------------------------------------------------------------------


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "zero.csv").symlink_to("/dev/zero")
    for name, said in (
        ("pipe.csv", "is no regular file; copy what it gives into one"),
        ("zero.csv", "is no regular file"),
        ("folder.csv", "is a folder; expected a file"),
        ("none.csv", "there is no file"),
        ("n" * 5000, "there is no file"),
        ("nul\0", "there is no file"),
    ):
        path = tmp_path / name
        assert said in refusal(read_bytes, path, TaskError)
        assert said in refusal(readers.RowFile, path)
        card = load_card(write_card(tmp_path / "card"))[0]
        assert said in refusal(read_given_labels, card, Source(), [str(path)], Texts([], {"text": []}, []))


def test_a_packed_file_is_unpacked_up_to_a_limit(tmp_path):
    path = write(tmp_path / "a.csv.gz", gzip.compress(b"a" * 10**6))
    assert len(read_bytes(path, TaskError, 10**6)) == 10**6
    assert "has more than 999,999 bytes (unpacked), which is too much" in refusal(read_bytes, path, TaskError, 999_999)


def test_parquet_is_unpacked_up_to_a_limit(tmp_path, monkeypatch):
    table = pyarrow.table({"label": ["sports"] * 5000, "headline": ["x" * 100] * 5000, "body": ["y"] * 5000})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    card = write_card(tmp_path, files={"format": "parquet", "train": "train.parquet"})
    assert len(read(card)["train"]) == 5000
    assert (tmp_path / "train.parquet").stat().st_size < 20_000
    monkeypatch.setattr(readers, "MAX_UNPACKED", 100_000)
    assert "train.parquet has more than 100,000 bytes unpacked" in refusal(read, card)


@pytest.mark.parametrize(("name", "content"), [("a.csv", "text\n{}\n"), ("a.jsonl", '{{"text": "{}"}}\n')])
def test_a_line_without_an_end_is_refused(tmp_path, monkeypatch, name, content):
    path = write(tmp_path / name, content.format("x" * 2000))
    assert [one.values for one in readers.RowFile(path).rows()] == [{"text": "x" * 2000}]
    monkeypatch.setattr(readers, "MAX_LINE", 1000)
    assert "has a line of more than 1,000 characters" in refusal(lambda: list(readers.RowFile(path).rows()))


def test_a_line_of_a_corpus_without_an_end_is_refused(tmp_path, monkeypatch):
    from pet.training import mlm_corpus

    path = write(tmp_path / "a.txt", "short\n" + "x" * 2000)
    monkeypatch.setattr(mlm_corpus, "MAX_LINE", 1000)
    with pytest.raises(CorpusError, match="has a line of more than 1,000 characters"):
        list(mlm_corpus.read_documents([path]))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("label,headline,body\nsports,a,b\0\n", "line 2: a NUL character, which no text has"),
        (b"label,headline,body\nsports,\xff,b\n", "line 2: not UTF-8 text"),
        (",".join(map(str, range(20_000))) + "\n", "has 20,000 columns, more than 10,000"),
        ("label,headline,headline,body\nsports,a,b,c\n", "has several columns 'headline'"),
        ("label,headline\nsports,a\n", "train.csv: no column 'body'"),
        ('label,headline,body\nsports,"a', "unexpected end of data"),
    ],
)
def test_a_damaged_table_is_refused_with_the_line(tmp_path, content, said):
    card = write_card(tmp_path)
    write(tmp_path / "train.csv", content)
    assert said in refusal(read, card)


def test_a_mark_at_the_beginning_and_no_line_end_at_the_end_are_no_mistakes(tmp_path):
    card = write_card(tmp_path)
    write(tmp_path / "train.csv", "\ufefflabel,headline,body\r\nsports,a,b\r\ntech,c,d")
    assert read(card)["train"].labels == ["sports", "tech"]


def test_half_a_surrogate_pair_in_json_is_refused_with_the_line(tmp_path):
    card = write_card(tmp_path, files={"format": "jsonl", "train": "a.jsonl"})
    write(tmp_path / "a.jsonl", '{"label": "sports", "headline": "\\ud800", "body": "b"}\n' + "[" * 100_000)
    assert "line 2 is not a JSON object" in refusal(read, card)
    write(tmp_path / "a.jsonl", '{"label": "sports", "headline": "\\ud800", "body": "b"}\n')
    assert "a.jsonl:1: a NUL character or half a surrogate pair" in refusal(read, card)


# ---- paths in a card -----------------------------------------------------------------------------------------------

LEADING_OUT = ["../outside.csv", "a/../../outside.csv", "/etc/hosts", "~/x", "file:///etc/hosts", "https://x.org/a.csv"]
LEADING_OUT += ["..\\outside.csv", "C:\\x.csv", "..", "c:/x"]


@pytest.mark.parametrize("name", LEADING_OUT)
@pytest.mark.parametrize("split", ["train", "test", "unlabelled"])
def test_a_file_of_a_card_lies_in_its_folder(tmp_path, name, split):
    card = write_card(tmp_path / "card", files={"format": "csv", "train": "train.csv", split: name})
    said = refusal(load_card, card)
    assert f"{name!r} lies outside the card's folder; put it there, or only name the file and give its folder" in said


@pytest.mark.parametrize("name", ["train.csv", "a/b.csv", "./a.csv", "a..b.csv", "...", "a b", "ü.csv"])
def test_other_names_are_allowed(name):
    assert stays_inside(name)


@pytest.mark.parametrize("data", [False, True])
def test_a_link_does_not_lead_out_of_the_card_s_folder_or_the_one_given_by_data(tmp_path, data):
    card = write_card(tmp_path / "card")
    folder = tmp_path / "data" if data else tmp_path / "card"
    folder.mkdir(exist_ok=True)
    (folder / "train.csv").unlink(missing_ok=True)
    (folder / "train.csv").symlink_to(tmp_path / "outside.csv")
    assert "is a link that leads out of" in refusal(read, card, str(folder) if data else None)
    (folder / "train.csv").unlink()
    (folder / "real.csv").write_bytes((tmp_path / "outside.csv").read_bytes())
    (folder / "train.csv").symlink_to("real.csv")
    assert len(read(card, str(folder) if data else None)["train"]) == 3, "a link inside the folder is fine"


def test_a_folder_of_a_card_lies_in_its_folder(tmp_path):
    for name in ("..", "/etc", "a/../../b"):
        card = write_card(tmp_path / "card", files=None, folder={"folder": name})
        assert f"{name!r} lies outside the card's folder" in refusal(load_card, card)
    card = write_card(tmp_path / "card", files=None, folder={"folder": "texts"})
    write(tmp_path / "secret.txt", "headline\nbody")
    (tmp_path / "card" / "texts" / "sports").mkdir(parents=True)
    (tmp_path / "card" / "texts" / "sports" / "1.txt").symlink_to(tmp_path / "secret.txt")
    assert "is a link that leads out of" in refusal(read, card)


def test_a_card_extends_no_file_outside_its_folder(tmp_path, monkeypatch):
    base = write_card(tmp_path / "base")
    write(tmp_path / "elsewhere" / "bbc" / "task.yaml", "name: hijacked")
    monkeypatch.chdir(tmp_path / "elsewhere")
    for name in (base, "../base", "../base/task.yaml", "~/x"):
        said = refusal(load_card, str(write(tmp_path / "card" / "task.yaml", yaml.safe_dump({"extends": name}))))
        assert "which lies outside its folder; copy that card there" in said
    (tmp_path / "card" / "link.yaml").symlink_to(base)
    assert "which lies outside its folder" in refusal(
        load_card, str(write(tmp_path / "card" / "task.yaml", "extends: link.yaml"))
    )
    card, _ = load_card(str(write(tmp_path / "card" / "task.yaml", "extends: bbc")))
    assert card.name == "bbc", "the shipped one, whatever lies in the working folder"
    assert "extends:` is a list" in refusal(load_card, str(write(tmp_path / "card" / "task.yaml", "extends: [a]")))


# ---- nothing runs --------------------------------------------------------------------------------------------------


def test_a_card_imports_no_package(tmp_path, monkeypatch):
    proof = tmp_path / "proof"
    write(tmp_path / "evil_package" / "__init__.py", f"from pathlib import Path\nPath({str(proof)!r}).touch()\n")
    write(tmp_path / "evil_package" / "texts" / "sports" / "1.txt", "a goal\nof a team")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("evil_package.texts", "evil_package.", ".evil_package", "evil_package/x"):
        card = write_card(tmp_path / "card", files=None, folder={"package": name, "folder": "texts"})
        assert "folder.package: expected the name of an installed" in refusal(load_card, card)
    card = write_card(tmp_path / "card", files=None, folder={"package": "evil_package", "folder": "texts"})
    assert read(card)["train"].labels == ["sports"], "its folder is found without that"
    assert "evil_package" not in sys.modules
    assert not proof.exists()
    card = write_card(tmp_path / "card", files=None, folder={"package": "__main__"})
    assert "folder.package" in refusal(load_card, card)


@pytest.mark.parametrize("path", ["../x", "/etc", "./x", "a/b/c", "a\\b", "https://x.org", "", "a b"])
def test_a_hub_dataset_of_a_card_is_no_path(tmp_path, path):
    assert "hub.path: expected OWNER/NAME" in refusal(load_card, write_card(tmp_path, files=None, hub={"path": path}))


PACKAGED = """arrow audiofolder cache csv conll imagefolder json pandas parquet sql text videofolder webdataset xml
imdb Pandas PANDAS csv.py a-builder-of-2030""".split()


@pytest.mark.parametrize("path", PACKAGED)
def test_a_hub_dataset_of_a_card_has_an_owner(tmp_path, path):
    problem = refusal(load_card, write_card(tmp_path, files=None, hub={"path": path}))
    assert f"hub dataset {path!r} has no owner; write OWNER/NAME as the hub shows it" in problem


def test_no_builder_of_datasets_has_a_name_that_a_card_may_give():
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES as packaged

    assert len(packaged) > 10
    assert not [name for name in packaged if "/" in name]


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_card_unpickles_nothing_and_reads_nothing_of_the_current_folder(tmp_path, monkeypatch, command):
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "proof"),)

    monkeypatch.chdir(tmp_path)
    write(tmp_path / "train.pkl", pickle.dumps(Trap()))
    for path in ("pandas", "csv", "text"):
        card = write_card(tmp_path / "card", files=None, hub={"path": path, "test": None})
        arguments = [card] if command == "check" else ["quick", "--task", card, "--store", tmp_path / "store"]
        done = pet(command, *arguments, code=2)
        assert "has no owner" in " ".join(done.stderr.split())
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize("path", ["pandas", "csv", "some/data"])
def test_the_library_itself_is_only_asked_for_what_is_on_the_hub(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    for folder in (".", "some/data", "hf:/datasets/some/data"):
        write(tmp_path / folder / "train.csv", "label,headline,body\nsports,a,b\n")
    source = card_module.HubSource.model_construct(
        path=path, config=None, revision=None, test=None
    )  # past the card's check
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        problem = refusal(hub_source.hub_splits, "mine", source)
    assert (
        "could not be read from the hub" in problem
        or "not in its own repository" in problem
        or "not allowed" in problem
    )


@pytest.mark.parametrize("reader", ["pandas", "webdataset", "imagefolder", "hdf5", "a_builder_of_2030"])
def test_a_hub_dataset_is_read_as_a_table_or_not_at_all(tmp_path, monkeypatch, reader):
    asked = patch_hub(monkeypatch, lambda _: [], reader)
    problem = refusal(read, write_card(tmp_path, files=None, hub={"path": "some/data"}))
    assert f"is read by {reader!r} of `datasets`, which is not allowed" in problem
    assert "download" not in asked


@pytest.mark.parametrize(
    "file",
    [
        "/home/me/letters.csv",
        "file:///home/me/letters.csv",
        "https://internal.example/a.csv",
        "hf://datasets/some/private@main/a.csv",
        "hf://datasets/some/data-too@main/a.csv",
        "zip://a.csv::/home/me/a.zip",
    ],
)
def test_a_hub_dataset_names_no_file_outside_its_own_repository(tmp_path, monkeypatch, file):
    asked = patch_hub(monkeypatch, lambda _: [], files=["hf://datasets/some/data@main/a.csv", file])
    problem = refusal(read, write_card(tmp_path, files=None, hub={"path": "some/data"}))
    assert f"names {file!r}, which is not in its own repository" in problem
    assert "download" not in asked


@pytest.mark.parametrize("name", ["../../x", "/etc", "a/../b", "a//b", ".hidden", "a\nb", "a\\b", "https://x", ""])
def test_a_revision_is_no_path(tmp_path, name):
    card = write_card(tmp_path, files=None, hub={"path": "some/data", "revision": name})
    assert "hub.revision: expected a branch, a tag or a commit" in refusal(load_card, card)
    expected = "model.revision: expected a branch, a tag or a commit"
    assert expected in refusal(resolve_settings, None, {"model": {"revision": name}})


def test_revisions_and_configs_as_the_hub_has_them_are_allowed(tmp_path):
    for name in ("main", "v1.0.2", "refs/convert/parquet", "refs/pr/12", "a" * 40):
        hub = {"path": "some/data", "revision": name, "config": "20220301.en-US (small)"}
        load_card(write_card(tmp_path, files=None, hub=hub))
        assert resolve_settings(None, {"model": {"revision": name}}).model.revision == name
    for name in ("..", "../x", "a/b", "a*", "[ab]", "", "a\nb"):
        card = write_card(tmp_path, files=None, hub={"path": "some/data", "config": name})
        assert "hub.config: expected the name of a configuration" in refusal(load_card, card)


def test_a_package_of_a_card_is_an_installed_one(tmp_path, monkeypatch):
    write(tmp_path / "plain_folder" / "texts" / "sports" / "1.txt", "a goal\nof a team")
    write(tmp_path / "my_package" / "__init__.py", "")
    write(tmp_path / "my_package" / "texts" / "sports" / "1.txt", "a goal\nof a team")
    monkeypatch.syspath_prepend(str(tmp_path))  # as `python -m pet` does with the current folder
    for name, folder in (("plain_folder", "/"), ("my_package", str(tmp_path))):
        monkeypatch.chdir(folder)
        card = write_card(tmp_path / "card", files=None, folder={"package": name, "folder": "texts"})
        assert f"the package {name!r}, which is not installed" in refusal(read, card)


@pytest.mark.parametrize(
    "template", ["{body.__class__}", "{body[0]}", "{body!r}", "{body:>999999999}", "{0}", "{}", "{", "}", "{body:{x}}"]
)
def test_a_template_of_a_card_names_columns_and_nothing_else(tmp_path, template):
    card = write_card(tmp_path, files={"format": "csv", "train": "train.csv", "fields": {"body": template}})
    assert f"{template!r} is no template" in refusal(load_card, card)


def test_a_card_cannot_make_long_texts_of_short_ones(tmp_path, monkeypatch):
    files = {"format": "csv", "train": "train.csv"}
    many = {"a": "b" * 1000, "b": "c" * 1000, "c": "d" * 1000, "d": "e" * 1000}
    said = refusal(read, write_card(tmp_path, files=files | {"replace": many}))
    assert "the text has more than 10,000,000 characters after `replace`" in said
    assert "`replace` has nothing to look for" in refusal(
        load_card, write_card(tmp_path, files=files | {"replace": {"": "x" * 1000}})
    )
    monkeypatch.setattr(sources, "MAX_FIELD", 1000)
    said = refusal(read, write_card(tmp_path, files=files | {"fields": {"body": "{body}" * 500}}))
    assert "the text has more than 1,000 characters" in said


@pytest.mark.parametrize(
    "name", ["rot13", "hex", "idna", "punycode", "unicode_escape", "undefined", "os.path", "", "a" * 999]
)
def test_an_encoding_of_a_card_is_one_of_texts(tmp_path, name):
    files = {"format": "csv", "train": "train.csv", "encodings": [name]}
    assert "is none; try utf-8" in refusal(load_card, write_card(tmp_path, files=files))


def test_no_pipeline_makes_code_of_a_model_run(tmp_path):
    for content in (
        "model: {trust_remote_code: true}",
        "model: {trust_remote_code: 'yes'}",
        "table: {tasks: {bbc: {model: {trust_remote_code: 1}}}}",
    ):
        path = str(write(tmp_path / "a.yaml", content))
        assert "leave it out of the file, and give --trust-remote-code if" in refusal(resolve_settings, path)
        assert "leave it out of the file" in refusal(resolve_tasks, path)
    path = str(write(tmp_path / "b.yaml", f"extends: {tmp_path / 'c.yaml'}"))
    write(tmp_path / "c.yaml", "model: {trust_remote_code: true}")
    assert "leave it out of the file" in refusal(resolve_settings, path)
    typed = resolve_settings(path, {"model": {"trust_remote_code": True}})
    assert typed.model.trust_remote_code
    assert not resolve_settings(path, {"model": {"trust_remote_code": False}}).model.trust_remote_code
    written = str(write(tmp_path / "d.yaml", settings_yaml(resolve_settings())))
    assert resolve_settings(written) == resolve_settings(), "what a run writes down is a pipeline"


def test_nothing_in_a_store_can_run(tmp_path_factory):
    store = finish_run(tmp_path_factory.getbasetemp()).store
    kinds = {path.suffix for path in store.rglob("*") if path.is_file() and is_kept(path)}
    assert kinds == {".json", ".jsonl", ".md", ".parquet", ".safetensors", ".yaml"}


def test_code_of_a_model_that_is_run_is_shouted(tmp_path, tmp_path_factory):
    ground = lay_ground(tmp_path / "ground", lively_model(tmp_path_factory.getbasetemp()))
    quiet = pet("run", ground.pipeline, "--store", tmp_path / "store", "--dry-run")
    assert "CODE" not in quiet.output
    for flags in (["--trust-remote-code"], ["--set", "model.trust_remote_code=true"]):
        loud = pet("run", ground.pipeline, "--store", tmp_path / "store", "--dry-run", *flags)
        said = " ".join(loud.stderr.split())
        assert said.startswith("Warning: PYTHON CODE OF")
        assert "lively IS RUN, IF IT BRINGS ANY (model.trust_remote_code); IT MAY DO ALL YOU MAY" in said


# ---- files for spreadsheets ----------------------------------------------------------------------------------------


def test_no_cell_of_the_file_to_be_labelled_is_a_formula_and_labels_come_back(tmp_path):
    from pet.tools.inference.suggest import Suggestions, write_suggestions

    odd = ["=1+1", "+1", "-1", "@x", "\tx", "'=1", "plain"]
    texts = Texts(odd, {"headline": odd, "body": ["b"] * len(odd)}, [None] * len(odd))
    path = tmp_path / "to_label.csv"
    write_suggestions(path, Suggestions(texts, ["-1"] * len(odd), [0.5] * len(odd), [0.5] * len(odd)))
    rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline="")))
    assert not [cell for row in rows for cell in row if cell[:1] in ("=", "+", "-", "@", "\t")]
    assert [row[1].removeprefix("'") for row in rows[1:6]] == odd[:5], "nothing else changed"
    assert [row[1] for row in rows[6:]] == odd[5:]

    labels = ["-1", "=x", "'=x", "plain"]
    card = card_module.TaskCard.model_validate(
        {**CARD, "labels": labels, "verbalizers": {"default": {label: [label] for label in labels}}, "files": None}
    )
    for row, label in zip(rows[1:], ["-1", "'-1", "=x", "'=x", "plain", "plain", "plain"], strict=True):
        row[3] = label
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows(rows)
    found = read_given_labels(card, Source(), [str(path)], texts)
    assert found.labels == dict(zip(odd, ["-1", "-1", "=x", "'=x", "plain", "plain", "plain"], strict=True))


def test_a_dollar_sign_in_a_name_is_no_mathematics_in_a_picture(tmp_path):
    from pet.tools.reports.plot import draw

    found = {"lines": [], "tasks": {"mails": {"metric": "accuracy", "model": "a$x_{$b$"}}}
    picture = next(path for path in draw(tmp_path, found, "mails") if path.suffix == ".svg")
    assert "a$x_{$b$" in picture.read_text(encoding="utf-8")


def test_security_md_names_tests_that_exist():
    root = Path(__file__).parents[2]
    named = re.findall(
        r"`(tests/(?:\w+/)*test_\w+\.py)`(?:: ((?:`test_\w+`(?:, )?)+))?", (root / "SECURITY.md").read_text()
    )
    assert len(named) > 10
    for file, names in named:
        source = (root / file).read_text(encoding="utf-8")
        for name in re.findall(r"test_\w+", names):
            assert f"\ndef {name}(" in source, (file, name)


@pytest.mark.parametrize(("module", "count"), [(limits, 4), (safe_yaml, 3)])
def test_limits_have_reasons(module, count):
    named = [name for name in vars(module) if name.startswith("MAX_")]
    text = Path(module.__file__).read_text(encoding="utf-8")
    assert len(named) == count
    for name in named:
        assert text.split(f"\n{name} = ")[1].split("\n")[1].startswith('"""'), name
