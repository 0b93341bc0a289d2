"""`pet suggest` names texts worth a label, and `pet run --train-file` takes the labels back."""

import csv
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file
from support.rows import (
    LABELS,
    Finished,
    Ground,
    files_of,
    find_all,
    find_one,
    lay_ground,
    pet,
    pet_run,
    read_json,
)

from pet.algorithms.ensemble import disagreement
from pet.pipeline import drawn_texts
from pet.pipeline.runs import open_run
from pet.store.store import Store
from pet.tasks.annotations import FORMULA, read_given_labels
from pet.tasks.card import Source, TaskCard
from pet.tasks.near_duplicates import NearDuplicateIndex, shingles
from pet.tasks.texts import TextFile, Texts, read_texts, write_texts
from pet.tools.inference.suggest import Suggestions, first_different, spread, write_suggestions

pytestmark = pytest.mark.slow


def suggest(done: Finished, output: Path, *arguments: object, code: int = 0):
    return pet("suggest", "last", "--store", done.store, "--output", output, *arguments, code=code)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def fill_in(path: Path, labels: dict[str, str], where: Path | None = None) -> Path:
    """The file with these labels, id -> label."""
    rows = rows_of(path)
    for row in rows:
        row["label"] = labels.get(row["id"], "")
    where = where or path
    with where.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return where


# ---- which texts ---------------------------------------------------------------------------------------------------


def test_the_file_says_of_pool_texts_what_the_ensemble_thinks_and_asks_for_a_label(done, tmp_path):
    suggest(done, tmp_path / "label.csv", "-n", 7)
    rows = rows_of(tmp_path / "label.csv")
    assert list(rows[0]) == ["id", "headline", "body", "label", "suggested_label", "probability", "disagreement"]
    run = open_run("last", Store(done.store))
    pool = read_texts(run.prepared.path / "pool.parquet")
    weights = np.array([one["weight"] for one in run.labelled.read_json("ensemble.json")["members"]])
    scores = np.stack([load_file(one.path / "scores.safetensors")["pool"] for one in run.members])
    apart = disagreement(scores, weights / weights.sum())
    pooled = np.tensordot(weights, scores, axes=1)
    for row in rows:
        place = pool.ids.index(row["id"])
        assert (row["headline"], row["body"], row["label"]) == (*(pool.fields[f][place] for f in pool.fields), "")
        assert row["suggested_label"] == LABELS[pooled[place].argmax()]
        probability = np.exp(pooled[place] - pooled[place].max())
        assert float(row["probability"]) == pytest.approx(probability.max() / probability.sum(), abs=2e-4)
        assert float(row["disagreement"]) == pytest.approx(apart[place], abs=1e-4)
    given = [float(row["disagreement"]) for row in rows]
    assert len(rows) == 7 and given == sorted(given, reverse=True)
    assert max(given) == pytest.approx(apart.max(), abs=1e-4), "the most disputed text is the best of its cluster"


@pytest.mark.parametrize("method", ["disagreement", "random"])
def test_the_same_is_suggested_again_and_with_another_seed_at_random_something_else(done, tmp_path, method):
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        suggest(done, tmp_path / name, "-n", 8, "--method", method, "--seed", seed)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    if method == "random":
        assert (tmp_path / "one").read_bytes() != (tmp_path / "three").read_bytes()


def test_more_than_the_pool_has_is_all_of_it_and_said(done, tmp_path):
    said = suggest(done, tmp_path / "label.csv", "-n", 500).stdout
    number = len(rows_of(tmp_path / "label.csv"))
    assert 20 < number <= 30
    assert f"the pool has only {number} texts" in said


def pool_of(tmp_path: Path, bodies: list[str]) -> TextFile:
    ids = [str(number) for number in range(len(bodies))]
    write_texts(tmp_path / "pool.parquet", Texts(ids, {"body": bodies}, [None] * len(bodies)), labelled=False)
    return TextFile(tmp_path / "pool.parquet")


def test_what_nearly_repeats_a_labelled_text_or_one_before_it_is_not_taken(tmp_path):
    long = "the council met on monday to talk about the new bridge over the river and its cost for the town"
    pool = pool_of(tmp_path, [long.upper() + "!", "a goal", long.replace("monday", "sunday"), long, "rain", "A goal."])
    labelled = Texts(["t"], {"body": ["Rain?"]}, ["x"])
    rows, texts = first_different(pool, np.array([3, 0, 5, 4, 1, 2]), 4, labelled)
    assert rows.tolist() == [3, 5, 2], "0 is 3 in capitals, 4 is labelled, 1 is 5"
    assert texts.ids == ["3", "5", "2"]
    seen = NearDuplicateIndex([long])
    assert seen.like(shingles(long.upper()))
    assert first_different(pool, np.array([3, 0, 5]), 1, labelled)[0].tolist() == [3]


def test_texts_are_spread_over_contents_and_the_most_disputed_of_each_is_taken():
    bodies = [f"goal match team {word}" for word in "one two three four".split()]
    bodies += [f"bank share profit {word}" for word in "five six seven eight".split()]
    bodies += [f"engine code robot {word}" for word in "nine ten eleven twelve".split()]
    texts = Texts([str(n) for n in range(12)], {"body": bodies}, [None] * 12)
    apart = np.array([0.9, 0.8, 0.7, 0.6, 0.1, 0.5, 0.2, 0.3, 0.1, 0.1, 0.1, 0.4])
    assert sorted(spread(texts, apart, 3, 0).tolist()) == [0, 5, 11]


def test_texts_of_the_same_words_are_filled_up_by_disagreement():
    texts = Texts([str(n) for n in range(5)], {"body": ["same words"] * 5}, [None] * 5)
    chosen = spread(texts, np.array([0.1, 0.5, 0.3, 0.4, 0.0]), 3, 0).tolist()
    assert sorted(chosen) == [1, 2, 3]


def test_one_member_cannot_disagree(done, tmp_path):
    once = ("--set", "finetune.patterns=[0]", "--set", "finetune.repetitions=1")
    pet_run(done.ground, tmp_path / "store", *once)
    words = ("suggest", "last", "--store", tmp_path / "store", "--output", tmp_path / "label.csv")
    assert "has one member" in pet(*words, code=2).output
    pet(*words, "--method", "random", "-n", 2)
    assert {row["disagreement"] for row in rows_of(tmp_path / "label.csv")} == {"0.0000"}


def test_a_file_that_is_there_is_not_written_over(done, tmp_path):
    (tmp_path / "label.csv").write_text("id,label\na,b\n")
    assert "may hold labels" in suggest(done, tmp_path / "label.csv", code=2).output
    assert (tmp_path / "label.csv").read_text() == "id,label\na,b\n"
    assert "cannot be written" in suggest(done, tmp_path / "no" / "label.csv", code=2).output
    assert files_of(tmp_path) == {"label.csv"}
    assert "is no run of" in pet("suggest", "no", "--store", done.store, "--output", tmp_path / "x", code=2).output


# ---- the way back --------------------------------------------------------------------------------------------------


@pytest.fixture
def store(done, tmp_path) -> Path:
    """A copy of the finished run's store, to go on from."""
    shutil.copytree(done.store, tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def labelled(done, tmp_path) -> Path:
    """Seven suggestions, labelled but for two of them."""
    suggest(done, tmp_path / "label.csv", "-n", 7)
    ids = [row["id"] for row in rows_of(tmp_path / "label.csv")]
    return fill_in(tmp_path / "label.csv", {name: LABELS[number % 3] for number, name in enumerate(ids[:5])})


def test_labels_given_by_hand_join_those_drawn_and_leave_the_pool(done, store, labelled, tmp_path):
    said = pet_run(done.ground, store, "--stage", "prepare", "--train-file", labelled).output
    assert f"5 labels given by {labelled}; 2 rows without one skipped" in said
    before = drawn_texts.load(open_run("last", Store(store)).prepared)
    (path,) = [one for one in find_all(store, "prepare") if "n17" in one.name]
    after = drawn_texts.load(Store(store).open(path))
    rows = {row["id"]: row["label"] for row in rows_of(labelled) if row["label"]}
    assert after.train.ids[:12] == before.train.ids and after.train.labels[:12] == before.train.labels
    assert dict(zip(after.train.ids[12:], after.train.labels[12:], strict=True)) == rows
    kept = read_texts(after.pool.path).ids
    assert not set(kept) & set(rows)
    assert set(read_texts(before.pool.path).ids) - set(rows) <= set(kept)
    assert after.test == before.test


def test_a_whole_run_goes_on_with_what_suggest_printed(done, store, tmp_path):
    said = pet("suggest", "last", "--store", store, "-n", 3, "--output", tmp_path / "a b.csv").stdout
    fill_in(tmp_path / "a b.csv", {row["id"]: LABELS[0] for row in rows_of(tmp_path / "a b.csv")})
    command = shlex.split(said.splitlines()[-1].removeprefix("then: "))
    assert command[:2] == ["pet", "run"]
    pet(*command[1:])
    run = open_run("last", Store(store))
    assert run.summary["train_examples"] == 15
    more = pet("suggest", "last", "--store", store, "-n", 3, "--output", tmp_path / "more.csv").stdout
    assert f"--train-file '{tmp_path / 'a b.csv'}' --train-file {tmp_path / 'more.csv'}" in more
    assert not {row["id"] for row in rows_of(tmp_path / "a b.csv")} & {
        row["id"] for row in rows_of(tmp_path / "more.csv")
    }


def test_without_such_files_nothing_is_made_again_and_no_identity_knows_of_them(done, store):
    assert "0 of" in pet_run(done.ground, store, "--dry-run").stdout
    for stage in ("prepare", "run"):
        settings = read_json(done.one(stage) / "manifest.json")["settings"]
        assert "given_labels" not in settings and "train_files" not in settings["data"]


def test_an_identity_depends_on_the_labels_and_not_on_the_file(done, store, labelled, tmp_path):
    def identity(*paths: Path) -> str:
        files = [word for path in paths for word in ("--train-file", path)]
        return pet_run(done.ground, store, "--dry-run", *files).stdout.split()[1]

    rows = rows_of(labelled)
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    one.write_text("id,label\n" + "".join(f"{row['id']},{row['label']}\n" for row in rows[3:]))
    two.write_text("label,id\n" + "".join(f" {row['label']} ,{row['id']}\n" for row in rows[:4]))
    assert identity(labelled) == identity(one, two) == identity(two, one)
    assert identity(one) != identity(labelled) != identity()


def test_labels_given_by_hand_are_enough(done, tmp_path, labelled):
    """As many as there are, and the walk is not one without labels."""
    said = pet_run(done.ground, tmp_path / "store", "--train-examples", 0, "--train-file", labelled, "--dry-run").stdout
    assert "p0-r0" in said and "supervised baselines" in said


def test_a_label_given_by_hand_counts_more_than_the_sources(done, store, tmp_path):
    name = read_texts(done.one("prepare") / "pool.parquet").ids[0]
    for label in LABELS:
        (tmp_path / f"{label}.csv").write_text(f"id,label\n{name},{label}\n")
        pet_run(done.ground, store, "--stage", "prepare", "--train-file", tmp_path / f"{label}.csv")
    found = [read_texts(one / "train.parquet") for one in find_all(store, "prepare") if "n13" in one.name]
    assert sorted(one.labels[one.ids.index(name)] for one in found) == sorted(LABELS)


def test_every_row_that_cannot_be_used_is_named_with_its_line(done, tmp_path):
    first, *more = read_texts(done.one("prepare") / "pool.parquet").ids
    path = tmp_path / "label.csv"
    path.write_text(f"id,label\n{first},spotrs\nnowhere,tech\n{more[0]},tech\n{more[0]},sports\n,tech\n")
    said = " ".join(pet_run(done.ground, tmp_path / "store", "--train-file", path, code=2).output.split())
    for problem in (
        "label.csv:2: label 'spotrs' is not in the card",
        "label.csv:3: id 'nowhere' is of no text",
        f"label.csv:5: id '{more[0]}' is 'sports' here and 'tech' before",
        "label.csv:6: id '' is of no text",
    ):
        assert problem in said
    assert find_all(tmp_path / "store", "prepare") == []


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "there is no file"),
        (b"", "gives no text a label"),
        (b"id,label\n", "gives no text a label"),
        (b"name,label\na,tech\n", "has no column 'id'"),
        (b"id|label\na|tech\n", "has no column"),
        (b"id;label\na;tech\n", "id 'a' is of no text"),
        (b"id,label\na,tech,more\n", "line 2 has 3 columns"),
        (b"id,label\n\xff\xfe,tech\n", "convert the file to UTF-8"),
    ],
)
def test_a_file_that_cannot_be_used_is_said_in_a_sentence(done, tmp_path, content, sentence):
    path = tmp_path / "label.csv"
    if content is not None:
        path.write_bytes(content)
    assert sentence in pet_run(done.ground, tmp_path / "store", "--train-file", path, code=2).output


def test_a_flag_and_a_setting_of_the_same_are_refused(done, tmp_path, labelled):
    words = ("--train-file", labelled, "--set", "data.train_files=[x.csv]")
    assert f"--train-file {labelled} set the same" in pet_run(done.ground, tmp_path / "store", *words, code=2).output


def test_odd_labels_and_texts_come_back(tmp_path, tmp_path_factory, done):
    model = yaml.safe_load(Path(done.ground.pipeline).read_text())["model"]["name"]
    ground: Ground = lay_ground(tmp_path / "ground", model)
    odd = {"sports": '<script>, "x"', "business": "größe", "tech": "a b"}
    files = {"format": "csv", "train": "train.csv", "test": "test.csv", "labels": odd}
    words = {name: [label] for label, name in odd.items()}
    ground.change_card(labels=list(odd.values()), files=files, verbalizers={"default": words})
    pet_run(ground, tmp_path / "store")
    path = tmp_path / "label.csv"
    pet("suggest", "last", "--store", tmp_path / "store", "-n", 3, "--output", path)
    given = fill_in(path, {row["id"]: name for row, name in zip(rows_of(path), odd.values(), strict=True)})
    pet_run(ground, tmp_path / "store", "--stage", "prepare", "--train-file", given)
    assert read_texts(find_one(tmp_path / "store", "prepare", "n15") / "train.parquet").labels.count("größe") == 5


def test_a_file_to_be_labelled_comes_back_whatever_ends_a_line_for_somebody(tmp_path):
    from support.rows import CARD

    odd = ["a\rb", "\r", "\x85", "a\u2028b", "\ufeffa", " a ", 'a,"b', "a;b", "\na", "\uff1da", "", "\x1c"]
    texts = Texts([f"{one}." for one in odd], {"=head": odd, "label": odd}, [None] * len(odd))
    path = tmp_path / "label.csv"
    write_suggestions(path, Suggestions(texts, odd, [0.5] * len(odd), [0.5] * len(odd)))
    rows = rows_of(path)
    assert len(rows) == len(odd)
    assert not [cell for row in rows for cell in (*row, *row.values()) if cell.startswith(FORMULA)]
    for name in ("'=head", "text_label", "suggested_label"):
        assert [row[name].removeprefix("'") for row in rows] == odd

    labels = [one for one in odd if one]
    words = {label: [f"word{number}"] for number, label in enumerate(labels)}
    card = TaskCard.model_validate({**CARD, "labels": labels, "verbalizers": {"default": words}, "files": None})
    filled = {row["id"]: row["suggested_label"] for row in rows}
    given = read_given_labels(card, Source(id="id"), [str(fill_in(path, filled))], texts)
    assert given.labels == {f"{one}.": one for one in sorted(labels)}
