"""The words that `pet init` and `pet verbalize` propose, for models and texts that never change.

`proposed_words.json` holds them: they are part of users' cards, and another way to compute them must find the same."""

import json
from pathlib import Path

import numpy as np
import pytest
from support.rows import lay_ground, open_context
from support.tiny import KIND_OF, TOKENIZERS, WORDS, tiny_model

from pet.config.schema import ModelSettings, RuntimeSettings
from pet.tasks.patterns import parse_pattern
from pet.tasks.texts import Texts
from pet.tools.authoring import label_words
from pet.tools.authoring.label_words import propose_words
from pet.tools.authoring.verbalize import propose
from pet.training.device import open_runtime

STORED = json.loads(Path(__file__).with_name("proposed_words.json").read_text(encoding="utf-8"))

MACHINE = {"device": "cpu", "precision": "fp32"}
FAMILIES = ("bert", "roberta", "xlm-roberta", "modernbert", "electra")
"""Of each kind of tokenizer one, one without a bias at the head, one whose head pet does not take apart."""

NAMES = {
    "numbers": ["1", "2", "3"],
    "codes": ["L1", "goal_x", "L3"],
    "names and numbers": ["sports", "3", "not sports", "B"],
    "several words": ["pc hardware", "ibm systems", "mac stuff"],
}
"""What labels are called; all but two of these names are no words of the models."""

SHAPES = {"no labels": [0], "as many of each": [6], "not as many": [9, 2, 5], "one label without": [8, 0]}
"""Labelled texts of each label, in turn."""


def save(folder, family, seed=3):
    """A folder with a random model whose answers differ from text to text, and not by rounding."""
    tokenizer = TOKENIZERS[KIND_OF.get(family, "wordpiece")]()
    tiny_model(family, tokenizer, seed, initializer_range=0.3).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def invented(labels, sizes):
    """Texts of each label, with a word of its own in most of them, and some without a label."""
    rng, rows = np.random.default_rng(5), []
    for number, label in enumerate(labels):
        own = WORDS[7 * number : 7 * number + 7]
        for _ in range(sizes[number % len(sizes)]):
            rows.append((label, " ".join([*rng.choice(WORDS, 3), *rng.choice(own, 2)])))
    rows += [(None, " ".join(rng.choice(WORDS, 5))) for _ in range(4)]
    order = rng.permutation(len(rows))
    return Texts(
        [str(row) for row in order], {"text": [rows[row][1] for row in order]}, [rows[row][0] for row in order]
    )


def of_init(model, names, sizes):
    """The words of each label."""
    labels = NAMES[names]
    patterns = [parse_pattern(one, ["text"]) for one in ("{text} || it was {mask} .", "{mask} news : {text}")]
    runtime = open_runtime(RuntimeSettings(**MACHINE), None)
    settings = ModelSettings(name=str(model), max_length=48)
    found = propose_words(labels, patterns, invented(labels, SHAPES[sizes]), settings, runtime)
    return " | ".join(" ".join(one.words) for one in found.words.values())


def of_verbalize(folder, model, count, patterns):
    """The words of each label."""
    ctx = open_context(lay_ground(folder, model), folder / "store", finetune={"patterns": patterns}, runtime=MACHINE)
    return " | ".join(" ".join(words) for words in propose(ctx, count).verbalizer.values())


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory):
    """A random model, and its family."""
    return save(tmp_path_factory.mktemp("model"), request.param), request.param


@pytest.mark.parametrize("candidates", [200, 15])
def test_init_proposes_the_words_that_it_always_did(model, candidates, monkeypatch):
    monkeypatch.setattr(label_words, "CANDIDATES", candidates)
    found = {f"{names}, {sizes}": of_init(model[0], names, sizes) for names in NAMES for sizes in SHAPES}
    assert found == STORED["init"][f"{model[1]}, {candidates} candidates"]


@pytest.mark.parametrize("patterns", [[0], [0, 1]])
def test_verbalize_proposes_the_words_that_it_always_did(model, patterns, tmp_path):
    assert of_verbalize(tmp_path, model[0], 4, patterns) == STORED["verbalize"][f"{model[1]}, {len(patterns)} patterns"]
