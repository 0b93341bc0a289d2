"""A text whose label was read to choose label words is never a test text, whatever is done with the card afterwards."""

import csv
import random
import re
import shlex
from pathlib import Path

import pytest
import yaml
from support.rows import (
    LABELS,
    TOPICS,
    Ground,
    find_one,
    lay_ground,
    lively_model,
    open_context,
    pet,
    pet_run,
    read_json,
)

from pet.config.resolve import resolve_settings
from pet.pipeline.context import RunContext
from pet.pipeline.runs import open_run
from pet.pipeline.stages import prepare
from pet.store.store import Store
from pet.tasks.card import load_card
from pet.tasks.splits import draw_by_seed
from pet.tasks.texts import marks, read_texts
from pet.tools.authoring import label_words
from pet.tools.authoring import verbalize as verbalizing
from pet.tools.export.model_card import model_card
from pet.tools.reports.table_report import describe_task

pytestmark = pytest.mark.slow

SEEDS = range(25)


@pytest.fixture
def model(tmp_path_factory) -> Path:
    return lively_model(tmp_path_factory.getbasetemp())


@pytest.fixture
def ground(tmp_path, model) -> Ground:
    """The small task without its test file."""
    made = lay_ground(tmp_path / "ground", model)
    made.change_card(files={"format": "csv", "train": "train.csv"})
    return made


def toss(size: int, labels=("L1", "L2")) -> list[dict[str, str]]:
    """Different texts, each with a label by chance."""
    rng = random.Random(size)
    words = [word for topic in TOPICS.values() for word in topic]
    rows = [
        {"text": f"{number} {' '.join(rng.sample(words, 3))}", "label": rng.choice(labels)} for number in range(size)
    ]
    return [{**row, "label": labels[number % 2]} if number < 4 else row for number, row in enumerate(rows)]


def write(path: Path, rows) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        lines = csv.DictWriter(file, list(rows[0]))
        lines.writeheader()
        lines.writerows(rows)
    return path


def init(folder: Path, rows, model) -> str:
    source = write(folder / "a.csv", rows)
    return pet("init", "toss", "--input", source, "--model", model, "--out", folder / "toss").output


def texts_tested(card: Path, *sizes: int | None, seeds=SEEDS, train: int = 2) -> set[str]:
    """All texts that a run of any of these seeds tests on."""
    found: set[str] = set()
    for size in sizes:
        for seed in seeds:
            more = {"task": {"name": str(card)}, "data": {"train_examples": train, "test": size}, "seed": seed}
            ctx = RunContext(resolve_settings("quick", more), None, None)  # type: ignore[arg-type]  # no stage is run
            test = prepare.draw_splits(ctx)[0].test
            assert len(test)
            found |= {test.joined(row) for row in range(len(test))}
    return found


@pytest.fixture
def read(monkeypatch) -> set[str]:
    """The texts whose labels are read while words are chosen."""
    seen: set[str] = set()
    for module, name, place in ((label_words, "rate_vocabulary", 3), (verbalizing, "count_words", 1)):
        real = getattr(module, name)

        def spy(*given, real=real, place=place):
            texts = given[place]
            seen.update(texts.joined(row) for row, label in enumerate(texts.labels) if label is not None)
            return real(*given)

        monkeypatch.setattr(module, name, spy)
    return seen


# ---- pet init ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [12, 40])
def test_no_text_whose_label_init_read_is_ever_tested_on(tmp_path, model, read, size):
    rows = toss(size)
    said = init(tmp_path, rows, model)
    assert 2 <= len(read) <= size // 2
    assert f"the labels of {len(read)} rows were read for these words" in said
    # All the others are: nothing else is kept from the test set.
    assert texts_tested(tmp_path / "toss/task.yaml", None, 3, 500) == {row["text"] for row in rows} - read


def test_rows_that_move_change_or_are_labelled_later_make_no_difference(tmp_path, model, read):
    rows = toss(30)
    init(tmp_path, rows, model)
    random.Random(1).shuffle(rows)
    more = [{"text": f"more of it {number}", "label": "L1"} for number in range(9)]
    spaced = [{**row, "text": f" {row['text'].replace(' ', '  ')}"} for row in rows]
    write(tmp_path / "toss/a.csv", [*more, *spaced])
    found = {" ".join(text.split()) for text in texts_tested(tmp_path / "toss/task.yaml", None, 5)}
    assert not found & read
    assert found & {row["text"] for row in more}


def test_names_that_are_words_read_no_label_and_the_card_says_nothing_of_it(tmp_path, model, read):
    said = init(tmp_path, toss(20, ("goal", "market")), model)
    assert read == set() and "were read" not in said
    assert "words_from" not in (tmp_path / "toss/task.yaml").read_text()
    assert len(texts_tested(tmp_path / "toss/task.yaml", None)) == 20


def test_twelve_rows_are_enough_for_words_and_for_the_run_that_is_proposed(tmp_path, model, read):
    said = init(tmp_path, toss(12), model)
    assert read
    run = next(shlex.split(line)[1:] for line in said.splitlines() if line.startswith("  pet run"))
    train, test = (int(re.search(rf"{name}[ =](\d+)", " ".join(run))[1]) for name in ("examples", "test"))
    assert train >= 2 and test >= 4
    small = [f"{one}.frozen_layers=1" for one in ("finetune", "distill", "baseline")] + [f"distill.model={model}"]
    small = [word for one in small for word in ("--set", one)]
    for seed in (0, 1, 2):
        done = pet(*run, *small, "--stage", "prepare", "--store", tmp_path / "store", "--seed", seed)
        assert f"{train} labelled, {12 - train - test} pool, {test} test texts" in done.output


def test_a_label_with_one_text_keeps_it(tmp_path, model, read):
    rows = [{"text": f"{word} it is", "label": label} for word, label in (("goal", "L1"), ("bank", "L2"), ("rain", ""))]
    init(tmp_path, rows, model)
    assert read == set()


def test_a_test_file_that_is_made_of_such_texts_later_is_rid_of_them(tmp_path, model, read):
    rows = toss(30)
    init(tmp_path, rows, model)
    folder = tmp_path / "toss"
    write(folder / "test.csv", rows[:15])
    write(folder / "a.csv", rows[15:])
    card = folder / "task.yaml"
    card.write_text(card.read_text().replace("  train: a.csv", "  train: a.csv\n  test: test.csv"))
    assert texts_tested(card, None) == {row["text"] for row in rows[:15]} - read
    said = pet("check", card, "--model", model, "--train-examples", 2).output
    assert "texts of the test file chose the card's label words (words_from): they are left out" in " ".join(
        said.split()
    )


# ---- pet verbalize -------------------------------------------------------------------------------------------------


def verbalize(ground: Ground, *arguments: object, card: Path | None = None) -> str:
    given = yaml.safe_load(Path(ground.pipeline).read_text())["model"]
    words = ("verbalize", card or ground.card, "--model", given["name"], "--train-examples", 12, "--set", "data.test=6")
    return pet(*words, "--set", "model.max_length=28", *arguments).stdout


def test_words_of_one_seed_are_tested_by_no_other_one_on_the_texts_that_they_come_from(ground, read):
    verbalize(ground, "--seed", 3, "--output", ground.folder / "auto.yaml")
    assert len(read) == 12
    assert not texts_tested(ground.folder / "auto.yaml", None, 6, 20) & read
    assert texts_tested(ground.card, None, 6, 20) & read, "as they would be without the list"
    same = texts_tested(ground.card, 6, seeds=[3], train=12)
    assert texts_tested(ground.folder / "auto.yaml", 6, seeds=[3], train=12) == same, "what was no test text anyway"


def test_yaml_to_paste_has_the_texts_too(ground, read):
    pasted = yaml.safe_load("\n".join(verbalize(ground).splitlines()[len(LABELS) :]))
    ground.change_card(words_from=pasted["words_from"])
    assert len(pasted["words_from"]) == len(read) == 12
    assert not texts_tested(ground.card, None, 6) & read


def test_words_of_several_draws_keep_all_of_their_texts_from_the_test_set(ground, read):
    verbalize(ground, "--seed", 0, "--output", ground.folder / "auto.yaml")
    first = set(read)
    verbalize(ground, "--seed", 1, "--output", ground.folder / "again.yaml", card=ground.folder / "auto.yaml")
    assert len(read) > len(first)
    assert not texts_tested(ground.folder / "again.yaml", None, 6) & read


def test_with_a_test_file_of_its_own_nothing_has_to_be_kept_from_it(ground, read):
    ground.change_card(files={"format": "csv", "train": "train.csv", "test": "test.csv"})
    verbalize(ground, "--output", ground.folder / "auto.yaml")
    assert read and load_card(str(ground.folder / "auto.yaml"))[0].words_from == ()
    assert "words_from" not in verbalize(ground)


# ---- what is said of it --------------------------------------------------------------------------------------------


def test_a_run_says_how_many_labels_its_words_took(ground, tmp_path):
    texts = open_context(ground, tmp_path / "store").task.train_side
    first = [row for row, label in enumerate(texts.labels) if label is not None][:5]
    ground.change_card(words_from=[*sorted(marks(texts.take(first))), "0" * 16])
    done = pet_run(ground, tmp_path / "store")
    said = " ".join(done.output.split())
    train = read_texts(find_one(tmp_path / "store", "prepare") / "train.parquet")
    more = 6 - len(set(marks(train)) & set(marks(texts.take(first))))
    assert f"12 labels (and {more} more chose the label words)" in said
    run = find_one(tmp_path / "store", "run")
    assert f"(and {more} more chose the label words)" in (run / "summary.md").read_text()
    assert read_json(run / "summary.json")["word_texts"] == more
    card = model_card(open_run(str(run), Store(tmp_path / "store")), "hf", ["headline", "body"], [], "")
    assert f"chosen by the labels of {more} texts beside those that it was trained on" in card
    assert describe_task(open_context(ground, tmp_path / "store").settings, [])["words_from"] == 6
    assert "6 texts chose the card's label words; no run tests on them" in said
    assert "1 of the 6 texts that chose the card's label words (words_from) are not among the task's texts" in said


def test_without_such_texts_identities_and_summaries_are_what_they_were(ground, tmp_path):
    ctx = open_context(ground, tmp_path / "store")
    before = prepare.node(ctx).key
    assert "words_from" not in before.settings
    texts = ctx.task.train_side
    ground.change_card(words_from=marks(texts.take([0, 1])))
    assert prepare.node(open_context(ground, tmp_path / "store")).key.settings["words_from"]
    ground.change_card(words_from=[])
    assert prepare.node(open_context(ground, tmp_path / "store")).key == before


def test_a_check_says_where_its_accuracy_is_of_texts_that_a_run_may_test_on(ground):
    given = ("--model", lively_model(ground.folder), "--set", "model.max_length=28", "--train-examples", 6)
    said = "without a test file a run may test on them"
    assert said in " ".join(pet("check", ground.card, *given).output.split())
    ground.change_card(files={"format": "csv", "train": "train.csv", "test": "test.csv"})
    assert said not in " ".join(pet("check", ground.card, *given).output.split())


@pytest.mark.parametrize("seed", SEEDS)
def test_barred_rows_may_be_labelled_texts_or_pool_and_change_no_draw_that_had_not_tested_on_them(seed):
    labels = ["a", "b", None] * 10
    plain = draw_by_seed(labels, ["a", "b"], 4, 99, 6, seed)
    barred = draw_by_seed(labels, ["a", "b"], 4, 99, 6, seed, barred=range(0, 30, 4))
    assert not set(barred.test) & set(range(0, 30, 4)) and len(barred.test) == 6
    assert sorted([*barred.train, *barred.pool, *barred.test]) == list(range(30))
    assert draw_by_seed(labels, ["a", "b"], 4, 99, 6, seed, barred=[*plain.train, *plain.pool]) == plain
