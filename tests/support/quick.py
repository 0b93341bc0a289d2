"""What notices when `make quick` grows. It counts processor time, which depends little on what else is going on."""

import os
from collections.abc import Iterator

import pytest

ONE, ALL = 4.0, 100.0
"""CPU seconds that a test may take that is not marked `slow` (without its fixtures), and all of them together (with
theirs): 100 are a minute on two cores, as each worker imports torch and collects the tests besides."""

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
    """Fails each test that is too slow, and a session whose quick tests are. Workers measure; who reports adds up."""

    def __init__(self) -> None:
        self.spent = 0.0

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        item.stash[BEGUN] = cpu_seconds()
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        begun = cpu_seconds()
        yield
        spent = cpu_seconds() - begun
        if spent > ONE and not is_slow(item):
            pytest.fail(f"took {spent:.1f} CPU seconds, of {ONE} at most; make it quicker or mark it `slow`")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Iterator[None]:
        yield
        item.user_properties.append(("cpu", cpu_seconds() - item.stash[BEGUN]))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "teardown" and not SLOW & set(report.keywords):
            self.spent += dict(report.user_properties).get("cpu", 0.0)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.spent > ALL and not hasattr(session.config, "workerinput"):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        remedy = ": make tests quicker, or mark them `slow`" if self.spent > ALL else ""
        terminalreporter.write_line(f"make quick: {self.spent:.0f} CPU seconds, of {ALL:.0f} at most{remedy}")
