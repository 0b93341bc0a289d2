"""The walk through the stages: in what order, what is made again and what is not, and what the summary says."""

import shutil
import sys

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file
from support.rows import (
    LABELS,
    PATTERNS,
    digest,
    files_of,
    find_all,
    find_one,
    hidden_in,
    open_context,
    pet,
    pet_run,
    read_json,
    snapshot,
)

from pet.errors import SettingsError
from pet.modeling import loading
from pet.pipeline import STEPS
from pet.pipeline.runner import plan, run_stage
from pet.pipeline.stages import distill
from pet.tasks.texts import read_texts

pytestmark = pytest.mark.slow

WALKED = tuple(stage for stage in STEPS if stage != "adapt")
"""The stages of a walk that is not asked to adapt."""

ALL = ("prepare", "finetune", "label", "distill", "baseline", "evaluate", "run")


@pytest.fixture
def store(done, tmp_path):
    """A copy of the finished run's store, to go on from."""
    shutil.copytree(done.store, tmp_path / "store")
    return tmp_path / "store"


def artifacts(store):
    return {f"{stage}/{folder.name}" for stage in ALL for folder in find_all(store, stage)}


def made_again(done, *arguments):
    """Stage -> names of what `pet run --dry-run` says is to be made."""
    *lines, last = pet_run(done.ground, done.store, "--dry-run", *arguments).stdout.splitlines()
    todo = [line.split() for line in lines if line.endswith("(to be made)")]
    assert last == f"{len(todo)} of {len(lines)} artifacts to be made; nothing was run"
    found: dict[str, set[str]] = {}
    for stage, _, name, *_ in todo:
        found.setdefault(stage, set()).add(name)
    return found


# ---- all stages, and one by one ------------------------------------------------------------------------------------


def test_a_run_makes_every_artifact_and_leaves_nothing_else_in_the_store(done):
    counts = {stage: len(find_all(done.store, stage)) for stage in ALL}
    assert counts == {stage: 6 if stage == "finetune" else 1 for stage in ALL}
    assert {path.name for path in done.store.iterdir()} == {*ALL, "logs", ".locks"}
    assert hidden_in(done.store) == []
    for stage in ALL:
        assert all((folder / "manifest.json").is_file() for folder in (done.store / stage).iterdir())


def test_the_stages_one_by_one_make_the_same_as_all_at_once(done, tmp_path):
    for stage in WALKED:
        before = artifacts(tmp_path)
        pet_run(done.ground, tmp_path, "--stage", stage)
        made = {name.split("/")[0] for name in artifacts(tmp_path) - before}
        assert made == ({"baseline", "evaluate", "run"} if stage == "evaluate" else {stage})
    assert artifacts(tmp_path) == artifacts(done.store)
    for stage in ALL[:-1]:
        for folder in find_all(tmp_path, stage):
            for name in files_of(folder) - {"manifest.json"}:
                assert digest(folder / name) == digest(done.store / stage / folder.name / name), name


@pytest.mark.parametrize(
    ("stage", "missing"),
    [("finetune", "prepare"), ("label", "finetune"), ("distill", "label"), ("evaluate", "distill")],
)
def test_a_stage_whose_predecessor_is_missing_names_the_command_that_makes_it(done, store, monkeypatch, stage, missing):
    for name in ALL[ALL.index(missing) :]:
        shutil.rmtree(store / name)
    before = artifacts(store)
    typed = ["run", done.ground.pipeline, "--store", str(store), "--stage", stage, "--set", "label.weighting=accuracy"]
    monkeypatch.setattr(sys, "argv", ["pet", *typed])
    result = pet(*typed, code=2)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    command = f"pet run --stage {missing} {done.ground.pipeline} --store {store} --set label.weighting=accuracy"
    assert line.endswith(f"run first: {command}")
    assert artifacts(store) == before
    pet(*command.split()[1:])
    assert artifacts(store) > before


def test_a_walk_in_python_is_the_same_as_on_the_command_line(done):
    ctx = open_context(done.ground, done.store)
    artifact = run_stage(ctx, "all")
    assert artifact is not None
    assert artifact.path == done.one("run")
    assert [step.found is not None for step in plan(ctx)] == [True] * 12
    assert [run_stage(ctx, stage) for stage in WALKED[:-1]] == [None] * 4


# ---- what is reused, and what is made again ------------------------------------------------------------------------


def test_the_same_run_again_trains_nothing_says_so_and_touches_no_file(done, store, monkeypatch):
    monkeypatch.setattr("pet.training.trainer.Trainer.run", None)
    before = snapshot(store)
    result = pet_run(done.ground, store)
    assert snapshot(store) == before
    said = result.stderr.splitlines()
    assert len(said) == 12
    assert all(": reused " in line and str(store) in line for line in said)
    assert result.stdout.splitlines()[1:-2] == done.result.stdout.splitlines()[1:-2]


EVERYTHING = {"prepare", "finetune", "label", "distill", "evaluate"}
AFTER = ("finetune", "label", "distill", "evaluate")


@pytest.mark.parametrize(
    ("setting", "stages"),
    [
        ("seed=1", EVERYTHING),
        ("data.train_examples=9", EVERYTHING),
        ("data.pool_per_label=9", EVERYTHING),
        ("data.test=10", EVERYTHING),
        ("data.draw=first", EVERYTHING),
        ("model.max_length=27", set(AFTER)),
        ("finetune.truncation=last-part", set(AFTER)),
        ("finetune.steps=3", set(AFTER)),
        ("finetune.alpha=0.1", set(AFTER)),
        ("label.weighting=uniform", {"label", "distill", "evaluate"}),
        ("distill.steps=4", {"distill", "evaluate"}),
        ("distill.temperature=1", {"distill", "evaluate"}),
        ("baseline.probe_c=2", {"evaluate"}),
        ("baseline.steps=3", {"evaluate"}),
        ("runtime.batch_tokens=64", set()),
        ("runtime.device=cpu", set()),
    ],
)
def test_a_setting_changes_what_depends_on_it_and_nothing_before(done, setting, stages):
    assert set(made_again(done, "--set", setting)) == stages


def test_a_setting_of_training_leaves_the_untuned_patterns(done):
    assert made_again(done, "--set", "finetune.learning_rate=1e-4")["finetune"] == {"p0-r0", "p0-r1", "p1-r0", "p1-r1"}


def test_another_number_of_repetitions_makes_only_the_new_members(done):
    assert made_again(done, "--set", "finetune.repetitions=3")["finetune"] == {"p0-r2", "p1-r2"}


def test_fewer_patterns_make_no_member_again(done):
    lines = pet_run(done.ground, done.store, "--dry-run", "--set", "finetune.patterns=[1]").stdout.splitlines()
    assert [line.endswith("(to be made)") for line in lines if line.startswith("finetune")] == [False] * 3


def test_a_student_of_other_settings_is_made_from_the_members_that_are_there(done, store):
    before = snapshot(store)
    result = pet_run(done.ground, store, "--set", "distill.steps=4")
    assert result.stderr.count("finetune p") == result.stderr.count(": reused ") - 3 == 6
    assert "distill: training the student" in result.stderr
    assert "training the supervised baselines" not in result.stderr
    after = snapshot(store)
    stages = set(ALL)  # a stage's own folder changes when something is added to it
    assert all(after[name] == stamp for name, stamp in before.items() if name not in stages)
    assert len(find_all(store, "distill")) == 2
    assert len(find_all(store, "run")) == 2


def test_how_texts_are_batched_for_scoring_changes_no_score_beyond_rounding(done, tmp_path):
    pet_run(done.ground, tmp_path, "--set", "runtime.batch_tokens=64")
    assert artifacts(tmp_path) == artifacts(done.store)
    for stage in ("finetune", "distill", "baseline"):
        for folder in find_all(tmp_path, stage):
            found, expected = (
                load_file(base / stage / folder.name / "scores.safetensors") for base in (tmp_path, done.store)
            )
            for name, array in expected.items():
                np.testing.assert_allclose(found[name], array, rtol=1e-3, atol=1e-4)


# ---- recipe paper --------------------------------------------------------------------------------------------------


def test_recipe_paper_restores_what_it_names_of_the_published_code(done, tmp_path):
    """First texts of each label, also in the pool; rows filled up to max_length; truncation from the last part."""
    pet_run(done.ground, tmp_path, "--set", "recipe=paper", "--set", "finetune.repetitions=1")
    prepared = find_one(tmp_path, "prepare")
    train, pool = (read_texts(prepared / f"{name}.parquet") for name in ("train", "pool"))
    assert set(train.ids) <= set(pool.ids)
    for member in find_all(tmp_path, "finetune", "-r0-"):
        settings = read_json(member / "manifest.json")["settings"]["finetune"]
        found = {key: settings[key] for key in ("mask_targets", "truncation", "accumulation")}
        assert found == {"mask_targets": "any", "truncation": "last-part", "accumulation": 4}
    summary = read_json(find_one(tmp_path, "run") / "summary.json")
    assert summary["recipe"] == "paper"


# ---- the run's own artifact ----------------------------------------------------------------------------------------


def test_the_summary_says_what_was_run_what_came_out_and_what_it_cost(done):
    files = {"manifest.json", "summary.json", "summary.md", "settings.yaml", "reading.json", "events.jsonl"}
    assert files_of(done.one("run")) == files
    summary = read_json(done.one("run") / "summary.json")
    facts = {"train_examples": 12, "pool": 30, "test": 20, "seed": 0, "recipe": "fixed", "metric": "accuracy"}
    assert summary["labels"] == LABELS
    assert {key: summary[key] for key in facts} == facts
    assert summary["task"] in ("topics", str(done.ground.card))
    assert summary["model"].endswith("lively")
    assert summary["scores"] == read_json(done.one("evaluate") / "scores.json")
    single = ("zero_shot", "supervised", "probe", "ensemble", "student")
    for one in [*summary["scores"]["members"], *(summary["scores"][name] for name in single)]:
        assert {"value", "low", "high"} <= set(one)


def test_the_summary_adds_up_the_cost_of_each_stage_and_says_where_its_artifacts_are(done):
    summary = read_json(done.one("run") / "summary.json")
    assert list(summary["stages"]) == list(summary["artifacts"]) == list(WALKED)
    for stage, paths in summary["artifacts"].items():
        expected = find_all(done.store, stage) + (find_all(done.store, "baseline") if stage == "evaluate" else [])
        assert {done.store / path for path in paths} == set(expected)
        manifests = [read_json(path / "manifest.json") for path in expected]
        cost = summary["stages"][stage]
        assert cost["seconds"] == pytest.approx(sum(one["seconds"] for one in manifests), abs=0.051)
        assert cost["peak_memory_bytes"] == max(one["peak_memory_bytes"] for one in manifests) > 0
        assert cost["devices"] == ["cpu"]


def test_the_summary_for_people_has_a_row_for_every_score(done):
    scores = read_json(done.one("run") / "summary.json")["scores"]
    lines = (done.one("run") / "summary.md").read_text().splitlines()
    assert lines[0].startswith("# ")
    assert "12 labels, 30 unlabelled, 20 test texts, seed 0" in lines[0]
    rows = [line for line in lines if line.startswith("| ") and "to" in line]
    assert len(rows) == 9
    student = scores["student"]
    assert f"| PET student | {student['value']:.1f} | {student['low']:.1f} to {student['high']:.1f} |" in rows
    assert f"Soft labels against the pool's hidden labels: {scores['soft_labels']['value']:.1f}" in "\n".join(lines)


def test_the_settings_of_a_run_can_be_run_again(done):
    """settings.yaml is a pipeline: with it, everything is there already."""
    settings = done.one("run") / "settings.yaml"
    resolved = yaml.safe_load(settings.read_text())
    assert resolved == open_context(done.ground, done.store).settings.model_dump(mode="json")
    result = pet("run", settings, "--store", done.store)
    assert result.stderr.splitlines()[-1] == f"run: reused {done.one('run')}"


# ---- what would be done --------------------------------------------------------------------------------------------


def test_a_dry_run_lists_every_artifact_and_writes_nothing(done, tmp_path):
    result = pet_run(done.ground, tmp_path / "store", "--dry-run")
    assert not (tmp_path / "store").exists()
    *lines, last = result.stdout.splitlines()
    assert last == "12 of 12 artifacts to be made; nothing was run"
    assert [line.split()[0] for line in lines] == ["prepare", *["finetune"] * 6, "label", "distill", *["evaluate"] * 3]
    assert all(any(pattern in line for pattern in PATTERNS) for line in lines[1:7])
    expected = {name.rsplit("-", 1)[1] for name in artifacts(done.store)}
    assert {line.split()[1] for line in lines} == expected, "the identities that a run will give"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--stage", "adapt"), "the settings ask for no in-domain training; --set adapt.enabled=true"),
        (("--store", "{file}"), "is no folder; give the folder that keeps the artifacts"),
        (("--set", "finetune.patterns=[9]"), "has patterns 0 to 1; name at least one of them"),
    ],
)
def test_a_dry_run_refuses_what_a_run_refuses(done, tmp_path, arguments, said):
    (tmp_path / "file").write_text("")
    words = [one.format(file=tmp_path / "file") for one in arguments]
    store = [] if "--store" in words else ["--store", tmp_path / "store"]
    for more in ((), ("--dry-run",)):
        result = pet("run", done.ground.pipeline, *store, *words, *more, code=2)
        assert said in " ".join(result.stderr.split())


def test_a_stage_that_does_not_exist_is_refused_from_python_too(done):
    with pytest.raises(SettingsError, match="stage 'nope' is unknown; expected all, prepare, adapt"):
        run_stage(open_context(done.ground, done.store), "nope")


def test_weights_are_hashed_once_a_walk_however_many_members_there_are(done, monkeypatch):
    hashed = []

    def note(path):
        hashed.append(path.name)
        return digest(path)

    monkeypatch.setattr(loading, "digest_file", note)
    assert len(plan(open_context(done.ground, done.store))) > 5
    assert hashed.count("model.safetensors") == 1


def test_a_dry_run_says_where_things_are_that_are_there(done):
    before = snapshot(done.store)
    *lines, last = pet_run(done.ground, done.store, "--dry-run").stdout.splitlines()
    assert last == "0 of 12 artifacts to be made; nothing was run"
    assert all(f"(there: {done.store}" in line for line in lines)
    assert snapshot(done.store) == before


# ---- runs that are cut short ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place", ["pet.pipeline.stages.finetune.draw_batches", "pet.pipeline.stages.distill.train_student"]
)
def test_ctrl_c_leaves_no_draft_and_the_next_run_goes_on(done, tmp_path, monkeypatch, place):
    def interrupt(*_):
        assert hidden_in(tmp_path), "the stage has begun to write"
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(place, interrupt)
        result = pet_run(done.ground, tmp_path, code=130)
    assert "Interrupted. What was finished is kept; the same command goes on from there." in result.stderr
    assert "Traceback" not in result.output
    assert hidden_in(tmp_path) == []
    finished = artifacts(tmp_path)
    assert finished < artifacts(done.store)
    again = pet_run(done.ground, tmp_path)
    assert again.stderr.count(": reused ") == len(finished)
    assert artifacts(tmp_path) == artifacts(done.store)


def test_a_stage_that_fails_leaves_no_draft(done, store, monkeypatch):
    def fail(*_):
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(distill, "train_student", fail)
    before = artifacts(store)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        pet_run(done.ground, store, "--set", "distill.steps=7")
    assert hidden_in(store) == []
    assert artifacts(store) == before
