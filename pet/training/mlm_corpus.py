"""Documents without a task: from text files to one stream of token ids, and to blocks of any length cut from it.

Documents follow each other, a separator after each, and blocks are cut without regard to where they end, so no token of
padding is ever trained on (RoBERTa's FULL-SENTENCES, Liu et al. 2019 section 4.2). Nothing here knows of training.

Shapes: B blocks of T tokens, N = B T.
"""

import dataclasses
import gzip
import hashlib
import itertools
import lzma
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from numpy.typing import NDArray

from pet.config.limits import MAX_LINE, is_file, is_folder, path_of
from pet.errors import CorpusError, raise_problems
from pet.modeling.batch import Batch, send
from pet.modeling.tokenization import PromptTokenizer, SpecialTokens

CHUNK = 1024
"""Documents that are in memory at a time."""

COUNTED = 1 << 22
"""Tokens that are counted at a time."""

TRAIN, HELD_OUT = "train", "held_out"


def find_files(files: Sequence[str]) -> list[Path]:
    """The files of a corpus.

    Raises:
        CorpusError: names all that do not exist.
    """
    paths = [path_of(name) for name in files]
    said = [
        f"{path} is a folder; name the files in it" if is_folder(path) else f"there is no file {path}"
        for path in paths
        if not is_file(path)
    ]
    raise_problems(CorpusError, "corpus.files", said)
    return paths


def read_documents(paths: Iterable[Path]) -> Iterator[str]:
    """The lines of text files that are not empty, one document each.

    Raises:
        CorpusError: a file is not UTF-8 text, or damaged.
    """
    for path in paths:
        try:
            with open_text(path) as file:
                while raw := file.readline(MAX_LINE):
                    if len(raw) == MAX_LINE:
                        raise CorpusError(
                            f"{path} has a line of more than {MAX_LINE:,} characters; give one document a line"
                        )
                    if line := raw.strip():
                        yield line
        except (OSError, EOFError, UnicodeDecodeError, lzma.LZMAError, zlib.error) as problem:
            raise CorpusError(f"{path} cannot be read as UTF-8 text ({problem}); give a whole file of that") from None


def open_text(path: Path) -> TextIO:
    """A text file, packed or not."""
    openers: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open}
    found: TextIO = openers.get(path.suffix, open)(path, "rt", encoding="utf-8-sig")
    return found


def is_held_out(document: str, share: float) -> bool:
    """Whether a document is not trained on: a matter of its text alone, so that no copy of it is trained on either."""
    number = int.from_bytes(hashlib.sha256(document.encode()).digest()[:8], "big")
    return number < share * 2**64


def stream_type(prompt_tokenizer: PromptTokenizer) -> np.dtype[Any]:
    """What a token id is written as."""
    return np.dtype("<u2" if len(prompt_tokenizer.tokenizer) <= 1 << 16 else "<i4")


def write_streams(
    folder: Path, documents: Iterator[str], prompt_tokenizer: PromptTokenizer, share: float
) -> dict[str, dict[str, int]]:
    """Write `train.tokens` and `held_out.tokens`: ids of each document and a separator, end to end. Returns the number
    of documents and tokens of each.

    Raises:
        CorpusError: one of the two came out empty.
    """
    separator, dtype = np.asarray(prompt_tokenizer.frames[1].after[:1]), stream_type(prompt_tokenizer)
    counts = {name: {"documents": 0, "tokens": 0} for name in (TRAIN, HELD_OUT)}
    with ExitStack() as stack:
        files = {name: stack.enter_context((folder / f"{name}.tokens").open("wb")) for name in counts}
        while chunk := list(itertools.islice(documents, CHUNK)):
            for document, ids in zip(chunk, prompt_tokenizer.spell(chunk), strict=True):
                name = HELD_OUT if is_held_out(document, share) else TRAIN
                counts[name]["documents"] += 1
                counts[name]["tokens"] += files[name].write(np.concatenate([ids, separator]).astype(dtype).tobytes())
    for count in counts.values():
        count["tokens"] //= dtype.itemsize
    empty = [name for name, count in counts.items() if not count["documents"]]
    if empty:
        said = ", ".join(f"{count['documents']} {name.replace('_', ' ')}" for name, count in counts.items())
        change = "lower" if TRAIN in empty else "raise"
        raise CorpusError(
            f"the corpus has {said} documents; give more of them, or {change} `held_out`, the share of those, which is "
            f"{share:g}"
        )
    return counts


@dataclass(frozen=True)
class Blocks:
    """A stream cut into blocks. `tokens`: all of it [n]; `frame`: special tokens around each block; `length`: T."""

    tokens: NDArray[Any]
    frame: SpecialTokens
    length: int

    @property
    def content(self) -> int:
        """Tokens of the stream in each block."""
        return self.length - len(self.frame.before) - len(self.frame.after)

    def __len__(self) -> int:
        return len(self.tokens) // self.content

    def read(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """The blocks of these numbers [B, T], special tokens included."""
        before, after = len(self.frame.before), len(self.frame.after)
        found = np.empty((len(numbers), self.length), dtype=np.int64)
        found[:, :before] = self.frame.before
        found[:, self.length - after :] = self.frame.after
        found[:, before : self.length - after] = self.tokens[numbers[:, None] * self.content + np.arange(self.content)]
        return found


def open_blocks(folder: Path, name: str, prompt_tokenizer: PromptTokenizer, length: int) -> Blocks:
    """The blocks of a stream that `write_streams` wrote; read from its file when they are asked for.

    Raises:
        CorpusError: it has less than one block.
    """
    blocks = Blocks(
        np.memmap(folder / f"{name}.tokens", stream_type(prompt_tokenizer), "r"), prompt_tokenizer.frames[1], length
    )
    if not len(blocks):
        kind = name.replace("_", " ")
        change = "lower" if name == TRAIN else "raise"
        raise CorpusError(
            f"the {kind} part of the corpus has {len(blocks.tokens)} tokens, less than one block of {length}; give "
            f"more text, shorten `length` or {change} `held_out`"
        )
    return blocks


def count_words(tokens: NDArray[Any], size: int) -> NDArray[np.int64]:
    """How often each of `size` token ids is in a stream [size]; read piece by piece."""
    counts = np.zeros(size, dtype=np.int64)
    for start in range(0, len(tokens), COUNTED):
        counts += np.bincount(tokens[start : start + COUNTED], minlength=size)
    return counts


def lay_blocks(ids: NDArray[np.int64], has_types: bool, padded: bool, device: torch.device) -> Batch:
    """Blocks [B, T] as a batch without masks, on a device; `padded`: for a model that cannot read rows end to end."""
    same = same_of_all(*ids.shape, device)
    return dataclasses.replace(
        same,
        input_ids=send(torch.from_numpy(ids.ravel()), device),
        token_type_ids=same.token_type_ids if has_types else None,
        attention_mask=same.attention_mask if padded else None,
    )


@lru_cache(maxsize=4)
@torch.inference_mode(False)  # what is first asked for in a measurement is trained with, too
def same_of_all(num: int, length: int, device: torch.device) -> Batch:
    """What all batches of so many blocks share, made once: for 131,072 tokens it takes 12 ms."""
    size = num * length
    same = Batch(
        torch.empty(0, dtype=torch.int64),
        torch.zeros(size, dtype=torch.int64),
        torch.arange(length).repeat(num),
        torch.arange(num).repeat_interleave(length),
        torch.arange(0, size + 1, length, dtype=torch.int32),
        torch.full((num,), -1),
        length,
        torch.ones(size, dtype=torch.int64),
        full=True,
    )
    return send(same, device)
