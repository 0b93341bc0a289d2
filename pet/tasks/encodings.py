"""Files as bytes and as text: packed or not, in the first of several encodings that fits."""

import codecs
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

from pet.config.limits import MAX_UNPACKED, bounded, opened
from pet.errors import TaskError


def find_encoding(path: Path, encodings: Sequence[str], lenient: bool = False) -> str:
    """The first encoding that a whole file fits.

    Args:
        path: The file; it is read once an encoding, a piece at a time.
        encodings: What is tried, in this order.
        lenient: Take a file of any size and with NUL characters; and the first encoding where none fits, unread where
            there is no other.

    Raises:
        TaskError: None fits; names the line of the first byte that does not. Or there is a NUL character, or the file
            is too large.
    """
    if lenient and len(encodings) == 1:
        return streamable(path, encodings[0])
    most, line = sys.maxsize if lenient else MAX_UNPACKED, 1
    for encoding in map(streamable, itertools.repeat(path), encodings):
        decoder, line, nul = codecs.getincrementaldecoder(encoding)(), 1, 0
        try:
            with opened(path, TaskError) as file:
                for piece in itertools.chain(bounded(file, path, TaskError, most), [b""]):
                    text = decoder.decode(piece, final=not piece)
                    if not nul and (at := text.find("\0")) >= 0:
                        nul = line + text.count("\n", 0, at)
                    line += text.count("\n")
        except UnicodeDecodeError as problem:
            line += problem.object.count(b"\n", 0, problem.start)
            continue
        if nul and not lenient:
            raise TaskError(f"{path}, line {nul}: a NUL character, which no text has; convert the file to UTF-8")
        return encoding
    if lenient:
        return streamable(path, encodings[0])
    raise TaskError(f"{path}, line {line}: not {name_encodings(encodings)} text; convert the file to UTF-8")


def name_encodings(tried: Sequence[str]) -> str:
    """Encodings as a message names them."""
    return " or ".join(tried).replace("utf-8-sig", "UTF-8")


def streamable(path: Path, encoding: str) -> str:
    """The encoding by which a file is read in pieces. Without a mark at the beginning, UTF-16 and UTF-32 are in this
    machine's order of bytes, as where a text is decoded in one go; read in pieces, Python refuses them."""
    name = codecs.lookup(encoding).name
    if name not in ("utf-16", "utf-32"):
        return encoding
    marks = {"utf-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE), "utf-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)}
    with opened(path, TaskError) as file:
        marked = file.read(4).startswith(marks[name])
    return encoding if marked else f"{name}-{'le' if sys.byteorder == 'little' else 'be'}"
