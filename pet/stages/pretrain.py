"""pretrain: a masked language model trained on a corpus, as a checkpoint that any task can name as `--model`.

Two artifacts: `corpus` holds the documents as token ids (train.tokens, held_out.tokens, corpus.json), made once for all
trainings with this tokenizer; `pretrain` the model (model/) and how training went (training.json). A model without an
LM head is given one. An interrupted training goes on from its last checkpoint.
"""

import dataclasses
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from pet import corpus, models, packing
from pet.artifacts import Artifact, Key, Store, digest_file
from pet.cloze import ClozeModel
from pet.corpus import Blocks
from pet.encoding import Batch, Speller
from pet.errors import StoreError
from pet.inference import computing_copy, refresh
from pet.losses import IGNORED, disguise, mlm_loss
from pet.runtime import Runtime, matmul_rate, peak_memory, reset_peak_memory, seed_everything, send
from pet.settings import Pretraining
from pet.training import Course, Losses, Trainer, TrainingReport, endless_order

CORPUS, STAGE = "corpus", "pretrain"
VERSION = 1

HELD_OUT_SEED = 0
"""Of the masks that held-out blocks are measured with: the same whatever is trained, so that losses can be compared."""


@dataclass(frozen=True)
class MaskedBatch:
    """Blocks with MLM targets hidden in them: `places`, which of the N tokens, and what they were [K]."""

    batch: Batch
    places: torch.Tensor
    targets: torch.Tensor


def corpus_key(settings: Pretraining) -> Key:
    """Depends on the files' contents, in order, on the model's tokenizer and on what is held out."""
    files = [digest_file(path) for path in corpus.find_files(settings.corpus.files)]
    held_out = settings.corpus.held_out
    return Key(CORPUS, VERSION, {"files": files, "model": models.fingerprint(settings.model), "held_out": held_out}, {})


def key(settings: Pretraining, made: Artifact) -> Key:
    """Depends on the corpus, the model it starts from, how it is trained and the seed; not on how often it is saved."""
    trained = settings.pretrain.model_dump(mode="json", exclude={"checkpoint_minutes"})
    content = {
        "model": models.fingerprint(settings.model),
        "pretrain": {**trained, "precision": settings.runtime.precision},
        "seed": settings.seed,
    }
    return Key(STAGE, VERSION, content, {CORPUS: made.identity})


def run(settings: Pretraining, store: Store, runtime: Runtime) -> Artifact:
    """The trained model, made or reused.

    Raises:
        CorpusError, ModelError, SettingsError, StoreError: the corpus, the model, its length or the store will not do.
    """
    store.check_writable()
    limit = settings.model.model_copy(update={"max_length": settings.pretrain.length})
    settings = settings.model_copy(update={"model": limit})
    models.check_length(settings.model, models.outline(settings.model).config, "pretrain.length")
    speller = Speller(models.load_tokenizer(settings.model), settings.model.name)
    made = tokenise(settings, store, runtime, speller)
    wanted = key(settings, made)
    found = store.find(wanted)
    if found is not None:
        runtime.reporter.say(f"pretrain: reused {found.path}")
        return found
    train(settings, store, runtime, speller, made, wanted)
    return store.need(wanted, "model of these settings", "pet pretrain")


def tokenise(settings: Pretraining, store: Store, runtime: Runtime, speller: Speller) -> Artifact:
    """The corpus as token ids, made or reused."""
    wanted = corpus_key(settings)
    found = store.find(wanted)
    if found is not None:
        runtime.reporter.say(f"corpus: reused {found.path}")
        return found
    paths = corpus.find_files(settings.corpus.files)
    runtime.reporter.say(f"corpus: tokenising {', '.join(map(str, paths))}")
    with store.publish(wanted, label_of(settings)) as draft:
        documents = corpus.read_documents(paths)
        counts = corpus.write_streams(draft.path, documents, speller, settings.corpus.held_out)
        draft.write_json("corpus.json", {"dtype": corpus.stream_type(speller).str, **counts})
    said = ", ".join(f"{one['tokens']:,} tokens {name.replace('_', ' ')}" for name, one in counts.items())
    runtime.reporter.say(f"corpus: {said}")
    return store.need(wanted, "corpus", "pet pretrain")


def label_of(settings: Pretraining) -> str:
    """Model and first file, as part of a folder name."""
    file = Path(settings.corpus.files[0]).name.partition(".")[0]
    return f"{Path(settings.model.name).name}-{file}".lower()


# ---- training ------------------------------------------------------------------------------------------------------


def train(settings: Pretraining, store: Store, runtime: Runtime, speller: Speller, made: Artifact, wanted: Key) -> None:
    """Train and publish."""
    chosen, say = settings.pretrain, runtime.reporter.say
    train_blocks, held_out = (
        corpus.open_blocks(made.path, name, speller, chosen.length) for name in (corpus.TRAIN, corpus.HELD_OUT)
    )
    with store.publish(wanted, label_of(settings), seed=settings.seed) as draft, models.os_errors():
        reset_peak_memory()
        seed_everything(settings.seed)
        cloze, twin = build(settings, runtime)
        trainer: Trainer[MaskedBatch] = Trainer(
            twin, chosen, lambda given: losses_of(twin, given), runtime, master=None if twin is cloze else cloze
        )
        saved = Checkpoint(store.root / STAGE / f".checkpoint-{wanted.identity}.safetensors", cloze, trainer)
        start, spent = saved.restore()
        refresh(twin, cloze)
        before = measure(twin, held_out, settings, runtime, speller)
        say(f"pretrain: {len(train_blocks):,} blocks of {chosen.length} tokens, held-out loss {before:.3f}")
        if start:
            say(f"pretrain: going on after step {start:,} from {saved.path}")
        watch = Watch(settings, spent, saved)
        batches = draw_batches(train_blocks, settings, runtime, speller, packing.is_packed(twin.lm), start)
        (report,) = trainer.run(batches, STAGE, course=Course(start, watch.way, watch.after))
        after = measure(twin, held_out, settings, runtime, speller)
        speed = watch.speed(twin, train_blocks, runtime)
        say(f"pretrain: held-out loss {before:.3f} -> {after:.3f}{speed_line(speed)}")
        draft.write_json("training.json", describe(report, before, after, watch.spent(), speed))
        with models.quiet_transformers():
            cloze.lm.save_pretrained(draft.path / "model")
            speller.tokenizer.save_pretrained(draft.path / "model")
        draft.note(**runtime.facts(), **peak_memory())
    saved.path.unlink(missing_ok=True)


def build(settings: Pretraining, runtime: Runtime) -> tuple[ClozeModel, ClozeModel]:
    """The model in fp32, and the one that computes."""
    with models.quiet_transformers():
        lm = models.load_masked_lm(settings.model, new_head=True)
    models.freeze_lower(lm, settings.pretrain.frozen_layers, "pretrain.frozen_layers")
    for one in lm.modules():
        if isinstance(one, nn.Dropout):
            one.p = settings.pretrain.dropout
    cloze = ClozeModel(lm).to(runtime.device).eval()
    # Compiling takes half a minute, which no training is too short for that is worth a GPU.
    compiled = dataclasses.replace(runtime, compile=runtime.compile is not False)
    return cloze, computing_copy(cloze, compiled)


def losses_of(cloze: ClozeModel, given: MaskedBatch) -> Losses:
    """MLM loss of a micro-batch [1]."""
    logits = cloze.vocabulary_logits(cloze.states_at(given.batch, given.places)).T.contiguous()
    return {"loss": mlm_loss(logits, given.targets, torch.zeros_like(given.targets), 1)}


def draw_batches(
    blocks: Blocks, settings: Pretraining, runtime: Runtime, speller: Speller, packed: bool, start: int
) -> Iterator[MaskedBatch]:
    """Micro-batches for ever, from the one after `start` steps on: every block once before any comes again."""
    chosen = settings.pretrain
    skipped = start * chosen.accumulation
    order = endless_order(len(blocks), chosen.blocks, np.random.default_rng(settings.seed))
    for number, numbers in enumerate(islice(order, skipped, None), skipped):
        rng = np.random.default_rng([settings.seed, number])
        yield send(hide(blocks.read(numbers), chosen.mask_probability, speller, packed, rng), runtime.device)


def hide(
    ids: NDArray[np.int64], probability: float, speller: Speller, packed: bool, rng: np.random.Generator
) -> MaskedBatch:
    """Hide a share of the tokens of blocks [B, T], special tokens apart; the same number for every batch of a size."""
    flat, special = ids.ravel(), np.asarray(speller.tokenizer.all_special_ids)
    eligible = np.flatnonzero(~np.isin(flat, special))
    count = max(1, round(probability * flat.size))
    places = np.sort(rng.choice(eligible, min(count, len(eligible)), replace=False, shuffle=False))
    targets = flat[places]
    shown = disguise(
        targets, rng.random(len(places)), rng.integers(0, len(speller.tokenizer), len(places)), speller.mask_id
    )
    changed = flat.copy()
    changed[places] = shown
    gap = (0, count - len(places))
    return MaskedBatch(
        corpus.lay_blocks(changed.reshape(ids.shape), speller.has_types, not packed),
        torch.from_numpy(np.pad(places, gap)),
        torch.from_numpy(np.pad(targets, gap, constant_values=IGNORED)),
    )


@torch.inference_mode()
def measure(cloze: ClozeModel, blocks: Blocks, settings: Pretraining, runtime: Runtime, speller: Speller) -> float:
    """Mean MLM loss over the targets of held-out blocks, always the same ones with the same masks."""
    numbers = np.arange(min(len(blocks), settings.pretrain.held_out_blocks))
    rng = np.random.default_rng(HELD_OUT_SEED)
    total, count = torch.zeros((), device=runtime.device), 0
    packed, step = packing.is_packed(cloze.lm), max(1, runtime.batch_tokens // blocks.length)
    for first in range(0, len(numbers), step):
        ids = blocks.read(numbers[first : first + step])
        given = hide(ids, settings.pretrain.mask_probability, speller, packed, rng)
        asked = int((given.targets != IGNORED).sum())
        total += losses_of(cloze, send(given, runtime.device))["loss"][0] * asked
        count += asked
    return float(total) / max(1, count)


# ---- time, speed, checkpoints --------------------------------------------------------------------------------------


class Checkpoint:
    """A training as it is now, in one file: weights in fp32, moments, random states, steps and seconds."""

    def __init__(self, path: Path, cloze: ClozeModel, trainer: Trainer[MaskedBatch]) -> None:
        self.path = path
        self.cloze = cloze
        self.trainer = trainer

    def save(self, step: int, seconds: float) -> None:
        """Write it beside the old one, then put it in its place."""
        tensors = {f"model.{name}": one.detach() for name, one in self.cloze.named_parameters()}
        tensors |= {f"optimizer.{name}": one for name, one in self.trainer.optimizer.state().items()}
        tensors["random.cpu"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors["random.cuda"] = torch.cuda.get_rng_state()
        draft = self.path.with_suffix(".draft")
        facts = {"progress": json.dumps({"step": step, "seconds": seconds})}
        save_file({name: one.contiguous() for name, one in tensors.items()}, draft, facts)
        draft.replace(self.path)

    def restore(self) -> tuple[int, float]:
        """Go on from it, if there is one; steps done and seconds spent.

        Raises:
            StoreError: it is damaged.
        """
        if not self.path.is_file():
            return 0, 0.0
        try:
            with safe_open(self.path, framework="pt") as file:
                progress = json.loads(file.metadata()["progress"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except (OSError, SafetensorError, KeyError, ValueError) as problem:
            raise StoreError(f"{self.path} is damaged ({problem}); remove it to start anew") from None
        with torch.no_grad():
            for name, one in self.cloze.named_parameters():
                one.copy_(tensors[f"model.{name}"])
        prefix = "optimizer."
        moments = {name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix)}
        self.trainer.optimizer.load(moments)
        torch.set_rng_state(tensors["random.cpu"])
        if torch.cuda.is_available() and "random.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random.cuda"])
        return int(progress["step"]), float(progress["seconds"])


class Watch:
    """Tells a training by the clock how far it is, and when to save it. `spent`: seconds before this process."""

    def __init__(self, settings: Pretraining, spent: float, saved: Checkpoint) -> None:
        self.settings = settings.pretrain
        self.saved = saved
        self.before = spent
        self.begun = self.last = time.perf_counter()
        self.marks: list[tuple[int, float]] = []

    def spent(self) -> float:
        """Seconds of training so far."""
        return self.before + time.perf_counter() - self.begun

    def way(self, step: int) -> float:
        """Steps done, or what the time that is gone comes to in steps, if that is more."""
        if self.settings.minutes is None:
            return step
        return max(step, self.settings.steps * self.spent() / (60 * self.settings.minutes))

    def after(self, step: int) -> None:
        """Save what has been learnt, when it is time."""
        now = time.perf_counter()
        self.marks.append((step, now))
        if now - self.last >= 60 * self.settings.checkpoint_minutes:
            self.saved.save(step, self.spent())
            self.last = time.perf_counter()

    def speed(self, cloze: ClozeModel, blocks: Blocks, runtime: Runtime) -> dict[str, float]:
        """Tokens a second once everything is compiled and captured, FLOP/s and their share of the matmul rate."""
        if len(self.marks) < 3:
            return {}
        (first, begun), (last, ended) = self.marks[1], self.marks[-1]
        tokens = self.settings.blocks * self.settings.accumulation * blocks.length
        rate = (last - first) * tokens / (ended - begun)
        flops = rate * flops_per_token(cloze, self.settings.mask_probability)
        ceiling = matmul_rate(runtime.device, runtime.dtype)
        return {"tokens_per_second": rate, "flops": flops, "matmul_rate": ceiling, "share_of_matmul": flops / ceiling}


def flops_per_token(cloze: ClozeModel, asked: float) -> float:
    """Of a training step, for each token: two a weight of a linear map forward and four backward (attention products
    left out). `asked`: share of the tokens that the head, and where it can the last layer, is computed for."""
    layers = models.layers_of(cloze.lm) or [cloze.lm.base_model]
    sizes = [sum(one.weight.numel() for one in layer.modules() if isinstance(one, nn.Linear)) for layer in layers]
    if cloze.lm.config.model_type in packing.READS and packing.is_packed(cloze.lm):
        both = 2 * cloze.lm.config.hidden_size**2  # keys and values, which all tokens need
        sizes[-1] = both + asked * (sizes[-1] - both)
    body = {id(one) for one in cloze.lm.base_model.modules()}
    head = sum(one.weight.numel() for one in cloze.lm.modules() if isinstance(one, nn.Linear) and id(one) not in body)
    return 6.0 * (sum(sizes) + asked * head)


def speed_line(speed: dict[str, float]) -> str:
    """The end of a message."""
    if not speed:
        return ""
    share = 100 * speed["share_of_matmul"]
    return f"; {speed['tokens_per_second']:,.0f} tokens/s, {share:.0f} % of the rate of a matrix product"


def describe(
    report: TrainingReport, before: float, after: float, seconds: float, speed: dict[str, float]
) -> dict[str, Any]:
    """training.json: held-out losses, losses along the way (of the last process, if it was interrupted), speed."""
    return {
        "held_out_loss": {"before": round(before, 4), "after": round(after, 4)},
        "seconds": round(seconds, 1),
        **{name: float(f"{value:.4g}") for name, value in speed.items()},
        "steps": report.steps,
        "losses": report.losses,
    }
