"""Patterns as data: what a line of a task card means, and which lines are refused."""

import pytest

from pet.errors import TaskError
from pet.tasks.patterns import Literal, Mask, Slot, parse_pattern

FIELDS = ("headline", "body")


def refusal(source: str, fields: tuple[str, ...] = FIELDS) -> str:
    with pytest.raises(TaskError) as raised:
        parse_pattern(source, fields)
    return str(raised.value)


def test_a_pattern_is_parsed_into_literals_texts_and_one_mask():
    pattern = parse_pattern("[ Category: {mask} ] {headline} {body}", FIELDS)
    assert pattern.segments == (
        (
            Literal("[ Category:", spaced=True),
            Mask(spaced=True),
            Literal("]", spaced=True),
            Slot("headline", spaced=True),
            Slot("body", spaced=True),
        ),
    )
    assert pattern.source == "[ Category: {mask} ] {headline} {body}"


def test_what_is_written_without_a_space_is_glued_to_what_precedes_it():
    parts = parse_pattern("{headline}: ({mask}){body}", FIELDS).segments[0]
    assert parts == (
        Slot("headline", spaced=True),
        Literal(": (", spaced=False),
        Mask(spaced=False),
        Literal(")", spaced=False),
        Slot("body", spaced=False),
    )


def test_amounts_of_white_space_mean_nothing():
    tidy = parse_pattern("It was {mask} . || {body}", FIELDS)
    loose = parse_pattern("  It \t was   {mask}  .||   {body} ", FIELDS)
    assert loose.segments == tidy.segments


def test_two_bars_divide_a_pattern_into_two_segments():
    pattern = parse_pattern("Just {mask} ! || {body}", FIELDS)
    assert pattern.segments == (
        (Literal("Just", spaced=True), Mask(spaced=True), Literal("!", spaced=True)),
        (Slot("body", spaced=True),),
    )


def test_slots_and_mask_are_found_in_either_segment():
    pattern = parse_pattern("{body} {headline} || {mask} , {body}", FIELDS)
    assert [slot.field for slot in pattern.slots] == ["body", "headline", "body"]
    assert pattern.mask == Mask(spaced=True)


def test_texts_may_be_shortened_unless_the_pattern_says_whole():
    pattern = parse_pattern("{headline|whole} {body} {mask}", FIELDS)
    assert [slot.shortenable for slot in pattern.slots] == [False, True]


def test_modifiers_combine():
    (slot,) = parse_pattern("{body|unpunctuated|whole} {mask}", FIELDS).slots
    assert slot == Slot("body", spaced=True, shortenable=False, unpunctuated=True)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("It rained.", "It rained"),
        ("Did it rain?!) ", "Did it rain"),
        ("No . . . '", "No . . ."),  # a space ends what is dropped, as in the original code
        ("3.14", "3.14"),
        ("...", ""),
    ],
)
def test_unpunctuated_drops_all_punctuation_at_the_end_and_only_there(text, read):
    assert Slot("body", spaced=True, unpunctuated=True).read(text) == read


def test_a_text_is_read_without_white_space_around_it():
    assert Slot("body", spaced=True).read("  It rained. \n") == "It rained."


def test_fill_shows_the_pattern_as_a_person_reads_it():
    texts = {"headline": "Rain stops play.", "body": "Ninety runs are missing."}
    assert parse_pattern("{headline} ({mask}) {body}", FIELDS).fill(texts) == (
        "Rain stops play. (_) Ninety runs are missing."
    )
    assert parse_pattern('" {headline|unpunctuated} " ? || {mask} , {body}', FIELDS).fill(texts, mask="<mask>") == (
        '" Rain stops play " ? || <mask> , Ninety runs are missing.'
    )


def test_fill_needs_no_space_before_the_first_text_that_is_not_empty():
    assert parse_pattern("{headline} {body} {mask}", FIELDS).fill({"headline": "", "body": "b"}) == "b _"


def test_a_pattern_without_a_mask_is_refused():
    problem = refusal("{headline} {body}")
    assert "'{headline} {body}' has no {mask}" in problem
    assert "write {mask} exactly once" in problem


def test_a_pattern_with_two_masks_is_refused_even_across_segments():
    assert "2 times {mask}" in refusal("{mask} {headline} || {mask}")


@pytest.mark.parametrize("source", ["{mask} {body} || ", "|| {mask} {body}", "{mask} {body} ||   "])
def test_an_empty_segment_is_refused(source):
    assert "put something on both sides of `||`" in refusal(source)


def test_three_segments_are_refused():
    assert "has 3 segments" in refusal("{mask} || {headline} || {body}")


def test_an_unknown_text_is_named_with_the_known_ones():
    problem = refusal("{mask} {heading}")
    assert "{heading}" in problem
    assert "['headline', 'body']" in problem


def test_an_unknown_modifier_is_named_with_the_known_ones():
    problem = refusal("{mask} {body|whole|loud}")
    assert "'loud'" in problem
    assert "['unpunctuated', 'whole']" in problem


def test_the_mask_takes_no_modifier():
    assert "{mask|whole}; expected {mask}" in refusal("{mask|whole} {body}")


@pytest.mark.parametrize("source", ["{mask} {body", "{mask} body}", "{mask} {{body}}", "{mask} {bo{dy}"])
def test_a_stray_brace_is_refused(source):
    assert "stray brace; write {mask} or {headline}" in refusal(source)


def test_an_empty_pair_of_braces_is_refused():
    assert "uses {}; expected {mask} or one of" in refusal("{mask} {}")


def test_a_pattern_may_consist_of_the_mask_and_no_text():
    assert parse_pattern("{mask}", FIELDS).slots == []


def test_patterns_cannot_be_changed():
    with pytest.raises(AttributeError):
        parse_pattern("{mask} {body}", FIELDS).source = "x"
