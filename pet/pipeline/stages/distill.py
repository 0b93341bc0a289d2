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
from pet.pipeline.context import RunContext, begin, finish, training_settings
from pet.pipeline.score_files import write_scores
from pet.pipeline.stages import label
from pet.pipeline.student import Classifier
from pet.store.draft import Draft
from pet.store.key import Key
from pet.store.store import Artifact
from pet.tasks.splits import derive_seed
from pet.tasks.texts import TextFile
from pet.training.losses import distillation_loss
from pet.training.trainer import TrainingReport

STAGE = "distill"
SEEN = "seen.parquet"
VERSION = 4


def key(ctx: RunContext, prepared: Artifact, labelled: Artifact) -> Key:
    """Depends on the soft labels, the texts, the model and how it is trained."""
    settings = {
        "model": ctx.model_identity(ctx.settings.distill.model),
        "distill": training_settings(ctx, ctx.settings.distill),
        "seed": ctx.settings.seed,
    }
    return Key(STAGE, VERSION, settings, {"prepare": prepared.identity, "label": labelled.identity})


def run(ctx: RunContext, prepared: Artifact, labelled: Artifact) -> Artifact:
    """Train the student, or reuse it."""

    def fill(draft: Draft) -> None:
        begin(ctx, "distill: training the student on the soft labels")
        splits = drawn_texts.load(prepared)
        teacher = label.load_scores(labelled, ctx.card.labels)
        student, report = train_student(ctx, splits, teacher, draft)
        scores = student.score(student.encode(splits.test), "student on test")
        with quiet.quiet_transformers():
            student.model.save_pretrained(draft.path / "student")
            student.prompt_tokenizer.tokenizer.save_pretrained(draft.path / "student")
        write_scores(draft, {"test": scores})
        draft.write_json("training.json", {"steps": report.steps, "losses": report.losses})
        write_seen(draft, splits.pool, student.seen)
        finish(ctx, draft)

    name = f"{ctx.draw_label}-{ctx.model_label}"
    return ctx.make(key(ctx, prepared, labelled), name, STAGE, fill, seed=ctx.settings.seed)


def need(ctx: RunContext, prepared: Artifact, labelled: Artifact) -> Artifact:
    """The student from the store.

    Raises:
        MissingArtifact: it has not been trained; says which command does.
    """
    return ctx.store.need(key(ctx, prepared, labelled), "student of these settings", ctx.command(STAGE))


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
    ctx: RunContext, splits: drawn_texts.Splits[TextFile], teacher: NDArray[np.floating[Any]], draft: Draft
) -> tuple[Classifier, TrainingReport]:
    """The student, trained on pool texts and the teacher's raw scores [N, L]. `draft`: keeps its checkpoint."""
    settings = ctx.settings.distill
    student = Classifier(ctx, settings.model, derive_seed("distill", ctx.settings.seed))

    def loss(scores: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return distillation_loss(scores, wanted, settings.temperature)

    targets = torch.from_numpy(teacher).float()
    return student, student.train(student.encode(splits.pool), targets, loss, settings, "student", draft)
