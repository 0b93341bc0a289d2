"""Where pattern, text and tokenizer meet: from `Texts` to padded rows of token ids.

Shapes: B rows, T tokens (padded), L labels.

Each part of a pattern is tokenised by itself and the token ids are spliced together (P1's code does the same), so a
text is tokenised once per task and used by every pattern. The one difficulty is what a tokenizer does at the start of
a part: byte-level BPE writes a space into the word's first token, SentencePiece always adds a word-start mark,
WordPiece does neither. `Speller` asks the tokenizer itself which it is, never its class.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pet.errors import ModelError, SettingsError, TaskError, raise_problems
from pet.examples import Texts
from pet.patterns import PVP, Mask, Part, Pattern, Slot, read_part

Ids = NDArray[np.int32]
PAD_MULTIPLE = 8
TRAINING_MULTIPLE = 16
"""Rows are padded to a multiple of this many tokens, which tensor cores like; in training to a coarser one, so that few
batch shapes occur and each can be captured."""


# ---- tokenizer -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """Special tokens around one or two segments, as the tokenizer puts them; each list with its token types."""

    before: list[int]
    between: list[int]
    after: list[int]
    before_types: list[int]
    between_types: list[int]
    after_types: list[int]
    segment_types: tuple[int, int]

    @property
    def size(self) -> int:
        """Number of special tokens."""
        return len(self.before) + len(self.between) + len(self.after)


class Speller:
    """A tokenizer, asked only for what parts of a pattern need."""

    def __init__(self, tokenizer: Any, name: str) -> None:
        self.tokenizer = tokenizer
        self.name = name
        if tokenizer.mask_token_id is None or tokenizer.pad_token_id is None:
            missing = "mask" if tokenizer.mask_token_id is None else "padding"
            raise ModelError(f"model {name!r}: its tokenizer has no {missing} token; expected that of a masked LM")
        self.mask_id: int = tokenizer.mask_token_id
        self.pad_id: int = tokenizer.pad_token_id
        self.has_types = "token_type_ids" in tokenizer.model_input_names
        self._space_matters = self._tokens(["a"]) != self._tokens([" a"])
        self.frames = {num: self._probe_frame(num) for num in (1, 2)}

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        found = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            split_special_tokens=True,  # a text that says "</s>" means these four characters
            truncation=False,
            verbose=False,
        )
        return list(found["input_ids"])

    def spell(self, texts: Sequence[str], after: str | None = None) -> list[Ids]:
        """Token ids of each text. `after`: what it is glued to; `None` where a new word begins."""
        if after is None:
            found = self._tokens([" " + text if text else "" for text in texts] if self._space_matters else texts)
        elif self._space_matters:
            found = self._tokens(texts)
        else:
            found = [self._glue(text, after) for text in texts]
        return [np.asarray(ids, dtype=np.int32) for ids in found]

    def _glue(self, text: str, after: str) -> list[int]:
        """Ids of `text` as they are right after `after`: tokenise both, take the head away if it is intact."""
        head, both, alone = self._tokens([after, after + text, text])
        return both[len(head) :] if both[: len(head)] == head else alone

    def _probe_frame(self, num_segments: int) -> Frame:
        """Encode one or two known words and read off what was put around them."""
        size = len(self._tokens(["a"])[0])
        texts = ["a"] * num_segments
        found = self.tokenizer(*texts, return_special_tokens_mask=True, return_token_type_ids=True)
        ids, special = found["input_ids"], found["special_tokens_mask"]
        types = found.get("token_type_ids") or [0] * len(ids)
        start = special.index(0)
        stop = len(ids) - special[::-1].index(0)
        end = start + size  # of the first segment
        second = stop - size  # start of the second one
        if num_segments == 1:
            second = end
        return Frame(
            before=ids[:start],
            between=ids[end:second],
            after=ids[stop:],
            before_types=types[:start],
            between_types=types[end:second],
            after_types=types[stop:],
            segment_types=(types[start], types[stop - 1]),
        )

    def word_id(self, word: str, after: str | None) -> int | list[str]:
        """The one token of a label word, or the pieces it falls into."""
        ids = self.spell([word], after)[0].tolist()
        pieces = self.tokenizer.convert_ids_to_tokens(ids)
        unusable = set(self.tokenizer.all_special_ids)
        return ids[0] if len(ids) == 1 and ids[0] not in unusable else list(pieces)


class TokenizedTexts:
    """`Texts`, each field tokenised at most once per way it is used; shared by all patterns of a task."""

    def __init__(self, speller: Speller, texts: Texts) -> None:
        self.speller = speller
        self.texts = texts
        self._found: dict[tuple[str, bool, str | None], list[Ids]] = {}

    def ids(self, slot: Slot, after: str | None) -> list[Ids]:
        """Token ids of the slot's field for every text."""
        key = (slot.field, slot.unpunctuated, after)
        if key not in self._found:
            texts = [slot.read(text) for text in self.texts.fields[slot.field]]
            self._found[key] = self.speller.spell(texts, after)
        return self._found[key]


# ---- rows ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """Encoded texts before padding: per row token ids, token types, and the place of the mask (-1: no mask)."""

    ids: list[Ids]
    types: list[Ids]
    mask_positions: Ids

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens per row."""
        return np.fromiter((len(ids) for ids in self.ids), dtype=np.int64, count=len(self.ids))


@dataclass
class Batch:
    """Padded rows: `input_ids`, `attention_mask`, `token_type_ids` [B, T]; `mask_positions` [B]."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    token_type_ids: torch.Tensor | None
    mask_positions: torch.Tensor

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        types = None if self.token_type_ids is None else self.token_type_ids.to(device)
        return Batch(self.input_ids.to(device), self.attention_mask.to(device), types, self.mask_positions.to(device))

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        """Keyword arguments of a transformers model."""
        found = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        if self.token_type_ids is not None:
            found["token_type_ids"] = self.token_type_ids
        return found


def padded_length(length: int, multiple: int = PAD_MULTIPLE) -> int:
    """`length` rounded up to a multiple."""
    return -(-length // multiple) * multiple


def training_width(rows: Rows, chosen: NDArray[np.int64]) -> int:
    """Tokens to which a training batch of the chosen rows is padded."""
    return padded_length(max(len(rows.ids[row]) for row in chosen), TRAINING_MULTIPLE)


def pad_rows(rows: Rows, chosen: NDArray[np.int64], speller: Speller, length: int | None = None) -> Batch:
    """The chosen rows as one batch, padded to `length` or to the longest of them (rounded up)."""
    longest = max(len(rows.ids[row]) for row in chosen)
    width = length or padded_length(longest)
    input_ids = np.full((len(chosen), width), speller.pad_id, dtype=np.int64)
    attention = np.zeros((len(chosen), width), dtype=np.int64)
    types = np.zeros((len(chosen), width), dtype=np.int64)
    for place, row in enumerate(chosen):
        size = len(rows.ids[row])
        input_ids[place, :size] = rows.ids[row]
        attention[place, :size] = 1
        types[place, :size] = rows.types[row]
    positions = rows.mask_positions[chosen]
    return Batch(
        torch.from_numpy(input_ids),
        torch.from_numpy(attention),
        torch.from_numpy(types) if speller.has_types else None,
        torch.from_numpy(positions.astype(np.int64)),
    )


# ---- patterns ------------------------------------------------------------------------------------------------------


class Encoder:
    """One pattern and one tokenizer: fills texts into the pattern so that every row fits and keeps its mask."""

    def __init__(self, speller: Speller, pattern: Pattern, max_length: int, truncation: str = "longest-first") -> None:
        """
        Raises:
            SettingsError: the pattern alone does not fit into `max_length`.
        """
        self.speller = speller
        self.pattern = pattern
        self.max_length = max_length
        self.shorten = shorten_longest if truncation == "longest-first" else shorten_last_part
        self.frame = speller.frames[len(pattern.segments)]
        self.parts = [(number, part, after) for number, part, after in glued_parts(pattern)]
        self.fixed = [self._fixed_ids(part, after) for _, part, after in self.parts]
        used = self.frame.size + sum(len(ids) for ids in self.fixed if ids is not None)
        if used >= max_length:
            raise SettingsError(
                f"pattern {pattern.source!r} takes {used} tokens without its texts; "
                f"model.max_length is {max_length}, raise it or shorten the pattern"
            )

    def _fixed_ids(self, part: Part, after: str | None) -> Ids | None:
        """Ids of a literal or the mask; `None` for a text."""
        if isinstance(part, Mask):
            return np.asarray([self.speller.mask_id], dtype=np.int32)
        return None if isinstance(part, Slot) else self.speller.spell([part.text], after)[0]

    def encode(self, tokens: TokenizedTexts) -> Rows:
        """All texts, filled in, truncated and framed.

        Raises:
            SettingsError: a text marked `whole` leaves no room.
        """
        columns = [
            [fixed] * len(tokens.texts) if fixed is not None else tokens.ids(part, after)  # type: ignore[arg-type]
            for (_, part, after), fixed in zip(self.parts, self.fixed, strict=True)
        ]
        ids, types, positions = [], [], np.full(len(tokens.texts), -1, dtype=np.int32)
        for row, pieces in enumerate(zip(*columns, strict=True)):
            row_ids, row_types, positions[row] = self._join(self._fit(list(pieces), tokens.texts.ids[row]))
            ids.append(row_ids)
            types.append(row_types)
        return Rows(ids, types, positions)

    def _fit(self, pieces: list[Ids], name: str) -> list[Ids]:
        """Truncate the shortenable pieces so that the row fits."""
        excess = self.frame.size + sum(len(piece) for piece in pieces) - self.max_length
        if excess <= 0:
            return pieces
        shortenable = [isinstance(part, Slot) and part.shortenable for _, part, _ in self.parts]
        sizes = [len(piece) if free else 0 for piece, free in zip(pieces, shortenable, strict=True)]
        if sum(sizes) < excess:
            raise SettingsError(
                f"text {name!r} does not fit pattern {self.pattern.source!r}: the part that may not be truncated "
                f"needs more than model.max_length {self.max_length} tokens; raise it or drop `whole`"
            )
        kept = self.shorten(sizes, [number for number, _, _ in self.parts], excess)
        return [piece[:size] if free else piece for piece, size, free in zip(pieces, kept, shortenable, strict=True)]

    def _join(self, pieces: list[Ids]) -> tuple[Ids, Ids, int]:
        """Pieces and special tokens in order; ids, types and the place of the mask."""
        frame = self.frame
        ids: list[Any] = [frame.before]
        types = list(frame.before_types)
        position, segment = -1, 0
        for (number, part, _), piece in zip(self.parts, pieces, strict=True):
            if number > segment:
                segment = number
                ids.append(frame.between)
                types += frame.between_types
            if isinstance(part, Mask):
                position = len(types)
            ids.append(piece)
            types += [frame.segment_types[number]] * len(piece)
        ids.append(frame.after)
        types += frame.after_types
        return np.concatenate(ids, dtype=np.int32, casting="unsafe"), np.asarray(types, dtype=np.int32), position


def glued_parts(pattern: Pattern) -> list[tuple[int, Part, str | None]]:
    """Every part with the number of its segment and what it is glued to (`None`: a new word begins).

    After a text or the mask the glue is a plain letter: only that it is no space matters.
    """
    found: list[tuple[int, Part, str | None]] = []
    for number, segment in enumerate(pattern.segments):
        previous = ""
        for part in segment:
            found.append((number, part, None if part.spaced else previous))
            previous = "a" if isinstance(part, Slot | Mask) else read_part(part, {})[-1]
    return found


def shorten_longest(sizes: list[int], segments: list[int], excess: int) -> list[int]:
    """Sizes after cutting `excess` tokens, always from the longest piece (the last of equals): P1 section 4."""
    total = sum(sizes) - excess
    level, kept = 0, [0] * len(sizes)
    while sum(min(size, level + 1) for size in sizes) <= total:
        level += 1
    kept = [min(size, level) for size in sizes]
    for index, size in enumerate(sizes):
        if sum(kept) < total and size > level:
            kept[index] += 1
    return kept


def shorten_last_part(sizes: list[int], segments: list[int], excess: int) -> list[int]:
    """As the published code: token by token from the segment with more shortenable tokens (ties: the second), from its
    last piece that is not empty (fact sheet 2.4, item 3)."""
    kept = list(sizes)
    for _ in range(excess):
        totals = [sum(size for size, number in zip(kept, segments, strict=True) if number == side) for side in (0, 1)]
        side = 0 if totals[0] > totals[1] else 1
        last = max(index for index, size in enumerate(kept) if size and segments[index] == side)
        kept[last] -= 1
    return kept


def plain_pattern(fields: Sequence[str]) -> Pattern:
    """How a plain classifier reads a text: its first field, and the others as the second segment, without a mask.

    Segments begin without a space, as `tokenizer(first, others)` spells them, so that the checkpoint can be used alone.
    """
    first, *rest = [Slot(field, spaced=number > 1) for number, field in enumerate(fields)]
    return Pattern(" || ".join(fields), ((first,), tuple(rest)) if rest else ((first,),))


# ---- verbalizers ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VerbalizerIds:
    """Token ids [W] of all label words, and the matrix [W, L] that averages word scores into label scores."""

    words: torch.Tensor
    averaging: torch.Tensor

    def to(self, device: torch.device) -> "VerbalizerIds":
        """The same on a device."""
        return VerbalizerIds(self.words.to(device), self.averaging.to(device))


def encode_verbalizers(speller: Speller, pvps: Sequence[PVP], task: str) -> list[VerbalizerIds]:
    """The label words of every PVP as token ids, spelled as they stand at the pattern's mask.

    Raises:
        TaskError: words that are not exactly one token; names task, label, word, tokenizer and the pieces of each.
    """
    problems: dict[str, None] = {}
    found = []
    for pvp in pvps:
        after = next(after for _, part, after in glued_parts(pvp.pattern) if isinstance(part, Mask))
        ids, labels = [], []
        for number, (label, words) in enumerate(pvp.words.items()):
            for word in words:
                token = speller.word_id(word, after)
                if isinstance(token, int):
                    ids.append(token)
                    labels.append(number)
                else:
                    what = f"is {len(token)} tokens {token}" if len(token) > 1 else "is not in the vocabulary"
                    problems[f"label {label!r}, word {word!r} {what}"] = None
        averaging = torch.zeros(len(ids), len(pvp.words))
        for place, number in enumerate(labels):
            averaging[place, number] = 1 / labels.count(number)
        found.append(VerbalizerIds(torch.tensor(ids, dtype=torch.long), averaging))
    raise_problems(TaskError, f"task {task!r}: label words must be one known token of {speller.name!r}", list(problems))
    return found
