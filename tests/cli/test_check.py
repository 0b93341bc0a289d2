"""`pet check`: what a pattern answers, what is wrong with a card, and which of it is worth an exit code of 1."""

import csv
import random

import numpy as np
import pytest
import torch
from support.rows import FILLERS, LABELS, PATTERNS, Ground, invent_rows, lay_ground, lively_model, pet, write_csv
from support.tiny import wordpiece_tokenizer

from pet.cli.check import rough_size, rough_time
from pet.config.resolve import resolve_settings
from pet.config.schema import ModelSettings
from pet.modeling import loading
from pet.pipeline.context import RunContext
from pet.store.store import Store
from pet.tools.authoring.lint import Check, check
from pet.training.device import open_runtime


@pytest.fixture
def ground(tmp_path, tmp_path_factory) -> Ground:
    """The small task, to be spoiled."""
    return lay_ground(tmp_path / "ground", lively_model(tmp_path_factory.getbasetemp()))


def look(ground: Ground, sample: int = 200, **sections) -> Check:
    """What is found with the ground's own settings."""
    settings = resolve_settings(ground.pipeline, sections)
    return check(RunContext(settings, Store(ground.folder / "none"), open_runtime(settings.runtime)), sample)


def texts_of(found: Check, kind: str) -> list[str]:
    return [f"{one.where}: {one.text}" for one in found.findings if one.kind == kind]


def only_problem(ground: Ground, *words: str, **sections) -> None:
    """The one problem has these words."""
    (problem,) = texts_of(look(ground, **sections), "problem")
    assert all(word in problem for word in words), problem


def with_words(**words) -> dict:
    return {"verbalizers": {"default": {label: words.get(label, [label]) for label in LABELS}}}


# ---- a sound card --------------------------------------------------------------------------------------------------


def test_a_sound_card_has_no_problem_and_its_answers_add_up(ground):
    found = look(ground, sample=30)
    assert found.problems == []
    assert [one.source for one in found.answers] == PATTERNS
    for one in found.answers:
        assert sum(one.given.values()) == found.sampled == 30
        assert 0 <= one.right <= one.known == 30 - 12, "half of the sample, and more as 12 rows alone have no label"


def test_answers_agreement_and_accuracy_are_those_of_the_model_itself(ground):
    """Against transformers' own logits, a text at a time."""
    found = look(ground, sample=1000)
    tokenizer = wordpiece_tokenizer()
    lm = loading.load_masked_lm(ModelSettings(name=str(lively_model(ground.folder.parent.parent)), max_length=28))
    with (ground.folder / "train.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    words = torch.tensor(tokenizer.convert_tokens_to_ids(LABELS))
    answers = []
    for pattern in ("[MASK] news : {headline} {body}", "{headline} [SEP] {body} ( [MASK] )"):
        given = []
        for row in rows:
            first, _, second = pattern.format(**row).partition(" [SEP] ")
            inputs = tokenizer(*filter(None, (first, second)), return_tensors="pt")
            logits = lm(**inputs).logits[inputs["input_ids"] == tokenizer.mask_token_id]
            given.append(LABELS[int(logits[0, words].argmax())])
        answers.append(given)
    gold = [row["label"] for row in rows]
    agreement = float(np.mean([one == other for one, other in zip(*answers, strict=True)]))
    for one, given in zip(found.answers, answers, strict=True):
        assert one.given == {label: given.count(label) for label in LABELS}
        assert one.right == sum(label == name for label, name in zip(gold, given, strict=True))
        assert one.agreement == pytest.approx(agreement)


def test_an_example_is_what_the_model_reads_with_mask_and_cut_marked(ground):
    write_csv(ground.folder / "train.csv", [("tech", "cold", "the a it " * 20), *invent_rows(30, random.Random(1))])
    found = look(ground, sample=31)
    first, second = (one.example for one in found.answers)
    # 28 tokens: [CLS], the mask, `news`, `:`, `cold` and [SEP] leave 22 of 60; the second pattern's frame one more.
    assert first.startswith("[CLS] [MASK] news : cold the a it ")
    assert first.endswith("a it the <38 tokens cut> [SEP]")
    assert second.endswith("<39 tokens cut> ( [MASK] ) [SEP]")
    assert found.answers[0].cut == pytest.approx(1 / 31)
    assert any("3% are cut to fit model.max_length, which is 28" in one for one in texts_of(found, "remark"))


# ---- cards that are wrong ------------------------------------------------------------------------------------------


def test_a_word_of_several_tokens_is_a_problem_named_once_for_all_patterns(ground):
    ground.change_card(**with_words(tech=["tech", "gizmo"], sports=["漢"]))
    problems = texts_of(look(ground), "problem")
    assert len(problems) == 2
    assert "'gizmo' is 5 tokens ['g', '##i', '##z', '##m', '##o']" in problems[1]
    assert "label 'sports': word '漢' is not known" in problems[0]


def test_labels_whose_words_are_the_same_tokens_are_a_problem_and_half_of_it_a_remark(ground):
    ground.change_card(**with_words(tech=["Good"], sports=["good"]))
    only_problem(ground, "labels 'sports' and 'tech'", "are the same tokens")
    ground.change_card(**with_words(tech=["Good"], sports=["good"], business=["gizmo"]))
    assert len(look(ground).problems) == 2, "another label's word hides nothing"
    ground.change_card(**with_words(tech=["Good", "screen"], sports=["good"]))
    found = look(ground)
    assert found.problems == []
    assert any("['good'] of the one is the same token" in one for one in texts_of(found, "remark"))


def test_a_question_asked_twice_is_a_problem_however_it_is_written(ground):
    ground.change_card(patterns=[*PATTERNS, "{mask}  news  :  {headline}   {body}"])
    only_problem(ground, "p2: asks the same as p0")
    other = {"other": {label: [label.upper()] for label in LABELS}}
    verbalizers = with_words()["verbalizers"] | other
    ground.change_card(patterns=[PATTERNS[0], {"pattern": PATTERNS[0], "verbalizer": "other"}], verbalizers=verbalizers)
    only_problem(ground, "p1: asks the same as p0")
    other["other"] = {label: [word] for label, word in zip(LABELS, ["good", "bad", "great"], strict=True)}
    ground.change_card(verbalizers=with_words()["verbalizers"] | other)
    assert look(ground).problems == []


def test_a_pattern_that_leaves_no_room_is_a_problem_and_the_others_are_asked(ground):
    ground.change_card(patterns=[*PATTERNS, "{mask} : {headline} {body} " + "it was all in the news . " * 5])
    found = look(ground)
    assert [one.where for one in found.problems] == ["p2"]
    assert len(found.answers) == 2


def test_texts_that_cannot_be_read_are_a_problem(ground):
    (ground.folder / "train.csv").unlink()
    only_problem(ground, "texts: task 'topics' expects train.csv")


def test_a_label_without_a_text_is_a_problem_and_no_label_at_all_a_remark(ground):
    rows = invent_rows(30, random.Random(0))
    write_csv(ground.folder / "train.csv", [("" if label == "tech" else label, *texts) for label, *texts in rows])
    only_problem(ground, "label 'tech': no labelled text has it")
    write_csv(ground.folder / "train.csv", [("", *texts) for _, *texts in rows])
    found = look(ground)
    assert found.problems == []
    assert all(one.known == 0 for one in found.answers)
    assert any("none has a label" in one for one in texts_of(found, "remark"))


def test_one_label_for_all_texts_in_all_patterns_is_a_problem_in_one_pattern_a_remark(ground):
    """One text over and over is answered alike."""
    write_csv(ground.folder / "train.csv", [(LABELS[n % 3], "cold", "river") for n in range(30)])
    answers = [next(label for label, count in one.given.items() if count) for one in look(ground).answers]
    ground.change_card(patterns=PATTERNS[:1])
    only_problem(ground, f"every pattern gives all 30 texts the label {answers[0]!r}")
    assert look(ground, sample=19).problems == [], "few texts may be alike by chance"


def test_a_label_that_a_pattern_never_gives_is_a_remark(ground):
    found = look(ground)
    for one in found.answers:
        never = [label for label, count in one.given.items() if not count]
        said = [text for text in texts_of(found, "remark") if text.startswith(f"p{one.number}: ")]
        assert bool(never) == bool(said)
        assert all(repr(label) in said[0] for label in never)


def test_texts_in_two_splits_are_remarks(ground):
    rows = invent_rows(60, random.Random(0))
    long = " ".join(FILLERS)
    write_csv(ground.folder / "train.csv", [*rows, ("tech", "cold", long)])
    write_csv(
        ground.folder / "test.csv", [*invent_rows(20, random.Random(5)), ("tech", "Cold", long), ("tech", "a", long)]
    )
    remarks = texts_of(look(ground, data={"train_examples": 6, "pool_per_label": 100}), "remark")
    assert "texts: 1 train texts of the source stand in its test set too" in remarks
    assert any("2 test texts nearly repeat a" in one for one in remarks)


def test_sizes_that_cannot_be_drawn_are_a_remark_and_leave_no_estimate(ground):
    found = look(ground, data={"train_examples": 600})
    assert found.problems == []
    assert found.estimate is None
    assert any("a run with these sizes would stop: 600 training examples" in one for one in texts_of(found, "remark"))


# ---- the estimate --------------------------------------------------------------------------------------------------


def test_an_estimate_counts_members_and_grows_with_steps(ground):
    found = look(ground).estimate
    assert found is not None
    assert found.members == 4
    assert found.sizes == {"train": 12, "pool": 30, "test": 20}
    assert found.seconds > 0
    assert found.peak_bytes > 2**20


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (1, "10 seconds"),
        (94, "90 seconds"),
        (130, "2 minutes"),
        (1234, "21 minutes"),
        (7300, "2 hours"),
        (9e4, "25 hours"),
    ],
)
def test_a_time_is_said_as_coarsely_as_it_is_known(seconds, said):
    assert rough_time(seconds) == said


def test_a_size_is_rounded_up_to_half_a_gib():
    assert [rough_size(one) for one in (1, 2**30, 2**30 + 1)] == ["0.5 GiB", "1 GiB", "1.5 GiB"]


# ---- the command ---------------------------------------------------------------------------------------------------


def run_check(ground: Ground, *more: object, code: int = 0):
    model = lively_model(ground.folder.parent.parent)
    return pet("check", ground.card, "--model", model, "--set", "model.max_length=28", *more, code=code)


def test_the_command_shows_answers_estimate_and_remarks_and_writes_nothing(ground, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output = run_check(ground, "--train-examples", 6, "--sample", 25).output
    for said in (
        f"p0  {PATTERNS[0]}",
        "[MASK] news :",
        "untuned: ",
        "accuracy ",
        "looks at the labels of",
        "estimate: ",
        "topics on ",
        "0 problems",
        "25 texts sampled",
    ):
        assert said in output, output
    assert [one.name for one in tmp_path.iterdir()] == ["ground"]


def test_problems_are_exit_code_1_and_what_cannot_be_loaded_is_2(ground):
    ground.change_card(**with_words(tech=["gizmo"]))
    assert "1 problem, " in run_check(ground, code=1).output
    assert "is not a masked LM" not in pet("check", ground.card, "--model", ground.folder / "x", code=2).output
    assert "did you mean 'agnews'?" in pet("check", "agnws", code=2).stderr
    assert "--seed 1 set the same" in pet("check", ground.card, "--seed", 1, "--set", "seed=2", code=2).stderr
    ground.change_card(patterns=[PATTERNS[0], PATTERNS[0]])
    assert "stands twice" in run_check(ground, code=2).stderr


def test_the_seed_decides_the_sample(ground):
    one, again, other = (
        run_check(ground, "--sample", 8, "--seed", seed).output.split("estimate")[0] for seed in (1, 1, 2)
    )
    assert one == again
    assert one != other
