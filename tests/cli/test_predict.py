"""`pet predict` and `pet.load`: the probabilities are those of the run's own scores, a file keeps its rows, and what is
wrong with it is told."""

import csv
import json
import os
import shutil
import signal

import numpy as np
import pyarrow.parquet
import pytest
from safetensors.numpy import load_file
from support.rows import (
    LABELS,
    Finished,
    declare,
    files_of,
    find_one,
    lay_ground,
    lively_model,
    pet,
    pet_run,
    read_json,
    snapshot,
)

import pet as package
from pet.errors import SettingsError, TaskError
from pet.modeling import loading
from pet.tasks import readers, writers
from pet.tasks.texts import read_texts
from pet.tools.inference import predictor as predicting

pytestmark = pytest.mark.slow

PROBABILITIES = [f"probability_{label}" for label in LABELS]


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def temperature(store, kind: str) -> float:
    return read_json(find_one(store, "evaluate") / "calibration.json")[kind]["temperature"]


def pooled(store) -> np.ndarray:
    """The ensemble's scores on the test set, by hand."""
    named = read_json(find_one(store, "label") / "ensemble.json")["members"]
    return sum(
        one["weight"]
        * load_file(find_one(store, "finetune", one["identity"]) / "scores.safetensors")["test"].astype(float)
        for one in named
    )


def test_texts(store) -> list[tuple[str, ...]]:
    texts = read_texts(find_one(store, "prepare") / "test.parquet")
    return list(zip(texts.fields["headline"], texts.fields["body"], strict=True))


test_texts.__test__ = False


def write_texts(path, rows, names=("headline", "body")):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([names, *rows])
    return path


def read_csv(path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def probabilities(rows) -> np.ndarray:
    return np.asarray([[float(row[name]) for name in PROBABILITIES] for row in rows])


# ---- the numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["student", "ensemble"])
def test_probabilities_are_those_of_the_run_s_own_scores_at_its_temperature(kind, done, tmp_path):
    source = write_texts(tmp_path / "in.csv", test_texts(done.store))
    pet("predict", "last", "--store", done.store, "--from", kind, "--input", source, "--output", tmp_path / "out.csv")
    scores = pooled(done.store)
    if kind == "student":
        scores = load_file(done.one("distill") / "scores.safetensors")["test"].astype(float)
    expected = softmax(scores / temperature(done.store, kind))
    found = read_csv(tmp_path / "out.csv")
    assert temperature(done.store, kind) != 1
    np.testing.assert_allclose(probabilities(found), expected, atol=2e-5)
    assert [row["label"] for row in found] == [LABELS[number] for number in expected.argmax(1)]
    np.testing.assert_allclose([float(row["probability"]) for row in found], expected.max(1), atol=2e-5)


LORA = ["--set", "finetune.method=lora", "--set", "finetune.lora.learning_rate=0.02", "--set", "label.shares=even"]
ADAPTED = [f"adapt.{one}" for one in ("enabled=true", "steps=2", "blocks=2", "length=8", "held_out=0.3")]
ADAPTED = [word for one in ADAPTED for word in ("--set", one)]


@pytest.mark.parametrize("options", [[*LORA, *ADAPTED], ["--train-examples", "0"]], ids=["adapters", "untuned"])
def test_members_that_are_adapters_or_untuned_are_asked_as_they_were(options, tmp_path_factory, tmp_path):
    ground = lay_ground(tmp_path / "ground", lively_model(tmp_path_factory.getbasetemp()))
    store = tmp_path / "store"
    pet_run(ground, store, "--set", "finetune.repetitions=1", *options)
    shift = read_json(find_one(store, "label") / "ensemble.json")["shift"]
    expected = softmax((pooled(store) + [shift[label] for label in LABELS]) / temperature(store, "ensemble"))
    predictor = package.load("last", store, classifier="ensemble")
    texts = test_texts(store)
    found, again = (
        [[one.probabilities[label] for label in LABELS] for one in predictor.predict(texts)] for _ in range(2)
    )
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert found == again, "an adapter that was merged is taken out again to the last bit"


def test_damaged_adapters_are_refused_before_a_model_is_loaded(tmp_path_factory, tmp_path, monkeypatch):
    ground = lay_ground(tmp_path / "ground", lively_model(tmp_path_factory.getbasetemp()))
    pet_run(ground, tmp_path / "store", "--set", "finetune.repetitions=1", *LORA)
    member = find_one(tmp_path / "store", "finetune", "p1-r0")
    (member / "adapter" / "adapter_model.safetensors").write_bytes(b"no tensors")
    declare(member)
    monkeypatch.setattr(loading, "load_masked_lm", None)
    said = pet("predict", "last", "--store", tmp_path / "store", "--from", "ensemble", "--text", "goal", code=2).stderr
    assert f"{member / 'adapter'} holds no LoRA adapter that can be used (SafetensorError" in said
    assert said.count("\n") == 1, said


def test_members_that_were_not_kept_are_one_sentence(done, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(done.store, store)
    for path in store.glob("finetune/*/model"):
        shutil.rmtree(path)
        declare(path.parent)
    said = pet("predict", "last", "--store", store, "--from", "ensemble", "--text", "goal", code=2).output
    assert "were not kept; use the student" in said
    pet("predict", "last", "--store", store, "--text", "goal")


def test_a_run_without_calibration_says_that_its_probabilities_are_raw(done, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(done.store, store)
    (find_one(store, "evaluate") / "calibration.json").unlink()
    declare(find_one(store, "evaluate"))
    source = write_texts(tmp_path / "in.csv", test_texts(store))
    said = pet("predict", "last", "--store", store, "--input", source, "--output", tmp_path / "out.csv")
    assert "are raw (temperature 1): the run was made before runs were calibrated" in " ".join(said.stderr.split())
    scores = load_file(find_one(store, "distill") / "scores.safetensors")["test"].astype(float)
    np.testing.assert_allclose(probabilities(read_csv(tmp_path / "out.csv")), softmax(scores), atol=2e-5)


# ---- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["csv", "tsv.gz", "jsonl", "jsonl.gz", "parquet", "parquet.gz"])
def test_a_file_keeps_its_rows_and_columns_in_whatever_format_and_chunk(ending, done, tmp_path, monkeypatch):
    monkeypatch.setattr(predicting, "CHUNK", 3)
    rows = [(str(number), f"goal {number}", "team", 'a <b>, "\u00e9"') for number in range(8)]
    source = write_texts(tmp_path / "in.csv", rows, ("id", "headline", "body", "more"))
    output = tmp_path / f"out.{ending}"
    before = snapshot(done.store)
    pet("predict", "last", "--store", done.store, "--input", source, "--output", output)
    found = [one.values for one in readers.RowFile(output).rows()]
    assert [tuple(row.values())[:4] for row in found] == rows
    assert list(found[0]) == ["id", "headline", "body", "more", "label", "probability", *PROBABILITIES]
    assert probabilities(found).sum(1) == pytest.approx(1, abs=1e-5)
    assert files_of(tmp_path) == {"in.csv", output.name}
    assert snapshot(done.store) == before


@pytest.mark.parametrize("ending", [".csv", ".tsv"])
def test_a_row_stays_a_row_whatever_ends_a_line_for_somebody(ending, done, tmp_path):
    odd = ["a\rb", "\rgoal", "goal\x85team", "goal\u2028", "\ufeffgoal", 'a "goal", b', "a;b", " goal\n"]
    source = write_texts(tmp_path / "a.csv", [(one, "goal") for one in odd])
    output = tmp_path / f"b{ending}"
    pet("predict", "last", "--store", done.store, "--input", source, "--output", output)
    with output.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t" if ending == ".tsv" else ","))
    assert [(row["headline"], row["body"]) for row in rows] == [(one, "goal") for one in odd]
    assert all(row["label"] in LABELS for row in rows)


def test_columns_whose_names_are_taken_stay_and_the_new_ones_are_called_otherwise(done, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"headline": "goal", "body": null, "label": "mine", "extra": {"a": [1]}}\n', encoding="utf-8")
    said = pet("predict", "last", "--store", done.store, "--input", source, "--output", tmp_path / "out.jsonl")
    (row,) = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert (row["label"], row["extra"]) == ("mine", {"a": [1]})
    assert row["predicted_label"] in LABELS
    assert "the new ones are predicted_label" in said.stderr


BAD = 'id,headline,body\n1,goal,team\n2,two\n3,,\n4,"a"b,c\n5,code,engine\n'


def test_rows_without_a_text_are_left_out_and_told_and_the_rest_is_done(done, tmp_path):
    (tmp_path / "in.csv").write_text(BAD)
    said = pet("predict", "last", "--store", done.store, "--input", tmp_path / "in.csv")
    assert [row["id"] for row in csv.DictReader(said.stdout.splitlines())] == ["1", "5"]
    for line in (3, 4, 5):
        assert f"left out in.csv:{line}: " in said.stderr
    assert "2 texts labelled; 3 rows left out" in said.stderr


def test_strict_stops_at_the_first_of_them_and_writes_nothing(done, tmp_path):
    (tmp_path / "in.csv").write_text(BAD)
    options = ["--input", tmp_path / "in.csv", "--output", tmp_path / "out.csv", "--strict"]
    said = pet("predict", "last", "--store", done.store, *options, code=2)
    assert "in.csv:3: 2 columns, expected 3" in said.output
    assert files_of(tmp_path) == {"in.csv"}
    (tmp_path / "in.csv").write_text("headline,body\ngoal,team\n")
    pet("predict", "last", "--store", done.store, *options)
    assert len(read_csv(tmp_path / "out.csv")) == 1


def test_texts_less_sure_than_asked_for_have_no_label_and_are_counted(done, tmp_path):
    source = write_texts(tmp_path / "in.csv", test_texts(done.store))
    options = ["--store", done.store, "--input", source, "--output", tmp_path / "out.parquet"]
    pet("predict", "last", *options)
    sure = pyarrow.parquet.read_table(tmp_path / "out.parquet")["probability"].to_numpy()
    limit = float(np.median(sure))
    said = pet("predict", "last", *options, "--abstain", limit)
    found = pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["label"] is None for row in found] == [bool(one < limit) for one in sure]
    assert 0 < sum(sure < limit) < len(sure)
    assert f"{sum(sure >= limit)} of {len(sure)} texts labelled" in said.stderr


def of_an_older_run(store, old, new):
    """Settings that name another card, and nothing kept of the card: as runs were made before."""
    run = find_one(store, "run")
    settings = run / "settings.yaml"
    settings.write_text(settings.read_text().replace(str(old), str(new)))
    (run / "reading.json").unlink()
    declare(run)
    assert str(new) in settings.read_text()


def test_the_task_card_need_not_be_there_any_more(done, tmp_path):
    ground = lay_ground(tmp_path / "ground", done.ground.folder)
    shutil.rmtree(ground.folder)
    store = tmp_path / "store"
    shutil.copytree(done.store, store)
    of_an_older_run(store, done.ground.card, ground.card)
    write_texts(tmp_path / "in.csv", [("goal", "team")])
    pet("predict", find_one(store, "run"), "--input", tmp_path / "in.csv", "--output", tmp_path / "out.csv")
    assert len(read_csv(tmp_path / "out.csv")) == 1


def test_columns_that_the_card_s_own_source_maps_are_read_as_it_reads_them(done, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(done.store, store)
    ground = lay_ground(tmp_path / "ground", done.ground.folder)
    own = {"format": "csv", "train": "train.csv", "columns": ["n", "title", "text"]}
    own |= {"fields": {"headline": "{title}", "body": "{text}"}, "replace": {"\\": " "}}
    ground.change_card(files=own)
    of_an_older_run(store, done.ground.card, ground.card)
    rows = [("1", "goal\\match", "team"), ("2", "bank", "profit")]
    write_texts(tmp_path / "names.csv", rows, ("n", "title", "text"))
    write_texts(tmp_path / "none.csv", rows[1:], rows[0])
    predictor = package.load("last", store)
    expected = [one.probability for one in predictor.predict([("goal match", "team"), ("bank", "profit")])]
    for name in ("names.csv", "none.csv"):
        pet("predict", "last", "--store", store, "--input", tmp_path / name, "--output", tmp_path / "out.csv")
        found = read_csv(tmp_path / "out.csv")
        assert [float(row["probability"]) for row in found] == pytest.approx(expected, abs=1e-5)
        assert [row["title"] for row in found] == ["goal\\match", "bank"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "give either --text TEXT or --input FILE"),
        (["--text", "goal", "--output", "x.csv"], "go with --input"),
        (["--text", " "], "text 1 is empty"),
        (["--text", "goal", "--abstain", "70"], "from 0 to 1"),
        (["--text", "goal", "--device", "cuda:99"], "device 'cuda:99' is not to be had"),
        (["--input", "missing.csv"], "there is no file missing.csv"),
        (["--input", "in.csv", "--output", "in.csv"], "is the input"),
        (["--input", "in.csv", "--output", "out.xlsx"], "must end in .csv"),
        (["--input", "in.csv", "--output", "no/such/out.csv"], "must be a folder"),
        (["--input", "empty.csv"], "is empty"),
        (["--input", "header.csv"], "has no rows"),
        (["--input", "other.csv"], "has the columns ['a', 'b']; expected ['headline', 'body']"),
        (["--input", "bad.csv", "--output", "out.csv"], "has no row with a text: bad.csv:2: 3 columns, expected 2"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(options, said, done, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = {"in.csv": "headline,body\ngoal,team\n", "empty.csv": "", "header.csv": "headline,body\n"}
    files |= {"other.csv": "a,b\n1,2\n", "bad.csv": "headline,body\n1,2,3\n"}
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    found = pet("predict", "last", "--store", done.store, *options, code=2)
    assert said in " ".join(found.output.split())
    assert files_of(tmp_path) == set(files)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_leaves_no_file_and_the_code_that_shells_expect(done, tmp_path, monkeypatch, number, code):
    monkeypatch.setattr(writers.RowWriter, "write", lambda *given: os.kill(os.getpid(), number))
    source = write_texts(tmp_path / "in.csv", [("goal", "team")])
    said = pet("predict", "last", "--store", done.store, "--input", source, "--output", tmp_path / "out.csv", code=code)
    assert "No output file was written" in said.stderr
    assert files_of(tmp_path) == {"in.csv"}


# ---- from Python ---------------------------------------------------------------------------------------------------


def test_texts_may_be_strings_tuples_or_dictionaries(done: Finished):
    predictor = package.load(done.one("run"))
    first, *others = predictor.predict(["goal", ("goal", ""), {"body": None, "headline": "goal"}])
    assert first.label in LABELS
    assert first.probability == max(first.probabilities.values()) == first.probabilities[first.label]
    assert [one.probability for one in others] == pytest.approx([first.probability] * 2)
    assert predictor.predict([]) == []
    assert predictor.predict(["goal"], abstain=1)[0].label is None


def test_what_is_no_text_is_named(done: Finished):
    predictor = package.load(done.one("run"))
    with pytest.raises(TaskError, match=r"text 2 is empty; text 3 .*text 4 has the fields \['x'\].*text 5 "):
        predictor.predict(["goal", "", ("one",), {"x": "y"}, None])
    with pytest.raises(TaskError, match="give a list"):
        predictor.predict("goal")
    with pytest.raises(SettingsError, match="no classifier 'teacher'"):
        package.load(done.one("run"), classifier="teacher")


def test_a_label_s_line_is_shown_for_each_text(done: Finished):
    said = pet("predict", "last", "--store", done.store, "--text", "goal", "--text", "code <script>").stdout
    first, second = said.splitlines()
    assert first.split()[0] in LABELS
    assert second.endswith("code <script>")
