"""BackgroundWriter: one job beside the training, and what is done in the main thread when it is finished."""

import os
import signal
import threading
from contextlib import contextmanager

import pytest
from support.watched import watched_writer

from pet.store import background, interrupts
from pet.store.background import BackgroundWriter


@pytest.fixture
def waited_for():
    return threading.Event()


@pytest.fixture
def slow(waited_for):
    """A job that ends when it is waited for, and not before."""
    return lambda: waited_for.wait(20)


def test_a_job_is_done_when_the_next_begins_and_when_its_time_is_over(waited_for, slow):
    done, started = [], threading.Event()

    def job():
        started.set()
        assert slow()
        waited_for.clear()
        done.append("slow")

    with watched_writer(waited_for)() as writer:
        writer.start(job)
        assert started.wait(10)
        assert done == [] and writer.is_busy, "beside"
        writer.start(lambda: done.append("second"))
        assert done[0] == "slow", "one at a time"
        writer.wait()
        writer.wait()
        assert done == ["slow", "second"] and not writer.is_busy
        writer.start(job)
    assert done == ["slow", "second", "slow"]


def test_waiting_gives_what_the_job_returned_once():
    writer = BackgroundWriter()
    writer.start(lambda: 3)
    assert (writer.wait(), writer.wait()) == (3, None)


@pytest.mark.parametrize("told", ["wait", "start", "the end"])
def test_what_went_wrong_beside_is_raised_once_wherever_it_is_waited_for(told):
    def fail():
        raise ValueError("beside")

    ran = []
    with pytest.raises(ValueError, match="beside"), BackgroundWriter() as writer:
        writer.start(fail)
        if told == "wait":
            writer.wait()
        elif told == "start":
            try:
                writer.start(lambda: ran.append(0))
            finally:
                writer.wait()
    assert ran == [], "nothing is begun after it"


def test_leaving_for_another_reason_waits_for_the_job_and_keeps_the_reason(waited_for, slow):
    done = []

    def job():
        assert slow()
        done.append("slow")
        raise ValueError("beside")

    with pytest.raises(KeyboardInterrupt), watched_writer(waited_for)() as writer:
        writer.start(job)
        raise KeyboardInterrupt
    assert done == ["slow"]


# ---- then ----------------------------------------------------------------------------------------------------------


class Then:
    """A context that remembers in which thread it was left, and why."""

    def __init__(self):
        self.left = []

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.left.append((threading.current_thread(), kind))


@pytest.mark.parametrize("when", ["wait", "start", "the end", "another reason"])
def test_what_is_to_follow_a_job_is_done_by_the_thread_that_waits_for_it(waited_for, slow, when):
    then = Then()
    with pytest.raises(KeyError), watched_writer(waited_for)() as writer:
        writer.start(slow, then)
        assert then.left == [], "not before the job is done"
        if when == "wait":
            writer.wait()
        elif when == "start":
            writer.start(lambda: None)
        if when in ("wait", "start"):
            assert len(then.left) == 1
        if when == "another reason":
            raise KeyError
        writer.__exit__(None, None, None)
        raise KeyError
    assert then.left == [(threading.current_thread(), None)], "once"


def test_it_hears_of_what_the_job_raised_and_may_keep_that_to_itself():
    def fail():
        raise OSError("full")

    @contextmanager
    def forgiving():
        try:
            yield
        except OSError as problem:
            heard.append(str(problem))

    heard, then = [], Then()
    with BackgroundWriter() as writer:
        writer.start(fail, forgiving())
        writer.wait()
        assert heard == ["full"]
        writer.start(fail, then)
        with pytest.raises(OSError, match="full"):
            writer.wait()
    assert then.left == [(threading.current_thread(), OSError)]


# ---- signals -------------------------------------------------------------------------------------------------------


def test_a_signal_that_comes_while_a_job_is_waited_for_stops_when_all_is_done(waited_for, slow):
    def job():
        assert slow()
        os.kill(os.getpid(), signal.SIGTERM)

    then = Then()
    with pytest.raises(interrupts.Stopped) as raised, interrupts.heeded(), watched_writer(waited_for)() as writer:
        writer.start(job, then)
        writer.wait()
    assert raised.value.code == 143
    assert then.left == [(threading.current_thread(), None)]


def test_a_second_signal_stops_the_waiting_and_nothing_is_taken_away_under_the_job(monkeypatch):
    def wait_and_be_stopped(jobs):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)

    then, end = Then(), threading.Event()
    with interrupts.heeded(), BackgroundWriter() as writer:
        writer.start(lambda: end.wait(20), then)
        with monkeypatch.context() as patch, pytest.raises(interrupts.Stopped) as raised:
            patch.setattr(background, "wait_for", wait_and_be_stopped)
            writer.wait()
        assert raised.value.code == 130
        assert (writer.is_busy, then.left) == (True, [])
        end.set()
    assert then.left == [(threading.current_thread(), None)]
