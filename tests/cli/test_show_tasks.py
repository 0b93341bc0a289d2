"""`pet tasks`: every shipped card is listed and can be shown."""

import pytest
from support.rows import lay_ground, pet

from pet.config.shipped import shipped_names
from pet.tasks.card import load_card


def test_without_a_subcommand_every_shipped_card_is_listed():
    lines = pet("tasks", env={"COLUMNS": "300"}).output.splitlines()
    for name in shipped_names("data"):
        card, _ = load_card(name)
        (line,) = [one for one in lines if f" {name} " in one]
        cells = [one.strip() for one in line.strip("│").split("│")]
        assert cells[:4] == [name, card.title, str(len(card.labels)), str(len(card.patterns))]


@pytest.mark.parametrize("name", shipped_names("data"))
def test_a_card_is_shown_with_its_patterns_words_and_texts(name):
    card, _ = load_card(name)
    output = pet("tasks", "show", name).output
    assert all(f"p{pvp.number}  {pvp.pattern.source}" in output for pvp in card.pvps())
    assert all(f"{label}: {', '.join(words)}" in output for pvp in card.pvps() for label, words in pvp.words.items())
    for source in filter(None, (card.files, card.hub)):
        assert str(source.train) in output
    if card.hub:
        assert card.hub.path in output
    if card.folder:
        assert f"pip install {card.folder.install}" in output


def test_a_card_of_ones_own_is_shown_whatever_its_labels(tmp_path):
    ground = lay_ground(tmp_path / "ground", tmp_path)
    labels = ["<script>", "[red]x[/red]", "été"]
    words = {"default": {label: [word] for label, word in zip(labels, ["it", "is", "in"], strict=True)}}
    ground.change_card(labels=labels, verbalizers=words, hub=None)
    output = pet("tasks", "show", ground.card).output
    assert all(f"{label}: " in output for label in labels)
    assert "train train.csv; test test.csv" in output


def test_an_unknown_card_is_one_sentence():
    assert "did you mean 'agnews'?" in pet("tasks", "show", "agnws", code=2).stderr
