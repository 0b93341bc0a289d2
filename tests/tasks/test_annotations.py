"""Labels given by hand reach the texts that they were given to, whatever has become of the task's files since."""

import csv
import gzip
import json
import shutil
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from support.hub import patch_hub
from support.rows import CARD, LABELS, Ground, finish_run, lay_ground, lively_model, open_context, pet, pet_run

from pet.errors import TaskError
from pet.tasks.annotations import COLUMNS, field_columns
from pet.tasks.texts import read_texts

TEXTS = [
    {"headline": f"{word} today", "body": f"the {word}, and what came of it"}
    for word in "goal market engine boat price robot team".split()
]
"""Texts of no label, all different."""


@pytest.fixture
def ground(tmp_path, tmp_path_factory) -> Ground:
    return lay_ground(tmp_path / "ground", lively_model(tmp_path_factory.getbasetemp()))


def write_source(ground: Ground, rows, name: str = "train.csv", **source) -> None:
    """The task's texts, and one to test on, in files of the kind that the name says, and a card that reads them."""
    for old in [*ground.folder.glob("train.*"), *ground.folder.glob("test.*")]:
        old.unlink()
    names = [name, name.replace("train", "test")]
    tested = [{column: f"{cell} tested" for column, cell in rows[0].items()} | {"label": "tech"}]
    write_rows(ground.folder / names[0], [{"label": "", **row} for row in rows])
    write_rows(ground.folder / names[1], tested)
    train, test = (one.removesuffix(".gz") for one in names)
    ground.change_card(files={"format": Path(train).suffix[1:], "train": train, "test": test} | source)


def write_rows(path: Path, rows) -> None:
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        write_labels(path, rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(path.read_bytes()))


def write_labels(path: Path, rows, encoding: str = "utf-8") -> Path:
    with path.open("w", newline="", encoding=encoding) as file:
        lines = csv.DictWriter(file, list(rows[0]))
        lines.writeheader()
        lines.writerows(rows)
    return path


def labels_of(ground: Ground, *paths: Path):
    """Headline -> label, as a run has them."""
    ctx = open_context(ground, ground.folder / "store", data={"train_files": [str(path) for path in paths]})
    headline = dict(zip(ctx.task.train_side.ids, ctx.task.train_side.fields["headline"], strict=True))
    return {headline[name]: label for name, label in ctx.given_labels.labels.items()}


def refusal(ground: Ground, *paths: Path) -> str:
    with pytest.raises(TaskError) as caught:
        labels_of(ground, *paths)
    return str(caught.value)


def given(ground: Ground, rows=TEXTS[1:4]) -> list[dict[str, str]]:
    """Rows of a labels file for some of the task's texts, as `pet suggest` writes them: id, text and label."""
    texts = open_context(ground, ground.folder / "store").task.train_side
    names = dict(zip(texts.fields["headline"], texts.ids, strict=True))
    return [
        {"id": names[row["headline"]], **row, "label": LABELS[number % 3], "suggested_label": "tech"}
        for number, row in enumerate(rows)
    ]


EXPECTED = {row["headline"]: LABELS[number % 3] for number, row in enumerate(TEXTS[1:4])}
NEW = {"headline": "rain tomorrow", "body": "a row that is new"}


# ---- texts that have another id now --------------------------------------------------------------------------------


def test_after_a_row_was_inserted_labels_reach_the_texts_that_they_were_given_to(tmp_path, tmp_path_factory):
    done = finish_run(tmp_path_factory.getbasetemp())
    shutil.copytree(done.ground.folder, tmp_path / "ground")
    ground = Ground(tmp_path / "ground")
    moved = Path(ground.pipeline).read_text().replace(str(done.ground.folder), str(ground.folder))
    Path(ground.pipeline).write_text(moved)
    pet("suggest", "last", "--store", done.store, "--output", tmp_path / "to_label.csv", "-n", 5)
    with (tmp_path / "to_label.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = [{**row, "label": LABELS[number % 3]} for number, row in enumerate(csv.DictReader(file))]
    path = write_labels(tmp_path / "to_label.csv", rows)
    head, *lines = (ground.folder / "train.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    (ground.folder / "train.csv").write_text("".join([head, "tech,new line,of a person\n", *lines]), encoding="utf-8")

    said = pet_run(ground, tmp_path / "store", "--stage", "prepare", "--train-file", path).output
    assert "5 of the labels of" in said and "went to the text that their row carries" in said
    (folder,) = (tmp_path / "store" / "prepare").glob("topics-n17*")
    train = read_texts(folder / "train.parquet")
    found = {train.fields["body"][row]: train.labels[row] for row in range(12, len(train))}
    assert found == {row["body"]: row["label"] for row in rows}
    again = pet_run(ground, tmp_path / "store", "--stage", "prepare", "--train-file", path).output
    assert "reused" in again and "5 of the labels of" in again, "also when nothing is made"


@pytest.mark.parametrize("name", ["train.csv", "train.jsonl", "train.parquet"])
def test_row_numbers_of_every_format_are_looked_through(ground, tmp_path, name):
    write_source(ground, TEXTS, name)
    path = write_labels(tmp_path / "a.csv", given(ground))
    assert labels_of(ground, path) == EXPECTED
    for rows in ([NEW, *TEXTS], TEXTS[1:], TEXTS[::-1], [*TEXTS[3:], *TEXTS[:3]]):
        write_source(ground, rows, name)
        assert labels_of(ground, path) == EXPECTED


def test_a_file_that_was_packed_or_renamed_keeps_its_labels(ground, tmp_path):
    write_source(ground, TEXTS)
    path = write_labels(tmp_path / "a.csv", given(ground))
    write_source(ground, TEXTS, "train.csv.gz")
    assert labels_of(ground, path) == EXPECTED
    write_source(ground, TEXTS, "train.jsonl")
    assert labels_of(ground, path) == EXPECTED


def test_row_numbers_of_a_hub_dataset_are_looked_through(ground, tmp_path, monkeypatch):
    tables = {"train": TEXTS, "test": TEXTS}
    monkeypatch.setattr("pet.config.hub.hub_reachable", lambda: False)
    patch_hub(monkeypatch, lambda split: [{"label": LABELS[0], **row} for row in tables[split]])
    ground.change_card(files=None, hub={"path": "someone/topics"})
    path = write_labels(tmp_path / "a.csv", given(ground))
    tables["train"] = [NEW, *TEXTS]
    assert labels_of(ground, path) == EXPECTED


def test_a_text_that_was_put_into_another_folder_keeps_its_label(ground, tmp_path):
    for number, row in enumerate(TEXTS):
        (ground.folder / LABELS[number % 3]).mkdir(exist_ok=True)
        (ground.folder / LABELS[number % 3] / f"{number}.txt").write_text(f"{row['headline']}\n{row['body']}")
    ground.change_card(files=None, folder={})
    rows = given(ground)
    (ground.folder / rows[0]["id"]).rename(ground.folder / LABELS[0] / "moved.txt")
    assert labels_of(ground, write_labels(tmp_path / "a.csv", rows)) == EXPECTED


def test_ids_that_a_spreadsheet_changed_are_found_by_their_text(ground, tmp_path):
    rows = [{"key": f"00{number}", **row} for number, row in enumerate(TEXTS)]
    write_source(ground, rows, id="key")
    labels = [{**row, "id": row["id"].lstrip("0")} for row in given(ground)]
    assert labels_of(ground, write_labels(tmp_path / "a.csv", labels)) == EXPECTED


def test_several_files_of_different_times_are_read_each_by_itself(ground, tmp_path):
    write_source(ground, TEXTS)
    old = write_labels(tmp_path / "old.csv", given(ground))
    write_source(ground, [NEW, *TEXTS])
    new = write_labels(tmp_path / "new.csv", given(ground, [*TEXTS[1:2], NEW]))
    assert labels_of(ground, old, new) == EXPECTED | {NEW["headline"]: LABELS[1]}
    write_labels(new, given(ground, [TEXTS[3]]))
    said = refusal(ground, old, new)
    assert f"new.csv:2: id 'train.csv:6' is '{LABELS[0]}' here and '{LABELS[2]}' before" in said


# ---- what cannot be found ------------------------------------------------------------------------------------------


def test_every_label_whose_text_is_gone_or_not_the_only_one_is_named_with_its_line(ground, tmp_path):
    write_source(ground, TEXTS)
    path = write_labels(tmp_path / "a.csv", given(ground, TEXTS[1:5]))
    write_source(ground, [NEW, *TEXTS[2:], TEXTS[2]])
    said = refusal(ground, path)
    assert "a.csv:2: its text is not that of id 'train.csv:3', and no other text is the same" in said
    assert "a.csv:3: its text is not that of id 'train.csv:4' and stands at 'train.csv:3', 'train.csv:8'" in said
    assert "a.csv:4" not in said and "a.csv:5" not in said
    write_source(ground, TEXTS[5:])
    assert "a.csv:5: id 'train.csv:6' is of no text" in refusal(ground, path)


def test_a_text_that_stands_twice_is_labelled_where_its_id_says(ground, tmp_path):
    write_source(ground, [*TEXTS, TEXTS[2]])
    labels = [{**TEXTS[2], "id": f"train.csv:{line}", "label": label} for line, label in ((4, "tech"), (9, "sports"))]
    ctx = open_context(
        ground, tmp_path / "store", data={"train_files": [str(write_labels(tmp_path / "a.csv", labels))]}
    )
    assert ctx.given_labels.labels == {"train.csv:4": "tech", "train.csv:9": "sports"}


def test_a_text_that_a_person_rewrote_is_not_taken_for_another(ground, tmp_path):
    write_source(ground, TEXTS)
    rows = given(ground)
    rows[0]["body"] = "what I would have written"
    path = write_labels(tmp_path / "a.csv", rows)
    assert "a.csv:2: its text is not that of id 'train.csv:3'" in refusal(ground, path)
    rows[0] |= {"headline": "", "body": ""}
    write_labels(path, rows)
    assert labels_of(ground, path) == EXPECTED, "with empty cells the id alone counts"


def test_a_text_of_the_test_file_gets_no_label(ground, tmp_path):
    write_source(ground, TEXTS)
    tested = {field: f"{text} tested" for field, text in TEXTS[0].items()}
    labels = [{"id": "test.csv:2", **tested, "label": "tech"}]
    said = refusal(ground, write_labels(tmp_path / "a.csv", labels))
    assert "id 'test.csv:2' is of no text that task 'topics' has outside its test file" in said


# ---- what a spreadsheet and a card do to texts ---------------------------------------------------------------------

ODD = [
    ("a line\nand  another", ["a line\r\nand another", "a line\rand  another ", "a line and another"]),
    ("=1+1 is two", ["'=1+1 is two", "=1+1 is two"]),
    ("'tis odd", ["tis odd", "'tis odd"]),
    ("cafe\u0301 au lait", ["caf\u00e9 au lait"]),
    ("no\u00a0break\u200b here", ["no break here"]),
    ("na\u00efve \U0001f600 and so on", ["na?ve ?? and so on", "na\u00efve ?? and so on"]),
]


@pytest.mark.parametrize(("text", "cells"), ODD)
def test_what_a_spreadsheet_does_to_a_text_makes_it_no_other_text(ground, tmp_path, text, cells):
    write_source(ground, [{**TEXTS[0], "headline": text}, {**TEXTS[0], "headline": text[:-1] + "y"}], "train.jsonl")
    for cell in cells:
        rows = [{"id": "train.jsonl:1", "headline": cell, "body": TEXTS[0]["body"], "label": "tech"}]
        path = write_labels(tmp_path / "a.csv", rows, "utf-8-sig")
        assert [*labels_of(ground, path).values()] == ["tech"], cell
        write_labels(path, [{**rows[0], "id": "train.jsonl:2"}])
        if "?" not in cell:
            assert [*labels_of(ground, path)] == [text.strip()], cell
        else:
            assert "its text is not that of id" in refusal(ground, path)


def test_characters_that_an_encoding_lost_do_not_stand_for_any_text(ground, tmp_path):
    write_source(ground, [{"headline": "\u65e5\u672c", "body": ""}, {"headline": "\u4e2d\u56fd", "body": ""}])
    rows = [{"id": "train.csv:2", "headline": "??", "body": "", "label": "tech"}]
    assert "its text is not that of id" in refusal(ground, write_labels(tmp_path / "a.csv", rows))


def test_templates_and_replacements_are_what_the_file_of_suggest_and_a_copy_of_the_source_are_read_by(ground, tmp_path):
    rows = [{"title": row["headline"], "story": row["body"].replace(", ", ",<br>")} for row in TEXTS]
    source = {"fields": {"headline": "{title}!", "body": "{title}: {story}"}, "replace": {"<br>": " "}}
    write_source(ground, rows, **source)
    filled = {"headline": "market today!", "body": f"market today: {TEXTS[1]['body']}"}
    kept = labels_of(ground, write_labels(tmp_path / "a.csv", [{"id": "train.csv:3", **filled, "label": "tech"}]))
    copied = write_labels(tmp_path / "b.csv", [{"id": "train.csv:3", **rows[1], "label": "tech"}])
    assert labels_of(ground, copied) == kept == {"market today!": "tech"}
    write_source(ground, [{"title": "new", "story": "row"}, *rows], **source)
    assert labels_of(ground, tmp_path / "a.csv") == labels_of(ground, copied) == kept


def test_a_field_that_is_called_like_a_column_of_the_file_is_compared_too(ground, tmp_path):
    assert field_columns(["text", "label", "text_label"]) == {
        "text": "text",
        "label": "text_text_label",
        "text_label": "text_label",
    }
    assert not {*field_columns(["id", "probability", "text_id"]).values()} & {*COLUMNS}
    rows = [{"headline": row["headline"], "words": row["body"]} for row in TEXTS]
    write_source(ground, rows, fields={"probability": "{words}"})
    ground.change_card(fields=["headline", "probability"], patterns=["{mask} : {headline} {probability}"])
    labels = [{"id": "train.csv:3", "text_probability": TEXTS[2]["body"], "label": "tech", "probability": "0.5"}]
    assert labels_of(ground, write_labels(tmp_path / "a.csv", labels)) == {TEXTS[2]["headline"]: "tech"}


def test_a_file_with_some_of_the_fields_is_compared_by_those(ground, tmp_path):
    write_source(ground, TEXTS)
    rows = [{"id": row["id"], "headline": row["headline"], "label": row["label"]} for row in given(ground)]
    write_source(ground, [NEW, *TEXTS])
    assert labels_of(ground, write_labels(tmp_path / "a.csv", rows)) == EXPECTED


# ---- ids alone -----------------------------------------------------------------------------------------------------


def test_row_numbers_without_texts_are_remarked_by_every_command_that_reads_them(ground, tmp_path):
    path = write_labels(tmp_path / "a.csv", [{"id": f"train.csv:{line}", "label": "tech"} for line in (50, 51)])
    remark = "2 of the labels of"
    store = ("--store", tmp_path / "store")
    files = ("--train-file", path)
    model = lively_model(tmp_path.parent)
    for command in (
        ("run", ground.pipeline, *store, *files, "--dry-run"),
        ("run", ground.pipeline, *store, *files, "--stage", "prepare"),
        ("ipet", ground.pipeline, *store, *files, "--dry-run"),
        ("verbalize", ground.card, *files, "--model", model, "--train-examples", 3, "--set", "model.max_length=28"),
        ("check", ground.card, "--model", model, "--set", f"data.train_files=[{path}]", "--set", "model.max_length=28"),
    ):
        said = " ".join(pet(*command).output.split())
        assert remark in said and "name their text by a row number alone" in said, command


def test_ids_of_the_source_s_own_need_no_text(ground, tmp_path):
    write_source(ground, [{"key": str(number), **row} for number, row in enumerate(TEXTS)], id="key")
    path = write_labels(tmp_path / "a.csv", [{"id": "2", "label": "tech"}])
    said = pet("run", ground.pipeline, "--train-examples", 0, "--train-file", path, "--dry-run").output
    assert "1 labels given by" in said and "row number" not in said


assert CARD["fields"] == ["headline", "body"], "as the texts here have them"
