"""Where pattern, text and tokenizer meet: from `Texts` to batches of token ids.

Shapes: B rows, N tokens of all rows together, W label words, L labels.

Each part of a pattern is tokenised by itself and the token ids are spliced together (P1's code does the same), so a
text is tokenised once per task and used by every pattern. The one difficulty is what a tokenizer does at the start of
a part: byte-level BPE writes a space into the word's first token, SentencePiece always adds a word-start mark,
WordPiece does neither. `PromptTokenizer` asks the tokenizer itself which it is, never its class.

Token ids live in unnamed temporary files, and rows are put together when they are needed: memory does not grow with
the pool. A batch lays its rows end to end (`Batch`); how a model reads that is the business of `packing`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pet.errors import SettingsError
from pet.modeling.batch import Batch, Ids, Layout, pad_to_multiples, ragged, spread
from pet.modeling.tokenization import PromptTokenizer, TokenColumn, TokenizedTexts, glued_parts
from pet.tasks.patterns import Mask, Part, Pattern, Slot
from pet.tasks.texts import TextSource


@dataclass(frozen=True)
class EncodedTexts:
    """All texts of a split in one pattern. Nothing is put together before it is asked for.

    `columns`: per part of the pattern its ids, the same for every text, or a column of them; `encoder`: how they are
    framed and shortened.
    """

    encoder: "Encoder"
    columns: list[Ids | TokenColumn]
    count: int

    def __len__(self) -> int:
        return self.count

    def part_sizes(self, chosen: NDArray[np.int64] | slice) -> NDArray[np.int64]:
        """Tokens [B, parts] of the chosen rows' parts, before anything is shortened."""
        number = len(range(self.count)[chosen]) if isinstance(chosen, slice) else len(chosen)
        sizes = np.empty((number, len(self.columns)), dtype=np.int64)
        for place, column in enumerate(self.columns):
            sizes[:, place] = column.sizes(chosen) if isinstance(column, TokenColumn) else len(column)
        return sizes

    def lengths(self, chosen: NDArray[np.int64] | slice = slice(None)) -> NDArray[np.int64]:
        """Tokens of each of these rows (default: all)."""
        sizes = self.part_sizes(chosen).sum(1) + self.encoder.frame.size
        return np.asarray(np.minimum(sizes, self.encoder.max_length))

    def batch(self, chosen: NDArray[np.int64], layout: Layout) -> Batch:
        """The chosen rows as one batch."""
        return collate([self], [chosen], layout)


def collate(sources: Sequence[EncodedTexts], chosen: Sequence[NDArray[np.int64]], layout: Layout) -> Batch:
    """Rows of several sources of one tokenizer, those of the first one first, as one batch."""
    joined = [rows.encoder.join(rows, some) for rows, some in zip(sources, chosen, strict=True)]
    lengths = np.concatenate([one.lengths for one in joined])
    flat = np.concatenate([one.ids for one in joined])
    types = np.concatenate([one.types for one in joined])
    masks = np.concatenate([one.mask_places for one in joined])
    prompt_tokenizer = sources[0].encoder.prompt_tokenizer
    width = layout.width_of(lengths)
    attention = None
    sizes = lengths
    if layout.padded:
        attention = (np.arange(width)[None] < lengths[:, None]).astype(np.int64).ravel()
        flat, types = spread(flat, attention, prompt_tokenizer.pad_id), spread(types, attention, 0)
        sizes = np.full(len(lengths), width)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    row_of, places = ragged(sizes)
    batch = Batch(
        torch.from_numpy(flat.astype(np.int64)),
        torch.from_numpy(types.astype(np.int64)) if prompt_tokenizer.has_types else None,
        torch.from_numpy(places),
        torch.from_numpy(row_of),
        torch.from_numpy(starts.astype(np.int32)),
        torch.from_numpy(np.where(masks < 0, -1, starts[:-1] + masks)),
        width,
        None if attention is None else torch.from_numpy(attention),
    )
    return pad_to_multiples(batch, layout)


# ---- patterns ------------------------------------------------------------------------------------------------------


class Encoder:
    """One pattern and one tokenizer: fills texts into the pattern so that every row fits and keeps its mask."""

    def __init__(
        self, prompt_tokenizer: PromptTokenizer, pattern: Pattern, max_length: int, truncation: str = "longest-first"
    ) -> None:
        """
        Raises:
            SettingsError: the pattern alone does not fit into `max_length`.
        """
        self.prompt_tokenizer = prompt_tokenizer
        self.pattern = pattern
        self.max_length = max_length
        masked = any(isinstance(part, Mask) for segment in pattern.segments for part in segment)
        by_name = shorten_longest if truncation == "longest-first" else shorten_last_part
        self.shorten = by_name if masked else shorten_pair
        self.frame = prompt_tokenizer.frames[len(pattern.segments)]
        self.parts = [(number, part, after) for number, part, after in glued_parts(pattern)]
        self.fixed = [self._fixed_ids(part, after) for _, part, after in self.parts]
        self.shortenable = [isinstance(part, Slot) and part.shortenable for _, part, _ in self.parts]
        used = self.frame.size + sum(len(ids) for ids in self.fixed if ids is not None)
        if used >= max_length:
            raise SettingsError(
                f"pattern {pattern.source!r} takes {used} tokens without its texts; "
                f"model.max_length is {max_length}, raise it or shorten the pattern"
            )

    def _fixed_ids(self, part: Part, after: str | None) -> Ids | None:
        """Ids of a literal or the mask; `None` for a text."""
        if isinstance(part, Mask):
            return np.asarray([self.prompt_tokenizer.mask_id], dtype=np.int32)
        return None if isinstance(part, Slot) else self.prompt_tokenizer.spell([part.text], after)[0]

    def encode(self, tokens: TokenizedTexts) -> EncodedTexts:
        """All texts, filled in; truncated and framed when they are asked for.

        Raises:
            SettingsError: a text marked `whole` leaves no room.
        """
        columns = [
            fixed if fixed is not None else tokens.column(part, after)  # type: ignore[arg-type]
            for (_, part, after), fixed in zip(self.parts, self.fixed, strict=True)
        ]
        rows = EncodedTexts(self, columns, len(tokens.texts))
        if any(isinstance(part, Slot) and not part.shortenable for _, part, _ in self.parts):
            self._check_room(rows, tokens.texts)
        return rows

    def _check_room(self, rows: EncodedTexts, texts: TextSource) -> None:
        """Refuse a text of which too much may not be cut."""
        kept = rows.part_sizes(slice(None))[:, ~np.asarray(self.shortenable)].sum(1) + self.frame.size
        if (kept > self.max_length).any():
            row = int((kept > self.max_length).argmax())
            raise SettingsError(
                f"text {texts.id_of(row)!r} does not fit pattern {self.pattern.source!r}: the part that may not be "
                f"truncated needs more than model.max_length {self.max_length} tokens; raise it or drop `whole`"
            )

    def kept_sizes(self, rows: EncodedTexts, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens [B, parts] of the chosen rows' parts, once they are shortened to fit."""
        sizes = rows.part_sizes(chosen)
        excess = sizes.sum(1) + self.frame.size - self.max_length
        segments = [number for number, _, _ in self.parts]
        for row in np.flatnonzero(excess > 0):
            free = np.where(self.shortenable, sizes[row], 0)
            kept = self.shorten(free.tolist(), segments, int(excess[row]))
            sizes[row] = np.where(self.shortenable, kept, sizes[row])
        return sizes

    def join(self, rows: EncodedTexts, chosen: NDArray[np.int64]) -> "Joined":
        """The chosen rows: parts and special tokens in order."""
        sizes = self.kept_sizes(rows, chosen)
        frame, mask_places = self.frame, np.full(len(chosen), -1, dtype=np.int64)
        pieces: list[tuple[Ids | TokenColumn, NDArray[np.int64], Sequence[int] | int]] = []
        position = np.zeros(len(chosen), dtype=np.int64)

        def add(ids: Ids | TokenColumn, lengths: NDArray[np.int64], types: Sequence[int] | int) -> None:
            pieces.append((ids, lengths, types))
            position[:] += lengths

        def add_special(ids: list[int], types: Sequence[int]) -> None:
            add(np.asarray(ids, dtype=np.int32), np.full(len(chosen), len(ids)), types)

        add_special(frame.before, frame.before_types)
        segment = 0
        for place, ((number, part, _), column) in enumerate(zip(self.parts, rows.columns, strict=True)):
            if number > segment:
                segment = number
                add_special(frame.between, frame.between_types)
            if isinstance(part, Mask):
                mask_places = position.copy()
            add(column, sizes[:, place], frame.segment_types[number])
        add_special(frame.after, frame.after_types)
        return assemble(pieces, chosen, position, mask_places)


@dataclass(frozen=True)
class Joined:
    """Rows end to end: token ids and types [N], lengths and the place of the mask in each row (-1: none) [B]."""

    ids: Ids
    types: Ids
    lengths: NDArray[np.int64]
    mask_places: NDArray[np.int64]


def assemble(
    pieces: list[tuple[Ids | TokenColumn, NDArray[np.int64], Sequence[int] | int]],
    chosen: NDArray[np.int64],
    lengths: NDArray[np.int64],
    mask_places: NDArray[np.int64],
) -> Joined:
    """Copy every piece to its place in every row. A piece: the same ids for all rows or a column of them, how many
    tokens of it each row takes [B], and its token type or one for each token."""
    ids, types = np.empty(lengths.sum(), dtype=np.int32), np.zeros(lengths.sum(), dtype=np.int32)
    begin = np.cumsum(lengths) - lengths
    for source, sizes, kind in pieces:
        row_of, places = ragged(sizes)
        target = begin[row_of] + places
        ids[target] = source.read(chosen, sizes) if isinstance(source, TokenColumn) else source[places]
        types[target] = kind if isinstance(kind, int) else np.asarray(kind, dtype=np.int32)[places]
        begin = begin + sizes
    return Joined(ids, types, lengths, mask_places)


def shorten_longest(sizes: list[int], segments: list[int], excess: int) -> list[int]:
    """Sizes after cutting `excess` tokens, always from the longest piece (the last of equals): P1 section 4."""
    total = remaining = sum(sizes) - excess
    level = 0
    for place, size in enumerate(sorted(sizes)):
        level = remaining // (len(sizes) - place)
        if size > level:
            break
        remaining -= size
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


def shorten_pair(sizes: list[int], segments: list[int], excess: int) -> list[int]:
    """As `tokenizer(first, second, truncation=True)` cuts a pair (`longest_first` of the library `tokenizers`): the
    longer segment first, down to half of the room each; the odd token goes to the longer one, of equals to the second.
    A segment of several pieces loses its last ones first."""
    first, second = (sum(size for size, at in zip(sizes, segments, strict=True) if at == side) for side in (0, 1))
    room = first + second - excess
    shorter = min(first, second, room // 2)
    left = dict(zip((0, 1), (shorter, room - shorter) if first <= second else (room - shorter, shorter), strict=True))
    kept = []
    for size, side in zip(sizes, segments, strict=True):
        kept.append(min(size, left[side]))
        left[side] -= kept[-1]
    return kept


def plain_pattern(fields: Sequence[str]) -> Pattern:
    """How a plain classifier reads a text: its first field, and the others as the second segment, without a mask.

    Segments begin without a space, as `tokenizer(first, others)` spells them, and are truncated as it truncates
    (`shorten_pair`), so that the checkpoint can be used alone.
    """
    first, *rest = [Slot(field, spaced=number > 1) for number, field in enumerate(fields)]
    return Pattern(" || ".join(fields), ((first,), tuple(rest)) if rest else ((first,),))
