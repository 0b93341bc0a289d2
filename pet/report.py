"""What a run found, for people and programs: the summary of one run, and a table over several. Computes no score."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from pet.artifacts import Artifact
from pet.settings import Settings

NAMES = {
    "zero_shot": "zero-shot, patterns untuned",
    "probe": "supervised: linear probe",
    "supervised": "supervised: fine-tuned",
    "ensemble": "PET ensemble",
    "student": "PET student",
}
"""Rows of the table, in this order; the members stand before the ensemble."""


def build_summary(
    settings: Settings,
    task: str,
    labels: Sequence[str],
    artifacts: Mapping[str, Sequence[Artifact]],
    sizes: Mapping[str, int],
) -> dict[str, Any]:
    """summary.json: what was run, the scores, and per stage its cost and where its artifacts are."""
    scored = artifacts["evaluate"][-1]
    return {
        "task": task,
        "labels": list(labels),
        "metric": scored.manifest["settings"]["metric"],
        "model": settings.model.name,
        "train_examples": sizes["train"],
        "pool": sizes["pool"],
        "test": sizes["test"],
        "seed": settings.seed,
        "recipe": settings.recipe,
        "scores": scored.read_json("scores.json"),
        "stages": {stage: stage_cost(found) for stage, found in artifacts.items()},
        "artifacts": {stage: [str(one.path) for one in found] for stage, found in artifacts.items()},
    }


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
    rows = [(NAMES[name], scores[name]) for name in ("zero_shot", "probe", "supervised") if name in scores]
    rows += [(f"  member, pattern {one['pattern']}{describe_repetition(one)}", one) for one in scores["members"]]
    return rows + [(NAMES[name], scores[name]) for name in ("ensemble", "student")]


def describe_repetition(member: Mapping[str, Any]) -> str:
    """Which repetition of its pattern a member is."""
    return ", untuned" if member["repetition"] is None else f", repetition {member['repetition']}"


def headline(summary: Mapping[str, Any]) -> str:
    """One line: task, model, sizes, seed."""
    return (
        f"{summary['task']} on {summary['model']}: {summary['train_examples']} labels, {summary['pool']} unlabelled, "
        f"{summary['test']} test texts, seed {summary['seed']}, recipe {summary['recipe']}"
    )


def cost_line(summary: Mapping[str, Any]) -> str:
    """One line: seconds per stage and peak memory."""
    stages = summary["stages"]
    seconds = ", ".join(f"{stage} {cost['seconds']:.0f} s" for stage, cost in stages.items())
    peak = max(cost["peak_memory_bytes"] for cost in stages.values())
    return f"{seconds}; peak memory {peak / 2**30:.1f} GiB"


def summary_markdown(summary: Mapping[str, Any]) -> str:
    """summary.md."""
    lines = [
        f"# {headline(summary)}",
        "",
        f"| | {summary['metric']} | 95 % interval |",
        "|---|---:|---:|",
        *(
            f"| {name.strip()} | {score['value']:.1f} | {score['low']:.1f} to {score['high']:.1f} |"
            for name, score in score_rows(summary)
        ),
        "",
        f"Cost: {cost_line(summary)}.",
    ]
    if "soft_labels" in summary["scores"]:
        lines.insert(-2, "")
        lines.insert(-2, soft_label_line(summary))
    return "\n".join(lines) + "\n"


def soft_label_line(summary: Mapping[str, Any]) -> str:
    """How right the soft labels were, where that can be known."""
    score = summary["scores"]["soft_labels"]
    return (
        f"Soft labels against the pool's hidden labels: {score['value']:.1f} "
        f"({score['low']:.1f} to {score['high']:.1f})."
    )


def across_seeds(summaries: Sequence[Mapping[str, Any]]) -> list[tuple[str, float, float, list[float]]]:
    """(name, mean, standard deviation, value per seed) of every row but the members; at least two summaries."""
    rows = []
    for key, name in NAMES.items():
        values = [summary["scores"][key]["value"] for summary in summaries if key in summary["scores"]]
        if len(values) == len(summaries):
            rows.append((name, mean(values), stdev(values), values))
    return rows
