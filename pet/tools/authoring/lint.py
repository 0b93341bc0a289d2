"""What is wrong, or worth a look, in a task's patterns, words and texts before a run: as data. Prints nothing.

A *problem* is what a run would stop at or could not learn from; a *remark* is for a person to judge:

    problem  a word that is not one token; labels whose words are the same tokens; the same question twice; a pattern
             that does not fit into model.max_length; texts that cannot be read; a label without a labelled text where
             others have some; every pattern gives every text one and the same label
    remark   some words of two labels are the same token; a label that a pattern never gives; texts cut to fit; texts
             that stand in two splits; no labelled text at all; sizes that cannot be drawn

One pattern that gives all texts one label is a remark: asked untuned, it may only lean to a frequent word, and training
mends that.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pet.algorithms.metrics import describe_absent
from pet.errors import PetError, TaskError
from pet.modeling.prompts import EncodedTexts, Encoder
from pet.modeling.tokenization import TokenColumn, TokenizedTexts, mask_glue
from pet.modeling.verbalizers import encode_verbalizers
from pet.pipeline import drawn_texts
from pet.pipeline.context import RunContext
from pet.pipeline.stages import prepare
from pet.tasks.near_duplicates import count_near_duplicates
from pet.tasks.patterns import PVP
from pet.tasks.splits import derive_seed
from pet.tasks.texts import Texts, concatenate
from pet.tools.authoring.estimate import Estimate, estimate_run
from pet.tools.authoring.untuned import UntunedModel

TRUSTED = 20
"""Texts from which on one label for all of them is no accident."""

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Finding:
    """One sentence. `where`: the pattern, verbalizer or texts that it is about."""

    kind: Literal["problem", "remark"]
    where: str
    text: str


@dataclass(frozen=True)
class Answers:
    """What an untuned pattern says of the sample.

    `example`: one row as the model sees it; `cut`: share of the texts that are shortened to fit; `given`: how many
    texts get each label; `right` of `known` texts with a label get that label; `agreement`: share of the texts that
    another pattern gives the same label, mean over the others (`None`: there is no other).
    """

    number: int
    source: str
    example: str
    cut: float
    given: dict[str, int]
    right: int
    known: int
    agreement: float | None


@dataclass(frozen=True)
class Check:
    """Everything that was found. `shared`: a run draws its test texts from those that were sampled from."""

    findings: list[Finding]
    answers: list[Answers]
    sampled: int
    estimate: Estimate | None
    shared: bool = False

    @property
    def problems(self) -> list[Finding]:
        """Those that a run would stop at or could not learn from."""
        return [one for one in self.findings if one.kind == "problem"]


def check(ctx: RunContext, sample: int) -> Check:
    """Look at patterns, words and texts, and ask every pattern that can be asked about `sample` texts.

    Labels of the sampled texts are looked at.

    Raises:
        TaskError: the card cannot be loaded.
        ModelError, SettingsError: the model cannot be loaded, or reads less than `model.max_length`.
    """
    pvps, findings = ask_words(ctx)
    findings += same_questions(ctx)
    encoders, too_long = fit(ctx, pvps)
    findings += too_long
    try:
        source = ctx.task.source
    except TaskError as problem:
        return Check([*findings, Finding("problem", "texts", str(problem))], [], 0, None)
    splits, drawn = draw(ctx)
    findings += [*drawn, *labels_without_texts(ctx, source), *leaks(source, splits), *untested(ctx, splits)]
    texts = sample_texts(source, sample, ctx.settings.seed)
    if not encoders:
        return Check(findings, [], len(texts), None)
    answers, estimate = ask(ctx, [pvp for pvp in pvps if pvp.number in encoders], encoders, texts, splits)
    findings += doubts(answers, ctx.card.labels, len(texts))
    if cut := max(one.cut for one in answers):
        text = f"{cut:.0%} are cut to fit model.max_length, which is {ctx.settings.model.max_length} tokens"
        findings.append(Finding("remark", "texts", text))
    return Check(findings, answers, len(texts), estimate, shared="test" not in source)


# ---- words and patterns --------------------------------------------------------------------------------------------


def ask_words(ctx: RunContext) -> tuple[list[PVP], list[Finding]]:
    """The patterns whose words can be asked for, and what is wrong with the others' or doubtful."""
    usable: list[PVP] = []
    found: dict[Finding, None] = {}  # a verbalizer has as many findings as patterns, all the same
    for pvp in ctx.pvps:
        tokens, problems = spell_words(ctx, pvp)
        of_pattern = [*problems, *shared_words(pvp, tokens)]
        found |= dict.fromkeys(of_pattern)
        if not any(one.kind == "problem" for one in of_pattern):
            usable.append(pvp)
    return usable, list(found)


def spell_words(ctx: RunContext, pvp: PVP) -> tuple[dict[str, dict[str, int]], list[Finding]]:
    """Label -> word -> its token as it stands at the mask; and the words that are not one."""
    tokens: dict[str, dict[str, int]] = {label: {} for label in pvp.words}
    problems = []
    for label, words in pvp.words.items():
        for word in words:
            token = ctx.prompt_tokenizer.word_id(word, mask_glue(pvp.pattern))
            if isinstance(token, int):
                tokens[label][word] = token
            else:
                unknown = f"is not known to {ctx.prompt_tokenizer.name!r}"
                what = f"is {len(token)} tokens {token}" if len(token) > 1 else unknown
                text = f"word {word!r} {what}; take one that is one token"
                problems.append(Finding("problem", f"label {label!r}", text))
    return tokens, problems


def shared_words(pvp: PVP, tokens: Mapping[str, Mapping[str, int]]) -> Iterator[Finding]:
    """Labels that cannot be told apart, or not by all of their words."""
    for one, other in combinations(tokens, 2):
        mine, theirs = Counter(tokens[one].values()), Counter(tokens[other].values())
        both = [word for word, token in tokens[one].items() if token in theirs]
        where = f"labels {one!r} and {other!r}"
        if mine and mine == theirs:
            words = f"{list(pvp.words[one])} and {list(pvp.words[other])}"
            yield Finding("problem", where, f"their words {words} are the same tokens; change one")
        elif both:
            yield Finding("remark", where, f"{both} of the one is the same token as a word of the other")


def same_questions(ctx: RunContext) -> Iterator[Finding]:
    """Patterns that are one question with one set of words, however they are written."""
    first: dict[Any, int] = {}
    for pvp in ctx.pvps:
        tokens, _ = spell_words(ctx, pvp)
        key = (pvp.pattern.segments, tuple(tuple(sorted(one.values())) for one in tokens.values()))
        if key in first:
            text = f"asks the same as p{first[key]}, with the same words; remove one"
            yield Finding("problem", f"p{pvp.number}", text)
        first.setdefault(key, pvp.number)


def fit(ctx: RunContext, pvps: Sequence[PVP]) -> tuple[dict[int, Encoder], list[Finding]]:
    """Number of a pattern -> its encoder, and the patterns that leave no room for a text."""
    encoders, found = {}, []
    for pvp in pvps:
        try:
            encoders[pvp.number] = ctx.encoder(pvp)
        except PetError as problem:
            found.append(Finding("problem", f"p{pvp.number}", str(problem)))
    return encoders, found


# ---- texts ---------------------------------------------------------------------------------------------------------


def draw(ctx: RunContext) -> tuple[drawn_texts.Splits[Texts] | None, list[Finding]]:
    """The splits that a run with these settings draws; a remark where it cannot, or on texts that are not what
    they were."""
    try:
        remarks = [Finding("remark", "texts", note) for note in prepare.remarks(ctx)]
        return prepare.draw_splits(ctx)[0], remarks
    except TaskError as problem:
        return None, [Finding("remark", "texts", f"a run with these sizes would stop: {problem}")]


def labels_without_texts(ctx: RunContext, source: Mapping[str, Texts]) -> Iterator[Finding]:
    """Labels that cannot be learned, as no text has them."""
    without = ctx.labels.absent(source["train"].labels if "train" in source else [])
    if len(without) == len(ctx.labels):
        yield Finding("remark", "texts", "none has a label: patterns can be asked untuned, nothing can be learned")
        return
    text = "no labelled text has it, and training needs one of each; label one or remove it from the card"
    yield from (Finding("problem", f"label {label!r}", text) for label in without)


def leaks(source: Mapping[str, Texts], splits: drawn_texts.Splits[Texts] | None) -> Iterator[Finding]:
    """Texts of one split that stand in another: word for word in the files, nearly in the splits of a run."""
    texts = {split: [one.joined(row).casefold() for row in range(len(one))] for split, one in source.items()}
    test = set(texts.get("test", ()))
    for split in ("train", "unlabelled"):
        if same := sum(one in test for one in texts.get(split, ())):
            yield Finding("remark", "texts", f"{same:,} {split} texts of the source stand in its test set too")
    if splits is None:
        return
    parts = {"train": splits.train, "pool": splits.pool, "test": splits.test}
    near = count_near_duplicates(**{name: map(one.joined, range(len(one))) for name, one in parts.items()})
    said = {
        "test_of_train": "test texts nearly repeat a labelled one",
        "test_of_pool": "test texts nearly repeat a pool text",
        "pool_of_train": "pool texts nearly repeat a labelled one",
    }
    for name, text in said.items():
        if near[name]:
            yield Finding("remark", "texts", f"of this seed's draw, {near[name]:,} {text}")


def untested(ctx: RunContext, splits: drawn_texts.Splits[Texts] | None) -> Iterator[Finding]:
    """That no test text of a run has some label."""
    absent = ctx.labels.absent(splits.test.labels) if splits else []
    if said := describe_absent(absent, ctx.card.metric, len(ctx.labels)):
        yield Finding("remark", "texts", f"of this seed's draw, {said}")


def sample_texts(source: Mapping[str, Texts], size: int, seed: int) -> Texts:
    """At most `size` texts of the train side, drawn by the seed; up to half of them labelled, where there are so many,
    and more where there are no others. Never of a test file."""
    side = concatenate([source[split] for split in ("train", "unlabelled") if split in source])
    order = np.random.default_rng(derive_seed("check", seed)).permutation(len(side)).tolist()
    labelled = [row for row in order if side.labels[row] is not None]
    others = [row for row in order if side.labels[row] is None]
    chosen = labelled[: max(size // 2, size - len(others))]
    return side.take([*chosen, *others[: size - len(chosen)]])


# ---- asking --------------------------------------------------------------------------------------------------------


def ask(
    ctx: RunContext,
    pvps: Sequence[PVP],
    encoders: Mapping[int, Encoder],
    texts: Texts,
    splits: drawn_texts.Splits[Texts] | None,
) -> tuple[list[Answers], Estimate | None]:
    """Every pattern's answers on the sample, and from how long that took, what a run takes."""
    model = UntunedModel(ctx.settings.model, ctx.prompt_tokenizer, ctx.runtime)
    tokens = TokenizedTexts(ctx.prompt_tokenizer, texts)
    rows = [encoders[pvp.number].encode(tokens) for pvp in pvps]
    choices, spent = [], []
    for pvp, one, words in zip(pvps, rows, encode_verbalizers(ctx.prompt_tokenizer, pvps, ctx.card.name), strict=True):
        begun = time.perf_counter()
        scores = model.label_scores(one, words, f"p{pvp.number}")
        spent.append((time.perf_counter() - begun) / float(one.lengths().sum()))
        choices.append(ctx.labels.decide(scores))
    # The fastest: the first warms up, and something else may have been running.
    estimate = None if splits is None else estimate_run(ctx, model.cloze, rows, splits, 1 / min(spent))
    return [
        describe(ctx, pvp, one, texts, choices, place) for place, (pvp, one) in enumerate(zip(pvps, rows, strict=True))
    ], estimate


def describe(
    ctx: RunContext, pvp: PVP, rows: EncodedTexts, texts: Texts, choices: Sequence[NDArray[np.intp]], place: int
) -> Answers:
    """One pattern's answers in numbers; `choices`: of all patterns the labels [N] they give, this one's at `place`."""
    mine, labels = choices[place], ctx.card.labels
    gold = ctx.labels.encode(texts.labels)
    sizes = rows.part_sizes(slice(None)).sum(1) + rows.encoder.frame.size
    is_cut = sizes > rows.encoder.max_length
    others = [float((mine == other).mean()) for number, other in enumerate(choices) if number != place]
    return Answers(
        pvp.number,
        pvp.pattern.source,
        show_row(rows, int(is_cut.argmax())),
        float(is_cut.mean()),
        {label: int((mine == number).sum()) for number, label in enumerate(labels)},
        int((mine == gold).sum()),
        int((gold >= 0).sum()),
        float(np.mean(others)) if others else None,
    )


def show_row(rows: EncodedTexts, row: int) -> str:
    """A row as the model sees it: its tokens decoded, and where a text was cut, how many tokens are missing."""
    encoder, tokenizer = rows.encoder, rows.encoder.prompt_tokenizer.tokenizer
    chosen = np.asarray([row])
    whole, kept = rows.part_sizes(chosen)[0], encoder.kept_sizes(rows, chosen)[0]
    shown = [tokenizer.decode(encoder.frame.before)]
    segment = 0
    for place, ((number, _, _), column) in enumerate(zip(encoder.parts, rows.columns, strict=True)):
        if number > segment:
            segment = number
            shown.append(tokenizer.decode(encoder.frame.between))
        size = kept[place : place + 1]
        ids = column.read(chosen, size) if isinstance(column, TokenColumn) else column
        shown.append(tokenizer.decode(ids.tolist()))
        if kept[place] < whole[place]:
            shown.append(f"<{whole[place] - kept[place]} tokens cut>")
    return " ".join(filter(None, (one.strip() for one in [*shown, tokenizer.decode(encoder.frame.after)])))


def doubts(answers: Sequence[Answers], labels: Sequence[str], sampled: int) -> Iterator[Finding]:
    """What the answers let one doubt."""
    always = [{label for label, count in one.given.items() if count} for one in answers]
    if sampled >= TRUSTED and len(set.union(*always)) == 1:
        text = f"every pattern gives all {sampled} texts the label {min(always[0])!r}; change words or patterns"
        yield Finding("problem", "patterns", text)
        return
    for one, given in zip(answers, always, strict=True):
        never = [label for label in labels if label not in given]
        if len(given) == 1:
            yield Finding("remark", f"p{one.number}", f"gives all {sampled} texts the label {min(given)!r}")
        elif never:
            yield Finding("remark", f"p{one.number}", f"never gives the label {', '.join(map(repr, never))}")
