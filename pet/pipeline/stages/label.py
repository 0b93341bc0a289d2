"""label: the ensemble's opinion on the unlabelled pool, a chunk of texts at a time.

Reads the members' scores, weighs each member by the accuracy of its untuned pattern, pools the raw scores. Writes
soft_labels.parquet (id, the most probable label, one probability and one raw score per label) and ensemble.json
(weights, what was added to make shares even, agreement between members, share of each label).
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

from pet.algorithms.ensemble import Array, agreement, align_prior, member_weights, pool_scores
from pet.config.identity import identity_settings
from pet.pipeline import drawn_texts
from pet.pipeline.context import RunContext
from pet.pipeline.node import Node, Stage
from pet.pipeline.score_files import check_scores, open_scores
from pet.pipeline.stages.finetune import Members
from pet.store.draft import Draft
from pet.store.store import Artifact
from pet.tasks.labels import LabelSpace
from pet.tasks.texts import TextSource

SAMPLE = 20_000
"""Pool texts on which shares are made even: a share's standard error is a third of a point then, at most."""


def node(ctx: RunContext, prepared: Node, members: Members) -> Node:
    """Depends on the members, in any order the same, and on how they are weighted."""
    inputs = {f"member-{number}": one for number, one in enumerate(sorted(one.identity for one in members.tuned))}
    return ctx.node(
        STAGE,
        [prepared, members],
        {**identity_settings(ctx.settings.label), "labels": list(ctx.card.labels)},
        {"prepare": prepared.identity, **inputs},
        about=f"soft labels{of(members)}",
        label=ctx.label + (f"-g{members.generation}" if members.generation else ""),
        title=f"label{of(members)}",
    )


def make(ctx: RunContext, draft: Draft, prepared: Node, members: Members) -> None:
    """Pool the members' scores."""
    labels = ctx.card.labels
    many = f"{len(members.tuned)} member{'s' * (len(members.tuned) > 1)}{of(members)}"
    ctx.say(f"label: pooling the scores of {many}")
    weights = weigh(ctx, members)
    with ExitStack() as stack:
        scores = [stack.enter_context(open_scores(member.artifact, "pool")) for member in members.tuned]
        pool = drawn_texts.load(prepared.artifact).pool
        shift = find_shift(ctx, lambda: sample(scores, weights))
        summary = write_soft_labels(draft.path / "soft_labels.parquet", pool, scores, ctx.labels, weights, shift)
    report = describe_ensemble(labels, members, weights, shift, summary)
    draft.write_json("ensemble.json", report)
    agreed = {} if report["agreement"] is None else {"agreement": report["agreement"]}
    shares = {f"share_{label}": share for label, share in report["label_shares"].items()}
    ctx.runtime.reporter.log("label", {**agreed, **shares}, 0)


STAGE = Stage("label", version=1, make=make, step="label")


def of(members: Members) -> str:
    """Which generation, at the end of a message."""
    return f" of generation {members.generation}" if members.generation else ""


def weigh(ctx: RunContext, members: Members) -> Array:
    """Weights [M] of the members."""
    if ctx.settings.label.weighting == "uniform":
        return member_weights(np.zeros(len(members.tuned)))
    found = [
        members.untuned[plan.pvp.number].artifact.read_json("training.json")["train_accuracy"] for plan in members.plans
    ]
    return member_weights(np.asarray([np.nan if one is None else one for one in found]))


def find_shift(ctx: RunContext, pooled: Callable[[], Array]) -> Array:
    """What is added to each label's pooled scores [L]; `pooled`: gives those of pool texts [N, L], if they matter."""
    return align_prior(pooled()) if ctx.settings.label.shares == "even" else np.zeros(len(ctx.card.labels))


def sample(scores: Sequence[Any], weights: Array) -> Array:
    """Pooled scores of SAMPLE texts at most, evenly spread over the pool; `scores`: the members', each [N, L] and to be
    sliced."""
    step = -(-len(scores[0]) // SAMPLE)
    return pool_scores(np.stack([one[::step] for one in scores]), weights)


@dataclass
class Summary:
    """What is counted on the way: texts, texts per label, and the sum over texts of the agreement between members."""

    texts: int
    counts: NDArray[np.int64]
    agreement: float


def write_soft_labels(
    path: Path, pool: TextSource, scores: Sequence[Any], labels: LabelSpace, weights: Array, shift: Array
) -> Summary:
    """Pool the members' raw scores, each [N, L] and to be sliced, add `shift` [L] and write them, a chunk of texts at a
    time."""
    summary = Summary(0, np.zeros(len(labels), dtype=np.int64), 0.0)
    with ExitStack() as stack:
        writer = None
        for chunk in pool.chunks():
            rows = slice(summary.texts, summary.texts + len(chunk))
            found = np.stack([one[rows] for one in scores])  # [M, n, L]
            pooled = pool_scores(found, weights) + shift
            table = soft_label_table(chunk.ids, labels, pooled)
            writer = writer or stack.enter_context(pyarrow.parquet.ParquetWriter(path, table.schema))
            writer.write_table(table)
            summary.texts += len(chunk)
            summary.counts += labels.count(labels.decide(pooled))
            summary.agreement += len(chunk) * agreement(found)
    return summary


def soft_label_table(ids: list[str], labels: LabelSpace, pooled: Array) -> Any:
    """Pooled scores [N, L] as a table."""
    probabilities = labels.probabilities(pooled)
    columns: dict[str, Any] = {"id": ids, "label": labels.decode(labels.decide(probabilities))}
    columns |= {f"probability_{name}": probabilities[:, number] for number, name in enumerate(labels.names)}
    columns |= {f"score_{name}": pooled[:, number] for number, name in enumerate(labels.names)}
    return pyarrow.table(columns)


def load_scores(artifact: Artifact, labels: tuple[str, ...]) -> NDArray[np.float64]:
    """The pooled raw scores [N, L], in the pool's order.

    Raises:
        DamagedArtifact: the file is missing or damaged, or has scores that are NaN or infinite.
    """
    names = [f"score_{label}" for label in labels]
    table = pyarrow.parquet.read_table(artifact.file("soft_labels.parquet"), columns=names)
    return check_scores(artifact, np.stack([table[f"score_{label}"].to_numpy() for label in labels], axis=1))


def load_shift(artifact: Artifact, labels: tuple[str, ...]) -> Array:
    """What was added to each label's pooled scores [L]."""
    found = artifact.read_json("ensemble.json")["shift"]
    return np.asarray([found[label] for label in labels])


def describe_ensemble(
    labels: tuple[str, ...], members: Members, weights: Array, shift: Array, summary: Summary
) -> dict[str, Any]:
    """Weights, what is added to scores, agreement (`None`: one member has nobody to agree with) and label shares."""
    return {
        "members": [
            {"member": plan.label, "identity": one.identity, "weight": round(float(weight), 6)}
            for plan, one, weight in zip(members.plans, members.tuned, weights, strict=True)
        ],
        "shift": {label: round(float(value), 6) for label, value in zip(labels, shift, strict=True)},
        "agreement": round(summary.agreement / summary.texts, 4) if len(weights) > 1 else None,
        "label_shares": {
            label: round(int(count) / summary.texts, 4) for label, count in zip(labels, summary.counts, strict=True)
        },
    }


def opinion_of(ctx: RunContext, members: Members, labelled: Artifact, scores: NDArray[Any]) -> NDArray[Any]:
    """The members' scores [M, N, L] pooled as the soft labels were [N, L]."""
    return pool_scores(scores, weights_of(members, labelled)) + load_shift(labelled, ctx.card.labels)


def weights_of(members: Members, labelled: Artifact) -> NDArray[np.float64]:
    """The members' weights [M], by identity: the soft labels may have been made with the patterns in another order."""
    weight_of = {one["identity"]: one["weight"] for one in labelled.read_json("ensemble.json")["members"]}
    return np.asarray([weight_of[one.identity] for one in members.tuned])
