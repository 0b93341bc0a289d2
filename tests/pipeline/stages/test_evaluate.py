"""evaluate: every score against scikit-learn, from the score files alone."""

import shutil
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet
import pytest
import torch
from safetensors.numpy import load_file
from sklearn.metrics import accuracy_score, f1_score
from support.rows import (
    LABELS,
    MAX_LENGTH,
    Finished,
    files_of,
    find_one,
    lay_ground,
    lively_model,
    make,
    members_of,
    node_of,
    open_context,
    pet_run,
    read_json,
)
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from pet.algorithms.calibration import Calibration, fit_temperature
from pet.algorithms.ensemble import align_prior
from pet.pipeline import drawn_texts
from pet.pipeline.runner import run_stage
from pet.pipeline.stages import calibrate, evaluate, finetune, label
from pet.pipeline.stages.label import load_scores
from pet.store.store import Store
from pet.tasks.texts import Texts, read_texts, write_texts

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
    ctx, there = open_context(ground, store, **sections), open_context(done.ground, done.store, **sections)
    named = ("prepare", "label", "distill", "baseline")
    prepared, labelled, student, base = (node_of(there, stage) for stage in named)
    return make(ctx, evaluate.node(ctx, prepared, members_of(there), labelled, student, base))


def scores_of(done, stage, part, name="test"):
    return load_file(done.one(stage, part) / "scores.safetensors")[name].astype(float)


def expected(done, metric, scores):
    gold = [LABELS.index(name) for name in read_texts(done.one("prepare") / "test.parquet").labels]
    return pytest.approx(100 * METRICS[metric](gold, scores.argmax(1)), abs=0.005)


def test_the_artifact_holds_the_scores_and_nothing_else(done):
    assert files_of(done.one("evaluate")) == {"manifest.json", "scores.json", "calibration.json"}


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
    ctx = open_context(done.ground, tmp_path / "store", label={"shares": "even"})
    run_stage(ctx, "all")
    scores = node_of(ctx, "evaluate").artifact.read_json("scores.json")
    shift = node_of(ctx, "label").artifact.read_json("ensemble.json")["shift"]
    assert any(shift.values())
    ensemble = ensemble_scores(done) + [shift[name] for name in LABELS]
    assert scores["ensemble"]["value"] == expected(done, "accuracy", ensemble)
    base = scores_of(done, "baseline", "", "supervised")
    assert scores["supervised"]["value"] == expected(done, "accuracy", base)
    assert scores["supervised_even"]["value"] == expected(done, "accuracy", base + align_prior(base))


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
    soft = load_scores(Store(done.store).open(done.one("label")), tuple(LABELS))[known].argmax(1)
    value = METRICS[metric]([LABELS.index(gold[row]) for row in known], soft)
    assert scores["soft_labels"]["value"] == pytest.approx(100 * value, abs=0.005)


def test_the_weights_follow_the_members_in_whatever_order_the_patterns_are_named(done, tmp_path, monkeypatch):
    """The soft labels were made with the patterns in one order, evaluate is run with them in the other one."""
    pooled = []
    original = label.pool_scores

    def spy(scores, weights):
        pooled.append(original(scores, weights))
        return pooled[-1]

    monkeypatch.setattr(label, "pool_scores", spy)
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
    from support.rows import write_csv

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


# ---- calibration ---------------------------------------------------------------------------------------------------


def coldest_loss(scores, targets):
    """The temperature of least cross-entropy, by looking at many."""
    grid = np.exp(np.linspace(np.log(0.05), np.log(20), 4000))
    scaled = scores[None] / grid[:, None, None]
    losses = np.log(np.exp(scaled).sum(2)).mean(1) - (scaled * targets).sum(2).mean(1)
    return pytest.approx(grid[losses.argmin()], rel=0.005)


def softmax(scores):
    return np.exp(scores) / np.exp(scores).sum(1, keepdims=True)


def ask_student(done, texts):
    """Scores of the student's checkpoint, by transformers alone."""
    folder = done.one("distill") / "student"
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    given = AutoTokenizer.from_pretrained(folder)(
        *texts.fields.values(), truncation=True, max_length=MAX_LENGTH, padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        return model(**given).logits.double().numpy()


def test_the_student_is_held_to_the_soft_labels_of_the_pool(done):
    found = read_json(done.one("evaluate") / "calibration.json")["student"]
    soft = softmax(load_scores(Store(done.store).open(done.one("label")), tuple(LABELS)))
    scores = ask_student(done, read_texts(done.one("prepare") / "pool.parquet"))
    assert found["temperature"] == coldest_loss(scores, soft)
    assert found["texts"] == len(scores)
    assert found["fitted_on"] == "soft labels of pool texts, which the student was trained on"


def seen_by(done):
    """Ids of the pool texts that the student's batches were made of, as `distill` says."""
    table = pyarrow.parquet.read_table(done.one("distill") / "seen.parquet").to_pydict()
    return {name for name, seen in zip(table["id"], table["seen"], strict=True) if seen}


def test_the_student_is_held_to_texts_that_no_step_came_to_or_to_labels_if_enough(done, tmp_path, monkeypatch):
    monkeypatch.setattr(calibrate, "ENOUGH", 13)  # of 30 pool texts three steps of 4 came to 12; 12 texts are labelled
    pool = read_texts(done.one("prepare") / "pool.parquet")
    unseen = [row for row, name in enumerate(pool.ids) if name not in seen_by(done)]
    made = walk(done, done.ground, tmp_path / "pool").read_json("calibration.json")["student"]
    soft = softmax(load_scores(Store(done.store).open(done.one("label")), tuple(LABELS)))
    assert made["temperature"] == coldest_loss(ask_student(done, pool.take(unseen)), soft[unseen])
    assert made["texts"] == len(unseen) == 18
    assert made["fitted_on"] == "soft labels of pool texts, which the student was not trained on"
    monkeypatch.setattr(calibrate, "ENOUGH", 12)
    made = walk(done, done.ground, tmp_path / "store").read_json("calibration.json")["student"]
    train_texts = read_texts(done.one("prepare") / "train.parquet")
    assert made["temperature"] == coldest_loss(ask_student(done, train_texts), gold_of(train_texts))
    assert made["texts"] == 12
    assert made["fitted_on"] == "labelled texts, which the student was not trained on"


def gold_of(texts):
    return np.eye(len(LABELS))[[LABELS.index(name) for name in texts.labels]]


@pytest.fixture(scope="module")
def first(done, tmp_path_factory):
    """A run whose labelled texts are in the pool, as the published code has them: 12 of 40, with `data.draw: first`."""
    folder = tmp_path_factory.mktemp("first")
    ground = lay_ground(folder / "ground", lively_model(tmp_path_factory.getbasetemp()), data={"draw": "first"})
    return Finished(ground, folder / "store", pet_run(ground, folder / "store"))


def test_labelled_texts_of_the_pool_that_the_student_has_seen_are_not_held_out(first, tmp_path, monkeypatch):
    train_texts, seen = read_texts(first.one("prepare") / "train.parquet"), seen_by(first)
    assert set(train_texts.ids) < set(read_texts(first.one("prepare") / "pool.parquet").ids)
    fresh = [row for row, name in enumerate(train_texts.ids) if name not in seen]
    assert 0 < len(fresh) < 12
    monkeypatch.setattr(calibrate, "ENOUGH", len(fresh))
    given = []
    monkeypatch.setattr(calibrate, "calibrate", lambda *both: given.append(both) or Calibration(1.0))
    made = walk(first, first.ground, tmp_path / "labelled").read_json("calibration.json")["student"]
    texts = train_texts.take(fresh)
    np.testing.assert_allclose(given[0][0], ask_student(first, texts), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(given[0][1], gold_of(texts))
    assert (made["texts"], made["fitted_on"]) == (
        len(fresh),
        "labelled texts, which the student was not trained on",
    )
    monkeypatch.setattr(calibrate, "ENOUGH", 12)  # as many as there are labels, most of which it has seen
    made = walk(first, first.ground, tmp_path / "pool").read_json("calibration.json")["student"]
    assert (made["texts"], made["fitted_on"]) == (28, "soft labels of pool texts, which the student was not trained on")


def test_where_the_student_has_seen_all_it_is_said(first, tmp_path, monkeypatch):
    monkeypatch.setattr(calibrate, "ENOUGH", 12)
    ground = lay_ground(tmp_path / "ground", lively_model(first.store.parents[1]), data={"draw": "first"})
    pet_run(ground, tmp_path / "store", "--set", "distill.steps=10")  # of 4 texts each
    found = read_json(find_one(tmp_path / "store", "evaluate") / "calibration.json")["student"]
    assert (found["texts"], found["fitted_on"]) == (40, "soft labels of pool texts, which the student was trained on")


def test_a_labelled_text_that_stands_in_the_pool_under_another_id_counts_as_seen(first, tmp_path, monkeypatch):
    """Labels by hand leave the pool, but a source may have a text twice, here with other blanks and capitals."""
    ground = lay_ground(tmp_path / "ground", lively_model(first.store.parents[1]))
    lines = (ground.folder / "train.csv").read_text().splitlines()
    copies = [f",{line.split(',', 1)[1].upper().replace(' ', '  ')}" for line in lines[1:13]]
    (ground.folder / "train.csv").write_text("\n".join([*lines, *copies]) + "\n")
    (ground.folder / "mine.csv").write_text("id,label\n" + "".join(f"train.csv:{row},sports\n" for row in range(2, 14)))
    sections = {
        "data": {"train_examples": 0, "train_files": [str(ground.folder / "mine.csv")], "pool_per_label": 100},
        "distill": {"steps": 20},
    }
    monkeypatch.setattr(calibrate, "ENOUGH", 1)
    ctx = open_context(ground, tmp_path / "store", **sections)
    run_stage(ctx, "all")
    found = read_json(find_one(tmp_path / "store", "evaluate") / "calibration.json")["student"]
    pool, seen = (
        read_texts(find_one(tmp_path / "store", "prepare") / "pool.parquet"),
        find_one(tmp_path / "store", "distill"),
    )
    assert len(pool) == 60 and all(pyarrow.parquet.read_table(seen / "seen.parquet")["seen"].to_pylist())
    assert found["fitted_on"] == "soft labels of pool texts, which the student was trained on"


def test_soft_labels_are_scored_where_the_members_did_not_know_the_label(first):
    gold = read_texts(first.one("prepare") / "pool_gold.parquet")
    taught = read_texts(first.one("prepare") / "train.parquet").ids
    known = [row for row, name in enumerate(gold.labels) if name is not None and gold.ids[row] not in taught]
    assert len(known) == 18
    soft = load_scores(Store(first.store).open(first.one("label")), tuple(LABELS))[known].argmax(1)
    value = accuracy_score([LABELS.index(gold.labels[row]) for row in known], soft)
    scores = read_json(first.one("evaluate") / "scores.json")
    assert scores["soft_labels"]["value"] == pytest.approx(100 * value, abs=0.005)


def test_drawn_labels_are_counted_where_the_members_did_not_know_them(first, tmp_path):
    """Of a training set that is the whole pool with its true labels: 12 of these the members were taught."""
    gold = read_texts(first.one("prepare") / "pool_gold.parquet")
    known = [row for row, name in enumerate(gold.labels) if name is not None]
    pool = read_texts(first.one("prepare") / "pool.parquet").take(known)
    write_texts(tmp_path / "train.parquet", Texts(pool.ids, pool.fields, [gold.labels[row] for row in known]))
    drawn = SimpleNamespace(file=lambda name: tmp_path / name, read_json=lambda name: {"labelled": 0, "labels": {}})
    prepared = SimpleNamespace(artifact=Store(first.store).open(first.one("prepare")))
    found = evaluate.score_drawn(prepared, [SimpleNamespace(artifact=drawn)])
    assert (found["drawn_right"], found["drawn_known"]) == (100, len(known) - 12) == (100, 18)


def test_the_pool_is_read_once_to_know_what_was_seen(first, tmp_path, monkeypatch):
    pools, real = [], calibrate.keys_of
    monkeypatch.setattr(calibrate, "keys_of", lambda texts: pools.extend([texts] * (len(texts) == 40)) or real(texts))
    walk(first, first.ground, tmp_path)
    assert len(pools) == 1


@pytest.mark.parametrize(("enough", "which"), [(28, " that taught none of them"), (29, ", some of which taught them")])
def test_texts_that_taught_a_member_are_left_out_where_members_are_held_to_each_other(
    first, tmp_path, monkeypatch, enough, which
):
    monkeypatch.setattr(calibrate, "ENOUGH", enough)
    monkeypatch.setattr(calibrate, "calibrate", lambda *both: Calibration(fit_temperature(*both)))
    found = walk(first, first.ground, tmp_path).read_json("calibration.json")["ensemble"]
    assert found["fitted_on"] == f"each member's label of pool texts{which}, given the others' scores"
    assert found["texts"] == (28 if enough == 28 else 40)
    ids = read_texts(first.one("prepare") / "pool.parquet").ids
    taught = set(read_texts(first.one("prepare") / "train.parquet").ids) if enough == 28 else set()
    rows = [row for row, name in enumerate(ids) if name not in taught]
    assert found["temperature"] == held_to_each_other(first, rows)


def test_the_ensemble_s_members_are_held_to_each_other(done):
    found = read_json(done.one("evaluate") / "calibration.json")["ensemble"]
    assert found["temperature"] == held_to_each_other(done, range(30))
    assert found["fitted_on"] == "each member's label of pool texts, given the others' scores"


def held_to_each_other(done, rows):
    """The temperature of least cross-entropy to each member's label on these pool texts, given the others' scores."""
    rows = list(rows)
    weights = [one["weight"] for one in read_json(done.one("label") / "ensemble.json")["members"]]
    pool = [scores_of(done, "finetune", part, "pool")[rows] for part in MEMBERS]
    scores, targets = [], []
    for left in range(4):
        rest = [one for one in range(4) if one != left]
        scores.append(sum(weights[one] * pool[one] for one in rest) / sum(weights[one] for one in rest))
        targets.append(np.eye(len(LABELS))[pool[left].argmax(1)])
    return coldest_loss(np.concatenate(scores), np.concatenate(targets))


def test_the_calibration_error_is_that_of_the_test_set_without_and_with_the_temperature(done):
    found = read_json(done.one("evaluate") / "calibration.json")["student"]
    gold = np.asarray([LABELS.index(name) for name in read_texts(done.one("prepare") / "test.parquet").labels])
    scores = scores_of(done, "distill", "")
    for name, temperature in (("ece_before", 1.0), ("ece_after", found["temperature"])):
        probabilities = softmax(scores / temperature)
        sure, right = probabilities.max(1), probabilities.argmax(1) == gold
        bins = np.ceil(sure * 15)
        value = sum(abs(right[bins == one].sum() - sure[bins == one].sum()) for one in set(bins)) / len(gold)
        assert found[name] == pytest.approx(100 * value, abs=0.006)
    summary = read_json(done.one("run") / "summary.json")
    assert summary["calibration"]["student"] == found
    line = f"(ECE, 15 bins, points): student {found['ece_before']:.1f}, at temperature {found['temperature']:.2f} "
    line += f"{found['ece_after']:.1f}; ensemble "
    assert line in (done.one("run") / "summary.md").read_text()
    assert line in done.result.output


def test_one_member_alone_keeps_its_temperature(done, tmp_path, monkeypatch):
    ctx = open_context(done.ground, done.store)
    prepared, labelled, members = node_of(ctx, "prepare").artifact, node_of(ctx, "label").artifact, members_of(ctx)
    one = finetune.Members(members.untuned, members.plans[:1], members.tuned[:1])
    _, _, found = calibrate.fit_ensemble(ctx, drawn_texts.load(prepared), [], one, labelled)
    assert found == Calibration(1.0, "one member has no other to be compared with")
