"""Published runs: finding one by what a person types, and the artifacts it is made of. Makes and scores nothing."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pet.config.resolve import resolve_settings
from pet.config.schema import Settings
from pet.errors import DamagedArtifact, MissingArtifact, StoreError, raise_problems
from pet.store.manifest import MANIFEST
from pet.store.store import Artifact, Store
from pet.tasks.card import CardReading, parse_reading
from pet.tasks.labels import LabelSpace

READING = "reading.json"
"""The file of a run that has what its card says about reading."""

LAST = "last"
"""What stands for the newest run."""


@dataclass(frozen=True)
class Run:
    """One published run and the store that it lies in."""

    store: Store
    artifact: Artifact

    @property
    def path(self) -> Path:
        """Its folder."""
        return self.artifact.path

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Its summary.json."""
        return dict(self.artifact.read_json("summary.json"))

    @cached_property
    def settings(self) -> Settings:
        """The settings that it was made with.

        Raises:
            SettingsError: its settings.yaml is not one that this version of pet can read.
        """
        return resolve_settings(str(self.artifact.file("settings.yaml")))

    @cached_property
    def reading(self) -> CardReading | None:
        """How its card says that texts are read; `None` for runs that were made before that was kept.

        Raises:
            StoreError: this version of pet cannot read what was kept.
        """
        if not self.artifact.has(READING):
            return None
        what = (
            f"{self.path / READING} is not as this version of pet writes it; use the version that made the run, or "
            "make the run again"
        )
        return parse_reading(self.artifact.read_json(READING), what, StoreError)

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, in the card's order."""
        return tuple(self.summary["labels"])

    @cached_property
    def space(self) -> LabelSpace:
        """The same, with their numbers."""
        return LabelSpace(self.labels)

    @cached_property
    def scored(self) -> Artifact:
        """The artifact of evaluate."""
        return self.input_of(self.artifact, "evaluate")

    @cached_property
    def prepared(self) -> Artifact:
        """The splits."""
        return self.input_of(self.scored, "prepare")

    @cached_property
    def labelled(self) -> Artifact:
        """The soft labels that the student was trained on."""
        return self.input_of(self.scored, "label")

    @cached_property
    def student(self) -> Artifact:
        """The student; the checkpoint is its folder `student`."""
        return self.input_of(self.scored, "distill")

    @cached_property
    def members(self) -> list[Artifact]:
        """The members that the soft labels come from, in the order of ensemble.json."""
        return [self.by_identity("finetune", one["identity"]) for one in self._named]

    @property
    def weights(self) -> NDArray[np.float64]:
        """The members' weights [M], 1 in sum but for rounding, in the same order."""
        return np.asarray([one["weight"] for one in self._named])

    @cached_property
    def _named(self) -> list[dict[str, Any]]:
        return list(self.labelled.read_json("ensemble.json")["members"])

    def temperature_of(self, classifier: str) -> float | None:
        """What the raw scores of `student` or `ensemble` are divided by for probabilities (`calibration`); `None` for
        runs that were made before there was one.

        Raises:
            DamagedArtifact: it is no number above 0.
        """
        if not self.scored.has("calibration.json"):
            return None
        found = float(self.scored.read_json("calibration.json")[classifier]["temperature"])
        if not 0 < found < math.inf:
            problem = f"the temperature of the {classifier} is {found:g}"
            raise DamagedArtifact(self.scored.path, problem, self.scored.manifest.get("digest"))
        return found

    def problem_of(self, classifier: str) -> str | None:
        """Why the probabilities of `student` or `ensemble` are raw, at temperature 1; `None`: they are calibrated."""
        if not self.scored.has("calibration.json"):
            return "the run was made before runs were calibrated"
        problem = self.scored.read_json("calibration.json")[classifier].get("problem")  # of older runs: not known
        return None if problem is None else str(problem)

    def input_of(self, artifact: Artifact, name: str) -> Artifact:
        """An input of an artifact of this run; `name`: as in its manifest, where it is the stage's.

        Raises:
            MissingArtifact: it is not in the store any more.
        """
        return self.by_identity(name, artifact.manifest["inputs"][name])

    def by_identity(self, stage: str, identity: str) -> Artifact:
        """The artifact of a stage with that identity.

        Raises:
            MissingArtifact: it is not in the store any more.
        """
        for path in sorted((self.store.root / stage).glob(f"[!.]*-{identity}")):
            if (path / MANIFEST).is_file():
                return self.store.open(path)
        raise MissingArtifact(
            f"run {self.path.name} was made from {stage}/...-{identity}, which is not in {self.store.root}; "
            "make it again with the command that made the run"
        )


def adapted_of(manifest: Mapping[str, Any]) -> str | None:
    """The identity of the adapted model that a member or classifier started from; `None`: it started from model.name.
    Artifacts of before it was an input have it in their settings."""
    weights = str(manifest["settings"]["model"]["weights"])
    named = weights.removeprefix("adapt-") if weights.startswith("adapt-") else None
    found: str | None = manifest["inputs"].get("adapt", named)
    return found


def list_runs(store: Store) -> list[Run]:
    """All runs of a store that are whole, the oldest first."""
    found = [one for one in read_runs(store) if isinstance(one, Artifact)]
    return [Run(store, one) for one in sorted(found, key=lambda one: (str(one.manifest["created"]), one.path.name))]


def damaged_runs(store: Store) -> list[str]:
    """A sentence for each run that is damaged."""
    return [str(one) for one in read_runs(store) if isinstance(one, DamagedArtifact)]


def read_runs(store: Store) -> Iterator[Artifact | DamagedArtifact]:
    """Every run, or what is wrong with it."""
    for path in sorted((store.root / "run").glob(f"[!.]*/{MANIFEST}")):
        try:
            yield store.open(path.parent)
        except DamagedArtifact as problem:
            yield problem


def open_run(given: str, store: Store) -> Run:
    """A run by its folder, its folder's name in the store, the start of its identity, or `last`.

    A folder brings its own store with it: the one it lies in.

    Raises:
        StoreError: there is none, or several begin like that; the sentence names them.
    """
    if (Path(given) / MANIFEST).is_file():
        return open_folder(Path(given))
    runs = list_runs(store)
    if not runs:
        raise_problems(StoreError, "no run of the store is whole", damaged_runs(store))
        raise StoreError(f"{given!r} is no folder of a run, and {store.root} has no runs; make one with `pet run`")
    found = list(matching(given, runs))
    if len(found) == 1:
        return found[0]
    if found:
        raise StoreError(f"{given!r} is the beginning of {name_runs(found)}; give one of them in full")
    raise StoreError(
        f"{given!r} is no run of {store.root}; give its folder, its name, the beginning of its identity or "
        f"{LAST!r}; there are {name_runs(runs)}"
    )


def open_folder(folder: Path) -> Run:
    """The run in a folder that has a manifest.

    Raises:
        StoreError: the folder is another stage's.
    """
    store = Store(folder.resolve().parents[1])
    artifact = store.open(folder)
    if artifact.manifest["stage"] != "run":
        raise StoreError(
            f"{folder} is an artifact of {artifact.manifest['stage']}, not a run; runs lie in {store.root / 'run'}"
        )
    return Run(store, artifact)


def matching(given: str, runs: list[Run]) -> Iterator[Run]:
    """The runs that are meant; an exact name wins over a beginning."""
    if given == LAST:
        yield runs[-1]
        return
    exact = [run for run in runs if given in (run.path.name, run.artifact.identity)]
    yield from exact or (run for run in runs if given and run.artifact.identity.startswith(given))


def name_runs(runs: list[Run], most: int = 5) -> str:
    """Their names, the newest first, at most so many."""
    names = [run.path.name for run in reversed(runs)]
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
