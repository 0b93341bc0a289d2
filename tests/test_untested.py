"""A label that no test text has is named wherever the number is shown that says nothing of it."""

import csv
from pathlib import Path

import pytest
from support.rows import LABELS, Ground, find_one, lay_ground, lively_model, pet, pet_run, read_json

from pet.pipeline.runs import open_folder
from pet.tools.export.model_card import model_card
from pet.tools.reports import html

pytestmark = pytest.mark.slow

MISSING = LABELS[-1]
MOST = 100 * (1 - 1 / len(LABELS))
SAID = {
    "macro-f1": f"no test text has the label {MISSING!r}, which counts as 0: macro-F1 is {MOST:.1f} at most",
    "accuracy": f"no test text has the label {MISSING!r}: accuracy says nothing of it",
}


@pytest.fixture(scope="module", params=SAID)
def made(request, tmp_path_factory) -> tuple[Ground, Path, str, str]:
    """A ground whose test file lacks a label, the store of a run over it, what is to be said, and what was shown."""
    folder, said = tmp_path_factory.mktemp("untested"), SAID[request.param]
    ground = lay_ground(folder / "ground", lively_model(tmp_path_factory.getbasetemp()), finetune={"repetitions": 1})
    ground.change_card(metric=request.param)
    path = ground.folder / "test.csv"
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.reader(file) if row[0] != MISSING]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    result = pet_run(ground, folder / "store")
    assert f"prepare: {said}\n" in result.stderr
    return ground, folder / "store", said, result.stdout


def test_it_stands_below_the_scores_of_a_run_on_the_screen_and_in_its_files(made):
    _, store, said, shown = made
    run = find_one(store, "run")
    expected = f"{said[0].upper()}{said[1:]}."
    assert expected in shown
    assert expected in (run / "summary.md").read_text()
    assert expected in pet("runs", "show", "last", "--store", store).stdout
    assert read_json(run / "summary.json")["untested"] == [MISSING]


def test_it_stands_on_the_page_and_in_the_model_card(made):
    _, store, said, _ = made
    run = open_folder(find_one(store, "run"))
    assert html.collect(run)["absent"] == f"{said[0].upper()}{said[1:]}."
    assert said[1:].replace("'", "&#39;") in html.render(html.TEMPLATE, **html.collect(run))
    assert said[1:] in model_card(run, "hf", ["headline", "body"], ["input_ids"], "")


def test_it_stands_below_a_table_and_in_the_linter(made, tmp_path):
    ground, store, said, _ = made
    where = ("--store", store, "--out", tmp_path, "--sizes", "12", "--seeds", "0,1", "--methods", "supervised")
    pet("table", ground.pipeline, *where)
    assert f"in 2 of 2 runs {said}." in (tmp_path / "pipeline" / "table.md").read_text()
    model = read_json(find_one(store, "run") / "summary.json")["model"]
    sets = ("--model", model, "--set", "model.max_length=40", "--train-examples", 6)
    assert f"of this seed's draw, {said}" in pet("check", ground.card, *sets).output
