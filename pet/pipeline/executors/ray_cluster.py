"""Joining a Ray cluster, and leaving it."""

import contextlib
import importlib.util
import logging
import os
import signal
import socket
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from pet.config.schema import RuntimeSettings
from pet.errors import SettingsError
from pet.pipeline.executors.ray import CALLING, RayExecutor
from pet.pipeline.executors.remote_reporter import MessageActor
from pet.store.lock import LOCKS
from pet.store.store import Store

SAME_WORKERS = {"env_vars": {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}}
"""Ray would hide all GPUs but a task's own, and so have to end a worker after each task: CUDA looks only once. Workers
see all, are kept with the model they have loaded, and take the one they are given (`device_of`)."""


@contextlib.contextmanager
def open_cluster(settings: RuntimeSettings, store: Store) -> Iterator["RayExecutor"]:
    """The cluster at RAY_ADDRESS, the one that runs on this host, or one of this host alone that ends with the block.
    `store`: that all its hosts are to see.

    Raises:
        SettingsError: Ray is not installed, there is no cluster at the address, a device is named, which is Ray's to
            choose, or no host has as many GPUs as a task is to have.
        StoreError: the store cannot be written.
    """
    if importlib.util.find_spec("ray") is None:
        raise SettingsError("--executor ray needs Ray, which is not installed; run: pip install 'ray>=2.52'")
    if settings.device not in ("auto", "cpu", "cuda"):
        raise SettingsError(
            f"--executor ray chooses each task's device, and runtime.device is {settings.device!r}; leave it auto"
        )
    with marked(store) as mark, joined() as ray:
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        hub = ray.remote(num_cpus=0, scheduling_strategy=here)(
            MessageActor
        ).remote()  # no other host takes it down with it
        yield RayExecutor(hub, resources_of(settings), mark)


@contextlib.contextmanager
def joined() -> Iterator[Any]:
    """Ray, as long as this process is of its cluster; a request to end is heard as before.

    Raises:
        SettingsError: there is no cluster at RAY_ADDRESS.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    call(noted_address() if address in ("", "auto") else address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports to its makers, unless told not to
    import ray
    import ray.util.scheduling_strategies

    hears = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(logging_level=logging.ERROR, log_to_driver=False, include_dashboard=False, runtime_env=SAME_WORKERS)
    except (ConnectionError, ValueError, RuntimeError) as problem:
        reason = " ".join(str(problem).split())
        raise no_cluster(f"{reason}: if it wants a token, set RAY_AUTH_MODE=token") from None
    try:
        signal.signal(signal.SIGTERM, hears)  # Ray's own handler would exit with 15
        yield ray
    finally:
        ray.shutdown()


def call(address: str) -> None:
    """Fail at once where nobody listens. `address`: HOST:PORT; else it is left to Ray.

    Raises:
        SettingsError: nobody does, or it is the address of Ray's client, which is in no cluster and reads no store.
    """
    if "://" in address:
        raise no_cluster("expected HOST:PORT, and pet on a host of the cluster")
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CALLING).close()
    except (OSError, OverflowError) as problem:
        raise no_cluster(str(problem)) from None


def noted() -> Path:
    """Where Ray notes the address of a cluster that is begun on this host, and leaves it if that is killed."""
    folder = os.environ.get("RAY_TMPDIR") or (sys.platform.startswith("linux") and os.environ.get("TMPDIR")) or "/tmp"
    return Path(folder) / "ray" / "ray_current_cluster"


def noted_address() -> str:
    """The address that Ray would try, HOST:PORT; "": none is noted."""
    try:
        return noted().read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def no_cluster(reason: str) -> SettingsError:
    """One sentence."""
    address = os.environ.get("RAY_ADDRESS")
    if address:
        where, remedy = f"at RAY_ADDRESS {address!r}", "start one with `ray start --head`, or unset RAY_ADDRESS"
    else:  # Ray looks for one that was begun on this host, also where that was killed since
        where, remedy = "on this host", f"if it is gone, remove {noted()}, where Ray noted it, and try again"
    return SettingsError(f"no Ray cluster {where} ({reason}); {remedy}")


@contextlib.contextmanager
def marked(store: Store) -> Iterator[str]:
    """The name of a file in the store, beside the locks, by which a host knows that it sees the same store.

    Raises:
        StoreError: the store cannot be written.
    """
    store.check_writable()
    mark = store.root / LOCKS / f"cluster-{uuid.uuid4().hex}"
    with store.writable():
        mark.parent.mkdir(exist_ok=True)
        mark.touch()
    try:
        yield mark.name
    finally:
        with contextlib.suppress(OSError):
            mark.unlink()


def resources_of(settings: RuntimeSettings) -> dict[str, float]:
    """What Ray sets aside for a training: a GPU if the cluster has any, else as many cores as torch has threads, or as
    a host has: Ray waits for ever for more than that.

    Raises:
        SettingsError: no host has as many GPUs as asked for.
    """
    import ray

    hosts = [host["Resources"] for host in ray.nodes() if host["Alive"]]
    most = max(host.get("GPU", 0.0) for host in hosts)
    gpus = settings.task_gpus
    if gpus is None:
        gpus = float(settings.device != "cpu" and most > 0)
    if gpus > most:
        raise SettingsError(
            f"runtime.task_gpus is {gpus:g}, and no host of the Ray cluster has more than {most:g}; "
            "lower it, or leave it out"
        )
    cores = max(host.get("CPU", 0.0) for host in hosts)
    return {"num_gpus": gpus, "num_cpus": min(1 if gpus else torch.get_num_threads(), cores)}
