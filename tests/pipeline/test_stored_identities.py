"""The identity of every stage for fixed settings, texts and model, as users' stores have them.

`identities.json` holds them. Who changes one makes every artifact of that stage anew, in every store: raise `VERSION`
where that is meant, and only then write the new identity down. Keys alone; no model and no text is read."""

import json
from pathlib import Path
from typing import Annotated

import pytest
import yaml
from pydantic import create_model

from pet.config.identity import InIdentity
from pet.config.resolve import resolve_pretraining, resolve_settings
from pet.config.schema import PretrainSettings, RuntimeSettings
from pet.pipeline import publishing
from pet.pipeline.context import RunContext
from pet.pipeline.graph import build_graph
from pet.pipeline.stages import adapt, pretrain, tokenize_corpus
from pet.store.store import Artifact, Store
from pet.tasks.annotations import GivenLabels
from pet.training.device import open_runtime

STORED = json.loads(Path(__file__).with_name("identities.json").read_text(encoding="utf-8"))

CARD = {
    "name": "own",
    "title": "own",
    "fields": ["text"],
    "labels": ["yes", "no"],
    "patterns": [
        {"pattern": "{mask} : {text}", "verbalizer": "good"},
        {"pattern": "{text} ( {mask} )", "verbalizer": "good"},
        {"pattern": "{mask} : {text}", "verbalizer": "fine"},
    ],
    "verbalizers": {"good": {"yes": ["good"], "no": ["bad"]}, "fine": {"yes": ["fine", "nice"], "no": ["awful"]}},
    "files": {"format": "csv", "train": "train.csv", "test": "test.csv"},
}

TRAINING = {
    "steps": 11,
    "accumulation": 2,
    "learning_rate": 2e-5,
    "warmup_steps": 3,
    "weight_decay": 0.02,
    "adam_epsilon": 1e-7,
    "max_grad_norm": 0.5,
    "frozen_layers": 1,
}
MLM = {
    **TRAINING,
    "method": "lora",
    "lora": {"rank": 3, "alpha": 5.0, "learning_rate": 3e-3, "targets": ["query"]},
    "frozen_head": True,
    "pack": True,
    "length": 32,
    "blocks": 5,
    "last_length": 64,
    "last_share": 0.2,
    "mask_probability": 0.2,
    "logit_adjustment": 0.3,
    "decay_to": "start",
    "dropout": 0.1,
    "held_out_blocks": 7,
    "minutes": 2.5,
}
EVERY_SETTING = {
    "seed": 3,
    "model": {"name": "one", "revision": "v1", "max_length": 64, "trust_remote_code": True},
    "data": {"train_examples": 6, "pool_per_label": 20, "test": 9, "draw": "first", "train_files": ["more.csv"]},
    "adapt": {**MLM, "enabled": True, "held_out": 0.1},
    "finetune": {
        **TRAINING,
        "patterns": [2, 0],
        "repetitions": 2,
        "labelled_batch": 3,
        "unlabelled_batch": 5,
        "alpha": 0.01,
        "mask_probability": 0.3,
        "mask_targets": "any",
        "truncation": "last-part",
        "lora": {"rank": 4},
    },
    "label": {"weighting": "uniform", "shares": "even"},
    "ipet": {
        "generations": 2,
        "growth": 3.0,
        "teachers": 0.5,
        "surest": 0.9,
        "pool_share": 0.4,
        "first_examples": 8,
        "first_candidates": 50,
        "steps": 13,
    },
    "distill": {**TRAINING, "model": "other", "batch": 6, "temperature": 1.5},
    "baseline": {**TRAINING, "model": "third", "batch": 7, "probe_c": 2.0},
    "runtime": {"keep_members": False, "capture": False, "checkpoint_minutes": 1.0},
}
RUNS = {
    "defaults": {},
    "every setting": EVERY_SETTING,
    "adapters": {**EVERY_SETTING, "finetune": {**EVERY_SETTING["finetune"], "method": "lora"}},
    "recipe paper": {"recipe": "paper", "seed": 1, "data": {"train_examples": 100}},
    "no labels": {"data": {"train_examples": 0}},
    "a small student": {"distill": {"model": "other"}, "baseline": {"model": "other", "steps": 5}},
}
CORPORA = {
    "defaults": {"corpus": {"files": ["corpus.txt"]}},
    "every setting": {
        "seed": 3,
        "model": {"name": "one", "revision": "v1", "max_length": 64, "trust_remote_code": True},
        "corpus": {"files": ["corpus.txt"], "task": "own", "held_out": 0.2},
        "pretrain": MLM,
    },
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Names of files are in settings, and so in a run's identity: here they have no folder before them."""
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text(yaml.safe_dump(CARD, sort_keys=False))
    Path("corpus.txt").write_text("the first document\nthe second one\n")
    return tmp_path


def machine(settings):
    """The runtime of these settings, on any machine the same."""
    return open_runtime(settings.runtime, None)


def context_of(sections):
    """A run that needs no text and no model to be planned."""
    fixed = {"task": {"name": "own.yaml"}}
    on_cpu = {"runtime": {**sections.get("runtime", {}), "device": "cpu", "precision": "fp32"}}
    settings = resolve_settings(None, {**sections, **fixed, **on_cpu})
    ctx = RunContext(settings, Store(Path("nowhere")), machine(settings))
    ctx.task.digests = {"train": "train", "test": "test"}
    if settings.data.train_files:
        ctx.__dict__["given_labels"] = GivenLabels({"a text": "yes"})
    ctx.fingerprints.update({name: f"weights of {name}" for name in (settings.model.name, "other", "third")})
    return ctx


def identities_of_a_run(sections, generations):
    """What is made -> its identity, the run itself included."""
    ctx = context_of(sections)
    *nodes, run = build_graph(ctx, generations).nodes
    found = {f"{node.stage.step}: {node.about}": node.identity for node in nodes} | {"run": run.identity}
    if ctx.settings.adapt.enabled:
        keys = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(publishing, "make", lambda store, runtime, key, *_: keys.append(key))
            adapt.make_corpus(ctx, nodes[0])
        found |= {f"{key.stage}: the pool": key.identity for key in keys}
    return found


def identities_of_a_pretraining(sections):
    on_cpu = {"runtime": {"device": "cpu", "precision": "fp32"}}
    settings = resolve_pretraining(None, {**sections, **on_cpu})
    corpus = tokenize_corpus.key(settings, "weights", ["a text of the task"] if settings.corpus.task else [])
    made = Artifact(Path(), {"identity": corpus.identity})
    trained = pretrain.key(settings, "weights", made, machine(settings))
    return {"corpus": corpus.identity, "pretrain": trained.identity}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("method", ["pet", "ipet"])
def test_every_artifact_of_a_run_has_the_identity_that_stores_know_it_by(name, method):
    assert identities_of_a_run(RUNS[name], 2 if method == "ipet" else 0) == STORED[method][name]


@pytest.mark.parametrize("name", CORPORA)
def test_a_corpus_and_what_is_trained_on_it_have_the_identities_that_stores_know_them_by(name):
    assert identities_of_a_pretraining(CORPORA[name]) == STORED["pretrain"][name]


# ---- a setting that is added later ---------------------------------------------------------------------------------

READERS = {
    "model": "finetune",
    "data": "prepare",
    "adapt": "adapt",
    "finetune": "finetune",
    "label": "label",
    "ipet": "draw",
    "distill": "distill",
    "baseline": "evaluate: supervised baselines",
}
"""Section -> the first artifact that reads it."""


def with_a_later_setting(sections, section, value):
    """Identities where a section has one more field, as a later version of pet would have it."""
    ctx = context_of(sections)
    own = getattr(ctx.settings, section)
    marked = (Annotated[int, InIdentity.UNLESS_DEFAULT], 7)
    extended = create_model("Later", __base__=type(own), added=marked)
    given = {name: getattr(own, name) for name in type(own).model_fields}
    later = ctx.settings.model_copy(update={section: extended(**given, added=value)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "resolve_settings", lambda *_: later)
        return identities_of_a_run(sections, 2)


@pytest.mark.parametrize("section", READERS)
def test_a_setting_that_is_added_later_changes_no_identity_until_it_is_set(section):
    assert with_a_later_setting(EVERY_SETTING, section, 7) == STORED["ipet"]["every setting"]
    changed = with_a_later_setting(EVERY_SETTING, section, 8)
    differing = {name for name, identity in changed.items() if STORED["ipet"]["every setting"].get(name) != identity}
    assert any(name.startswith(READERS[section]) for name in differing)
    assert "run" in differing


def test_a_setting_of_pretraining_that_is_added_later_changes_no_identity_until_it_is_set(monkeypatch):
    class Later(PretrainSettings):
        added: Annotated[int, InIdentity.UNLESS_DEFAULT] = 7

    settings = resolve_pretraining(None, CORPORA["defaults"])
    for value, differing in ((7, set()), (8, {"pretrain"})):
        later = settings.model_copy(update={"pretrain": Later(added=value)})
        with monkeypatch.context() as patch:
            fixed = later.model_copy(update={"runtime": RuntimeSettings(device="cpu", precision="fp32")})
            patch.setitem(globals(), "resolve_pretraining", lambda *_, fixed=fixed: fixed)
            found = identities_of_a_pretraining(CORPORA["defaults"])
        assert {name for name in found if found[name] != STORED["pretrain"]["defaults"][name]} == differing
