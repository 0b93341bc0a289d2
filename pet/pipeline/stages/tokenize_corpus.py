"""corpus: texts without labels as token ids, for `pretrain`: files, the texts of a task, or both.

Writes train.tokens and held_out.tokens (ids end to end) and corpus.json (their type; documents and tokens of each).
Made once for all trainings with this tokenizer.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

from pet.config.identity import identity_settings
from pet.config.schema import CorpusSettings, Pretraining
from pet.errors import CorpusError
from pet.modeling.tokenization import PromptTokenizer
from pet.pipeline.publishing import make
from pet.store.draft import Draft
from pet.store.files import digest_file, digest_json
from pet.store.key import Key
from pet.store.store import Artifact, Store
from pet.tasks.card import load_card
from pet.tasks.sources import load_texts
from pet.training import mlm_corpus
from pet.training.device import Runtime

STAGE = "corpus"
VERSION = 1


def key(settings: Pretraining, weights: str, texts: list[str]) -> Key:
    """Depends on the texts, in order, on the model (for its tokenizer) and on what is held out. `texts`: a task's."""
    chosen = settings.corpus
    content = {
        "files": [digest_file(path) for path in mlm_corpus.find_files(chosen.files)],
        "model": weights,
        **identity_settings(chosen),
    }
    if chosen.task:
        content["task"] = digest_json(texts)
    return Key(STAGE, VERSION, content, {})


def run(
    settings: Pretraining, store: Store, runtime: Runtime, prompt_tokenizer: PromptTokenizer, weights: str
) -> Artifact:
    """The corpus, made or reused. `weights`: fingerprint of the model.

    Raises:
        CorpusError, TaskError, StoreError: files, task or store will not do.
    """
    chosen = settings.corpus
    texts = task_texts(chosen.task, chosen.data) if chosen.task else []
    wanted = key(settings, weights, texts)

    def fill(draft: Draft) -> None:
        runtime.reporter.say(f"corpus: tokenising {', '.join(sources_of(chosen))}")
        documents = itertools.chain(mlm_corpus.read_documents(mlm_corpus.find_files(chosen.files)), texts)
        write(draft, runtime, documents, prompt_tokenizer, chosen.held_out)

    return make(store, runtime, wanted, label_of(settings), STAGE, fill)


def write(
    draft: Draft, runtime: Runtime, documents: Iterator[str], prompt_tokenizer: PromptTokenizer, held_out: float
) -> None:
    """Write documents as a corpus.

    Raises:
        CorpusError: too few documents.
    """
    counts = mlm_corpus.write_streams(draft.path, documents, prompt_tokenizer, held_out)
    draft.write_json("corpus.json", {"dtype": mlm_corpus.stream_type(prompt_tokenizer).str, **counts})
    said = ", ".join(f"{one['tokens']:,} tokens {name.replace('_', ' ')}" for name, one in counts.items())
    runtime.reporter.say(f"corpus: {said}")


def sources_of(settings: CorpusSettings) -> list[str]:
    """What it is made of, in words."""
    return [*settings.files, *([f"the texts of {settings.task}"] if settings.task else [])]


def label_of(settings: Pretraining) -> str:
    """Model and first source, as part of a folder name."""
    first = settings.corpus.files[0] if settings.corpus.files else Path(settings.corpus.task or "").with_suffix("")
    return f"{Path(settings.model.name).name}-{Path(first).name.partition('.')[0]}".lower()


def task_texts(name: str, data: str | None) -> list[str]:
    """The texts of a task that are not its test texts, fields side by side; labels are not looked at.

    Raises:
        TaskError: the card or its texts will not do.
        CorpusError: test texts are drawn from among the others, so any of them may be one.
    """
    splits = load_texts(*load_card(name), data=data)
    if "test" not in splits:
        raise CorpusError(
            f"task {name!r} has no test texts of its own: each seed draws them from its train texts, which therefore "
            "cannot be trained on; give a task with a test file, or texts of your own as corpus.files"
        )
    of_splits = [list(one.fields.values()) for split, one in splits.items() if split != "test"]
    return [" ".join(filter(None, fields)) for columns in of_splits for fields in zip(*columns, strict=True)]
