"""`pet table`: which runs it takes, what it reuses, and that the numbers in it are those of the runs."""

import csv
import errno
import json
import shutil
import sys
from dataclasses import asdict

import numpy as np
import pandas
import pytest
from support.rows import files_of, find_all, find_one, lay_ground, lively_model, logs_of, pet, read_json, snapshot

from pet.algorithms.metrics import holm, paired_p, spread
from pet.config.resolve import resolve_settings
from pet.errors import StoreError
from pet.pipeline import table
from pet.pipeline.event_log import read_events
from pet.tools.reports import paper_numbers, table_report

pytestmark = pytest.mark.slow

SIZES, SEEDS = (0, 6, 12), (0, 1)
ARGUMENTS = ("--sizes", "0,6,12", "--seeds", "0,1", "--set", "ipet.generations=1")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A ground, and the folder with the store and the results of a whole table over it. Never write into it."""
    folder = tmp_path_factory.mktemp("table")
    model = lively_model(tmp_path_factory.getbasetemp())
    ground = lay_ground(folder / "ground", model, finetune={"repetitions": 1})
    pet_table(ground, folder)
    return ground, folder


def pet_table(ground, folder, *arguments, **more):
    return pet(
        *("table", ground.pipeline, "--store", folder / "store", "--out", folder / "results", *ARGUMENTS, *arguments),
        **more,
    )


def files_in(folder):
    """Time of change and size of every file."""
    return {name: stamp for name, stamp in snapshot(folder).items() if (folder / name).is_file()}


def result(folder, name="table.json"):
    return folder / "results" / "pipeline" / name


def line_of(found, labels, row):
    (line,) = [one for one in found["lines"] if (one["labels"], one["row"]) == (labels, row)]
    return line


# ---- which runs ----------------------------------------------------------------------------------------------------


def test_a_dry_run_lists_every_run_and_makes_nothing(made, tmp_path):
    ground, _ = made
    lines = pet_table(ground, tmp_path, "--dry-run").stdout.splitlines()
    assert lines.pop() == "16 runs; nothing was run"
    assert len(lines) == len(SEEDS) * (2 + 3 + 3)
    assert sum(line.endswith("0 labelled texts, seed 1: zero-shot") for line in lines) == 1
    assert not list(tmp_path.iterdir())


def settings(**sections):
    return resolve_settings("agnews", sections)


@pytest.mark.parametrize(
    ("size", "methods"),
    [
        (0, ["zero-shot", "ipet"]),
        (10, ["supervised", "pet", "ipet"]),
        (100, ["supervised", "pet", "ipet"]),
        (1000, ["supervised", "pet"]),  # P1 Table 1 has no iPET there
    ],
)
def test_each_number_of_labelled_texts_has_the_methods_of_the_papers_table(size, methods):
    chosen = settings(table={"sizes": [size], "seeds": [0]})
    assert [cell.method for cell in table.cells({"agnews": chosen})] == methods
    assert table.cells({"agnews": chosen})[0].size == size


def test_ipet_has_a_result_for_a_thousand_labels_where_generations_are_asked_for():
    chosen = settings(table={"sizes": [1000], "seeds": [0]}, ipet={"generations": 1})
    assert [cell.method for cell in table.cells({"agnews": chosen})] == ["supervised", "pet", "ipet"]


# ---- numbers -------------------------------------------------------------------------------------------------------


def test_every_number_is_that_of_its_run(made):
    _, folder = made
    found = read_json(result(folder))
    expected = {
        ("pet-ensemble", False): "ensemble",
        ("pet", False): "student",
        ("ipet-ensemble", True): "ensemble",
        ("ipet", True): "student",
        ("supervised", False): "supervised",
        ("probe", False): "probe",
        ("zero-shot", True): "zero_shot",
    }
    looked_at = 0
    for one in find_all(folder / "store", "run"):
        summary = read_json(one / "summary.json")
        for (row, of_ipet), name in expected.items():
            if of_ipet != ("generations" in summary) or name not in summary["scores"]:
                continue
            if row == "zero-shot" and summary["train_examples"]:
                continue
            value = line_of(found, summary["train_examples"], row)["values"][str(summary["seed"])]
            assert value == summary["scores"][name]["value"]
            looked_at += 1
    assert looked_at == 2 * 2 * 4 + 2 * 2 * 2 + 2 * 3


def test_lines_are_mean_and_deviation_of_the_seeds_and_a_paired_test(made):
    _, folder = made
    found = read_json(result(folder))
    chances = []
    for line in found["lines"]:
        values = [line["values"][str(seed)] for seed in SEEDS]
        assert line["mean"] == pytest.approx(np.mean(values))
        assert line["deviation"] == pytest.approx(np.std(values, ddof=1))
        tested = line["labels"] and line["row"] not in ("supervised", "probe")
        base = line_of(found, line["labels"], "supervised")["values"] if tested else None
        chances.append(paired_p(values, [base[str(seed)] for seed in SEEDS]) if tested else None)
        assert line["gain"] == (pytest.approx(np.mean(values) - np.mean(list(base.values()))) if tested else None)
    assert [line["p"] for line in found["lines"]] == chances
    assert [line["p_holm"] for line in found["lines"]] == holm(chances)
    assert any(chance is not None for chance in chances)


def test_the_table_of_runs_has_a_line_for_each_score(made):
    _, folder = made
    runs = pandas.read_csv(result(folder, "table.csv"))
    assert list(runs.columns) == ["task", "labels", "row", "seed", "value", "low", "high"]
    assert len(runs) == len(SEEDS) * (1 + 2 + 2 * 6)
    found = read_json(result(folder))
    for one in runs.itertuples():
        assert line_of(found, one.labels, one.row)["values"][str(one.seed)] == one.value
        assert one.low <= one.value <= one.high


def test_it_says_how_it_was_made(made):
    _, folder = made
    found = read_json(result(folder))
    assert found["devices"] == ["cpu"]
    facts = {"metric": "accuracy", "model": "lively", "recipe": "fixed", "draw": "seed", "shares": "free"}
    facts["classifiers"] = None  # those of the backbone
    assert found["tasks"] == {"topics": {**facts, "pool": [30, 30], "test": [20, 20]}}
    assert found["artifact_seconds"] > 0
    text = result(folder, "table.md").read_text()
    assert found["date"][:10] in text
    assert "over 2 seeds" in text
    assert "lively" in text


def test_there_is_a_plot_in_two_formats(made):
    _, folder = made
    png, svg = (result(folder, f"topics.{kind}").read_bytes() for kind in ("png", "svg"))
    assert png.startswith(b"\x89PNG")
    for word in ("labelled texts", "accuracy in percent, ± standard deviation", "iPET", "supervised: fine-tuned"):
        assert f"<!-- {word} -->".encode() in svg


def test_a_table_keeps_no_weights_of_members(made):
    _, folder = made
    assert not list((folder / "store" / "finetune").glob("*/model"))
    assert list((folder / "store" / "distill").glob("*/student"))


# ---- reuse, holes --------------------------------------------------------------------------------------------------


def test_the_second_time_nothing_is_trained(made, tmp_path, monkeypatch):
    ground, folder = made
    shutil.copytree(folder / "store", tmp_path / "store")
    before = snapshot(tmp_path / "store")
    monkeypatch.setattr("pet.training.trainer.Trainer.run", None)
    pet_table(ground, tmp_path)
    assert snapshot(tmp_path / "store") == before
    lines = [read_json(result(one))["lines"] for one in (folder, tmp_path)]
    assert lines[0] == lines[1]
    assert result(folder, "topics.svg").read_bytes() == result(tmp_path, "topics.svg").read_bytes()


def test_a_store_that_was_moved_serves_as_before(made, tmp_path, monkeypatch):
    """Also one whose runs were made with a relative path, in another folder."""
    ground, folder = made
    monkeypatch.chdir(folder)
    shutil.copytree("store", tmp_path / "first")
    monkeypatch.chdir(tmp_path)
    few = ("--seeds", "2", "--sizes", "0,6", "--methods", "zero-shot,pet,ipet")
    pet_table(ground, tmp_path, "--store", "first", *few)
    (tmp_path / "first").rename(tmp_path / "moved")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr("pet.training.trainer.Trainer.run", None)
    pet_table(ground, tmp_path, "--store", tmp_path / "moved", *few)
    assert read_json(result(tmp_path))["failed"] == []


def test_one_artifact_that_is_gone_is_made_again_and_nothing_else(made, tmp_path):
    ground, folder = made
    shutil.copytree(folder / "store", tmp_path / "store")
    gone = find_one(tmp_path / "store", "distill", next(iter(find_all(tmp_path / "store", "distill"))).name)
    shutil.rmtree(gone)
    said = pet_table(ground, tmp_path).stderr.splitlines()
    fresh = [line for line in said if ": reused " not in line and not line.startswith(("table: ", "ipet: "))]
    assert fresh == ["distill: training the student on the soft labels"]
    assert gone.is_dir()


def test_a_run_that_failed_is_a_hole_that_is_shown_and_filled_by_the_next_call(made, tmp_path, monkeypatch):
    ground, folder = made
    shutil.copytree(folder / "store", tmp_path / "store")
    with monkeypatch.context() as patch:

        def fail(ctx):
            if (ctx.settings.seed, ctx.settings.data.train_examples) == (1, 6):
                raise StoreError("the disk is on fire")
            return runner(ctx)

        runner = table.RUNNERS["pet"]
        patch.setitem(table.RUNNERS, "pet", fail)
        done = pet_table(ground, tmp_path, code=1)
    assert "table: failed: the disk is on fire" in done.stderr
    found = read_json(result(tmp_path))
    line = line_of(found, 6, "pet")
    assert line["values"]["1"] is None
    assert line["values"]["0"] is not None
    assert (line["mean"], line["p"], line["p_holm"]) == (None, None, None)
    assert [(one["seed"], one["size"], one["method"]) for one in found["failed"]] == [(1, 6, "pet")]
    text = result(tmp_path, "table.md").read_text()
    assert "| 6 | PET | FAILED: seed 1 |" in text
    rows = pandas.read_csv(result(tmp_path, "table.csv")).query("labels == 6 and row == 'pet'")
    assert rows.set_index("seed")["value"].isna().to_dict() == {0: False, 1: True}
    assert "6 labelled texts, seed 1, pet: the disk is on fire" in text
    assert line_of(found, 6, "ipet")["mean"] is not None, "the others go on"
    pet_table(ground, tmp_path)
    again = read_json(result(tmp_path))
    assert again["failed"] == []
    assert again["lines"] == read_json(result(folder))["lines"]


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (RuntimeError("CUDA out of memory"), "RuntimeError: CUDA out of memory"),
        (MemoryError(), "MemoryError"),
        (OSError(5, "Input/output error", "/data/train.csv"), "OSError: [Errno 5] Input/output error"),
        (KeyError("label"), "KeyError: 'label'"),
        (AssertionError("a mistake\nof ours"), "AssertionError: a mistake of ours"),
    ],
)
def test_whatever_ends_one_run_ends_no_other(problem, said, made, tmp_path, monkeypatch):
    ground, folder = made
    shutil.copytree(folder / "store", tmp_path / "store", ignore=shutil.ignore_patterns("logs"))
    few = ("--sizes", "6", "--methods", "supervised,pet")
    runner = table.RUNNERS["supervised"]

    def fail(ctx):
        if ctx.settings.seed == 0:
            raise problem
        return runner(ctx)

    monkeypatch.setitem(table.RUNNERS, "supervised", fail)
    done = pet_table(ground, tmp_path, *few, code=1)
    assert f"table: failed: {said}" in done.stderr
    found = read_json(result(tmp_path))
    assert [(one["seed"], one["method"]) for one in found["failed"]] == [(0, "supervised")]
    assert found["failed"][0]["problem"].startswith(said)
    assert line_of(found, 6, "supervised")["values"]["1"] is not None
    assert line_of(found, 6, "pet")["mean"] is not None
    (log,) = logs_of(tmp_path / "store")
    events = read_events(log)
    failed = [one for one in events if one["event"] == "failed"]
    assert [one["cell"] for one in failed] == [{"task": "topics", "size": 6, "seed": 0, "method": "supervised"}]
    assert failed[0]["type"] == type(problem).__name__
    assert "in fail" in failed[0]["traceback"]
    assert [one["cell"]["method"] for one in events if one["event"] == "done" and "cell" in one] == [
        *("pet", "supervised", "pet")
    ]
    assert (events[-1]["event"], "cell" in events[-1]) == ("done", False)


def full(ctx):
    raise StoreError("the store cannot be written") from OSError(errno.ENOSPC, "No space left on device")


def take_away(ctx):
    root = ctx.store.root
    root.rename(root.with_name("gone"))
    root.write_text("no folder any more")
    raise KeyError("whatever")


@pytest.mark.parametrize("lose", [full, take_away])
def test_a_store_that_is_lost_ends_the_table_with_what_was_found(lose, made, tmp_path, monkeypatch):
    ground, folder = made
    shutil.copytree(folder / "store", tmp_path / "store")
    few = ("--sizes", "6", "--methods", "supervised,pet")
    with monkeypatch.context() as patch:
        patch.setitem(table.RUNNERS, "pet", lose)
        done = pet_table(ground, tmp_path, *few, code=1)
    assert done.stderr.splitlines()[-1].endswith("cannot be written, so no other run is begun")
    found = read_json(result(tmp_path))
    assert [(one["seed"], one["method"]) for one in found["failed"]] == [(0, "pet"), (1, "supervised"), (1, "pet")]
    assert found["failed"][-1]["problem"] == "not begun, as the store cannot be written"
    assert line_of(found, 6, "supervised")["values"]["0"] is not None
    assert "seed 1, pet: not begun" in result(tmp_path, "table.md").read_text()
    if lose is full:
        pet_table(ground, tmp_path, *few)
        assert read_json(result(tmp_path))["failed"] == []


def test_the_log_of_a_table_says_which_run_each_line_is_of_and_a_run_has_its_own_lines(made):
    _, folder = made
    (log,) = logs_of(folder / "store")
    assert "Z-table-pipeline-" in log.name
    events = read_events(log)
    assert all("cell" in one for one in events if one["event"] in ("begin", "numbers", "run"))
    assert sum(one["event"] == "done" for one in events) == 16 + 1
    inside = {}
    for run in find_all(folder / "store", "run"):
        start, *rest = read_events(run / "events.jsonl")
        assert start["event"] == "start"
        (cell,) = {json.dumps(one["cell"]) for one in rest}
        inside[cell] = rest[-1]["name"]
        assert rest[-1]["name"] == run.name
    assert len(inside) == 2 * (2 + 3)


def test_an_interrupted_table_leaves_the_old_one_as_it_was(made, tmp_path, monkeypatch):
    ground, folder = made
    shutil.copytree(folder, tmp_path / "all")
    before = files_in(tmp_path / "all" / "results")

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setitem(table.RUNNERS, "ipet", interrupt)
    pet_table(ground, tmp_path / "all", code=130)
    assert files_in(tmp_path / "all" / "results") == before


# ---- words ---------------------------------------------------------------------------------------------------------


def test_bold_is_for_what_is_above_the_fine_tuned_classifier_by_more_than_chance():
    line = {"values": {"0": 80.0, "1": 81.0}, "mean": 80.5, "deviation": 0.7, "low": 79.0, "high": 82.0, "paper": None}
    bold = "**80.5 ± 0.7 (79.0 to 82.0)**"
    assert table_report.show({**line, "p_holm": 0.01, "gain": 4.0}) == (bold, "")
    for chance, gain in ((0.06, 4.0), (0.01, -4.0), (None, None)):
        assert table_report.show({**line, "p_holm": chance, "gain": gain}) == (bold.strip("*"), "")


def test_the_papers_number_stands_beside_ours_where_there_is_one():
    assert paper_numbers.find("agnews", 10, "ipet") == (89.3, 0.1)
    assert paper_numbers.find("mnli-mm", 1000, "pet") == (85.5, 0.4)
    assert paper_numbers.find("yelp-full", 0, "zero-shot") == (33.8, 9.6)
    assert paper_numbers.find("agnews", 1000, "ipet") is None
    assert paper_numbers.find("bbc", 10, "pet") is None
    assert all(len(row) == len(paper_numbers.TASKS) for row in paper_numbers.ROWS.values())


def test_several_tasks_have_their_own_sections_and_folders(tmp_path, tmp_path_factory):
    model = lively_model(tmp_path_factory.getbasetemp())
    first, second = (lay_ground(tmp_path / name, model) for name in ("first", "second"))
    second.change_card(name="others")
    other = tmp_path / "otherwise"
    shutil.copytree(model, other)
    first_has = {"finetune": {"steps": 3}, "label": {"shares": "even"}, "baseline": {"model": str(other)}}
    tasks = {str(first.card): first_has, str(second.card): {"model": {"name": str(other)}}}
    done = pet(
        *("table", first.pipeline, "--store", tmp_path / "store", "--out", tmp_path, "--sizes", "12", "--seeds", "0"),
        *("--methods", "supervised,pet", "--name", "both", "--set", f"table.tasks={json.dumps(tasks)}"),
        *("--data", f"{second.card}={second.folder}"),
    )
    assert done.stdout.splitlines()[2] == "| labels | method | topics: lively | others: otherwise |"
    steps = {
        one.name.split("-")[0]: read_json(one / "training.json")["steps"]
        for one in find_all(tmp_path / "store", "finetune", "p0-r0")
    }
    assert steps == {"topics": [3], "others": [2]}
    assert {path.name for path in (tmp_path / "both").glob("*.png")} == {"topics.png", "others.png"}
    lines = read_json(tmp_path / "both" / "table.json")["lines"]
    assert [one["row"] for one in lines if one["task"] == "topics"] == [
        *("probe", "supervised", "supervised-even", "pet-ensemble", "pet")
    ]
    assert [one["row"] for one in lines if one["task"] == "others"] == ["probe", "supervised", "pet-ensemble", "pet"]
    mean = {(one["task"], one["row"]): one["mean"] for one in lines}
    for one in lines:
        base = {"topics": "supervised-even", "others": "supervised"}[one["task"]]
        tested = one["row"].startswith("pet")
        assert one["gain"] == (pytest.approx(one["mean"] - mean[one["task"], base]) if tested else None)
    text = (tmp_path / "both" / "table.md").read_text()
    assert "topics: no label is commoner than the others, and the soft labels are told so" in text
    assert "topics: the student is trained from lively, the fine-tuned classifier from otherwise." in text
    assert "others: the student" not in text
    assert "One seed: there is no deviation and no interval." in text
    second.change_card(name="topics")
    refused = pet("table", first.pipeline, "--set", f"table.tasks={json.dumps(tasks)}", code=2)
    assert "table.tasks: two cards are named 'topics'" in refused.stderr


def test_labels_given_by_hand_are_refused_as_no_size_counts_them(made, tmp_path):
    ground, _ = made
    given = "data.train_files=mine.csv"
    refused = pet("table", ground.pipeline, "--set", given, "--store", tmp_path / "s", "--out", tmp_path, code=2)
    assert "a table draws its labelled texts, as many as its sizes say; leave the setting out" in refused.stderr
    assert files_of(tmp_path) == set()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--sizes", "ten"), "--sizes got 'ten'; expected whole numbers with commas"),
        (("--seeds", "0;1"), "--seeds got '0;1'"),
        (("--sizes", "-1"), "table.sizes.0: input should be greater than or equal to 0"),
        (("--methods", "setfit"), "'zero-shot', 'supervised', 'pet' or 'ipet' (given: 'setfit')\n"),
        (("--set", "table.sizes=[]"), "table.sizes"),
        (("--set", "finetune.patterns=[9]"), "has patterns 0 to 1"),
        (("--store", ""), "--store is empty"),
        (("--out", ""), "--out is empty"),
        (("--name", ".."), "--name '..' is no name of a folder"),
        (("--seeds", "0,0"), "table.seeds: something is given twice; give each once"),
        (("--methods", ""), "table.methods"),
        (("--data", "others=."), "--data 'others=.': expected TASK=FOLDER with one of the tasks "),
        (("--sizes", "0", "--methods", "pet"), "of pet none has a result for 0 labelled texts of topics"),
        (("--data", "/nowhere"), "/nowhere"),
        (("--sizes", "0,9", "--set", "table.sizes=[9]"), "--set table.sizes=[9] and --sizes 0 9 set the same"),
        (("--set", "seed=3"), "--set seed=3 and the seeds of the table (--seeds) set the same"),
        (("--set", "data.train_examples=9"), "--set data.train_examples=9 and its sizes (--sizes) set the same"),
    ],
)
def test_wrong_input_is_refused_in_one_sentence_before_anything_runs(made, tmp_path, arguments, said):
    ground, _ = made
    result = pet_table(ground, tmp_path, *arguments, code=2)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert said in f"{line}\n"
    assert not (tmp_path / "results").exists()


def test_the_command_in_the_table_is_the_one_that_was_typed_without_where_things_lie_here(made, tmp_path, monkeypatch):
    ground, folder = made
    shutil.copytree(folder / "store", tmp_path / "store")
    typed = [
        "table",
        "a pipeline.yaml",
        "--store",
        "/home/me/runs",
        "--data",
        "topics=/home/me/texts",
        "--seeds",
        "0,1",
    ]
    monkeypatch.setattr(sys, "argv", ["pet", *typed, "--out=/home/me/here", "--data=b/c"])
    pet_table(ground, tmp_path)
    said = "pet table 'a pipeline.yaml' --data topics=DIR --seeds 0,1 --data DIR"
    assert read_json(result(tmp_path))["command"] == said


def test_a_place_that_cannot_be_written_is_refused_before_anything_runs(made, tmp_path):
    ground, _ = made
    (tmp_path / "results").write_text("a file")
    done = pet_table(ground, tmp_path, code=2)
    assert f"the folder {tmp_path / 'results' / 'pipeline'} cannot be written" in done.stderr
    assert "table: topics" not in done.stderr


def test_a_file_that_cannot_be_replaced_leaves_no_draft(made, tmp_path):
    ground, folder = made
    shutil.copytree(folder / "store", tmp_path / "store")
    result(tmp_path, "table.md").mkdir(parents=True)
    done = pet_table(ground, tmp_path, code=2)
    assert "table.md cannot be written" in done.stderr
    assert not list((tmp_path / "results").rglob(".*"))


def test_it_says_of_how_many_texts_the_numbers_are(made):
    _, folder = made
    text = result(folder, "table.md").read_text()
    assert "topics: accuracy in percent, 20 test and 30 unlabelled texts" in text
    assert "RoBERTa-large" not in text, "the paper has no numbers for this task"


def test_where_all_seeds_agree_no_interval_is_shown():
    line = {"values": {"0": 80.0, "1": 80.0}, **asdict(spread([80.0, 80.0])), "paper": None}
    assert table_report.show({**line, "p_holm": None, "gain": None}) == ("80.0 ± 0.0", "")


def test_its_csv_and_markdown_have_a_line_for_each_run_whatever_a_task_is_called(tmp_path):
    odd = ["a\rb/task.yaml", 'a,"b|\x85', "\u2028"]
    runs = [
        {"task": task, "labels": 10, "row": "pet", "seed": 0, "value": 64.1, "low": 0.1 + 0.2, "high": None}
        for task in odd
    ]
    unknown = {"values": {"0": 64.1, "1": None}, "p": None, "p_holm": None, "gain": None, "paper": None}
    found = {
        "name": "odd",
        "tasks": {task: {"model": "m", "shares": None, "draw": "seed", "classifiers": None} for task in odd},
        "lines": [{"task": task, "labels": 10, "row": "pet", **unknown} for task in odd],
        "runs": runs,
        "failed": [],
        "command": "pet table",
        "date": "2026-01-01",
        "code": None,
        "devices": [],
        "seconds": 1.0,
        "artifact_seconds": 1.0,
    }
    table_report.write(tmp_path, found)
    with (tmp_path / "table.csv").open(newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    assert head == ["task", "labels", "row", "seed", "value", "low", "high"]
    assert rows == [
        *([task, "10", "pet", "0", "64.1", "0.30000000000000004", ""] for task in odd),
        *([task, "10", "pet", "1", "", "", ""] for task in odd),
    ]
    table = [line for line in (tmp_path / "table.md").read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    assert [line.count("|") for line in table] == [6, 6, 6]
