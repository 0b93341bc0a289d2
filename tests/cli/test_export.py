"""`pet export`: a student gives its scores where there is no pet, read by transformers or onnxruntime; and what is
refused."""

import csv
import importlib.util
import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from safetensors.numpy import load_file
from scipy.special import softmax
from support.rows import (
    LABELS,
    PATTERNS,
    Finished,
    files_of,
    lay_ground,
    pet,
    pet_run,
    read_json,
    save_lively,
    snapshot,
)
from support.tiny import FAMILIES
from transformers import AutoTokenizer

from pet.config.schema import ModelSettings
from pet.errors import MissingArtifact
from pet.modeling import loading
from pet.tasks.texts import read_texts
from pet.tools.export import checkpoint as exporting
from pet.tools.export.model_card import MINI_BASE, hub_base, quoted

pytestmark = pytest.mark.slow

TOKENIZER = {"tokenizer.json", "tokenizer_config.json"}
CHECKPOINT = {"README.md", "config.json", "model.safetensors", *TOKENIZER}

LONG = "goal team market price engine code robot river " * 6
ODD = [
    ("sports", LONG, LONG),
    ("tech", LONG, LONG[:100]),
    ("business", "market", LONG),
    ("tech", LONG, "robot"),
    ("sports", "goal [SEP] </s> river", "team [MASK] <mask>"),
    ("business", "market price", ""),
    ("tech", "  robot  ", "\tcode "),
]
"""Test texts that are cut in each way there is, that name special tokens, that are empty or surrounded by blanks."""

ALONE = """
import json, sys
sys.modules["pet"] = None
from transformers import pipeline
found = {}
for folder, texts in json.load(sys.stdin).items():
    classify = pipeline("text-classification", folder, top_k=None)
    answers = [classify(text, truncation=True) for text in texts]
    found[folder] = [one[0] if isinstance(one[0], list) else one for one in answers]
json.dump(found, sys.stdout)
"""


def make_run(base: Path, family: str, max_length: int, fields: list[str]) -> Finished:
    """A run of the small task with more test texts; of its fields only some."""
    ground = lay_ground(base / "ground", save_lively(base / "model", family))
    with (base / "ground" / "test.csv").open("a", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(row for row in ODD if row[-1] or len(fields) > 1)
    if len(fields) == 1:
        ground.change_card(fields=fields, patterns=["{mask} news : {body}"])
    quick = [
        "--set",
        f"model.max_length={max_length}",
        "--set",
        "finetune.repetitions=1",
        "--set",
        "finetune.patterns=[0]",
    ]
    return Finished(ground, base / "store", pet_run(ground, base / "store", *quick))


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[int, Finished]:
    """By number of fields; room for an odd number of tokens in a pair, so that one side gets the last. Never write into
    them."""
    base = tmp_path_factory.mktemp("runs")
    return {
        1: make_run(base / "one", "roberta", 20, ["body"]),
        2: make_run(base / "two", "bert", 28, ["headline", "body"]),
    }


def given_as(texts: Any) -> list[Any]:
    """Texts as the model card says."""
    columns = [[one.strip() for one in column] for column in texts.fields.values()]
    if len(columns) == 1:
        return columns[0]
    return [
        {"text": first, "text_pair": second} if second else {"text": [first], "text_pair": [second]}
        for first, second in zip(*columns, strict=True)
    ]


def find_scores(done: Finished) -> Path:
    """The artifact of evaluate that has the run's scores."""
    (path,) = {one.parent for one in (done.store / "evaluate").glob("*/calibration.json")}
    return path


def own(done: Finished) -> tuple[Any, np.ndarray]:
    """The run's test texts, and the student's probabilities of them [N, L]."""
    scores = load_file(done.one("distill") / "scores.safetensors")["test"].astype(np.float64)
    temperature = read_json(find_scores(done) / "calibration.json")["student"]["temperature"]
    return read_texts(done.one("prepare") / "test.parquet"), softmax(scores / temperature, axis=-1)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_temperature_goes_into_the_logits_of_every_family(family, tmp_path):
    folder = save_lively(tmp_path / family, family)
    model = loading.load_classifier(ModelSettings(name=str(folder), max_length=16), LABELS).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    known = inspect.signature(model.forward).parameters
    inputs = {
        k: v for k, v in tokenizer(["goal team", "robot"], padding=True, return_tensors="pt").items() if k in known
    }
    before = exporting.answers(model, inputs)
    exporting.fold_temperature(model, 2.5, inputs)
    assert np.allclose(exporting.answers(model, inputs), before / 2.5, atol=1e-6)


def refuse(*arguments: object) -> str:
    """The sentence that `pet export` refuses with."""
    done = pet("export", *arguments, code=2)
    assert done.stdout == ""
    return done.stderr.removeprefix("Error: ").strip()


def card_of(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


# ---- what is written -----------------------------------------------------------------------------------------------


def test_without_pet_transformers_gives_the_students_own_labels_and_probabilities(runs, tmp_path):
    expected, asked = {}, {}
    for number, done in runs.items():
        before = snapshot(done.store)
        out = tmp_path / "new" / str(number)
        pet("export", "last", out, "--store", done.store)
        assert files_of(out) == CHECKPOINT
        assert snapshot(done.store) == before
        texts, expected[str(out)] = own(done)
        asked[str(out)] = given_as(texts)
    found = subprocess.run(
        [sys.executable, "-I", "-c", ALONE], input=json.dumps(asked), capture_output=True, text=True, check=True
    )
    for folder, answers in json.loads(found.stdout).items():
        by_label = [{one["label"]: one["score"] for one in answer} for answer in answers]
        probabilities = np.array([[one[label] for label in LABELS] for one in by_label])
        assert np.ptp(probabilities, axis=0).max() > 0.01, "the texts differ"
        np.testing.assert_allclose(probabilities, expected[folder], rtol=0, atol=1e-5)
        assert [answer[0]["label"] for answer in answers] == [LABELS[row.argmax()] for row in expected[folder]]


def test_onnxruntime_gives_them_too_for_any_batch_and_width(runs, tmp_path):
    out = tmp_path / "out"
    result = pet("export", "last", out, "--format", "onnx", "--store", runs[2].store)
    assert files_of(out) == {"README.md", "config.json", "model.onnx", *TOKENIZER}
    assert result.stderr == ""
    session = onnxruntime.InferenceSession(str(out / "model.onnx"), providers=["CPUExecutionProvider"])
    shapes = {one.name: one.shape for one in session.get_inputs()}
    assert shapes == {name: ["batch", "sequence"] for name in ("input_ids", "token_type_ids", "attention_mask")}
    assert [one.name for one in session.get_outputs()] == ["logits"]
    texts, expected = own(runs[2])
    first, second = ([one.strip() for one in column] for column in texts.fields.values())
    tokenizer = AutoTokenizer.from_pretrained(out)
    for rows in (range(len(texts)), [3], [20, 22]):
        pair = [[column[row] for row in rows] for column in (first, second)]
        inputs = tokenizer(*pair, truncation=True, padding=True, return_tensors="np")
        (logits,) = session.run(["logits"], dict(inputs))
        np.testing.assert_allclose(softmax(logits, axis=-1), expected[rows], rtol=0, atol=1e-5)
    for line in result.stdout.splitlines()[:-1]:
        assert line in card_of(out), "what was found out stands in the card"
    assert result.stdout.count("torch") == 3


def test_the_card_says_what_the_run_found_and_how_to_load_it(runs, tmp_path):
    done = runs[2]
    pet("export", done.one("run"), tmp_path / "out", "--store", tmp_path / "nowhere")
    text = card_of(tmp_path / "out")
    summary = read_json(done.one("run") / "summary.json")
    for name in ("zero_shot", "probe", "supervised", "ensemble", "student"):
        score = summary["scores"][name]
        assert f"| {score['value']:.1f} | {score['low']:.1f} to {score['high']:.1f} |" in text
    assert f"`{PATTERNS[0]}`" in text and PATTERNS[1] not in text
    for label in LABELS:
        assert f"- `{label}`: `{label}`" in text
    assert "12 labelled, 30 unlabelled, 27 for the test" in text
    assert "28 tokens at most" in text
    assert "27 get the label" in text
    assert "(the run computed in fp32)" in text
    assert str(tmp_path) not in text and str(done.store) not in text, "no path of this machine"
    facts = huggingface_hub.ModelCard(text).data.to_dict()
    assert facts["library_name"] == "transformers"
    assert facts["pipeline_tag"] == "text-classification"
    assert "base_model" not in facts, "a folder is no hub id"
    assert "license" not in facts


def test_the_example_in_the_card_runs_as_it_stands(runs, tmp_path, capsys):
    for number, done in runs.items():
        out = tmp_path / str(number)
        pet("export", "last", out, "--store", done.store)
        example = card_of(out).split("```python\n")[1].split("```")[0]
        found: dict[str, Any] = {}
        last = example.rindex("classify(")
        code = (example[:last] + "found = " + example[last:]).replace("path/to/this/folder", str(out))
        exec(compile(code, "card", "exec"), found)
        assert found["found"]["label"] in LABELS if isinstance(found["found"], dict) else found["found"][0]["label"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("two words", "`two words`"),
        ("<script>alert(1)</script>", "`<script>alert(1)</script>`"),
        ("a`b", "`` a`b ``"),
        ("``", "``` `` ```"),
        ("línea\nnueva  *x*", "`línea nueva *x*`"),
    ],
)
def test_a_name_in_the_card_is_shown_as_it_is_whatever_is_in_it(text, shown):
    assert quoted(text) == shown


@pytest.mark.parametrize(
    ("name", "student", "weights", "inputs", "expected"),
    [
        ("roberta-base", None, "roberta-base@e2da8e2f", {}, "roberta-base"),
        ("roberta-large", "org/small", "org/small@e2da8e2f", {}, "org/small"),
        ("roberta-base", None, "roberta-base@e2da8e2f", {"adapt": "kept"}, "roberta-base"),
        ("roberta-base", None, "adapt-kept", {}, "roberta-base"),  # as it was written before it was an input
        ("roberta-base", None, "adapt-gone", {}, None),
        ("home/wide", None, "0f0f0f0f", {}, None),
        ("mini", "mini-encoder", "53aa5117", {}, MINI_BASE),
    ],
)
def test_the_base_model_is_named_to_the_hub_only_if_it_came_from_there(name, student, weights, inputs, expected):
    def by_identity(stage, identity):
        if identity == "gone":
            raise MissingArtifact(stage)
        return SimpleNamespace(manifest={"settings": {"model": "roberta-base@e2da8e2f"}})

    run = SimpleNamespace(
        artifact=SimpleNamespace(manifest={"settings": {"model": {"name": name}, "distill": {"model": student}}}),
        student=SimpleNamespace(manifest={"settings": {"model": {"weights": weights}}, "inputs": inputs}),
        by_identity=by_identity,
    )
    assert hub_base(run) == expected


# ---- what is refused -----------------------------------------------------------------------------------------------


def test_an_empty_folder_is_filled_and_anything_else_is_refused(runs, tmp_path):
    store = runs[1].store
    (tmp_path / "empty").mkdir()
    pet("export", "last", tmp_path / "empty", "--store", store)
    assert files_of(tmp_path / "empty") == CHECKPOINT
    (tmp_path / "file").write_text("mine")
    before = snapshot(tmp_path)
    for name in ("empty", "file"):
        expected = f"{tmp_path / name} exists already; name a new folder, or remove it"
        assert refuse("last", tmp_path / name, "--store", store) == expected
    assert "lies in the store" in refuse("last", store / "run" / "deep", "--store", store)
    assert "cannot be written" in refuse("last", tmp_path / "file" / "below", "--store", store)
    assert "is no run of" in refuse("nonsense", tmp_path / "new", "--store", store)
    assert "has no runs" in refuse("last", tmp_path / "new", "--store", tmp_path / "nowhere")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("gone", "sentence"),
    [
        ("distill/*/student", "student/config.json is missing"),
        ("distill/*/student/model.safetensors", "model.safetensors is damaged: 0 bytes"),
        ("distill/*/scores.safetensors", "scores.safetensors is damaged: 0 bytes"),
        ("prepare/*/test.parquet", "test.parquet is damaged: 0 bytes"),
        ("finetune/*p0-r0*", "run was made from finetune"),
    ],
)
def test_a_store_that_is_not_whole_any_more_is_said(runs, tmp_path, gone, sentence):
    store = tmp_path / "store"
    shutil.copytree(runs[1].store, store)
    (path,) = store.glob(gone)
    shutil.rmtree(path) if path.is_dir() else path.write_bytes(b"")
    assert sentence in re.sub(r"run \S+ was", "run was", refuse("last", tmp_path / "out", "--store", store))
    assert list(tmp_path.iterdir()) == [store]


@pytest.mark.parametrize("half", ["model", "tokenizer"])
def test_interrupted_it_leaves_nothing(runs, tmp_path, monkeypatch, half):
    kind = transformers.PreTrainedModel if half == "model" else transformers.PreTrainedTokenizerBase
    save = kind.save_pretrained

    def save_half(self, folder, **more):
        save(self, folder, **more)
        assert not (tmp_path / "above").exists(), "it is not there before it is whole"
        raise KeyboardInterrupt

    monkeypatch.setattr(kind, "save_pretrained", save_half)
    pet("export", "last", tmp_path / "above" / "out", "--store", runs[1].store, code=130)
    assert list(tmp_path.iterdir()) == []


def test_packages_that_onnx_needs_are_named(runs, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    sentence = refuse("last", tmp_path / "out", "--format", "onnx", "--store", runs[1].store)
    assert "needs onnxscript, not installed here; run: pip install onnxscript" in sentence
    assert list(tmp_path.iterdir()) == []


def test_a_family_that_torch_cannot_export_is_said_and_nothing_is_written(runs, tmp_path, monkeypatch):
    def fail(*arguments, **more):
        raise torch.onnx.OnnxExporterError("no such\noperator")

    monkeypatch.setattr(torch.onnx, "export", fail)
    sentence = refuse("last", tmp_path / "out", "--format", "onnx", "--store", runs[1].store)
    assert "cannot export a roberta classifier to ONNX (no such operator); use --format hf" in sentence
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("off", [2e-3, float("nan")])
def test_an_onnx_model_that_answers_otherwise_is_not_written(runs, tmp_path, monkeypatch, off):
    def write_wrong(model, inputs, path):
        path.write_text("model")
        wrong = torch.tensor([off, 0, 0])
        return lambda given: (torch.from_numpy(exporting.answers(model, given)) + wrong).numpy()

    monkeypatch.setattr(exporting, "write_onnx", write_wrong)
    sentence = refuse("last", tmp_path / "out", "--format", "onnx", "--store", runs[1].store)
    assert "away from torch's, 1e-04 is allowed; nothing was written" in sentence
    assert list(tmp_path.iterdir()) == []
