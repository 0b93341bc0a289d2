"""What is shown while several things go on at a time."""

import io

from rich.console import Console

from pet.cli.screen import Screen


def terminal() -> tuple[Screen, io.StringIO]:
    """A screen that takes itself for one, and what it shows."""
    screen, shown = Screen(), io.StringIO()
    screen.err = Console(file=shown, force_terminal=True, width=100, soft_wrap=True)
    return screen, shown


def test_bars_of_several_members_stand_below_each_other_and_go_when_they_are_full():
    screen, shown = terminal()
    first = screen.track("p0-r0", 4, "step")
    advance = first.__enter__()
    with screen.track("p1-r0", 2, "step") as other:
        advance(1)
        other(2)
        assert screen._bars is not None
        assert [(task.description, task.completed) for task in screen._bars.tasks] == [("p0-r0", 1), ("p1-r0", 2)]
    assert [task.description for task in screen._bars.tasks] == ["p0-r0"]
    screen.say("a line above")
    first.__exit__(None, None, None)
    assert screen._bars is None
    assert "p0-r0" in shown.getvalue() and "a line above" in shown.getvalue()
    with screen.track("p0-r1", 1, "step") as again:
        again(1)
    assert screen._bars is None, "and the next ones are shown in a place of their own"


def test_a_bar_goes_when_what_it_was_for_fails():
    screen, _ = terminal()
    try:
        with screen.track("p0-r0", 4, "step"):
            raise RuntimeError("out of memory")
    except RuntimeError:
        assert screen._bars is None
