"""What a store holds and who needs it: what can go with a run, its removal, and whether every file is still as it was
published. Makes nothing."""

import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from pet.errors import Busy, StoreError, raise_problems
from pet.store.key import IDENTITY_LENGTH, Key
from pet.store.lock import LOCKS, PREFIX, acquire, is_locked
from pet.store.manifest import CHECKPOINT, MANIFEST, content_of, facts_of, read_manifest, wrong_files
from pet.store.store import DAMAGED, Artifact, Store

REMOVED = ".removed-"
"""What the name of a folder begins with that is being removed; no stage looks at it."""


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(one.stat().st_size for one in (path, *path.rglob("*")) if one.is_file())


def name_of(artifact: Artifact) -> str:
    """Where it lies in its store."""
    return f"{artifact.path.parent.name}/{artifact.path.name}"


# ---- who needs what ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ProvenanceGraph:
    """The artifacts of a store by identity, and a sentence for each folder whose manifest is of no use."""

    artifacts: Mapping[str, Artifact]
    damaged: list[str]

    @cached_property
    def needs(self) -> dict[str, set[str]]:
        """Identity -> identities, of those that are there, that it was made from."""
        found = {name: made_from(one) & set(self.artifacts) for name, one in self.artifacts.items()}
        pools = {pool_of(one): name for name, one in self.artifacts.items() if one.manifest["stage"] == "corpus"}
        for name, one in self.artifacts.items():
            if one.manifest["stage"] == "adapt" and pool_of(one) in pools:
                found[name].add(pools[pool_of(one)])
        return found

    def closure(self, *identities: str) -> set[str]:
        """Artifacts and everything that they were made from, however far back."""
        found, new = set(identities), set(identities)
        while new:
            new = set().union(*(self.needs[one] for one in new)) - found
            found |= new
        return found

    @cached_property
    def wholes(self) -> dict[str, set[str]]:
        """Closures of the artifacts that nothing was made from: runs, and what was made for one that never ended. The
        artifacts whose model they name as a folder are among theirs."""
        needed = set().union(*self.needs.values())
        return {
            name: self.closure(name, *(named_by(one) & set(self.artifacts)))
            for name, one in self.artifacts.items()
            if name not in needed
        }

    def users(self, identity: str, run: str) -> list[Artifact]:
        """Those of `wholes` other than `run` that need an artifact."""
        return [self.artifacts[one] for one, all_of in self.wholes.items() if one != run and identity in all_of]

    def sort(self, identities: Iterable[str]) -> list[Artifact]:
        """Artifacts in such an order that each stands before what it was made from."""
        chosen = set(identities)
        named = sorted(chosen, key=lambda one: name_of(self.artifacts[one]), reverse=True)
        graph = {one: self.needs[one] & chosen for one in named}
        return [self.artifacts[one] for one in reversed(list(TopologicalSorter(graph).static_order()))]

    def belonging(self, run: str) -> list[tuple[Artifact, list[Artifact]]]:
        """Everything that a run was made from, the run first, each with the others that need it."""
        return [(one, self.users(one.identity, run)) for one in self.sort(self.closure(run))]


def made_from(artifact: Artifact) -> set[str]:
    """Identities of its inputs and of the model that its training started from, where that is one of `adapt`: settings
    have it as stage-identity."""
    models = (artifact.manifest["settings"].get(name) for name in ("model", "probe_model"))
    started = {str(one.get("weights")).rpartition("-")[2] for one in models if isinstance(one, Mapping)}
    return {*artifact.manifest["inputs"].values(), *started} - {artifact.identity}


def named_by(artifact: Artifact) -> set[str]:
    """Identities in the folders that a run names as models. They are needed, but do not go with the run: someone made
    them for themselves (`pet pretrain`)."""
    settings = artifact.manifest["settings"]
    places = (("model", "name"), ("distill", "model"), ("baseline", "model"))
    folders = [settings[part].get(name) for part, name in places if isinstance(settings.get(part), Mapping)]
    return {part.rpartition("-")[2] for one in folders if isinstance(one, str) for part in Path(one).parts}


def pool_of(artifact: Artifact) -> tuple[Any, ...]:
    """What an adapted model and the corpus that it was trained on have in common: the corpus is not named among the
    inputs of `adapt`."""
    settings = artifact.manifest["settings"]
    held_out = settings.get("adapt", settings).get("held_out")
    return artifact.manifest["inputs"].get("prepare"), settings.get("model"), held_out


def read_graph(store: Store) -> ProvenanceGraph:
    """Every artifact of a store.

    Raises:
        StoreError: there is no such folder.
    """
    artifacts, damaged = {}, []
    for path in entries(store, "*/*"):
        if path.name.startswith(".") or not looks_published(path):
            continue
        try:
            artifact = Artifact(path, read_manifest(path))  # its files are the business of `verify`
        except StoreError as problem:
            damaged.append(f"{problem}; give the command that made {path} once more: it is made again")
        else:
            artifacts[artifact.identity] = artifact
    return ProvenanceGraph(artifacts, damaged)


def entries(store: Store, pattern: str) -> list[Path]:
    """What lies in a store under such names, sorted.

    Raises:
        StoreError: there is no such folder.
    """
    if not store.root.is_dir():
        raise StoreError(f"{store.root} is no folder; give the folder that keeps the artifacts with --store")
    return sorted(store.root.glob(pattern))


def looks_published(path: Path) -> bool:
    """Whether a folder is an artifact or, its manifest gone, was one."""
    identity = path.name.rpartition("-")[2]
    named = len(identity) == IDENTITY_LENGTH and set(identity) <= set("0123456789abcdef")
    return path.is_dir() and (named or (path / MANIFEST).exists())


# ---- removal -------------------------------------------------------------------------------------------------------


def removable(graph: ProvenanceGraph, run: str) -> list[Artifact]:
    """A run and what no other run, and nothing else that stays, was made from; each before what it was made from.

    Raises:
        StoreError: a manifest of the store cannot be read, so that nobody knows what its artifact needs.
    """
    raise_problems(StoreError, "nothing can be removed while it is not known what every artifact needs", graph.damaged)
    return [one for one, users in graph.belonging(run) if not users]


def remove(store: Store, artifacts: Iterable[Artifact]) -> None:
    """Remove artifacts, in this order. All are hidden first, which takes no time; only then files are deleted.

    Raises:
        StoreError: a folder cannot be removed.
    """
    with removing(store):
        for one in artifacts:  # in one step each is no artifact any more
            hidden = one.path.with_name(f"{REMOVED}{one.identity}-{uuid.uuid4().hex[:8]}")
            one.path.rename(hidden)
            (hidden / MANIFEST).unlink()
    sweep(store)


@contextmanager
def removing(store: Store) -> Iterator[None]:
    """Turn what the disk says into one sentence.

    Raises:
        StoreError: a folder cannot be removed.
    """
    try:
        yield
    except OSError as problem:
        raise StoreError(
            f"{problem.filename or store.root} cannot be removed ({problem.strerror or problem}); make it writable and "
            "run the command again"
        ) from None


def sweep(store: Store) -> None:
    """Delete what is hidden for removal, now or by a removal that was interrupted.

    Raises:
        StoreError: a folder cannot be removed.
    """
    with removing(store):
        for path in sorted(store.root.glob(f"*/{REMOVED}*")):
            shutil.rmtree(path)
            with suppress(OSError):  # the last of its stage takes the stage's folder along
                path.parent.rmdir()


# ---- what was left behind --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Leftover:
    """A hidden folder or file that nobody is at: `what` it was to be, or is, in words."""

    path: Path
    what: str


def leftovers(store: Store) -> list[Leftover]:
    """What processes that died, removals that were interrupted and damaged artifacts have left in a store.

    Raises:
        StoreError: there is no such folder.
    """
    hidden = ((path, draft_of(path)) for path in entries(store, "*/.*") if path.parent.name != LOCKS)
    return [Leftover(path, describe(path)) for path, draft in hidden if not (draft and is_locked(store.root, *draft))]


def describe(path: Path) -> str:
    """What a hidden folder is."""
    if path.name.startswith(DAMAGED):
        return "damaged, set aside"
    if path.name.startswith(REMOVED):
        return "half removed"
    state = facts_of(path / CHECKPOINT)
    return f"begun, saved after step {state['step']:,}" if state else "begun"


def draft_of(path: Path) -> tuple[str, str] | None:
    """Stage and identity that a hidden folder is the draft of, if it is one: it may be locked."""
    return (path.parent.name, path.name.removeprefix(PREFIX)) if path.name.startswith(PREFIX) else None


def sweep_leftovers(store: Store, found: Iterable[Leftover]) -> None:
    """Remove them, but for those that a process has taken up since.

    Raises:
        StoreError: one cannot be removed.
    """
    with removing(store):
        for one in found:
            draft = draft_of(one.path)
            with suppress(Busy), acquire(store.root, *draft, None) if draft else nullcontext():
                shutil.rmtree(one.path) if one.path.is_dir() else one.path.unlink(missing_ok=True)


# ---- verification --------------------------------------------------------------------------------------------------


def verify(graph: ProvenanceGraph, artifacts: Iterable[Artifact]) -> Iterator[tuple[Artifact, list[str]]]:
    """Each artifact with what is wrong with it: files that are damaged, missing or not its own, a manifest that is not
    as it was written, inputs that are gone. Every file is read."""
    for one in artifacts:
        yield one, [*check_files(one), *check_manifest(one, graph)]


def check_files(artifact: Artifact) -> Iterator[str]:
    """The files of an artifact against its manifest."""
    yield from wrong_files(artifact.path, artifact.manifest)
    listed = {one["path"] for one in artifact.manifest["files"]}
    for name in sorted(content_of(artifact.path).keys() - listed):
        yield f"{name} is not in the manifest"


def check_manifest(artifact: Artifact, graph: ProvenanceGraph) -> Iterator[str]:
    """The manifest against the identity, and its inputs against what is in the store."""
    manifest = artifact.manifest
    key = Key(manifest["stage"], manifest["version"], manifest["settings"], manifest["inputs"])
    if not key.identity == artifact.identity == artifact.path.name.rpartition("-")[2]:
        yield f"{MANIFEST} is damaged: its identity is not that of its content and its folder"
    for name, identity in manifest["inputs"].items():
        if identity not in graph.artifacts:
            yield f"its input {name} ({identity}) is not in the store"
