"""What a run is given: the settings, the store, the machine, and what is read once (card, texts, tokenizer).

Nothing in it changes while the run goes on. What one stage makes for another is an input of that one (`node`).
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel
from torch.nn import Module

from pet.config.identity import identity_settings
from pet.config.schema import ModelSettings, RuntimeSettings, Settings
from pet.errors import SettingsError
from pet.modeling import backbones, loading
from pet.modeling.prompts import Encoder
from pet.modeling.tokenization import PromptTokenizer
from pet.pipeline.node import Node, Stage
from pet.store.draft import Draft
from pet.store.files import digest_json
from pet.store.key import Key
from pet.store.store import Store
from pet.tasks.annotations import GivenLabels, read_given_labels
from pet.tasks.card import TaskCard, load_card
from pet.tasks.labels import LabelSpace
from pet.tasks.patterns import PVP
from pet.tasks.sources import choose_source, load_texts
from pet.tasks.texts import Texts, concatenate
from pet.training.checkpoint import Checkpoint, CheckpointManager
from pet.training.device import Runtime
from pet.training.optim import Optimizer


class Executor(Protocol):
    """What makes artifacts: this process, or others."""

    def make(self, ctx: "RunContext", nodes: Sequence[Node]) -> None:
        """Make these artifacts, all of one stage."""


class TaskTexts:
    """A task's card and all its texts, read when they are first asked for; the runs of a table share them."""

    def __init__(self, name: str, data: str | None) -> None:
        self.name, self.data = name, data

    @cached_property
    def _loaded(self) -> tuple[TaskCard, Path]:
        return load_card(self.name)

    @property
    def card(self) -> TaskCard:
        """The task card."""
        return self._loaded[0]

    @cached_property
    def source(self) -> dict[str, Texts]:
        """All texts of the task by split, as the source has them."""
        return load_texts(*self._loaded, data=self.data)

    @cached_property
    def digests(self) -> dict[str, str]:
        """Digest of ids, fields and labels of each split of the source."""
        return {split: digest_json([one.ids, one.fields, one.labels]) for split, one in self.source.items()}

    @cached_property
    def train_side(self) -> Texts:
        """All texts that may become labelled texts or pool."""
        return concatenate([self.source[split] for split in ("train", "unlabelled") if split in self.source])

    def read_labels(self, paths: Sequence[str]) -> GivenLabels:
        """Labels given by hand.

        Raises:
            TaskError: a file is unusable; names every problem.
        """
        if not paths:
            return GivenLabels({})
        source, _ = choose_source(*self._loaded, self.data)
        return read_given_labels(self.card, source, paths, self.train_side)


@dataclass(frozen=True)
class Start:
    """What a training starts from: a model, or what `adapt` made of it."""

    base: ModelSettings
    adapted: Node | None
    identity: Mapping[str, Any]
    """For the settings of a key."""

    @property
    def inputs(self) -> dict[str, str]:
        """For the inputs of a key."""
        return {"adapt": self.adapted.identity} if self.adapted else {}

    @property
    def settings(self) -> ModelSettings:
        """Where the weights are."""
        if self.adapted is None:
            return self.base
        return self.base.model_copy(update={"name": str(self.adapted.artifact.file("model")), "revision": None})


@dataclass(frozen=True, eq=False)
class RunContext:
    """One run. `invocation`: what was typed after `pet run`, without --stage, for messages; `executor`: what makes
    artifacts, `None` for this process; `task`: the texts, where other runs have read them already."""

    settings: Settings
    store: Store
    runtime: Runtime
    invocation: str = ""
    executor: Executor | None = None
    task: TaskTexts = None  # type: ignore[assignment]  # `__post_init__` sees to it
    fingerprints: dict[str, str] = field(default_factory=dict, repr=False)
    """Name of a model -> digest of its weights: of a large one that takes seconds, and every member's key needs it."""

    def __post_init__(self) -> None:
        if self.task is None:
            object.__setattr__(self, "task", TaskTexts(self.settings.task.name, self.settings.task.data))

    @property
    def card(self) -> TaskCard:
        """The task card."""
        return self.task.card

    @cached_property
    def labels(self) -> LabelSpace:
        """The task's labels."""
        return LabelSpace(self.card.labels)

    @cached_property
    def given_labels(self) -> GivenLabels:
        """Labels given by hand (`data.train_files`); as `TaskTexts.read_labels`."""
        return self.task.read_labels(self.settings.data.train_files)

    @property
    def num_labelled(self) -> int:
        """How many labelled texts there are to be: those drawn and those labelled by hand."""
        return self.settings.data.train_examples + len(self.given_labels.labels)

    @cached_property
    def pvps(self) -> list[PVP]:
        """The patterns of this run.

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
        """The tokenizer of another model (`None`: model.name). That of an adapted model is the one it had before."""
        return backbones.load_tokenizer(self.model_settings(model))

    def encoder(self, pvp: PVP) -> Encoder:
        """What fills texts into a member's pattern."""
        settings = self.settings
        return Encoder(self.prompt_tokenizer, pvp.pattern, settings.model.max_length, settings.finetune.truncation)

    def model_settings(self, model: str | None = None) -> ModelSettings:
        """The settings of another model (`None`: model.name), read to the same length."""
        base = self.settings.model
        return base if model in (None, base.name) else base.model_copy(update={"name": model, "revision": None})

    def start(self, model: str | None, adapted: Node | None) -> Start:
        """What a training starts from. `model`: `None` for model.name; `adapted`: what `adapt` made of model.name."""
        settings = self.model_settings(model)
        identity = {"weights": self.fingerprint(settings), **identity_settings(self.settings.model)}
        return Start(settings, adapted if settings is self.settings.model else None, identity)

    def fingerprint(self, settings: ModelSettings) -> str:
        """A digest of a model's weights."""
        if settings.name not in self.fingerprints:
            self.fingerprints[settings.name] = loading.fingerprint(settings)
        return self.fingerprints[settings.name]

    @property
    def draw_label(self) -> str:
        """Task, number of labelled texts and seed, as part of a folder name."""
        return f"{self.card.name}-n{self.num_labelled}-s{self.settings.seed}"

    @property
    def label(self) -> str:
        """The same with the model's name."""
        return f"{self.draw_label}-{Path(self.settings.model.name).name.lower()}"

    def node(
        self,
        stage: Stage,
        given: Sequence[Any],
        settings: Mapping[str, Any],
        inputs: Mapping[str, str],
        about: str,
        label: str | None = None,
        title: str | None = None,
    ) -> Node:
        """One artifact to be.

        Args:
            stage: how it is made.
            given: what `stage.make` is given: other nodes, and what holds such.
            settings: of the key.
            inputs: of the key.
            about: for a list of nodes: what it is.
            label: beginning of the folder's name, instead of task, draw and model.
            title: for messages, instead of the stage's name.
        """
        key = Key(stage.name, stage.version, settings, inputs)
        return Node(stage, key, label or self.label, title or stage.name, about, tuple(given), self.store)

    def say(self, message: str) -> None:
        """One line for the person watching."""
        self.runtime.reporter.say(message)

    def checkpoints(
        self, draft: Draft, weights: Module, optimizer: Optimizer, title: str, names: Sequence[str]
    ) -> CheckpointManager:
        """What saves a training in a draft. `title`: for messages; the others as in `Checkpoint`."""
        checkpoint = Checkpoint(draft.checkpoint, weights, optimizer, self.runtime, names)
        return CheckpointManager(checkpoint, self.settings.runtime.checkpoint_minutes, title, self.say)


def training_settings(ctx: RunContext, section: BaseModel, without: Set[str] = frozenset()) -> dict[str, Any]:
    """Settings of a training stage as they enter its identity, with the precision asked for, and how many ranks share
    it, if several do. `without`: see `identity_settings`."""
    return {**identity_settings(section, without=without), **shared_by(ctx.runtime, ctx.settings.runtime)}


def shared_by(runtime: Runtime, settings: RuntimeSettings) -> dict[str, Any]:
    """What of the machine changes a training: the precision, and, of several ranks, their number: each draws the masks
    of its rows' dropout itself."""
    size = runtime.ranks.size
    return {"precision": settings.precision, **({"ranks": size} if size > 1 else {})}
