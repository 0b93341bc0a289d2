"""label: the soft labels against a reference in float64 that knows only the members' files."""

import shutil
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet
import pytest
from safetensors.numpy import load_file
from support.rows import LABELS, declare, files_of, make, members_of, node_of, open_context, read_json

from pet.pipeline.stages import label
from pet.store.store import Store
from pet.tasks import texts
from pet.tasks.texts import read_texts

MEMBERS = {"p0-r0": 0, "p0-r1": 0, "p1-r0": 1, "p1-r1": 1}
"""Member -> its pattern."""


def accuracy_of(done, pattern):
    return read_json(done.one("finetune", f"p{pattern}-untuned") / "training.json")["train_accuracy"]


def reference(done, weights):
    """Weighted mean of the members' raw scores on the pool, and its softmax."""
    scores = sum(
        weight / sum(weights) * load_file(done.one("finetune", member) / "scores.safetensors")["pool"].astype(float)
        for member, weight in zip(MEMBERS, weights, strict=True)
    )
    powers = np.exp(scores)
    return scores, powers / powers.sum(1, keepdims=True)


def read_soft_labels(folder):
    table = pyarrow.parquet.read_table(folder / "soft_labels.parquet")
    scores, probabilities = (
        np.stack([table[f"{kind}_{name}"].to_numpy() for name in LABELS], axis=1) for kind in ("score", "probability")
    )
    return table, scores, probabilities


def test_the_artifact_holds_the_soft_labels_and_the_ensemble_and_nothing_else(done):
    assert files_of(done.one("label")) == {"manifest.json", "soft_labels.parquet", "ensemble.json"}


def test_soft_labels_are_the_members_scores_weighted_by_their_untuned_accuracy(done):
    accuracies = [accuracy_of(done, pattern) for pattern in MEMBERS.values()]
    assert len(set(accuracies)) == 2, "the two patterns must differ for this test to see anything"
    scores, probabilities = reference(done, accuracies)
    table, found_scores, found_probabilities = read_soft_labels(done.one("label"))
    np.testing.assert_allclose(found_scores, scores, rtol=1e-12)
    np.testing.assert_allclose(found_probabilities, probabilities, rtol=1e-12)
    assert table["label"].to_pylist() == [LABELS[number] for number in probabilities.argmax(1)]


def relabel(done, folder, **sections):
    """The finished run's members pooled into another store, with other settings."""
    ctx, there = open_context(done.ground, folder, **sections), open_context(done.ground, done.store, **sections)
    return make(ctx, label.node(ctx, node_of(there, "prepare"), members_of(there)))


def test_soft_labels_pooled_in_chunks_are_those_pooled_at_once(done, tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "CHUNK", 7)
    artifact = relabel(done, tmp_path)
    (table, *found), (whole, *expected) = (read_soft_labels(one) for one in (artifact.path, done.one("label")))
    assert table["id"].equals(whole["id"])
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert artifact.read_json("ensemble.json") == read_json(done.one("label") / "ensemble.json")


def test_uniform_weighting_is_the_plain_mean(done, tmp_path):
    scores, probabilities = reference(done, [1, 1, 1, 1])
    artifact = relabel(done, tmp_path, label={"weighting": "uniform"})
    _, found_scores, found_probabilities = read_soft_labels(artifact.path)
    np.testing.assert_allclose(found_scores, scores, rtol=1e-12)
    np.testing.assert_allclose(found_probabilities, probabilities, rtol=1e-12)
    assert {one["weight"] for one in artifact.read_json("ensemble.json")["members"]} == {0.25}
    assert artifact.identity not in done.one("label").name, "another weighting is another artifact"


@pytest.mark.parametrize("size", [10**6, 10])
def test_shares_can_be_made_even_over_the_pool(done, tmp_path, monkeypatch, size):
    """On a sample of the texts, where there are many."""
    monkeypatch.setattr(label, "SAMPLE", size)
    scores, _ = reference(done, [accuracy_of(done, pattern) for pattern in MEMBERS.values()])
    artifact = relabel(done, tmp_path, label={"shares": "even"})
    _, found_scores, found_probabilities = read_soft_labels(artifact.path)
    shift = artifact.read_json("ensemble.json")["shift"]
    np.testing.assert_allclose(found_scores, scores + [shift[name] for name in LABELS], atol=1e-5)
    step = -(-len(scores) // size)
    np.testing.assert_allclose(found_probabilities[::step].mean(0), 1 / len(LABELS), atol=1e-4)
    assert len(found_probabilities[::step]) <= size
    assert max(abs(value) for value in shift.values()) > 0.01, "else this test sees nothing"


def test_the_order_of_the_patterns_does_not_change_the_soft_labels(done, tmp_path):
    artifact = relabel(done, tmp_path, finetune={"patterns": [1, 0]})
    assert artifact.path.name == done.one("label").name
    np.testing.assert_allclose(read_soft_labels(artifact.path)[1], read_soft_labels(done.one("label"))[1], rtol=1e-12)


def test_soft_labels_are_in_the_order_of_the_pool(done):
    table, _, _ = read_soft_labels(done.one("label"))
    assert table["id"].to_pylist() == read_texts(done.one("prepare") / "pool.parquet").ids


def test_the_scores_come_back_as_they_were_pooled(done):
    artifact = node_of(open_context(done.ground, done.store), "label").artifact
    np.testing.assert_array_equal(label.load_scores(artifact, tuple(LABELS)), read_soft_labels(artifact.path)[1])


def test_the_ensemble_names_its_members_their_weights_and_how_far_they_agree(done):
    ensemble = read_json(done.one("label") / "ensemble.json")
    assert set(ensemble) == {"members", "shift", "agreement", "label_shares"}
    assert ensemble["shift"] == dict.fromkeys(LABELS, 0.0)
    assert [one["member"] for one in ensemble["members"]] == list(MEMBERS)
    accuracies = np.asarray([accuracy_of(done, pattern) for pattern in MEMBERS.values()])
    weights = [one["weight"] for one in ensemble["members"]]
    np.testing.assert_allclose(weights, accuracies / accuracies.sum(), atol=1e-6)
    for one in ensemble["members"]:
        assert one["identity"] == read_json(done.one("finetune", one["member"]) / "manifest.json")["identity"]
    predicted = [load_file(done.one("finetune", member) / "scores.safetensors")["pool"].argmax(1) for member in MEMBERS]
    pairs = [np.mean(one == other) for one, other in combinations(predicted, 2)]
    assert ensemble["agreement"] == pytest.approx(np.mean(pairs), abs=1e-4)
    said = read_soft_labels(done.one("label"))[0]["label"].to_pylist()
    assert ensemble["label_shares"] == {name: round(said.count(name) / len(said), 4) for name in LABELS}


def test_its_manifest_names_the_members_it_was_made_from(done):
    inputs = read_json(done.one("label") / "manifest.json")["inputs"]
    members = {read_json(done.one("finetune", member) / "manifest.json")["identity"] for member in MEMBERS}
    assert {identity for name, identity in inputs.items() if name.startswith("member")} == members
    assert inputs["prepare"] == read_json(done.one("prepare") / "manifest.json")["identity"]


def test_patterns_that_were_never_right_count_as_much_as_each_other(done, tmp_path):
    """All weights 0: the published code divides by zero (fact sheet 3.4)."""
    ctx = open_context(done.ground, done.store)
    members = members_of(ctx)
    for number, one in members.untuned.items():
        shutil.copytree(one.artifact.path, tmp_path / str(number))
        (tmp_path / str(number) / "training.json").write_text('{"train_accuracy": 0.0}')
        declare(tmp_path / str(number))
        members.untuned[number] = SimpleNamespace(artifact=Store(tmp_path).open(tmp_path / str(number)))
    assert label.weigh(ctx, members).tolist() == [0.25] * 4
