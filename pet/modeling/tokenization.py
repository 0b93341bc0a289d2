"""Tokenizers that spell parts of a prompt, and texts tokenized once, kept on disk."""

import os
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pet.errors import ModelError
from pet.modeling.batch import Ids
from pet.tasks.patterns import Mask, Part, Pattern, Slot, read_part
from pet.tasks.texts import TextSource

# ---- tokenizer -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SpecialTokens:
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


class PromptTokenizer:
    """A tokenizer, asked only for what parts of a pattern need."""

    def __init__(self, tokenizer: Any, name: str, mask_id: int | None = None) -> None:
        """`mask_id`: what stands at the mask's place, where it is not the tokenizer's mask token."""
        self.tokenizer = tokenizer
        self.name = name
        mask_id = tokenizer.mask_token_id if mask_id is None else mask_id
        if mask_id is None or tokenizer.pad_token_id is None:
            missing = "mask" if mask_id is None else "padding"
            raise ModelError(f"model {name!r}: its tokenizer has no {missing} token; expected that of a masked LM")
        self.mask_id: int = mask_id
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

    def _probe_frame(self, num_segments: int) -> SpecialTokens:
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
        return SpecialTokens(
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


def whole_words(
    prompt_tokenizer: PromptTokenizer, glue: Iterable[str | None]
) -> tuple[list[str], dict[str | None, list[int]]]:
    """All words of two and more letters, and nothing else, that are one known token after each of `glue` (as
    `PromptTokenizer.spell`'s `after`), in the order of the alphabet; and their token ids after each of them."""
    decoded = prompt_tokenizer.tokenizer.batch_decode([[number] for number in range(len(prompt_tokenizer.tokenizer))])
    words = sorted({word for word in map(str.strip, decoded) if len(word) > 1 and word.isalpha()})
    spelled = {after: prompt_tokenizer.spell(words, after) for after in glue}
    unusable = set(prompt_tokenizer.tokenizer.all_special_ids)
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

    def __init__(self, prompt_tokenizer: PromptTokenizer, texts: TextSource) -> None:
        self.prompt_tokenizer = prompt_tokenizer
        self.texts = texts
        self._found: dict[tuple[str, bool, str | None], TokenColumn] = {}

    def column(self, slot: Slot, after: str | None) -> TokenColumn:
        """Token ids of the slot's field for every text."""
        key = (slot.field, slot.unpunctuated, after)
        if key not in self._found:
            spelled = (
                self.prompt_tokenizer.spell([slot.read(text) for text in chunk.fields[slot.field]], after)
                for chunk in self.texts.chunks()
            )
            self._found[key] = TokenColumn(spelled, len(self.texts))
        return self._found[key]


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
    """What the mask is glued to, as `PromptTokenizer.spell`'s `after`."""
    return next(after for _, part, after in glued_parts(pattern) if isinstance(part, Mask))
