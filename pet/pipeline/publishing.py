"""Making an artifact where it is not there yet: one process fills a draft, the others wait, and damage is made anew."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from pet.errors import Busy, DamagedArtifact
from pet.modeling import quiet
from pet.pipeline.context import RunContext
from pet.pipeline.node import Node
from pet.store.draft import Draft
from pet.store.key import Key
from pet.store.store import Artifact, Store
from pet.training.device import Runtime
from pet.training.distributed import Ranks
from pet.training.memory import peak_memory, reset_peak_memory


def reuse(ctx: RunContext, node: Node) -> Artifact | None:
    """A node's artifact if it is there, which is then printed; `None` when it has to be made."""
    found = find(ctx.store, ctx.runtime, node.key)
    if found is not None:
        ctx.say(f"{node.title}: reused {found.path}")
    return found


def make_node(ctx: RunContext, node: Node, wait: bool = True) -> None:
    """Fill and publish a node's artifact, unless another process has.

    Raises:
        Busy: another process is at it, and `wait` is false.
    """
    with open_node(ctx, node, wait) as draft:
        if draft is not None:
            reset_peak_memory()
            node.stage.make(ctx, draft, *node.given)
            finish(ctx, draft)


def make_each(ctx: RunContext, nodes: Sequence[Node], wait: bool = True) -> None:
    """Make each by itself."""
    share_out(lambda node, wait: make_node(ctx, node, wait), nodes, wait)


def share_out(make_one: Callable[[Node, bool], None], nodes: Sequence[Node], wait: bool = True) -> None:
    """Make each; those that another process is making come last and are waited for, or, without `wait`, left to it. So
    processes that want the same artifacts share them out among themselves."""
    others = []
    for node in nodes:
        try:
            make_one(node, False)
        except Busy:
            others.append(node)
    for node in others if wait else ():
        make_one(node, True)


@contextmanager
def open_node(ctx: RunContext, node: Node, wait: bool = True) -> Iterator[Draft | None]:
    """As `publish`, for a node; prints it where another process has made it."""
    with publish(ctx.store, ctx.runtime, node.key, node.label, node.title, ctx.settings.seed, wait) as draft:
        if draft is None:
            reuse(ctx, node)
        yield draft


def finish(ctx: RunContext, draft: Draft) -> None:
    """Note device, precision and peak memory in the manifest."""
    draft.note(**ctx.runtime.facts(), **peak_memory())


def make(
    store: Store,
    runtime: Runtime,
    key: Key,
    label: str,
    what: str,
    fill: Callable[[Draft], None],
    seed: int | None = None,
) -> Artifact:
    """The artifact of a key that is no node: found and printed, or filled and published. `what`: for messages.

    Raises:
        StoreError: the store cannot be written.
        DamagedArtifact: it is there and is damaged.
    """
    found = find(store, runtime, key)
    if found is None:
        with publish(store, runtime, key, label, what, seed) as draft:
            if draft is not None:
                fill(draft)
        found = find(store, runtime, key)
        assert found is not None, key
        if draft is not None:
            return found
    runtime.reporter.say(f"{what}: reused {found.path}")
    return found


def find(store: Store, runtime: Runtime, key: Key) -> Artifact | None:
    """As `Store.find`; all ranks find what the main one finds."""
    if runtime.ranks.size == 1:
        return store.find(key)
    found = store.find(key) if runtime.ranks.is_main else None
    path = runtime.ranks.broadcast(str(found.path) if found else None)
    return store.open(Path(path)) if path else None


@contextmanager
def publish(
    store: Store, runtime: Runtime, key: Key, label: str, what: str, seed: int | None = None, wait: bool = True
) -> Iterator[Draft | None]:
    """As `Store.publish`; prints which process is waited for. Of several ranks the main one publishes, and what the
    others write is thrown away.

    Raises:
        StoreError: the store cannot be written.
        Busy: another process is at it, and `wait` is false.
    """

    def waiting(who: str) -> None:
        runtime.reporter.say(f"{what}: waiting for {who}, which is making it")

    ranks = runtime.ranks
    if not ranks.is_main:
        with other_draft(ranks, key, label) as draft:
            yield draft
        return
    nobody = None if ranks.size == 1 and not wait else waiting
    with store.publish(key, label, seed=seed, waiting=nobody) as draft, quiet.os_errors():
        ranks.broadcast(str(draft.checkpoint) if draft else None)
        yield draft
    ranks.barrier()


@contextmanager
def other_draft(ranks: Ranks, key: Key, label: str) -> Iterator[Draft | None]:
    """What a rank that is not the main one is given to write into. It reads the checkpoint of the main one."""
    checkpoint = ranks.broadcast("")
    with TemporaryDirectory(prefix="pet-rank-") as folder:
        draft = Draft(Path(folder), key, label, None) if checkpoint else None
        if draft is not None:
            draft.path.mkdir(parents=True)
            draft.checkpoint = Path(str(checkpoint))
        yield draft
    ranks.barrier()


T = TypeVar("T")

MENDED = 3
"""Times that one artifact is set aside by a run, at most: after that it is the disk that needs mending."""


def mending(store: Store, runtime: Runtime, go: Callable[[], T]) -> T:
    """What `go` returns, which is started again whenever it meets a damaged artifact: that is set aside, and so made
    anew. What is whole is reused.

    Raises:
        DamagedArtifact: one is damaged again and again.
    """
    times: Counter[Path] = Counter()
    while True:
        try:
            return go()
        except DamagedArtifact as damage:
            times[damage.folder] += 1
            if times[damage.folder] > MENDED:
                raise
            aside = store.set_aside(damage) if runtime.ranks.is_main else None
            runtime.ranks.barrier()
            where = f"; set aside as {aside.name}, which `pet runs gc` removes" if aside else ""
            name = f"{damage.folder.parent.name}/{damage.folder.name}"
            runtime.reporter.say(f"{name} is damaged ({damage.problem}){where}")
