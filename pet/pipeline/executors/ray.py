"""Walks and their trainings as Ray tasks, on as many hosts as the cluster has: members, students, baselines.

The store lies on a file system that all hosts share, at the same path, and pet is installed on each. A walk is a task
that waits for others; a student or a baseline is a task, and members are made one after another by as many tasks as
there is room for. Each takes the lock of an identity, makes the artifact and publishes it, as any process would. A
task whose worker or host is lost is begun again, and goes on from the checkpoint. What trainings say is told to their
walk, which writes it down, and what walks say is shown where they were begun.
"""

import contextlib
import os
import signal
import socket
import sys
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from pet.config.schema import Settings
from pet.errors import ModelError, PetError, StoreError
from pet.modeling import loading
from pet.pipeline import event_log
from pet.pipeline.context import RunContext
from pet.pipeline.executors.local import LocalExecutor
from pet.pipeline.executors.remote_reporter import TOLD_EVERY, RemoteReporter, Replayer
from pet.pipeline.members.data import MemberTrainer
from pet.pipeline.node import Node
from pet.pipeline.stages import finetune
from pet.store import interrupts
from pet.store.key import Key
from pet.store.lock import LOCKS, is_locked
from pet.store.store import Store
from pet.training.device import open_runtime, use
from pet.training.reporter import Reporter

RETRIES = 20
"""Times that a task is begun again whose worker was lost: a task may train many members, for days."""

WALKS = 16
"""Walks at a time, at most: each is a process of half a gigabyte that does little but wait for its trainings."""

PATIENCE = 20.0
"""Seconds that a task has to save its training when all are asked to stop."""

CALLING = 5.0
"""Seconds that a cluster has to answer. Ray itself tries for minutes."""


@dataclass(frozen=True)
class TaskSpec:
    """What a task is told: a function of a walk and more, and the walk itself. `fingerprints`: of the models, as the
    walk's host has them. `walks`: the function is a whole walk,
    whose trainings are to be tasks of their own. `makes`: what the function makes, if it need not be called where
    others have made, or are making, all of that; `name`: what its words begin with, if anything; `threads`: of torch on
    a CPU, as many as here, so that sums come out the same to the last bit; `folder`: where relative paths begin;
    `typed`: the command, for the log."""

    what: Callable[..., Any]
    arguments: tuple[Any, ...]
    settings: Settings
    store: Store
    invocation: str
    fingerprints: Mapping[str, str]
    walks: bool = False
    makes: Sequence[Key] = ()
    name: str = ""
    threads: int = field(default_factory=torch.get_num_threads)
    folder: Path = field(default_factory=Path.cwd)
    typed: Sequence[str] = field(default_factory=lambda: list(sys.argv))


def task_spec(ctx: RunContext, what: Callable[..., Any], *arguments: Any, **more: Any) -> TaskSpec:
    """A function and its arguments, in this run; `more`: as in `TaskSpec`."""
    return TaskSpec(what, arguments, ctx.settings, ctx.store, ctx.invocation, dict(ctx.fingerprints), **more)


@dataclass(frozen=True)
class RayExecutor:
    """What starts tasks, here and in a task that is a walk. `hub`: where they say how it goes; `resources`: of a
    training; `mark`: as of `marked`; `name`: what the words of a task begin with, if anything; `box`: of the hub, that
    they are for."""

    hub: Any
    resources: Mapping[str, float]
    mark: str
    name: str = ""
    box: str = ""

    def reporter(self) -> RemoteReporter:
        """What a task tells how it goes."""
        return RemoteReporter(self.hub, self.box, self.name)

    @contextlib.contextmanager
    def run(self, orders: Sequence[TaskSpec], reporter: Reporter) -> Iterator[Generator[tuple[int, Any], None, None]]:
        """Number and result of each order, as they come; a result that is an exception was raised there. `reporter`: is
        told what all tasks say meanwhile. Tasks that are left when the block ends are stopped."""
        results = self.results(orders, reporter)
        try:
            yield results
        finally:
            results.close()  # now, and not when Python comes to it: Ray is there no more then

    def results(self, orders: Sequence[TaskSpec], reporter: Reporter) -> Generator[tuple[int, Any], None, None]:
        """As `run`."""
        import ray

        replay = Replayer(reporter)
        todo = list(enumerate(orders))[::-1]
        waiting: dict[Any, int] = {}
        try:
            while todo or waiting:
                while todo and len(waiting) < (WALKS if orders[0].walks else len(orders)):
                    number, order = todo.pop()
                    waiting[self.start(order)] = number
                with interrupts.deferred():  # Ray would make a plain KeyboardInterrupt of whatever signal it is
                    done, _ = ray.wait(list(waiting), timeout=TOLD_EVERY)
                replay.show(ray.get(self.hub.drain.remote(self.box)))
                for one in done:
                    yield waiting.pop(one), result_of(one)
        finally:
            stop(list(waiting))
            replay.show(ray.get(self.hub.drain.remote(self.box)))
            replay.close()

    def start(self, order: TaskSpec) -> Any:
        """Begin a task."""
        import ray

        needs = {"num_cpus": 0} if order.walks else self.resources
        task = ray.remote(max_retries=RETRIES, max_calls=0, scheduling_strategy="SPREAD", **needs)(run_task)
        return task.remote(order, replace(self, name=order.name))

    def make(self, ctx: RunContext, nodes: Sequence[Node]) -> None:
        """As many tasks as there are artifacts to train, so that a cluster that can grow does; each makes one after
        another of those that are still to be made, so that the next one is trained while weights are written. What is
        trained together, as adapters are, is one task. What needs no training is made by the walk itself."""
        stage = nodes[0].stage
        if not stage.trains:
            LocalExecutor().make(ctx, nodes)
            return
        together = [node for node in nodes if stage.is_joint and stage.is_joint(ctx, node)]
        each = [node for node in nodes if node not in together]
        orders = [task_spec(ctx, make_here, each, False, makes=[node.key for node in each])] * len(each)
        if together:
            orders.append(task_spec(ctx, make_here, together))
        self.all(ctx, orders)
        left = [node for node in each if ctx.store.find(node.key) is None]
        if left:  # another process is making them, or was
            self.all(ctx, [task_spec(ctx, make_here, left)])

    def all(self, ctx: RunContext, orders: Sequence[TaskSpec]) -> None:
        """Until all orders of a walk are done; raises what the first to fail raised."""
        with self.run(orders, ctx.runtime.reporter) as results:
            for _, found in results:
                raised(found)

    def get_ready(self, ctx: RunContext) -> None:
        """Say what there is, and begin as many workers as have a GPU of their own, before there is anything for them to
        do; nobody waits for them. Without a GPU there is less to begin with, and half a gigabyte each is more than a
        small run needs."""
        import ray

        has = ray.cluster_resources()
        parts = {
            "host": sum(one["Alive"] for one in ray.nodes()),
            "core": int(has.get("CPU", 0)),
            "GPU": int(has.get("GPU", 0)),
        }
        counts = ", ".join(f"{count} {name}{'s' * (count != 1)}" for name, count in parts.items())
        ctx.runtime.reporter.say(f"ray: {counts}, at {ray.get_runtime_context().gcs_address}")
        gpus = self.resources["num_gpus"]
        room = int(parts["GPU"] / gpus) if gpus else 0
        for _ in range(room):
            self.start(task_spec(ctx, read_ahead))


def stop(tasks: list[Any]) -> None:
    """Ask tasks to stop, and give them the time to save what they have learnt."""
    import ray

    for one in tasks:
        ray.cancel(one, recursive=False)  # a walk asks its own: asked twice, a training would not wait to be saved
    if tasks:
        ray.wait(tasks, num_returns=len(tasks), timeout=PATIENCE)


def result_of(task: Any) -> Any:
    """What a task came to, or what it raised; whatever Ray makes of it."""
    import ray

    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError as problem:
        if not isinstance(problem.cause, PetError):
            problem.cause.add_note(problem.traceback_str)  # where it came from, which is lost on the way
        return problem.cause
    except ray.exceptions.RayError as problem:
        return RuntimeError(f"a task was lost ({type(problem).__name__}: {' '.join(str(problem).split())})")


def raised(found: Any) -> Any:
    """A result; raises it if it is an exception."""
    if isinstance(found, BaseException):
        raise found
    return found


# ---- in a task -----------------------------------------------------------------------------------------------------


_kept: dict[Any, RunContext] = {}
"""The last run that this worker made something for, on each device that it was given; its executor keeps the models."""


def run_task(order: TaskSpec, executor: RayExecutor) -> Any:
    """Do what an order says, in the worker.

    Raises:
        StoreError: this host has another store, or none.
    """
    if order.folder.is_dir():
        os.chdir(order.folder)
    sys.argv = list(order.typed)
    torch.set_num_threads(order.threads)
    if not (order.store.root / LOCKS / executor.mark).is_file():
        raise StoreError(
            f"{order.store.root} on {socket.gethostname()} is not the store of the host where the run was begun; put "
            "it on a file system that all hosts of the Ray cluster share, at the same path"
        )
    try:
        with interrupts.heeded():
            try:
                return do(order, executor)
            finally:
                flush(executor)
    except interrupts.Stopped as stop:
        if stop.code == 128 + signal.SIGTERM:  # the host is taken away: let another one go on
            os._exit(stop.code)
        raise


def flush(executor: RayExecutor) -> None:
    """Wait until the hub has heard what was said here, if there still is one."""
    with contextlib.suppress(Exception):
        executor.hub.heard.remote().future().result(CALLING)


def do(order: TaskSpec, executor: RayExecutor) -> Any:
    """What an order says."""
    if order.walks:
        return walk(order, executor)
    store = Store(order.store.root)  # what has to be verified, `make` will
    if order.makes and not any(is_open(store, key) for key in order.makes):
        return None
    ctx = context_of(order, executor)
    use(ctx.runtime.device)  # the task before may have been given another one
    for name, digest in order.fingerprints.items():  # identities are computed by the run, from the models of its host
        if ctx.fingerprint(ctx.model_settings(name)) != digest:
            raise ModelError(
                f"model {name!r} on {socket.gethostname()} is not the one of the host where the run was begun; put the "
                "same files at the same path on all hosts of the Ray cluster"
            )
    return order.what(ctx, *order.arguments)


def is_open(store: Store, key: Key) -> bool:
    """Whether nobody has made this, or is making it."""
    return store.find(key) is None and not is_locked(store.root, key.stage, key.identity)


def walk(order: TaskSpec, executor: RayExecutor) -> Any:
    """A whole walk, which needs no device and has a log of its own."""
    settings = order.settings.model_dump(mode="json")
    ctx = new_context(order, executor, "cpu")  # of what it computes itself, the calibration, there is little
    with event_log.open_log(order.store.root, ctx.draw_label, executor.reporter(), settings, seed=order.settings.seed):
        ctx = replace(ctx, executor=replace(executor, name="", box=uuid.uuid4().hex))
        return order.what(ctx, *order.arguments)


def new_context(order: TaskSpec, executor: RayExecutor, device: str) -> RunContext:
    """The walk of an order on a device."""
    runtime = open_runtime(order.settings.runtime.model_copy(update={"device": device}), executor.reporter())
    return RunContext(order.settings, order.store, runtime, order.invocation, executor=LocalExecutor())


def context_of(order: TaskSpec, executor: RayExecutor) -> RunContext:
    """The walk of an order on the device at hand: the last one again, if it is the same."""
    device = device_of()
    name = (device, order.settings.model_dump_json(), order.store.root)
    if name not in _kept:
        for other in [one for one in _kept if one[0] == device]:
            del _kept[other]
        _kept[name] = new_context(order, executor, device)
    return _kept[name]


def device_of() -> str:
    """The GPU that Ray has set aside for this task, by its number among those that torch sees; or the CPU."""
    import ray

    given = ray.get_gpu_ids()
    if not given:
        return "cpu"
    seen = [one for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]
    return f"cuda:{seen.index(str(given[0])) if seen else given[0]}"


def make_here(ctx: RunContext, nodes: Sequence[Node], wait: bool = True) -> None:
    """Make artifacts in this worker. `wait`: also for those that others are making."""
    local_executor(ctx).make(ctx, nodes, wait)


def read_ahead(ctx: RunContext) -> None:
    """What the first member would begin with that needs none of the draw's texts: Python reads transformers, CUDA
    begins, weights are hashed and loaded, and what is compiled is."""
    if ctx.settings.adapt.enabled:  # members start from weights that are still to be made
        ctx.fingerprint(ctx.settings.model)
        loading.outline(ctx.settings.model)
        return
    trainer = MemberTrainer(ctx, ctx.start(None, None))
    local_executor(ctx).room_for(finetune.STAGE)["trainer"] = trainer
    trainer.rehearse()


def local_executor(ctx: RunContext) -> LocalExecutor:
    """A worker's own."""
    assert isinstance(ctx.executor, LocalExecutor)
    return ctx.executor
