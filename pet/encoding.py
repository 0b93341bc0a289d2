"""Where pattern, text and tokenizer meet: from `Texts` to batches of token ids.

Shapes: B rows, N tokens of all rows together, W label words, L labels.

Each part of a pattern is tokenised by itself and the token ids are spliced together (P1's code does the same), so a
text is tokenised once per task and used by every pattern. The one difficulty is what a tokenizer does at the start of
a part: byte-level BPE writes a space into the word's first token, SentencePiece always adds a word-start mark,
WordPiece does neither. `Speller` asks the tokenizer itself which it is, never its class.

Token ids live in unnamed temporary files, and rows are put together when they are needed: memory does not grow with
the pool. A batch lays its rows end to end (`Batch`); how a model reads that is the business of `packing`.
"""

import os
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pet.errors import ModelError, SettingsError, TaskError, raise_problems
from pet.runtime import send
from pet.tasks.patterns import PVP, Mask, Part, Pattern, Slot, read_part
from pet.tasks.texts import TextSource

Ids = NDArray[np.int32]

FILLER = 64
"""Tokens of a row of nothing, at most: no wider than any batch on a GPU."""


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
            found = self._glue(texts, after)
        return [np.asarray(ids, dtype=np.int32) for ids in found]

    def _glue(self, texts: Sequence[str], after: str) -> list[list[int]]:
        """Ids of each text as they are right after `after`: tokenise both, take the head away if it is intact."""
        (head,) = self._tokens([after])
        both = self._tokens([after + text for text in texts])
        torn = [number for number, ids in enumerate(both) if ids[: len(head)] != head]
        found = [ids[len(head) :] for ids in both]
        for number, ids in zip(torn, self._tokens([texts[number] for number in torn]), strict=True):
            found[number] = ids
        return found

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


def whole_words(speller: Speller, glue: Iterable[str | None]) -> tuple[list[str], dict[str | None, list[int]]]:
    """All words of two and more letters, and nothing else, that are one known token after each of `glue` (as
    `Speller.spell`'s `after`), in the order of the alphabet; and their token ids after each of them."""
    decoded = speller.tokenizer.batch_decode([[number] for number in range(len(speller.tokenizer))])
    words = sorted({word for word in map(str.strip, decoded) if len(word) > 1 and word.isalpha()})
    spelled = {after: speller.spell(words, after) for after in glue}
    unusable = set(speller.tokenizer.all_special_ids)
    usable: dict[tuple[int, ...], int] = {}  # tokens -> the first of the words that they spell
    for place in range(len(words)):
        tokens = [found[place].tolist() for found in spelled.values()]
        if all(len(one) == 1 and one[0] not in unusable for one in tokens):
            usable.setdefault(tuple(one[0] for one in tokens), place)
    ids = {after: [tokens[number] for tokens in usable] for number, after in enumerate(spelled)}
    return [words[place] for place in usable.values()], ids


class TokenColumn:
    """Token ids of n texts, one after another in an unnamed temporary file; in memory only where each text starts."""

    def __init__(self, chunks: Iterable[list[Ids]], count: int) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed, and gone, with this object
        weakref.finalize(self, self._file.close)
        self.starts = np.zeros(count + 1, dtype=np.int64)
        done = 0
        for chunk in chunks:
            self.starts[done + 1 : done + 1 + len(chunk)] = [len(ids) for ids in chunk]
            done += len(chunk)
            self._file.write(b"".join(ids.tobytes() for ids in chunk))
        self._file.flush()
        np.cumsum(self.starts, out=self.starts)

    def sizes(self, rows: NDArray[np.int64] | slice) -> NDArray[np.int64]:
        """Tokens of each of these texts; a slice has no step and no negative ends."""
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(len(self.starts) - 1)
            return np.asarray(np.diff(self.starts[start : stop + 1]))
        return np.asarray(self.starts[rows + 1] - self.starts[rows])

    def read(self, rows: NDArray[np.int64], sizes: NDArray[np.int64]) -> Ids:
        """The first `sizes` tokens of each of these texts, end to end."""
        width = np.dtype(np.int32).itemsize
        file = self._file.fileno()
        return np.frombuffer(
            b"".join(
                os.pread(file, size, start)
                for size, start in zip((sizes * width).tolist(), (self.starts[rows] * width).tolist(), strict=True)
            ),
            dtype=np.int32,
        )


class TokenizedTexts:
    """`Texts`, or any source of them in chunks, each field tokenised at most once per way it is used; shared by all
    patterns of a task."""

    def __init__(self, speller: Speller, texts: TextSource) -> None:
        self.speller = speller
        self.texts = texts
        self._found: dict[tuple[str, bool, str | None], TokenColumn] = {}

    def column(self, slot: Slot, after: str | None) -> TokenColumn:
        """Token ids of the slot's field for every text."""
        key = (slot.field, slot.unpunctuated, after)
        if key not in self._found:
            spelled = (
                self.speller.spell([slot.read(text) for text in chunk.fields[slot.field]], after)
                for chunk in self.texts.chunks()
            )
            self._found[key] = TokenColumn(spelled, len(self.texts))
        return self._found[key]


# ---- batches -------------------------------------------------------------------------------------------------------


@dataclass
class Batch:
    """B rows end to end, N tokens in all.

    `input_ids`, `places` (from 0 in each row), `rows` (which row) [N]; `token_type_ids` [N] or `None`; `starts`: where
    each row begins, and N [B + 1]; `mask_positions`: index of each row's mask among the N tokens [B]; `width`: no row
    is longer. `attention_mask`: `None` where there is no padding; else [N], 0 for padding, and every row has exactly
    `width` tokens. After the B rows may come some of nothing, that bring N to a round number (`fill`). `full`: every
    row has `width` tokens of its own and nothing comes after them.
    """

    input_ids: torch.Tensor
    token_type_ids: torch.Tensor | None
    places: torch.Tensor
    rows: torch.Tensor
    starts: torch.Tensor
    mask_positions: torch.Tensor
    width: int
    attention_mask: torch.Tensor | None = None
    full: bool = False

    def __len__(self) -> int:
        return len(self.mask_positions)

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        return send(self, device)


@dataclass(frozen=True)
class Layout:
    """How rows become a batch. `padded`: every row is padded to the batch's width, for models that need it; otherwise
    they lie end to end. `width`: this one, for all batches; else the longest row's, rounded up to `width_multiple`.
    `token_multiple`: N is brought to a multiple of it (not where rows are padded), so that few shapes occur;
    `least_tokens`: and to no less than this, so that the ranks' parts of one batch are of one shape."""

    padded: bool
    width: int | None = None
    width_multiple: int = 1
    token_multiple: int = 1
    least_tokens: int = 0

    def width_of(self, lengths: NDArray[np.int64]) -> int:
        """Width of a batch of rows of these lengths."""
        return self.width or round_up(int(lengths.max()), self.width_multiple)


def round_up(length: int, multiple: int) -> int:
    """`length` rounded up to a multiple."""
    return -(-length // multiple) * multiple


@dataclass(frozen=True)
class Rows:
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
        return lay_out([self], [chosen], layout)


def lay_out(sources: Sequence[Rows], chosen: Sequence[NDArray[np.int64]], layout: Layout) -> Batch:
    """Rows of several sources of one tokenizer, those of the first one first, as one batch."""
    joined = [rows.encoder.join(rows, some) for rows, some in zip(sources, chosen, strict=True)]
    lengths = np.concatenate([one.lengths for one in joined])
    flat = np.concatenate([one.ids for one in joined])
    types = np.concatenate([one.types for one in joined])
    masks = np.concatenate([one.mask_places for one in joined])
    speller = sources[0].encoder.speller
    width = layout.width_of(lengths)
    attention = None
    sizes = lengths
    if layout.padded:
        attention = (np.arange(width)[None] < lengths[:, None]).astype(np.int64).ravel()
        flat, types = spread(flat, attention, speller.pad_id), spread(types, attention, 0)
        sizes = np.full(len(lengths), width)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    row_of, places = ragged(sizes)
    batch = Batch(
        torch.from_numpy(flat.astype(np.int64)),
        torch.from_numpy(types.astype(np.int64)) if speller.has_types else None,
        torch.from_numpy(places),
        torch.from_numpy(row_of),
        torch.from_numpy(starts.astype(np.int32)),
        torch.from_numpy(np.where(masks < 0, -1, starts[:-1] + masks)),
        width,
        None if attention is None else torch.from_numpy(attention),
    )
    return fill(batch, layout)


def join_batches(parts: Sequence[Batch]) -> Batch:
    """Batches (not filled up; of one width, where rows are padded) one after another as one."""
    tokens = np.cumsum([0, *(len(one.input_ids) for one in parts)])
    rows = np.cumsum([0, *(len(one) for one in parts)])
    types = [one.token_type_ids for one in parts if one.token_type_ids is not None]
    attention = [one.attention_mask for one in parts if one.attention_mask is not None]
    starts = [one.starts[:-1] + int(before) for one, before in zip(parts, tokens, strict=False)]
    return Batch(
        torch.cat([one.input_ids for one in parts]),
        torch.cat(types) if types else None,
        torch.cat([one.places for one in parts]),
        torch.cat([one.rows + int(before) for one, before in zip(parts, rows, strict=False)]),
        torch.cat([*starts, torch.tensor([int(tokens[-1])], dtype=torch.int32)]),
        torch.cat(
            [
                torch.where(one.mask_positions < 0, -1, one.mask_positions + int(before))
                for one, before in zip(parts, tokens, strict=False)
            ]
        ),
        max(one.width for one in parts),
        torch.cat(attention) if attention else None,
    )


def take_rows(batch: Batch, chosen: NDArray[np.int64]) -> tuple[Batch, NDArray[np.int64]]:
    """Some rows of a batch (not filled up) as a batch of the same width, and which of the N tokens theirs are."""
    begin = batch.starts.numpy().astype(np.int64)
    sizes = np.diff(begin)[chosen]
    row_of, places = ragged(sizes)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    tokens = begin[chosen][row_of] + places
    masks = batch.mask_positions.numpy()[chosen]
    kept = torch.from_numpy(tokens)
    part = Batch(
        batch.input_ids[kept],
        None if batch.token_type_ids is None else batch.token_type_ids[kept],
        torch.from_numpy(places),
        torch.from_numpy(row_of),
        torch.from_numpy(starts.astype(np.int32)),
        torch.from_numpy(np.where(masks < 0, -1, masks - begin[chosen] + starts[:-1])),
        batch.width,
        None if batch.attention_mask is None else batch.attention_mask[kept],
    )
    return part, tokens


def fill(batch: Batch, layout: Layout) -> Batch:
    """The batch with more rows, of token 0 and at most FILLER of them, that bring N to a multiple of
    `layout.token_multiple`; where it is to have `least_tokens`, with two more of at most its width for each of its own,
    which is enough where another rank has at most twice as many. Their number does not vary; most are of length 0."""
    if layout.padded or layout.token_multiple == 1:
        return batch
    size = len(batch.input_ids)
    total = round_up(max(size, layout.least_tokens), layout.token_multiple)
    rooms = [FILLER] * (round_up(layout.token_multiple, FILLER) // FILLER)
    if layout.least_tokens:
        rooms += [batch.width] * (2 * len(batch))
    ends = np.minimum(size + np.cumsum(rooms), total)
    row_of, places = ragged(np.diff(ends, prepend=size))
    nothing = torch.zeros(total - size, dtype=torch.long)
    return Batch(
        torch.cat([batch.input_ids, nothing]),
        None if batch.token_type_ids is None else torch.cat([batch.token_type_ids, nothing]),
        torch.cat([batch.places, torch.from_numpy(places)]),
        torch.cat([batch.rows, torch.from_numpy(row_of + len(batch))]),
        torch.cat([batch.starts, torch.from_numpy(ends.astype(np.int32))]),
        batch.mask_positions,
        max(batch.width, FILLER),
    )


def ragged(sizes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For rows of these sizes end to end: which row each token belongs to, and its place there."""
    row_of = np.repeat(np.arange(len(sizes)), sizes)
    return row_of, np.arange(len(row_of)) - np.repeat(np.cumsum(sizes) - sizes, sizes)


def spread(values: Ids, mask: NDArray[np.int64], empty: int) -> Ids:
    """Values in order where `mask` is 1, `empty` elsewhere."""
    found = np.full(len(mask), empty, dtype=np.int32)
    found[mask == 1] = values
    return found


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
        masked = any(isinstance(part, Mask) for segment in pattern.segments for part in segment)
        by_name = shorten_longest if truncation == "longest-first" else shorten_last_part
        self.shorten = by_name if masked else shorten_pair
        self.frame = speller.frames[len(pattern.segments)]
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
            return np.asarray([self.speller.mask_id], dtype=np.int32)
        return None if isinstance(part, Slot) else self.speller.spell([part.text], after)[0]

    def encode(self, tokens: TokenizedTexts) -> Rows:
        """All texts, filled in; truncated and framed when they are asked for.

        Raises:
            SettingsError: a text marked `whole` leaves no room.
        """
        columns = [
            fixed if fixed is not None else tokens.column(part, after)  # type: ignore[arg-type]
            for (_, part, after), fixed in zip(self.parts, self.fixed, strict=True)
        ]
        rows = Rows(self, columns, len(tokens.texts))
        if any(isinstance(part, Slot) and not part.shortenable for _, part, _ in self.parts):
            self._check_room(rows, tokens.texts)
        return rows

    def _check_room(self, rows: Rows, texts: TextSource) -> None:
        """Refuse a text of which too much may not be cut."""
        kept = rows.part_sizes(slice(None))[:, ~np.asarray(self.shortenable)].sum(1) + self.frame.size
        if (kept > self.max_length).any():
            row = int((kept > self.max_length).argmax())
            raise SettingsError(
                f"text {texts.id_of(row)!r} does not fit pattern {self.pattern.source!r}: the part that may not be "
                f"truncated needs more than model.max_length {self.max_length} tokens; raise it or drop `whole`"
            )

    def kept_sizes(self, rows: Rows, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens [B, parts] of the chosen rows' parts, once they are shortened to fit."""
        sizes = rows.part_sizes(chosen)
        excess = sizes.sum(1) + self.frame.size - self.max_length
        segments = [number for number, _, _ in self.parts]
        for row in np.flatnonzero(excess > 0):
            free = np.where(self.shortenable, sizes[row], 0)
            kept = self.shorten(free.tolist(), segments, int(excess[row]))
            sizes[row] = np.where(self.shortenable, kept, sizes[row])
        return sizes

    def join(self, rows: Rows, chosen: NDArray[np.int64]) -> "Joined":
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


def mask_glue(pattern: Pattern) -> str | None:
    """What the mask is glued to, as `Speller.spell`'s `after`."""
    return next(after for _, part, after in glued_parts(pattern) if isinstance(part, Mask))


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


# ---- verbalizers ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VerbalizerIds:
    """Token ids [W] of all label words, and the matrix [W, L] that averages word scores into label scores."""

    words: torch.Tensor
    averaging: torch.Tensor

    def to(self, device: torch.device) -> "VerbalizerIds":
        """The same on a device."""
        return send(self, device)


def encode_verbalizers(speller: Speller, pvps: Sequence[PVP], task: str) -> list[VerbalizerIds]:
    """The label words of every PVP as token ids, spelled as they stand at the pattern's mask.

    Raises:
        TaskError: words that are not exactly one token; names task, label, word, tokenizer and the pieces of each.
    """
    problems: dict[str, None] = {}
    found = []
    for pvp in pvps:
        after = mask_glue(pvp.pattern)
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
