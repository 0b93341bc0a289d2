"""What a run consists of: nodes, each one artifact to be, and the stages that say how it is made. Nothing is made here.

A node's identity is known before anything is made: it depends on settings, texts and the identities of its inputs. So
the graph of a run (`graph.build_graph`) can be listed by a dry run, and made in part, or by other processes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pet.errors import MissingArtifact
from pet.store.key import Key
from pet.store.store import Artifact, Store


@dataclass(frozen=True)
class Stage:
    """How one kind of artifact is made."""

    name: str
    version: int
    """Raised by hand when the stage's code changes the meaning of its output."""

    make: Callable[..., None]
    """`make(ctx, draft, *given)` fills a draft from what the node was given."""

    step: str
    """What --stage calls it."""

    trains: bool = False
    """Whether it trains a model, and so is worth another process."""

    make_all: Callable[..., None] | None = None
    """`make_all(ctx, nodes, kept, wait)` makes several that share what is loaded for them; see `executors.local`."""

    is_joint: Callable[..., bool] | None = None
    """`is_joint(ctx, node)`: whether a node is made in one go with others of its stage; none is, by default."""


@dataclass(frozen=True, eq=False)
class Node:
    """One artifact to be: what it is (`key`) and what it is made from (`given`)."""

    stage: Stage
    key: Key
    label: str
    title: str
    about: str
    given: tuple[Any, ...]
    store: Store

    @cached_property
    def identity(self) -> str:
        """The identity that it will have, or has."""
        return self.key.identity

    @property
    def artifact(self) -> Artifact:
        """What was made.

        Raises:
            MissingArtifact: nothing was.
            DamagedArtifact: it is of no use.
        """
        found = self.store.find(self.key)
        if found is None:
            raise MissingArtifact(f"{self.title} is not in {self.store.root} ({self.key.stage}/...-{self.identity})")
        return found
