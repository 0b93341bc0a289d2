"""adapt: train the masked language model on the pool before the members start from it (P1 section 5, in-domain
pretraining). Optional: part of the walk where `adapt.enabled` says so.

The pool's texts, fields side by side, without labels, are a corpus; training is that of `pretrain`, which see for what
is published. Members, a student and a baseline that name no other model start from the result.
"""

from collections.abc import Iterator

from pet.config.schema import Pretraining
from pet.pipeline import drawn_texts
from pet.pipeline.context import RunContext, training_settings
from pet.pipeline.stages import pretrain, tokenize_corpus
from pet.store.draft import Draft
from pet.store.key import Key
from pet.store.store import Artifact

STAGE = "adapt"
VERSION = 1


def check(ctx: RunContext) -> Pretraining:
    """The training as `pretrain` takes it; refuses what the model cannot be trained by.

    Raises:
        ModelError, SettingsError: as `pretrain.check`.
    """
    settings = ctx.settings
    training = Pretraining(
        seed=settings.seed, model=settings.model, pretrain=ctx.settings.adapt, runtime=settings.runtime
    )
    return pretrain.check(training, ctx.prompt_tokenizer, STAGE)


def key(ctx: RunContext, prepared: Artifact) -> Key:
    """Depends on the pool, the model and how it is trained."""
    settings = {
        "model": ctx.start_identity(),
        "adapt": training_settings(ctx, ctx.settings.adapt),
        "seed": ctx.settings.seed,
    }
    return Key(STAGE, VERSION, settings, {"prepare": prepared.identity})


def run(ctx: RunContext, prepared: Artifact) -> Artifact:
    """Train, or reuse what was trained; from here on the walk starts from it."""

    def fill(draft: Draft) -> None:
        made = make_corpus(ctx, prepared)
        pretrain.train(check(ctx), ctx.runtime, ctx.prompt_tokenizer, made, draft)

    ctx.adapted = ctx.make(key(ctx, prepared), label_of(ctx), STAGE, fill, seed=ctx.settings.seed)
    return ctx.adapted


def need(ctx: RunContext, prepared: Artifact) -> Artifact:
    """The adapted model from the store; from here on the walk starts from it.

    Raises:
        MissingArtifact: it has not been trained; says which command does.
    """
    found = ctx.store.need(key(ctx, prepared), "adapted model of these settings", ctx.command(STAGE))
    ctx.adapted = found
    return found


def label_of(ctx: RunContext) -> str:
    """Draw and model, as part of a folder name."""
    return f"{ctx.draw_label}-{ctx.model_label}"


def make_corpus(ctx: RunContext, prepared: Artifact) -> Artifact:
    """The pool as a corpus, made or reused."""
    held_out = ctx.settings.adapt.held_out
    content = {"model": ctx.start_identity(), "held_out": held_out}
    wanted = Key(tokenize_corpus.STAGE, tokenize_corpus.VERSION, content, {"prepare": prepared.identity})

    def fill(draft: Draft) -> None:
        ctx.runtime.reporter.say("corpus: tokenising the pool")
        tokenize_corpus.write(draft, ctx.runtime, pool_documents(prepared), ctx.prompt_tokenizer, held_out)

    return ctx.make(wanted, label_of(ctx), tokenize_corpus.STAGE, fill)


def pool_documents(prepared: Artifact) -> Iterator[str]:
    """The texts of the pool, fields side by side."""
    for chunk in drawn_texts.load(prepared).pool.chunks():
        for fields in zip(*chunk.fields.values(), strict=True):
            yield " ".join(filter(None, fields))
