"""From a spreadsheet with eight labels to a classifier used elsewhere, by the commands of docs/your-own-task.md."""

import csv
import json
import runpy
import shlex
from pathlib import Path

import pytest
from support.rows import files_of, lively_model, pet

pytestmark = pytest.mark.slow

TICKETS = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "tickets.py"))

SMALL = {
    "finetune.frozen_layers": 1,
    "finetune.steps": 2,
    "finetune.repetitions": 1,
    "distill.frozen_layers": 1,
    "distill.steps": 2,
    "baseline.frozen_layers": 1,
    "baseline.steps": 2,
}


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_a_spreadsheet_with_eight_labels_becomes_a_classifier(tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = lively_model(tmp_path_factory.getbasetemp())
    small = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]
    small += ["--set", f"distill.model={model}"]
    TICKETS["write"](tmp_path)
    assert len(read(Path("tickets.csv"))) == 500
    assert sum(bool(row["team"]) for row in read(Path("tickets.csv"))) == 8

    said = pet("init", "tickets", "--input", "tickets.csv", "--text", "subject", "--text-b", "text", "--label", "team",
               "--model", model).output  # fmt: skip
    check, run = [shlex.split(line)[1:] for line in said.splitlines() if line.startswith("  pet ")]
    assert "0 problems" in pet(*check, *small).output
    pet(*run, *small)

    pet("suggest", "last", "-n", 6, "--output", "to_label.csv")
    answers = {row["id"]: row["team"] for row in read(Path("answers.csv"))}
    filled = [{**row, "label": answers[row["id"]]} for row in read(Path("to_label.csv"))]
    with Path("labelled.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(filled[0]))
        writer.writeheader()
        writer.writerows(filled)
    assert "10 labels" in pet(*run, *small, "--train-file", "labelled.csv").output

    pet("predict", "last", "--input", "tickets.csv", "--output", "predicted.csv")
    predicted = read(Path("predicted.csv"))
    assert [row["id"] for row in predicted] == list(answers)
    assert {row["label"] for row in predicted} <= set(answers.values())

    pet("report", "last", "--output", "report.html")
    assert "tickets" in Path("report.html").read_text(encoding="utf-8")
    pet("export", "last", "classifier")
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= files_of(Path("classifier"))
    names = json.loads(Path("classifier/config.json").read_text())["id2label"]
    assert set(names.values()) == set(answers.values())
