"""`pet predict` reads a file as the run read its own: what the card says about reading is kept in the run."""

import csv
import shutil

import pytest
import yaml
from support.rows import LABELS, TOPICS, declare, find_one, lay_ground, lively_model, pet, pet_run, read_json

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
    kind = name.split(".")[1]
    patterns = ["{mask} : {text}", "{text} ( {mask} )"]
    ground.change_card(fields=["text"], patterns=patterns, files={"format": kind, "train": name, **files})
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


def test_the_texts_that_are_predicted_are_those_that_the_run_trained_on(tmp_path, tmp_path_factory, monkeypatch):
    import pet as package

    header, before, files = KEPT["replace"]
    content = header + "".join(f"{text},{label}\n" for text, label in rows(before))
    ground, store = finish(tmp_path, tmp_path_factory, content.encode(), "t.csv", **files)
    shutil.copy(ground.folder / "t.csv", tmp_path / "t.csv")
    shutil.rmtree(ground.folder)
    found = predict(store, tmp_path / "t.csv", tmp_path / "out.csv")
    expected = package.load("last", store).predict([text for text, _ in rows()])
    assert [float(one["probability"]) for one in found] == pytest.approx([one.probability for one in expected], abs=1e-5)


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
