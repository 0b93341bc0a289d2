"""Ctrl-C and SIGTERM: heeded at once, or when a step or a publication is done, and never lost."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest
from support.rows import find_all, hidden_in, pet_run, stop_at

from pet.pipeline import drawn_texts
from pet.store import interrupts
from pet.store.interrupts import HEEDED, Stopped
from pet.training import checkpoint


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """No test leaves a handler, or a signal that waits."""
    before = [signal.getsignal(number) for number in HEEDED]
    yield
    assert [signal.getsignal(number) for number in HEEDED] == before
    assert interrupts._State.deferring == 0
    assert not interrupts.asked()


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_at_once_with_the_code_that_shells_expect(number, code):
    after = []
    with pytest.raises(Stopped) as raised, interrupts.heeded():
        send(number)
        after.append(1)
    assert raised.value.code == code
    assert after == []
    assert isinstance(raised.value, KeyboardInterrupt), "so that whatever cleans up after Ctrl-C does"


def test_deferred_it_waits_for_the_end_of_the_block():
    done = []
    with pytest.raises(Stopped) as raised, interrupts.heeded():
        with interrupts.deferred():
            assert not interrupts.asked()
            send(signal.SIGTERM)
            assert interrupts.asked()
            done.append("block")
        done.append("after")
    assert raised.value.code == 143
    assert done == ["block"]


def test_a_block_in_a_block_leaves_it_to_the_outer_one():
    done = []
    with pytest.raises(Stopped), interrupts.heeded(), interrupts.deferred():
        with interrupts.deferred():
            send(signal.SIGINT)
        interrupts.heed()
        done.append("inner")
        assert interrupts.asked()
    assert done == ["inner"]


def test_the_second_signal_is_heeded_at_once():
    done = []
    with pytest.raises(Stopped) as raised, interrupts.heeded(), interrupts.deferred():
        send(signal.SIGTERM)
        done.append("first")
        send(signal.SIGINT)
        done.append("second")
    assert raised.value.code == 130
    assert done == ["first"]


def test_what_goes_wrong_in_a_block_is_not_hidden_by_a_signal():
    with interrupts.heeded():
        with pytest.raises(ValueError, match="ours"), interrupts.deferred():
            send(signal.SIGINT)
            raise ValueError("ours")
        with pytest.raises(Stopped):
            interrupts.heed()


def test_without_a_signal_nothing_is_raised():
    with interrupts.heeded(), interrupts.deferred():
        interrupts.heed()
    interrupts.heed()


def test_a_signal_that_waits_when_all_is_over_is_not_that_of_the_next_time():
    with pytest.raises(ValueError, match="ours"), interrupts.heeded(), interrupts.deferred():
        send(signal.SIGINT)
        raise ValueError("ours")
    with interrupts.heeded(), interrupts.deferred():
        assert not interrupts.asked()


def test_in_another_thread_nothing_is_changed_and_nothing_deferred():
    seen = []

    def other() -> None:
        before = [signal.getsignal(number) for number in HEEDED]
        with interrupts.heeded(), interrupts.deferred():
            seen.append([signal.getsignal(number) for number in HEEDED] == before)
            seen.append(interrupts._State.deferring == 0)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join(20)
    assert seen == [True, True]


# ---- through the command -------------------------------------------------------------------------------------------


STOPPED = "\nInterrupted. What was finished is kept; the same command goes on from there.\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_stops_between_two_steps_saved_and_the_next_goes_on(done, tmp_path, monkeypatch, number, code):
    with monkeypatch.context() as patch:
        stop_at(patch, 1, number)
        told = pet_run(done.ground, tmp_path, code=code).stderr
    assert told.endswith(f"finetune p0-r0: saved after step 1\n{STOPPED}")
    assert len(find_all(tmp_path, "finetune")) == 2, "the untuned patterns"
    again = pet_run(done.ground, tmp_path).stderr
    assert "finetune p0-r0: going on after step 1" in again
    assert hidden_in(tmp_path) == []
    for stage in ("finetune", "distill", "evaluate", "run"):
        assert [one.name for one in find_all(tmp_path, stage)] == [one.name for one in find_all(done.store, stage)]


def test_a_run_stops_at_once_where_nothing_is_trained(done, tmp_path, monkeypatch):
    load = drawn_texts.load

    def stop(*given: object) -> object:
        send(signal.SIGTERM)
        return load(*given)

    monkeypatch.setattr(drawn_texts, "load", stop)
    told = pet_run(done.ground, tmp_path, code=143).stderr
    assert told.endswith(STOPPED)
    assert "saved" not in told
    assert hidden_in(tmp_path) == []
    assert len(find_all(tmp_path, "prepare")) == 1


def test_a_second_signal_ends_a_run_in_the_middle_of_a_step(done, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 1, signal.SIGINT)  # the second, as each is sent before those that were patched in earlier
        stop_at(patch, 1)
        told = pet_run(done.ground, tmp_path, code=130).stderr
    assert told.endswith(STOPPED)
    assert "saved" not in told
    assert [path for path in hidden_in(tmp_path) if not path.is_dir()] == []


def test_the_checkpoint_outlives_a_second_signal_that_comes_while_it_is_saved(done, tmp_path, monkeypatch):
    """The one before stays, or there is none: never half of one."""
    write = checkpoint.save_file

    def stop(*given: object) -> None:
        write(*given)
        send(signal.SIGINT)

    with monkeypatch.context() as patch:
        stop_at(patch, 1)
        patch.setattr(checkpoint, "save_file", stop)
        pet_run(done.ground, tmp_path, code=130)
    assert "going on" not in pet_run(done.ground, tmp_path, "--stage", "finetune").stderr
    assert hidden_in(tmp_path) == []
