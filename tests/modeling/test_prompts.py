"""Where pattern, text and tokenizer meet: rows read like the filled pattern, fit, and never lose what is asked.

The three kinds of tokenizer differ in what they do at the start of a part; `reference_row` says so by hand, a kind a
line, and cuts one token at a time.
"""

import dataclasses
import gc
import random
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from support.tiny import TOKENIZERS, WORDS
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pet.errors import SHOWN_PROBLEMS, ModelError, SettingsError, TaskError
from pet.modeling.batch import Batch, Layout, join_batches, pad_to_multiples, ragged, receive, round_up, send, spread
from pet.modeling.prompts import (
    EncodedTexts,
    Encoder,
    assemble,
    collate,
    plain_pattern,
    shorten_last_part,
    shorten_longest,
)
from pet.modeling.tokenization import PromptTokenizer, TokenColumn, TokenizedTexts, glued_parts
from pet.modeling.verbalizers import Verbalizer, encode_verbalizers
from pet.tasks import texts as texts_module
from pet.tasks.patterns import PVP, Mask, Pattern, Slot, parse_pattern, read_part
from pet.tasks.texts import Texts

FIELDS = ("a", "b")
SPACED = [
    "{a} ( {mask} ) {b}",
    "{mask} News: {a} {b}",
    "[ Category: {mask} ] {a} {b}",
    "Just {mask} ! || {a}",
    "{a|unpunctuated} ? || {mask} , {b}",
    '" {a} " || {mask} . " {b} "',
    "{b} || {a} : {mask} {b}",
]
GLUED = ["{a} ({mask}) {b}", "{a}: ({mask}) [{b}]", '"{a|unpunctuated}"? || {mask}, "{b}"', "[{mask}] {a} || ({b})"]
KINDS = list(TOKENIZERS)


@pytest.fixture(scope="module", params=KINDS)
def prompt_tokenizer(request: pytest.FixtureRequest) -> PromptTokenizer:
    return PromptTokenizer(TOKENIZERS[request.param](), request.param)


def texts_of(*rows: tuple[str, ...]) -> Texts:
    fields = {name: [row[number] for row in rows] for number, name in enumerate(FIELDS[: len(rows[0])])}
    return Texts([f"text-{number}" for number in range(len(rows))], fields, [None] * len(rows))


def encode(
    prompt_tokenizer: PromptTokenizer,
    source: str,
    texts: Texts,
    max_length: int = 128,
    truncation: str = "longest-first",
):
    pattern = parse_pattern(source, FIELDS)
    return Encoder(prompt_tokenizer, pattern, max_length, truncation).encode(TokenizedTexts(prompt_tokenizer, texts))


class Row(NamedTuple):
    """A row as it is before it goes into a batch."""

    ids: list[int]
    types: list[int]
    mask: int


def apart(rows: EncodedTexts, chosen: Any = None) -> list[Row]:
    """The chosen rows (default: all) one by one, cut where the encoder says that they end."""
    joined = rows.encoder.join(rows, np.arange(len(rows)) if chosen is None else np.asarray(chosen))
    found, start = [], 0
    for size, mask in zip(joined.lengths.tolist(), joined.mask_places.tolist(), strict=True):
        found.append(Row(joined.ids[start : start + size].tolist(), joined.types[start : start + size].tolist(), mask))
        start += size
    assert start == len(joined.ids) == len(joined.types)
    return found


def pieces(prompt_tokenizer: PromptTokenizer, source: str, *row: str) -> list[str]:
    (found,) = apart(encode(prompt_tokenizer, source, texts_of(row)))
    return prompt_tokenizer.tokenizer.convert_ids_to_tokens(found.ids)


def squeezed(prompt_tokenizer: PromptTokenizer, text: str) -> str:
    text = "".join(text.split())
    return text.lower() if prompt_tokenizer.name == "wordpiece" else text


def random_texts(seed: int, count: int, most: int = 30) -> Texts:
    """Invented sentences; some are empty, some have unknown words and punctuation."""
    rng = random.Random(seed)

    def text() -> str:
        size = rng.choice([0, 1, rng.randrange(most), rng.randrange(most)])
        words = [rng.choice([*WORDS, "World", "zq", "x,", "done.", "(well)"]) for _ in range(size)]
        return " ".join(words) + rng.choice(["", ".", "!?", "  "])

    return texts_of(*[(text(), text()) for _ in range(count)])


# ---- an independent reference --------------------------------------------------------------------------------------


def reference_ids(prompt_tokenizer: PromptTokenizer, text: str, spaced: bool) -> list[int]:
    """Ids of a part in the middle of a sentence; glue is taken to be punctuation."""

    def ids(words: str) -> list[int]:
        return prompt_tokenizer.tokenizer(words, add_special_tokens=False)["input_ids"]

    if not text:
        return []
    if prompt_tokenizer.name == "byte-bpe":  # the space is a part of the token
        return ids(" " + text if spaced else text)
    if (
        prompt_tokenizer.name == "wordpiece" or spaced
    ):  # nothing is left of the space; or the word-start mark is always there
        return ids(text)
    return ids("(" + text)[len(ids("(")) :]


def reference_row(
    prompt_tokenizer: PromptTokenizer, pattern: Pattern, row: dict[str, str], max_length: int, cut: Any
) -> list[int]:
    """Tokenise the parts, cut one token at a time, put the special tokens around."""
    parts: list[tuple[int, list[int], bool]] = []
    for number, segment in enumerate(pattern.segments):
        for part in segment:
            if isinstance(part, Mask):
                ids = [prompt_tokenizer.tokenizer.mask_token_id]
            else:
                ids = reference_ids(prompt_tokenizer, read_part(part, row), part.spaced)
            parts.append((number, ids, isinstance(part, Slot) and part.shortenable))
    two = len(pattern.segments) == 2
    if prompt_tokenizer.name == "wordpiece":
        before, between, after = ["[CLS]"], ["[SEP]"], ["[SEP]"]
    else:
        before, between, after = ["<s>"], ["</s>", "</s>"], ["</s>"]
    specials = len(before + between * two + after)
    while sum(len(ids) for _, ids, _ in parts) + specials > max_length:
        cut(parts)
    first, second = ([one for number, ids, _ in parts if number == side for one in ids] for side in (0, 1))
    frame = [prompt_tokenizer.tokenizer.convert_tokens_to_ids(one) for one in (before, between * two, after)]
    return frame[0] + first + frame[1] + second + frame[2]


def cut_longest(parts: list[tuple[int, list[int], bool]]) -> None:
    """P1 section 4: longest first; the last of equally long ones."""
    longest = max(len(ids) for _, ids, free in parts if free)
    [ids for _, ids, free in parts if free and len(ids) == longest][-1].pop()


def cut_last_part(parts: list[tuple[int, list[int], bool]]) -> None:
    """Fact sheet 2.4 item 3, as the published code has it (`PVP.truncate`)."""

    def remove_last(side: int) -> None:
        mine = [(ids, free) for number, ids, free in parts if number == side]
        last = max(index for index, (ids, free) in enumerate(mine) if free and len(ids) > 0)
        mine[last][0].pop()

    def shortenable(side: int) -> int:
        return sum(len(ids) for number, ids, free in parts if free and number == side)

    remove_last(0 if shortenable(0) > shortenable(1) else 1)


CUTS = {"longest-first": cut_longest, "last-part": cut_last_part}


# ---- spaces --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "spaced", "glued"),
    [
        ("wordpiece", ["(", "[MASK]", ")"], ["(", "[MASK]", ")"]),
        ("byte-bpe", ["\u0120(", "<mask>", "\u0120)"], ["\u0120(", "<mask>", ")"]),
        ("unigram", ["\u2581", "(", "<mask>", "\u2581", ")"], ["\u2581", "(", "<mask>", ")"]),
    ],
)
def test_a_space_in_a_pattern_is_spelled_as_the_tokenizer_spells_it_and_a_missing_one_is_not(kind, spaced, glued):
    prompt_tokenizer = PromptTokenizer(TOKENIZERS[kind](), kind)
    assert pieces(prompt_tokenizer, "{a} ( {mask} ) {a}", "soup")[2:-2] == spaced
    assert pieces(prompt_tokenizer, "{a} ({mask}) {a}", "soup")[2:-2] == glued


@pytest.mark.parametrize(
    ("kind", "first", "glued"),
    [("wordpiece", "soup", "soup"), ("byte-bpe", "\u0120soup", "s"), ("unigram", "\u2581soup", "s")],
)
def test_a_word_at_the_start_of_a_row_is_spelled_as_in_the_middle_and_a_glued_one_is_not(kind, first, glued):
    prompt_tokenizer = PromptTokenizer(TOKENIZERS[kind](), kind)
    assert pieces(prompt_tokenizer, "{a} {mask}", "soup")[1] == first
    assert pieces(prompt_tokenizer, "{a} {mask} || {b}", "bread", "soup")[-2] == first
    found = pieces(prompt_tokenizer, "({a}) {mask}", "soup")
    assert found[found.index(next(one for one in found if one.endswith("("))) + 1] == glued


@pytest.mark.parametrize("source", SPACED + GLUED)
def test_a_row_reads_like_the_filled_pattern(prompt_tokenizer, source):
    row = ("River bank was warm .", "Soup, bread: just fine!")
    rows = encode(prompt_tokenizer, source, texts_of(row))
    filled = parse_pattern(source, FIELDS).fill(
        dict(zip(FIELDS, row, strict=True)), prompt_tokenizer.tokenizer.mask_token
    )
    special = {prompt_tokenizer.tokenizer.cls_token_id, prompt_tokenizer.tokenizer.sep_token_id}
    shown = prompt_tokenizer.tokenizer.decode([one for one in apart(rows)[0].ids if one not in special])
    assert squeezed(prompt_tokenizer, shown) == squeezed(prompt_tokenizer, filled.replace(" || ", ""))


@pytest.mark.parametrize("source", SPACED + GLUED)
def test_splicing_parts_equals_tokenising_the_whole_filled_string(prompt_tokenizer, source):
    parts = [part for segment in parse_pattern(source, FIELDS).segments for part in segment]
    glue = any(isinstance(left, Mask) and not right.spaced for left, right in pairwise(parts))
    row = {"a": "River bank was warm .", "b": "Soup, bread: just fine"}
    rows = encode(prompt_tokenizer, source, texts_of(tuple(row.values())))
    filled = parse_pattern(source, FIELDS).fill(row, prompt_tokenizer.tokenizer.mask_token).split(" || ")
    if prompt_tokenizer.name == "byte-bpe":
        filled = [" " + segment for segment in filled]  # the paper's code: add_prefix_space
    whole = prompt_tokenizer.tokenizer(*filled)
    expected = list(whole["input_ids"])
    if prompt_tokenizer.name == "unigram" and glue:  # tokenised whole, a word-start mark follows every special token
        mark = expected.pop(expected.index(prompt_tokenizer.mask_id) + 1)
        assert prompt_tokenizer.tokenizer.convert_ids_to_tokens(mark) == "\u2581"
    assert apart(rows) == [
        (expected, whole.get("token_type_ids", [0] * len(expected)), expected.index(prompt_tokenizer.mask_id))
    ]


def test_a_glued_part_that_would_melt_into_its_neighbour_is_spelled_alone():
    prompt_tokenizer = PromptTokenizer(TOKENIZERS["unigram"](), "unigram")
    assert prompt_tokenizer.spell(["ll"], after="a")[0].tolist() == prompt_tokenizer.spell(["ll"])[0].tolist(), (
        "`all` is one token"
    )


def test_every_text_after_a_mask_or_text_is_glued_to_a_letter_and_after_a_literal_to_its_end():
    parts = glued_parts(parse_pattern("{a}: ({mask})x || {b}{a}", FIELDS))
    assert [(number, after) for number, _, after in parts] == [
        *[(0, None), (0, "a"), (0, "("), (0, "a")],
        *[(1, None), (1, "a")],
    ]


# ---- special tokens ------------------------------------------------------------------------------------------------


def test_special_tokens_and_types_of_one_and_two_segments_are_the_tokenizer_s(prompt_tokenizer):
    one, two = "soup was warm", "bread"
    for texts, fields in (((one,), ("a",)), ((one, two), ("a", "b"))):
        rows = Encoder(prompt_tokenizer, plain_pattern(fields), 64).encode(
            TokenizedTexts(prompt_tokenizer, texts_of(texts))
        )
        whole = prompt_tokenizer.tokenizer(*texts)
        ids = whole["input_ids"]
        assert apart(rows) == [(ids, whole.get("token_type_ids", [0] * len(ids)), -1)]


def test_only_wordpiece_has_token_types(prompt_tokenizer):
    batch = encode(prompt_tokenizer, "{mask} {a} || {b}", texts_of(("a", "it"))).batch(np.array([0]), Layout(False))
    assert prompt_tokenizer.has_types == (prompt_tokenizer.name == "wordpiece")
    assert (batch.token_type_ids is not None) == prompt_tokenizer.has_types


def test_a_plain_classifier_reads_its_first_field_and_the_others_as_second_segment():
    one, two, three = (plain_pattern(fields) for fields in (["x"], ["x", "y"], ["x", "y", "z"]))
    assert [[slot.field for slot in segment] for segment in one.segments] == [["x"]]
    assert [[slot.field for slot in segment] for segment in two.segments] == [["x"], ["y"]]
    assert [[slot.field for slot in segment] for segment in three.segments] == [["x"], ["y", "z"]]
    assert [slot.spaced for slot in three.slots] == [False, False, True]
    assert all(slot.shortenable for slot in three.slots)


def test_three_fields_of_a_plain_classifier_are_tokenised_as_two_segments(prompt_tokenizer):
    texts = Texts(["1"], {"x": ["soup"], "y": ["warm bread"], "z": ["bad waiter"]}, [None])
    rows = Encoder(prompt_tokenizer, plain_pattern(["x", "y", "z"]), 64).encode(TokenizedTexts(prompt_tokenizer, texts))
    assert apart(rows)[0].ids == prompt_tokenizer.tokenizer("soup", "warm bread bad waiter")["input_ids"]


@pytest.mark.parametrize("fields", [["x"], ["x", "y"], ["x", "y", "z"]])
def test_a_plain_classifier_truncates_as_its_tokenizer_does_alone(prompt_tokenizer, fields):
    """Both halves long or one of them, of equal and of different lengths, in room of an even and an odd size."""
    counts = [(0, 9, 3), (3, 9, 9), (9, 9, 9), (10, 4, 6), (9, 5, 1), (30, 20, 20), (20, 30, 5), (8, 0, 30), (30, 1, 1)]
    columns = {name: ["good " * row[number] for row in counts] for number, name in enumerate(fields)}
    columns = {name: [text.strip() for text in column] for name, column in columns.items()}
    texts = Texts([str(row) for row in counts], columns, [None] * len(counts))
    for size in (13, 14):
        rows = Encoder(prompt_tokenizer, plain_pattern(fields), size).encode(TokenizedTexts(prompt_tokenizer, texts))
        for row, found in enumerate(apart(rows)):
            first, *rest = (column[row] for column in columns.values())
            pair = [[" ".join([rest[0], *filter(None, rest[1:])])]] if rest else []
            assert (
                found.ids
                == prompt_tokenizer.tokenizer([first], *pair, truncation=True, max_length=size)["input_ids"][0]
            )


def test_special_tokens_written_in_a_text_are_only_characters(prompt_tokenizer):
    if (
        prompt_tokenizer.name == "unigram"
    ):  # a SentencePiece vocabulary holds them as pieces of its own: nothing to split
        assert prompt_tokenizer.mask_id in prompt_tokenizer.spell(["soup <mask> bread"])[0]
        return
    for token in prompt_tokenizer.tokenizer.all_special_tokens:
        ids = prompt_tokenizer.spell([f"soup {token} bread"])[0]
        assert not set(ids.tolist()) & {
            prompt_tokenizer.mask_id,
            prompt_tokenizer.pad_id,
            *prompt_tokenizer.frames[2].before,
        }


@pytest.mark.parametrize(("left_out", "word"), [("mask_token", "mask"), ("pad_token", "padding")])
def test_a_tokenizer_without_mask_or_padding_is_refused(left_out, word):
    bare = Tokenizer(models.WordLevel({"[UNK]": 0, "[MASK]": 1, "[PAD]": 2, "a": 3}, unk_token="[UNK]"))
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    specials = {"unk_token": "[UNK]", "mask_token": "[MASK]", "pad_token": "[PAD]"}
    del specials[left_out]
    with pytest.raises(ModelError, match=f"'left-to-right': its tokenizer has no {word} token"):
        PromptTokenizer(PreTrainedTokenizerFast(tokenizer_object=bare, **specials), "left-to-right")


# ---- truncation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("truncation", CUTS)
@pytest.mark.parametrize("number", range(len(SPACED + GLUED)))
def test_rows_equal_those_of_a_reference_that_cuts_one_token_at_a_time(prompt_tokenizer, truncation, number):
    pattern = parse_pattern((SPACED + GLUED)[number], FIELDS)
    texts = random_texts(number, 20)
    for max_length in (26, 33, 48):
        rows = Encoder(prompt_tokenizer, pattern, max_length, truncation).encode(
            TokenizedTexts(prompt_tokenizer, texts)
        )
        for row, found in enumerate(apart(rows)):
            filled = {name: column[row] for name, column in texts.fields.items()}
            assert found.ids == reference_row(prompt_tokenizer, pattern, filled, max_length, CUTS[truncation])


@pytest.mark.parametrize("truncation", CUTS)
@pytest.mark.parametrize("source", SPACED + GLUED)
def test_truncation_never_loses_the_mask_or_a_word_of_the_pattern(prompt_tokenizer, truncation, source):
    pattern = parse_pattern(source, FIELDS)
    bare = apart(encode(prompt_tokenizer, source, texts_of(("", ""))))[0].ids
    for max_length in (len(bare) + 1, len(bare) + 7):
        rows = encode(prompt_tokenizer, source, random_texts(7, 30), max_length, truncation)
        assert rows.lengths().max() == max_length, "room is used"
        for ids, types, position in apart(rows):
            assert len(ids) == len(types) <= max_length
            assert ids[position] == prompt_tokenizer.mask_id
            assert ids.count(prompt_tokenizer.mask_id) == 1
            rest = iter(ids)
            assert all(one in rest for one in bare), f"{pattern.source}: the pattern's tokens, in their order"


def test_a_long_text_gives_way_before_a_short_one():
    prompt_tokenizer = PromptTokenizer(TOKENIZERS["wordpiece"](), "wordpiece")
    texts = texts_of(("soup bread", "good " * 40))
    (longest,) = apart(encode(prompt_tokenizer, "{a} {b} {mask}", texts, 12))
    assert (
        prompt_tokenizer.tokenizer.decode(longest.ids)
        == "[CLS] soup bread good good good good good good good [MASK] [SEP]"
    )
    texts = texts_of(("good " * 40, "soup bread"))
    (last,) = apart(encode(prompt_tokenizer, "{a} {b} {mask}", texts, 12, "last-part"))
    assert (
        prompt_tokenizer.tokenizer.decode(last.ids) == "[CLS] good good good good good good good good good [MASK] [SEP]"
    )


@pytest.mark.parametrize("seed", range(40))
def test_both_ways_to_shorten_equal_a_slow_reference(seed):
    rng = random.Random(seed)
    for _ in range(25):
        segments = sorted(rng.choice([0, 0, 1]) for _ in range(rng.randrange(1, 6)))
        free = [rng.random() < 0.8 for _ in segments]
        sizes = [rng.randrange(9) if one else 0 for one in free]
        if not sum(sizes):
            continue
        excess = rng.randrange(1, sum(sizes) + 1)
        for shorten, cut in ((shorten_longest, cut_longest), (shorten_last_part, cut_last_part)):
            parts = [(number, [0] * size, one) for number, size, one in zip(segments, sizes, free, strict=True)]
            for _ in range(excess):
                cut(parts)
            assert shorten(sizes, segments, excess) == [len(ids) for _, ids, _ in parts]


@pytest.mark.parametrize("most", [2, 5, 300])
def test_shortening_the_longest_equals_cutting_token_by_token_whatever_the_excess(most):
    """Zeros, equal sizes, every excess from nothing to everything; of long parts a few excesses."""
    rng = random.Random(most)
    for _ in range(60):
        sizes = [rng.choice([0, rng.randrange(most), rng.randrange(most)]) for _ in range(rng.randrange(1, 7))]
        whole = sum(sizes)
        some = range(whole + 1) if whole < 40 else {0, 1, whole - 1, whole, *rng.sample(range(whole), 4)}
        for excess in some:
            kept = list(sizes)
            for _ in range(excess):
                longest = max(kept)
                kept[len(kept) - 1 - kept[::-1].index(longest)] -= 1
            assert shorten_longest(sizes, [0] * len(sizes), excess) == kept, (sizes, excess)


@pytest.mark.parametrize("truncation", CUTS)
def test_a_whole_text_keeps_every_token(prompt_tokenizer, truncation):
    question = "was the soup warm"
    rows = encode(
        prompt_tokenizer, "{a|whole} ? {mask} . {b}", texts_of((question, "it was fine " * 30)), 32, truncation
    )
    size = len(reference_ids(prompt_tokenizer, question, True))
    (found,) = apart(rows)
    assert found.ids[1 : 1 + size] == reference_ids(prompt_tokenizer, question, True)
    assert len(found.ids) == 32


def test_a_whole_text_that_leaves_no_room_is_named(prompt_tokenizer):
    texts = texts_of(("soup", "fine"), ("soup " * 40, "fine"))
    with pytest.raises(SettingsError) as raised:
        encode(prompt_tokenizer, "{a|whole} ? {mask} . {b}", texts, 24)
    assert "text 'text-1' does not fit pattern '{a|whole} ? {mask} . {b}'" in str(raised.value)
    assert "model.max_length 24" in str(raised.value)


def test_a_pattern_that_does_not_fit_is_refused_before_any_text_is_read(prompt_tokenizer):
    source = "In summary, the restaurant is just {mask} . {a}"
    size = int(encode(prompt_tokenizer, source, texts_of(("", ""))).lengths()[0])
    with pytest.raises(SettingsError, match=rf"takes {size} tokens without its texts; model.max_length is {size}"):
        Encoder(prompt_tokenizer, parse_pattern(source, FIELDS), size)
    Encoder(prompt_tokenizer, parse_pattern(source, FIELDS), size + 1)


@pytest.mark.parametrize("empty", ["", " \t "])
def test_an_empty_text_leaves_no_token(prompt_tokenizer, empty):
    with_empty = encode(prompt_tokenizer, "{a} {mask} : {b}", texts_of((empty, "soup")))
    without = encode(prompt_tokenizer, "{mask} : {b}", texts_of(("", "soup")))
    assert apart(with_empty)[0].ids == apart(without)[0].ids


# ---- once per task -------------------------------------------------------------------------------------------------


class Counting:
    """A tokenizer that notes every text it is given."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.seen: list[str] = []

    def __call__(self, first: Any, *rest: Any, **options: Any) -> Any:
        self.seen += [first] if isinstance(first, str) else first
        return self.tokenizer(first, *rest, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_is_tokenised_once_for_all_patterns_of_a_task(kind):
    counting = Counting(TOKENIZERS[kind]())
    prompt_tokenizer = PromptTokenizer(counting, kind)
    tokens = TokenizedTexts(prompt_tokenizer, texts_of(("river bank", "soup"), ("goal team", "bread")))
    for source in ("{a} {mask} {b}", "{mask} News: {a} {b}", "{b} || {a} ? {mask}"):
        Encoder(prompt_tokenizer, parse_pattern(source, FIELDS), 64).encode(tokens)
    for text in ("river bank", "soup", "goal team", "bread"):
        assert sum(text in one for one in counting.seen) == 1, text


def test_a_text_without_its_punctuation_or_glued_is_another_text():
    prompt_tokenizer = PromptTokenizer(TOKENIZERS["byte-bpe"](), "byte-bpe")
    tokens = TokenizedTexts(prompt_tokenizer, texts_of(("soup .", "bread")))
    full, bare, glued = (
        apart(Encoder(prompt_tokenizer, parse_pattern(source, FIELDS), 64).encode(tokens))[0].ids
        for source in ("{mask} {a}", "{mask} {a|unpunctuated}", "{mask}{a}")
    )
    assert full[:-2] == bare[:-1]
    assert prompt_tokenizer.tokenizer.decode(glued) == "<s><mask>soup .</s>"


# ---- label words ---------------------------------------------------------------------------------------------------


def pvp(source: str, **words: tuple[str, ...]) -> PVP:
    return PVP(0, parse_pattern(source, FIELDS), words)


def test_the_score_of_a_label_is_the_mean_of_its_words(prompt_tokenizer):
    words = {"yes": ("good", "great", "fine"), "no": ("bad",), "so": ("okay", "maybe")}
    (found,) = encode_verbalizers(prompt_tokenizer, [pvp("It was {mask} . {a}", **words)], "mood")
    ids = [reference_ids(prompt_tokenizer, word, True) for group in words.values() for word in group]
    assert found.words.tolist() == [one for (one,) in ids]
    scores = torch.arange(6, dtype=torch.float32) ** 2
    expected = torch.tensor([(0 + 1 + 4) / 3, 9.0, (16 + 25) / 2])
    assert torch.allclose(scores @ found.averaging, expected)
    assert torch.allclose(
        found.scores(lambda asked: scores[asked == found.words].expand(2, -1)), expected.expand(2, -1)
    )


def test_members_that_share_a_batch_are_scored_by_their_own_words_alone():
    """Row by row: the mean of what the member's own words of a label get, whatever the other member's get."""
    own = [{0: [0, 1], 1: [2]}, {0: [3], 1: [4, 5, 6]}]  # member, label -> places among all words
    averaging = torch.zeros(2, 7, 2)
    for member, places in enumerate(own):
        for label, some in places.items():
            averaging[member, some, label] = 1 / len(some)
    logits = torch.randn(6, 7, generator=torch.Generator().manual_seed(0))
    found = Verbalizer(torch.arange(7), averaging).scores(lambda words: logits[:, words])
    rows = [(member, logits[3 * member + row]) for member in range(2) for row in range(3)]
    expected = [[row[own[member][label]].mean() for label in range(2)] for member, row in rows]
    assert found.shape == (2, 3, 2)
    torch.testing.assert_close(found.view(6, 2), torch.tensor(expected))


def test_label_words_can_be_moved_to_a_device(prompt_tokenizer):
    (found,) = encode_verbalizers(prompt_tokenizer, [pvp("{a} {mask}", yes=("good", "great"), no=("bad",))], "mood")
    moved = found.to(torch.device("meta"))
    assert moved.words.device.type == moved.averaging.device.type == "meta"
    assert (moved.words.shape, moved.averaging.shape) == ((3,), (3, 2))
    same = found.to(torch.device("cpu"))
    assert torch.equal(same.words, found.words)
    assert torch.equal(same.averaging, found.averaging)


def test_a_label_word_is_spelled_as_it_stands_at_the_mask():
    prompt_tokenizer = PromptTokenizer(TOKENIZERS["byte-bpe"](), "byte-bpe")
    words = {"one": ("a",), "two": ("it",)}
    spaced, glued = encode_verbalizers(
        prompt_tokenizer, [pvp("({a}) {mask}", **words), pvp("{a} ({mask})", **words)], "mood"
    )
    assert prompt_tokenizer.tokenizer.convert_ids_to_tokens(spaced.words.tolist()) == ["\u0120a", "\u0120it"]
    assert prompt_tokenizer.tokenizer.convert_ids_to_tokens(glued.words.tolist()) == ["a", "it"]


def test_a_word_of_several_tokens_is_refused_with_task_label_word_tokenizer_and_pieces(prompt_tokenizer):
    with pytest.raises(TaskError) as raised:
        encode_verbalizers(prompt_tokenizer, [pvp("{a} {mask}", good=("good",), bad=("qqwq",))], "mood")
    shown = prompt_tokenizer.tokenizer.convert_ids_to_tokens(reference_ids(prompt_tokenizer, "qqwq", True))
    assert len(shown) > 1 or prompt_tokenizer.name == "wordpiece"
    problem = f"label 'bad', word 'qqwq' is {len(shown)} tokens {shown}"
    assert (
        str(raised.value) == f"task 'mood': label words must be one known token of {prompt_tokenizer.name!r}: {problem}"
    )


def test_all_words_that_cannot_be_used_are_named_at_once_and_each_once():
    prompt_tokenizer = PromptTokenizer(TOKENIZERS["byte-bpe"](), "byte-bpe")
    bad = [f"{letter}qxz" for letter in "abcdefg"]
    first = pvp("{a} {mask}", one=("good", *bad[:3]), two=("bad",))
    second = pvp("{mask} {a}", one=("good", *bad[:3]), two=tuple(bad[3:]))
    with pytest.raises(TaskError) as raised:
        encode_verbalizers(prompt_tokenizer, [first, second], "mood")
    problem = str(raised.value)
    assert all(problem.count(repr(word)) == 1 for word in bad[:SHOWN_PROBLEMS])
    assert problem.endswith(f"and {len(bad) - SHOWN_PROBLEMS} more")


@pytest.mark.parametrize(("kind", "word"), [("wordpiece", "\u4e2d"), ("wordpiece", "[SEP]"), ("byte-bpe", "</s>")])
def test_an_unknown_or_special_token_is_no_label_word(kind, word):
    prompt_tokenizer = PromptTokenizer(TOKENIZERS[kind](), kind)
    with pytest.raises(TaskError, match="must be one known token"):
        encode_verbalizers(prompt_tokenizer, [pvp("{a} {mask}", good=("good",), bad=(word,))], "mood")


# ---- columns of token ids ------------------------------------------------------------------------------------------


def random_ids(seed: int, count: int, most: int = 9) -> list[np.ndarray]:
    """Token ids of invented texts; every third text is empty."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, most, size=count)
    sizes[::3] = 0
    return [rng.integers(-(2**31), 2**31 - 1, size=size).astype(np.int32) for size in sizes]


def in_chunks(ids: list[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    for start in range(0, len(ids), size):
        yield ids[start : start + size]


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_a_column_gives_back_the_ids_of_any_texts_in_any_order(chunk):
    ids = random_ids(0, 30)
    column = TokenColumn(in_chunks(ids, chunk), 30)
    sizes = np.array([len(one) for one in ids])
    assert column.sizes(slice(None)).tolist() == sizes.tolist()
    assert column.sizes(slice(7, 19)).tolist() == sizes[7:19].tolist()
    rng = np.random.default_rng(1)
    for _ in range(20):
        rows = rng.integers(30, size=rng.integers(1, 12))
        assert column.sizes(rows).tolist() == sizes[rows].tolist()
        found = column.read(rows, column.sizes(rows))
        assert found.dtype == np.int32
        assert found.tolist() == np.concatenate([ids[row] for row in rows]).tolist()


def test_a_column_reads_only_as_much_of_a_text_as_it_is_asked_for():
    ids = random_ids(2, 30)
    column = TokenColumn(in_chunks(ids, 7), 30)
    rng = np.random.default_rng(3)
    rows = rng.permutation(30)
    sizes = rng.integers(0, column.sizes(rows) + 1)
    expected = [one for row, size in zip(rows, sizes, strict=True) for one in ids[row][:size].tolist()]
    assert column.read(rows, sizes).tolist() == expected


@pytest.mark.parametrize(
    "chunks", [[], [[]], [[np.empty(0, dtype=np.int32)] * 2]], ids=["none", "empty", "empty texts"]
)
def test_a_column_without_a_token_reads_as_nothing(chunks):
    column = TokenColumn(chunks, sum(len(chunk) for chunk in chunks))
    count = sum(len(chunk) for chunk in chunks)
    rows = np.arange(count)
    assert column.sizes(rows).tolist() == column.sizes(slice(None)).tolist() == [0] * count
    assert column.read(rows, column.sizes(rows)).shape == (0,)


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    """The folder for temporary files, empty."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def open_files() -> int:
    """Of this process; 0 where the system does not tell."""
    gc.collect()
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0


def test_a_column_leaves_nothing_behind(temporary):
    """No name in the folder even while it is in use, so that no crash can leave one; no open file afterwards, and no
    warning of one."""
    before = open_files()
    column = TokenColumn(in_chunks(random_ids(4, 20), 5), 20)
    assert column.read(np.array([1]), np.array([1])).shape == (1,)
    assert list(temporary.iterdir()) == []
    assert open_files() == before + 1 or not before
    del column
    assert open_files() == before


def test_texts_are_read_in_chunks_and_the_size_of_a_chunk_changes_nothing(prompt_tokenizer, monkeypatch):
    source = "{a} ( {mask} ) || {b|unpunctuated}"
    texts = random_texts(5, 20)
    expected = apart(encode(prompt_tokenizer, source, texts, 33))
    monkeypatch.setattr(texts_module, "CHUNK", 3)
    assert [len(chunk) for chunk in texts.chunks()] == [3] * 6 + [2]
    assert apart(encode(prompt_tokenizer, source, texts, 33)) == expected


class Streamed:
    """Texts that cannot be had at once, as those of a file."""

    def __init__(self, texts: Texts) -> None:
        self._texts = texts
        self.passes = 0

    def __len__(self) -> int:
        return len(self._texts)

    def chunks(self) -> Iterator[Texts]:
        self.passes += 1
        for start in range(0, len(self), 4):
            yield self._texts.take(range(start, min(start + 4, len(self))))

    def id_of(self, row: int) -> str:
        return self._texts.ids[row]


def test_texts_may_be_any_source_of_chunks_which_is_read_once_for_each_way_a_field_is_used(prompt_tokenizer):
    texts = random_texts(6, 10)
    streamed = Streamed(texts)
    tokens = TokenizedTexts(prompt_tokenizer, streamed)
    for source in ("{a} {mask} || {b}", "{b} {mask} {a}", "{a|unpunctuated} {mask} {b}"):
        found = Encoder(prompt_tokenizer, parse_pattern(source, FIELDS), 33).encode(tokens)
        assert apart(found) == apart(encode(prompt_tokenizer, source, texts, 33))
    assert streamed.passes == 3
    with pytest.raises(SettingsError, match="text 'text-1' does not fit"):
        long = Streamed(texts_of(("soup", "fine"), ("soup " * 40, "fine")))
        Encoder(prompt_tokenizer, parse_pattern("{a|whole} {mask}", FIELDS), 24).encode(
            TokenizedTexts(prompt_tokenizer, long)
        )


# ---- rows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("truncation", CUTS)
def test_rows_know_their_number_and_their_lengths_before_they_are_put_together(prompt_tokenizer, truncation):
    for source in ("{a} ( {mask} ) || {b}", "{mask} {b}"):
        rows = encode(prompt_tokenizer, source, random_texts(8, 30), 33, truncation)
        sizes = [len(row.ids) for row in apart(rows)]
        assert max(sizes) == 33 > min(sizes), "some were cut, some not"
        assert len(rows) == 30
        assert rows.lengths().tolist() == sizes
        assert rows.lengths(slice(4, 9)).tolist() == sizes[4:9]
        chosen = np.array([29, 0, 7, 7])
        assert rows.lengths(chosen).tolist() == [sizes[row] for row in chosen]
    assert rows.lengths(slice(0, 0)).shape == rows.lengths(np.empty(0, dtype=np.int64)).shape == (0,)


def test_a_row_does_not_depend_on_which_others_are_put_together_with_it(prompt_tokenizer):
    rows = encode(prompt_tokenizer, "{a} ( {mask} ) || {b}", random_texts(9, 15), 33)
    all_of_them = apart(rows)
    rng = np.random.default_rng(0)
    for _ in range(10):
        chosen = rng.integers(15, size=rng.integers(1, 9))
        assert apart(rows, chosen) == [all_of_them[row] for row in chosen]


def test_no_texts_make_no_rows(prompt_tokenizer):
    rows = encode(prompt_tokenizer, "{a} {mask}", Texts([], {"a": [], "b": []}, []))
    assert (len(rows), rows.lengths().tolist(), apart(rows)) == (0, [], [])


# ---- pieces to their places ----------------------------------------------------------------------------------------


def random_sizes(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Some of nothing."""
    return rng.integers(0, 6, size=rows) * rng.integers(0, 2, size=rows)


def test_every_token_of_rows_end_to_end_knows_its_row_and_its_place():
    rng = np.random.default_rng(0)
    for sizes in ([], [0], [0, 0, 3], [2, 0, 1], *(random_sizes(rng, 9) for _ in range(20))):
        expected = [(row, place) for row, size in enumerate(sizes) for place in range(size)]
        row_of, places = ragged(np.asarray(sizes, dtype=np.int64))
        assert list(zip(row_of.tolist(), places.tolist(), strict=True)) == expected


def test_values_are_spread_over_the_places_of_a_mask_in_their_order():
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = rng.integers(0, 2, size=rng.integers(0, 12))
        values = iter(range(100))
        expected = [next(values) if one else -7 for one in mask]
        assert spread(np.arange(mask.sum(), dtype=np.int32), mask, -7).tolist() == expected


@pytest.mark.parametrize("rows", [0, 1, 8])
def test_pieces_are_copied_to_their_places_in_every_row(rows):
    """Against one list a row, grown piece by piece."""
    rng = np.random.default_rng(rows)
    texts = random_ids(1, 12)
    column = TokenColumn([texts], len(texts))
    chosen = rng.integers(12, size=rows)
    fixed = np.array([5, 6, 7], dtype=np.int32)
    part = rng.integers(0, column.sizes(chosen) + 1)
    pieces = [
        (fixed, np.full(rows, 3), [0, 1, 0]),
        (column, column.sizes(chosen), 1),
        (np.empty(0, dtype=np.int32), np.zeros(rows, dtype=np.int64), []),
        (column, part, 0),
        (fixed[:1], np.ones(rows, dtype=np.int64), 4),
    ]
    lengths = np.sum([sizes for _, sizes, _ in pieces], axis=0, dtype=np.int64)
    masks = rng.integers(9, size=rows)
    found = assemble(pieces, chosen, lengths, masks)
    ids: list[int] = []
    types: list[int] = []
    for place, row in enumerate(chosen):
        text = texts[row].tolist()
        ids += [5, 6, 7, *text, *text[: part[place]], 5]
        types += [0, 1, 0, *([1] * len(text)), *([0] * part[place]), 4]
    assert (found.ids.tolist(), found.types.tolist()) == (ids, types)
    assert (found.lengths.tolist(), found.mask_places.tolist()) == (lengths.tolist(), masks.tolist())


# ---- batches -------------------------------------------------------------------------------------------------------


LAYOUTS = {
    "packed": Layout(False),
    "packed, in steps of 8": Layout(False, width_multiple=8),
    "packed, filled up": Layout(False, None, 128, 64),
    "padded": Layout(True),
    "padded, in steps of 8": Layout(True, width_multiple=8),
    "padded to 50": Layout(True, 50, 32, 64),
}


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> Layout:
    return LAYOUTS[request.param]


def plain(batch: Batch) -> dict[str, Any]:
    """A batch as lists."""
    found = {one.name: getattr(batch, one.name) for one in dataclasses.fields(batch)}
    return {name: one.tolist() if isinstance(one, torch.Tensor) else one for name, one in found.items()}


def reference_batch(rows: list[Row], layout: Layout, prompt_tokenizer: PromptTokenizer) -> dict[str, Any]:
    """A token at a time; the last row, if there is one too many, is what fills the batch up."""
    longest = max(len(row.ids) for row in rows)
    width = layout.width or next(one for one in range(longest, 1000) if one % layout.width_multiple == 0)
    ids, types, places, row_of, starts, masks, attention = [], [], [], [], [0], [], []
    for number, row in enumerate(rows):
        masks.append(len(ids) + row.mask)
        missing = width - len(row.ids) if layout.padded else 0
        ids += row.ids + [prompt_tokenizer.pad_id] * missing
        types += row.types + [0] * missing
        attention += [1] * len(row.ids) + [0] * missing
        places += range(len(row.ids) + missing)
        row_of += [number] * (len(row.ids) + missing)
        starts.append(len(ids))
    if layout.token_multiple > 1 and not layout.padded:
        size = 0
        while len(ids) % layout.token_multiple:
            ids, types, places, row_of = [*ids, 0], [*types, 0], [*places, size], [*row_of, len(rows)]
            size += 1
        starts.append(len(ids))
    return {
        "input_ids": ids,
        "token_type_ids": types if prompt_tokenizer.has_types else None,
        "places": places,
        "rows": row_of,
        "starts": starts,
        "mask_positions": masks,
        "width": width,
        "full": False,
        "attention_mask": attention if layout.padded else None,
    }


@pytest.mark.parametrize("chosen", [[7, 2, 2, 11], [0], list(range(12))], ids=["repeated", "one", "all"])
def test_a_batch_holds_the_chosen_rows_in_their_order_as_the_layout_says(prompt_tokenizer, layout, chosen):
    rows = encode(prompt_tokenizer, "{a} {mask} || {b}", random_texts(3, 12), 40)
    batch = rows.batch(np.array(chosen), layout)
    assert plain(batch) == reference_batch(apart(rows, chosen), layout, prompt_tokenizer)
    assert len(batch) == len(chosen)
    assert batch.starts.dtype == torch.int32, "what attention kernels ask for"
    assert (batch.input_ids[batch.mask_positions] == prompt_tokenizer.mask_id).all()


def test_a_batch_may_hold_rows_of_several_sources(prompt_tokenizer, layout):
    first, second = (
        encode(prompt_tokenizer, source, random_texts(number, 9), 40) for number, source in enumerate(SPACED[:2])
    )
    chosen = [np.array([3, 8]), np.array([0, 0, 5]), np.array([3])]
    batch = collate([first, second, first], chosen, layout)
    alone = [row for rows, some in zip([first, second, first], chosen, strict=True) for row in apart(rows, some)]
    assert plain(batch) == reference_batch(alone, layout, prompt_tokenizer)
    none = np.empty(0, dtype=np.int64)
    assert plain(collate([first, second], [chosen[0], none], layout)) == plain(first.batch(chosen[0], layout))


def test_a_row_without_a_mask_has_no_mask_position(prompt_tokenizer, layout):
    rows = Encoder(prompt_tokenizer, plain_pattern(FIELDS), 40).encode(
        TokenizedTexts(prompt_tokenizer, random_texts(1, 5))
    )
    assert rows.batch(np.array([1, 4, 0]), layout).mask_positions.tolist() == [-1, -1, -1]


def test_batches_one_after_another_are_the_batch_of_all_their_rows(prompt_tokenizer):
    rows = encode(prompt_tokenizer, "{a} {mask} || {b}", random_texts(3, 12), 40)
    cuts = [[7, 2], [2], [11, 0, 5]]
    for layout in (Layout(False, width_multiple=8), Layout(True, 40)):
        parts = [rows.batch(np.array(cut), layout) for cut in cuts]
        whole = rows.batch(np.concatenate(cuts), layout)
        assert plain(join_batches(parts)) == plain(whole)
        assert join_batches(parts).starts.dtype == whole.starts.dtype


def test_filling_up_a_batch_is_the_layout_s_last_step_and_none_where_rows_are_padded(prompt_tokenizer):
    rows = encode(prompt_tokenizer, "{a} {mask} || {b}", random_texts(3, 12), 40)
    chosen = np.arange(5)
    bare = rows.batch(chosen, Layout(False, None, 128))
    assert plain(pad_to_multiples(bare, LAYOUTS["packed, filled up"])) == plain(
        rows.batch(chosen, LAYOUTS["packed, filled up"])
    )
    padded = rows.batch(chosen, Layout(True))
    assert pad_to_multiples(padded, Layout(True, token_multiple=64)) is padded


def test_a_batch_that_needs_no_filling_has_as_many_rows_as_one_that_does(prompt_tokenizer):
    """So that batches of equally many tokens have equal shapes."""
    texts = texts_of(("soup", ""), ("soup bread", ""))
    rows = encode(prompt_tokenizer, "{a} {mask}", texts)
    one, other = rows.lengths().tolist()
    some, none = (rows.batch(np.array([row] * 4), Layout(False, None, 128, 4 * other)) for row in (0, 1))
    assert some.starts.tolist() == [0, one, 2 * one, 3 * one, 4 * one, 4 * other]
    assert none.starts.tolist() == [0, other, 2 * other, 3 * other, 4 * other, 4 * other]
    assert some.input_ids.shape == none.input_ids.shape


def test_the_width_of_a_batch_is_that_of_its_longest_row_in_steps_or_the_layout_s():
    lengths = np.array([3, 17, 5])
    for layout, width in ((Layout(False), 17), (Layout(True, None, 8), 24), (Layout(False, None, 128, 64), 128)):
        assert layout.width_of(lengths) == width
    assert Layout(True, 40, 32).width_of(lengths) == 40


def test_a_number_is_rounded_up_to_a_multiple():
    assert [round_up(number, 8) for number in (0, 1, 7, 8, 9, 16, 17)] == [0, 8, 8, 8, 16, 16, 24]
    assert [round_up(number, 64) for number in (0, 1, 64, 65)] == [0, 64, 64, 128]
    assert round_up(5, 1) == 5


def test_a_batch_moves_to_a_device_as_a_whole(prompt_tokenizer, layout):
    batch = encode(prompt_tokenizer, "{a} {mask} || {b}", random_texts(3, 12), 40).batch(np.arange(4), layout)
    assert plain(batch.to(torch.device("cpu"))) == plain(batch)
    moved = batch.to(torch.device("meta"))
    for name, value in vars(batch).items():
        there = getattr(moved, name)
        if isinstance(value, torch.Tensor):
            assert (there.device.type, there.shape, there.dtype) == ("meta", value.shape, value.dtype), name
        else:
            assert there == value, name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned memory is a GPU's")
def test_a_tensor_keeps_its_values_on_a_gpu_and_in_the_next_steps():
    tensors = [torch.arange(1000) + number for number in range(20)]
    sent = [send(one, torch.device("cuda")) for one in tensors]
    assert all(one.is_cuda for one in sent)
    assert all(torch.equal(one.cpu(), other) for one, other in zip(sent, tensors, strict=True))
    assert send(sent[0], torch.device("cuda")) is sent[0]
    assert torch.equal(send(sent[0], torch.device("cpu")), tensors[0])


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")),
    ],
)
def test_what_is_received_has_the_values_of_when_it_was_asked_for(device):
    """Also on a GPU that is asked for something else before anyone looks."""
    device = torch.device(device)
    found = []
    for number in range(20):
        tensor = torch.full((1000,), number, device=device)
        found.append(receive([("name", tensor)], device))
        if device.type == "cuda":
            tensor.zero_()
    for number, one in enumerate(found):
        ((name, tensor),) = one()
        assert (name, tensor.tolist()) == ("name", [number] * 1000)
        assert tensor.device.type == "cpu"


def test_a_tensor_that_is_there_already_stays_where_it_is():
    one = torch.arange(3)
    assert send(one, torch.device("cpu")) is one
