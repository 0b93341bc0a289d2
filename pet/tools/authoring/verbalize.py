"""Label words found by the untuned masked LM itself, and the task card that uses them. The method is `petal`'s.

Only the labelled texts are looked at, those that `pet run` would draw; nothing is written to a store.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pet.algorithms.petal import Tally, words_of_labels
from pet.errors import TaskError, raise_problems
from pet.modeling.tokenization import TokenizedTexts, mask_glue, whole_words
from pet.pipeline.context import RunContext
from pet.pipeline.stages import prepare
from pet.store.files import new_file, readable_yaml, scalar
from pet.tasks.card import MAX_WORDS_FROM, TaskCard, load_card
from pet.tasks.sources import find_split
from pet.tasks.texts import Texts, marks
from pet.tools.authoring.untuned import UntunedModel

CHUNK = 256
"""Texts whose probabilities of every word are held at a time: 0.25 GB with the largest vocabularies (250,000 words)."""


@dataclass(frozen=True)
class Proposal:
    """Words for each label, the best first, each with its score in nats (`petal.words_of_labels`); `patterns`: the
    numbers of those that they are for; `texts`: how many labelled texts they were found on; `marks`: of those texts,
    where a run with another seed could test on them."""

    words: dict[str, list[tuple[str, float]]]
    patterns: tuple[int, ...]
    texts: int
    marks: tuple[str, ...]

    @property
    def verbalizer(self) -> dict[str, list[str]]:
        """Without the scores, as a task card has it."""
        return {label: [word for word, _ in found] for label, found in self.words.items()}


def propose(ctx: RunContext, count: int) -> Proposal:
    """`count` words for each label, the same for all patterns of the walk (P3's joint variant; alone for one).

    Raises:
        TaskError: a label has no labelled text, the vocabulary has too few words for the labels, or the texts are too
            many to be kept out of a test set that is drawn from them.
        ModelError, SettingsError: model or patterns cannot be used.
    """
    labels = ctx.card.labels
    prepare.say_notes(ctx)
    train = prepare.draw_splits(ctx)[0].train
    missing = [label for label in labels if label not in train.labels]
    if missing:
        raise TaskError(
            f"label words are found on labelled texts, and there is none of {', '.join(map(repr, missing))}; give "
            f"--train-examples {len(labels)} or more"
        )
    # Of a test file nothing was read. Without one, every seed draws its test texts from the same ones.
    read = () if "test" in ctx.task.source else tuple(sorted(set(marks(train))))
    if len(read) + len(ctx.card.words_from) > MAX_WORDS_FROM:
        raise TaskError(
            f"label words found on {len(train):,} texts need a test file, as a card cannot keep more than "
            f"{MAX_WORDS_FROM:,} texts out of the test set; give the card one, or lower --train-examples"
        )
    words, tally = count_words(ctx, train)
    found, scores = words_of_labels(tally, count)
    raise_problems(
        TaskError,
        f"model {ctx.settings.model.name!r}",
        [
            f"no word of its vocabulary is left for label {labels[number]!r}"
            for number, one in enumerate(found)
            if not one
        ],
    )
    chosen = {
        label: [(words[word], float(scores[number, word])) for word in found[number]]
        for number, label in enumerate(labels)
    }
    return Proposal(chosen, tuple(pvp.number for pvp in ctx.pvps), len(train), read)


def count_words(ctx: RunContext, train: Texts) -> tuple[list[str], Tally]:
    """Every word that could stand for a label, and what the untuned model says of it at the mask of all patterns."""
    prompt_tokenizer, pvps = ctx.prompt_tokenizer, ctx.pvps
    words, ids = whole_words(prompt_tokenizer, dict.fromkeys(mask_glue(pvp.pattern) for pvp in pvps))
    encoders = [ctx.encoder(pvp) for pvp in pvps]
    model = UntunedModel(ctx.settings.model, prompt_tokenizer, ctx.runtime)
    gold = ctx.labels.encode(train.labels)
    tally = Tally.empty(len(ctx.card.labels), len(words))
    for start in range(0, len(train), CHUNK):
        rows = range(start, min(start + CHUNK, len(train)))
        tokens = TokenizedTexts(prompt_tokenizer, train.take(rows))
        for pvp, encoder in zip(pvps, encoders, strict=True):
            asked = ids[mask_glue(pvp.pattern)]
            log_p = model.word_log_probabilities(encoder.encode(tokens), asked, f"pattern {pvp.number}")
            tally.add(log_p, gold[start : start + CHUNK])
    return words, tally


# ---- the card ------------------------------------------------------------------------------------------------------


def card_with(card: TaskCard, proposal: Proposal) -> tuple[dict[str, Any], str]:
    """The card with one more verbalizer, which the patterns that it is for name; and what it is called. Patterns that
    only differed in their words are one now."""
    name = next(name for name in ("auto", *(f"auto-{n}" for n in range(2, 1000))) if name not in card.verbalizers)
    values = card.model_dump(mode="json", exclude_unset=True)
    for number in proposal.patterns:
        values["patterns"][number] = {"pattern": card.entries[number].pattern, "verbalizer": name}
    patterns = values["patterns"]
    values["patterns"] = [one for number, one in enumerate(patterns) if one not in patterns[:number]]
    values["verbalizers"][name] = proposal.verbalizer
    if marked := {*card.words_from, *proposal.marks}:
        values["words_from"] = sorted(marked)
    return values, name


def write_card(path: Path, ctx: RunContext, proposal: Proposal) -> None:
    """Write a copy of the walk's task card that has the words and uses them; the words it had stay in it.

    Raises:
        TaskError: the path is no new YAML file, or cannot be written.
    """
    check_output(path)
    values, name = card_with(ctx.card, proposal)
    settings = ctx.settings
    comment = (
        f"# The card {ctx.card.name!r} with the label words {name!r}, found by `pet verbalize` (PETAL, Schick et al.\n"
        f"# 2020) for {scalar(settings.model.name)} on {proposal.texts} labelled texts of seed {settings.seed}. "
        "Another model may spell\n# them in several tokens.\n"
    )
    if proposal.marks:
        comment += "# words_from: the texts whose labels were read, by a digest of each; none is ever a test text.\n"
    with new_file(path, TaskError) as new:
        new.write_text(comment + as_yaml(values), encoding="utf-8")


def data_folder(ctx: RunContext, path: Path) -> str | None:
    """What --data a card written to `path` needs for the texts of the walk's card; `None`: nothing."""
    if ctx.settings.task.data is not None:
        return ctx.settings.task.data
    card, folder = load_card(ctx.settings.task.name)
    beside = card.folder.package is None if card.folder else card.files and find_split(card.files.train, folder)
    return str(folder) if beside and not path.absolute().parent.samefile(folder) else None


def check_output(path: Path) -> None:
    """Refuse what is not to be a task card, before the model is asked.

    Raises:
        TaskError: it exists, or is not called .yaml.
    """
    if path.suffix not in (".yaml", ".yml"):
        raise TaskError(f"{path} is to be a task card; give it a name that ends in .yaml")
    if path.exists():
        raise TaskError(f"{path} exists already; name a new file, or remove it")


def as_yaml(values: Any) -> str:
    """As a person would write it, lists of words on one line."""
    return readable_yaml(values, width=1000, default_flow_style=None)


def describe(proposal: Proposal) -> Sequence[str]:
    """A line for each label: its words with their scores."""
    width = max(map(len, proposal.words))
    return [
        f"{label:{width}}  " + ", ".join(f"{word} {score:+.2f}" for word, score in found)
        for label, found in proposal.words.items()
    ]
