"""evaluate: every score against scikit-learn, from the score files alone."""

import shutil

import numpy as np
import pytest
from rows import LABELS, files_of, lay_ground, lively_model, open_work, pet_run, read_json
from safetensors.numpy import load_file
from sklearn.metrics import accuracy_score, f1_score

from pet.artifacts import Artifact
from pet.ensemble import even_shift
from pet.stages import distill, evaluate, finetune, label, prepare
from pet.stages.label import load_scores
from pet.tasks import read_texts

METRICS = {
    "accuracy": accuracy_score,
    "macro-f1": lambda gold, predicted: f1_score(
        gold, predicted, average="macro", labels=range(len(LABELS)), zero_division=0
    ),
}
MEMBERS = ["p0-r0", "p0-r1", "p1-r0", "p1-r1"]


@pytest.fixture(scope="module", params=METRICS)
def scored(request, done, tmp_path_factory):
    """(metric, scores.json): of the finished run, and of the same one measured by macro-F1."""
    if request.param == "accuracy":
        return "accuracy", read_json(done.one("evaluate") / "scores.json")
    folder = tmp_path_factory.mktemp("macro")
    ground = lay_ground(folder / "ground", lively_model(tmp_path_factory.getbasetemp()))
    ground.change_card(metric="macro-f1")
    return "macro-f1", walk(done, ground, folder / "store").read_json("scores.json")


def walk(done, ground, store, **sections):
    """Evaluate the finished run's artifacts into another store."""
    work, there = open_work(ground, store, **sections), open_work(done.ground, done.store, **sections)
    prepared = prepare.need(there)
    members = finetune.need(there, prepared)
    labelled = label.need(there, prepared, members)
    return evaluate.run(work, prepared, members, labelled, distill.need(there, prepared, labelled))


def scores_of(done, stage, part, name="test"):
    return load_file(done.one(stage, part) / "scores.safetensors")[name].astype(float)


def expected(done, metric, scores):
    gold = [LABELS.index(name) for name in read_texts(done.one("prepare") / "test.parquet").labels]
    return pytest.approx(100 * METRICS[metric](gold, scores.argmax(1)), abs=0.005)


def test_the_artifact_holds_the_scores_and_nothing_else(done):
    assert files_of(done.one("evaluate")) == {"manifest.json", "scores.json"}


def test_everything_is_scored_with_an_interval_around_it(scored):
    _, scores = scored
    assert set(scores) == {"zero_shot", "supervised", "probe", "members", "ensemble", "student", "soft_labels"}
    for one in [*scores["members"], *(scores[name] for name in set(scores) - {"members"})]:
        assert 0 <= one["low"] <= one["value"] <= one["high"] <= 100


def test_zero_shot_is_the_mean_of_the_untuned_patterns(done, scored):
    metric, scores = scored
    untuned = [scores_of(done, "finetune", f"p{pattern}-untuned") for pattern in (0, 1)]
    assert scores["zero_shot"]["value"] == expected(done, metric, np.mean(untuned, axis=0))


def test_every_member_is_scored_and_named(done, scored):
    metric, scores = scored
    assert [f"p{one['pattern']}-r{one['repetition']}" for one in scores["members"]] == MEMBERS
    for one, member in zip(scores["members"], MEMBERS, strict=True):
        assert one["value"] == expected(done, metric, scores_of(done, "finetune", member))


def ensemble_scores(done):
    weights = [one["weight"] for one in read_json(done.one("label") / "ensemble.json")["members"]]
    return sum(weight * scores_of(done, "finetune", member) for member, weight in zip(MEMBERS, weights, strict=True))


def test_the_ensemble_is_weighted_as_the_soft_labels_were(done, scored):
    metric, scores = scored
    assert scores["ensemble"]["value"] == expected(done, metric, ensemble_scores(done))


def test_where_shares_are_even_the_ensemble_and_the_fine_tuned_baseline_are_scored_so(done, tmp_path):
    shutil.copytree(done.store, tmp_path / "store")
    work = open_work(done.ground, tmp_path / "store", label={"shares": "even"})
    prepared = prepare.need(work)
    members = finetune.need(work, prepared)
    labelled = label.run(work, prepared, members)
    student = distill.run(work, prepared, labelled)
    scores = evaluate.run(work, prepared, members, labelled, student).read_json("scores.json")
    shift = labelled.read_json("ensemble.json")["shift"]
    assert any(shift.values())
    ensemble = ensemble_scores(done) + [shift[name] for name in LABELS]
    assert scores["ensemble"]["value"] == expected(done, "accuracy", ensemble)
    base = scores_of(done, "baseline", "", "supervised")
    assert scores["supervised"]["value"] == expected(done, "accuracy", base)
    assert scores["supervised_even"]["value"] == expected(done, "accuracy", base + even_shift(base))


def test_student_and_baselines_are_scored_from_their_files(done, scored):
    metric, scores = scored
    assert scores["student"]["value"] == expected(done, metric, scores_of(done, "distill", ""))
    for name in ("supervised", "probe"):
        assert scores[name]["value"] == expected(done, metric, scores_of(done, "baseline", "", name))


def test_the_soft_labels_are_scored_where_the_pool_s_labels_are_known(done, scored):
    metric, scores = scored
    gold = read_texts(done.one("prepare") / "pool_gold.parquet").labels
    known = [row for row, name in enumerate(gold) if name is not None]
    assert 0 < len(known) < len(gold)
    soft = load_scores(Artifact(done.one("label"), {}), tuple(LABELS))[known].argmax(1)
    value = METRICS[metric]([LABELS.index(gold[row]) for row in known], soft)
    assert scores["soft_labels"]["value"] == pytest.approx(100 * value, abs=0.005)


def test_the_weights_follow_the_members_in_whatever_order_the_patterns_are_named(done, tmp_path, monkeypatch):
    """The soft labels were made with the patterns in one order, evaluate is run with them in the other one."""
    pooled = []
    original = evaluate.pool_scores

    def spy(scores, weights):
        pooled.append(original(scores, weights))
        return pooled[-1]

    monkeypatch.setattr(evaluate, "pool_scores", spy)
    walk(done, done.ground, tmp_path, finetune={"patterns": [1, 0]})
    np.testing.assert_allclose(pooled[-1], ensemble_scores(done), rtol=1e-6)


# ---- without labelled texts, and without hidden labels -------------------------------------------------------------


@pytest.fixture(scope="module")
def unlabelled(done, tmp_path_factory):
    """The store of a whole run with --train-examples 0."""
    store = tmp_path_factory.mktemp("zero")
    pet_run(done.ground, store, "--train-examples", 0)
    return store


def test_without_labelled_texts_the_ensemble_is_zero_shot_and_there_are_no_baselines(unlabelled):
    (folder,) = (unlabelled / "evaluate").iterdir()
    scores = read_json(folder / "scores.json")
    assert set(scores) == {"zero_shot", "members", "ensemble", "student", "soft_labels"}
    assert scores["ensemble"] == scores["zero_shot"]
    assert [(one["pattern"], one["repetition"]) for one in scores["members"]] == [(0, None), (1, None)]
    assert not (unlabelled / "baseline").exists()


def test_without_labelled_texts_the_summary_says_so(unlabelled):
    (folder,) = (unlabelled / "run").iterdir()
    assert read_json(folder / "summary.json")["train_examples"] == 0
    table = (folder / "summary.md").read_text()
    assert "member, pattern 1, untuned" in table
    assert "supervised" not in table


def test_a_pool_without_any_hidden_label_is_not_scored(done, tmp_path_factory, tmp_path):
    """A card whose unlabelled texts are a file of their own, and the labelled ones all drawn."""
    from rows import write_csv

    ground = lay_ground(tmp_path / "ground", lively_model(tmp_path_factory.getbasetemp()), finetune={"repetitions": 1})
    rows = (ground.folder / "train.csv").read_text().splitlines()
    labelled = [tuple(row.split(",")) for row in rows[1:13]]
    write_csv(ground.folder / "train.csv", labelled)
    write_csv(ground.folder / "rest.csv", [("", *row.split(",")[1:]) for row in rows[13:]])
    files = {"format": "csv", "train": "train.csv", "test": "test.csv", "unlabelled": "rest.csv"}
    ground.change_card(files=files)
    result = pet_run(ground, tmp_path / "store")
    assert "Soft labels against" not in result.stdout
    (folder,) = (tmp_path / "store" / "evaluate").iterdir()
    assert "soft_labels" not in read_json(folder / "scores.json")
