"""events.jsonl: what a run wrote down about itself, also one that failed, was interrupted or killed."""

import json
import logging
import os
import sys
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from support.records import root_records
from support.rows import find_one, lay_ground, lively_model, logs_of, open_context, pet, pet_run

from pet.config.resolve import resolve_settings
from pet.errors import StoreError
from pet.pipeline.event_log import FILE, open_log, read_events, save, within
from pet.pipeline.runner import run_stage
from pet.store.files import digest_json
from pet.training.reporter import Reporter

pytestmark = pytest.mark.slow


class Quiet(Reporter):
    """A reporter that remembers its warnings."""

    def __init__(self):
        self.warned = []

    def warn(self, message):
        super().warn(message)
        self.warned.append(message)


@pytest.fixture
def ground(tmp_path, tmp_path_factory):
    return lay_ground(tmp_path / "ground", lively_model(tmp_path_factory.getbasetemp()))


def open_quiet(store, label="mine", **facts):
    return open_log(store, label, Quiet(), {"a": 1}, **facts)


def kinds(events):
    return [one["event"] for one in events]


# ---- through the command -------------------------------------------------------------------------------------------


def test_a_run_writes_down_what_it_says_tracks_and_counts(ground, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pet", "run", "a pipeline.yaml"])
    said = pet_run(ground, tmp_path / "store").stderr.splitlines()
    (path,) = logs_of(tmp_path / "store")
    assert path.name.endswith(f"Z-topics-n12-s0-{os.getpid()}.jsonl")
    start, *events, end = read_events(path)
    assert (start["event"], start["pid"], start["seed"]) == ("start", os.getpid(), 0)
    assert start["command"] == "pet run 'a pipeline.yaml'"
    assert start["settings"] == digest_json(resolve_settings(ground.pipeline).model_dump(mode="json"))[:16]
    assert start["host"] and start["version"]
    assert end["event"] == "done"
    assert [one["message"] for one in events if one["event"] == "say"] == said, "what the screen shows, in that order"
    begun = [(one["label"], one["total"], one["unit"]) for one in events if one["event"] == "begin"]
    ended = [(one["label"], one["total"], one["unit"]) for one in events if one["event"] == "end"]
    assert sorted(begun) == sorted(ended)
    assert all(one["done"] == one["total"] and one["seconds"] >= 0 for one in events if one["event"] == "end")
    assert any(unit == "step" for _, _, unit in begun)
    (student,) = [one for one in events if one["event"] == "numbers" and one["name"] == "student" and one["step"] == 3]
    assert student["values"]["loss"] > 0
    times = [datetime.fromisoformat(one["time"]) for one in read_events(path)]
    assert times == sorted(times)
    assert times[0].utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - times[-1]) < timedelta(minutes=10)


def test_the_run_has_its_events_inside_up_to_the_moment_it_was_written(ground, tmp_path):
    store = tmp_path / "store"
    pet_run(ground, store)
    run = find_one(store, "run")
    inside, (log,) = read_events(run / FILE), logs_of(store)
    whole = read_events(log)
    assert inside == whole[: len(inside)]
    assert (inside[0]["event"], inside[-1]["event"], inside[-1]["name"]) == ("start", "run", run.name)
    pet("runs", "verify", "--store", store)


def test_the_events_change_no_identity_and_a_second_call_has_a_log_of_its_own(ground, tmp_path):
    store = tmp_path / "store"
    pet_run(ground, store)
    before = (find_one(store, "run") / FILE).read_bytes()
    pet_run(ground, store)
    assert (find_one(store, "run") / FILE).read_bytes() == before
    first, second = map(read_events, logs_of(store))
    assert len(first) > len(second)
    assert all(": reused " in one["message"] for one in second if one["event"] == "say")
    assert kinds(second)[-1] == "done"


def test_two_runs_at_once_have_two_logs(ground, tmp_path):
    store = tmp_path / "store"
    with open_quiet(store) as log:
        log.say("the first one")
        pet_run(ground, store, "--stage", "prepare", "--seed", "0", "--seed", "1")
        log.say("still there")
    logs = {path.name.partition("Z-")[2].rpartition("-")[0]: read_events(path) for path in logs_of(store)}
    assert {name: len(found) for name, found in logs.items() if name == "mine"} == {"mine": 4}
    assert set(logs) == {"mine", "topics-n12-s0", "topics-n12-s1"}
    assert all(kinds(found)[0] == "start" and kinds(found)[-1] == "done" for found in logs.values())


def test_a_dry_run_and_wrong_input_leave_no_log(ground, tmp_path):
    pet_run(ground, tmp_path / "store", "--dry-run")
    pet_run(ground, tmp_path / "store", "--set", "finetune.patterns=[9]", code=2)
    pet_run(ground, tmp_path / "store", "--tracker", "mlflow", "--dry-run", code=2)
    assert logs_of(tmp_path / "store") == []


def fail(*_, **__):
    raise StoreError("the disk is\non fire")


def interrupt(*_, **__):
    raise KeyboardInterrupt


def test_a_run_that_fails_says_how_and_where(ground, tmp_path, monkeypatch):
    monkeypatch.setattr("pet.pipeline.stages.distill.train_student", fail)
    pet_run(ground, tmp_path / "store", code=2)
    (path,) = logs_of(tmp_path / "store")
    end = read_events(path)[-1]
    assert (end["event"], end["type"], end["problem"]) == ("failed", "StoreError", "the disk is on fire")
    assert "test_event_log.py" in end["traceback"]


def test_a_run_that_is_interrupted_says_by_what(ground, tmp_path, monkeypatch):
    monkeypatch.setattr("pet.pipeline.stages.distill.train_student", interrupt)
    pet_run(ground, tmp_path / "store", code=130)
    (path,) = logs_of(tmp_path / "store")
    end = read_events(path)[-1]
    assert (end["event"], end["signal"]) == ("interrupted", "SIGINT")
    with pytest.raises(KeyboardInterrupt), open_quiet(tmp_path / "other") as log:
        log.say("here")
        raise KeyboardInterrupt("SIGTERM")
    (path,) = logs_of(tmp_path / "other")
    assert read_events(path)[-1]["signal"] == "SIGTERM"


def test_pretraining_has_a_log(ground, tmp_path):
    documents = [f"a goal in the river, {number} in all, and a match on the boat\n" for number in range(400)]
    (tmp_path / "corpus.txt").write_text("".join(documents))
    pet(
        *("pretrain", "--corpus", tmp_path / "corpus.txt", "--store", tmp_path / "store", "--seed", "5"),
        *("--model", resolve_settings(ground.pipeline).model.name, "--set", "pretrain.warmup_steps=1"),
        *("--set", "pretrain.steps=2", "--set", "pretrain.blocks=2", "--set", "pretrain.length=16"),
    )
    (path,) = logs_of(tmp_path / "store")
    events = read_events(path)
    assert "Z-pretrain-lively-corpus-" in path.name
    assert (events[0]["seed"], events[-1]["event"]) == (5, "done")
    assert "numbers" in kinds(events)


def test_a_stage_run_from_python_is_logged_as_the_user_asked(ground, tmp_path):
    with root_records(logging.INFO) as found:
        run_stage(open_context(ground, tmp_path / "store"), "prepare")
    assert {(one.name, one.levelname) for one in found} == {("pet", "INFO")}
    assert found[0].message == "prepare: drawing the texts of 'topics'"
    assert logs_of(tmp_path / "store") == []


def test_the_command_says_everything_once_whatever_listens_to_the_root_logger(ground, tmp_path):
    with root_records(logging.DEBUG) as found:
        pet_run(ground, tmp_path / "store", "--stage", "prepare")
    assert [one.message for one in found if one.name.startswith("pet")] == []
    assert kinds(read_events(*logs_of(tmp_path / "store"))) == ["start", "say", "say", "done"]


# ---- the file ------------------------------------------------------------------------------------------------------


def test_events_are_there_while_it_goes_on_and_a_killed_process_costs_its_last_line_at_most(tmp_path):
    with open_quiet(tmp_path) as log:
        log.say("one")
        log.say("two")
        (path,) = logs_of(tmp_path)
        assert kinds(read_events(path)) == ["start", "say", "say"], "nothing waits to be written"
        whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert kinds(read_events(path)) == ["start", "say", "say"]
    path.write_bytes(whole[:-9])
    assert kinds(read_events(path)) == ["start", "say"]
    path.write_bytes(b"")
    assert read_events(path) == []


def test_a_bar_that_breaks_off_says_how_far_it_came(tmp_path):
    with open_quiet(tmp_path) as log:
        with pytest.raises(MemoryError), log.track("scoring", 10, "text") as advance:
            advance(3)
            advance(1)
            raise MemoryError
        *_, begin, end = read_events(*logs_of(tmp_path))
    assert (begin["event"], end["event"]) == ("begin", "end")
    assert (end["label"], end["total"], end["unit"], end["done"]) == ("scoring", 10, "text", 4)


def test_every_line_is_valid_json_whatever_the_numbers_and_names(tmp_path):
    values = {"loss": float("nan"), "rate": np.float32("inf"), "count": np.int64(3), "share": np.float64(0.5)}
    with open_quiet(tmp_path) as log:
        log.log("p0-r0", values, 1)
        log.say("two\nlines, naïve <script>, \udcff and \u2028")
        log.note("others", flags=(True, None), path=tmp_path, least=-np.inf)

    def refuse(constant):
        raise AssertionError(constant)

    lines = logs_of(tmp_path)[0].read_bytes().decode("utf-8").split("\n")
    _, numbers, said, others, _ = [json.loads(line, parse_constant=refuse) for line in lines[:-1]]
    assert numbers["values"] == {"loss": "nan", "rate": "inf", "count": 3, "share": 0.5}
    assert isinstance(numbers["values"]["count"], int)
    assert said["message"] == "two\nlines, naïve <script>, \udcff and \u2028"
    assert (others["flags"], others["path"], others["least"]) == ([True, None], str(tmp_path), "-inf")


def test_what_is_within_a_block_has_its_facts_and_is_copied_alone(tmp_path):
    with open_quiet(tmp_path) as log:
        for number in range(2):
            with within(cell=number):
                log.say("begun")
                with log.track("scoring", 1, "text") as advance:
                    advance(1)
                (tmp_path / f"{number}").mkdir()
                save(log, tmp_path / f"{number}", "mine")
        log.say("after")
    for number in range(2):
        start, *events = read_events(tmp_path / f"{number}" / FILE)
        assert start["event"] == "start"
        assert kinds(events) == ["say", "begin", "end", "run"]
        assert {one["cell"] for one in events} == {number}
    assert "cell" not in read_events(*logs_of(tmp_path))[-1]


# ---- a log that cannot be written ----------------------------------------------------------------------------------


def test_a_log_that_cannot_be_begun_is_warned_of_once_and_the_run_goes_on(ground, tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    (store / "logs").write_text("a file")
    done = pet_run(ground, store)
    warnings = [line for line in done.stderr.splitlines() if line.startswith("Warning: ")]
    assert len(warnings) == 1
    assert "cannot be written (File exists); the run goes on" in warnings[0]
    assert not (find_one(store, "run") / FILE).exists()


def test_a_disk_that_fills_up_ends_the_log_with_one_warning(tmp_path, monkeypatch):
    written = os.write
    with open_quiet(tmp_path) as log, monkeypatch.context() as patch:
        log.say("one")
        patch.setattr(os, "write", lambda file, line: written(file, line[:5]))
        log.say("two")
        log.log("p0-r0", {"loss": 1.0}, 1)
        with log.track("scoring", 1, "text") as advance:
            advance(1)
    (warning,) = log.warned
    assert "cannot be written (the disk is full); the run goes on" in warning
    assert kinds(read_events(*logs_of(tmp_path))) == ["start", "say"]
