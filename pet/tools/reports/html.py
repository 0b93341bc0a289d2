"""`pet report`: what a run found as one HTML page. Collects the numbers; the template draws them. Scores nothing anew
that the summary has, and never opens the pool's hidden labels.

Shapes: M members, N texts, L labels.
"""

from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pet.algorithms.calibration import BINS, bin_of, expected_calibration_error
from pet.algorithms.ensemble import disagreement, pool_scores
from pet.algorithms.metrics import measure
from pet.pipeline import drawn_texts
from pet.pipeline import summary as summary_module
from pet.pipeline.runs import Run
from pet.pipeline.score_files import read_scores, score_chunks
from pet.pipeline.stages import label
from pet.store.files import new_file
from pet.store.store import Artifact
from pet.tools.rendering import render

TEMPLATE = "report.html.jinja"

HISTOGRAM_BINS = 20

DISPUTED = 20
"""Texts that are shown of those on which the members disagree."""

SHOWN_LENGTH = 300
"""Characters of a text that are shown."""

Scores = NDArray[np.floating[Any]]


def write(run: Run, output: Path) -> None:
    """Write the page of a run; a page that is there is replaced.

    Raises:
        StoreError: an artifact of the run is gone or damaged, or `output` cannot be written.
    """
    page = render(TEMPLATE, **collect(run))
    with new_file(output, remedy="name another file with --output") as draft:
        draft.write_text(page, encoding="utf-8")


def collect(run: Run) -> dict[str, Any]:
    """Everything that the page shows.

    Raises:
        StoreError: an artifact of the run is gone or damaged.
    """
    summary = run.summary
    members = run.members
    gold = run.space.encode(drawn_texts.load(run.prepared).test.labels)
    tested = np.stack([read_scores(one)["test"] for one in members])  # [M, N, L]
    opinion = pool_scores(tested, run.weights) + label.load_shift(run.labelled, run.labels)
    student = read_scores(run.student)["test"]
    return {
        "name": run.path.name,
        "headline": summary_module.headline(summary),
        "created": datetime.fromisoformat(run.artifact.manifest["created"]),
        "summary": summary,
        "rows": summary_module.score_rows(summary),
        "absent": summary_module.absent_line(summary),
        "few": summary_module.few_line(summary),
        "names": {name: summary_module.row_name(summary, name) for name in summary_module.NAMES},
        "patterns": describe_patterns(run, gold, tested),
        "generation_columns": summary_module.GENERATION_COLUMNS,
        "generations": summary_module.generation_rows(summary) if "generations" in summary else [],
        "notes": summary_module.generation_notes(summary) if "generations" in summary else [],
        "soft_labels": describe_soft_labels(run),
        "confusion": describe_confusion(run.space.confusion(gold, student), run.labels),
        "reliability": [
            {
                "name": summary_module.row_name(summary, name),
                "calibration": summary.get("calibration", {}).get(name),
                **reliability(gold, run.space.probabilities(scores, run.temperature_of(name) or 1.0)),
            }
            for name, scores in (("student", student), ("ensemble", opinion))
        ],
        "members": member_names(run),
        "disputed": find_disputed(run),
        "settings": run.artifact.file("settings.yaml").read_text(encoding="utf-8"),
        "manifest": run.artifact.manifest,
        "devices": sorted({name for one in summary["stages"].values() for name in one["devices"]}),
    }


# ---- patterns and members ------------------------------------------------------------------------------------------


def describe_patterns(run: Run, gold: NDArray[np.int64], tested: Scores) -> list[dict[str, Any]]:
    """Each pattern with its words, how it scores untuned, and its members; `tested`: their test scores [M, N, L].

    The scores are the run's metric on the test set, in percent.
    """

    def score(scores: Scores) -> float:
        return 100 * float(measure(run.space.confusion(gold, scores), run.summary["metric"]))

    found = []
    for number, untuned in sorted(untuned_of(run).items()):
        asked = {"pattern": untuned.manifest["settings"]["pattern"], "words": untuned.manifest["settings"]["words"]}
        members = [
            {"name": name, "score": score(scores), "weight": float(weight), "trained": one.identity != untuned.identity}
            for name, one, scores, weight in zip(member_names(run), run.members, tested, run.weights, strict=True)
            if {name: one.manifest["settings"][name] for name in asked} == asked
        ]
        found.append({"number": number, **asked, "untuned": score(read_scores(untuned)["test"]), "members": members})
    return found


def untuned_of(run: Run) -> dict[int, Artifact]:
    """Number of a pattern -> its untuned artifact."""
    named = {name.partition("untuned-")[2]: one for name, one in run.scored.manifest["inputs"].items()}
    return {int(number): run.by_identity("finetune", one) for number, one in named.items() if number}


def member_names(run: Run) -> list[str]:
    """Their short names, such as p0-r1, in the order of `run.members`."""
    return [one["member"] for one in run.labelled.read_json("ensemble.json")["members"]]


# ---- what came out -------------------------------------------------------------------------------------------------


def describe_soft_labels(run: Run) -> dict[str, Any]:
    """Histogram of the most probable label's probability, and how many texts each label is the most probable of."""
    probabilities = run.space.probabilities(label.load_scores(run.labelled, run.labels))
    counts, edges = np.histogram(probabilities.max(-1), bins=HISTOGRAM_BINS, range=(0, 1))
    given = run.space.count(run.space.decide(probabilities))
    return {
        "texts": len(probabilities),
        "median": float(np.median(probabilities.max(-1))),
        "bins": [
            {"low": float(low), "high": float(high), "count": int(count)}
            for (low, high), count in zip(pairwise(edges), counts, strict=True)
        ],
        "labels": [{"name": name, "count": int(count)} for name, count in zip(run.labels, given, strict=True)],
    }


def describe_confusion(counts: NDArray[np.int64], labels: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each gold label: how many of its texts got each label, and its recall (`None`: it has no texts)."""
    return [
        {
            "name": name,
            "counts": [int(count) for count in row],
            "texts": int(row.sum()),
            "recall": 100 * float(row[place] / row.sum()) if row.sum() else None,
        }
        for place, (name, row) in enumerate(zip(labels, counts, strict=True))
    ]


def reliability(gold: NDArray[np.int64], probabilities: Scores) -> dict[str, Any]:
    """The bins of the most probable label's probability, those without a text left out, and the expected calibration
    error in percent, both of `calibration`; `probabilities`: [N, L]."""
    sure = probabilities.max(-1)
    right = probabilities.argmax(-1) == gold
    place = bin_of(sure)
    bins = [
        {
            "low": one / BINS,
            "high": (one + 1) / BINS,
            "count": int((place == one).sum()),
            "accuracy": float(right[place == one].mean()),
            "probability": float(sure[place == one].mean()),
        }
        for one in np.unique(place).tolist()
    ]
    return {
        "bins": bins,
        "error": expected_calibration_error(probabilities, gold),
        "texts": len(gold),
        "accuracy": float(right.mean()),
        "sure": float(sure.mean()),
    }


# ---- where the members disagree ------------------------------------------------------------------------------------


def find_disputed(run: Run) -> list[dict[str, Any]]:
    """Up to DISPUTED pool texts on which members give different labels, the most disputed first, with every member's
    label and the soft label. What the texts' true labels are is not said."""
    rows, predicted, share = most_disputed(run.members)
    texts = drawn_texts.load(run.prepared).pool.take(rows)
    opinion = run.space.probabilities(label.load_scores(run.labelled, run.labels)[rows])
    return [
        {
            "id": texts.ids[place],
            "text": shorten(texts.joined(place)),
            "given": run.space.decode(predicted[:, place]),
            "share": float(share[place]),
            "soft_label": run.labels[run.space.decide(opinion[place])],
            "probability": float(opinion[place].max()),
        }
        for place in range(len(rows))
    ]


def most_disputed(members: Sequence[Artifact]) -> tuple[list[int], NDArray[np.int64], Scores]:
    """Rows of the pool, each member's label number for them [M, rows] and the share of pairs of members that differ."""
    equal = np.full(len(members), 1 / len(members))
    found = [
        (scores.argmax(-1), pairs_that_differ(scores), disagreement(scores, equal))
        for scores in score_chunks(members, "pool")
    ]
    predicted, share, spread = (np.concatenate(one, axis=-1) for one in zip(*found, strict=True))
    rows = np.lexsort((-spread, -share))[:DISPUTED]
    rows = rows[share[rows] > 0]
    return rows.tolist(), predicted[:, rows], share[rows]


def pairs_that_differ(scores: Scores) -> Scores:
    """The share of pairs of members that give a text different labels [N], from scores [M, N, L]; 0 for one member."""
    num_members, _, num_labels = scores.shape
    votes = (scores.argmax(-1)[..., None] == np.arange(num_labels)).sum(0)  # [N, L]
    pairs = max(num_members * (num_members - 1), 1)
    return np.asarray((num_members**2 - (votes**2).sum(-1)) / pairs)


def shorten(text: str) -> str:
    """The beginning of a text."""
    return text if len(text) <= SHOWN_LENGTH else text[:SHOWN_LENGTH].rstrip() + " ..."
