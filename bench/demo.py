"""The demo, `pet run`, in both precisions and, if told where, by another checkout: seconds, peak memory, accuracies.

    python bench/demo.py [--runs 2] [--against FOLDER]

Each run is a process of its own with an empty store; the variants take turns, so that a machine that slows down slows
all of them. Nothing else should run beside it.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parents[1]
SHOWN = ("supervised: fine-tuned", "PET ensemble", "PET student")


def main() -> None:
    """Run every variant `--runs` times, print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--against", type=Path, help="another checkout, to compare with")
    options = parser.parse_args()
    variants: list[tuple[str, Path, list[str]]] = [
        ("here, auto", HERE, []),
        ("here, fp32", HERE, ["--precision", "fp32"]),
    ]
    if options.against:
        variants.append((options.against.name, options.against.resolve(), []))
    for _ in range(options.runs):
        for name, tree, arguments in variants:
            print(f"{name:12}  {run(tree, arguments)}", flush=True)


def run(tree: Path, arguments: list[str]) -> str:
    """One run by the checkout in `tree`; what it took and came to."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pet", "run", "--store", f"{folder}/runs", *arguments]
        begun = time.perf_counter()
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        seconds = time.perf_counter() - begun
    if done.returncode:
        raise SystemExit(f"{done.stderr}{' '.join(command)} ended with status {done.returncode}")
    lines = done.stdout.splitlines()
    rows = [[part.strip() for part in line.split("│")[1:3]] for line in lines if line.startswith("│")]
    found = ", ".join(f"{name} {value}" for name, value in rows if name in SHOWN)
    memory = next(line for line in lines if "peak memory" in line).rpartition("; ")[2]
    return f"{seconds:6.1f} s  {memory}  {found}"


if __name__ == "__main__":
    main()
