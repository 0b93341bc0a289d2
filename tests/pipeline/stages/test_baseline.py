"""baseline: the supervised classifiers see the labelled texts and nothing else."""

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from sklearn.linear_model import LogisticRegression
from support.rows import (
    LABELS,
    digest,
    files_of,
    lay_ground,
    lively_model,
    make,
    make_up_to,
    node_of,
    open_context,
    read_json,
)
from transformers import AutoModel, AutoTokenizer

from pet.pipeline.stages import baseline
from pet.tasks.texts import read_texts


def rebase(done, folder, **sections):
    """The baselines in another store, on the finished run's splits, with other settings."""
    ctx, there = open_context(done.ground, folder, **sections), open_context(done.ground, done.store)
    return make(ctx, baseline.node(ctx, node_of(there, "prepare"), None))


def test_the_artifact_holds_both_baselines_scores_and_how_one_was_trained(done):
    folder = done.one("baseline")
    assert files_of(folder) == {"manifest.json", "scores.safetensors", "training.json"}
    shapes = {name: array.shape for name, array in load_file(folder / "scores.safetensors").items()}
    assert shapes == {"supervised": (20, 3), "probe": (20, 3)}
    assert read_json(folder / "training.json")["steps"] == [2]


def embed(folder, texts):
    """Mean of the last hidden states at unit length, one text at a time, by transformers alone."""
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    found = []
    for headline, body in zip(texts.fields["headline"], texts.fields["body"], strict=True):
        with torch.inference_mode():
            mean = model(**tokenizer(headline, body, return_tensors="pt")).last_hidden_state[0].double().mean(0)
        found.append((mean / mean.norm()).numpy())
    return np.stack(found)


@pytest.mark.filterwarnings("ignore::UserWarning")  # AutoModel reports the LM head it does not need
def test_the_probe_is_scikit_learn_s_logistic_regression_on_the_untrained_encoder(done, tmp_path_factory):
    splits = done.one("prepare")
    train, test = (read_texts(splits / f"{name}.parquet") for name in ("train", "test"))
    model = lively_model(tmp_path_factory.getbasetemp())
    gold = [LABELS.index(name) for name in train.labels]
    probe = LogisticRegression(C=1.0, max_iter=1000).fit(embed(model, train), gold)
    expected = probe.predict_log_proba(embed(model, test))
    found = load_file(done.one("baseline") / "scores.safetensors")["probe"]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_probe_s_strength_is_a_setting(done, tmp_path):
    strong = load_file(rebase(done, tmp_path, baseline={"probe_c": 1e-4}).path / "scores.safetensors")["probe"]
    np.testing.assert_allclose(strong, np.log(1 / 3), atol=0.01)


def test_the_same_settings_give_the_same_baselines_in_another_store(done, tmp_path):
    again = rebase(done, tmp_path)
    assert again.path.name == done.one("baseline").name
    assert digest(again.path / "scores.safetensors") == digest(done.one("baseline") / "scores.safetensors")


def test_the_supervised_classifier_learns_its_labelled_texts(tiny_folder, tmp_path):
    ground = lay_ground(tmp_path / "ground", tiny_folder)
    ctx = open_context(ground, tmp_path, baseline={"steps": 60, "learning_rate": 4e-3, "batch": 12})
    make_up_to(ctx, "prepare")
    losses = make(ctx, node_of(ctx, "baseline")).read_json("training.json")["losses"]["loss"]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("examples", [1, 2])
def test_labels_without_a_labelled_text_are_never_predicted_by_the_probe(done, tmp_path, examples):
    """One text, so only one label: nothing to learn, and no reason to fail after the members were trained."""
    ctx = open_context(done.ground, tmp_path, data={"train_examples": examples})
    make_up_to(ctx, "prepare")
    artifact = make(ctx, node_of(ctx, "baseline"))
    scores = load_file(artifact.path / "scores.safetensors")["probe"]
    assert set(scores.argmax(1).tolist()) <= set(range(examples))
    assert np.isneginf(scores[:, examples:]).all()
