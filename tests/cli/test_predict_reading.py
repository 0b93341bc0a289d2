"""`pet predict` reads a file as the run read its own: what the card says about reading is kept in the run."""

import csv
import gzip
import json
import shutil

import pytest
import yaml
from support.rows import LABELS, TOPICS, declare, find_one, lay_ground, lively_model, pet, pet_run, read_json

pytestmark = pytest.mark.slow

SIZE = 30
SMALL = {
    "data": {"train_examples": 6, "pool_per_label": 4},
    "finetune": {"repetitions": 1, "steps": 1},
    "distill": {"steps": 2},
    "baseline": {"steps": 1},
}


def rows(before: str = "") -> list[tuple[str, str]]:
    """(text, label), each text once."""
    return [
        (f"{before}{TOPICS[LABELS[n % 3]][n % 4]} {TOPICS[LABELS[n % 3]][(n + 1) % 4]} no {n}", LABELS[n % 3])
        for n in range(SIZE)
    ]


def finish(tmp_path, tmp_path_factory, content, name, **files):
    """A run over a card with one field and this file; the folder of the card and the store."""
    ground = lay_ground(tmp_path / "ground", lively_model(tmp_path_factory.getbasetemp()), **SMALL)
    (ground.folder / name).write_bytes(content)
    patterns = ["{mask} : {text}", "{text} ( {mask} )"]
    files = {"format": name.split(".")[1], "train": name, **files}
    ground.change_card(fields=["text"], patterns=patterns, files=files)
    pet_run(ground, tmp_path / "store", "--set", "data.test=8")
    return ground, tmp_path / "store"


def predict(store, source, output):
    """The rows that `pet predict` writes."""
    pet("predict", "last", "--store", store, "--input", source, "--output", output)
    with output.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


BOILERPLATE = "XX this message is confidential<br>"
KEPT = {
    "replace": ("text,label\n", BOILERPLATE, {"replace": {"<br>": " ", "XX this message is confidential": ""}}),
    "template": ("text,label,kind\n", "", {"fields": {"text": "{kind} match: {text}"}}),
    "columns": ("", "", {"columns": ["text", "label"]}),
    "labels": ("text,mark\n", "", {"label": "mark", "labels": {one: one for one in LABELS}, "replace": {"no": "goal"}}),
}


@pytest.mark.parametrize("kept", KEPT)
def test_what_the_card_says_about_reading_holds_in_any_folder_and_when_the_card_is_gone_or_changed(
    kept, tmp_path, tmp_path_factory, monkeypatch
):
    header, before, files = KEPT[kept]
    more = ",goal" if kept == "template" else ""
    content = header + "".join(f"{text},{label}{more}\n" for text, label in rows(before))
    ground, store = finish(tmp_path, tmp_path_factory, content.encode(), "t.csv", **files)
    settings = find_one(store, "run") / "settings.yaml"  # as `pet run --task task.yaml` in the card's folder writes it
    settings.write_text(settings.read_text().replace(str(ground.card), "task.yaml"))
    declare(settings.parent)
    monkeypatch.chdir(ground.folder)
    here = predict(store, ground.folder / "t.csv", tmp_path / "here.csv")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert predict(store, ground.folder / "t.csv", tmp_path / "there.csv") == here
    monkeypatch.chdir(ground.folder)
    values = yaml.safe_load(ground.card.read_text())
    values["files"] = {"format": "csv", "train": "t.csv"}
    ground.card.write_text(yaml.safe_dump(values))
    assert predict(store, ground.folder / "t.csv", tmp_path / "changed.csv") == here
    ground.card.unlink()
    assert predict(store, ground.folder / "t.csv", tmp_path / "gone.csv") == here
    assert len(here) == SIZE


def assert_read_as_trained(store, source, texts, tmp_path):
    """Every row is labelled, by the text that the run would have read."""
    import pet as package

    found = predict(store, source, tmp_path / "out.csv")
    wanted = [one.probability for one in package.load("last", store).predict(texts)]
    assert [float(one["probability"]) for one in found] == pytest.approx(wanted, abs=1e-5)
    return found


QUOTED = [('"' * (n % 3 == 0) + text, label) for n, (text, label) in enumerate(rows())]
FOREIGN = [(f"{text} f\u00fcr Gr\u00f6\u00dfe", label) for text, label in rows()]


def table(pairs, separator=",", header=("text", "label")):
    return "".join(separator.join(one) + "\n" for one in (*[header][: bool(header)], *pairs))


LAID_OUT = {
    "unquoted": ("t.tsv", table(QUOTED, "\t").encode(), {"quoted": False}, QUOTED),
    "cp1252": ("t.csv", table(FOREIGN).encode("cp1252"), {"encodings": ["cp1252"]}, FOREIGN),
    "in order": ("t.csv", table(FOREIGN).encode("cp1252"), {"encodings": ["utf-8", "cp1252"]}, FOREIGN),
    "utf-16": ("t.tsv", table(FOREIGN, "\t").encode("utf-16"), {"encodings": ["utf-16"]}, FOREIGN),
    "json": (
        "t.jsonl",
        "".join(json.dumps({"text": a, "label": b}, ensure_ascii=False) + "\n" for a, b in FOREIGN).encode("cp1252"),
        {"encodings": ["cp1252"]},
        FOREIGN,
    ),
    "another ending": ("t.txt", table(rows(), "\t").encode(), {"format": "tsv"}, rows()),
    "no ending": ("t.", table(rows()).encode(), {"format": "csv"}, rows()),
    "equal cells": (
        "t.csv",
        table([(LABELS[0], LABELS[0]), *rows()], header=()).encode(),
        {"columns": ["text", "label"]},
        [(LABELS[0], LABELS[0]), *rows()],
    ),
}


@pytest.mark.parametrize("laid_out", LAID_OUT)
def test_a_file_is_read_as_the_run_read_it(laid_out, tmp_path, tmp_path_factory):
    name, content, files, pairs = LAID_OUT[laid_out]
    ground, store = finish(tmp_path, tmp_path_factory, content, name, **files)
    found = assert_read_as_trained(store, ground.folder / name, [text for text, _ in pairs], tmp_path)
    assert [one["text"] for one in found] == [text for text, _ in pairs]


def test_what_the_card_says_of_one_format_does_not_hold_for_another(tmp_path, tmp_path_factory):
    files = {"quoted": False, "encodings": ["cp1252"]}
    _, store = finish(tmp_path, tmp_path_factory, table(FOREIGN, "\t").encode("cp1252"), "t.tsv", **files)
    texts = [f'{text}, "\u00e9"' for text, _ in FOREIGN]
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])
    (tmp_path / "a.ndjson").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "a.txt").write_text("\n\n".join(texts), encoding="utf-8")
    for name in ("a.csv", "a.ndjson", "a.txt"):
        found = assert_read_as_trained(store, tmp_path / name, texts, tmp_path)
        assert [one["text"] for one in found] == texts


def test_a_line_of_a_text_file_is_a_text_of_a_task_with_one_field(tmp_path, tmp_path_factory, done):
    files = {"fields": {"text": "{body}"}, "replace": {"<br>": " "}}
    content = table(rows(), header=("body", "label")).encode()
    _, store = finish(tmp_path, tmp_path_factory, content, "t.csv", **files)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"goal<br>match\r\n\r\nbank \x0c profit"))
    assert_read_as_trained(store, tmp_path / "a.txt.gz", ["goal match", "bank \x0c profit"], tmp_path)
    (tmp_path / "a.txt").write_text("goal\n")
    said = pet("predict", "last", "--store", done.store, "--input", tmp_path / "a.txt", code=2).output
    assert "has the columns ['text']; expected ['headline', 'body']" in " ".join(said.split())


def test_columns_without_a_name_are_no_hindrance(tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = lively_model(tmp_path_factory.getbasetemp())
    content = table([(label, text, "", "", "x") for text, label in rows()], header=("v1", "v2", "", "", ""))
    (tmp_path / "spam.csv").write_text(content)
    pet("init", "spam", "--input", "spam.csv", "--text", "v2", "--label", "v1", "--model", model)
    ground = lay_ground(tmp_path / "ground", model, **SMALL)
    pet_run(ground, tmp_path / "store", "--task", "spam", "--set", "data.test=8")
    found = assert_read_as_trained(tmp_path / "store", tmp_path / "spam.csv", [text for text, _ in rows()], tmp_path)
    assert list(found[0])[:6] == ["v1", "v2", "column_3", "column_4", "column_5", "label"]
    assert {one["column_5"] for one in found} == {"x"}
    (tmp_path / "index.csv").write_text(table([("7", text, "") for text, _ in rows()], header=("", "v2", "more")))
    found = assert_read_as_trained(tmp_path / "store", tmp_path / "index.csv", [text for text, _ in rows()], tmp_path)
    assert found[0][""] == "7"


def test_the_texts_that_are_predicted_are_those_that_the_run_trained_on(tmp_path, tmp_path_factory):
    header, before, files = KEPT["replace"]
    content = header + "".join(f"{text},{label}\n" for text, label in rows(before))
    ground, store = finish(tmp_path, tmp_path_factory, content.encode(), "t.csv", **files)
    shutil.copy(ground.folder / "t.csv", tmp_path / "t.csv")
    shutil.rmtree(ground.folder)
    assert_read_as_trained(store, tmp_path / "t.csv", [text for text, _ in rows()], tmp_path)


def test_a_run_that_is_reused_says_that_it_keeps_what_the_card_said_before(tmp_path, tmp_path_factory):
    ground, store = finish(tmp_path, tmp_path_factory, table(FOREIGN).encode("cp1252"), "t.csv", encodings=["cp1252"])
    again = (ground, store, "--set", "data.test=8")
    assert "was made when the card said otherwise" not in pet_run(*again).output
    (ground.folder / "t.csv").write_text(table(FOREIGN), encoding="utf-8")
    ground.change_card(files={"format": "csv", "train": "t.csv"})
    said = " ".join(pet_run(*again).output.split())
    assert "was made when the card said otherwise how texts are read (files.encodings)" in said
    shutil.rmtree(find_one(store, "run"))
    assert "was made when the card said otherwise" not in pet_run(*again).output
    assert_read_as_trained(store, ground.folder / "t.csv", [text for text, _ in FOREIGN], tmp_path)


def test_what_is_kept_and_cannot_be_read_is_one_sentence(done, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(done.store, store)
    path = find_one(store, "run") / "reading.json"
    (tmp_path / "a.csv").write_text("headline,body\ngoal,team\n")
    for old, new, said in (
        ('"quoted"', '"quotes"', "unknown setting 'files.quotes'; did you mean 'files.quoted'?"),
        ('"utf-8-sig"', '"zip"', "encoding 'zip' is none"),
    ):
        before = path.read_text()
        path.write_text(before.replace(old, new))
        declare(path.parent)
        printed = pet("predict", "last", "--store", store, "--input", tmp_path / "a.csv", code=2).output
        assert said in " ".join(printed.split())
        assert "use the version that made the run" in " ".join(printed.split())
        path.write_text(before)


def test_what_is_kept_is_what_the_card_said(done):
    kept = read_json(find_one(done.store, "run") / "reading.json")
    values = yaml.safe_load(done.ground.card.read_text())
    assert (kept["fields"], kept["labels"]) == (values["fields"], values["labels"])
    assert values["files"].items() <= kept["files"].items()
