"""distill: train the student, a plain classifier, on the soft labels of the pool (P1 section 3.3, step 3).

Only the pool is used: the labelled texts taught the members already. Writes student/ (a transformers checkpoint with
label names and tokenizer), scores.safetensors (test: raw scores [N, L]), training.json and seen.parquet (the id of each
pool text, and whether a training step came to it: steps may end before all were seen).
"""

from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from numpy.typing import NDArray

from pet.modeling import quiet
from pet.pipeline import drawn_texts
from pet.pipeline.context import RunContext, Start, training_settings
from pet.pipeline.node import Node, Stage
from pet.pipeline.score_files import write_scores
from pet.pipeline.stages import label
from pet.pipeline.student import Classifier
from pet.store.draft import Draft
from pet.store.store import Artifact
from pet.tasks.splits import derive_seed
from pet.tasks.texts import TextFile
from pet.training.losses import distillation_loss
from pet.training.trainer import TrainingReport

SEEN = "seen.parquet"


def node(ctx: RunContext, prepared: Node, labelled: Node, adapted: Node | None) -> Node:
    """Depends on the soft labels, the texts, the model and how it is trained."""
    start = ctx.start(ctx.settings.distill.model, adapted)
    settings = {
        "model": start.identity,
        "distill": training_settings(ctx, ctx.settings.distill),
        "seed": ctx.settings.seed,
    }
    inputs = {"prepare": prepared.identity, "label": labelled.identity, **start.inputs}
    return ctx.node(STAGE, [prepared, labelled, start], settings, inputs, about="student")


def make(ctx: RunContext, draft: Draft, prepared: Node, labelled: Node, start: Start) -> None:
    """Train the student."""
    ctx.say("distill: training the student on the soft labels")
    splits = drawn_texts.load(prepared.artifact)
    teacher = label.load_scores(labelled.artifact, ctx.card.labels)
    student, report = train_student(ctx, start, splits, teacher, draft)
    scores = student.score(student.encode(splits.test), "student on test")
    with quiet.quiet_transformers():
        student.model.save_pretrained(draft.path / "student")
        student.prompt_tokenizer.tokenizer.save_pretrained(draft.path / "student")
    write_scores(draft, {"test": scores})
    draft.write_json("training.json", {"steps": report.steps, "losses": report.losses})
    write_seen(draft, splits.pool, student.seen)


STAGE = Stage("distill", version=4, make=make, step="distill", trains=True)


def write_seen(draft: Draft, pool: TextFile, seen: NDArray[np.bool_]) -> None:
    """Which texts of the pool the student was trained on."""
    ids = [one for chunk in pool.chunks() for one in chunk.ids]
    pyarrow.parquet.write_table(pyarrow.table({"id": ids, "seen": seen}), draft.path / SEEN)


def load_seen(student: Artifact) -> NDArray[np.bool_]:
    """Whether the student was trained on each text of its pool [N], in the pool's order.

    Raises:
        DamagedArtifact: the file is missing or damaged.
    """
    found = pyarrow.parquet.read_table(student.file(SEEN), columns=["seen"])["seen"]
    return np.asarray(found.to_numpy(zero_copy_only=False), dtype=np.bool_)


def train_student(
    ctx: RunContext,
    start: Start,
    splits: drawn_texts.Splits[TextFile],
    teacher: NDArray[np.floating[Any]],
    draft: Draft,
) -> tuple[Classifier, TrainingReport]:
    """The student, trained on pool texts and the teacher's raw scores [N, L]. `draft`: keeps its checkpoint."""
    settings = ctx.settings.distill
    student = Classifier(ctx, start, derive_seed("distill", ctx.settings.seed))

    def loss(scores: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return distillation_loss(scores, wanted, settings.temperature)

    targets = torch.from_numpy(teacher).float()
    return student, student.train(student.encode(splits.pool), targets, loss, settings, "student", draft)
