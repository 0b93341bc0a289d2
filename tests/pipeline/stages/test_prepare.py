"""prepare: which texts go where, that the pool forgets its labels, and that nothing else ever sees them."""

import shutil

import pyarrow.parquet
import pytest
from support.rows import (
    HIDDEN,
    LABELS,
    TEST,
    TRAIN,
    Ground,
    digest,
    files_of,
    find_all,
    find_one,
    garble,
    hidden_in,
    make,
    node_of,
    open_context,
    pet_run,
    read_json,
    write_csv,
)

from pet.pipeline import drawn_texts
from pet.pipeline.stages import prepare
from pet.tasks.texts import concatenate, read_texts

FILES = {"train.parquet", "pool.parquet", "test.parquet", "pool_gold.parquet", "report.json", "manifest.json"}


def columns(path):
    return pyarrow.parquet.read_table(path).column_names


def texts_of(path):
    texts = read_texts(path)
    return {texts.joined(row) for row in range(len(texts))}


def pool_of(artifact):
    return concatenate(list(drawn_texts.load(artifact).pool.chunks()))


def test_the_artifact_holds_the_splits_and_a_report_and_nothing_else(done):
    assert files_of(done.one("prepare")) == FILES


def test_the_splits_have_the_sizes_that_were_asked_for(done):
    report = read_json(done.one("prepare") / "report.json")
    assert report["sizes"] == {"train": 12, "pool": 30, "test": TEST}
    assert set(report["near_duplicates"]) == {"test_of_train", "test_of_pool", "pool_of_train"}


def test_the_labelled_texts_are_balanced(done):
    labels = read_texts(done.one("prepare") / "train.parquet").labels
    assert {label: labels.count(label) for label in LABELS} == dict.fromkeys(LABELS, 4)


def test_the_pool_has_no_label_column(done):
    folder = done.one("prepare")
    assert columns(folder / "pool.parquet") == ["id", "text_headline", "text_body"]
    assert columns(folder / "train.parquet") == ["id", "text_headline", "text_body", "label"]
    assert set(pool_of(open_artifact(done)).labels) == {None}


def prepared(ground, store, **sections):
    """The splits, made or reused."""
    ctx = open_context(ground, store, **sections)
    return make(ctx, node_of(ctx, "prepare"))


def open_artifact(done):
    ctx = open_context(done.ground, done.store)
    return node_of(ctx, "prepare").artifact


def test_the_hidden_labels_are_those_of_the_pool_and_none_where_the_source_has_none(done):
    pool = read_texts(done.one("prepare") / "pool.parquet")
    gold = drawn_texts.load_pool_gold(open_artifact(done))
    source = open_context(done.ground, done.store).task.source["train"]
    known = dict(zip(source.ids, source.labels, strict=True))
    assert gold == [(name, known[name]) for name in pool.ids]
    assert 0 < [label for _, label in gold].count(None) <= HIDDEN


def test_no_text_is_both_labelled_and_in_the_pool(done):
    folder = done.one("prepare")
    assert not set(read_texts(folder / "train.parquet").ids) & set(read_texts(folder / "pool.parquet").ids)


def test_the_splits_come_back_as_they_were_drawn(done):
    ctx = open_context(done.ground, done.store)
    drawn, _ = prepare.draw_splits(ctx)
    artifact = node_of(ctx, "prepare").artifact
    found = drawn_texts.load(artifact)
    assert (found.train, pool_of(artifact), found.test) == (drawn.train, drawn.pool, drawn.test)
    assert len(found.pool) == len(drawn.pool)


def test_another_seed_draws_other_texts_and_the_same_one_the_same(done, tmp_path):
    again = prepared(done.ground, tmp_path)
    other = prepared(done.ground, tmp_path, **{"seed": 1})
    first = done.one("prepare")
    for name in FILES - {"manifest.json"}:
        assert digest(again.path / name) == digest(first / name), name
    assert texts_of(other.path / "train.parquet") != texts_of(first / "train.parquet")


def test_drawing_first_takes_the_first_texts_of_each_label_and_leaves_them_in_the_pool(done, tmp_path):
    settings = {"data": {"draw": "first"}}
    artifact = prepared(done.ground, tmp_path, **settings)
    train, pool = (read_texts(artifact.path / f"{name}.parquet") for name in ("train", "pool"))
    assert train.ids == [f"train.csv:{line}" for line in range(2, 14)]
    assert set(train.ids) <= set(pool.ids)
    assert set(pool_of(artifact).labels) == {None}, "the labelled texts in it have lost their labels"
    other = prepared(done.ground, tmp_path, **settings, **{"seed": 1})
    assert other.path == artifact.path, "a draw without chance does not depend on the seed"


def test_a_task_without_a_test_file_draws_its_test_texts_first(lone):
    artifact = prepared(lone, lone.folder / "store")
    splits = drawn_texts.load(artifact)
    drawn = [set(one.ids) for one in (splits.train, pool_of(artifact), splits.test)]
    assert len(drawn[2]) == (TRAIN - HIDDEN) // 2
    assert sum(map(len, drawn)) == len(set.union(*drawn))
    assert None not in splits.test.labels


def test_drawing_first_needs_a_test_file(lone):
    result = pet_run(lone, lone.folder / "store", "--stage", "prepare", "--set", "data.draw=first", code=2)
    assert "has no test split, as data.draw=first needs; use data.draw=seed" in result.stderr


@pytest.fixture
def lone(done, tmp_path):
    """The small task without its test file."""
    shutil.copytree(done.ground.folder, tmp_path / "lone")
    ground = Ground(tmp_path / "lone")
    ground.change_card(files={"format": "csv", "train": "train.csv"})
    pipeline = done.ground.folder / "pipeline.yaml"
    moved = pipeline.read_text().replace(str(done.ground.folder), str(ground.folder))
    (ground.folder / "pipeline.yaml").write_text(moved)
    return ground


def test_test_texts_without_a_label_are_left_out(lone):
    rows = [("sports", "a", "goal one"), ("", "a", "goal two"), ("tech", "a", "robot three")]
    write_csv(lone.folder / "test.csv", rows)
    lone.change_card(files={"format": "csv", "train": "train.csv", "test": "test.csv"})
    artifact = prepared(lone, lone.folder / "store")
    assert read_texts(artifact.path / "test.parquet").ids == ["test.csv:2", "test.csv:4"]


def test_fewer_texts_than_asked_for_are_told(lone):
    asked = ("--set", "data.pool_per_label=1000", "--set", "data.test=2000")
    result = pet_run(lone, lone.folder / "few", "--stage", "prepare", *asked)
    assert "prepare: data.pool_per_label asks for 3,000 pool texts, these are all there are" in result.stderr
    assert "prepare: data.test asks for 2,000 test texts, these are all there are" in result.stderr
    enough = pet_run(lone, lone.folder / "enough", "--stage", "prepare", "--set", "data.pool_per_label=5")
    assert "these are all there are" not in enough.stderr


def test_a_test_text_that_repeats_a_labelled_one_is_counted_and_said(lone):
    train = read_texts(prepared(lone, lone.folder / "store").path / "train.parquet")
    compute_model = (train.labels[0], train.fields["headline"][0], train.fields["body"][0])
    write_csv(lone.folder / "test.csv", [compute_model, ("tech", "a", "robot engine screen all just quick rain")])
    lone.change_card(files={"format": "csv", "train": "train.csv", "test": "test.csv"})
    result = pet_run(lone, lone.folder / "other", "--stage", "prepare")
    assert " test texts nearly repeat " in result.stderr
    found = read_json(find_one(lone.folder / "other", "prepare") / "report.json")["near_duplicates"]
    assert found["test_of_train"] + found["test_of_pool"] >= 1


def test_only_evaluate_opens_the_hidden_labels_of_the_pool(done, tmp_path):
    """The same walk with those labels out of reach: everything up to the student comes out the same, byte by byte."""
    shutil.copytree(done.store / "prepare", tmp_path / "prepare")
    gold = find_one(tmp_path, "prepare") / "pool_gold.parquet"
    kept = garble(gold)
    for stage in ("finetune", "label", "distill"):
        pet_run(done.ground, tmp_path, "--stage", stage)
        for folder in find_all(done.store, stage):
            for name in files_of(folder) - {"manifest.json"}:
                assert digest(tmp_path / stage / folder.name / name) == digest(folder / name), name
    assert hidden_in(tmp_path) == [], "nobody has seen that they are damaged"
    gold.write_bytes(kept)
    pet_run(done.ground, tmp_path, "--stage", "evaluate")
    assert hidden_in(tmp_path) == []
    scores = "scores.json"
    assert digest(find_one(tmp_path, "evaluate") / scores) == digest(done.one("evaluate") / scores)


def test_where_the_texts_lie_does_not_matter(done, tmp_path):
    """--data names another folder with the same files: the same splits, already there."""
    for name in ("train.csv", "test.csv"):
        shutil.copy(done.ground.folder / name, tmp_path / name)
    result = pet_run(done.ground, done.store, "--stage", "prepare", "--data", tmp_path)
    assert f"prepare: reused {done.one('prepare')}" in result.stderr
