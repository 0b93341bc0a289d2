"""`pet ipet`: generations, who labels for whom, what is shared with PET, and what is said of it."""

import shutil
from collections import Counter

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.rows import (
    LABELS,
    Finished,
    find_all,
    find_one,
    finish_run,
    lay_ground,
    lively_model,
    pet,
    pet_run,
    read_json,
)

from pet.algorithms.ensemble import align_prior
from pet.pipeline.summary import flag_generations
from pet.tasks.texts import read_texts

pytestmark = pytest.mark.slow

MEMBERS = ("p0-r0", "p0-r1", "p1-r0", "p1-r1")
GENERATIONS = 2


def pet_ipet(ground, store, *arguments, **more):
    return pet("ipet", ground.pipeline, "--store", store, *arguments, **more)


@pytest.fixture(scope="session")
def plain(tmp_path_factory) -> Finished:
    """A finished run of PET; never write into its folders."""
    return finish_run(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def done(plain, tmp_path_factory) -> Finished:
    """Two generations after the finished run. Growth 2: 12 labelled texts, then 24, then 27, all that half of the pool
    allows. Never write into its folders."""
    store = tmp_path_factory.mktemp("ipet") / "store"
    shutil.copytree(plain.store, store)
    result = pet_ipet(plain.ground, store, "--generations", GENERATIONS, "--set", "ipet.growth=2")
    return Finished(plain.ground, store, result)


def summary_of(done):
    return read_json(find_one(done.store, "run", "ipet") / "summary.json")


def labels_by_id(path):
    texts = read_texts(path)
    return dict(zip(texts.ids, texts.labels, strict=True))


def sets(done, generation):
    """Member -> its training set's folder."""
    return {name: find_one(done.store, "draw", f"g{generation}-{name}") for name in MEMBERS}


# ---- the walk ------------------------------------------------------------------------------------------------------


def test_the_schedule_is_told_before_anything_else(done):
    first, second, *_ = done.result.stderr.splitlines()
    assert first == "ipet: 12 -> 24 -> 27 labelled texts, 4 members each"
    assert second == "ipet: no more than 15 of the 30 pool texts are drawn (ipet.pool_share 0.5)"


def test_generation_0_is_pets_ensemble_the_same_artifacts(done, plain):
    for stage, count in (("prepare", 1), ("finetune", 6), ("label", 1)):
        reused = [line for line in done.result.stderr.splitlines() if line.startswith(stage) and ": reused " in line]
        assert len(reused) == count
    assert len(find_all(done.store, "finetune")) == 6 + GENERATIONS * len(MEMBERS)
    assert len(find_all(done.store, "label")) == 1 + GENERATIONS


def test_more_generations_go_on_from_those_that_are_there(done, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(done.store, store)
    result = pet_ipet(done.ground, store, "--generations", 3, "--set", "ipet.growth=2")
    made = Counter(line.split()[0] for line in result.stderr.splitlines() if line.startswith(("draw ", "finetune ")))
    assert made == {"draw": 12, "finetune": 18}
    fresh = [line for line in result.stderr.splitlines() if line.startswith("finetune") and ": reused " not in line]
    assert [line.split(":")[0] for line in fresh] == [f"finetune g3-{name}" for name in MEMBERS]


def test_the_same_command_again_makes_nothing(done, monkeypatch):
    monkeypatch.setattr("pet.training.trainer.Trainer.run", None)
    arguments = ("--generations", GENERATIONS, "--set", "ipet.growth=2")
    result = pet_ipet(done.ground, done.store, *arguments)
    assert all(": reused " in line for line in result.stderr.splitlines()[2:])
    assert pet_ipet(done.ground, done.store, *arguments, "--dry-run").stdout.splitlines()[-1].startswith("0 of 30 ")


def test_one_damaged_generation_is_made_again_and_what_hangs_on_it(done, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(done.store, store)
    shutil.rmtree(find_one(store, "finetune", "g1-p0-r0"))
    result = pet_ipet(done.ground, store, "--generations", GENERATIONS, "--set", "ipet.growth=2")
    fresh = [line for line in result.stderr.splitlines()[2:] if ": reused " not in line]
    assert len(fresh) == 1, "the same member comes out, so everything after it is what it was"
    assert fresh[0].startswith("finetune g1-p0-r0:")


def test_a_dry_run_lists_every_training_set_and_member_and_writes_nothing(plain, tmp_path):
    result = pet_ipet(plain.ground, tmp_path / "store", "--dry-run")
    stages = Counter(line.split()[0] for line in result.stdout.splitlines()[:-1])
    assert stages == {"prepare": 1, "finetune": 6 + 12, "label": 4, "draw": 12, "distill": 1, "evaluate": 3}
    assert not (tmp_path / "store").exists()


def test_what_a_dry_run_lists_is_what_a_run_makes(done):
    result = pet_ipet(
        done.ground, done.store, "--generations", GENERATIONS, "--set", "ipet.growth=2", "--seed", 0, "--dry-run"
    )
    for line in result.stdout.splitlines()[:-1]:
        stage, identity, *_ = line.split()
        folder = find_one(
            done.store, {"baselines": "baseline", "summary": "run"}.get(line.split()[-3], stage), identity
        )
        assert f"(there: {folder})" in line


def test_a_member_of_a_later_generation_can_be_given_more_steps(done, tmp_path):
    shutil.copytree(done.store, tmp_path / "store")
    pet_ipet(done.ground, tmp_path / "store", "--generations", 1, "--set", "ipet.steps=5")
    steps = [
        read_json(find / "training.json")["steps"][-1] for find in find_all(tmp_path / "store", "finetune", "g1-p0-r0")
    ]
    assert sorted(steps) == [2, 5]
    assert len(find_all(tmp_path / "store", "finetune", "p1-untuned")) == 1


def test_adapters_go_through_generations_too(plain, tmp_path):
    pet_ipet(plain.ground, tmp_path, "--generations", 1, "--set", "finetune.method=lora")
    for name in MEMBERS:
        member = find_one(tmp_path, "finetune", f"g1-{name}")
        assert (member / "adapter").is_dir()
        assert len(load_file(member / "scores.safetensors")["train"]) == 27
    assert find_one(tmp_path, "run", "ipet")


# ---- training sets -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("generation", "size"), [(1, 24), (2, 27)])
def test_a_training_set_is_the_labelled_texts_and_texts_of_the_pool_in_the_same_proportions(done, generation, size):
    prepared = find_one(done.store, "prepare")
    labelled, pool = (read_texts(prepared / f"{name}.parquet") for name in ("train", "pool"))
    for folder in sets(done, generation).values():
        texts = read_texts(folder / "train.parquet")
        assert len(texts) == len(set(texts.ids)) == size
        assert texts.take(range(12)) == labelled
        assert set(texts.ids[12:]) <= set(pool.ids)
        assert Counter(texts.labels) == dict.fromkeys(LABELS, size // 3)
        row = pool.ids.index(texts.ids[-1])
        assert texts.fields["body"][-1] == pool.fields["body"][row]


def test_who_labels_is_another_member_of_the_generation_before(done):
    chosen = set()
    for generation in (1, 2):
        prefix = f"g{generation - 1}-" if generation > 1 else ""
        others = {f"{prefix}{name}" for name in MEMBERS}
        for name, folder in sets(done, generation).items():
            (teacher,) = read_json(folder / "drawn.json")["teachers"]  # a quarter of three others: one
            assert teacher["member"] in others - {f"{prefix}{name}"}
            assert teacher["weight"] == 1
            member = find_one(done.store, "finetune", teacher["identity"])
            assert teacher["member"] in member.name
            chosen.add((generation, teacher["member"]))
    assert len(chosen) > 3, "by lot, not always the same"


@pytest.mark.parametrize(("share", "shares"), [(0.5, "free"), (1, "free"), (1, "even")])
def test_drawn_labels_are_those_of_the_teachers_pooled_opinion(done, tmp_path, share, shares):
    """From the members' files alone: the weighted mean of their scores says what label a text has, shares made even if
    asked for."""
    shutil.copytree(done.store, tmp_path / "store")
    pet_ipet(
        *(done.ground, tmp_path / "store", "--generations", 1),
        *("--set", f"ipet.teachers={share}", "--set", f"label.shares={shares}"),
    )
    pool = read_texts(find_one(done.store, "prepare") / "pool.parquet")
    looked_at = 0
    for folder in find_all(tmp_path / "store", "draw", "g1-"):
        report = read_json(folder / "drawn.json")
        if len(report["teachers"]) == 1:
            continue
        assert len(report["teachers"]) == {0.5: 2, 1: 3}[share]
        scores = sum(
            one["weight"]
            * load_file(find_one(done.store, "finetune", one["identity"]) / "scores.safetensors")["pool"].astype(float)
            for one in report["teachers"]
        )
        untuned = [
            read_json(find_one(done.store, "finetune", f"{one['member'][:2]}-untuned") / "training.json")
            for one in report["teachers"]
        ]
        accuracies = np.array([one["train_accuracy"] for one in untuned])
        np.testing.assert_allclose(
            [one["weight"] for one in report["teachers"]], accuracies / accuracies.sum(), atol=1e-6
        )
        if shares == "even":
            assert (scores.argmax(1) != (scores + align_prior(scores)).argmax(1)).any(), "else this test sees nothing"
            scores = scores + align_prior(scores)
        given = dict(zip(pool.ids, scores.argmax(1), strict=True))
        texts = read_texts(folder / "train.parquet")
        for number, name in enumerate(LABELS):
            drawn = [one for one, label in zip(texts.ids[12:], texts.labels[12:], strict=True) if label == name]
            found = report["labels"][name]
            assert found["predicted"] == (scores.argmax(1) == number).sum()
            assert len(drawn) == found["drawn"] == found["wanted"]
            assert sum(given[one] != number for one in drawn) == found["filled"]
            looked_at += len(drawn) - found["filled"]
    assert looked_at > 20


def test_a_member_is_trained_on_its_training_set(done):
    for name, folder in sets(done, 1).items():
        texts = read_texts(folder / "train.parquet")
        member = find_one(done.store, "finetune", f"g1-{name}")
        scores = load_file(member / "scores.safetensors")["train"]
        assert len(scores) == len(texts)
        right = scores.argmax(1) == [LABELS.index(label) for label in texts.labels]
        assert read_json(member / "training.json")["train_accuracy"] == pytest.approx(right.mean())
        assert read_json(member / "manifest.json")["inputs"]["draw"] in folder.name


def test_members_of_later_generations_begin_anew_from_their_own_random_state(done):
    """Each starts from the model that all start from: two steps, of 1e-3 and 5e-4, lead no further away from it."""
    before, after = (
        load_file(find_one(done.store, "finetune", name) / "model" / "model.safetensors")
        for name in ("lively-p0-r0", "g2-p0-r0")
    )
    start = load_file(lively_model(done.store.parents[1]).parent / "lively" / "model.safetensors")
    name = "bert.encoder.layer.0.output.dense.weight"
    assert not np.array_equal(before[name], after[name])
    for one in (before, after):
        assert 1e-3 < abs(one[name] - start[name]).max() < 1.6e-3


# ---- no labels, one member, a label that nobody predicts -----------------------------------------------------------


def test_without_labels_generation_0_is_untuned_and_the_next_is_trained_on_ten_texts(plain, tmp_path):
    result = pet_ipet(plain.ground, tmp_path, "--generations", 1, "--train-examples", 0)
    assert result.stderr.splitlines()[0] == (
        "ipet: 0 -> 10 labelled texts, 4 members each, generation 0 the patterns untuned"
    )
    pool = read_texts(find_one(tmp_path, "prepare") / "pool.parquet")
    for name in MEMBERS:
        folder = find_one(tmp_path, "draw", f"g1-{name}")
        texts = read_texts(folder / "train.parquet")
        assert sorted(Counter(texts.labels).values()) == [3, 3, 4]
        assert set(texts.ids) <= set(pool.ids)
        (teacher,) = read_json(folder / "drawn.json")["teachers"]
        assert teacher["member"] in ("p0-untuned", "p1-untuned"), "its own pattern's other copy may label, too"
    summary = read_json(find_one(tmp_path, "run", "ipet") / "summary.json")
    assert [one["texts"] for one in summary["generations"]] == [0, 10]
    assert "supervised" not in summary["scores"]


@pytest.mark.parametrize(("shares", "expected"), [("free", [3 / 7, 2 / 7, 2 / 7]), ("even", [1 / 3] * 3)])
def test_shares_are_compared_with_those_of_the_labelled_texts_or_with_even_ones(plain, tmp_path, shares, expected):
    asked = ("--train-examples", 7, "--generations", 1, "--set", f"label.shares={shares}")
    pet_ipet(plain.ground, tmp_path, *asked, "--set", "finetune.repetitions=1")
    for one in read_json(find_one(tmp_path, "run", "ipet") / "summary.json")["generations"]:
        assert one["prior"] == {
            name: pytest.approx(share, abs=1e-4) for name, share in zip(LABELS, expected, strict=True)
        }


def test_one_pattern_and_one_repetition_label_their_own_training_sets(plain, tmp_path):
    alone = ("--set", "finetune.patterns=[1]", "--set", "finetune.repetitions=1")
    result = pet_ipet(plain.ground, tmp_path, "--generations", 2, *alone)
    assert "ipet: there is one member, so it labels its own training sets" in result.stderr
    for generation, teacher in ((1, "p1-r0"), (2, "g1-p1-r0")):
        report = read_json(find_one(tmp_path, "draw", f"g{generation}-p1-r0") / "drawn.json")
        assert [one["member"] for one in report["teachers"]] == [teacher]
    generations = read_json(find_one(tmp_path, "run", "ipet") / "summary.json")["generations"]
    assert [one["agreement"] for one in generations] == [None] * 3
    assert not any(one["worse"] for one in generations)


def test_a_label_that_nobody_predicts_ends_with_a_report(plain, tmp_path):
    """The third label's word is one that this model never says, so the published code would loop for ever."""
    ground = lay_ground(tmp_path / "ground", lively_model(plain.store.parents[1]))
    ground.change_card(verbalizers={"default": {"sports": ["sports"], "business": ["business"], "tech": ["tech"]}})
    probe = pet_ipet(ground, tmp_path / "store", "--generations", 1, "--set", "finetune.steps=1")
    never = [line for line in probe.stderr.splitlines() if line.startswith("generation 1: no text was labelled")]
    reports = [read_json(folder / "drawn.json") for folder in find_all(tmp_path / "store", "draw")]
    missing = {name for one in reports for name, found in one["labels"].items() if found["predicted"] == 0}
    assert missing, "this model must leave out a label for this test to see anything"
    assert len(never) == len(missing)
    for name in missing:
        assert any(repr(name) in line and "come nearest to it were taken" in line for line in never)
        assert all(one["labels"][name]["drawn"] == one["labels"][name]["wanted"] > 0 for one in reports)
        assert f"{name} " in probe.stdout.partition("too few texts were given these labels")[2]


# ---- what is said of it --------------------------------------------------------------------------------------------


def test_the_summary_has_every_generation_with_what_can_be_known_of_it(done):
    summary = summary_of(done)
    gold = labels_by_id(find_one(done.store, "prepare") / "pool_gold.parquet")
    assert [one["generation"] for one in summary["generations"]] == [0, 1, 2]
    assert [one["texts"] for one in summary["generations"]] == [12, 24, 27]
    for number, one in enumerate(summary["generations"]):
        assert one["prior"] == {name: pytest.approx(1 / 3, abs=1e-4) for name in LABELS}
        assert sum(one["label_shares"].values()) == pytest.approx(1, abs=1e-3)
        if number:
            drawn = [labels_by_id(folder / "train.parquet") for folder in sets(done, number).values()]
            found = [(gold[text], label) for one_set in drawn for text, label in list(one_set.items())[12:]]
            right = [true == label for true, label in found if true is not None]
            assert one["drawn_known"] == len(right)
            assert one["drawn_right"] == pytest.approx(100 * np.mean(right), abs=0.01)
    assert summary["generations"][-1]["ensemble"] == summary["scores"]["ensemble"]


def test_generation_0_scores_as_the_ensemble_of_pet_does(done, plain):
    assert (
        summary_of(done)["generations"][0]["ensemble"]
        == read_json(plain.one("run") / "summary.json")["scores"]["ensemble"]
    )


def test_both_tables_are_on_the_screen_and_in_the_summary_for_people(done):
    text = (find_one(done.store, "run", "ipet") / "summary.md").read_text()
    for place in (done.result.stdout, text):
        assert "iPET ensemble" in place
        assert "iPET student" in place
        assert "drawn right" in place
        assert "PET ensemble" not in place.replace("iPET", "")
    lines = done.result.stdout.splitlines()
    (head,) = [number for number, line in enumerate(lines) if line.startswith("generation  texts  drawn right")]
    assert [line.split()[:2] for line in lines[head + 1 : head + 4]] == [["0", "12"], ["1", "24"], ["2", "27"]]
    rows = [line for line in text.splitlines() if line.startswith(("| 0 |", "| 1 |", "| 2 |"))]
    assert [row.split("|")[2].strip() for row in rows] == ["12", "24", "27"]


def test_a_generation_that_agrees_less_than_the_one_before_is_flagged():
    scored = [{"agreement": value} for value in (0.7, 0.8, 0.75, None, 0.6, 0.6)]
    assert [one["worse"] for one in flag_generations(scored)] == [False, False, True, False, False, False]


def test_a_run_of_pet_is_the_same_whatever_ipet_is_set_to(plain):
    result = pet_run(plain.ground, plain.store, "--set", "ipet.generations=7", "--set", "ipet.growth=3")
    assert result.stderr.splitlines()[-1] == f"run: reused {plain.one('run')}"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--generations", "0"), "ipet.generations: input should be greater than or equal to 1"),
        (
            ("--generations", "1", "--set", "ipet.generations=2"),
            "--set ipet.generations=2 and --generations 1 set the same; leave one of them out",
        ),
        (("--set", "ipet.growth=1"), "ipet.growth: input should be greater than or equal to 1.5"),
        (("--set", "ipet.teachers=0"), "ipet.teachers: input should be greater than 0"),
        (("--set", "ipet.lambda=0.5"), "unknown setting 'ipet.lambda'"),
    ],
)
def test_wrong_settings_are_refused_in_one_sentence(plain, tmp_path, arguments, said):
    result = pet_ipet(plain.ground, tmp_path, *arguments, code=2)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert said in line
    assert not find_all(tmp_path, "prepare")


def test_a_label_without_a_labelled_text_is_told(plain, tmp_path):
    result = pet_ipet(plain.ground, tmp_path, "--train-examples", 2, "--dry-run")
    assert "2 labelled texts are too few for 3 labels; a label without one is never drawn for" in result.stderr


def test_a_dry_run_tells_the_schedule_too_and_of_the_pools_share_only_where_it_counts(plain, tmp_path):
    told = pet_ipet(plain.ground, tmp_path, "--generations", 1, "--set", "ipet.growth=1.5", "--dry-run").stderr
    assert told.splitlines() == ["ipet: 12 -> 18 labelled texts, 4 members each"]
