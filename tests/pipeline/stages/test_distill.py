"""distill: the student learns the soft labels of the pool, from the pool alone, and loads like any classifier."""

import numpy as np
import pyarrow.parquet
import pytest
import torch
from safetensors.numpy import load_file
from support.rows import (
    LABELS,
    TOPICS,
    digest,
    files_of,
    lay_ground,
    lively_model,
    make,
    node_of,
    open_context,
    pet_run,
    read_json,
    save_lively,
    spare_draft,
    stop_at,
)
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from pet.modeling.prompts import EncodedTexts
from pet.pipeline import drawn_texts
from pet.pipeline.drawn_texts import Splits
from pet.pipeline.stages import distill
from pet.pipeline.student import Classifier
from pet.store import interrupts
from pet.tasks.texts import read_texts

CHECKPOINT = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def classify(folder, texts):
    """Scores [N, L] as a user of transformers would compute them."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(texts.fields["headline"], texts.fields["body"], padding=True, return_tensors="pt")
    with torch.inference_mode():
        return model(**inputs).logits.numpy(), model.config


def redistill(done, folder, **sections):
    """A student of the finished run's soft labels in another store, with other settings."""
    ctx, there = open_context(done.ground, folder, **sections), open_context(done.ground, done.store)
    return make(ctx, distill.node(ctx, node_of(there, "prepare"), node_of(there, "label"), None))


def test_the_artifact_holds_the_student_its_scores_and_how_it_was_trained(done):
    folder = done.one("distill")
    assert files_of(folder) == {
        "manifest.json",
        "scores.safetensors",
        "training.json",
        "seen.parquet",
        *(f"student/{name}" for name in CHECKPOINT),
    }
    assert {name: array.shape for name, array in load_file(folder / "scores.safetensors").items()} == {"test": (20, 3)}
    training = read_json(folder / "training.json")
    assert training["steps"] == [3]
    assert set(training["losses"]) == {"loss"}


# ---- what the student has seen -------------------------------------------------------------------------------------


def watch_rows(monkeypatch, size):
    """The rows that are put into batches, of as many rows as the pool has."""
    asked = []
    batch = EncodedTexts.batch

    def watched(rows, chosen, layout):
        if len(rows) == size:
            asked.extend(np.asarray(chosen).tolist())
        return batch(rows, chosen, layout)

    monkeypatch.setattr(EncodedTexts, "batch", watched)
    return asked


def seen_in(student):
    table = pyarrow.parquet.read_table(student.file("seen.parquet")).to_pydict()
    return table["id"], [row for row, one in enumerate(table["seen"]) if one]


@pytest.mark.parametrize(
    "settings",
    [{"steps": 3, "batch": 4}, {"steps": 2, "batch": 3, "accumulation": 3}, {"steps": 3, "batch": 13}],
    ids=["few steps", "accumulated", "more than once"],
)
def test_what_the_student_has_seen_is_what_its_batches_were_made_of(done, tmp_path, monkeypatch, settings):
    asked = watch_rows(monkeypatch, 30)
    ids, seen = seen_in(redistill(done, tmp_path, distill=settings))
    assert ids == read_texts(done.one("prepare") / "pool.parquet").ids
    assert seen == sorted(set(asked))
    assert len(seen) == min(30, settings["steps"] * settings["batch"] * settings.get("accumulation", 1))


@pytest.mark.parametrize("step", [3, 5], ids=["on its way", "in its last step"])
def test_what_was_seen_before_a_training_was_stopped_is_not_forgotten(done, tmp_path, monkeypatch, step):
    asked = watch_rows(monkeypatch, 30)
    settings = {"distill": {"steps": 5, "batch": 2, "accumulation": 2}, "runtime": {"checkpoint_minutes": 0}}
    with monkeypatch.context() as patch, interrupts.heeded(), pytest.raises(interrupts.Stopped):
        stop_at(patch, step)
        redistill(done, tmp_path, **settings)
    before = len(asked)
    _, seen = seen_in(redistill(done, tmp_path, **settings))
    assert (before, len(asked)) == (4 * step, 20), "five steps in all: nothing is computed twice"
    assert seen == sorted(asked)


# ---- what it becomes -----------------------------------------------------------------------------------------------


def test_the_student_loads_in_transformers_gives_its_scores_and_knows_the_labels(done):
    folder = done.one("distill")
    scores, config = classify(folder / "student", read_texts(done.one("prepare") / "test.parquet"))
    np.testing.assert_allclose(scores, load_file(folder / "scores.safetensors")["test"], rtol=1e-5, atol=1e-5)
    assert [config.id2label[number] for number in range(3)] == LABELS


def test_the_same_settings_give_the_same_student_in_another_store(done, tmp_path):
    again = redistill(done, tmp_path)
    assert again.path.name == done.one("distill").name
    for name in files_of(again.path) - {"manifest.json"}:
        assert digest(again.path / name) == digest(done.one("distill") / name), name


def test_its_identity_holds_every_setting_of_its_training_and_none_of_the_members(done):
    settings = read_json(done.one("distill") / "manifest.json")["settings"]
    ctx = open_context(done.ground, done.store)
    assert settings["distill"] == ctx.settings.distill.model_dump(mode="json", exclude={"model"}) | {
        "precision": "auto"
    }
    assert set(settings) == {"model", "distill", "seed"}


def test_only_the_pool_teaches_the_student(done, tmp_path):
    """Labelled texts that say something else leave the student as it is."""
    ctx = open_context(done.ground, tmp_path)
    splits = drawn_texts.load(node_of(open_context(done.ground, done.store), "prepare").artifact)
    teacher = np.random.default_rng(0).normal(size=(len(splits.pool), 3))
    other = Splits(splits.test, splits.pool, splits.test)
    one, _ = distill.train_student(ctx, ctx.start(None, None), splits, teacher, spare_draft(tmp_path))
    two, _ = distill.train_student(ctx, ctx.start(None, None), other, teacher, spare_draft(tmp_path))
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, two.model.state_dict()[name]), name


def test_the_first_loss_is_the_kl_divergence_at_the_temperature_times_its_square(done, tmp_path, monkeypatch):
    """One step on the whole pool, against a reference in float64 from the student's own first scores."""
    temperature = 3.0
    settings = {"steps": 1, "batch": 30, "temperature": temperature}
    ctx = open_context(done.ground, tmp_path, distill=settings)
    splits = drawn_texts.load(node_of(open_context(done.ground, done.store), "prepare").artifact)
    teacher = np.random.default_rng(0).normal(size=(30, 3)) * 2
    switch = torch.nn.Module.train
    monkeypatch.setattr(torch.nn.Module, "train", lambda model, mode=True: switch(model, False))  # no dropout
    seed = distill.derive_seed("distill", ctx.settings.seed)
    fresh = Classifier(ctx, ctx.start(None, None), seed)
    student = fresh.score(fresh.encode(splits.pool), "fresh").astype(float)
    _, report = distill.train_student(ctx, ctx.start(None, None), splits, teacher, spare_draft(tmp_path))

    def soften(scores):
        powers = np.exp(scores / temperature)
        return powers / powers.sum(1, keepdims=True)

    expected = (soften(teacher) * np.log(soften(teacher) / soften(student))).sum(1).mean() * temperature**2
    assert report.losses["loss"] == [pytest.approx(expected, rel=1e-5)]


def test_a_student_of_clear_soft_labels_learns_them(tiny_folder, tmp_path):
    ground = lay_ground(tmp_path / "ground", tiny_folder)
    ctx = open_context(ground, tmp_path, distill={"steps": 80, "batch": 10, "learning_rate": 4e-3})
    splits = drawn_texts.load(make(ctx, node_of(ctx, "prepare")))
    (pool,) = splits.pool.chunks()
    wanted = np.asarray([topic_of(pool.joined(row)) for row in range(30)])
    student, report = distill.train_student(
        ctx, ctx.start(None, None), splits, 6.0 * np.eye(3)[wanted], spare_draft(tmp_path)
    )
    losses = report.losses["loss"]
    assert report.steps == list(range(10, 90, 10))
    assert losses[-1] < 0.7 * losses[0]
    predicted = student.score(student.encode(splits.pool), "pool").argmax(1)
    assert (predicted == wanted).mean() > 0.6


def topic_of(text):
    """Number of the label whose words it holds."""
    return max(range(3), key=lambda number: len(set(text.split()) & set(TOPICS[LABELS[number]])))


def test_the_student_may_be_another_model_than_the_members(done, tmp_path):
    model = save_lively(tmp_path / "model", "xlm-roberta")
    artifact = redistill(done, tmp_path, distill={"model": str(model)})
    scores, config = classify(artifact.path / "student", read_texts(done.one("prepare") / "test.parquet"))
    assert config.model_type == "xlm-roberta"
    np.testing.assert_allclose(scores, load_file(artifact.path / "scores.safetensors")["test"], rtol=1e-5, atol=1e-5)


def test_a_student_with_a_byte_level_tokenizer_reads_texts_as_transformers_does(done, tmp_path):
    model = save_lively(tmp_path / "model", "roberta")
    artifact = redistill(done, tmp_path, distill={"model": str(model)})
    scores, _ = classify(artifact.path / "student", read_texts(done.one("prepare") / "test.parquet"))
    np.testing.assert_allclose(scores, load_file(artifact.path / "scores.safetensors")["test"], rtol=1e-5, atol=1e-5)


def test_only_student_and_what_follows_depend_on_the_student_s_model(done, tmp_path):
    other = save_lively(tmp_path / "model", "xlm-roberta")
    result = pet_run(done.ground, done.store, "--dry-run", "--set", f"distill.model={other}")
    made = [line for line in result.stdout.splitlines() if line.endswith("(to be made)")]
    assert [line.split()[0] for line in made] == ["distill", "evaluate", "evaluate", "evaluate"]


def test_frozen_layers_of_the_student_keep_their_weights(done, tmp_path, tmp_path_factory):
    artifact = redistill(done, tmp_path, distill={"frozen_layers": 2})
    before = load_file(lively_model(tmp_path_factory.getbasetemp()) / "model.safetensors")
    after = load_file(artifact.path / "student" / "model.safetensors")
    assert all(np.array_equal(after[name], before[name]) for name in before if name.startswith("bert."))
    assert "classifier.weight" in after


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_features_do_not_depend_on_which_rows_share_a_batch(done, tmp_path, family):
    """The second family needs short rows padded next to long ones; the padding counts for nothing."""
    splits = drawn_texts.load(node_of(open_context(done.ground, done.store), "prepare").artifact)
    model = {"name": str(save_lively(tmp_path / family, family))}
    found = []
    for budget in (64, 2048):
        ctx = open_context(done.ground, tmp_path, model=model, runtime={"batch_tokens": budget})
        encoder = Classifier(ctx, ctx.start(None, None), 0)
        found.append(encoder.features(encoder.encode(splits.test), "test"))
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-5)
