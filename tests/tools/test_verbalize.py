"""`pet verbalize`: the words it finds are those the model expects at the mask, and its card can be used."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from support.rows import (
    LABELS,
    PATTERNS,
    TOPICS,
    Ground,
    files_of,
    lay_ground,
    lively_model,
    open_context,
    pet,
    pet_run,
)
from support.tiny import TOKENIZERS, WORDS

from pet.algorithms.petal import Tally, words_of_labels
from pet.modeling import loading
from pet.modeling.tokenization import PromptTokenizer, whole_words
from pet.pipeline.stages import prepare
from pet.tasks.card import load_card
from pet.tools.authoring.verbalize import count_words, propose


@pytest.fixture
def ground(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return lay_ground(tmp_path / "ground", lively_model(tmp_path_factory.getbasetemp()))


def verbalize(ground: Ground, *arguments: object, code: int = 0):
    model = yaml.safe_load(Path(ground.pipeline).read_text())["model"]["name"]
    words = ("verbalize", ground.card, "--model", model, "--train-examples", 12, *arguments)
    return pet(*words, "--set", "model.max_length=28", "--set", "data.pool_per_label=10", code=code)


# ---- words ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_whole_words_are_those_of_letters_that_are_one_token_where_a_word_begins(kind):
    prompt_tokenizer = PromptTokenizer(TOKENIZERS[kind](), kind)
    words, ids = whole_words(prompt_tokenizer, [None])
    lower = {word.lower() for word in words}
    assert lower >= set(WORDS) - {"a"}
    if kind != "byte-bpe":  # there the beginnings of words that merges lead over are words like any other
        assert lower == set(WORDS) - {"a"}, "no letters, no punctuation, no parts of words"
    assert all(word.isalpha() and len(word) > 1 for word in words)
    assert len(set(words)) == len(words) == len(ids[None])
    for word, token in zip(words, ids[None], strict=True):
        assert prompt_tokenizer.word_id(word, None) == token


def test_words_are_spelled_as_they_stand_at_every_mask():
    """Glued to a bracket, byte-level BPE has one token without a space for `it` only."""
    prompt_tokenizer = PromptTokenizer(TOKENIZERS["byte-bpe"](), "byte-bpe")
    words, ids = whole_words(prompt_tokenizer, [None, "("])
    assert words == ["it"]
    assert ids[None] != ids["("]


def test_what_is_counted_is_what_the_model_says_of_whole_rows_one_by_one(ground, tmp_path):
    """Against transformers' own logits over the whole vocabulary, the pattern filled in and tokenised as one text."""
    ctx = open_context(ground, tmp_path / "store", finetune={"patterns": [0]}, label={})
    train = prepare.draw_splits(ctx)[0].train
    words, tally = count_words(ctx, train)
    lm, tokenizer = loading.load_masked_lm(ctx.settings.model).eval(), ctx.prompt_tokenizer.tokenizer
    known = tokenizer.convert_tokens_to_ids(words)
    expected = Tally.empty(len(LABELS), len(words))
    for row in range(len(train)):
        texts = {name: column[row] for name, column in train.fields.items()}
        text = ctx.pvps[0].pattern.fill(texts, tokenizer.mask_token)
        inputs = tokenizer(text, return_tensors="pt")
        place = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero().item()
        with torch.no_grad():
            log_p = lm(**inputs).logits[0, place].log_softmax(-1)[known]
        expected.add(log_p[None].numpy(), np.array([LABELS.index(train.labels[row])]))
    np.testing.assert_allclose(tally.said, expected.said, rtol=1e-4)
    np.testing.assert_allclose(tally.unsaid, expected.unsaid, rtol=1e-3, atol=1e-4)
    assert tally.rows.tolist() == [4, 4, 4]
    found, _ = words_of_labels(expected, 2)
    assert [[word for word, _ in one] for one in propose(ctx, 2).words.values()] == [
        [words[word] for word in one] for one in found
    ]


def test_all_patterns_are_counted_together_and_texts_in_chunks(ground, tmp_path, monkeypatch):
    tallies = []
    for chunk, patterns in ((256, [0, 1]), (5, [0, 1]), (256, [0]), (256, [1])):
        monkeypatch.setattr("pet.tools.authoring.verbalize.CHUNK", chunk)
        ctx = open_context(ground, tmp_path / "store", finetune={"patterns": patterns})
        tallies.append(count_words(ctx, prepare.draw_splits(ctx)[0].train)[1])
    both, parts, first, second = tallies
    np.testing.assert_allclose(parts.said, both.said, rtol=1e-5)
    np.testing.assert_allclose(first.said + second.said, both.said, rtol=1e-5)
    assert both.rows.tolist() == [8, 8, 8]


# ---- the command ---------------------------------------------------------------------------------------------------


def test_a_line_for_each_label_and_yaml_to_paste(ground, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = files_of(tmp_path)
    lines = verbalize(ground, "--words", 2).stdout.splitlines()
    assert [line.split()[0] for line in lines[: len(LABELS)]] == LABELS
    pasted = yaml.safe_load("\n".join(lines[len(LABELS) :]))["verbalizers"]["auto"]
    for label, line in zip(LABELS, lines, strict=False):
        assert line.split()[1::2] == pasted[label]
        assert len(pasted[label]) == 2
    assert files_of(tmp_path) == before, "nothing is written, neither a card nor a store"


def test_the_card_keeps_what_it_had_and_can_be_run(ground, tmp_path):
    new = ground.folder / "auto.yaml"
    said = verbalize(ground, "--output", new).stdout
    assert f"pet run quick --task {new} --train-examples 12 " in said and "--data" not in said
    card, _ = load_card(str(new))
    old, _ = load_card(str(ground.card))
    assert {entry.verbalizer for entry in card.patterns} == {"auto"}
    assert [entry.pattern for entry in card.patterns] == PATTERNS
    assert card.verbalizers["default"] == old.verbalizers["default"]
    assert card.files == old.files
    pet_run(ground, tmp_path / "store", "--task", new, "--dry-run")


def test_one_pattern_gets_words_of_its_own(ground):
    new = ground.folder / "auto.yaml"
    verbalize(ground, "--pattern", 1, "--output", new)
    first, second = load_card(str(new))[0].patterns
    assert (first, second.verbalizer) == (PATTERNS[0], "auto")
    again = ground.folder / "again.yaml"
    pet("verbalize", new, "--model", lively(ground), "--pattern", 0, "--train-examples", 12, "--output", again)
    names = [entry.verbalizer for entry in load_card(str(again))[0].patterns]
    assert names == ["auto-2", "auto"], "words that a pattern has are not changed under it"


def lively(ground: Ground) -> str:
    return yaml.safe_load(Path(ground.pipeline).read_text())["model"]["name"]


def test_a_card_elsewhere_is_told_where_its_texts_are(ground, tmp_path):
    said = verbalize(ground, "--output", tmp_path / "auto.yaml").stdout
    assert f"--data {ground.folder}" in said


def test_every_label_needs_a_labelled_text(ground):
    said = verbalize(ground, "--train-examples", 2, code=2).output
    assert "there is none of 'tech'" in said and "--train-examples 3 or more" in said
    assert set(TOPICS) == set(LABELS)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--pattern", "two"), "expected `all` or the number"),
        (("--pattern", "7"), "has patterns 0 to 1"),
        (("--output", "card.json"), "ends in .yaml"),
        (("--output", "missing/card.yaml"), "cannot be written"),
        (("--pattern", "0", "--set", "finetune.patterns=[1]"), "set the same"),
    ],
)
def test_what_cannot_be_used_is_said_in_a_sentence(ground, tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    before = files_of(tmp_path)
    assert sentence in " ".join(verbalize(ground, *arguments, code=2).output.split())
    assert files_of(tmp_path) == before


def test_a_card_that_is_there_is_not_written_over(ground):
    assert "exists already" in verbalize(ground, "--output", ground.card, code=2).output


def test_odd_labels_survive(ground):
    odd = {"sports": "<script> & co", "business": "größe: 'ü'", "tech": "- [x] #no"}
    files = {"format": "csv", "train": "train.csv", "test": "test.csv", "labels": odd}
    words = {name: [label] for label, name in odd.items()}
    ground.change_card(labels=list(odd.values()), files=files, verbalizers={"default": words})
    new = ground.folder / "auto.yaml"
    verbalize(ground, "--output", new)
    assert list(load_card(str(new))[0].verbalizers["auto"]) == list(odd.values())
