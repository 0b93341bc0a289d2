"""Scores as artifacts keep them: one safetensors file, [N, L] per split."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from pet.errors import DamagedArtifact
from pet.store.draft import Draft
from pet.store.store import Artifact
from pet.tasks.texts import CHUNK

SCORES = "scores.safetensors"

F = TypeVar("F", np.float32, np.float64)


def write_scores(draft: Draft, scores: Mapping[str, NDArray[np.float32]]) -> None:
    """Write score arrays [N, L] by split name."""
    save_file(
        {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in scores.items()}, draft.path / SCORES
    )


def read_scores(artifact: Artifact) -> dict[str, NDArray[np.float32]]:
    """Read what `write_scores` wrote.

    Raises:
        DamagedArtifact: the file is missing or damaged, or has scores that are NaN or infinite.
    """
    return {name: check_scores(artifact, found) for name, found in load_file(artifact.file(SCORES)).items()}


def check_scores(artifact: Artifact, found: NDArray[F]) -> NDArray[F]:
    """Scores as they were read. Older versions published NaN. What is damaged is made again, and then fails with a
    reason.

    Raises:
        DamagedArtifact: one is NaN or infinite. In the baseline alone -inf is allowed: a label that the probe does not
            know.
    """
    finite = np.isfinite(found)
    if artifact.manifest["stage"] == "baseline":
        finite |= np.isneginf(found)
    if not finite.all():
        raise DamagedArtifact(artifact.path, "it has scores that are NaN or infinite", artifact.manifest.get("digest"))
    return found


@dataclass(frozen=True)
class SlicedScores:
    """The scores [N, L] of one split, of which rows are read when they are asked for, and then checked."""

    artifact: Artifact
    rows: Any

    def __getitem__(self, wanted: slice) -> NDArray[np.float32]:
        return check_scores(self.artifact, self.rows[wanted])

    def __len__(self) -> int:
        return int(self.rows.get_shape()[0])


@contextmanager
def open_scores(artifact: Artifact, split: str) -> Iterator[SlicedScores]:
    """The scores of one split, to be sliced: only the rows asked for are read.

    Raises:
        DamagedArtifact: the file is missing or damaged.
    """
    with safe_open(artifact.file(SCORES), framework="numpy") as file:
        yield SlicedScores(artifact, file.get_slice(split))


def score_chunks(artifacts: Sequence[Artifact], split: str) -> Iterator[NDArray[np.float32]]:
    """The scores of several artifacts together [M, n, L], at most CHUNK texts at a time.

    Raises:
        DamagedArtifact: a file is missing or damaged.
    """
    with ExitStack() as stack:
        files = [stack.enter_context(open_scores(one, split)) for one in artifacts]
        total = len(files[0])
        for start in range(0, total, CHUNK):
            yield np.stack([one[start : min(start + CHUNK, total)] for one in files])
