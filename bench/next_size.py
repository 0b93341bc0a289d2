"""What an hour would make of the recipe of `mini` at RoBERTa-base's shape: three trainings, their losses extrapolated.

    python bench/next_size.py CORPUS [--seconds 60]

From random weights, with the words of mini-encoder (30,522 of the 50,265 rows). A short training shows the rate; then
as many steps as fit into --seconds, twice and four times as many. The loss in D tokens is told twice: with a floor,
E + (A / D)^b through all three, and without one, through the last two. Both take it that the text has no end.
"""

import argparse
import math
import tempfile
from pathlib import Path
from typing import Any

import transformers
from pretraining import SHAPES

from pet.config.resolve import resolve_pretraining
from pet.config.schema import ModelSettings
from pet.modeling import loading
from pet.pipeline.stages import pretrain
from pet.store.files import read_json
from pet.store.store import Store
from pet.training.device import open_runtime, seed_everything

RECIPE: dict[str, Any] = {
    "length": 128,
    "blocks": 512,
    "mask_probability": 0.3,
    "learning_rate": 5e-4,
    "warmup_steps": 200,
}
"""Of `pipelines/mini.yaml`, what makes sense from random weights; the rate is the usual one of this size."""

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
HOUR, MACHINE = 3600, 8


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", help="text file, one document a line")
    parser.add_argument("--seconds", type=float, default=60, help="of the first of the three")
    parser.add_argument("--tiny", action="store_true", help="a model so small that a CPU shows whether this runs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        save_random(Path(folder) / "base", options.tiny)
        recipe = RECIPE | ({"blocks": 8, "held_out_blocks": 16, "warmup_steps": 2} if options.tiny else {})
        least, losses = int(recipe["warmup_steps"]) + 1, []
        rate = train(Path(folder) / "base", options.corpus, recipe, least)["rate"]
        steps = max(least, int(options.seconds * rate / (recipe["blocks"] * recipe["length"])))
        for times in (1, 2, 4):
            found = train(Path(folder) / "base", options.corpus, recipe, times * steps)
            print(f"{found['tokens']:,} tokens: loss {found['loss']:.3f}, {found['rate']:,.0f} tokens/s", flush=True)
            losses.append((found["tokens"], found["loss"]))
        hour = found["rate"] * HOUR
    for name, tokens in ((f"one card, {hour:,.0f}", hour), (f"eight, at most {hour * MACHINE:,.0f}", hour * MACHINE)):
        floored, bare = extrapolate(losses, tokens)
        print(f"an hour on {name} tokens: loss {floored:.2f} with a floor, {bare:.2f} without")


def save_random(folder: Path, tiny: bool) -> None:
    """A model and its tokenizer."""
    seed_everything(0)
    tokenizer = loading.load_tokenizer(ModelSettings(name="mini-encoder"))
    shape = SHAPES["roberta-base"] | (TINY if tiny else {}) | {"pad_token_id": tokenizer.pad_token_id}
    config = transformers.AutoConfig.for_model(**shape)
    transformers.AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train(base: Path, corpus: str, recipe: dict[str, Any], steps: int) -> dict[str, float]:
    """Tokens trained on, held-out loss and tokens a second of one training."""
    settings = resolve_pretraining(
        None,
        {
            "model": {"name": str(base)},
            "corpus": {"files": [corpus], "held_out": 0.012},
            "pretrain": {**recipe, "steps": steps},
        },
    )
    store = Store(base.parent / "store")
    told = read_json(pretrain.run(settings, store, open_runtime(settings.runtime)).path / "training.json")
    rate = told.get("tokens_per_second") or steps * recipe["blocks"] * recipe["length"] / told["seconds"]
    tokens = steps * recipe["blocks"] * recipe["length"]
    return {"tokens": tokens, "loss": told["held_out_loss"]["after"], "rate": rate}


def extrapolate(losses: list[tuple[float, float]], tokens: float) -> tuple[float, float]:
    """Loss at `tokens` by E + (A / D)^b through three points, each of twice as many tokens as the one before, and by
    (A / D)^b through the last two. The latter alone where the second doubling did not gain
    less than the first."""
    (_, first), (_, second), (most, third) = losses
    doublings = math.log2(tokens / most)
    bare = third * (third / second) ** doublings
    if not 0 < second - third < first - second:
        return bare, bare
    ratio = (first - second) / (second - third)
    floor = third - (second - third) / (ratio - 1)
    return floor + (third - floor) * ratio**-doublings, bare


if __name__ == "__main__":
    main()
