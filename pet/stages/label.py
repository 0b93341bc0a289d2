"""label: the ensemble's opinion on the unlabelled pool.

Reads the members' scores, weighs each member by the accuracy of its untuned pattern, pools the raw scores. Writes
soft_labels.parquet (id, the most probable label, one probability and one raw score per label) and ensemble.json
(weights, agreement between members, share of each label).
"""

from collections import Counter
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

from pet.artifacts import Artifact, Key
from pet.ensemble import Array, agreement, member_weights, pool_scores, soften
from pet.stages import prepare
from pet.stages.finetune import Members
from pet.stages.work import Work, begin, finish, read_scores

STAGE = "label"
VERSION = 1


def key(work: Work, prepared: Artifact, members: Members) -> Key:
    """Depends on the members, in any order the same, and on how they are weighted."""
    inputs = {f"member-{number}": one for number, one in enumerate(sorted(one.identity for one in members.tuned))}
    return Key(
        STAGE,
        VERSION,
        {**work.settings.label.model_dump(mode="json"), "labels": list(work.card.labels)},
        {"prepare": prepared.identity, **inputs},
    )


def run(work: Work, prepared: Artifact, members: Members) -> Artifact:
    """Pool the members' scores, or reuse the soft labels."""
    found = work.reuse(key(work, prepared, members), "label")
    if found:
        return found
    begin(work, f"label: pooling the scores of {len(members.tuned)} member{'s' * (len(members.tuned) > 1)}")
    labels = work.card.labels
    pool = prepare.load(prepared).pool
    weights = weigh(work, members)
    scores = np.stack([read_scores(member)["pool"] for member in members.tuned])  # [M, N, L]
    pooled = pool_scores(scores, weights)
    with work.store.publish(key(work, prepared, members), f"{work.draw_label}-{work.model_label}") as draft:
        pyarrow.parquet.write_table(soft_label_table(pool.ids, labels, pooled), draft.path / "soft_labels.parquet")
        report = describe_ensemble(labels, members, weights, scores, pooled)
        draft.write_json("ensemble.json", report)
        finish(work, draft)
    work.runtime.reporter.log("label", {"agreement": report["agreement"], **prefixed(report["label_shares"])}, 0)
    return work.published(key(work, prepared, members))


def need(work: Work, prepared: Artifact, members: Members) -> Artifact:
    """The soft labels from the store.

    Raises:
        MissingArtifact: they have not been made; says which command makes them.
    """
    return work.store.need(key(work, prepared, members), "soft labels of these settings", work.command(STAGE))


def weigh(work: Work, members: Members) -> Array:
    """Weights [M] of the members."""
    if work.settings.label.weighting == "uniform":
        return member_weights(np.zeros(len(members.tuned)))
    found = [members.untuned[plan.pvp.number].read_json("training.json")["train_accuracy"] for plan in members.plans]
    return member_weights(np.asarray([np.nan if one is None else one for one in found]))


def soft_label_table(ids: list[str], labels: tuple[str, ...], pooled: Array) -> Any:
    """Pooled scores [N, L] as a table."""
    probabilities = soften(pooled)
    best = probabilities.argmax(-1)
    columns: dict[str, Any] = {"id": ids, "label": [labels[number] for number in best]}
    columns |= {f"probability_{label}": probabilities[:, number] for number, label in enumerate(labels)}
    columns |= {f"score_{label}": pooled[:, number] for number, label in enumerate(labels)}
    return pyarrow.table(columns)


def load_scores(artifact: Artifact, labels: tuple[str, ...]) -> NDArray[np.float64]:
    """The pooled raw scores [N, L], in the pool's order."""
    table = pyarrow.parquet.read_table(artifact.path / "soft_labels.parquet")
    return np.stack([table[f"score_{label}"].to_numpy() for label in labels], axis=1)


def describe_ensemble(
    labels: tuple[str, ...], members: Members, weights: Array, scores: NDArray[np.float32], pooled: Array
) -> dict[str, Any]:
    """Weights, agreement and label shares."""
    counts = Counter(labels[number] for number in pooled.argmax(-1))
    return {
        "members": [
            {"member": plan.label, "identity": one.identity, "weight": round(float(weight), 6)}
            for plan, one, weight in zip(members.plans, members.tuned, weights, strict=True)
        ],
        "agreement": round(agreement(scores), 4),
        "label_shares": {label: round(counts[label] / len(pooled), 4) for label in labels},
    }


def prefixed(shares: dict[str, float]) -> dict[str, float]:
    """Label shares as tracker names."""
    return {f"share_{label}": share for label, share in shares.items()}
