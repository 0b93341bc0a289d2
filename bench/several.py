"""One GPU against several of the same host, RoBERTa-large's shape, AG News lengths: labelling and the student.

    python bench/several.py --out FOLDER [--texts 120000] [--steps 500]
    torchrun --nproc_per_node 2 bench/several.py --out FOLDER
    python bench/several.py --out FOLDER --compare

Each call measures and writes what it computed; the last one prints the ratios, and how far the scores of the pool and
the losses of the student are apart. Labelling is `pet.training.scoring.score_rows`; the student's step is that of
`pet.pipeline.student`, of a global batch of 16 and of 64 texts. Without dropout, whose masks differ between ranks.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import LARGE, WORDS, build_large, card_name, draw_lengths, random_rows, wait

from pet.config.schema import DistillSettings, RuntimeSettings
from pet.modeling import packing
from pet.modeling.backbones import MaskedLM
from pet.modeling.batch import Batch, send
from pet.modeling.classifier import ClassifierModel
from pet.modeling.verbalizers import Verbalizer
from pet.pipeline.student import layout_of_all
from pet.training.compile import warm_up
from pet.training.device import Runtime, open_runtime
from pet.training.losses import distillation_loss
from pet.training.schedule import endless_order
from pet.training.scoring import computing_copy, score_rows
from pet.training.trainer import Trainer

BATCHES = (16, 64)


def main() -> None:
    """Measure or compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=120_001, help="odd, so that they do not divide")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    LARGE.update(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    if options.tiny:
        LARGE.update(num_hidden_layers=2, hidden_size=64, num_attention_heads=2, intermediate_size=128)
    compare(options.out) if options.compare else measure(options)


def measure(options: Any) -> None:
    """Both, on the ranks there are."""
    runtime = open_runtime(RuntimeSettings())
    ranks = runtime.ranks
    asked = count_rows()
    seconds, scores = label(options.texts, runtime)
    found: dict[str, Any] = {"card": card_name(runtime.device), "ranks": ranks.size, "labelling": seconds}
    losses = {}
    for batch in BATCHES:
        took, losses[batch] = train(batch, options.steps, runtime)
        found[f"student {batch}"] = took
    times = torch.zeros(options.texts, dtype=torch.int64)
    np.add.at(times.numpy(), np.asarray(asked), 1)
    if ranks.size > 1:
        torch.distributed.all_reduce(times, group=ranks.host)
    found["rows scored twice or never"] = int((times != 2).sum())  # once to warm up, once measured
    if ranks.is_main:
        options.out.mkdir(parents=True, exist_ok=True)
        print(json.dumps(found), flush=True)
        (options.out / f"{ranks.size}.json").write_text(json.dumps(found))
        arrays = {f"losses{batch}": np.asarray(one) for batch, one in losses.items()}
        np.savez(options.out / f"{ranks.size}.npz", scores=scores, **arrays)
    ranks.leave()


def count_rows() -> list[int]:
    """A list that grows by the numbers of the rows that this rank scores."""
    from pet.modeling.prompts import EncodedTexts

    asked: list[int] = []
    batch = EncodedTexts.batch

    def counted(rows: EncodedTexts, chosen: Any, layout: Any) -> Batch:
        if counting[0]:
            asked.extend(int(one) for one in chosen)
        return batch(rows, chosen, layout)

    EncodedTexts.batch = counted  # type: ignore[method-assign]
    return asked


counting = [True]
"""Whether rows are counted: those that are scored, not those that are trained on."""


def label(texts: int, runtime: Runtime) -> tuple[float, Any]:
    """Seconds of scoring so many rows, and their scores."""
    counting[0] = True
    rows = random_rows(draw_lengths(texts))
    words = Verbalizer(torch.tensor(WORDS), torch.eye(len(WORDS))).to(runtime.device)
    scorer = computing_copy(MaskedLM(build_large(runtime.device)).eval(), runtime)
    layout = packing.scoring_layout(scorer.lm)

    def run() -> Any:
        return score_rows(lambda batch: scorer.label_scores(batch, words), rows, layout, runtime, "texts")

    run()
    wait(runtime.device)
    runtime.ranks.barrier()
    begun = time.perf_counter()
    scores = run()
    return time.perf_counter() - begun, scores


def train(batch: int, steps: int, runtime: Runtime) -> tuple[float, list[float]]:
    """Seconds of so many steps of the student, and the losses on the way."""
    counting[0] = False
    ranks, rng = runtime.ranks, np.random.default_rng(0)
    model = build_large(runtime.device, "RobertaForSequenceClassification")
    rows, targets = random_rows(draw_lengths(4096)), torch.from_numpy(rng.normal(size=(4096, 4))).float()
    settings = DistillSettings(steps=steps, batch=batch)
    student = ClassifierModel(model)
    compute_model = computing_copy(student, runtime)
    layout = packing.training_layout(model, runtime.captures)
    warm_up(compute_model, layout.padded, training=True)

    def draw() -> Any:
        for chosen in endless_order(len(rows), batch, np.random.default_rng(0)):
            mine, of_all = chosen[ranks.own(len(chosen))], layout
            if ranks.size > 1:
                of_all = layout_of_all(rows.lengths(chosen), layout, ranks)
            yield send((rows.batch(mine, of_all), targets[torch.from_numpy(mine)]), runtime.device)

    def losses(given: Any) -> dict[str, torch.Tensor]:
        found = distillation_loss(compute_model.logits(given[0]), given[1], settings.temperature)
        return {"loss": found if ranks.size == 1 else found * ranks.share(batch)}

    start = [one.detach().clone() for one in student.parameters()]
    trainer = Trainer(compute_model, settings, losses, runtime, master=None if compute_model is student else student)
    trainer.run(draw(), "warm-up", steps=min(steps, 150))
    with torch.no_grad():
        for kept, used, first in zip(student.parameters(), compute_model.parameters(), start, strict=True):
            kept.copy_(first)
            used.copy_(first)
    wait(runtime.device)
    ranks.barrier()
    begun = time.perf_counter()
    (report,) = trainer.run(draw(), "measured")
    wait(runtime.device)
    return time.perf_counter() - begun, report.losses["loss"]


def compare(out: Path) -> None:
    """One GPU against each other number."""
    alone, scores = json.loads((out / "1.json").read_text()), np.load(out / "1.npz")
    for path in sorted(out.glob("[2-9].json")):
        several, theirs = json.loads(path.read_text()), np.load(path.with_suffix(".npz"))
        size = several["ranks"]
        ratio = alone["labelling"] / several["labelling"]
        mine, other = scores["scores"], theirs["scores"]
        spread = float(np.abs(mine).max())
        print(
            f"{size} x {several['card']}: labelling {alone['labelling']:.2f} s -> {several['labelling']:.2f} s, ",
            end="",
        )
        print(f"{ratio:.2f} times, efficiency {100 * ratio / size:.1f} %; ", end="")
        print(f"scored twice or never: {several['rows scored twice or never']}; ", end="")
        print(f"largest difference {np.abs(mine - other).max():.2e} of scores up to {spread:.2f}, ", end="")
        print(f"another label: {int((mine.argmax(1) != other.argmax(1)).sum())} of {len(mine):,}")
        for batch in BATCHES:
            one, two = scores[f"losses{batch}"], theirs[f"losses{batch}"]
            mine, other = alone[f"student {batch}"], several[f"student {batch}"]
            print(f"  student, {batch} texts a step: {mine:.2f} s -> {other:.2f} s, {mine / other:.2f} times; ", end="")
            print(f"losses {one[0]:.4f} to {one[-1]:.4f}, largest difference {np.abs(one - two).max():.1e}")


if __name__ == "__main__":
    main()
