"""adapt: train the masked language model on the pool before the members start from it (P1 section 5, in-domain
pretraining). Optional: part of the walk where `adapt.enabled` says so.

The pool's texts, fields side by side, without labels, are a corpus; training is that of `pretrain`, which see for what
is published. Members, a student and a baseline that name no other model start from the result.
"""

from collections.abc import Iterator

from pet.config.schema import Pretraining
from pet.pipeline import drawn_texts
from pet.pipeline.context import Work, training_settings
from pet.pipeline.stages import pretrain, tokenize_corpus
from pet.store.draft import Draft
from pet.store.key import Key
from pet.store.store import Artifact

STAGE = "adapt"
VERSION = 1


def check(work: Work) -> Pretraining:
    """The training as `pretrain` takes it; refuses what the model cannot be trained by.

    Raises:
        ModelError, SettingsError: as `pretrain.check`.
    """
    settings = work.settings
    training = Pretraining(
        seed=settings.seed, model=settings.model, pretrain=work.settings.adapt, runtime=settings.runtime
    )
    return pretrain.check(training, work.speller, STAGE)


def key(work: Work, prepared: Artifact) -> Key:
    """Depends on the pool, the model and how it is trained."""
    settings = {
        "model": work.start_identity(),
        "adapt": training_settings(work, work.settings.adapt, "enabled"),
        "seed": work.settings.seed,
    }
    return Key(STAGE, VERSION, settings, {"prepare": prepared.identity})


def run(work: Work, prepared: Artifact) -> Artifact:
    """Train, or reuse what was trained; from here on the walk starts from it."""

    def fill(draft: Draft) -> None:
        made = make_corpus(work, prepared)
        pretrain.train(check(work), work.runtime, work.speller, made, draft)

    work.adapted = work.make(key(work, prepared), label_of(work), STAGE, fill, seed=work.settings.seed)
    return work.adapted


def need(work: Work, prepared: Artifact) -> Artifact:
    """The adapted model from the store; from here on the walk starts from it.

    Raises:
        MissingArtifact: it has not been trained; says which command does.
    """
    found = work.store.need(key(work, prepared), "adapted model of these settings", work.command(STAGE))
    work.adapted = found
    return found


def label_of(work: Work) -> str:
    """Draw and model, as part of a folder name."""
    return f"{work.draw_label}-{work.model_label}"


def make_corpus(work: Work, prepared: Artifact) -> Artifact:
    """The pool as a corpus, made or reused."""
    held_out = work.settings.adapt.held_out
    content = {"model": work.start_identity(), "held_out": held_out}
    wanted = Key(tokenize_corpus.STAGE, tokenize_corpus.VERSION, content, {"prepare": prepared.identity})

    def fill(draft: Draft) -> None:
        work.runtime.reporter.say("corpus: tokenising the pool")
        tokenize_corpus.write(draft, work.runtime, pool_documents(prepared), work.speller, held_out)

    return work.make(wanted, label_of(work), tokenize_corpus.STAGE, fill)


def pool_documents(prepared: Artifact) -> Iterator[str]:
    """The texts of the pool, fields side by side."""
    for chunk in drawn_texts.load(prepared).pool.chunks():
        for fields in zip(*chunk.fields.values(), strict=True):
            yield " ".join(filter(None, fields))
