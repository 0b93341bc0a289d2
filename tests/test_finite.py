"""Numbers that are NaN or infinite, wherever they come from: the command ends with one sentence that says whose they
are and what to look at, and nothing is published."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.rows import find_all, lay_ground, lively_model, pet, pet_run, read_json, save_lively

import pet as package
from pet.config.schema import FinetuneSettings, ModelSettings
from pet.errors import DamagedArtifact, ModelError, NotFinite
from pet.modeling import loading, lora
from pet.modeling.backbones import MaskedLM
from pet.modeling.classifier import ClassifierModel
from pet.pipeline.score_files import open_scores, read_scores, write_scores
from pet.pipeline.stages import baseline
from pet.store.key import Key
from pet.store.store import Store
from pet.tools.export import checkpoint
from pet.tools.inference.predictor import Predictor

pytestmark = pytest.mark.slow

HOT = 1e30
ADAPT = {"enabled": True, "steps": 25, "length": 16, "blocks": 4, "held_out": 0.2}


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    return lively_model(tmp_path_factory.getbasetemp())


def said_by(result) -> str:
    """The last line, which is the error."""
    return result.stderr.strip().splitlines()[-1]


def spoil(folder: Path, part: str, value: float = math.nan) -> str:
    """One number of a model's weights becomes `value`; the name of the tensor."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    (name, *_) = [one for one in tensors if part in one]
    tensors[name].view(-1)[0] = value
    save_file(tensors, path, metadata={"format": "pt"})
    return name


# ---- training ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said", "unpublished"),
    [
        (
            {"finetune": {"learning_rate": HOT}},
            "finetune p0-r0: FAILED; finetune.learning_rate is",
            "-r",
        ),
        (
            {"finetune": {"method": "lora", "lora": {"learning_rate": HOT}}},
            "finetune p0-r0 (and 3 more): FAILED; finetune.lora.learning_rate is",
            "-r",
        ),
        (
            {"distill": {"learning_rate": HOT}},
            "distill student: FAILED; distill.learning_rate is",
            "distill",
        ),
        (
            {"baseline": {"learning_rate": HOT}},
            "baseline supervised: FAILED; baseline.learning_rate is",
            "baseline",
        ),
        ({"adapt": {**ADAPT, "learning_rate": HOT}}, "adapt: FAILED; adapt.learning_rate is", "adapt"),
    ],
    ids=["members", "adapters", "student", "baseline", "in-domain training"],
)
def test_a_rate_that_is_far_too_high_is_named_with_the_step_and_nothing_is_published(
    model, tmp_path, changes, said, unpublished
):
    steps = {name: {"steps": 25, **changes.get(name, {})} for name in ("finetune", "distill", "baseline")}
    ground = lay_ground(tmp_path / "ground", model, **{**changes, **steps}, runtime={"checkpoint_minutes": 0})
    for _ in range(2):  # the second time goes on from what was saved, and ends there too
        found = said_by(pet_run(ground, tmp_path / "store", code=2))
        before, after = said.split("FAILED")
        assert found.startswith(f"Error: {before}the loss became ") and found.endswith(f"{after} 1e+30: lower it")
        assert " in step " in found and " of 25; " in found
    manifests = (tmp_path / "store").glob("*/[!.]*/manifest.json")
    folders = [str(path.parent.relative_to(tmp_path / "store")) for path in manifests]
    assert folders and not any(unpublished in one for one in folders)
    assert not find_all(tmp_path / "store", "run")


def test_weights_that_the_last_step_spoils_are_found_by_the_scores(model, tmp_path):
    ground = lay_ground(tmp_path / "ground", model, finetune={"steps": 1, "learning_rate": 1e38})
    found = said_by(pet_run(ground, tmp_path / "store", code=2))
    assert found.startswith("Error: p0-r0 on train: the score of text ")
    assert found.endswith("after training, finetune.learning_rate is 1e+38: lower it")


def test_a_table_shows_the_run_as_a_hole(model, tmp_path):
    ground = lay_ground(tmp_path / "ground", model, baseline={"learning_rate": HOT, "steps": 25})
    arguments = ("--sizes", "6", "--seeds", "0", "--methods", "supervised")
    where = ("--store", tmp_path / "store", "--out", tmp_path / "results")
    pet("table", ground.pipeline, *where, *arguments, code=1)
    (found,) = read_json(tmp_path / "results" / "pipeline" / "table.json")["failed"]
    assert found["problem"].startswith("baseline supervised: the loss became ")
    assert "FAILED: seed 0" in (tmp_path / "results" / "pipeline" / "table.md").read_text()


def test_a_linear_probe_that_comes_to_nan_is_refused_and_one_that_knows_no_label_is_not(done, monkeypatch, tmp_path):
    from sklearn.linear_model import LogisticRegression

    monkeypatch.setattr(LogisticRegression, "predict_log_proba", lambda self, rows: np.full((len(rows), 3), np.nan))
    monkeypatch.setattr(baseline, "score_supervised", lambda *_: pytest.fail("too late"))
    found = said_by(pet_run(done.ground, tmp_path / "store", code=2))
    assert found.startswith("Error: probe on test: the score of text 1 is nan; the weights of ")


# ---- models --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["run", "check", "verbalize", "table"])
def test_a_model_with_nan_in_its_weights_is_named_before_anything_is_trained(tmp_path, command):
    name = spoil(save_lively(tmp_path / "broken"), "layer.1.intermediate.dense.weight")
    ground = lay_ground(tmp_path / "ground", tmp_path / "broken")
    sets = ("--model", tmp_path / "broken", "--set", "model.max_length=40", "--train-examples", 6)
    arguments = {
        "run": (ground.pipeline, "--store", tmp_path / "store"),
        "check": (ground.card, *sets),
        "verbalize": (ground.card, *sets),
        "table": (ground.pipeline, "--store", tmp_path / "store", "--out", tmp_path / "out", "--sizes=0", "--seeds=0"),
    }[command]
    done = pet(command, *arguments, code=1 if command == "table" else 2)
    assert f"model '{tmp_path / 'broken'}' cannot be used: its weights '{name}' hold NaN or infinity" in done.stderr
    assert not find_all(tmp_path / "store", "finetune")


def test_an_infinity_in_a_heads_bias_is_no_damage_and_one_in_a_matrix_is(tmp_path):
    save_lively(tmp_path / "model")
    spoil(tmp_path / "model", "cls.predictions.bias", -math.inf)
    assert loading.load_masked_lm(ModelSettings(name=str(tmp_path / "model"), max_length=40))
    spoil(tmp_path / "model", "word_embeddings.weight", math.inf)
    with pytest.raises(ModelError, match=r"word_embeddings\.weight' hold NaN or infinity"):
        loading.load_classifier(ModelSettings(name=str(tmp_path / "model"), max_length=40), ["a", "b"])


def test_weights_that_are_finite_but_overflow_are_blamed_on_the_model_and_on_no_rate(tmp_path):
    spoil(save_lively(tmp_path / "huge"), "cls.predictions.transform.LayerNorm.weight", 3e38)
    ground = lay_ground(tmp_path / "ground", tmp_path / "huge")
    found = said_by(pet_run(ground, tmp_path / "store", code=2))
    assert "p0-untuned on train: the score of text " in found and "learning_rate" not in found
    assert found.endswith(f"the weights of '{tmp_path / 'huge'}' are damaged: give another model")


def test_an_adapter_with_nan_is_refused(tmp_path, model):
    lm = loading.load_masked_lm(ModelSettings(name=str(model), max_length=40))
    adapters = lora.Adapters(lm, lm, [0], FinetuneSettings())
    with torch.no_grad():
        adapters.pairs[0].up[0, 0, 0] = math.inf
    adapters.save(0, tmp_path / "adapter", str(model))
    with pytest.raises(ModelError, match="adapter has weights that are NaN or infinite"):
        lora.read(tmp_path / "adapter")
    assert "has weights that are NaN" in pet("merge", tmp_path / "adapter", tmp_path / "out", code=2).stderr


# ---- predictions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["student", "ensemble"])
def test_no_nan_gets_past_abstain(done, kind, monkeypatch, tmp_path):
    owner, method = (ClassifierModel, "logits") if kind == "student" else (MaskedLM, "label_scores")
    compute = getattr(owner, method)
    monkeypatch.setattr(owner, method, lambda *given, **more: compute(*given, **more) * math.nan)
    output = tmp_path / "out.csv"
    arguments = (
        "predict",
        done.store / "run" / done.one("run").name,
        "--store",
        done.store,
        "--from",
        kind,
        "--abstain",
        0.9,
    )
    found = said_by(pet(*arguments, "--input", done.ground.folder / "test.csv", "--output", output, code=2))
    assert "the score of text 1 is nan; the weights of " in found
    assert list(tmp_path.iterdir()) == [], "nothing half-written"
    with pytest.raises(NotFinite, match="is nan; the weights of "):
        package.load(done.one("run"), classifier=kind).predict([("a", "b")])


class Constant:
    """A classifier with scores of its own."""

    def __init__(self, scores: list[list[float]]) -> None:
        self.scores = np.asarray(scores, dtype=np.float32)

    def score(self, texts, name):
        return self.scores


@pytest.mark.parametrize(("scores", "temperature"), [([[1, 2], [math.nan, 0]], 1.0), ([[1, 2], [0, 0]], math.nan)])
@pytest.mark.parametrize("abstain", [None, 0.0, 0.9, 1.0])
def test_a_prediction_without_probabilities_is_none(scores, temperature, abstain):
    predictor = Predictor(("text",), ("a", "b"), Constant(scores), temperature)
    with pytest.raises(NotFinite, match=r"text [12] has no probabilities"):
        predictor.predict(["x", "y"], abstain)


def test_an_export_that_computes_nan_is_not_written(done, monkeypatch, tmp_path):
    def broken(run, folder):
        student = load(run, folder)
        torch.nn.init.constant_(
            [one for one in student.modules() if isinstance(one, torch.nn.Linear)][-1].bias, math.nan
        )
        return student

    load = checkpoint.load
    monkeypatch.setattr(checkpoint, "load", broken)
    run = ("export", done.one("run"), tmp_path / "out", "--store", done.store)
    assert "a logit that torch computes of the student is nan; nothing was written" in pet(*run, code=2).stderr
    assert not (tmp_path / "out").exists()


# ---- what older versions published ---------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_published_scores_that_are_no_numbers_are_damage(tmp_path, value):
    store = Store(tmp_path)
    for stage, names in (("finetune", ("pool",)), ("baseline", ("probe",))):
        with store.publish(Key(stage, 1, {}, {}), "old") as draft:
            write_scores(draft, {name: np.asarray([[1.0, 2.0], [value, 0.0]], dtype=np.float32) for name in names})
    member, base = (store.find(Key(stage, 1, {}, {})) for stage in ("finetune", "baseline"))
    with pytest.raises(DamagedArtifact, match="scores that are NaN or infinite"):
        read_scores(member)
    with open_scores(member, "pool") as scores:
        assert (len(scores), scores[:1].tolist()) == (2, [[1.0, 2.0]])
        with pytest.raises(DamagedArtifact):
            scores[::1]
    if value == -math.inf:
        assert read_scores(base)["probe"][1, 0] == value, "a label that the probe never saw"
    else:
        with pytest.raises(DamagedArtifact):
            read_scores(base)


def test_a_member_that_was_published_with_nan_is_made_again(done, monkeypatch, tmp_path):
    shutil.copytree(done.store, tmp_path / "store")
    for stage in ("run", "evaluate", "distill", "label"):
        shutil.rmtree(tmp_path / "store" / stage)
    store = Store(tmp_path / "store")
    (member,) = (tmp_path / "store" / "finetune").glob("[!.]*p1-r0*")
    key = store.open(member).manifest
    shutil.rmtree(member)
    with store.publish(Key(key["stage"], key["version"], key["settings"], key["inputs"]), key["label"]) as draft:
        scores = read_scores(Store(done.store).open(done.store / "finetune" / member.name))
        write_scores(draft, {name: one * np.float32(math.nan) for name, one in scores.items()})
        draft.write_json("training.json", {"train_accuracy": 0.5})
    said = pet_run(done.ground, tmp_path / "store").stderr
    assert "is damaged (it has scores that are NaN or infinite); set aside" in said
    again = read_scores(store.open(member))
    assert all(np.array_equal(one, scores[name]) for name, one in again.items())
