"""One step of the student on soft labels: the original's loop against ours, RoBERTa-large's shape, AG News lengths.

    python bench/distillation.py [--steps 500]

16 pool texts a step. Ours is `pet.training.trainer.Trainer` with `pet.modeling.classifier` and the loss of
`pipeline/stages/distill.py`.
"""

import dataclasses

import numpy as np
import torch
from common import build_large, clock, draw_lengths, flops_per_row, flops_per_token, random_rows, show, start, wait
from reference import DistillReference

from pet.config.schema import DistillSettings, RuntimeSettings
from pet.modeling import packing
from pet.modeling.batch import send
from pet.modeling.classifier import ClassifierModel
from pet.training.compile import warm_up
from pet.training.device import open_runtime
from pet.training.losses import distillation_loss
from pet.training.schedule import endless_order
from pet.training.scoring import computing_copy
from pet.training.trainer import Trainer

BATCH = 16


def main() -> None:
    """Measure and print."""
    options, device, rate = start(__doc__, steps=500)
    lengths = draw_lengths(4096)
    model = build_large(device, "RobertaForSequenceClassification")
    flops = 3 * BATCH * lengths.mean() * flops_per_token(model.config)
    rng = np.random.default_rng(0)
    starts = iter(range(0, 4096, BATCH))
    reference_loop = DistillReference(model)

    def reference_step() -> None:
        first = next(starts)
        reference_loop.train_step(lengths[first : first + BATCH], rng)

    reference = clock(reference_step, device, 10)
    show("reference", reference, reference, flops, rate)
    model.zero_grad(set_to_none=True)

    rows, targets = random_rows(lengths), torch.from_numpy(rng.normal(size=(4096, 4))).float()
    settings = DistillSettings(steps=options.steps)
    student = ClassifierModel(model)
    for name, compiled in (("captured", False), ("captured, compiled", True)):
        runtime = dataclasses.replace(open_runtime(RuntimeSettings()), compile=compiled)
        compute_model = computing_copy(student, runtime)
        layout = packing.training_layout(model, runtime.captures)
        warm_up(compute_model, layout.padded, training=True)

        def draw(layout=layout):
            for chosen in endless_order(len(rows), BATCH, np.random.default_rng(0)):
                yield rows.batch(chosen, layout).to(device), send(targets[torch.from_numpy(chosen)], device)

        trainer = Trainer(
            compute_model,
            settings,
            lambda given: {"loss": distillation_loss(compute_model.logits(given[0]), given[1], settings.temperature)},  # noqa: B023
            runtime,
            master=None if compute_model is student else student,
        )
        batches = draw()
        trainer.run(batches, "warm-up")
        wait(device)
        seconds = clock(lambda: trainer.run(batches, "measured"), device, 1, warmup=0) / options.steps  # noqa: B023
        show(name, seconds, reference, 3 * BATCH * flops_per_row(model.config, lengths.mean()), rate)


if __name__ == "__main__":
    main()
