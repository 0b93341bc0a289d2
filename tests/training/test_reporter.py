"""What is reported becomes records of the logger `pet`, which the user, not pet, decides to show."""

import json
import logging
import subprocess
import sys

from support.records import root_records

from pet.pipeline.event_log import JsonFormatter
from pet.training.reporter import Reporter, Silent

EVERYTHING = [
    ("INFO", "say", {"message": "50 % of it"}),
    ("WARNING", "warn", {"message": "slow"}),
    ("DEBUG", "numbers", {"name": "p0-r0", "values": {"loss": 0.5}, "step": 3}),
    ("DEBUG", "begin", {"label": "scoring", "total": 5, "unit": "text"}),
    ("DEBUG", "end", {"label": "scoring", "total": 5, "unit": "text", "done": 4}),
]
"""Level, event and facts of what `report` says."""


def report(reporter):
    reporter.say("50 % of it")
    reporter.warn("slow")
    reporter.log("p0-r0", {"loss": 0.5}, 3)
    with reporter.track("scoring", 5, "text") as advance:
        advance(1)
        advance(3)


def test_everything_is_a_record_of_the_logger_pet_with_its_facts():
    with root_records(logging.DEBUG) as found:
        report(Reporter())
    assert {one.name for one in found} == {"pet"}
    assert found[-1].facts.pop("seconds") >= 0
    assert [(one.levelname, one.event, one.facts) for one in found] == EVERYTHING
    assert [one.message for one in found][:4] == [
        "50 % of it",
        "slow",
        "numbers: name p0-r0, values {'loss': 0.5}, step 3",
        "begin: label scoring, total 5, unit text",
    ]


def test_the_user_s_level_holds():
    with root_records(logging.INFO) as found:
        report(Reporter())
    assert [one.levelname for one in found] == ["INFO", "WARNING"]


def test_the_json_formatter_serves_a_handler_of_the_user_s_own():
    with root_records(logging.INFO, JsonFormatter()) as found:
        report(Reporter())
        logging.getLogger("pet").info("of %s", "another module")
    said, warned, other = (json.loads(one.message) for one in found)
    assert (said["event"], said["message"], warned["event"]) == ("say", "50 % of it", "warn")
    assert other["message"] == "of another module"


def test_silence_is_logged_nowhere():
    with root_records(logging.DEBUG) as found:
        report(Silent())
    assert found == []


def test_who_configures_no_logging_sees_nothing_and_finds_the_root_logger_as_it_was():
    code = (
        "import logging; from pet.training.reporter import Reporter; Reporter().warn('slow');"
        "root = logging.getLogger(); assert (root.handlers, root.level) == ([], logging.WARNING)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
