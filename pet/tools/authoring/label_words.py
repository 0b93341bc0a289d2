"""Label words to begin with: a label's own name where it is a word of the model, else parts of it, else what the masked
LM itself says. Reads no files and writes no card.

A label whose name is no word is described by what the model expects at the mask: of its name in two sentences, and of
labelled texts in the card's patterns. These are half of the labelled texts at most, and no run may then test on them.
Words are ranked by how much more the model expects them for this label than for the others, by PETAL's likelihood ratio
(`algorithms/petal.py`), among those that it expects most. Unlike `pet verbalize`, this asks about names too, and a
label may have no text: so the evidence is the mean log-probability, and every label counts as one row.

Shapes: N texts, L labels, V vocabulary.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pet.algorithms.petal import likeliest, likelihood_ratio
from pet.config.schema import ModelSettings
from pet.errors import TaskError
from pet.modeling import backbones
from pet.modeling.prompts import Encoder
from pet.modeling.tokenization import PromptTokenizer, TokenizedTexts, mask_glue
from pet.tasks.patterns import Pattern, parse_pattern
from pet.tasks.texts import Texts, marks
from pet.tools.authoring.untuned import UntunedModel
from pet.training.device import Runtime

ASKED = ("{name} , also known as {mask} .", "{mask} ( {name} )")
"""What the model is asked about a name."""

CANDIDATES = 200
"""So many tokens that the model expects most for a label are ranked, or a hundredth of the vocabulary if that is more.
Fewer than PETAL's: with a name or a few texts to go by, rarer words are noise."""

MOST_EXAMPLES = 128
"""Labelled texts that are read to propose words, at most; evenly over the labels. Of a label half of its texts at most,
as those that are read cannot be tested on."""

MOST_WORDS = 3
"""Words a label is given at most. Several, averaged, were worth two points over one on BBC news (results/LOG.md)."""

SHORTEST = 3
"""Letters of a proposed word, at least."""

Float = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class LabelWords:
    """Words for one label. `origin`: whose they are: the `name` itself, `parts` of it, or the `model`'s."""

    words: tuple[str, ...]
    origin: str


@dataclass(frozen=True)
class FirstWords:
    """Words for every label; `read`: the texts whose labels were looked at for that."""

    words: dict[str, LabelWords]
    read: Texts


class Words:
    """Which words are one token in all of the patterns, and which are taken already."""

    def __init__(self, prompt_tokenizer: PromptTokenizer, patterns: Sequence[Pattern]) -> None:
        self.prompt_tokenizer = prompt_tokenizer
        self.glues = {mask_glue(pattern) for pattern in patterns}
        self._taken: set[int] = set()

    def tokens(self, word: str) -> set[int] | None:
        """The token of a word in each pattern; `None` if it is several in one of them."""
        found = [self.prompt_tokenizer.word_id(word, after) for after in self.glues]
        ids = {one for one in found if isinstance(one, int)}
        return ids if all(isinstance(one, int) for one in found) else None

    def take(self, word: str) -> bool:
        """Whether a word can be a label's; from then on no other label can have it."""
        ids = self.tokens(word) if is_word(word) else None
        if ids is None or ids & self._taken:
            return False
        self._taken |= ids
        return True

    def take_spelling(self, name: str) -> str | None:
        """A name as it can be a label's word, however it is written; it is taken then."""
        return next((one for one in spellings(name) if self.take(one)), None)


def is_word(text: str) -> bool:
    """Letters alone, and two of them at least: `1` and `B` are tokens that say nothing."""
    return text.isalpha() and len(text) > 1


def spellings(name: str) -> list[str]:
    """The ways in which a name may be written: `SPORTS` is one token of few models, `sports` of many."""
    return list(dict.fromkeys([name, name.lower(), name.capitalize()]))


def split_name(label: str) -> list[str]:
    """The words of a name: `Sci/Tech`, `card_arrival`, `cardArrival`."""
    return re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", label))


def propose_words(
    labels: Sequence[str], patterns: Sequence[Pattern], texts: Texts, settings: ModelSettings, runtime: Runtime
) -> FirstWords:
    """Words for every label, each one token in every pattern and no other label's.

    `texts`: of the task; some of those with a label are read where names are no words.

    Raises:
        ModelError, SettingsError: no such model, or a pattern does not fit into `settings.max_length`.
        TaskError: nothing could be proposed for a label.
    """
    prompt_tokenizer = backbones.load_tokenizer(settings)
    words = Words(prompt_tokenizer, patterns)
    found = {label: LabelWords((word,), "name") for label in labels if (word := words.take_spelling(label))}
    for label in labels:
        if label not in found and (parts := own_parts(label, labels, words)):
            found[label] = LabelWords(parts, "parts")
    read = texts.take([])
    if len(found) < len(labels):
        missing = [label for label in labels if label not in found]
        read = choose_examples(texts, labels)
        found |= ask_model(labels, missing, patterns, read, words, settings, runtime)
    return FirstWords({label: found[label] for label in labels}, read)


def own_parts(label: str, labels: Sequence[str], words: Words) -> tuple[str, ...]:
    """Words of a label's name that stand in no other label's; none of a name with a part that denies the others.

    `not spam` beside `spam` has only `not` of its own, which says nothing.
    """
    others = {part.casefold() for other in labels if other != label for part in split_name(other)}
    parts = [part for part in split_name(label) if len(part) > SHORTEST and part.casefold() not in others]
    return tuple(word for part in parts[:MOST_WORDS] if (word := words.take_spelling(part)))


# ---- the model's words ---------------------------------------------------------------------------------------------


def ask_model(
    labels: Sequence[str],
    missing: Sequence[str],
    patterns: Sequence[Pattern],
    texts: Texts,
    words: Words,
    settings: ModelSettings,
    runtime: Runtime,
) -> dict[str, LabelWords]:
    """What the model says where the name does not do. `texts`: labelled ones."""
    model = UntunedModel(settings, words.prompt_tokenizer, runtime)
    expected, ratio = rate_vocabulary(model, labels, patterns, texts)
    ranked = {}
    for label in missing:
        row = labels.index(label)
        best = likeliest(expected[row], max(CANDIDATES, expected.shape[1] // 100))
        ranked[label] = [int(one) for one in best[np.argsort(-ratio[row][best], kind="stable")]]
    given: dict[str, list[str]] = {label: [] for label in missing}
    for _ in range(MOST_WORDS):  # one a label in turn, so that none is left without
        for label in missing:
            word = next((one for token in ranked[label] if (one := whole_word(words, token, label, given))), None)
            given[label] += [word] if word else []
    empty = [label for label in missing if not given[label]]
    if empty:
        raise TaskError(
            f"model {settings.name!r} proposes no word for {empty}; rename these labels, label a text of each, or give "
            "another --model"
        )
    return {label: LabelWords(tuple(found), "model") for label, found in given.items()}


def whole_word(words: Words, token: int, label: str, given: dict[str, list[str]]) -> str | None:
    """The word of a token, taken for a label; `None` if it is part of a word, too short, or taken."""
    word = words.prompt_tokenizer.tokenizer.decode([token]).strip()
    known = {one.casefold() for others in given.values() for one in others}
    if len(word) < SHORTEST or not is_word(word) or word.casefold() in known or words.tokens(word) != {token}:
        return None
    return word if words.take(word) else None


def rate_vocabulary(
    model: UntunedModel, labels: Sequence[str], patterns: Sequence[Pattern], texts: Texts
) -> tuple[Float, Float]:
    """For every label and word [L, V]: its mean log-probability, and how much that is above the mean over the labels
    (`above_mean`).

    Names that are no words count only where a label has no text. `texts`: labelled ones.
    """
    names = Texts(list(labels), {"name": [" ".join(split_name(one)) or one for one in labels]}, list(labels))
    asked = [parse_pattern(source, ["name"]) for source in ASKED]
    by_name = log_probabilities(model, asked, names)
    expected, ratio = by_name.copy(), above_mean(by_name)
    if not len(texts):
        return expected, ratio
    each = log_probabilities(model, patterns, texts)
    of_label = np.asarray(texts.labels)
    shown = [row for row, label in enumerate(labels) if label in texts.labels]
    by_text = np.stack([each[of_label == labels[row]].mean(0) for row in shown])
    above = above_mean(by_text)
    for place, row in enumerate(shown):
        named = any(is_word(part) for part in split_name(labels[row]))
        expected[row] = (expected[row] + by_text[place]) / 2 if named else by_text[place]
        ratio[row] = ratio[row] + above[place] if named else above[place]
    return expected, ratio


def above_mean(evidence: Float) -> NDArray[np.float64]:
    """How much the evidence [L, V] of each label is above the mean over the labels: the likelihood ratio where every
    label has one row, a part for each label, so that it does not grow with their number."""
    return likelihood_ratio(evidence, np.ones(len(evidence), dtype=np.int64)) / len(evidence)


def choose_examples(texts: Texts, labels: Sequence[str]) -> Texts:
    """Half of the different texts of each label, MOST_EXAMPLES together at most, in the order of their marks: files are
    often sorted."""
    each = max(1, MOST_EXAMPLES // len(labels))
    of_label: dict[str, dict[str, int]] = {label: {} for label in labels}
    for row, (mark, label) in enumerate(zip(marks(texts), texts.labels, strict=True)):
        if label is not None:
            of_label[label].setdefault(mark, row)
    return texts.take(
        [found[mark] for found in of_label.values() for mark in sorted(found)[: min(each, len(found) // 2)]]
    )


def log_probabilities(model: UntunedModel, patterns: Sequence[Pattern], texts: Texts) -> Float:
    """Log-probability of every word at the mask [N, V], mean over the patterns."""
    tokens = TokenizedTexts(model.prompt_tokenizer, texts)
    rows = [Encoder(model.prompt_tokenizer, pattern, model.max_length).encode(tokens) for pattern in patterns]
    every = range(model.cloze.lm.config.vocab_size)
    return np.asarray(np.mean([model.word_log_probabilities(one, every, "label words") for one in rows], axis=0))
