"""prepare: read the task's texts and draw labelled texts, unlabelled pool and test set by the run's seed.

Texts that were labelled by hand (`data.train_files`) are labelled texts beside those drawn.

Writes train.parquet, pool.parquet, test.parquet (id, fields; label where it may be known), pool_gold.parquet (the
labels of the pool, where the source has them: opened by `evaluate` alone) and report.json (sizes, near-duplicates).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pet.algorithms.metrics import describe_absent
from pet.config.identity import identity_settings
from pet.errors import TaskError
from pet.pipeline.context import RunContext
from pet.pipeline.drawn_texts import Splits
from pet.pipeline.node import Node, Stage
from pet.store.draft import Draft
from pet.store.files import digest_json
from pet.store.store import Artifact
from pet.tasks.labels import LabelSpace
from pet.tasks.near_duplicates import count_near_duplicates
from pet.tasks.splits import Draw, draw_by_seed, draw_first
from pet.tasks.texts import Texts, marks, read_texts, rows_from, write_texts


def node(ctx: RunContext) -> Node:
    """Depends on the texts themselves, fields and labels in order, sizes and seed; not on where they were read from."""
    settings, card, given = ctx.settings, ctx.card, ctx.given_labels.labels
    content = {
        "texts": ctx.task.digests,
        "fields": list(card.fields),
        "labels": list(card.labels),
        "data": identity_settings(settings.data),
        **({"given_labels": digest_json(given)} if given else {}),
        **({"words_from": digest_json(sorted(set(card.words_from)))} if card.words_from else {}),
        "seed": settings.seed if settings.data.draw == "seed" else None,
    }
    return ctx.node(STAGE, [], content, {}, about=ctx.draw_label, label=ctx.draw_label)


def make(ctx: RunContext, draft: Draft) -> None:
    """Draw the splits.

    Raises:
        TaskError: the source is unusable or has too few texts for the sizes asked for.
    """
    card = ctx.card
    ctx.say(f"prepare: drawing the texts of {card.name!r}")
    splits, gold = draw_splits(ctx)
    write_splits(draft, splits, gold)
    report = describe_splits(splits)
    draft.write_json("report.json", report)
    absent = describe_absent(ctx.labels.absent(splits.test.labels), card.metric, len(card.labels))
    for line in (summarise(report), *shortages(ctx, report["sizes"]), *([absent] if absent else [])):
        ctx.say(f"prepare: {line}")


STAGE = Stage("prepare", version=1, make=make, step="prepare")


def say_notes(ctx: RunContext) -> None:
    """Say what was made of the labels given by hand, and which texts are not tested on, whether or not the splits are
    there already."""
    words_from = set(ctx.card.words_from)
    if words_from:
        ctx.say(f"{len(words_from)} texts chose the card's label words; no run tests on them")
    for note in (*(note for file in ctx.given_labels.files for note in file.notes()), *word_remarks(ctx)):
        ctx.say(note)


def remarks(ctx: RunContext) -> list[str]:
    """What a person should look at before a run, a sentence each."""
    return [*(remark for file in ctx.given_labels.files for remark in file.remarks()), *word_remarks(ctx)]


def word_remarks(ctx: RunContext) -> list[str]:
    """What became of the texts whose labels chose the card's words."""
    words_from = set(ctx.card.words_from)
    if not words_from:
        return []
    found = {split: words_from.intersection(marks(texts)) for split, texts in ctx.task.source.items()}
    notes = []
    if tested := found.get("test"):
        notes.append(
            f"{len(tested)} texts of the test file chose the card's label words (words_from): they are left out"
        )
    if gone := words_from.difference(*found.values()):
        notes.append(
            f"{len(gone)} of the {len(words_from)} texts that chose the card's label words (words_from) are not among "
            "the task's texts as the card reads them now; if they are there in other words, a run may test on them"
        )
    return notes


def shortages(ctx: RunContext, sizes: dict[str, int]) -> list[str]:
    """Of which splits more was asked for than there is."""
    data = ctx.settings.data
    pool = data.pool_per_label * len(ctx.card.labels)
    lines = []
    if sizes["pool"] < pool:
        lines.append(f"data.pool_per_label asks for {pool:,} pool texts, these are all there are")
    if data.test and sizes["test"] < data.test:
        lines.append(f"data.test asks for {data.test:,} test texts, these are all there are")
    return lines


def expected_sizes(ctx: RunContext) -> dict[str, int]:
    """Number of texts per split that a draw will come to; nothing is written.

    Raises:
        TaskError: as `make`.
    """
    splits, _ = draw_splits(ctx)
    return {"train": len(splits.train), "pool": len(splits.pool), "test": len(splits.test)}


def untested(artifact: Artifact) -> list[str]:
    """The labels that no test text has."""
    space = LabelSpace(tuple(artifact.manifest["settings"]["labels"]))
    return space.absent(read_texts(artifact.file("test.parquet")).labels)


def draw_splits(ctx: RunContext) -> tuple[Splits[Texts], list[str | None]]:
    """Splits and the pool's hidden labels."""
    data, labels = ctx.settings.data, ctx.card.labels
    source = ctx.task.source
    side, given = ctx.task.train_side, ctx.given_labels.labels
    rows = [row for row, name in enumerate(side.ids) if name in given] if given else []
    words_from = set(ctx.card.words_from)
    test_side = (
        labelled_only(without(source["test"], rows_from(source["test"], words_from))) if "test" in source else None
    )
    if data.draw == "first":
        if test_side is None:
            raise TaskError(f"task {ctx.card.name!r} has no test split, as data.draw=first needs; use data.draw=seed")
        draw = draw_first(
            side.labels, labels, data.train_examples, data.pool_per_label, data.test, len(test_side), rows
        )
    else:
        draw = draw_by_seed(
            side.labels,
            labels,
            data.train_examples,
            data.pool_per_label * len(labels),
            data.test,
            ctx.settings.seed,
            None if test_side is None else len(test_side),
            rows,
            rows_from(side, words_from) if test_side is None else (),
        )
    return take_splits(side, test_side, draw, given)


def take_splits(
    side: Texts, test_side: Texts | None, draw: Draw, given: Mapping[str, str]
) -> tuple[Splits[Texts], list[str | None]]:
    """The drawn texts; the pool loses its labels here and nowhere else. `given`: id -> label given by hand, which
    counts more than the source's."""
    pool, train = side.take(draw.pool), side.take(draw.train)
    train = replace(train, labels=[given.get(name, label) for name, label in zip(train.ids, train.labels, strict=True)])
    splits = Splits(train, pool.unlabelled(), (side if test_side is None else test_side).take(draw.test))
    return splits, pool.labels


def without(texts: Texts, rows: Sequence[int]) -> Texts:
    """All texts but those at `rows`."""
    out = set(rows)
    return texts.take([row for row in range(len(texts)) if row not in out]) if out else texts


def labelled_only(texts: Texts) -> Texts:
    """Test texts without a label cannot be scored."""
    return texts.take([row for row, label in enumerate(texts.labels) if label is not None])


def write_splits(draft: Draft, splits: Splits[Texts], gold: list[str | None]) -> None:
    """One Parquet file per split."""
    write_texts(draft.path / "train.parquet", splits.train)
    write_texts(draft.path / "pool.parquet", splits.pool, labelled=False)
    write_texts(draft.path / "test.parquet", splits.test)
    write_texts(draft.path / "pool_gold.parquet", Texts(splits.pool.ids, {}, gold))


def describe_splits(splits: Splits[Texts]) -> dict[str, Any]:
    """Sizes, and how many test texts say nearly the same as a labelled or a pool text."""
    texts = {"train": splits.train, "pool": splits.pool, "test": splits.test}
    joined = {name: map(one.joined, range(len(one))) for name, one in texts.items()}
    return {
        "sizes": {name: len(one) for name, one in texts.items()},
        "near_duplicates": count_near_duplicates(**joined),
    }


def summarise(report: dict[str, Any]) -> str:
    """The report in one line."""
    sizes, near = report["sizes"], report["near_duplicates"]
    line = f"{sizes['train']} labelled, {sizes['pool']} pool, {sizes['test']} test texts"
    if near["test_of_train"] or near["test_of_pool"]:
        line += f"; {near['test_of_train']} test texts nearly repeat a labelled one, {near['test_of_pool']} a pool text"
    return line
