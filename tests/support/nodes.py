"""A Ray cluster of two hosts, as two network namespaces of this machine, that loses a worker and then a host. No test:
it needs root, `ip` and some five minutes (docs/explanation/reliability.md).

    PYTHONPATH=tests python -m support.nodes FOLDER
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from support.killing import count, differences, published, taken_by, unpublished
from support.rows import killable

HOSTS = {"pet1": "10.77.0.1", "pet2": "10.77.0.2"}
ADDRESS = "10.77.0.1:6399"
ENV = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "RAY_AUTH_MODE": "token", "RAY_ADDRESS": ADDRESS}
TABLE = ("--sizes", "6,12", "--seeds", "0,1", "--methods", "supervised,pet,ipet")
LATER = 15
"""Seconds between the loss of the worker and that of its host."""


def on(host: str, *command: object, env: Mapping[str, str] = ENV) -> list[str]:
    """A command line on one of the hosts."""
    named = [f"{name}={value}" for name, value in env.items()]
    return ["ip", "netns", "exec", host, "env", *named, *map(str, command)]


def lay_wire() -> None:
    """Two hosts and what connects them."""
    lines = [f"netns add {host}" for host in HOSTS] + ["link add petv1 type veth peer name petv2"]
    for number, (host, address) in enumerate(HOSTS.items(), 1):
        lines.append(f"link set petv{number} netns {host}")
        lines += [f"-n {host} addr add {address}/24 dev petv{number}"]
        lines += [f"-n {host} link set {one} up" for one in (f"petv{number}", "lo")]
    for line in lines:
        subprocess.run(["ip", *line.split()], check=True)


def processes_of(host: str) -> list[int]:
    """All processes on a host."""
    return [int(one) for one in subprocess.run(["ip", "netns", "pids", host], capture_output=True).stdout.split()]


def lose_a_worker(store: Path, table: "subprocess.Popen[bytes]") -> str:
    """Kill a worker of the second host in the middle of a member; which."""
    while table.poll() is None:
        for pid in processes_of("pet2"):
            mine = {stage: one for stage, one in taken_by(pid, store).items() if stage == "finetune"}
            if (
                mine
                and unpublished(mine, store)
                and any(store.glob(f"finetune/.draft-{mine['finetune']}/.checkpoint/*"))
            ):
                os.kill(pid, signal.SIGKILL)
                return f"worker {pid}, at finetune {mine['finetune']}"
        time.sleep(0.01)
    return "none: the table was done before"


def main(folder: Path) -> None:
    """Both, and what came of it."""
    killable(folder)
    pipeline = folder / "ipet" / "pipeline.yaml"
    pet = [sys.executable, "-m", "pet", "table", pipeline, *TABLE, "--set=adapt.enabled=false"]
    begun = time.monotonic()
    alone = subprocess.run(
        [*map(str, pet), "--store", folder / "alone", "--out", folder / "out1"], env=os.environ | ENV
    )
    said = {"one process": f"{alone.returncode}, {time.monotonic() - begun:.0f} s"}
    subprocess.run(["ray", "get-auth-token", "--generate"], check=True, capture_output=True)
    lay_wire()
    common = ("--num-cpus=1", "--include-dashboard=false", "--disable-usage-stats")
    try:
        head = ("ray", "start", "--head", f"--node-ip-address={HOSTS['pet1']}", f"--port={ADDRESS.partition(':')[2]}")
        subprocess.run(on("pet1", *head, *common, env={**ENV, "RAY_ADDRESS": ""}), check=True)
        more = ("ray", "start", f"--address={ADDRESS}", f"--node-ip-address={HOSTS['pet2']}")
        subprocess.run(on("pet2", *more, *common[:1], common[2], env={**ENV, "RAY_ADDRESS": ""}), check=True)
        begun = time.monotonic()
        table = subprocess.Popen(
            on("pet1", *pet, "--executor=ray", "--store", folder / "two", "--out", folder / "out2")
        )
        said["lost"] = f"{lose_a_worker(folder / 'two', table)} after {time.monotonic() - begun:.0f} s"
        time.sleep(LATER)
        left = processes_of("pet2")
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        said["and then"] = f"all of {len(left)} processes of its host after {time.monotonic() - begun:.0f} s"
        said["two hosts"] = f"{table.wait()}, {time.monotonic() - begun:.0f} s"
    finally:
        for host in HOSTS:
            for pid in processes_of(host):
                os.kill(pid, signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", host])
    runs = json.loads((folder / "out2" / "pipeline" / "table.json").read_text())
    said["holes"] = str(runs["failed"])
    said["files compared"] = str(len(published(folder / "alone")))
    said["runs"] = str(count(folder / "two", "run"))
    said["differences"] = str(differences(folder / "two", folder / "alone"))
    print(json.dumps(said, indent=1))  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
