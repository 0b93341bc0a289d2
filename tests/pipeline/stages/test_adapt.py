"""adapt: in-domain training on the pool, and that the rest of the walk starts from it."""

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.rows import files_of, find_all, find_one, hidden_in, lay_ground, lively_model, pet_run, read_json

from pet.config.schema import ModelSettings
from pet.modeling.loading import load_tokenizer
from pet.modeling.tokenization import PromptTokenizer
from pet.tasks.texts import read_texts
from pet.training import mlm_corpus

ADAPT = {"enabled": True, "steps": 3, "length": 24, "blocks": 4, "held_out": 0.2, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """A finished run with in-domain training: ground, store, what was said. Never write into it."""
    folder = tmp_path_factory.mktemp("adapt")
    ground = lay_ground(folder / "ground", lively_model(tmp_path_factory.getbasetemp()), adapt=ADAPT)
    return ground, folder / "store", pet_run(ground, folder / "store")


def weights(folder):
    return load_file(folder / "model.safetensors")


NAME = "bert.encoder.layer.1.output.dense.weight"


def test_the_pool_and_nothing_else_is_trained_on(adapted, tmp_path_factory):
    _, store, _ = adapted
    prompt_tokenizer = PromptTokenizer(
        load_tokenizer(ModelSettings(name=str(lively_model(tmp_path_factory.getbasetemp())))), "lively"
    )
    pool = read_texts(find_one(store, "prepare") / "pool.parquet")
    documents = [" ".join(fields) for fields in zip(*pool.fields.values(), strict=True)]
    kept = [one for one in documents if not mlm_corpus.is_held_out(one, 0.2)]
    assert 0 < len(kept) < len(documents)
    folder = find_one(store, "corpus")
    found = np.fromfile(folder / "train.tokens", "<u2").tolist()
    separator = prompt_tokenizer.frames[1].after[0]
    assert found == [token for ids in prompt_tokenizer.spell(kept) for token in [*ids.tolist(), separator]]


def test_it_publishes_a_model_and_how_training_went(adapted):
    _, store, result = adapted
    folder = find_one(store, "adapt")
    assert {"manifest.json", "training.json", "model/model.safetensors", "model/tokenizer.json"} <= files_of(folder)
    losses = read_json(folder / "training.json")["held_out_loss"]
    assert losses["after"] < losses["before"]
    assert f"adapt: held-out loss {losses['before']:.3f} -> {losses['after']:.3f}" in result.stderr


def test_members_student_and_baseline_start_from_it(adapted, tmp_path_factory):
    """What a few steps of 1e-3 and smaller changed lies around the adapted weights, not around the first."""
    _, store, _ = adapted
    first = weights(lively_model(tmp_path_factory.getbasetemp()))[NAME]
    start = weights(find_one(store, "adapt") / "model")[NAME]
    moved = abs(start - first).max()
    assert moved > 1.5e-3
    for folder in (find_one(store, "finetune", "p0-r0") / "model", find_one(store, "distill") / "student"):
        found = weights(folder)[NAME]
        assert np.linalg.norm(found - start) < 0.8 * np.linalg.norm(found - first)
    identity = find_one(store, "adapt").name.rsplit("-", 1)[1]
    for stage in ("finetune", "distill", "baseline"):
        for folder in find_all(store, stage):
            assert read_json(folder / "manifest.json")["inputs"]["adapt"] == identity


def test_a_student_that_names_another_model_starts_from_that(adapted, tmp_path, tmp_path_factory):
    ground, store, _ = adapted
    shutil.copytree(store, tmp_path / "store")
    other = tmp_path / "other"
    shutil.copytree(lively_model(tmp_path_factory.getbasetemp()), other)
    result = pet_run(ground, tmp_path / "store", "--set", f"distill.model={other}")
    assert result.stderr.count("finetune p") == result.stderr.count("-p") == 6
    made = [read_json(folder / "manifest.json") for folder in find_all(tmp_path / "store", "distill")]
    assert sum("adapt" in one["inputs"] for one in made) == 1


def test_again_nothing_is_trained_and_a_dry_run_knows_every_identity(adapted, monkeypatch):
    ground, store, _ = adapted
    monkeypatch.setattr("pet.training.trainer.Trainer.run", None)
    assert all(": reused " in line for line in pet_run(ground, store).stderr.splitlines())
    assert pet_run(ground, store, "--dry-run").stdout.splitlines()[-1].startswith("0 of 13 artifacts")


def test_the_run_says_that_the_model_was_adapted(adapted):
    _, store, result = adapted
    summary = read_json(find_one(store, "run") / "summary.json")
    assert list(summary["stages"])[:2] == ["prepare", "adapt"]
    assert summary["artifacts"]["adapt"] == [f"adapt/{find_one(store, 'adapt').name}"]
    assert "lively, adapted to the pool: 12 labels" in " ".join(result.stdout.split())


def test_adapters_sit_on_the_adapted_model(adapted, tmp_path):
    ground, store, _ = adapted
    shutil.copytree(store, tmp_path / "store")
    pet_run(ground, tmp_path / "store", "--stage", "finetune", "--set", "finetune.method=lora")
    (member,) = [one for one in find_all(tmp_path / "store", "finetune", "p0-r0") if (one / "adapter").is_dir()]
    base = read_json(member / "adapter" / "adapter_config.json")["base_model_name_or_path"]
    assert base == str(find_one(tmp_path / "store", "adapt") / "model")


def test_the_stage_alone_trains_and_the_next_one_finds_it(adapted, tmp_path):
    ground, _, _ = adapted
    pet_run(ground, tmp_path, "--stage", "prepare")
    needed = pet_run(ground, tmp_path, "--stage", "finetune", code=2)
    assert "adapt has not been run with these settings" in needed.stderr
    pet_run(ground, tmp_path, "--stage", "adapt")
    assert not (tmp_path / "finetune").exists()
    pet_run(ground, tmp_path, "--stage", "finetune")
    assert len(find_all(tmp_path, "finetune")) == 6


def test_a_pool_that_is_too_small_to_train_on_is_refused_and_nothing_is_left(adapted, tmp_path):
    ground, _, _ = adapted
    for change, said in (("held_out=0.0001", "0 held out documents; give more"), ("length=150", "less than one block")):
        result = pet_run(ground, tmp_path / "store", "--set", f"adapt.{change}", code=2)
        assert said in result.stderr
    assert not find_all(tmp_path / "store", "adapt")
    assert not hidden_in(tmp_path / "store")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--stage", "adapt", "--set", "adapt.enabled=false"), "--set adapt.enabled=true"),
        (("--set", "adapt.length=999"), "adapt.length 999 is more than the 160 tokens"),
        (("--set", "adapt.warmup_steps=3"), "adapt.warmup_steps 3 is not less than adapt.steps 3"),
        (("--set", "adapt.frozen_layers=7"), "adapt.frozen_layers is 7, but this bert model has 2 layers"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_made(adapted, tmp_path, arguments, said):
    ground, _, _ = adapted
    assert said in pet_run(ground, tmp_path / "store", *arguments, code=2).stderr
    assert not find_all(tmp_path / "store", "prepare")
