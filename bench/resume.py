"""What it costs to be able to go on, and whether one does: RoBERTa-large's shape, AG News lengths.

    python bench/resume.py [--steps 1000]

A member is trained four times on the same batches: undisturbed, twice; saved as often as `checkpoint.LEAST_RATIO` lets
it be; and stopped half way, saved, and gone on with by a new trainer and model. Prints the seconds and size of a
checkpoint, what saving took of the time, its share at the default interval, and how far the weights and losses of each
training are from those of the first.
"""

import contextlib
import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import WORDS, build_large, draw_lengths, random_batches, random_rows, start, wait

from pet.config.schema import FinetuneSettings, RuntimeSettings
from pet.modeling import packing
from pet.modeling.backbones import MaskedLM
from pet.pipeline.members.batches import cloze_losses
from pet.store import interrupts
from pet.training.checkpoint import Checkpoint, CheckpointManager, train_saved
from pet.training.device import open_runtime
from pet.training.scoring import computing_copy, refresh
from pet.training.trainer import Trainer

DEFAULT_MINUTES = RuntimeSettings().checkpoint_minutes


def main() -> None:
    """Measure and print."""
    options, device, _ = start(__doc__, steps=1000)
    assert WORDS
    runtime = dataclasses.replace(open_runtime(RuntimeSettings()), compile=False)
    settings = FinetuneSettings(steps=options.steps)
    rows = random_rows(draw_lengths(4096))

    def go(folder: Path, minutes: float, stop_at: int | None = None) -> dict[str, Any]:
        """One training in a process's place: a model, a trainer and a saver of its own."""
        torch.manual_seed(0)
        cloze = MaskedLM(build_large(device)).eval()
        compute_model = computing_copy(cloze, runtime)
        layout = packing.training_layout(cloze.lm, runtime.captures)
        master = None if compute_model is cloze else cloze
        trainer = Trainer(
            compute_model,
            settings,
            lambda given: cloze_losses(compute_model, given, settings.alpha),
            runtime,
            master=master,
        )
        checkpoint = Checkpoint(folder, cloze, trainer.optimizer, runtime, ["member"])
        checkpoints = Watched(checkpoint, minutes, "member", lambda line: print(f"  {line}", flush=True))
        checkpoints.stop_at = stop_at

        def batches(done: int) -> Any:
            found = random_batches(rows, settings, layout, device)
            for _ in range(done * settings.accumulation):
                next(found)
            return found

        torch.manual_seed(1)
        wait(device)
        begun = time.perf_counter()
        report = None
        with contextlib.suppress(interrupts.Stopped):
            (report,) = train_saved(
                trainer, checkpoints, batches, "member", restored=lambda: refresh(compute_model, cloze)
            )
        wait(device)
        weights = torch.cat([one.detach().flatten() for one in cloze.parameters()]).cpu()
        return {"seconds": time.perf_counter() - begun, "saver": checkpoints, "weights": weights, "report": report}

    with tempfile.TemporaryDirectory() as base, interrupts.heeded():
        folder = Path(base)
        whole = go(folder / "whole", 1e9)
        again = go(folder / "again", 1e9)
        saved = go(folder / "saved", 1e-9)
        go(folder / "stopped", 1e9, stop_at=options.steps // 2)
        gone_on = go(folder / "stopped", 1e9)
        size = sum(path.stat().st_size for path in (folder / "saved").iterdir())
    costs = saved["saver"].costs
    cost = float(np.mean(costs))
    waited = saved["saver"].waited
    share, default = sum(costs) / saved["seconds"], (cost + waited) / (60 * DEFAULT_MINUTES + cost + waited)
    print(f"a checkpoint: {size / 1e9:.2f} GB, the training waits {cost:.2f} s; {len(costs)} of them", end=" ")
    print(f"in {saved['seconds']:.1f} s, and {waited:.2f} s for the last to be written")
    print(f"saved as often as may be: {100 * share:.2f} % of the time")
    print(f"undisturbed {whole['seconds']:.1f} and {again['seconds']:.1f} s")
    print(f"at the default interval of {DEFAULT_MINUTES:g} minutes: {100 * default:.2f} % of the time")
    for name, one in (("undisturbed again", again), ("saved", saved), ("stopped and gone on with", gone_on)):
        apart = float((one["weights"] - whole["weights"]).abs().max())
        same = "the same to the bit" if torch.equal(one["weights"], whole["weights"]) else f"{apart:.1e} apart"
        both = [(one["report"].losses[key], values) for key, values in whole["report"].losses.items()]
        worst = max(float(np.abs(np.asarray(mine) - np.asarray(first)).max()) for mine, first in both)
        print(f"{name}: weights {same}, losses at most {worst:.1e} apart")


class Watched(CheckpointManager):
    """A saver that remembers what each checkpoint took, and asks itself to stop."""

    stop_at: int | None = None

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.costs: list[float] = []
        self.waited = 0.0

    def save(self, state: Any) -> None:
        """And remember."""
        super().save(state)
        self.costs.append(self.cost)

    def __exit__(self, *given: object) -> None:
        """And remember."""
        begun = time.perf_counter()
        super().__exit__(*given)
        self.waited += time.perf_counter() - begun

    def after(self, step: int, state: Any, stopping: bool) -> None:
        """And ask."""
        super().after(step, state, stopping)
        if step + 1 == self.stop_at:
            interrupts.ask()


if __name__ == "__main__":
    main()
