"""pretrain: a masked language model trained on a corpus, as a checkpoint that any task can name as `--model`.

Publishes the model (model/), how training went (training.json) and, with `pack`, the model as a difference to the one
it began as (delta.safetensors). A model without an LM head is given one. An interrupted training goes on from its last
checkpoint.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn

from pet.config.identity import identity_settings
from pet.config.schema import Pretraining
from pet.errors import ModelError, SettingsError
from pet.modeling import backbones, delta, loading, packing, quiet
from pet.modeling.backbones import Backbone
from pet.modeling.families import FAMILIES, family_of
from pet.modeling.lora import Adapters, find_targets
from pet.modeling.token_losses import IGNORED
from pet.modeling.tokenization import PromptTokenizer
from pet.pipeline.context import shared_by
from pet.pipeline.publishing import make, mending
from pet.pipeline.stages import tokenize_corpus as corpora
from pet.store.draft import Draft
from pet.store.key import Key
from pet.store.store import Artifact, Store
from pet.training import mlm_corpus
from pet.training.checkpoint import Checkpoint, CheckpointManager
from pet.training.cuda_graphs import Losses
from pet.training.device import Runtime, seed_everything
from pet.training.finite import Origin
from pet.training.losses import mlm_loss
from pet.training.memory import peak_memory, reset_peak_memory
from pet.training.mlm_corpus import Blocks
from pet.training.mlm_masking import MaskedBatch, hide
from pet.training.scoring import computing_copy, refresh
from pet.training.throughput import ThroughputMeter
from pet.training.trainer import ResumePoint, Trainer, TrainingReport

STAGE = "pretrain"
VERSION = 1

HELD_OUT_SEED, HELD_OUT_MASKED, HELD_OUT_BATCH = 0, 0.15, 16
"""Seed and share of the masks that held-out blocks are measured with, and blocks at a time: the same whatever is
trained and wherever, so that losses can be compared."""

RAREST, COMMONEST = 2e-5, 1e-3
"""Shares of all tokens between which a word's frequency is taken off the bias. Label words lie there; adjusting
rarer and more frequent ones too cost `mini` loss and gained it nothing (measured, results/LOG.md)."""


def key(settings: Pretraining, weights: str, made: Artifact, runtime: Runtime) -> Key:
    """Depends on the corpus, the model it starts from, how it is trained and the seed."""
    content = {
        "model": weights,
        "pretrain": {**identity_settings(settings.pretrain), **shared_by(runtime, settings.runtime)},
        "seed": settings.seed,
    }
    return Key(STAGE, VERSION, content, {corpora.STAGE: made.identity})


def run(settings: Pretraining, store: Store, runtime: Runtime) -> Artifact:
    """The trained model, made or reused.

    Raises:
        CorpusError, ModelError, SettingsError, StoreError: the corpus, the model, its length or the store will not do.
    """
    store.check_writable()
    return mending(store, runtime, lambda: train_or_reuse(settings, store, runtime))


def train_or_reuse(settings: Pretraining, store: Store, runtime: Runtime) -> Artifact:
    """As `run`; a damaged artifact is raised."""
    prompt_tokenizer = backbones.load_tokenizer(settings.model)
    settings = check(settings, prompt_tokenizer)
    weights = loading.fingerprint(settings.model)
    made = corpora.run(settings, store, runtime, prompt_tokenizer, weights)

    def fill(draft: Draft) -> None:
        train(settings, runtime, prompt_tokenizer, made, draft)

    wanted = key(settings, weights, made, runtime)
    return make(store, runtime, wanted, corpora.label_of(settings), STAGE, fill, seed=settings.seed)


def check(settings: Pretraining, prompt_tokenizer: PromptTokenizer, section: str = STAGE) -> Pretraining:
    """Refuse, before anything is read, what the model cannot be trained by. Returns the settings, the model's rows as
    long as the longest blocks: they are its only texts. `section`: of the settings, for messages.

    Raises:
        ModelError, SettingsError: no such model; words without an embedding, blocks that are too long, fewer layers
            than are to be frozen, nothing for LoRA to adapt, no bias to adjust, a warm-up that never ends.
    """
    chosen, body, words = settings.pretrain, loading.outline(settings.model), len(prompt_tokenizer.tokenizer)
    if words > body.config.vocab_size:
        raise ModelError(
            f"the tokenizer of {settings.model.name!r} has {words:,} words and the model {body.config.vocab_size:,} "
            "embeddings; give a model and a tokenizer that belong together"
        )
    for name in ("last_length", "length"):
        limit = settings.model.model_copy(update={"max_length": getattr(chosen, name) or 0})
        loading.check_length(limit, body.config, f"{section}.{name}")
    loading.freeze_lower(body, chosen.frozen_layers, f"{section}.frozen_layers")
    if chosen.method == "lora":
        find_targets(body, chosen.lora.targets, chosen.frozen_layers or 0, f"{section}.lora.targets")
        if chosen.decay_to == "start":
            raise SettingsError(f"{section}.decay_to is start, but with method lora adapters start at 0; leave it out")
    if chosen.logit_adjustment and not family_of(body).has_known_bias(body.config):
        known = ", ".join(name for name, one in FAMILIES.items() if one.lm_head is not None)
        raise SettingsError(
            f"{section}.logit_adjustment is {chosen.logit_adjustment}, but this {body.config.model_type} model has no "
            f"LM head with a bias that is known; leave it out, or give one of {known}"
        )
    if chosen.warmup_steps >= chosen.steps:
        raise SettingsError(
            f"{section}.warmup_steps {chosen.warmup_steps} is not less than {section}.steps {chosen.steps}; lower it"
        )
    longest = max(chosen.length, chosen.last_length or 0)
    return settings.model_copy(update={"model": settings.model.model_copy(update={"max_length": longest})})


# ---- training ------------------------------------------------------------------------------------------------------


def train(
    settings: Pretraining, runtime: Runtime, prompt_tokenizer: PromptTokenizer, made: Artifact, draft: Draft
) -> None:
    """Train and write, in the name of the draft's stage. `made`: the corpus."""
    chosen, stage = settings.pretrain, draft.key.stage

    def say(message: str) -> None:
        runtime.reporter.say(f"{stage}: {message}")

    lengths = [chosen.length, *([chosen.last_length] if chosen.last_length else [])]
    streams = [open_stream(made, mlm_corpus.TRAIN, prompt_tokenizer, one) for one in lengths]
    held_out = open_stream(made, mlm_corpus.HELD_OUT, prompt_tokenizer, chosen.length)
    with quiet.os_errors():
        reset_peak_memory()
        seed_everything(settings.seed)
        cloze, compute_model = build(settings, runtime)
        origin = origin_of(settings, stage)
        before = measure(compute_model, held_out, chosen.held_out_blocks, runtime, prompt_tokenizer)
        check_loss(before, dataclasses.replace(origin, setting=None), runtime, stage)
        say(f"{len(streams[0]):,} blocks of {chosen.length} tokens, held-out loss {before:.3f}")
        begun = untied(cloze.lm) if chosen.pack else {}
        report, meter = learn(cloze, compute_model, streams, settings, runtime, prompt_tokenizer, draft)
        if report.steps and report.steps[-1] < chosen.steps:
            say(f"the time was over after {report.steps[-1]:,} of {chosen.steps:,} steps")
        if chosen.logit_adjustment:
            counts = mlm_corpus.count_words(streams[0].tokens, len(prompt_tokenizer.tokenizer))
            adjust_logits(cloze, counts, chosen.logit_adjustment)
        if chosen.pack:
            changes = delta.pack(begun, untied(cloze.lm), f"{cloze.lm.base_model_prefix}.")
            save_file(changes, draft.path / "delta.safetensors")
            cloze.lm.load_state_dict(delta.unpack(begun, changes), strict=False)  # publish what can be unpacked
        refresh(compute_model, cloze)
        after = measure(compute_model, held_out, chosen.held_out_blocks, runtime, prompt_tokenizer)
        check_loss(after, origin, runtime, stage)
        speed = meter.speed(compute_model, runtime)
        say(f"held-out loss {before:.3f} -> {after:.3f}{speed_line(speed)}")
        draft.write_json("training.json", describe(report, before, after, meter.seconds, speed))
        with quiet.quiet_transformers():
            cloze.lm.save_pretrained(draft.path / "model")
            prompt_tokenizer.tokenizer.save_pretrained(draft.path / "model")
        draft.note(**runtime.facts(), **peak_memory())


def origin_of(settings: Pretraining, stage: str) -> Origin:
    """What is to blame where a loss is not finite; `stage`: whose settings they are."""
    chosen = settings.pretrain
    if chosen.method == "lora":
        return Origin(settings.model.name, f"{stage}.lora.learning_rate", chosen.lora.learning_rate)
    return Origin(settings.model.name, f"{stage}.learning_rate", chosen.learning_rate)


def check_loss(loss: float, origin: Origin, runtime: Runtime, stage: str) -> None:
    """Refuse a held-out loss that is not finite.

    Raises:
        NotFinite: it is NaN or infinite.
    """
    if not math.isfinite(loss):
        raise origin.bad_score(stage, "the held-out loss", loss, runtime.dtype is not None)


def open_stream(made: Artifact, name: str, prompt_tokenizer: PromptTokenizer, length: int) -> Blocks:
    """The blocks of one part of a corpus."""
    return mlm_corpus.open_blocks(made.file(f"{name}.tokens").parent, name, prompt_tokenizer, length)


def learn(
    cloze: Backbone,
    compute_model: Backbone,
    streams: Sequence[Blocks],
    settings: Pretraining,
    runtime: Runtime,
    prompt_tokenizer: PromptTokenizer,
    draft: Draft,
) -> tuple[TrainingReport, ThroughputMeter]:
    """Train `cloze` in place, from the checkpoint if there is one."""
    stage = draft.key.stage
    with learning(cloze, compute_model, settings, runtime, origin_of(settings, stage)) as (weights, trainer):
        checkpoint = Checkpoint(draft.checkpoint, weights, trainer.optimizer, runtime, [stage])
        checkpoints = CheckpointManager(checkpoint, settings.runtime.checkpoint_minutes, stage, runtime.reporter.say)
        start = checkpoints.begin()
        if weights is cloze:
            refresh(compute_model, cloze)
        meter = ThroughputMeter(settings.pretrain, checkpoints)
        packed, done = packing.is_packed(compute_model.lm), start.step if start else 0

        def way(step: int) -> float:
            clock = settings.pretrain.minutes is not None  # the main rank's decides for all
            return runtime.ranks.broadcast(meter.way(step)) if clock else meter.way(step)

        batches = draw_batches(streams, settings, runtime, prompt_tokenizer, packed, done, way)
        with checkpoints:
            (report,) = trainer.run(batches, stage, resume=ResumePoint(start, way, meter.after))
        meter.stop()
        draft.count_from(draft.seconds + checkpoints.before)
    return report, meter


def build(settings: Pretraining, runtime: Runtime) -> tuple[Backbone, Backbone]:
    """The model in fp32, and the one that computes."""
    cloze = backbones.load(settings.model, runtime.device, new_head=True)
    lm = cloze.lm
    loading.freeze_lower(lm, settings.pretrain.frozen_layers)
    if settings.pretrain.frozen_head:
        for part in (lm.get_input_embeddings().weight, *head_of(lm)):
            part.requires_grad_(False)
    for one in lm.modules():
        if isinstance(one, nn.Dropout):
            one.p = settings.pretrain.dropout
    # Compiling takes half a minute, which no training is too short for that is worth a GPU.
    compiled = dataclasses.replace(runtime, compile=runtime.compile is not False)
    return cloze, computing_copy(cloze, compiled, alike=True)


@contextmanager
def learning(
    cloze: Backbone, compute_model: Backbone, settings: Pretraining, runtime: Runtime, origin: Origin | None = None
) -> Iterator[tuple[nn.Module, Trainer[MaskedBatch]]]:
    """What is trained, and its trainer; afterwards `cloze` has what was learnt. `origin`: see `Trainer`."""
    chosen = settings.pretrain
    if chosen.method == "full":
        master = None if compute_model is cloze else cloze
        held = cloze.lm.base_model if chosen.decay_to == "start" else None
        losses = partial(losses_of, compute_model)
        yield cloze, Trainer(compute_model, chosen, losses, runtime, master=master, held=held, origin=origin)
        return
    adapted = chosen.model_copy(update={"frozen_layers": chosen.frozen_layers or 0})
    adapters = Adapters(compute_model.lm, cloze.lm, [settings.seed], adapted)
    dtype = next(compute_model.lm.base_model.parameters()).dtype

    def adapted_losses(given: MaskedBatch) -> Losses:
        adapters.open_gate(torch.zeros_like(given.batch.rows), dtype)
        return losses_of(compute_model, given)

    with adapters.installed():
        heads = [[] if chosen.frozen_head else head_of(one.lm) for one in (cloze, compute_model)]
        for one in heads[1]:
            one.requires_grad_(True)
        trained = nn.ModuleList([adapters, nn.ParameterList(heads[1])])
        faster = chosen.model_copy(update={"learning_rate": chosen.lora.learning_rate})
        yield trained, Trainer(trained, faster, adapted_losses, runtime, origin=origin)
        adapters.close_gate()
    with torch.no_grad():
        for mine, learnt in zip(*heads, strict=True):
            mine.copy_(learnt)
        for name, change in adapters.changes(0):
            cloze.lm.get_submodule(name).weight.add_(change)


@torch.no_grad()
def adjust_logits(cloze: Backbone, counts: NDArray[np.int64], power: float) -> None:
    """Take the `power`-th part of how often a word occurs off the head's bias [V], among the words below COMMONEST;
    `counts`: how often each is in the corpus [V].

    Post-hoc logit adjustment (Menon et al. 2021, section 4.1): a masked LM holds back with rare words, which is right
    in a text and wrong between label words. All of those words together stay as likely as they were, and frequent words
    are left alone, so that the model is hardly a worse one for it (measured, results/LOG.md).
    """
    shares = torch.from_numpy(counts / counts.sum())
    rare = shares < COMMONEST
    tempered = shares[rare].clamp(min=RAREST).pow(-power)
    level = (shares[rare] @ tempered) / shares[rare].sum()
    lm_head = family_of(cloze.lm).lm_head
    bias = lm_head(cloze.lm)[2] if lm_head else None
    assert bias is not None, "check has seen to it"
    if level > 0:  # else no such word is in the corpus
        bias[: len(shares)][rare.to(bias.device)] += (tempered / level).log().to(bias)


def head_of(lm: Any) -> list[nn.Parameter]:
    """What a masked LM has besides its body; tied embeddings are the body's."""
    body = {id(one) for one in lm.base_model.parameters()}
    return [one for one in lm.parameters() if id(one) not in body]


def untied(lm: Any) -> dict[str, torch.Tensor]:
    """A copy of a model's weights on the host, what is one tensor under one name."""
    return {name: one.detach().cpu().clone() for name, one in lm.named_parameters()}


def losses_of(cloze: Backbone, given: MaskedBatch) -> Losses:
    """MLM loss of a micro-batch [1]; of several ranks, this one's part of it."""
    losses = cloze.lm_losses(given.batch, given.places, given.targets, most=given.batch.width)
    mean = mlm_loss(losses, given.targets, torch.zeros_like(given.targets), 1)
    return {"loss": mean if given.weight is None else mean * given.weight}


def draw_batches(
    streams: Sequence[Blocks],
    settings: Pretraining,
    runtime: Runtime,
    prompt_tokenizer: PromptTokenizer,
    packed: bool,
    start: int,
    way: Callable[[int], float] = float,
) -> Iterator[MaskedBatch]:
    """Micro-batches for ever, from the one after `start` steps on; each depends on its number and the seed alone
    (and on the clock, where that decides when blocks become longer).
    `streams`: the same tokens in blocks of `length` and, if there is one, `last_length`; `way`: as of `Course`."""
    chosen = settings.pretrain
    for number in itertools.count(start * chosen.accumulation):
        late = way(number // chosen.accumulation) >= (1 - chosen.last_share) * chosen.steps
        blocks = streams[-1 if late else 0]
        batch = max(1, chosen.blocks * chosen.length // blocks.length)
        ids = blocks.read(numbers_at(len(blocks), batch, number, settings.seed))
        rng = np.random.default_rng([settings.seed, number])
        yield hide(ids, chosen.mask_probability, prompt_tokenizer, packed, rng, runtime.device, runtime.ranks)


def numbers_at(size: int, batch: int, number: int, seed: int) -> NDArray[np.int64]:
    """The blocks of one micro-batch [batch]: one shuffled pass over all `size` of them after another."""
    places = np.arange(number * batch, (number + 1) * batch)
    passes = places // size
    return np.concatenate([shuffled(size, seed, one)[places[passes == one] % size] for one in np.unique(passes)])


@lru_cache(maxsize=2)
def shuffled(size: int, seed: int, number: int) -> NDArray[np.int64]:
    """One pass."""
    return np.random.default_rng([seed, number, size]).permutation(size)


@torch.inference_mode()
def measure(cloze: Backbone, blocks: Blocks, most: int, runtime: Runtime, prompt_tokenizer: PromptTokenizer) -> float:
    """Mean MLM loss over the targets of the first `most` held-out blocks, always with the same masks. Nothing is
    compiled for it."""
    rng = np.random.default_rng(HELD_OUT_SEED)
    (total, count), packed = torch.zeros(2, device=runtime.device), packing.is_packed(cloze.lm)
    for numbers in np.array_split(np.arange(min(len(blocks), most)), -(-min(len(blocks), most) // HELD_OUT_BATCH)):
        given = hide(blocks.read(numbers), HELD_OUT_MASKED, prompt_tokenizer, packed, rng, runtime.device)
        asked = (given.targets != IGNORED).sum()
        with torch.compiler.set_stance("force_eager"):
            total += losses_of(cloze, given)["loss"][0] * asked
        count += asked
    return float(total / count.clamp(min=1))


# ---- what is said of it ---------------------------------------------------------------------------------------------


def speed_line(speed: dict[str, float]) -> str:
    """The end of a message."""
    if not speed:
        return ""
    share = 100 * speed["share_of_matmul"]
    return f"; {speed['tokens_per_second']:,.0f} tokens/s, {share:.0f} % of the rate of a matrix product"


def describe(
    report: TrainingReport, before: float, after: float, seconds: float, speed: dict[str, float]
) -> dict[str, Any]:
    """training.json: held-out losses, losses along the way, speed (of the last process, if it was interrupted)."""
    return {
        "held_out_loss": {"before": round(before, 4), "after": round(after, 4)},
        "seconds": round(seconds, 1),
        **{name: float(f"{value:.4g}") for name, value in speed.items()},
        "steps": report.steps,
        "losses": report.losses,
    }
