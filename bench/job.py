"""The AG News job of the paper at RoBERTa-large's shape, as `pet run` does it: time only, weights are random.

    python bench/job.py [--method full|lora] [--pool 40000] [--test 7600] [--steps 1000] [--student-steps 5000]
    python bench/job.py --keep one
    python bench/job.py --executor ray --same-as one     members as tasks, over all GPUs of the host

The last two leave out the projection, print how busy each GPU was, and how far both made the same artifacts.

6 patterns, 3 repetitions: 18 members of 1,000 steps with 4 labelled and 12 unlabelled texts, 40,000 pool and 7,600 test
texts scored by each, a student of 5,000 steps. Texts are made-up words in the lengths of AG News. Everything is really
done, from the CSV to the published artifacts. Prints seconds a stage, and the time that `reference.py` would take by
its own rates measured here first.
"""

import argparse
import contextlib
import csv
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import LARGE, LENGTHS, PATTERN_TOKENS, WORDS, build_large, card_name, clock, draw_lengths, word_tokenizer
from reference import DistillReference, Reference

from pet.config.resolve import resolve_settings
from pet.pipeline.context import RunContext
from pet.pipeline.executors.ray import raised, task_spec
from pet.pipeline.executors.ray_cluster import open_cluster
from pet.pipeline.runner import run_stage
from pet.pipeline.score_files import read_scores
from pet.store.store import Store
from pet.training.device import open_runtime
from pet.training.reporter import Silent

LABELS = ["World", "Sports", "Business", "Tech"]


class Printed(Silent):
    """Stage messages on the terminal, with the time."""

    def say(self, message: str) -> None:
        """One line."""
        print(time.strftime("%H:%M:%S"), message, flush=True)


def main() -> None:
    """Build, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", choices=["full", "lora"], default="full")
    for name, default in (("pool", 40_000), ("test", 7_600), ("steps", 1000), ("student-steps", 5000), ("members", 18)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--executor", choices=["local", "ray"], default="local")
    parser.add_argument("--task-gpus", type=float, help="of a Ray task; 0.5: two trainings at a time on a GPU")
    parser.add_argument("--keep", type=Path, help="leave the store in this folder; nothing is projected")
    parser.add_argument("--same-as", type=Path, help="compare with what a run has left in this folder")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    if options.tiny:
        LARGE.update(num_hidden_layers=2, hidden_size=64, num_attention_heads=2, intermediate_size=128)
    device = open_runtime(resolve_settings().runtime).device
    print(f"{card_name(device)}, torch {torch.__version__}, method {options.method}", flush=True)
    projected = 0.0 if options.keep or options.executor == "ray" else project(options, device)
    with tempfile.TemporaryDirectory() as folder:
        place = options.keep or Path(folder)
        seconds = run(options, place)
        if options.same_as:
            compare(*(Store(one / "store") for one in (options.same_as, place)))
    total = sum(seconds.values())
    print(f"all        {total:7.1f} s = {total / 60:.1f} min")
    if projected:
        print(f"reference by its rates {projected / 3600:.2f} h, {projected / total:.1f} times as long")


def project(options: Any, device: torch.device) -> float:
    """Seconds that the reference would take: measured steps and texts a second, times their numbers."""
    lengths, rng = draw_lengths(400), np.random.default_rng(0)
    reference = Reference(build_large(device), WORDS)
    step = clock(lambda: reference.train_step(lengths[:16], rng), device, 5)
    text = clock(lambda: reference.score(lengths, rng), device, 1) / len(lengths)
    student = DistillReference(build_large(device, "RobertaForSequenceClassification"))
    distill = clock(lambda: student.train_step(lengths[:16], rng), device, 5)
    texts = options.members * (options.pool + options.test)
    print(
        f"reference: {1000 * step:.1f} ms/step, {1 / text:.0f} texts/s, student {1000 * distill:.1f} ms/step",
        flush=True,
    )
    return options.members * options.steps * step + texts * text + options.student_steps * distill


def run(options: Any, folder: Path) -> dict[str, float]:
    """Seconds of each stage, which are printed with what the GPUs did meanwhile."""
    seconds = {}
    write_model(folder / "model")
    write_texts(folder / "train.csv", options.pool + 100)
    write_texts(folder / "test.csv", options.test)
    settings = resolve_settings(
        None,
        {
            "task": {"name": "agnews", "data": str(folder)},
            "model": {"name": str(folder / "model"), "max_length": 256},
            "data": {"train_examples": 10, "pool_per_label": options.pool // len(LABELS)},
            "finetune": {"steps": options.steps, "method": options.method, "repetitions": options.members // 6},
            "distill": {"steps": options.student_steps},
            "runtime": {"task_gpus": options.task_gpus},
        },
    )
    ctx = RunContext(settings, Store(folder / "store"), open_runtime(settings.runtime, Printed()))
    with watched(folder / "busy.csv") as busy:
        for stage, (begun, ended) in walk_by(options.executor, ctx).items():
            seconds[stage] = ended - begun
            half = (begun + ended) / 2
            print(f"{stage:10} {ended - begun:7.1f} s   {busy(begun, ended)}; in its second half {busy(half, ended)}")
    return seconds


def walk_by(executor: str, ctx: RunContext) -> dict[str, tuple[float, float]]:
    """When each stage began and ended, in the walk that `pet run` makes with this executor."""
    if executor == "local":
        return walk(ctx)
    begun = time.time()
    with open_cluster(ctx.settings.runtime, ctx.store) as executor:
        opened = time.time()
        executor.get_ready(ctx)
        with executor.run([task_spec(ctx, walk, walks=True)], ctx.runtime.reporter) as results:
            ((_, found),) = results
    times = raised(found)
    return {"cluster": (begun, opened), "walk": (opened, times["prepare"][0]), **times}


def walk(ctx: RunContext) -> dict[str, tuple[float, float]]:
    """When each stage began and ended."""
    times = {}
    for stage in ("prepare", "finetune", "label", "distill"):
        begun = time.time()
        run_stage(ctx, stage)
        times[stage] = (begun, time.time())
    return times


@contextlib.contextmanager
def watched(path: Path) -> Iterator[Callable[[float, float], str]]:
    """What tells how busy each GPU was between two times: nvidia-smi looks four times a second."""
    if shutil.which("nvidia-smi") is None:
        yield lambda begun, ended: "no GPU"
        return
    command = "nvidia-smi --query-gpu=timestamp,index,utilization.gpu --format=csv,noheader,nounits -lms 250"
    with path.open("w") as file:
        process = subprocess.Popen(command.split(), stdout=file)

        def busy(begun: float, ended: float) -> str:
            found: dict[str, list[float]] = {}
            for line in path.read_text().splitlines()[:-1]:  # the last one may not be whole
                when, number, percent = line.split(", ")
                if begun <= datetime.strptime(when, "%Y/%m/%d %H:%M:%S.%f").timestamp() <= ended:
                    found.setdefault(number, []).append(float(percent))
            return ", ".join(f"GPU {one}: {np.mean(found[one]):.0f} %" for one in sorted(found))

        try:
            yield busy
        finally:
            process.terminate()
            process.wait()


def compare(*stores: Store) -> None:
    """How far two stores hold the same artifacts; of those that differ which files do, and how far apart scores are."""
    first, second = (
        {
            path.parent.relative_to(one.root): {
                each["path"]: each["sha256"] for each in json.loads(path.read_text())["files"]
            }
            for path in one.root.glob("*/[!.]*/manifest.json")
        }
        for one in stores
    )
    for stage in sorted({name.parent.name for name in first | second}):
        names = [name for name in sorted(first | second) if name.parent.name == stage]
        same = [name for name in names if first.get(name) == second.get(name)]
        print(f"{stage}: of {len(names)} artifacts {len(same)} are the same to the last byte")
        for name in names:
            if name not in same and name in first and name in second:
                files = [path for path, digest in first[name].items() if second[name].get(path) != digest]
                print(f"  {name.name}: {', '.join(files)}")
                if "scores.safetensors" in files:
                    print(f"    {apart(*(read_scores(one.open(one.root / name)) for one in stores))}")


def apart(first: dict[str, Any], second: dict[str, Any]) -> str:
    """How far two members' scores are from each other."""
    most = max(np.abs(first[split] - second[split]).max() for split in first)
    others = sum(int((first[split].argmax(1) != second[split].argmax(1)).sum()) for split in first)
    return f"scores {most:.1e} apart at most; {others:,} texts have another label"


def write_model(folder: Path) -> None:
    """A random model of the shape, and a tokenizer of made-up words with AG News's label words."""
    words = [*LABELS, "News", "Category", *":()[]-", *(f"w{number}" for number in range(50_000))]
    word_tokenizer(words).save_pretrained(folder)
    build_large(torch.device("cpu")).save_pretrained(folder)


def write_texts(path: Path, count: int) -> None:
    """Labelled texts in AG News's format: a headline of 7 words and a body, together as long as AG News's."""
    assert LENGTHS.is_file()
    rng = np.random.default_rng(count)
    with path.open("w", newline="") as file:
        rows = csv.writer(file, quoting=csv.QUOTE_ALL)
        for number, length in enumerate(draw_lengths(count, seed=count) - PATTERN_TOKENS):
            words = [f"w{word}" for word in rng.integers(0, 50_000, size=max(8, int(length)))]
            rows.writerow([number % len(LABELS) + 1, " ".join(words[:7]), " ".join(words[7:])])


if __name__ == "__main__":
    main()
