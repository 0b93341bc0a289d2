"""From a spreadsheet with eight labels to a classifier used elsewhere: the commands of docs/tutorial.md."""

import csv
import json
import runpy
from pathlib import Path

import pytest
from support.pages import DOCS, commands_in
from support.rows import files_of, lively_model, pet

pytestmark = pytest.mark.slow

TICKETS = runpy.run_path(str(DOCS / "tickets.py"))

SMALL = {
    "finetune.frozen_layers": 1,
    "finetune.steps": 2,
    "finetune.repetitions": 1,
    "distill.frozen_layers": 1,
    "distill.steps": 2,
    "baseline.frozen_layers": 1,
    "baseline.steps": 2,
}


def read(path: str) -> list[dict[str, str]]:
    with Path(path).open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def fill_in(path: str, answers: dict[str, str]) -> None:
    """Write the label of every row, as a person would."""
    filled = [{**row, "label": answers[row["id"]]} for row in read(path)]
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(filled[0]))
        writer.writeheader()
        writer.writerows(filled)


def test_the_tutorial_makes_a_classifier_of_a_spreadsheet_with_eight_labels(tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = lively_model(tmp_path_factory.getbasetemp())
    small = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]
    instead = {"init": ["--model", model], "check": small, "run": ["--model", model, *small]}
    instead["run"] += ["--set", f"distill.model={model}"]
    TICKETS["write"](tmp_path)
    assert len(read("tickets.csv")) == 500
    assert sum(bool(row["team"]) for row in read("tickets.csv")) == 8
    answers = {row["id"]: row["team"] for row in read("answers.csv")}

    printed: list[tuple[str, str]] = []
    for command, *words in commands_in(DOCS / "tutorial.md"):
        words = [str(model) if word == "mini" else word for word in words]
        printed.append((command, pet(command, *words, *instead.get(command, [])).output))
        if command == "suggest":
            fill_in("to_label.csv", answers)

    assert [command for command, _ in printed] == "init check run suggest run predict predict report export".split()
    said = [output for _, output in printed]
    assert "pet run quick --task tickets/task.yaml" in said[0]
    assert "0 problems" in said[1]
    assert "24 labels" in said[4]
    labelled = read("labelled.csv")
    assert [row["id"] for row in labelled] == list(answers)
    assert {row["label"] for row in labelled} <= {*answers.values(), ""}
    assert "tickets" in Path("tickets.html").read_text(encoding="utf-8")
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= files_of(Path("classifier"))
    names = json.loads(Path("classifier/config.json").read_text())["id2label"]
    assert set(names.values()) == set(answers.values())
