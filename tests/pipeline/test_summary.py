"""The summary of a run as people read it, word for word, on invented scores."""

import copy
from pathlib import Path
from typing import Any

import pytest

from pet.config.resolve import resolve_settings
from pet.pipeline.summary import (
    across_seeds,
    build_summary,
    cost_line,
    headline,
    markdown_row,
    score_rows,
    stage_cost,
    summary_markdown,
)
from pet.store.key import Key
from pet.store.store import Artifact, Store


def score(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high}


SUMMARY: dict[str, Any] = {
    "task": "weather",
    "labels": ["sun", "rain"],
    "metric": "accuracy",
    "model": "roberta-large",
    "train_examples": 10,
    "pool": 4000,
    "test": 1900,
    "seed": 3,
    "recipe": "fixed",
    "scores": {
        "zero_shot": score(51.04, 48.81, 53.2),
        "supervised": score(62.5, 60.3, 64.7),
        "probe": score(60.96, 58.75, 63.14),
        "members": [
            {"pattern": 0, "repetition": 0, **score(80.0, 78.2, 81.8)},
            {"pattern": 0, "repetition": 1, **score(81.25, 79.5, 83.0)},
            {"pattern": 4, "repetition": None, **score(44.44, 42.2, 46.7)},
        ],
        "ensemble": score(84.0, 82.4, 85.6),
        "student": score(85.96, 84.4, 87.5),
        "soft_labels": score(83.0, 81.8, 84.2),
    },
    "stages": {
        "prepare": {"seconds": 0.4, "peak_memory_bytes": 2**28, "devices": ["cpu"]},
        "finetune": {"seconds": 121.6, "peak_memory_bytes": 3 * 2**30, "devices": ["cuda"]},
        "label": {"seconds": 2.0, "peak_memory_bytes": 0, "devices": []},
    },
}

MARKDOWN = """\
# weather on roberta-large: 10 labels, 4000 unlabelled, 1900 test texts, seed 3, recipe fixed

| | accuracy | 95 % interval |
|---|---:|---:|
| zero-shot, patterns untuned | 51.0 | 48.8 to 53.2 |
| supervised: linear probe | 61.0 | 58.8 to 63.1 |
| supervised: fine-tuned | 62.5 | 60.3 to 64.7 |
| member, pattern 0, repetition 0 | 80.0 | 78.2 to 81.8 |
| member, pattern 0, repetition 1 | 81.2 | 79.5 to 83.0 |
| member, pattern 4, untuned | 44.4 | 42.2 to 46.7 |
| PET ensemble | 84.0 | 82.4 to 85.6 |
| PET student | 86.0 | 84.4 to 87.5 |

Soft labels against the pool's hidden labels: 83.0 (81.8 to 84.2).

Cost: prepare 0 s, finetune 122 s, label 2 s; peak memory 3.0 GiB.
"""


def without(*names: str) -> dict[str, Any]:
    """The summary without some of its scores."""
    summary = copy.deepcopy(SUMMARY)
    for name in names:
        del summary["scores"][name]
    return summary


def test_the_summary_reads_word_for_word_as_promised():
    assert summary_markdown(SUMMARY) == MARKDOWN


def test_a_zero_shot_run_has_no_rows_of_supervised_classifiers():
    lines = [line for line in MARKDOWN.splitlines(keepends=True) if not line.startswith("| supervised")]
    assert summary_markdown(without("probe", "supervised")) == "".join(lines)


def test_where_the_pools_labels_are_unknown_nothing_is_said_of_them():
    expected = MARKDOWN.replace("Soft labels against the pool's hidden labels: 83.0 (81.8 to 84.2).\n\n", "")
    assert summary_markdown(without("soft_labels")) == expected


def test_writing_a_summary_does_not_change_it():
    summary = copy.deepcopy(SUMMARY)
    summary_markdown(summary)
    assert summary == SUMMARY


def test_headline_and_cost_are_one_line_each():
    assert headline(SUMMARY) == MARKDOWN.splitlines()[0].removeprefix("# ")
    assert cost_line(SUMMARY) == "prepare 0 s, finetune 122 s, label 2 s; peak memory 3.0 GiB"


def test_rows_stand_in_the_order_in_which_they_are_compared():
    rows = score_rows(SUMMARY)
    assert [name for name, _ in rows] == [
        "zero-shot, patterns untuned",
        "supervised: linear probe",
        "supervised: fine-tuned",
        "  member, pattern 0, repetition 0",
        "  member, pattern 0, repetition 1",
        "  member, pattern 4, untuned",
        "PET ensemble",
        "PET student",
    ]
    assert [one["value"] for _, one in rows] == [51.04, 60.96, 62.5, 80.0, 81.25, 44.44, 84.0, 85.96]


# ---- several seeds -------------------------------------------------------------------------------------------------


def test_over_seeds_there_is_mean_sample_deviation_and_each_value():
    summaries = [copy.deepcopy(SUMMARY) for _ in range(3)]
    for summary, value in zip(summaries, (80.0, 84.0, 91.0), strict=True):
        summary["scores"]["student"]["value"] = value
    rows = {name: rest for name, *rest in across_seeds(summaries)}
    assert list(rows) == [name for name, _ in score_rows(SUMMARY) if "member" not in name]
    assert rows["PET student"] == [pytest.approx(85.0), pytest.approx(31**0.5), [80.0, 84.0, 91.0]]
    assert rows["PET ensemble"] == [84.0, 0.0, [84.0] * 3]


def test_a_row_that_one_of_the_seeds_lacks_is_left_out():
    names = [name for name, *_ in across_seeds([SUMMARY, without("probe")])]
    assert "supervised: linear probe" not in names
    assert "supervised: fine-tuned" in names


# ---- from artifacts ------------------------------------------------------------------------------------------------


def test_a_stages_cost_is_the_sum_of_its_seconds_and_the_largest_of_its_peaks():
    made = [
        Artifact(Path("a"), {"seconds": 1.26, "peak_memory_bytes": 5, "device": "cuda"}),
        Artifact(Path("b"), {"seconds": 2.5, "peak_memory_bytes": 9, "device": "cpu"}),
        Artifact(Path("c"), {"seconds": 0.0, "device": "cuda"}),
        Artifact(Path("d"), {"seconds": 0.0}),
    ]
    assert stage_cost(made) == {"seconds": 3.8, "peak_memory_bytes": 9, "devices": ["cpu", "cuda"]}


CALIBRATION = {"student": {"temperature": 0.7071, "ece_before": 11.19, "ece_after": 3.96}}


def test_a_summary_says_what_was_run_what_came_out_and_where_it_lies(tmp_path):
    store = Store(tmp_path)
    for stage, settings in (("prepare", {}), ("baseline", {}), ("evaluate", {"metric": "macro-f1"})):
        with store.publish(Key(stage, 1, settings, {}), "mine") as draft:
            draft.note(peak_memory_bytes=7, device="cpu")
            draft.write_json("scores.json", SUMMARY["scores"])
            draft.write_json("calibration.json", CALIBRATION)
    prepared, baseline, scored = (
        store.find(Key(stage, 1, settings, {}))
        for stage, settings in (("prepare", {}), ("baseline", {}), ("evaluate", {"metric": "macro-f1"}))
    )
    settings = resolve_settings("demo", {"seed": 4, "data": {"train_examples": 12}})
    summary = build_summary(
        settings,
        "weather",
        ("sun", "rain"),
        {"prepare": [prepared], "evaluate": [baseline, scored]},
        {"train": 12, "pool": 30, "test": 20},
    )
    assert summary["task"] == "weather"
    assert (summary["model"], summary["recipe"]) == (settings.model.name, settings.recipe)
    assert (summary["labels"], summary["metric"]) == (["sun", "rain"], "macro-f1")
    assert [summary[name] for name in ("train_examples", "pool", "test", "seed")] == [12, 30, 20, 4]
    assert summary["scores"] == SUMMARY["scores"]
    assert summary["calibration"] == CALIBRATION
    assert "15 bins, points): student 11.2, at temperature 0.71 4.0. Of 20 texts" in summary_markdown(summary)
    places = {
        "prepare": [f"prepare/{prepared.path.name}"],
        "evaluate": [f"{one}/{where.path.name}" for one, where in (("baseline", baseline), ("evaluate", scored))],
    }
    assert summary["artifacts"] == places, "in whatever folder the store lies"
    assert list(summary["stages"]) == ["prepare", "evaluate"]
    assert summary["stages"]["evaluate"]["peak_memory_bytes"] == 7
    assert summary_markdown(summary).startswith(f"# weather on {settings.model.name}: 12 labels, 30 ")


def test_a_row_of_markdown_is_one_row_whatever_a_label_is_called():
    assert markdown_row(["a|b", "c\nd", "e\x85\u2028f"]) == "| a&#124;b | c d | e f |"
    said = summary_markdown(SUMMARY | {"model": "x\n# y\x85z"}).splitlines()
    assert said[0].startswith("# weather on x # y z: ")
    assert len(said) == len(MARKDOWN.splitlines())
