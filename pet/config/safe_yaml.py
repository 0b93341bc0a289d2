"""YAML of other people: plain values within limits, with the line of what is wrong."""

from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.events import AliasEvent
from yaml.nodes import MappingNode, Node, ScalarNode

from pet.config.limits import is_unicode

MAX_YAML = 1_000_000
"""Bytes of a task card or pipeline. The longest shipped one has 3,000; PyYAML takes some ten seconds for so many."""

MAX_DEPTH = 20
"""Levels of YAML in each other. The deepest setting is at 4; Python's stack ends at some 100 of PyYAML's."""

MAX_NODES = 50_000
"""Values of a YAML file with each alias counted as often as it stands: what an alias of aliases costs whoever walks
through it ("billion laughs")."""


class Loader(yaml.SafeLoader):
    """YAML's plain values and no others, with every key once, within MAX_DEPTH and MAX_NODES."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.depth = self.made = 0
        self.sizes: dict[Node | None, int] = {}

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        """As SafeLoader does, and count: an alias as all that it stands for."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        before, mark = self.made, event.start_mark
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
            self.made += self.sizes[node] - 1
            if self.made > MAX_NODES:
                raise ComposerError(None, None, f"more than {MAX_NODES:,} values, aliases counted", mark)
        elif isinstance(node, ScalarNode) and ("\0" in node.value or not is_unicode(node.value)):
            raise ComposerError(None, None, "a NUL character or half a surrogate pair", mark)
        elif isinstance(node, MappingNode):
            require_different(node)
        self.sizes.setdefault(node, self.made - before)
        return node


def require_different(node: MappingNode) -> None:
    """Refuse a key that stands twice in a mapping; a merge (`<<`) may."""
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
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        reason = getattr(problem, "problem", None) or getattr(problem, "reason", None) or "not YAML"
        raise ValueError(reason, mark.line + 1 if mark else None) from None
    except Exception:  # PyYAML checks no date, number or !!tag before it takes them apart: anything may come
        raise ValueError("a date, number or tag that is none", None) from None
