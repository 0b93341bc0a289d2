"""What every stage is given: the settings, the store, the machine, and what is read once (card, texts, tokenizer)."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel
from torch.nn import Module

from pet.config.identity import identity_settings
from pet.config.schema import ModelSettings, RuntimeSettings, Settings
from pet.errors import DamagedArtifact, SettingsError
from pet.modeling import backbones, loading, quiet
from pet.modeling.tokenization import PromptTokenizer
from pet.store.draft import Draft
from pet.store.files import digest_json
from pet.store.key import Key
from pet.store.store import Artifact, Store
from pet.tasks.annotations import GivenLabels, read_given_labels
from pet.tasks.card import TaskCard, load_card
from pet.tasks.patterns import PVP
from pet.tasks.sources import choose_source, load_texts
from pet.tasks.texts import Texts, concatenate
from pet.training.checkpoint import Checkpoint, CheckpointManager
from pet.training.device import Runtime
from pet.training.distributed import Ranks
from pet.training.memory import peak_memory, reset_peak_memory
from pet.training.optim import Optimizer


class Executor(Protocol):
    """Who makes trainings elsewhere, as many at a time as there is room for."""

    def call(self, ctx: "RunContext", what: Callable[..., Any], *arguments: Any) -> Any:
        """What `what(ctx, *arguments)` returns, or raises, there."""

    def members(self, ctx: "RunContext", prepared: Artifact, plans: Sequence[Any]) -> None:
        """Make members, those of `finetune.Plan`s."""


class RunContext:
    """One walk through the stages. `invocation`: what was typed after `pet run`, without --stage, for messages."""

    def __init__(self, settings: Settings, store: Store, runtime: Runtime, invocation: str = "") -> None:
        self.settings = settings
        self.store = store
        self.runtime = runtime
        self.invocation = invocation
        self._fingerprints: dict[str, str] = {}
        self.adapted: Artifact | None = None
        """What `adapt` made of model.name, once it has: everything that would start from model.name starts from it."""
        self.executor: Executor | None = None
        """`None`: everything is made by this process."""

    def command(self, stage: str) -> str:
        """The command that runs one stage of this walk."""
        return f"pet run --stage {stage} {self.invocation}".strip()

    @cached_property
    def _card(self) -> tuple[TaskCard, Path]:
        return load_card(self.settings.task.name)

    @property
    def card(self) -> TaskCard:
        """The task card."""
        return self._card[0]

    @cached_property
    def source(self) -> dict[str, Texts]:
        """All texts of the task by split, as the source has them."""
        return load_texts(*self._card, data=self.settings.task.data)

    @cached_property
    def source_digests(self) -> dict[str, str]:
        """Digest of ids, fields and labels of each split of the source."""
        return {split: digest_json([one.ids, one.fields, one.labels]) for split, one in self.source.items()}

    @cached_property
    def train_side(self) -> Texts:
        """All texts that may become labelled texts or pool."""
        return concatenate([self.source[split] for split in ("train", "unlabelled") if split in self.source])

    @cached_property
    def given_labels(self) -> GivenLabels:
        """Labels given by hand (`data.train_files`).

        Raises:
            TaskError: a file is unusable; names every problem.
        """
        paths = self.settings.data.train_files
        if not paths:
            return GivenLabels({})
        source, _ = choose_source(*self._card, self.settings.task.data)
        return read_given_labels(self.card, source, paths, self.train_side)

    @property
    def num_labelled(self) -> int:
        """How many labelled texts there are to be: those drawn and those labelled by hand."""
        return self.settings.data.train_examples + len(self.given_labels.labels)

    @cached_property
    def pvps(self) -> list[PVP]:
        """The patterns of this walk.

        Raises:
            SettingsError: `finetune.patterns` names one that the card does not have, or one twice.
        """
        pvps = self.card.pvps()
        chosen = self.settings.finetune.patterns
        if chosen is None:
            return pvps
        unknown = [number for number in chosen if number >= len(pvps)]
        if unknown or not chosen or len(set(chosen)) < len(chosen):
            raise SettingsError(
                f"finetune.patterns {list(chosen)}: task {self.card.name!r} has patterns 0 to {len(pvps) - 1}; "
                "name at least one of them, each once"
            )
        return [pvps[number] for number in chosen]

    @cached_property
    def prompt_tokenizer(self) -> PromptTokenizer:
        """The tokenizer of the members."""
        return self.prompt_tokenizer_of(None)

    def prompt_tokenizer_of(self, model: str | None) -> PromptTokenizer:
        """The tokenizer of another model (`None`: model.name)."""
        return backbones.load_tokenizer(self.model_settings(model))

    def model_settings(self, model: str | None) -> ModelSettings:
        """The settings of another model (`None`: model.name), read to the same length."""
        base = self.settings.model
        if model in (None, base.name):
            if self.adapted is None:
                return base
            model = str(self.adapted.file("model"))
        return base.model_copy(update={"name": model, "revision": None})

    def model_identity(self, model: str | None = None) -> dict[str, Any]:
        """What training starts from, for identities."""
        if self.adapted is not None and model in (None, self.settings.model.name):
            weights = f"{self.adapted.manifest['stage']}-{self.adapted.identity}"
        else:
            weights = self._fingerprint(self.model_settings(model))
        return {"weights": weights, **identity_settings(self.settings.model)}

    def start_identity(self) -> str:
        """What model.name is, as it was before `adapt`."""
        return self._fingerprint(self.settings.model)

    def _fingerprint(self, settings: ModelSettings) -> str:
        """Weights are hashed once: of a large model that takes seconds, and the key of every member asks."""
        if settings.name not in self._fingerprints:
            self._fingerprints[settings.name] = loading.fingerprint(settings)
        return self._fingerprints[settings.name]

    @property
    def model_label(self) -> str:
        """The model's name as part of a folder name."""
        return Path(self.settings.model.name).name.lower()

    @property
    def draw_label(self) -> str:
        """Task, number of labelled texts and seed, as part of a folder name."""
        return f"{self.card.name}-n{self.num_labelled}-s{self.settings.seed}"

    def reuse(self, key: Key, what: str) -> Artifact | None:
        """A published artifact, said to be reused; `None` when it has to be made."""
        found = self.find(key)
        if found is not None:
            self.runtime.reporter.say(f"{what}: reused {found.path}")
        return found

    def find(self, key: Key) -> Artifact | None:
        """As the function `find`."""
        return find(self.store, self.runtime, key)

    def train(self, stage: Any, *inputs: Artifact) -> Artifact:
        """What `stage.run(self, *inputs)` makes; elsewhere, if there is an executor and it is not there already.
        `stage`: a module with `key` and `run`."""
        if self.executor is None or self.store.find(stage.key(self, *inputs)):
            return stage.run(self, *inputs)  # type: ignore[no-any-return]
        return self.executor.call(self, stage.run, *inputs)  # type: ignore[no-any-return]

    def make(self, key: Key, label: str, what: str, fill: Callable[[Draft], None], seed: int | None = None) -> Artifact:
        """As the function `make`."""
        return make(self.store, self.runtime, key, label, what, fill, seed)

    def checkpoints(
        self, draft: Draft, weights: Module, optimizer: Optimizer, title: str, names: Sequence[str]
    ) -> CheckpointManager:
        """Who saves a training in a draft. `title`: for what is said; else as of `Checkpoint`."""
        checkpoint = Checkpoint(draft.checkpoint, weights, optimizer, self.runtime, names)
        return CheckpointManager(checkpoint, self.settings.runtime.checkpoint_minutes, title, self.runtime.reporter.say)


def make(
    store: Store,
    runtime: Runtime,
    key: Key,
    label: str,
    what: str,
    fill: Callable[[Draft], None],
    seed: int | None = None,
) -> Artifact:
    """The artifact of an identity: found and said to be reused, or filled and published. `what`: for what is said.

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
    """As `Store.publish`, which is told by Python what safetensors says of a disk; whoever is waited for is named. Of
    several ranks the main one publishes; what the others write is thrown away.

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
        draft = Draft(Path(folder), key, label, None, None) if checkpoint else None
        if draft is not None:
            draft.path.mkdir(parents=True)
            draft.checkpoint = Path(str(checkpoint))
        yield draft
    ranks.barrier()


T = TypeVar("T")

MENDED = 3
"""Times that one artifact is set aside by a walk, at most: after that it is the disk that needs mending."""


def mending(store: Store, runtime: Runtime, go: Callable[[], T]) -> T:
    """What `go` returns, which is begun again whenever it has come upon a damaged artifact: that is set aside, and so
    made anew. What is whole is reused.

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
            writer = store.set_aside(damage) if runtime.ranks.is_main else None
            runtime.ranks.barrier()
            where = f"; set aside as {writer.name}, which `pet runs gc` removes" if writer else ""
            name = f"{damage.folder.parent.name}/{damage.folder.name}"
            runtime.reporter.say(f"{name} is damaged ({damage.problem}){where}")


def training_settings(ctx: RunContext, section: BaseModel, without: Set[str] = frozenset()) -> dict[str, Any]:
    """Settings of a training stage as they enter its identity, with the precision asked for, and how many ranks share
    it, if several do. `without`: see `identity_settings`."""
    return {**identity_settings(section, without=without), **shared_by(ctx.runtime, ctx.settings.runtime)}


def shared_by(runtime: Runtime, settings: RuntimeSettings) -> dict[str, Any]:
    """What of the machine changes a training: the precision, and, of several ranks, their number: each draws the masks
    of its rows' dropout itself."""
    size = runtime.ranks.size
    return {"precision": settings.precision, **({"ranks": size} if size > 1 else {})}


def begin(ctx: RunContext, what: str) -> None:
    """Say that something is being made, and start measuring its memory."""
    ctx.runtime.reporter.say(what)
    reset_peak_memory()


def finish(ctx: RunContext, draft: Draft) -> None:
    """Note device, precision and peak memory in the manifest."""
    draft.note(**ctx.runtime.facts(), **peak_memory())
