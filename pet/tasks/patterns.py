"""Patterns and verbalizers as data: the text of a cloze question, parsed and checked. Knows no tokenizer and no model.

A pattern is a line of a task card:

    {mask} : {headline} {body}
    "{premise|unpunctuated}" ? || {mask} , "{hypothesis}"

`{mask}` is the one slot the model fills; `{name}` is a text of the task; `||` is the boundary between the two segments
of an encoder pair; everything else stands for itself. After `|` come modifiers of a text: `unpunctuated` drops its
trailing punctuation, `whole` keeps it from being truncated.

White space only says that a new word begins: a part written directly after another one, as in `({mask})`, is glued to
it. How a tokenizer spells that difference is the business of `modeling/tokenization`.
"""

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pet.errors import TaskError
from pet.store.files import canonical_json

MODIFIERS = ("unpunctuated", "whole")


@dataclass(frozen=True, slots=True)
class Literal:
    """Words of the pattern itself. `spaced`: a new word begins here."""

    text: str
    spaced: bool


@dataclass(frozen=True, slots=True)
class Slot:
    """A text of the task. `shortenable`: it may be truncated; `unpunctuated`: without its trailing punctuation."""

    field: str
    spaced: bool
    shortenable: bool = True
    unpunctuated: bool = False

    def read(self, text: str) -> str:
        """The text as it stands in the pattern (P1 section 4.1: MNLI's premise loses its final punctuation)."""
        return text.strip().rstrip(string.punctuation).rstrip() if self.unpunctuated else text.strip()


@dataclass(frozen=True, slots=True)
class Mask:
    """The slot the model fills."""

    spaced: bool


Part = Literal | Slot | Mask


@dataclass(frozen=True, slots=True)
class Pattern:
    """One parsed pattern: one or two segments of parts, with exactly one `Mask` among them."""

    source: str
    segments: tuple[tuple[Part, ...], ...]

    @property
    def slots(self) -> list[Slot]:
        """All texts of the task it uses, in order."""
        return [part for segment in self.segments for part in segment if isinstance(part, Slot)]

    @property
    def mask(self) -> Mask:
        """Its one mask."""
        return next(part for segment in self.segments for part in segment if isinstance(part, Mask))

    def fill(self, texts: Mapping[str, str], mask: str = "_") -> str:
        """The pattern as a person reads it, with `texts` in place and `mask` for the slot."""
        lines = []
        for segment in self.segments:
            words = ""
            for part in segment:
                words += " " if part.spaced and words else ""
                words += mask if isinstance(part, Mask) else read_part(part, texts)
            lines.append(words)
        return " || ".join(lines)


def read_part(part: Literal | Slot, texts: Mapping[str, str]) -> str:
    """A literal's own text, or what a slot shows of its field."""
    return part.text if isinstance(part, Literal) else part.read(texts[part.field])


@dataclass(frozen=True, slots=True)
class PVP:
    """A pattern with the verbalizer it is asked with.

    `words`: label -> the words that stand for it, in the order of the task's labels. The score of a label is the mean
    of its words' logits (fact sheet 3.3). `repeated`: the card asks the same pattern with other words, too.
    """

    number: int
    pattern: Pattern
    words: dict[str, tuple[str, ...]]
    repeated: bool = False

    @property
    def name(self) -> str:
        """What tells it from the other pairs of its card, in seeds, identities and orders: the pattern's text and, only
        where the card asks that with several sets of words, its words. Two members that shared a name would be trained
        on the same texts in the same order."""
        return f"{self.pattern.source}\n{canonical_json(self.words)}" if self.repeated else self.pattern.source


def parse_pattern(source: str, fields: Sequence[str]) -> Pattern:
    """Parse one pattern line.

    `fields`: the names of the task's texts.

    Raises:
        TaskError: no mask or several, more than two segments, an unknown text or modifier, a stray brace.
    """
    segments = tuple(tuple(parse_segment(segment, source, fields)) for segment in source.split("||"))
    masks = sum(isinstance(part, Mask) for segment in segments for part in segment)
    if masks != 1:
        counted = "no {mask}" if masks == 0 else f"{masks} times {{mask}}"
        raise TaskError(f"pattern {source!r} has {counted}; write {{mask}} exactly once")
    if len(segments) > 2:
        raise TaskError(f"pattern {source!r} has {len(segments)} segments; `||` may stand at most once")
    if not all(segments):
        raise TaskError(f"pattern {source!r} has an empty segment; put something on both sides of `||`")
    return Pattern(source, segments)


def parse_segment(segment: str, source: str, fields: Sequence[str]) -> list[Part]:
    """The parts of one side of `||`."""
    parts: list[Part] = []
    spaced = True
    for piece in re.split(r"(\{[^{}]*\})", segment):
        if piece.startswith("{"):
            parts.append(parse_slot(piece[1:-1], spaced, source, fields))
        elif "{" in piece or "}" in piece:
            raise TaskError(f"pattern {source!r} has a stray brace; write {{mask}} or {{{fields[0]}}}")
        elif piece.strip():
            parts.append(Literal(" ".join(piece.split()), spaced or piece[0].isspace()))
        else:
            spaced = spaced or bool(piece)
            continue
        spaced = not piece.startswith("{") and piece[-1].isspace()
    return parts


def parse_slot(inside: str, spaced: bool, source: str, fields: Sequence[str]) -> Slot | Mask:
    """`mask`, `name` or `name|modifier|...`."""
    name, *modifiers = inside.split("|")
    if name == "mask" and not modifiers:
        return Mask(spaced)
    if name not in fields:
        raise TaskError(f"pattern {source!r} uses {{{inside}}}; expected {{mask}} or one of {list(fields)}")
    unknown = [one for one in modifiers if one not in MODIFIERS]
    if unknown:
        raise TaskError(f"pattern {source!r} has the modifier {unknown[0]!r}; expected one of {list(MODIFIERS)}")
    return Slot(name, spaced, "whole" not in modifiers, "unpunctuated" in modifiers)
