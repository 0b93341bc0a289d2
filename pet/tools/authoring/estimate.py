"""How long a run will take and how much memory it needs, from steps that are timed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pet.config.schema import Optimisation
from pet.modeling.backbones import Backbone
from pet.modeling.prompts import EncodedTexts, Encoder, plain_pattern
from pet.modeling.tokenization import TokenizedTexts
from pet.pipeline import drawn_texts
from pet.pipeline.context import RunContext
from pet.tasks.texts import Texts
from pet.training.memory import peak_memory

ACTIVATION_BYTES = 68
"""Per token, layer and unit of the hidden size, kept for the backward pass in fp32: twice the 34 bytes of Korthikanti
et al. 2022 (arXiv 2205.05198, section 4.1), whose numbers are of 16 bits; their attention matrix is never kept here."""


@dataclass(frozen=True)
class Estimate:
    """What a run would take: seconds of computing, and bytes while members are trained, with these sizes."""

    seconds: float
    peak_bytes: float
    sizes: dict[str, int]
    members: int


# ---- what a run takes ----------------------------------------------------------------------------------------------


def estimate_run(
    ctx: RunContext, cloze: Backbone, rows: Sequence[EncodedTexts], splits: drawn_texts.Splits[Texts], rate: float
) -> Estimate:
    """Seconds and bytes of `pet run` with these settings, from `rate`: tokens a second that the model scores.

    A step costs (1 + 2 t) times the forward pass of its tokens, t being the share of the layers that are trained: the
    backward pass costs twice the forward (Kaplan et al. 2020, arXiv 2001.08361, section 2.1).

        members x steps x tokens of a step x (1 + 2 t) + student and baseline likewise + tokens to be scored

    Student and baseline are taken to be as large as the model. Loading, hashing and writing are not counted.
    """
    settings = ctx.settings
    sizes = {"train": len(splits.train), "pool": len(splits.pool), "test": len(splits.test)}
    asked = float(np.mean([one.lengths().mean() for one in rows]))
    plain = Encoder(ctx.prompt_tokenizer, plain_pattern(ctx.card.fields), settings.model.max_length)
    alone = float(plain.encode(TokenizedTexts(ctx.prompt_tokenizer, splits.pool)).lengths().mean())
    patterns, tune = len(rows), settings.finetune
    members = patterns * (tune.repetitions if sizes["train"] else 1)
    each = tune.labelled_batch + (tune.unlabelled_batch if tune.alpha else 0)
    untuned = patterns * (sizes["train"] + sizes["test"]) if sizes["train"] else 0
    tokens = (untuned + members * sum(sizes.values())) * asked + 2 * (sizes["train"] + sizes["test"]) * alone
    tokens += step_passes(cloze, settings.distill) * settings.distill.batch * alone
    if sizes["train"]:
        tokens += members * step_passes(cloze, tune, tune.method == "lora") * each * asked
        tokens += step_passes(cloze, settings.baseline) * min(settings.baseline.batch, sizes["train"]) * alone
    together = members if tune.method == "lora" else 1
    return Estimate(tokens / rate, peak_of(ctx, cloze, together * each * asked), sizes, members)


def trained_share(cloze: Backbone, frozen: int | None) -> float:
    """Share of the layers that are trained."""
    return 1 - (frozen or 0) / max(1, int(cloze.lm.config.num_hidden_layers))


def step_passes(cloze: Backbone, settings: Optimisation, lora: bool = False) -> float:
    """All steps of a training in forward passes of a micro-batch; LoRA trains the upper half unless told otherwise."""
    frozen = settings.frozen_layers
    if lora and frozen is None:
        frozen = cloze.lm.config.num_hidden_layers // 2
    return settings.steps * settings.accumulation * (1 + 2 * trained_share(cloze, frozen))


def peak_of(ctx: RunContext, cloze: Backbone, tokens: float) -> float:
    """Bytes while members are trained, a micro-batch of `tokens` tokens: what scoring took; the weights as
    they were at first; gradient and AdamW's two averages of what is trained, in fp32; and what the backward pass needs
    (ACTIVATION_BYTES; the MLM targets' logits three times over).

    What a process keeps of memory that it gave back is not in it: on `mini` and a CPU this says 0.9 GiB, the first
    member took 1.0 and the whole run 1.7 (measured)."""
    tune, config = ctx.settings.finetune, cloze.lm.config
    weights = sum(one.numel() for one in cloze.parameters())
    share = trained_share(cloze, tune.frozen_layers)
    trained = 0.0 if tune.method == "lora" else weights * share
    kept = tokens * config.num_hidden_layers * share * config.hidden_size * ACTIVATION_BYTES
    targets = tokens * tune.mask_probability if tune.alpha and tune.unlabelled_batch else 0.0
    memory = peak_memory()
    on_gpu = ctx.runtime.device.type == "cuda" and torch.cuda.is_available()
    base = memory["peak_gpu_memory_bytes" if on_gpu else "peak_memory_bytes"]
    return float(base + 4 * weights + 12 * trained + kept + 12 * targets * config.vocab_size)
