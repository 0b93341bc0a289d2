"""Where pattern, text and tokenizer meet: rows read like the filled pattern, fit, and never lose what is asked.

The three kinds of tokenizer differ in what they do at the start of a part; `reference_row` says so by hand, a kind a
line, and cuts one token at a time.
"""

import random
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from tiny import TOKENIZERS, WORDS
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pet.encoding import (
    Encoder,
    Rows,
    Speller,
    TokenizedTexts,
    encode_verbalizers,
    glued_parts,
    pad_rows,
    padded_length,
    plain_pattern,
    shorten_last_part,
    shorten_longest,
    training_width,
)
from pet.errors import SHOWN_PROBLEMS, ModelError, SettingsError, TaskError
from pet.examples import Texts
from pet.patterns import PVP, Mask, Pattern, Slot, parse_pattern, read_part

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
def speller(request: pytest.FixtureRequest) -> Speller:
    return Speller(TOKENIZERS[request.param](), request.param)


def texts_of(*rows: tuple[str, ...]) -> Texts:
    fields = {name: [row[number] for row in rows] for number, name in enumerate(FIELDS[: len(rows[0])])}
    return Texts([f"text-{number}" for number in range(len(rows))], fields, [None] * len(rows))


def encode(speller: Speller, source: str, texts: Texts, max_length: int = 128, truncation: str = "longest-first"):
    pattern = parse_pattern(source, FIELDS)
    return Encoder(speller, pattern, max_length, truncation).encode(TokenizedTexts(speller, texts))


def pieces(speller: Speller, source: str, *row: str) -> list[str]:
    rows = encode(speller, source, texts_of(row))
    return speller.tokenizer.convert_ids_to_tokens(rows.ids[0].tolist())


def squeezed(speller: Speller, text: str) -> str:
    text = "".join(text.split())
    return text.lower() if speller.name == "wordpiece" else text


def random_texts(seed: int, count: int, most: int = 30) -> Texts:
    """Invented sentences; some are empty, some have unknown words and punctuation."""
    rng = random.Random(seed)

    def text() -> str:
        size = rng.choice([0, 1, rng.randrange(most), rng.randrange(most)])
        words = [rng.choice([*WORDS, "World", "zq", "x,", "done.", "(well)"]) for _ in range(size)]
        return " ".join(words) + rng.choice(["", ".", "!?", "  "])

    return texts_of(*[(text(), text()) for _ in range(count)])


# ---- an independent reference --------------------------------------------------------------------------------------


def reference_ids(speller: Speller, text: str, spaced: bool) -> list[int]:
    """Ids of a part in the middle of a sentence; glue is taken to be punctuation."""

    def ids(words: str) -> list[int]:
        return speller.tokenizer(words, add_special_tokens=False)["input_ids"]

    if not text:
        return []
    if speller.name == "byte-bpe":  # the space is a part of the token
        return ids(" " + text if spaced else text)
    if speller.name == "wordpiece" or spaced:  # nothing is left of the space; or the word-start mark is always there
        return ids(text)
    return ids("(" + text)[len(ids("(")) :]


def reference_row(speller: Speller, pattern: Pattern, row: dict[str, str], max_length: int, cut: Any) -> list[int]:
    """Tokenise the parts, cut one token at a time, put the special tokens around."""
    parts: list[tuple[int, list[int], bool]] = []
    for number, segment in enumerate(pattern.segments):
        for part in segment:
            if isinstance(part, Mask):
                ids = [speller.tokenizer.mask_token_id]
            else:
                ids = reference_ids(speller, read_part(part, row), part.spaced)
            parts.append((number, ids, isinstance(part, Slot) and part.shortenable))
    two = len(pattern.segments) == 2
    if speller.name == "wordpiece":
        before, between, after = ["[CLS]"], ["[SEP]"], ["[SEP]"]
    else:
        before, between, after = ["<s>"], ["</s>", "</s>"], ["</s>"]
    specials = len(before + between * two + after)
    while sum(len(ids) for _, ids, _ in parts) + specials > max_length:
        cut(parts)
    first, second = ([one for number, ids, _ in parts if number == side for one in ids] for side in (0, 1))
    frame = [speller.tokenizer.convert_tokens_to_ids(one) for one in (before, between * two, after)]
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
    speller = Speller(TOKENIZERS[kind](), kind)
    assert pieces(speller, "{a} ( {mask} ) {a}", "soup")[2:-2] == spaced
    assert pieces(speller, "{a} ({mask}) {a}", "soup")[2:-2] == glued


@pytest.mark.parametrize(
    ("kind", "first", "glued"),
    [("wordpiece", "soup", "soup"), ("byte-bpe", "\u0120soup", "s"), ("unigram", "\u2581soup", "s")],
)
def test_a_word_at_the_start_of_a_row_is_spelled_as_in_the_middle_and_a_glued_one_is_not(kind, first, glued):
    speller = Speller(TOKENIZERS[kind](), kind)
    assert pieces(speller, "{a} {mask}", "soup")[1] == first
    assert pieces(speller, "{a} {mask} || {b}", "bread", "soup")[-2] == first
    found = pieces(speller, "({a}) {mask}", "soup")
    assert found[found.index(next(one for one in found if one.endswith("("))) + 1] == glued


@pytest.mark.parametrize("source", SPACED + GLUED)
def test_a_row_reads_like_the_filled_pattern(speller, source):
    row = ("River bank was warm .", "Soup, bread: just fine!")
    rows = encode(speller, source, texts_of(row))
    filled = parse_pattern(source, FIELDS).fill(dict(zip(FIELDS, row, strict=True)), speller.tokenizer.mask_token)
    special = {speller.tokenizer.cls_token_id, speller.tokenizer.sep_token_id}
    shown = speller.tokenizer.decode([one for one in rows.ids[0] if one not in special])
    assert squeezed(speller, shown) == squeezed(speller, filled.replace(" || ", ""))


@pytest.mark.parametrize("source", SPACED + GLUED)
def test_splicing_parts_equals_tokenising_the_whole_filled_string(speller, source):
    parts = [part for segment in parse_pattern(source, FIELDS).segments for part in segment]
    glue = any(isinstance(left, Mask) and not right.spaced for left, right in pairwise(parts))
    row = {"a": "River bank was warm .", "b": "Soup, bread: just fine"}
    rows = encode(speller, source, texts_of(tuple(row.values())))
    filled = parse_pattern(source, FIELDS).fill(row, speller.tokenizer.mask_token).split(" || ")
    if speller.name == "byte-bpe":
        filled = [" " + segment for segment in filled]  # the paper's code: add_prefix_space
    whole = speller.tokenizer(*filled)
    expected = list(whole["input_ids"])
    if speller.name == "unigram" and glue:  # tokenised whole, a word-start mark follows every special token
        mark = expected.pop(expected.index(speller.mask_id) + 1)
        assert speller.tokenizer.convert_ids_to_tokens(mark) == "\u2581"
    assert rows.ids[0].tolist() == expected
    assert rows.types[0].tolist() == whole.get("token_type_ids", [0] * len(expected))


def test_a_glued_part_that_would_melt_into_its_neighbour_is_spelled_alone():
    speller = Speller(TOKENIZERS["unigram"](), "unigram")
    assert speller.spell(["ll"], after="a")[0].tolist() == speller.spell(["ll"])[0].tolist(), "`all` is one token"


def test_every_text_after_a_mask_or_text_is_glued_to_a_letter_and_after_a_literal_to_its_end():
    parts = glued_parts(parse_pattern("{a}: ({mask})x || {b}{a}", FIELDS))
    assert [(number, after) for number, _, after in parts] == [
        *[(0, None), (0, "a"), (0, "("), (0, "a")],
        *[(1, None), (1, "a")],
    ]


# ---- special tokens ------------------------------------------------------------------------------------------------


def test_special_tokens_and_types_of_one_and_two_segments_are_the_tokenizer_s(speller):
    one, two = "soup was warm", "bread"
    for texts, fields in (((one,), ("a",)), ((one, two), ("a", "b"))):
        rows = Encoder(speller, plain_pattern(fields), 64).encode(TokenizedTexts(speller, texts_of(texts)))
        whole = speller.tokenizer(*texts)
        assert rows.ids[0].tolist() == whole["input_ids"]
        assert rows.types[0].tolist() == whole.get("token_type_ids", [0] * len(rows.ids[0]))
        assert rows.mask_positions.tolist() == [-1]


def test_only_wordpiece_has_token_types(speller):
    batch = pad_rows(encode(speller, "{mask} {a} || {b}", texts_of(("a", "it"))), np.array([0]), speller)
    assert speller.has_types == (speller.name == "wordpiece")
    assert ("token_type_ids" in batch.inputs) == speller.has_types


def test_a_plain_classifier_reads_its_first_field_and_the_others_as_second_segment():
    one, two, three = (plain_pattern(fields) for fields in (["x"], ["x", "y"], ["x", "y", "z"]))
    assert [[slot.field for slot in segment] for segment in one.segments] == [["x"]]
    assert [[slot.field for slot in segment] for segment in two.segments] == [["x"], ["y"]]
    assert [[slot.field for slot in segment] for segment in three.segments] == [["x"], ["y", "z"]]
    assert [slot.spaced for slot in three.slots] == [False, False, True]
    assert all(slot.shortenable for slot in three.slots)


def test_three_fields_of_a_plain_classifier_are_tokenised_as_two_segments(speller):
    texts = Texts(["1"], {"x": ["soup"], "y": ["warm bread"], "z": ["bad waiter"]}, [None])
    rows = Encoder(speller, plain_pattern(["x", "y", "z"]), 64).encode(TokenizedTexts(speller, texts))
    assert rows.ids[0].tolist() == speller.tokenizer("soup", "warm bread bad waiter")["input_ids"]


def test_special_tokens_written_in_a_text_are_only_characters(speller):
    if speller.name == "unigram":  # a SentencePiece vocabulary holds them as pieces of its own: nothing to split
        assert speller.mask_id in speller.spell(["soup <mask> bread"])[0]
        return
    for token in speller.tokenizer.all_special_tokens:
        ids = speller.spell([f"soup {token} bread"])[0]
        assert not set(ids.tolist()) & {speller.mask_id, speller.pad_id, *speller.frames[2].before}


@pytest.mark.parametrize(("left_out", "word"), [("mask_token", "mask"), ("pad_token", "padding")])
def test_a_tokenizer_without_mask_or_padding_is_refused(left_out, word):
    bare = Tokenizer(models.WordLevel({"[UNK]": 0, "[MASK]": 1, "[PAD]": 2, "a": 3}, unk_token="[UNK]"))
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    specials = {"unk_token": "[UNK]", "mask_token": "[MASK]", "pad_token": "[PAD]"}
    del specials[left_out]
    with pytest.raises(ModelError, match=f"'left-to-right': its tokenizer has no {word} token"):
        Speller(PreTrainedTokenizerFast(tokenizer_object=bare, **specials), "left-to-right")


# ---- truncation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("truncation", CUTS)
@pytest.mark.parametrize("number", range(len(SPACED + GLUED)))
def test_rows_equal_those_of_a_reference_that_cuts_one_token_at_a_time(speller, truncation, number):
    pattern = parse_pattern((SPACED + GLUED)[number], FIELDS)
    texts = random_texts(number, 20)
    for max_length in (26, 33, 48):
        rows = Encoder(speller, pattern, max_length, truncation).encode(TokenizedTexts(speller, texts))
        for row, found in enumerate(rows.ids):
            filled = {name: column[row] for name, column in texts.fields.items()}
            assert found.tolist() == reference_row(speller, pattern, filled, max_length, CUTS[truncation])


@pytest.mark.parametrize("truncation", CUTS)
@pytest.mark.parametrize("source", SPACED + GLUED)
def test_truncation_never_loses_the_mask_or_a_word_of_the_pattern(speller, truncation, source):
    pattern = parse_pattern(source, FIELDS)
    bare = encode(speller, source, texts_of(("", ""))).ids[0].tolist()
    for max_length in (len(bare) + 1, len(bare) + 7):
        rows = encode(speller, source, random_texts(7, 30), max_length, truncation)
        assert rows.lengths.max() == max_length, "room is used"
        for ids, types, position in zip(rows.ids, rows.types, rows.mask_positions, strict=True):
            assert len(ids) == len(types) <= max_length
            assert ids[position] == speller.mask_id
            assert list(ids).count(speller.mask_id) == 1
            rest = iter(ids.tolist())
            assert all(one in rest for one in bare), f"{pattern.source}: the pattern's tokens, in their order"


def test_a_long_text_gives_way_before_a_short_one():
    speller = Speller(TOKENIZERS["wordpiece"](), "wordpiece")
    texts = texts_of(("soup bread", "good " * 40))
    longest = encode(speller, "{a} {b} {mask}", texts, 12)
    assert (
        speller.tokenizer.decode(longest.ids[0]) == "[CLS] soup bread good good good good good good good [MASK] [SEP]"
    )
    texts = texts_of(("good " * 40, "soup bread"))
    last = encode(speller, "{a} {b} {mask}", texts, 12, "last-part")
    assert speller.tokenizer.decode(last.ids[0]) == "[CLS] good good good good good good good good good [MASK] [SEP]"


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


@pytest.mark.parametrize("truncation", CUTS)
def test_a_whole_text_keeps_every_token(speller, truncation):
    question = "was the soup warm"
    rows = encode(speller, "{a|whole} ? {mask} . {b}", texts_of((question, "it was fine " * 30)), 32, truncation)
    size = len(reference_ids(speller, question, True))
    assert rows.ids[0][1 : 1 + size].tolist() == reference_ids(speller, question, True)
    assert len(rows.ids[0]) == 32


def test_a_whole_text_that_leaves_no_room_is_named(speller):
    texts = texts_of(("soup", "fine"), ("soup " * 40, "fine"))
    with pytest.raises(SettingsError) as raised:
        encode(speller, "{a|whole} ? {mask} . {b}", texts, 24)
    assert "text 'text-1' does not fit pattern '{a|whole} ? {mask} . {b}'" in str(raised.value)
    assert "model.max_length 24" in str(raised.value)


def test_a_pattern_that_does_not_fit_is_refused_before_any_text_is_read(speller):
    source = "In summary, the restaurant is just {mask} . {a}"
    size = len(encode(speller, source, texts_of(("", ""))).ids[0])
    with pytest.raises(SettingsError, match=rf"takes {size} tokens without its texts; model.max_length is {size}"):
        Encoder(speller, parse_pattern(source, FIELDS), size)
    Encoder(speller, parse_pattern(source, FIELDS), size + 1)


@pytest.mark.parametrize("empty", ["", " \t "])
def test_an_empty_text_leaves_no_token(speller, empty):
    with_empty = encode(speller, "{a} {mask} : {b}", texts_of((empty, "soup")))
    without = encode(speller, "{mask} : {b}", texts_of(("", "soup")))
    assert with_empty.ids[0].tolist() == without.ids[0].tolist()


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
    speller = Speller(counting, kind)
    tokens = TokenizedTexts(speller, texts_of(("river bank", "soup"), ("goal team", "bread")))
    for source in ("{a} {mask} {b}", "{mask} News: {a} {b}", "{b} || {a} ? {mask}"):
        Encoder(speller, parse_pattern(source, FIELDS), 64).encode(tokens)
    for text in ("river bank", "soup", "goal team", "bread"):
        assert sum(text in one for one in counting.seen) == 1, text


def test_a_text_without_its_punctuation_or_glued_is_another_text():
    speller = Speller(TOKENIZERS["byte-bpe"](), "byte-bpe")
    tokens = TokenizedTexts(speller, texts_of(("soup .", "bread")))
    full, bare, glued = (
        Encoder(speller, parse_pattern(source, FIELDS), 64).encode(tokens).ids[0].tolist()
        for source in ("{mask} {a}", "{mask} {a|unpunctuated}", "{mask}{a}")
    )
    assert full[:-2] == bare[:-1]
    assert speller.tokenizer.decode(glued) == "<s><mask>soup .</s>"


# ---- label words ---------------------------------------------------------------------------------------------------


def pvp(source: str, **words: tuple[str, ...]) -> PVP:
    return PVP(0, parse_pattern(source, FIELDS), words)


def test_the_score_of_a_label_is_the_mean_of_its_words(speller):
    words = {"yes": ("good", "great", "fine"), "no": ("bad",), "so": ("okay", "maybe")}
    (found,) = encode_verbalizers(speller, [pvp("It was {mask} . {a}", **words)], "mood")
    ids = [reference_ids(speller, word, True) for group in words.values() for word in group]
    assert found.words.tolist() == [one for (one,) in ids]
    scores = torch.arange(6, dtype=torch.float32) ** 2
    assert torch.allclose(scores @ found.averaging, torch.tensor([(0 + 1 + 4) / 3, 9.0, (16 + 25) / 2]))


def test_label_words_can_be_moved_to_a_device(speller):
    (found,) = encode_verbalizers(speller, [pvp("{a} {mask}", yes=("good", "great"), no=("bad",))], "mood")
    moved = found.to(torch.device("meta"))
    assert moved.words.device.type == moved.averaging.device.type == "meta"
    assert (moved.words.shape, moved.averaging.shape) == ((3,), (3, 2))
    same = found.to(torch.device("cpu"))
    assert torch.equal(same.words, found.words)
    assert torch.equal(same.averaging, found.averaging)


def test_a_label_word_is_spelled_as_it_stands_at_the_mask():
    speller = Speller(TOKENIZERS["byte-bpe"](), "byte-bpe")
    words = {"one": ("a",), "two": ("it",)}
    spaced, glued = encode_verbalizers(speller, [pvp("({a}) {mask}", **words), pvp("{a} ({mask})", **words)], "mood")
    assert speller.tokenizer.convert_ids_to_tokens(spaced.words.tolist()) == ["\u0120a", "\u0120it"]
    assert speller.tokenizer.convert_ids_to_tokens(glued.words.tolist()) == ["a", "it"]


def test_a_word_of_several_tokens_is_refused_with_task_label_word_tokenizer_and_pieces(speller):
    with pytest.raises(TaskError) as raised:
        encode_verbalizers(speller, [pvp("{a} {mask}", good=("good",), bad=("qqwq",))], "mood")
    shown = speller.tokenizer.convert_ids_to_tokens(reference_ids(speller, "qqwq", True))
    assert len(shown) > 1 or speller.name == "wordpiece"
    problem = f"label 'bad', word 'qqwq' is {len(shown)} tokens {shown}"
    assert str(raised.value) == f"task 'mood': label words must be one known token of {speller.name!r}: {problem}"


def test_all_words_that_cannot_be_used_are_named_at_once_and_each_once():
    speller = Speller(TOKENIZERS["byte-bpe"](), "byte-bpe")
    bad = [f"{letter}qxz" for letter in "abcdefg"]
    first = pvp("{a} {mask}", one=("good", *bad[:3]), two=("bad",))
    second = pvp("{mask} {a}", one=("good", *bad[:3]), two=tuple(bad[3:]))
    with pytest.raises(TaskError) as raised:
        encode_verbalizers(speller, [first, second], "mood")
    problem = str(raised.value)
    assert all(problem.count(repr(word)) == 1 for word in bad[:SHOWN_PROBLEMS])
    assert problem.endswith(f"and {len(bad) - SHOWN_PROBLEMS} more")


@pytest.mark.parametrize(("kind", "word"), [("wordpiece", "\u4e2d"), ("wordpiece", "[SEP]"), ("byte-bpe", "</s>")])
def test_an_unknown_or_special_token_is_no_label_word(kind, word):
    speller = Speller(TOKENIZERS[kind](), kind)
    with pytest.raises(TaskError, match="must be one known token"):
        encode_verbalizers(speller, [pvp("{a} {mask}", good=("good",), bad=(word,))], "mood")


# ---- batches -------------------------------------------------------------------------------------------------------


def test_rows_are_padded_to_a_multiple_of_eight():
    assert [padded_length(length) for length in (1, 7, 8, 9, 16, 17)] == [8, 8, 8, 16, 16, 24]


def test_a_length_can_be_padded_to_another_multiple():
    assert [padded_length(length, 64) for length in (0, 1, 64, 65)] == [0, 64, 64, 128]


def test_a_training_batch_is_as_wide_as_its_longest_row_in_steps_of_sixteen():
    lengths = (3, 16, 17, 5, 40)
    rows = Rows([np.full(size, 9, dtype=np.int32) for size in lengths], [], np.zeros(5, dtype=np.int32))
    for chosen, width in (([0], 16), ([1, 3], 16), ([2], 32), ([3, 2, 1], 32), ([0, 4], 48)):
        assert training_width(rows, np.array(chosen)) == width


def test_a_batch_holds_the_chosen_rows_in_their_order_and_padding_that_is_not_attended_to(speller):
    rows = encode(speller, "{a} {mask} || {b}", random_texts(3, 12), 40)
    chosen = np.array([7, 2, 2, 11])
    batch = pad_rows(rows, chosen, speller)
    width = batch.input_ids.shape[1]
    assert width % 8 == 0
    assert width - 8 < max(len(rows.ids[row]) for row in chosen) <= width
    for place, row in enumerate(chosen):
        size = len(rows.ids[row])
        assert batch.input_ids[place].tolist() == rows.ids[row].tolist() + [speller.pad_id] * (width - size)
        assert batch.attention_mask[place].tolist() == [1] * size + [0] * (width - size)
        if speller.has_types:
            assert batch.inputs["token_type_ids"][place].tolist() == rows.types[row].tolist() + [0] * (width - size)
        assert batch.input_ids[place, batch.mask_positions[place]] == speller.mask_id


def test_a_batch_can_be_padded_to_a_given_length_and_moved_to_a_device(speller):
    rows = encode(speller, "{a} {mask}", texts_of(("soup", ""), ("bread", "")))
    batch = pad_rows(rows, np.array([0, 1]), speller, length=40).to(torch.device("meta"))
    assert batch.input_ids.shape == (2, 40)
    assert all(tensor.device.type == "meta" for tensor in [*batch.inputs.values(), batch.mask_positions])


def test_rows_know_their_number_and_lengths():
    rows = Rows([np.arange(3, dtype=np.int32), np.arange(5, dtype=np.int32)], [], np.array([1, 1], dtype=np.int32))
    assert len(rows) == 2
    assert rows.lengths.tolist() == [3, 5]
