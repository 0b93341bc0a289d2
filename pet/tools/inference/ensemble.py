"""The members of a finished run, asked again: their checkpoints or adapters, pooled as their soft labels were. Trains
nothing."""

from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pet.algorithms.ensemble import pool_scores
from pet.config.schema import ModelSettings
from pet.errors import MissingArtifact, ModelError
from pet.modeling import backbones, loading, lora, packing
from pet.modeling.prompts import Encoder
from pet.modeling.tokenization import TokenizedTexts
from pet.modeling.verbalizers import encode_verbalizers
from pet.pipeline.runs import Run, adapted_of
from pet.pipeline.stages import label
from pet.store.store import Artifact
from pet.tasks.patterns import PVP, parse_pattern
from pet.tasks.texts import TextSource
from pet.training.device import Runtime
from pet.training.finite import Origin
from pet.training.scoring import computing_copy, refresh, score_rows


class Ensemble:
    """All members on one model, which is given their weights in turn: as much memory as one of them takes."""

    def __init__(self, run: Run, fields: tuple[str, ...], runtime: Runtime) -> None:
        """
        Raises:
            MissingArtifact: a member, or the model that it adapts, is not there any more.
            ModelError: it cannot be loaded, or an adapter is damaged.
        """
        self.members = run.members
        self.runtime = runtime
        settings = [checkpoint_of(run, one) for one in self.members]
        self.models = dict(zip((one.identity for one in self.members), settings, strict=True))
        adapters = {one.identity: lora.read(one.file("adapter")) for one in self.members if one.has("adapter")}
        self.weights = run.weights
        self.shift = label.load_shift(run.labelled, run.labels)
        self.prompt_tokenizer = backbones.load_tokenizer(settings[0])
        pvps = [pvp_of(number, one, fields, run.labels) for number, one in enumerate(self.members)]
        self.words = [
            ids.to(runtime.device) for ids in encode_verbalizers(self.prompt_tokenizer, pvps, run.summary["task"])
        ]
        self.encoders = [
            Encoder(self.prompt_tokenizer, pvp.pattern, settings[0].max_length, truncation_of(one))
            for pvp, one in zip(pvps, self.members, strict=True)
        ]
        self.cloze = backbones.load(settings[0], runtime.device)
        self.layers = {one: lora.detach(lora.attach(self.cloze.lm, adapter)) for one, adapter in adapters.items()}
        self.originals = [(one, one.data) for one in self.cloze.parameters()]
        self.compute_model = computing_copy(self.cloze, runtime)
        self.loaded = settings[0].name

    def score(self, texts: TextSource, name: str) -> NDArray[np.floating[Any]]:
        """Pooled scores [N, L]."""
        tokens, found = TokenizedTexts(self.prompt_tokenizer, texts), []
        for number, member in enumerate(self.members):
            self._become(member)
            rows = self.encoders[number].encode(tokens)
            label_scores = partial(self.compute_model.label_scores, verbalizer=self.words[number])
            title = f"member {number + 1} of {len(self.members)}, {name}"
            layout = packing.steady_layout(self.compute_model.lm)
            origin = Origin(f"member {member.path.name}", remedy="use the student, or another run")
            found.append(score_rows(label_scores, rows, layout, self.runtime, title, origin))
        return pool_scores(np.stack(found), self.weights) + self.shift

    @torch.no_grad()
    def _become(self, member: Artifact) -> None:
        """Give the model the weights of one member."""
        settings = self.models[member.identity]
        for parameter, data in self.originals:
            parameter.data = data
        if self.loaded != settings.name:
            other = backbones.load(settings, torch.device("cpu"))
            for mine, its in zip(self.cloze.parameters(), other.parameters(), strict=True):
                mine.copy_(its)
            self.loaded = settings.name
        for layer in self.layers.get(member.identity, ()):
            layer.merge(safe_merge=True)
            layer.merged_adapters.clear()  # not `unmerge`, which rounds: `originals` come back instead
        refresh(self.compute_model, self.cloze)


def pvp_of(number: int, member: Artifact, fields: tuple[str, ...], labels: tuple[str, ...]) -> PVP:
    """What a member is asked, as its manifest has it."""
    settings = member.manifest["settings"]
    words = {name: tuple(settings["words"][name]) for name in labels}
    return PVP(number, parse_pattern(settings["pattern"], fields), words)


def truncation_of(member: Artifact) -> str:
    """How its rows are shortened; an untuned member has no settings of training."""
    settings = member.manifest["settings"]
    return str(settings.get("finetune", settings)["truncation"])


def checkpoint_of(run: Run, member: Artifact) -> ModelSettings:
    """The model to load for a member: its own, or the one that it is an adapter of, or is, untuned.

    Raises:
        MissingArtifact: its weights were not kept, or the adapted model is gone.
        ModelError: the model that all started from is not the same any more.
    """
    settings = member.manifest["settings"]
    length = settings["model"]["max_length"]
    if member.has("model"):
        return ModelSettings(name=str(member.file("model").resolve()), max_length=length)
    if settings["repetition"] is not None and not member.has("adapter"):
        raise MissingArtifact(
            f"the weights of member {member.path.name} were not kept; use the student, or make the run in a new store "
            "with --set runtime.keep_members=true"
        )
    if (identity := adapted_of(member.manifest)) is not None:
        adapted = run.by_identity("adapt", identity)
        return ModelSettings(name=str(adapted.file("model").resolve()), max_length=length)
    start = run.settings.model
    if loading.fingerprint(start) != settings["model"]["weights"]:
        raise ModelError(
            f"the weights of {start.name!r} are not those that member {member.path.name} was made from; give back the "
            "model it had, or use the student"
        )
    return start
