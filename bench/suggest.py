"""Are twenty labels worth more where the members disagree than at random? The demo task, per seed:

    python bench/suggest.py [--seeds 0,1,2,3,4] [--rounds 2] [--count 10] [--store FOLDER]

From one run with 10 labels two go on: each round, `pet suggest` names `--count` pool texts by one method, their hidden
labels are filled in (the oracle), and `pet run` is repeated with all files so far. Printed per seed: accuracy of
ensemble and student on the same test set, after 10 labels and after each round, and how many of the texts have each
label. A run is in the store once it is made, so the script goes on from where it was stopped.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from pet.cli.suggest import METHODS
from pet.pipeline import drawn_texts
from pet.pipeline.runs import Run, open_run
from pet.store.store import Store
from pet.tools.inference.suggest import suggest

HERE = Path(__file__).parents[1]


def main() -> None:
    """Compare, print a line a run and the differences."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--store", type=Path, help="folder that keeps the runs; default: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = options.store or Path(folder) / "runs"
        gains = []
        for seed in map(int, options.seeds.split(",")):
            first = walk(store, seed, [])
            print(f"seed {seed}  10 labels {scores_of(first)}", flush=True)
            ends = {
                method: label_on(store, seed, first, method, options.rounds, options.count, Path(folder))
                for method in METHODS
            }
            gains.append({name: ends["disagreement"][name] - ends["random"][name] for name in ends["random"]})
        for name in gains[0]:
            print(f"{name}, disagreement less random: {', '.join(f'{one[name]:+.1f}' for one in gains)}")


def label_on(store: Path, seed: int, run: Run, method: str, rounds: int, count: int, folder: Path) -> dict[str, float]:
    """Label `count` texts by a method so many times, each time from the run before; accuracies at the end."""
    files: list[Path] = []
    for number in range(1, rounds + 1):
        files.append(folder / f"{method}-{seed}-{number}.csv")
        counts = fill_in(files[-1], run, method, seed, count)
        run = walk(store, seed, files)
        shown = ", ".join(f"{name} {counts[name]}" for name in run.labels)
        print(f"seed {seed}  {method:12} round {number} {scores_of(run)}; labelled: {shown}", flush=True)
    return accuracies(run)


def fill_in(path: Path, run: Run, method: str, seed: int, count: int) -> Counter[str]:
    """The suggestions of a run with their hidden labels."""
    gold = dict(drawn_texts.load_pool_gold(run.prepared))
    rows = [(name, gold[name] or "") for name in suggest(run, count, method, seed).texts.ids]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("id", "label"), *rows])
    return Counter(label for _, label in rows)


def walk(store: Path, seed: int, files: list[Path]) -> Run:
    """`pet run` of the demo with these files."""
    given = [word for file in files for word in ("--train-file", str(file))]
    command = [sys.executable, "-m", "pet", "run", "--store", str(store), "--seed", str(seed), *given]
    path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{done.stderr}{' '.join(command)} ended with status {done.returncode}")
    made = next(line.removeprefix("run: ") for line in done.stdout.splitlines() if line.startswith("run: "))
    return open_run(made, Store(store))


def accuracies(run: Run) -> dict[str, float]:
    """Percent of the test texts."""
    found: dict[str, Any] = json.loads((run.path / "summary.json").read_text(encoding="utf-8"))["scores"]
    return {name: found[name]["value"] for name in ("supervised", "ensemble", "student")}


def scores_of(run: Run) -> str:
    """Accuracies as text."""
    return ", ".join(f"{name} {value:.1f}" for name, value in accuracies(run).items())


if __name__ == "__main__":
    main()
