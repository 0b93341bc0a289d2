"""What notices, in `make quick`, that it grows: it counts processor time, which depends little on what else runs."""

import os
from collections.abc import Iterator

import pytest

MOST = 100.0
"""CPU seconds of all tests with their fixtures: a minute on two cores, as each worker imports torch and collects the
tests besides."""

SLOW = {"slow", "ray"}
"""Markers of what `make quick` leaves out."""

BEGUN = pytest.StashKey[float]()


def is_slow(item: pytest.Item) -> bool:
    """Whether `make quick` leaves it out."""
    return any(item.get_closest_marker(name) for name in SLOW)


def cpu_seconds() -> float:
    """Of this process and of those that it has waited for."""
    return sum(os.times()[:4])


class Watch:
    """Fails a session whose tests take too long. Workers measure; the process that reports adds up."""

    def __init__(self) -> None:
        self.spent = 0.0

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        item.stash[BEGUN] = cpu_seconds()
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Iterator[None]:
        yield
        item.user_properties.append(("cpu", cpu_seconds() - item.stash[BEGUN]))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "teardown":
            self.spent += dict(report.user_properties).get("cpu", 0.0)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.spent > MOST and not hasattr(session.config, "workerinput"):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        remedy = ": make tests quicker, or mark them `slow`" if self.spent > MOST else ""
        terminalreporter.write_line(f"make quick: {self.spent:.0f} CPU seconds, of {MOST:.0f} at most{remedy}")
