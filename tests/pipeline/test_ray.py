"""`--executor ray`: a cluster makes what one process makes, whatever is lost on the way; and what is said of it.

The last ones start a cluster of two workers and run `pet` as a process of its own. One of them, the table, is part
of `make test`; those marked `ray` take longer (`make test-all`; docs/explanation/reliability.md says how they ended).
"""

import importlib.util
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.killing import differences
from support.rows import find_all, killable, lay_ground, lively_model, logs_of, make_up_to, open_context, pet, read_json

from pet import __file__ as package
from pet.config.schema import RuntimeSettings
from pet.errors import ModelError, SettingsError, StoreError, TaskError
from pet.pipeline import publishing
from pet.pipeline.event_log import read_events
from pet.pipeline.executors import ray as ray_module
from pet.pipeline.executors import ray_cluster
from pet.pipeline.executors.local import LocalExecutor
from pet.pipeline.executors.ray import RayExecutor
from pet.pipeline.executors.remote_reporter import MessageActor, RemoteReporter, Replayer
from pet.pipeline.graph import build_graph
from pet.pipeline.stages import finetune, prepare
from pet.store.key import Key
from pet.store.lock import LOCKS
from pet.store.store import Store

NAME = "seed 7"

TOKEN = uuid.uuid4().hex
"""Who runs something on the cluster has to know it."""


# ---- without a cluster -----------------------------------------------------------------------------------------------


class Heard:
    """The hub, in this process."""

    def __init__(self) -> None:
        self.hub = MessageActor()
        self.put = SimpleNamespace(remote=self.hub.put)


class Told:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[Any] = []

    def say(self, message):
        self.lines.append(message)

    def log(self, name, values, step):
        self.lines.append((name, values, step))

    def track(self, label, total, unit):
        return Bar(self.lines, label, total, unit)


class Bar:
    def __init__(self, lines, *facts):
        self.lines, self.facts, self.done = lines, facts, 0

    def __enter__(self):
        return self

    def __call__(self, more):
        self.done += more

    def __exit__(self, *_):
        self.lines.append((*self.facts, self.done))


def crew_of(heard: Heard, name: str = NAME) -> RayExecutor:
    return RayExecutor(heard, {}, "", name)


def test_what_a_task_says_is_told_in_its_order_under_the_name_of_its_walk():
    heard, told = Heard(), Told()
    telling = RemoteReporter(heard, "", NAME)
    telling.say("training")
    telling.warn("slow")
    telling.log("p0-r0", {"loss": 0.5}, 3)
    with telling.track("scoring", 10, "texts") as advance:
        for _ in range(10):
            advance(1)
    Replayer(told).show(heard.hub.drain(""))
    assert told.lines == [
        f"{NAME}: training",
        f"{NAME}: Warning: slow",
        (f"{NAME}: p0-r0", {"loss": 0.5}, 3),
        (f"{NAME}: scoring", 10, "texts", 10),
    ]
    assert heard.hub.drain("") == []


def test_a_walk_that_is_alone_has_no_name_before_its_words():
    heard = Heard()
    RemoteReporter(heard, "", "").say("training")
    assert heard.hub.drain("") == [("say", "training")]


def test_each_hears_what_was_said_to_it():
    heard = Heard()
    RemoteReporter(heard, "walk", "").say("training")
    RemoteReporter(heard, "", "").say("walking")
    assert heard.hub.drain("walk") == [("say", "training")]
    assert heard.hub.drain("") == [("say", "walking")]
    assert heard.hub.drain("walk") == []


def test_the_bar_of_a_task_that_was_lost_is_closed_at_the_end():
    heard, told = Heard(), Told()
    bar = RemoteReporter(heard, "", NAME).track("scoring", 10, "texts")
    bar.__enter__()
    replay = Replayer(told)
    replay.show(heard.hub.drain(""))
    assert told.lines == []
    replay.close()
    replay.close()
    assert told.lines == [(f"{NAME}: scoring", 10, "texts", 0)]


def test_an_order_takes_the_whole_walk_along_and_nothing_of_this_process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pet", "run", "--seed", "7"])
    ground = lay_ground(tmp_path / "ground", tmp_path / "no-model")
    ctx = open_context(ground, Path("store"))
    node = prepare.node(ctx)
    order = pickle.loads(pickle.dumps(ray_module.task_spec(ctx, ray_module.make_here, [node], name=NAME)))
    assert (order.what, order.settings) == (ray_module.make_here, ctx.settings)
    (((sent,),),) = (order.arguments,)
    assert (sent.key, sent.stage, sent.store.root) == (node.key, prepare.STAGE, tmp_path / "store")
    assert (order.store.root, order.folder) == (tmp_path / "store", tmp_path)
    assert (order.threads, order.typed, order.walks) == (torch.get_num_threads(), sys.argv, False)


def test_ray_that_is_not_installed_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refused = pytest.raises(SettingsError, match=r"needs Ray, .* run: pip install 'ray>=2\.52'")
    with refused, ray_cluster.open_cluster(RuntimeSettings(executor="ray"), Store(tmp_path)):
        pass


def test_a_device_by_its_number_is_not_for_a_cluster(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(name=name))
    refused = pytest.raises(SettingsError, match=r"runtime.device is 'cuda:1'; leave it auto")
    with refused, ray_cluster.open_cluster(RuntimeSettings(device="cuda:1"), Store(tmp_path)):
        pass


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "127.0.0.1:1", "127.0.0.1:99999"])
def test_an_address_where_no_cluster_is_is_refused_at_once(address, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(SettingsError, match=f"no Ray cluster at RAY_ADDRESS '{address}'"):
        ray_cluster.call(address)


@pytest.mark.parametrize(("address", "where"), [("", "on this host"), ("auto", "at RAY_ADDRESS 'auto'")])
def test_a_cluster_that_was_killed_is_not_waited_for(tmp_path, monkeypatch, address, where):
    """Ray would try for minutes what it noted on the disk."""
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert ray_cluster.noted_address() == ""
    note = tmp_path / "ray" / "ray_current_cluster"
    note.parent.mkdir()
    note.write_text("127.0.0.1:1")
    with pytest.raises(SettingsError, match=f"no Ray cluster {where} .*refused") as refused, ray_cluster.joined():
        pass
    assert (f"remove {note}" in str(refused.value)) == (not address)


@pytest.mark.parametrize("address", ["", "auto", "local"])
def test_an_address_that_is_none_is_left_to_ray(address):
    ray_cluster.call(address)


def test_a_host_that_sees_another_store_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ground = lay_ground(tmp_path / "ground", tmp_path / "no-model")
    order = ray_module.task_spec(open_context(ground, tmp_path / "store"), lambda ctx: "done", walks=False)
    with ray_cluster.marked(Store(tmp_path / "store")) as mark:
        assert (tmp_path / "store" / LOCKS / mark).is_file()
        monkeypatch.setattr(ray_module, "do", lambda order, executor: "done")
        assert ray_module.run_task(order, RayExecutor(None, {}, mark, "")) == "done"
    assert not (tmp_path / "store" / LOCKS / mark).exists()
    with pytest.raises(StoreError, match=f"{tmp_path}/store on {socket.gethostname()} is not the store"):
        ray_module.run_task(order, RayExecutor(None, {}, mark, ""))


def test_a_task_whose_members_are_made_or_being_made_begins_with_nothing(tmp_path, monkeypatch):
    ground = lay_ground(tmp_path / "ground", tmp_path / "no-model")
    ctx = open_context(ground, tmp_path / "store")
    keys = [Key("finetune", 1, {"number": number}, {}) for number in range(2)]
    order = ray_module.task_spec(ctx, lambda given: "called", makes=keys)
    monkeypatch.setattr(ray_module, "context_of", lambda order, executor: ctx)
    assert ray_module.do(order, crew_of(Heard())) == "called"
    with ctx.store.publish(keys[0], "made"):
        pass
    assert ray_module.do(order, crew_of(Heard())) == "called"
    with ctx.store.publish(keys[1], "being made"):
        assert ray_module.do(order, crew_of(Heard())) is None
    assert ray_module.do(order, crew_of(Heard())) is None


def test_a_host_that_has_another_model_trains_nothing(tmp_path, monkeypatch):
    """Nodes carry the identities that the run's host gave them."""
    model = lively_model(tmp_path / "model")
    ctx = open_context(lay_ground(tmp_path / "ground", model, runtime=SAME), tmp_path / "store")
    make_up_to(ctx, "prepare")
    nodes = build_graph(ctx).of(finetune.STAGE)
    order = ray_module.task_spec(ctx, ray_module.make_here, nodes)
    there = open_context(lay_ground(tmp_path / "there", model, runtime=SAME), tmp_path / "store")
    there.fingerprints[str(model)] = "another"
    monkeypatch.setattr(ray_module, "context_of", lambda order, executor: replace(there, executor=LocalExecutor()))
    with pytest.raises(ModelError, match="is not the one of the host where the run was begun"):
        ray_module.do(order, crew_of(Heard()))
    assert not find_all(tmp_path / "store", "finetune")


def test_a_member_that_another_process_is_at_is_left_to_it_until_nothing_else_is_to_do(tmp_path):
    ground = lay_ground(tmp_path / "ground", lively_model(tmp_path / "model"), runtime=SAME)
    ctx = open_context(ground, tmp_path / "store", finetune={"steps": 1, "repetitions": 1})
    make_up_to(ctx, "prepare")
    nodes = build_graph(ctx).of(finetune.STAGE)
    with publishing.open_node(ctx, nodes[0]):
        LocalExecutor().make(ctx, nodes, wait=False)
        made = [ctx.store.find(node.key) is not None for node in nodes]
        assert made == [False, *[True] * (len(nodes) - 1)]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_worker_that_has_read_ahead_makes_what_another_one_makes(tmp_path, monkeypatch, method):
    """The same bytes, by the model that it has loaded by then."""
    ground = lay_ground(tmp_path / "ground", lively_model(tmp_path / "model"), runtime=SAME)
    scores = []
    for ahead in (True, False):
        ctx = open_context(
            ground, tmp_path / f"store-{ahead}", finetune={"steps": 3, "repetitions": 1, "method": method}
        )
        make_up_to(ctx, "prepare")
        local = LocalExecutor()
        ctx = replace(ctx, executor=local)
        monkeypatch.setattr(ray_module, "context_of", lambda order, executor, ctx=ctx: ctx)
        if ahead:
            ray_module.do(ray_module.task_spec(ctx, ray_module.read_ahead), crew_of(Heard()))
        loaded = local.kept["trainer"].cloze if ahead else None
        nodes = build_graph(ctx).of(finetune.STAGE)
        ray_module.do(ray_module.task_spec(ctx, ray_module.make_here, nodes), crew_of(Heard()))
        assert (local.kept["members"].member_trainer.cloze is loaded) == ahead
        found = ctx.store.root.glob("finetune/*/scores.safetensors")
        scores.append({path.parent.name: path.read_bytes() for path in found})
    assert len(scores[0]) > 2
    assert scores[0] == scores[1]


def test_a_bug_in_a_task_shows_where_it_is():
    """As a worker would: the traceback of what is no sentence of ours is not lost on the way."""
    import ray

    problem = ray.exceptions.RayTaskError("f", "deep in the worker", ValueError("bad"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "get", raiser(problem))
        assert ray_module.result_of(None).__notes__ == ["deep in the worker"]
        patch.setattr(ray, "get", raiser(ray.exceptions.RayTaskError("f", "deep", TaskError("no card"))))
        assert not hasattr(ray_module.result_of(None), "__notes__")


def raiser(problem: Exception) -> Any:
    def fail(*_: object) -> None:
        raise problem

    return fail


# ---- with a cluster --------------------------------------------------------------------------------------------------

SAME = {"device": "cpu", "precision": "fp32"}
"""Of `pet` in this process and in one of its own."""

PATIENCE = 180


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a cluster of one host with two workers, which is gone afterwards, every process of it."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="pet-ray-", ignore_cleanup_errors=True) as folder:
        # The folder is a short one: sockets are in it. Ray asks for more memory in /dev/shm than a container may have.
        command = f"start --head --block --port={port} --node-ip-address=127.0.0.1 --num-cpus=2 --num-gpus=0"
        command += f" --include-dashboard=false --temp-dir={folder} --object-store-memory={10**8}"
        head = subprocess.Popen(
            [sys.executable, "-c", "from ray.scripts.scripts import main; main()", *command.split()],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment(),
            start_new_session=True,
        )
        try:
            wait_for(lambda: listens(port), head)
            yield f"127.0.0.1:{port}"
        finally:
            head.terminate()
            try:
                head.wait(30)
            except subprocess.TimeoutExpired:
                head.kill()
                head.wait()
            for pid in processes_with(folder):
                os.kill(pid, signal.SIGKILL)


def environment(**more: str) -> dict[str, str]:
    """Of the cluster and of `pet`: this source, one thread, as in this process."""
    source = str(Path(package).parents[1])
    ray = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    return {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", **ray, **more}


def listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def processes_with(word: str) -> list[int]:
    """Processes that have been given a word."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def wait_for(condition: Any, child: "subprocess.Popen[Any]") -> Any:
    """What a condition comes to, once it does."""
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert child.poll() is None, "it ended before"
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.005)
    return found


def begin(address: str, *arguments: object) -> "subprocess.Popen[str]":
    """`pet ARGUMENTS --executor ray` as a process."""
    return subprocess.Popen(
        [sys.executable, "-m", "pet", *map(str, arguments), "--executor", "ray"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(RAY_ADDRESS=address, COLUMNS="200"),
    )


def end(child: "subprocess.Popen[str]", code: int = 0) -> str:
    """What a process said; it must end with this exit code, and never with a traceback."""
    try:
        said, _ = child.communicate(timeout=PATIENCE)
    finally:
        child.kill()
    assert "Traceback" not in said, said
    assert child.returncode == code, said
    return said


def pet_ray(address: str, *arguments: object, code: int = 0) -> str:
    return end(begin(address, *arguments), code)


def at_work(store: Path) -> int | None:
    """A process that is in the middle of training a member, if there is one."""
    for path in store.glob("finetune/.draft-*/.checkpoint/state.json"):
        identity = path.parents[1].name.removeprefix(".draft-")
        words = (store / LOCKS / f"finetune-{identity}").read_text(encoding="utf-8").split()
        if words[:1] == ["process"]:
            return int(words[1])
    return None


def told_of(log: list[dict[str, Any]]) -> list[str]:
    """What a log tells of trainings, in any order: their beginnings, their numbers, and how much they have scored."""
    facts = ("message", "name", "step", "values", "label", "total", "done")
    told = [{name: one[name] for name in facts if name in one} for one in log]
    return sorted(str(one) for one in told if "reused" not in str(one))


def made(said: str) -> Counter[str]:
    """How often each member was begun."""
    return Counter(
        line.partition(": ")[0] for line in said.splitlines() if line.startswith("finetune ") and "{" in line
    )


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> list[list[object]]:
    """Generations of members, each saved after every step so that one can be met at work; adapters for longer."""
    ipet, lora, _ = killable(tmp_path_factory.mktemp("ground"))
    return [[*ipet, "--set=adapt.enabled=false", "--set=finetune.steps=30"], [*lora, "--set=finetune.steps=150"]]


@pytest.fixture(scope="module")
def whole(commands, tmp_path_factory) -> Callable[[int], Path]:
    """What each makes in one process, made when it is asked for; never write into it."""

    @cache
    def made(number: int) -> Path:
        store = tmp_path_factory.mktemp("whole") / str(number)
        pet(*commands[number], "--store", store)
        return store

    return made


@pytest.mark.ray
def test_tasks_make_what_one_process_makes_each_member_once(address, commands, whole, tmp_path):
    said = pet_ray(address, *commands[0], "--store", tmp_path)
    members = {"p0-untuned", "p1-untuned", *(f"{g}p{p}-r{r}" for g in ("", "g1-") for p in (0, 1) for r in (0, 1))}
    assert made(said) == {f"finetune {one}": 1 for one in members}
    assert differences(tmp_path, whole(0)) == []
    (log,) = map(read_events, logs_of(tmp_path))
    assert f"ipet {commands[0][1]} " in log[0]["command"]
    assert log[-1]["event"] == "done"
    (alone,) = map(read_events, logs_of(whole(0)))
    assert told_of(log) == told_of(alone)


@pytest.mark.ray
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda one: one.name)
def test_a_worker_that_is_lost_in_a_training_is_replaced_and_the_training_goes_on(
    address, commands, whole, tmp_path, number
):
    child = begin(address, *commands[0], "--store", tmp_path)
    victim = wait_for(lambda: at_work(tmp_path), child)
    os.kill(victim, number)
    said = end(child)
    assert "going on after step" in said
    assert not Path(f"/proc/{victim}").exists()
    assert differences(tmp_path, whole(0)) == []


@pytest.mark.ray
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"])
def test_asked_to_stop_tasks_save_their_training_and_the_next_call_goes_on(
    address, commands, whole, tmp_path, number, code
):
    child = begin(address, *commands[1], "--store", tmp_path)
    victim = wait_for(lambda: at_work(tmp_path), child)
    child.send_signal(number)
    said = end(child, code)
    assert "Interrupted. What was finished is kept" in said
    assert "finetune: saved after step" in said
    assert list(tmp_path.glob("finetune/.draft-*/.checkpoint/state.json"))
    assert not list(tmp_path.glob(f"{LOCKS}/cluster-*"))
    assert read_events(logs_of(tmp_path)[0])[-1]["event"] == "interrupted"
    wait_for_end(victim)
    assert "finetune: going on after step" in pet_ray(address, *commands[1], "--store", tmp_path)
    assert differences(tmp_path, whole(1)) == []
    assert not made(pet_ray(address, *commands[1], "--store", tmp_path)), "all is reused"


def wait_for_end(process: int) -> None:
    """Until a process is gone."""
    try:
        handle = os.pidfd_open(process)
    except ProcessLookupError:
        return
    ended, _, _ = select.select([handle], [], [], 30)
    os.close(handle)
    assert ended, f"process {process} lives on"


@pytest.mark.ray
def test_what_a_user_can_mend_is_one_sentence_wherever_it_was_found(address, commands, tmp_path):
    said = pet_ray(address, *commands[1], "--store", tmp_path, "--set=finetune.patterns=[7]", code=2)
    assert said.splitlines()[-1].startswith("Error: finetune.patterns [7]: task 'topics' has patterns 0 to 1")
    (tmp_path / "distill").write_text("in the way of a task")
    said = pet_ray(address, *commands[1], "--store", tmp_path, "--set=finetune.steps=1", code=2)
    assert said.splitlines()[-1].startswith(f"Error: the store {tmp_path} cannot be written")


@pytest.mark.slow
def test_a_table_goes_on_past_a_run_that_failed_and_the_next_call_fills_the_hole(address, tmp_path):
    model = lively_model(tmp_path / "model")
    ground = lay_ground(tmp_path / "ground", model, finetune={"repetitions": 1}, runtime=SAME)

    def table(name: str) -> list[object]:
        places = ["--store", tmp_path / name, "--out", tmp_path / f"results-{name}"]
        return ["table", ground.pipeline, *places, "--sizes=6", "--seeds=0", "--methods=supervised,pet"]

    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "distill").write_text("in the way")
    said = pet_ray(address, *table("ray"), code=1)
    assert said.count("supervised: done (") == 1
    assert said.count("pet: failed: the store ") == 1
    found = read_json(tmp_path / "results-ray" / "pipeline" / "table.json")
    assert len(found["failed"]) == 1
    (tmp_path / "ray" / "distill").unlink()
    before = {path: path.stat().st_mtime_ns for path in find_all(tmp_path / "ray", "*")}
    assert before
    assert not made(pet(*table("ray")).stderr)
    assert before.items() <= {path: path.stat().st_mtime_ns for path in find_all(tmp_path / "ray", "*")}.items()
    pet(*table("local"))
    assert differences(tmp_path / "ray", tmp_path / "local") == []
    ours, theirs = (tmp_path / f"results-{name}" / "pipeline" / "table.csv" for name in ("ray", "local"))
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.ray
def test_several_seeds_at_a_time_are_shown_in_the_order_that_they_were_given_in(address, tmp_path):
    ground = lay_ground(tmp_path / "ground", lively_model(tmp_path / "model"), runtime=SAME)
    seeds = ("1", "0")
    said = pet_ray(address, "run", ground.pipeline, "--store", tmp_path / "store", *(f"--seed={one}" for one in seeds))
    shown = [line for line in said.splitlines() if " test texts, seed " in line]
    assert [line.partition(" test texts, seed ")[2][0] for line in shown] == list(seeds)
    assert "seed 1: finetune p0-r0" in said


@pytest.mark.ray
def test_what_no_host_of_the_cluster_has_is_refused_and_not_waited_for(address, commands, tmp_path):
    said = pet_ray(address, *commands[1], "--store", tmp_path, "--set=runtime.task_gpus=1", code=2)
    assert "runtime.task_gpus is 1, and no host of the Ray cluster has more than 0" in said
