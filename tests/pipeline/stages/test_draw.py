"""draw: who labels the training sets of generation 1 where generation 0 is untuned, beside a few lines that do as the
published code does; what is said of it. Training sets themselves are in `test_ipet`."""

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.rows import find_all, find_one, lay_ground, lively_model, pet, read_json

from pet.algorithms.ensemble import soften
from pet.config.resolve import resolve_settings
from pet.pipeline.context import RunContext
from pet.pipeline.stages import draw, finetune
from pet.pipeline.stages.finetune import Members, Plan
from pet.store.store import Store
from pet.tasks.texts import read_texts
from pet.training.device import open_runtime


def plan(card, **sections):
    """A walk without labelled texts, and its generation 0: the patterns, untuned."""
    settings = resolve_settings(None, {"task": {"name": card}, "data": {"train_examples": 0}, **sections})
    ctx = RunContext(settings, Store(Path("nowhere")), open_runtime(settings.runtime, None))
    plans = [Plan(pvp, None) for pvp in ctx.pvps]
    return ctx, Members({}, plans, [SimpleNamespace(identity=one.label) for one in plans])


def drawn_by(ctx, before, seed):
    """Who labels for each member of generation 1."""
    ctx = replace(ctx, settings=ctx.settings.model_copy(update={"seed": seed}))
    later = [Plan(*one, generation=1) for one in finetune.members_of(ctx)]
    return {one.label: [plan.pvp.number for plan in draw.teachers_of(ctx, one, before).plans] for one in later}


def published(patterns, repetitions, share, rng):
    """As the published code draws (modeling.py, generate_ipet_train_sets): every pattern has a folder of scores for
    each repetition; of all folders but the member's own, a share by lot, without putting back."""
    folders = [(pattern, number) for pattern in range(patterns) for number in range(repetitions)]
    found = []
    for own in folders:
        others = [one for one in folders if one != own]
        found.append([pattern for pattern, _ in rng.sample(others, k=round(len(others) * share))])
    return found


@pytest.mark.parametrize(
    ("card", "patterns", "count", "different"), [("agnews", 6, 4, 3.33), ("yelp-full", 4, 3, 2.47)]
)
def test_untuned_patterns_are_drawn_as_often_as_their_copies_in_the_published_code(card, patterns, count, different):
    ctx, before = plan(card)
    ours = [(label, one) for seed in range(120) for label, one in drawn_by(ctx, before, seed).items()]
    rng = random.Random(0)
    theirs = [one for _ in range(120) for one in published(patterns, 3, 0.25, rng)]
    assert {len(one) for _, one in ours} == {len(one) for one in theirs} == {count}
    shapes = [
        Counter(tuple(sorted(Counter(one).values())) for one in each) for each in ([one for _, one in ours], theirs)
    ]
    assert set(shapes[0]) == set(shapes[1])
    for shape in shapes[1]:
        expected = shapes[1][shape] / len(theirs)
        spread = np.sqrt(2 * expected * (1 - expected) / len(theirs))
        assert shapes[0][shape] / len(ours) == pytest.approx(expected, abs=5 * spread)
    assert np.mean([len(set(one)) for _, one in ours]) == pytest.approx(different, abs=0.05)
    own = np.mean([int(label[4]) in one for label, one in ours])  # g1-pK-rN: its own pattern's other copies may label
    assert own == pytest.approx(np.mean([number // 3 % patterns in one for number, one in enumerate(theirs)]), abs=0.06)


def test_a_pattern_is_never_drawn_more_often_than_it_has_copies_nor_its_own_for_the_member_itself():
    ctx, before = plan("yelp-full", ipet={"teachers": 0.99})
    for label, found in drawn_by(ctx, before, 0).items():
        counts = Counter(found)
        assert sum(counts.values()) == 11
        assert counts == {number: 2 if number == int(label[4]) else 3 for number in range(4)}


@pytest.mark.parametrize("sections", [{"ipet": {"teachers": 1}}, {"finetune": {"repetitions": 1}}])
def test_where_all_label_or_there_is_one_repetition_each_other_pattern_counts_once_as_before(sections):
    """The choice of old, in its own words."""
    ctx, before = plan("agnews", **sections)
    for seed in range(5):
        for label, found in drawn_by(ctx, before, seed).items():
            pattern, repetition = int(label[4]), int(label[7])
            others = sorted(
                (one for one in before.plans if one.pvp.number != pattern), key=lambda one: one.pvp.pattern.source
            )
            (own,) = (one for one in before.plans if one.pvp.number == pattern)
            rng = np.random.default_rng(draw.derive_seed("teachers", seed, 1, own.pvp.pattern.source, repetition))
            count = max(1, round(ctx.settings.ipet.teachers * len(others)))
            expected = [others[place].pvp.number for place in sorted(rng.choice(len(others), count, replace=False))]
            assert found == expected


def test_one_pattern_alone_is_labelled_for_by_its_other_copies():
    ctx, before = plan("agnews", finetune={"patterns": [2]})
    assert set(map(tuple, drawn_by(ctx, before, 0).values())) == {(2,)}


# ---- what comes of it ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def zero_shot(tmp_path_factory):
    """A generation of a walk without labelled texts where 4 of 5 others label, so that one pattern comes twice."""
    folder = tmp_path_factory.mktemp("zero")
    ground = lay_ground(
        folder / "ground",
        lively_model(tmp_path_factory.getbasetemp()),
        data={"train_examples": 0},
        finetune={"repetitions": 3, "steps": 1},
        ipet={"teachers": 0.8, "generations": 1},
    )
    return folder / "store", pet("ipet", ground.pipeline, "--store", folder / "store")


def test_a_pattern_drawn_twice_is_named_once_with_how_often_and_counts_twice(zero_shot):
    store, result = zero_shot
    folders = find_all(store, "draw", "g1-")
    assert len(folders) == 6
    pool = read_texts(find_one(store, "prepare") / "pool.parquet")
    for folder in folders:
        report = read_json(folder / "drawn.json")
        times = {one["member"]: one.get("times", 1) for one in report["teachers"]}
        assert sum(times.values()) == 4
        assert {one["member"]: one["weight"] for one in report["teachers"]} == {
            name: pytest.approx(count / 4) for name, count in times.items()
        }
        scores = sum(
            one["weight"] * load_file(find_one(store, "finetune", one["member"]) / "scores.safetensors")["pool"]
            for one in report["teachers"]
        )
        texts, best = read_texts(folder / "train.parquet"), soften(scores)
        for number, (name, found) in enumerate(report["labels"].items()):
            assert found["predicted"] == (best.argmax(1) == number).sum(), name
        assert set(texts.ids) <= set(pool.ids)
    said = [line for line in result.stderr.splitlines() if line.startswith("draw g1-")]
    assert all("x) gives" in line or "x), " in line or "x) give" in line for line in said), "4 of 2 patterns: one twice"
    one = read_json(folders[0] / "drawn.json")["teachers"]
    named = [each["member"] + (f" ({each['times']}x)" if "times" in each else "") for each in one]
    assert any(line.endswith(f": {', '.join(named)} give the labels") for line in said), said
