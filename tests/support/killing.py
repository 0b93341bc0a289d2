"""Runs of `pet` that are killed on their way, again and again, and what is left of them. No test itself: `test_kills`
runs it for a short while, `PYTHONPATH=tests python -m support.killing FOLDER --kills 200` for a longer one
(docs/explanation/reliability.md).

Everything is imported once; each run is a fork, so that one costs what it computes and no more.
"""

import argparse
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

STAGES = (
    "prepare",
    "corpus",
    "pretrain",
    "adapt",
    "finetune",
    "label",
    "draw",
    "distill",
    "baseline",
    "evaluate",
    "run",
)

LONG = {"prepare", "pretrain", "adapt", "finetune", "distill", "baseline"}
"""Stages that take long enough to be hit; it goes on until each was."""

PER_STAGE = 2
"""Kills at each stage, at the most, before a run may go on to the next."""

VOLATILE = {"seconds", "created", "digest", "files", "peak_memory_bytes", "peak_gpu_memory_bytes", "code"}
"""Of a manifest: what differs between two runs that made the same."""

TOLD = {
    "seconds",
    "tokens_per_second",
    "flops",
    "matmul_rate",
    "share_of_matmul",
    "cost",
    "artifacts",
    "peak_memory_bytes",
}
"""Of a JSON file: times, memory and places."""


TIMES = {"events.jsonl", "summary.md"}
"""Files that tell times throughout."""


def start(arguments: Sequence[object], log: Path) -> int:
    """`pet ARGUMENTS` in a process of its own, its words into a file; the process's number."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        with log.open("ab", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        from pet.cli import main

        sys.argv = ["pet", *map(str, arguments)]
        main(standalone_mode=True)
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        os._exit(code)


def finish(child: int) -> int:
    """The exit code of a process, negative if a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def has_ended(child: int) -> bool:
    """Whether it has; it is still to be waited for."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def kill_in(child: int, store: Path, stage: str, delay: float, at_work: Counter[str]) -> bool:
    """Kill a run some time after it has begun with an artifact of a stage; whether it lived to see that."""
    while not has_ended(child):
        if stage in taken_by(child, store):
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
            at_work.update(unpublished(taken_by(child, store), store) or {"between two"})
            return True
        time.sleep(0.0005)
    return False


def taken_by(child: int, store: Path) -> dict[str, str]:
    """The stages of which a process has taken an identity, and the last such identity of each."""
    found = {}
    for path in store.glob(".locks/*"):
        if path.read_text(encoding="utf-8").startswith(f"process {child} "):
            stage, _, identity = path.name.rpartition("-")
            found[stage] = identity
    return found


def unpublished(taken: dict[str, str], store: Path) -> set[str]:
    """The stages of those that are not published yet."""
    return {stage for stage, identity in taken.items() if not any(store.glob(f"{stage}/[!.]*-{identity}"))}


def published(store: Path) -> dict[str, Any]:
    """Every file of every artifact by its name in the store: bytes, or, where those tell times or places, what is left
    without them."""
    found: dict[str, Any] = {}
    for path in sorted(store.glob("[!.]*/[!.]*/**/*")):
        name = path.relative_to(store).as_posix()
        if (
            not path.is_file()
            or name.startswith("logs/")
            or path.suffix in (".jsonl", ".md")
            or path.name == "settings.yaml"
        ):
            continue
        if path.suffix != ".json":
            found[name] = path.read_bytes()
            continue
        content = json.loads(path.read_text(encoding="utf-8"))
        found[name] = without(content, VOLATILE if path.name == "manifest.json" else TOLD)
    return found


def count(store: Path, stage: str) -> int:
    """How many artifacts of a stage there are."""
    return len(list(store.glob(f"{stage}/[!.]*/manifest.json")))


def without(content: Any, names: set[str]) -> Any:
    """JSON without the values of some names."""
    if isinstance(content, dict):
        return {key: without(value, names) for key, value in content.items() if key not in names}
    return [without(one, names) for one in content] if isinstance(content, list) else content


def differences(store: Path, undisturbed: Path) -> list[str]:
    """What is not as an undisturbed run left it: artifacts too many, too few or different, and what was left behind."""
    mine, whole = published(store), published(undisturbed)
    said = [f"missing: {name}" for name in sorted(whole.keys() - mine.keys())]
    said += [f"too many: {name}" for name in sorted(mine.keys() - whole.keys())]
    said += [f"different: {name}" for name in sorted(mine.keys() & whole.keys()) if mine[name] != whole[name]]
    hidden = [path for path in store.glob("*/.*") if path.parent.name != ".locks"]
    return said + [f"left behind: {path.relative_to(store)}" for path in sorted(hidden)]


def run_kills(commands: Sequence[Sequence[object]], folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill runs of these commands `kills` times in all, or more, and let each end at last; what came of it."""
    rng = random.Random(seed)
    at_work: Counter[str] = Counter()
    problems: list[str] = []
    done = finished = number = 0
    while done < kills or finished < len(commands) or (LONG - set(at_work) and done < 4 * kills):
        command = commands[number % len(commands)]
        whole, store = folder / f"whole-{number % len(commands)}", folder / f"killed-{number}"
        log = folder / f"killed-{number}.log"
        if not whole.exists() and finish(start([*command, "--store", whole], folder / "whole.log")):
            problems.append(f"undisturbed: {(folder / 'whole.log').read_text()[-2000:]}")
            break
        for stage in (stage for stage in STAGES for _ in range(PER_STAGE)):
            if count(store, stage) == count(whole, stage):
                continue
            child = start([*command, "--store", store], log)
            done += kill_in(child, store, stage, rng.choice((0.0, 0.02, 0.5)) * rng.random(), at_work)
            finish(child)
        code = finish(start([*command, "--store", store], log))
        finished += 1
        if code:
            problems.append(f"{store.name} ended with {code}: {log.read_text()[-2000:]}")
        problems += [f"{store.name}: {one}" for one in differences(store, whole)]
        number += 1
    return {"kills": done, "runs": finished, "at_work": dict(at_work), "problems": problems}


def crowd(command: Sequence[object], whole: Path, size: int) -> dict[str, Any]:
    """So many processes that are given one command and one store at the same time: their exit codes, how often each
    artifact was made, by its line in the logs, and what is not as one process leaves it (`whole`)."""
    store = whole.with_name(f"crowd-{whole.name}-{size}")
    if not whole.exists():
        finish(start([*command, "--store", whole], whole.with_name("whole.log")))
    logs = [store.with_name(f"{store.name}-{number}.log") for number in range(size)]
    codes = [finish(child) for child in [start([*command, "--store", store], log) for log in logs]]
    lines = (line for log in logs for line in log.read_text(encoding="utf-8").splitlines())
    made = Counter(line.partition(": ")[0] for line in lines if line.startswith("finetune ") and "{mask}" in line)
    return {"codes": codes, "made": dict(made), "problems": differences(store, whole)}


if __name__ == "__main__":
    import pandas  # noqa: F401 - what a run imports on its way is there before it is forked
    import sklearn.linear_model  # noqa: F401

    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--crowd", type=int, nargs="*", default=[])
    given = parser.parse_args()
    from support.rows import killable

    commands = killable(given.folder)
    answer: dict[str, Any] = run_kills(commands, given.folder, given.kills, given.seed) if given.kills else {}
    answer["crowds"] = {
        f"{name}, {size}": crowd(commands[number], given.folder / f"whole-{number}", size)
        for number, name in enumerate(("ipet", "lora"))
        for size in given.crowd
    }
    print(json.dumps(answer, indent=1))  # noqa: T201
