"""What comes from other people, read within limits: regular files, packed ones, YAML, and paths that stay in a folder.

Every limit is one constant here with its reason. What is in a file is the business of whoever reads it.
"""

import gzip
import re
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

import yaml
from yaml.composer import ComposerError
from yaml.events import AliasEvent
from yaml.nodes import MappingNode, Node, ScalarNode

from pet.errors import PetError

MAX_YAML = 1_000_000
"""Bytes of a task card or pipeline. The longest shipped one has 3,000; PyYAML takes some ten seconds for so many."""

MAX_DEPTH = 20
"""Levels of YAML in each other. The deepest setting is at 4; Python's stack ends at some 100 of PyYAML's."""

MAX_NODES = 50_000
"""Values of a YAML file with each alias counted as often as it stands: what an alias of aliases costs whoever walks
through it ("billion laughs")."""

MAX_UNPACKED = 4 << 30
"""Bytes of one file that is read whole, unpacked. The largest of the paper's has 0.8 GB; gzip can make a thousandfold
of what is sent."""

MAX_FIELD = 10_000_000
"""Characters of one cell, or of one text made from cells; the csv module's own limit (131,072) is shorter than some
reviews."""

MAX_LINE = 4 * MAX_FIELD
"""Characters of one line where a file is read a line at a time: memory must not grow with one that has no line ends."""

MAX_COLUMNS = 10_000
"""Columns of a table: each row is a dictionary of them."""

READ_AT_ONCE = 1 << 20


# ---- files and paths -----------------------------------------------------------------------------------------------


def path_of(name: str) -> Path:
    """A path as a person types it: `~` is home, where there is one."""
    try:
        return Path(name).expanduser()
    except RuntimeError:  # nobody is called that
        return Path(name)


def is_file(path: Path) -> bool:
    """Whether there is a regular file; of a name that cannot be one, no."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Whether there is a folder; of a name that cannot be one, no."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def require_file(path: Path, error: type[PetError]) -> None:
    """Refuse what is no regular file: reading a pipe or a device may never end.

    Raises:
        error: says what it is.
    """
    if is_file(path):
        return
    if is_folder(path):
        raise error(f"{path} is a folder; expected a file")
    try:
        there = path.exists()
    except (OSError, ValueError):
        there = False
    raise error(
        f"{path} is no regular file; copy what it gives into one"
        if there
        else f"there is no file {path}; check the name"
    )


def read_bytes(path: Path, error: type[PetError], most: int = MAX_UNPACKED) -> bytes:
    """The content of a file, unpacked if its name ends in .gz; `most`: bytes of it.

    Raises:
        error: no regular file, unreadable, damaged or too large.
    """
    require_file(path, error)
    parts = []
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for part in bounded(file, path, error, most):  # type: ignore[arg-type]
                parts.append(part)
    except (OSError, EOFError, zlib.error) as problem:
        raise error(f"{path} cannot be read: {getattr(problem, 'strerror', None) or problem}") from None
    return b"".join(parts)


def bounded(file: IO[bytes], path: Path, error: type[PetError], most: int = MAX_UNPACKED) -> Iterator[bytes]:
    """A file a piece at a time.

    Raises:
        error: it has more than `most` bytes.
    """
    size = 0
    while part := file.read(READ_AT_ONCE):
        size += len(part)
        if size > most:
            raise error(f"{path} has more than {most:,} bytes (unpacked), which is too much; give a smaller file")
        yield part


def stays_inside(name: str) -> bool:
    """Whether a path that somebody wrote into a file cannot lead out of a folder, links apart."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return not (name[:1] in ("/", "\\", "~") or ".." in parts or "://" in name or re.match(r"[A-Za-z]:", name))


def leads_inside(path: Path, root: Path) -> bool:
    """Whether a path below `root` is still below it when all links are followed."""
    try:
        return path.resolve().is_relative_to(root.resolve())
    except (OSError, ValueError, RuntimeError):  # a link to itself
        return False


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: it has no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# ---- YAML ----------------------------------------------------------------------------------------------------------


class Loader(yaml.SafeLoader):
    """YAML's plain values and no others, with every key once, within MAX_DEPTH and MAX_NODES."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.depth = self.made = 0
        self.sizes: dict[Node, int] = {}

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        """As SafeLoader does, and count."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        mark = event.start_mark
        self.depth += 1
        self.made += 1
        if self.depth > MAX_DEPTH:
            raise ComposerError(None, None, f"more than {MAX_DEPTH} levels in each other", mark)
        if self.made > MAX_NODES:
            raise ComposerError(None, None, f"more than {MAX_NODES:,} values", mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        if isinstance(event, AliasEvent):
            if node not in self.sizes:
                raise ComposerError(None, None, "an alias of what it stands in", mark)
        elif node is not None:
            self.sizes[node] = self._count(node, mark)
        return node

    def _count(self, node: Node, mark: Any) -> int:
        """Values in a node, itself included."""
        if isinstance(node, ScalarNode):
            if "\0" in node.value or not is_unicode(node.value):
                raise ComposerError(None, None, "a NUL character or half a surrogate pair", mark)
            return 1
        pairs = isinstance(node, MappingNode)
        children = [one for pair in node.value for one in pair] if pairs else node.value
        size = 1 + sum(self.sizes[one] for one in children)
        if size > MAX_NODES:
            raise ComposerError(None, None, f"more than {MAX_NODES:,} values, aliases counted", mark)
        if pairs:
            self._require_different(node)
        return size

    def _require_different(self, node: Node) -> None:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if (key.tag, key.value) in seen:
                    raise ComposerError(None, None, f"key {key.value!r} stands there twice", key.start_mark)
                seen.add((key.tag, key.value))


def load_yaml(text: str) -> Any:
    """The value of a YAML document; `None` if it is empty.

    Raises:
        ValueError: it is not YAML, or beyond a limit; its two arguments are the reason and the line, from 1 or `None`.
    """
    loader = None
    try:
        loader = Loader(text)  # reads the first characters
        return loader.get_single_data()
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        reason = getattr(problem, "problem", None) or getattr(problem, "reason", None) or "not YAML"
        raise ValueError(reason, mark.line + 1 if mark else None) from None
    except Exception:  # PyYAML checks no date, number or !!tag before it takes them apart: anything may come
        raise ValueError("a date, number or tag that is none", None) from None
    finally:
        if loader is not None:
            loader.dispose()
