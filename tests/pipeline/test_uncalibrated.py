"""A run whose student could not be calibrated: all that shows its probabilities says so and takes the raw ones."""

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.rows import LABELS, Finished, find_one, lay_ground, lively_model, pet, pet_run, read_json

from pet.tasks.texts import read_texts
from pet.tools.inference.predictor import load

WHY = "6 texts are too few to fit a temperature on, which takes 10"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A run with six pool texts. Never write into its folders."""
    folder = tmp_path_factory.mktemp("small")
    ground = lay_ground(folder / "ground", lively_model(tmp_path_factory.getbasetemp()), data={"pool_per_label": 2})
    return Finished(ground, folder / "store", pet_run(ground, folder / "store"))


def raw(done):
    scores = load_file(done.one("distill") / "scores.safetensors")["test"].astype(float)
    return np.exp(scores) / np.exp(scores).sum(1, keepdims=True)


def test_the_run_says_it_while_it_goes_in_its_files_and_in_its_table(small):
    found = read_json(small.one("evaluate") / "calibration.json")["student"]
    assert (found["temperature"], found["problem"]) == (1, WHY)
    assert found["ece_before"] == found["ece_after"]
    assert f"evaluate: the student's probabilities stay as they are: {WHY}" in small.result.stderr
    summary = small.one("run")
    assert read_json(summary / "summary.json")["calibration"]["student"] == found
    line = f"student {found['ece_before']:.1f}, left as it is ({WHY}); ensemble "
    assert line in (summary / "summary.md").read_text()
    assert line in " ".join(small.result.stdout.split())


def test_predictions_are_raw_and_a_warning_says_why(small):
    texts = read_texts(small.one("prepare") / "test.parquet")
    said = pet("predict", "last", "--store", small.store, "--text", texts.fields["headline"][0]).stderr
    assert f"the probabilities of this student are raw (temperature 1): {WHY}" in " ".join(said.split())
    predictor = load("last", small.store)
    assert (predictor.temperature, predictor.problem) == (1, WHY)
    found = predictor.predict(list(zip(*texts.fields.values(), strict=True)))
    probabilities = [[one.probabilities[label] for label in LABELS] for one in found]
    np.testing.assert_allclose(probabilities, raw(small), atol=2e-5)


def test_the_report_says_it(small, tmp_path):
    pet("report", "last", "--store", small.store, "--output", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert f", left as it is: {WHY} (right " in page
    assert page.count("at temperature") <= 1, "the ensemble's alone"


def test_an_export_is_raw_and_says_it_on_the_screen_and_in_its_card(small, tmp_path):
    said = pet("export", "last", "--store", small.store, "--format", "hf", tmp_path / "out")
    assert f"The probabilities are raw (temperature 1): {WHY}." in " ".join(said.output.split())
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"Its probabilities are raw: {WHY}. The expected calibration error on the test set is " in card
    own, out = (
        load_file(folder / "model.safetensors") for folder in (small.one("distill") / "student", tmp_path / "out")
    )
    assert all(np.array_equal(one, own[name]) for name, one in out.items())


def test_one_member_has_no_other_to_be_held_to_and_its_probabilities_are_said_to_be_raw(small, tmp_path):
    one = ("--set", "finetune.repetitions=1", "--set", "finetune.patterns=[0]")
    pet_run(small.ground, tmp_path, *one)
    found = read_json(find_one(tmp_path, "evaluate") / "calibration.json")["ensemble"]
    assert found["problem"] == "one member has no other to be compared with"
    said = pet("predict", "last", "--store", tmp_path, "--from", "ensemble", "--text", "goal").stderr
    assert "of this ensemble are raw (temperature 1): one member has no other" in " ".join(said.split())
