"""What members are called in seeds, identities and orders: who is apart, and that nobody was renamed. Plans alone; no
model and no text is read."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from pet.config.resolve import resolve_settings
from pet.errors import TaskError
from pet.pipeline.context import RunContext
from pet.pipeline.graph import build_graph
from pet.pipeline.stages import draw, finetune
from pet.pipeline.stages.finetune import Members, Plan
from pet.store.store import Artifact, Store
from pet.tasks.card import load_card
from pet.tasks.patterns import PVP, parse_pattern
from pet.tools.authoring.verbalize import Proposal, card_with
from pet.tools.export.model_card import pattern_lines
from pet.training.device import open_runtime

MACHINE = {"device": "cpu", "precision": "fp32"}
WALKS = {
    "ten labels": {"data": {"train_examples": 10}},
    "recipe paper": {"recipe": "paper", "data": {"train_examples": 100}, "seed": 2},
    "adapters": {"data": {"train_examples": 10}, "finetune": {"method": "lora", "repetitions": 2}},
    "no labels, all label": {"data": {"train_examples": 0}, "ipet": {"teachers": 1}},
    "no labels, one repetition": {"data": {"train_examples": 0}, "finetune": {"repetitions": 1}},
}


def plan(card, **sections):
    """A walk that needs no text and no model to be planned."""
    settings = resolve_settings(None, {"task": {"name": str(card)}, "runtime": MACHINE, **sections})
    ctx = RunContext(settings, Store(Path("nowhere")), open_runtime(settings.runtime, None))
    ctx.task.digests = {"train": "train", "test": "test"}
    ctx.fingerprints[settings.model.name] = "weights"
    return ctx


def short_digest(content):
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def plans_of(ctx):
    return [Plan(*one, generation) for generation in range(3) for one in finetune.members_of(ctx)]


def seeds_of(ctx):
    return [
        [finetune.member_seed(ctx, one), draw.stream(ctx, "teachers", one), draw.stream(ctx, "draw", one)]
        for one in plans_of(ctx)
    ]


def steps_of(ctx, *stages):
    nodes = build_graph(ctx, 2).nodes
    return [[one.stage.step, one.about, one.identity] for one in nodes if one.stage.step in stages]


STAGES = ("prepare", "adapt", "finetune", "label", "draw")


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("agnews", "a5a04446e95d3101"),
        ("bbc", "8c458085408c2347"),
        ("yahoo", "9e8d36e8d873703f"),
        ("yelp-full", "6068f128008266f7"),
        ("yelp-polarity", "7801b2bff0e91823"),
    ],
)
def test_where_no_pattern_is_repeated_identities_seeds_and_streams_are_what_they_always_were(card, expected):
    """Digests made at commit 8ea40e8."""
    works = [plan(card, **sections) for sections in WALKS.values()]
    assert short_digest([[steps_of(ctx, *STAGES), seeds_of(ctx)] for ctx in works]) == expected


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("mnli", "05edd2f9ef50a43b"),
        ("mnli-mm", "f09f6382a0a9fbf1"),
        ("xstance", "6b10d9ea77cdb2d4"),
        ("xstance-de", "224416eeb5eebc50"),
        ("xstance-fr", "d0825f07804a2059"),
    ],
)
def test_an_untuned_pattern_has_nothing_random_and_keeps_its_identity(card, expected):
    """Digests made at commit 8ea40e8."""
    steps = steps_of(plan(card, data={"train_examples": 10}), "prepare", "finetune")
    assert short_digest([one for one in steps if one[0] == "prepare" or "-untuned" in one[1]]) == expected


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("recipe", ["fixed", "paper"])
@pytest.mark.parametrize(
    ("card", "members"), [("mnli", 12), ("mnli-mm", 12), ("xstance", 18), ("xstance-de", 12), ("xstance-fr", 12)]
)
def test_every_member_has_a_training_set_and_a_stream_of_its_own(card, members, recipe, seed):
    ctx = plan(card, data={"train_examples": 100}, recipe=recipe, seed=seed)
    sets = Counter(name.split("-")[0] for stage, name, _ in steps_of(ctx, "draw") if stage == "draw")
    assert sets == {"g1": members, "g2": members}
    assert len({identity for *_, identity in steps_of(ctx, "draw")}) == 2 * members
    assert len({identity for *_, identity in steps_of(ctx, "finetune")}) == 3 * members + len(ctx.pvps)
    for column in zip(*seeds_of(ctx), strict=True):
        assert len(set(column)) == 3 * members


def test_the_training_sets_of_one_pattern_with_other_words_are_labelled_by_others_too():
    """Of two lists that differ in one place, one stream names mostly the same: not any more."""
    ctx = plan("mnli", data={"train_examples": 100})
    plans = [Plan(*one) for one in finetune.members_of(ctx)]
    before = Members({}, plans, [Artifact(Path(), {"identity": one.label}) for one in plans])
    same = 0
    for first, second in ((one, two) for one in plans for two in plans if one.pvp.number + 2 == two.pvp.number):
        if first.repetition == second.repetition:
            asked = [{one.label for one in draw.teachers_of(ctx, each, before).plans} for each in (first, second)]
            same += asked[0] == asked[1]
    assert same < 3, "of 6"


# ---- cards of one's own --------------------------------------------------------------------------------------------

TEXTS = ("{mask} : {text}", "{text} ( {mask} )")
WORDS = {"good": {"yes": ["good"], "no": ["bad"]}, "fine": {"yes": ["fine", "nice"], "no": ["awful"]}}


def write_card(folder, patterns, verbalizers=WORDS):
    card = {
        "name": "own",
        "title": "own",
        "fields": ["text"],
        "labels": ["yes", "no"],
        "patterns": [{"pattern": text, "verbalizer": words} for text, words in patterns],
        "verbalizers": verbalizers,
        "files": {"format": "csv", "train": "train.csv"},
    }
    folder.mkdir(exist_ok=True)
    (folder / "task.yaml").write_text(yaml.safe_dump(card, sort_keys=False))
    return folder / "task.yaml"


def test_only_the_repeated_pattern_of_a_card_has_its_words_in_its_name(tmp_path):
    card = write_card(tmp_path, [(TEXTS[0], "good"), (TEXTS[1], "good"), (TEXTS[0], "fine")])
    first, other, second = load_card(str(card))[0].pvps()
    assert other.name == TEXTS[1]
    assert len({TEXTS[0], first.name, second.name}) == 3


def test_a_name_does_not_depend_on_where_the_pattern_stands_or_what_its_words_are_called(tmp_path):
    one = load_card(str(write_card(tmp_path / "a", [(TEXTS[0], "good"), (TEXTS[0], "fine")])))[0].pvps()
    renamed = {"x": WORDS["fine"], "y": WORDS["good"]}
    two = load_card(str(write_card(tmp_path / "b", [(TEXTS[0], "x"), (TEXTS[0], "y")], renamed)))[0].pvps()
    assert [each.name for each in one] == [each.name for each in reversed(two)]


def test_what_a_member_is_does_not_depend_on_which_others_are_run(tmp_path):
    card = write_card(tmp_path, [(TEXTS[0], "good"), (TEXTS[1], "good"), (TEXTS[0], "fine")])
    every, alone = (plan(card, data={"train_examples": 4}, finetune=one) for one in ({}, {"patterns": [2]}))
    found = [{one.identity for one in build_graph(ctx).generations[0].members.tuned} for ctx in (every, alone)]
    assert len(found[1]) == 3 and found[1] < found[0]
    assert set(map(tuple, seeds_of(alone))) < set(map(tuple, seeds_of(every)))


@pytest.mark.parametrize("other", [WORDS["fine"], {"yes": ["nice", "fine"], "no": ["awful"]}])
def test_one_pattern_twice_with_the_same_words_is_refused_whatever_they_are_called(tmp_path, other):
    card = write_card(tmp_path, [(TEXTS[0], "fine"), (TEXTS[0], "same")], WORDS | {"same": other})
    with pytest.raises(TaskError, match="stands twice with the same words; keep one of them"):
        load_card(str(card))


def test_found_words_make_one_pattern_of_those_that_differed_in_their_words_alone(tmp_path):
    card, _ = load_card(str(write_card(tmp_path, [(TEXTS[0], "good"), (TEXTS[1], "good"), (TEXTS[0], "fine")])))
    found = {"yes": [("well", 1.0)], "no": [("ill", 1.0)]}
    values, name = card_with(card, Proposal(found, (0, 1, 2), 4, ()))
    assert values["patterns"] == [{"pattern": text, "verbalizer": name} for text in TEXTS]
    (tmp_path / "new.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    assert len(load_card(str(tmp_path / "new.yaml"))[0].pvps()) == 2
    kept, _ = card_with(card, Proposal(found, (0,), 4, ()))
    assert len(kept["patterns"]) == 3


def test_a_model_card_names_all_sets_of_words_of_a_pattern():
    def member(words):
        settings = {"pattern": TEXTS[0], "words": words}
        return SimpleNamespace(manifest={"settings": settings})

    run = SimpleNamespace(members=[member(WORDS["good"]), member(WORDS["fine"])])
    text = "\n".join(pattern_lines(run))
    assert text.count(TEXTS[0]) == 2
    assert all(f"`{word}`" in text for word in ("good", "bad", "fine", "nice", "awful"))


def test_a_pair_without_a_card_is_named_by_its_pattern():
    assert PVP(0, parse_pattern(TEXTS[0], ["text"]), {"yes": ("good",)}).name == TEXTS[0]
