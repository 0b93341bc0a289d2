"""What a run found, for people and programs: the summary of one run, and a table over several. Computes no score.

A run of iPET has a second table, of its generations, instead of its members.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import mean, stdev
from typing import Any

from pet.algorithms.metrics import describe_absent
from pet.config.schema import Settings
from pet.store.store import Artifact

NAMES = {
    "zero_shot": "zero-shot, patterns untuned",
    "probe": "supervised: linear probe",
    "supervised": "supervised: fine-tuned",
    "supervised_even": "supervised: fine-tuned, shares even",
    "ensemble": "PET ensemble",
    "student": "PET student",
}
"""Rows of the table, in this order; the members stand before the ensemble. Of iPET, "PET" is its last generation."""

FEW = 100
"""Texts below which what is said of them in percent is little more than chance, and that is said. Of a hundred texts in
one bin whose probabilities are right, the expected calibration error is 4 points in the mean (0.8 standard errors)."""

GENERATION_COLUMNS = ("generation", "texts", "drawn right", "agreement", "furthest label", "ensemble")
"""Columns of the table of generations: texts in a member's training set, how many of the drawn ones have the right
label, how far the members agree, how the ensemble scores. The furthest label: the one whose share of the pool, as the
ensemble labels it, is furthest from its share of the labelled texts, and by how many points."""


def build_summary(
    settings: Settings,
    task: str,
    labels: Sequence[str],
    artifacts: Mapping[str, Sequence[Artifact]],
    sizes: Mapping[str, int],
    untested: Sequence[str] = (),
) -> dict[str, Any]:
    """summary.json: what was run, the scores, and per stage its cost and where in the store its artifacts are.
    `untested`: the labels that no test text has."""
    scored = artifacts["evaluate"][-1]
    return {
        "task": task,
        "labels": list(labels),
        "metric": scored.manifest["settings"]["metric"],
        "model": settings.model.name,
        "adapted": settings.adapt.enabled,
        "train_examples": sizes["train"],
        "pool": sizes["pool"],
        "test": sizes["test"],
        "untested": list(untested),
        "seed": settings.seed,
        "recipe": settings.recipe,
        "scores": scored.read_json("scores.json"),
        "calibration": scored.read_json("calibration.json"),
        "stages": {stage: stage_cost(found) for stage, found in artifacts.items()},
        "artifacts": {stage: [place_of(one) for one in found] for stage, found in artifacts.items()},
    }


def place_of(artifact: Artifact) -> str:
    """Where an artifact lies in its store, which may be moved."""
    return "/".join(artifact.path.parts[-2:])


def stage_cost(artifacts: Sequence[Artifact]) -> dict[str, Any]:
    """Seconds of all its artifacts, whenever they were made, the largest peak memory, the devices."""
    manifests = [one.manifest for one in artifacts]
    return {
        "seconds": round(sum(one["seconds"] for one in manifests), 1),
        "peak_memory_bytes": max(one.get("peak_memory_bytes", 0) for one in manifests),
        "devices": sorted({one["device"] for one in manifests if "device" in one}),
    }


def score_rows(summary: Mapping[str, Any]) -> list[tuple[str, dict[str, float]]]:
    """(name, value/low/high) in the order of the table."""
    scores = summary["scores"]
    single = ("zero_shot", "probe", "supervised", "supervised_even")
    rows = [(NAMES[name], scores[name]) for name in single if name in scores]
    if "generations" not in summary:
        rows += [(f"  member, pattern {one['pattern']}{describe_repetition(one)}", one) for one in scores["members"]]
    return rows + [(row_name(summary, name), scores[name]) for name in ("ensemble", "student")]


def row_name(summary: Mapping[str, Any], name: str) -> str:
    """What a row is called."""
    return NAMES[name].replace("PET", "iPET") if "generations" in summary else NAMES[name]


def flag_generations(scored: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each generation's scores, with `worse`: its members agree less than those of the one before."""
    found = [one["agreement"] for one in scored]
    worse = [False, *(None not in (old, new) and new < old for old, new in pairwise(found))]
    return [{**one, "worse": flag} for one, flag in zip(scored, worse, strict=True)]


def generation_rows(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The table of generations, in the order of GENERATION_COLUMNS."""
    rows: list[tuple[str, ...]] = []
    for one in summary["generations"]:
        right = one.get("drawn_right")
        agreement = "" if one["agreement"] is None else f"{100 * one['agreement']:.1f}"
        off = {name: 100 * (share - one["prior"][name]) for name, share in one["label_shares"].items()}
        furthest = max(off, key=lambda name: abs(off[name]))
        rows.append(
            (
                str(one["generation"]),
                f"{one['texts']:,}",
                "" if right is None else f"{right:.1f}",
                agreement + (" (worse)" if one["worse"] else ""),
                f"{furthest} {off[furthest]:+.1f}",
                f"{one['ensemble']['value']:.1f}",
            )
        )
    return rows


def generation_notes(summary: Mapping[str, Any]) -> list[str]:
    """What a person should not overlook in it."""
    notes = []
    for one in summary["generations"]:
        if one["worse"]:
            notes.append(
                f"Generation {one['generation']} is worse by its own agreement: its members agree less than those of "
                "the one before."
            )
        if one.get("drawn_right") is not None and one["drawn_known"] < FEW:
            notes.append(
                f"Generation {one['generation']}: how many are drawn right is known of {one['drawn_known']:,} texts "
                "alone (all members together)."
            )
        if one.get("filled"):
            counts = ", ".join(f"{name} {count:,}" for name, count in one["filled"].items())
            notes.append(
                f"Generation {one['generation']}: too few texts were given these labels, others were drawn for them: "
                f"{counts} (all members together)."
            )
    return notes


def describe_repetition(member: Mapping[str, Any]) -> str:
    """Which repetition of its pattern a member is."""
    return ", untuned" if member["repetition"] is None else f", repetition {member['repetition']}"


def headline(summary: Mapping[str, Any]) -> str:
    """One line: task, model, sizes, seed."""
    adapted = ", adapted to the pool" if summary.get("adapted") else ""
    return (
        f"{summary['task']} on {summary['model']}{adapted}: {labels_used(summary)}, {summary['pool']} unlabelled, "
        f"{summary['test']} test texts, seed {summary['seed']}, recipe {summary['recipe']}"
    )


def labels_used(summary: Mapping[str, Any]) -> str:
    """How many labels went into a run: those that it was trained on, and others that chose its label words."""
    more = f" (and {summary['word_texts']} more chose the label words)" if summary.get("word_texts") else ""
    return f"{summary['train_examples']} labels{more}"


def cost_line(summary: Mapping[str, Any]) -> str:
    """One line: seconds per stage and peak memory."""
    stages = summary["stages"]
    seconds = ", ".join(f"{stage} {cost['seconds']:.0f} s" for stage, cost in stages.items())
    peak = max(cost["peak_memory_bytes"] for cost in stages.values())
    return f"{seconds}; peak memory {peak / 2**30:.1f} GiB"


def summary_markdown(summary: Mapping[str, Any]) -> str:
    """summary.md."""
    lines = [
        f"# {' '.join(headline(summary).split())}",
        "",
        f"| | {summary['metric']} | 95 % interval |",
        "|---|---:|---:|",
        *(
            markdown_row([name, f"{score['value']:.1f}", f"{score['low']:.1f} to {score['high']:.1f}"])
            for name, score in score_rows(summary)
        ),
        "",
        f"Cost: {cost_line(summary)}.",
    ]
    more = score_notes(summary)
    if "generations" in summary:
        table = [GENERATION_COLUMNS, ("---:",) * len(GENERATION_COLUMNS), *generation_rows(summary)]
        notes = (" ".join(one.split()) for one in generation_notes(summary))
        more += ["\n".join(map(markdown_row, table)), *notes]
    for part in more:
        lines[-2:-2] = ["", part]
    return "\n".join(lines) + "\n"


def markdown_row(cells: Sequence[str]) -> str:
    """A row of a Markdown table; a label or a name may hold what ends a cell or a line."""
    return f"| {' | '.join(' '.join(one.split()).replace('|', '&#124;') for one in cells)} |"


def absent_line(summary: Mapping[str, Any]) -> str:
    """What is to be known of labels that no test text has; "" where there are none."""
    absent = describe_absent(summary.get("untested", ()), summary["metric"], len(summary["labels"]))
    return f"{absent[0].upper()}{absent[1:]}." if absent else ""


def score_notes(summary: Mapping[str, Any]) -> list[str]:
    """What stands below the scores, a line each; runs of older versions have less of it."""
    lines = [line] if (line := absent_line(summary)) else []
    lines += [soft_label_line(summary)] if "soft_labels" in summary["scores"] else []
    return lines + ([calibration_line(summary)] if "calibration" in summary else [])


def soft_label_line(summary: Mapping[str, Any]) -> str:
    """How right the soft labels were, where that can be known."""
    score = summary["scores"]["soft_labels"]
    known = score.get("texts", summary["pool"])
    of = "" if known == summary["pool"] else f", of the {known:,} of {summary['pool']:,} texts whose label is known"
    return (
        f"Soft labels against the pool's hidden labels: {score['value']:.1f} "
        f"({score['low']:.1f} to {score['high']:.1f}{of})."
    )


def calibration_line(summary: Mapping[str, Any]) -> str:
    """How far probabilities can be believed, as they are and at their temperature."""
    each = "; ".join(
        f"{name} {one['ece_before']:.1f}, "
        + (
            f"left as it is ({one['problem']})"
            if one.get("problem")
            else f"at temperature {one['temperature']:.2f} {one['ece_after']:.1f}"
        )
        for name, one in summary["calibration"].items()
    )
    few = few_line(summary)
    return f"Calibration error on the test set (ECE, 15 bins, points): {each}.{few and f' {few}'}"


def few_line(summary: Mapping[str, Any]) -> str:
    """That there are too few test texts for a calibration error, where there are; else ""."""
    count = summary["test"]
    texts = f"{count} text{'s' * (count != 1)}"
    return f"Of {texts} it says little: chance alone makes it large." if count < FEW else ""


def across_seeds(summaries: Sequence[Mapping[str, Any]]) -> list[tuple[str, float, float, list[float]]]:
    """(name, mean, standard deviation, value per seed) of every row but the members; at least two summaries."""
    rows = []
    for key in NAMES:
        values = [summary["scores"][key]["value"] for summary in summaries if key in summary["scores"]]
        if len(values) == len(summaries):
            rows.append((row_name(summaries[0], key), mean(values), stdev(values), values))
    return rows
