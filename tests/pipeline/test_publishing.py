"""What stages share of the store: made once whoever asks, mended when damaged, shared out among processes."""

import threading

import pytest
from safetensors import SafetensorError
from support.rows import garble, hidden_in

from pet.config.schema import RuntimeSettings
from pet.errors import Busy, DamagedArtifact, StoreError
from pet.pipeline import publishing
from pet.pipeline.publishing import MENDED, make, mending, share_out
from pet.store.key import Key
from pet.store.store import Store
from pet.training.device import open_runtime
from pet.training.reporter import Silent

KEY = Key("label", 1, {}, {})


class Listening(Silent):
    """A reporter that remembers what is said."""

    def __init__(self):
        self.said = []

    def say(self, message):
        self.said.append(message)


@pytest.fixture
def heard():
    return Listening()


@pytest.fixture
def runtime(heard):
    return open_runtime(RuntimeSettings(device="cpu"), heard)


def write(content):
    """Fills a draft."""
    return lambda draft: draft.write_json("result.json", content)


def test_what_is_there_is_reused_and_said_and_what_is_not_is_made(tmp_path, runtime, heard):
    store = Store(tmp_path)
    made = make(store, runtime, KEY, "mine", "label", write("first"), seed=3)
    assert (made.read_json("result.json"), made.manifest["seed"], heard.said) == ("first", 3, [])
    again = make(store, runtime, KEY, "mine", "label", write("second"))
    assert again == made
    assert heard.said == [f"label: reused {made.path}"]


def test_what_another_process_makes_is_waited_for_by_name_and_reused(tmp_path, runtime, heard):
    found, waits = [], threading.Event()
    say = heard.say
    heard.say = lambda message: (say(message), waits.set())

    def second():
        found.append(make(Store(tmp_path), runtime, KEY, "mine", "label", write("second")))

    with Store(tmp_path).publish(KEY, "mine") as draft:
        other = threading.Thread(target=second)
        other.start()
        assert waits.wait(20)
        draft.write_json("result.json", "first")
    other.join(20)
    assert found[0].read_json("result.json") == "first"
    assert heard.said[0].startswith("label: waiting for process ")
    assert heard.said[1] == f"label: reused {found[0].path}"


def test_a_walk_that_comes_upon_damage_sets_it_aside_and_begins_again(tmp_path, runtime, heard):
    store, walks = Store(tmp_path), []
    path = make(store, runtime, KEY, "mine", "label", write("result")).path

    def walk():
        walks.append(1)
        return make(store, runtime, KEY, "mine", "label", write("result")).read_json("result.json")

    garble(path / "result.json")
    assert mending(store, runtime, walk) == "result"
    assert len(walks) == 2
    (writer,) = hidden_in(tmp_path)
    damage = "result.json is damaged: its content has changed (sha256)"
    where = f"set aside as {writer.name}, which `pet runs gc` removes"
    assert f"label/{path.name} is damaged ({damage}); {where}" in heard.said


def test_a_disk_that_damages_whatever_is_written_is_not_written_for_ever(tmp_path, runtime):
    store, walks = Store(tmp_path), []

    def walk():
        walks.append(1)
        made = make(store, runtime, KEY, "mine", "label", write("result"))
        garble(made.path / "result.json")
        return made.read_json("result.json")

    with pytest.raises(DamagedArtifact):
        mending(store, runtime, walk)
    assert len(walks) == MENDED + 1


def test_damage_that_another_process_has_mended_is_not_set_aside(tmp_path, runtime, heard):
    store = Store(tmp_path)
    path = make(store, runtime, KEY, "mine", "label", write("result")).path
    problems = [DamagedArtifact(path, "result.json is damaged"), None]

    def walk():
        problem = problems.pop(0)
        if problem:
            raise problem

    mending(store, runtime, walk)
    assert hidden_in(tmp_path) == []
    assert heard.said[-1] == f"label/{path.name} is damaged (result.json is damaged)"


def test_what_others_are_at_is_made_last_and_waited_for():
    busy, asked = {"b", "c"}, []

    def make_one(plan, wait):
        asked.append((plan, wait))
        if plan in busy and not wait:
            raise Busy(plan)

    share_out(make_one, ["a", "b", "c", "d"])
    first = [("a", False), ("b", False), ("c", False), ("d", False)]
    assert asked == [*first, ("b", True), ("c", True)]
    asked.clear()
    share_out(make_one, ["a", "b", "c", "d"], wait=False)
    assert asked == first


def test_a_mistake_in_one_of_several_is_not_taken_for_another_process():
    def make_one(plan, wait):
        raise ValueError(plan)

    with pytest.raises(ValueError, match="a"):
        share_out(make_one, ["a", "b"])


def test_what_safetensors_says_of_a_disk_is_said_as_python_says_it(tmp_path, runtime):
    with (
        pytest.raises(StoreError, match="cannot be written"),
        publishing.publish(Store(tmp_path), runtime, KEY, "mine", "label"),
    ):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert hidden_in(tmp_path) == []
