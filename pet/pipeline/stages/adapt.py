"""adapt: train the masked language model on the pool before the members start from it (P1 section 5, in-domain
pretraining). Optional: part of a run where `adapt.enabled` says so.

The pool's texts, fields side by side, without labels, are a corpus; training is that of `pretrain`, which see for what
is published. Members, a student and a baseline that name no other model start from the result.
"""

from collections.abc import Iterator

from pet.config.schema import Pretraining
from pet.pipeline import drawn_texts, publishing
from pet.pipeline.context import RunContext, training_settings
from pet.pipeline.node import Node, Stage
from pet.pipeline.stages import pretrain, tokenize_corpus
from pet.store.draft import Draft
from pet.store.key import Key
from pet.store.store import Artifact


def check(ctx: RunContext) -> Pretraining:
    """The training as `pretrain` takes it; refuses what the model cannot be trained by.

    Raises:
        ModelError, SettingsError: as `pretrain.check`.
    """
    settings = ctx.settings
    training = Pretraining(
        seed=settings.seed, model=settings.model, pretrain=ctx.settings.adapt, runtime=settings.runtime
    )
    return pretrain.check(training, ctx.prompt_tokenizer, "adapt")


def node(ctx: RunContext, prepared: Node) -> Node:
    """Depends on the pool, the model and how it is trained."""
    settings = {
        "model": ctx.fingerprint(ctx.settings.model),
        "adapt": training_settings(ctx, ctx.settings.adapt),
        "seed": ctx.settings.seed,
    }
    return ctx.node(
        STAGE, [prepared], settings, {"prepare": prepared.identity}, about="masked language model on the pool"
    )


def make(ctx: RunContext, draft: Draft, prepared: Node) -> None:
    """Train."""
    corpus = make_corpus(ctx, prepared.artifact)
    pretrain.train(check(ctx), ctx.runtime, ctx.prompt_tokenizer, corpus, draft)


STAGE = Stage("adapt", version=1, make=make, step="adapt", trains=True)


def make_corpus(ctx: RunContext, prepared: Artifact) -> Artifact:
    """The pool as a corpus, made or reused."""
    held_out = ctx.settings.adapt.held_out
    content = {"model": ctx.fingerprint(ctx.settings.model), "held_out": held_out}
    wanted = Key(tokenize_corpus.STAGE, tokenize_corpus.VERSION, content, {"prepare": prepared.identity})

    def fill(draft: Draft) -> None:
        ctx.say("corpus: tokenising the pool")
        tokenize_corpus.write(draft, ctx.runtime, pool_documents(prepared), ctx.prompt_tokenizer, held_out)

    return publishing.make(ctx.store, ctx.runtime, wanted, ctx.label, tokenize_corpus.STAGE, fill)


def pool_documents(prepared: Artifact) -> Iterator[str]:
    """The texts of the pool, fields side by side."""
    for chunk in drawn_texts.load(prepared).pool.chunks():
        for fields in zip(*chunk.fields.values(), strict=True):
            yield " ".join(filter(None, fields))
