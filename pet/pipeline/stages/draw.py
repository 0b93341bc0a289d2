"""draw: the training set of one member of iPET's next generation, labelled by some of the other members.

Takes the members of the generation before it, all but the member's own forerunner, chooses a share of them by lot,
pools their scores on the pool and draws texts by the labels they give, in the proportions of the labelled texts (P1
section 3.4). Writes train.parquet (the labelled texts and, after them, the drawn ones with the labels they were given)
and drawn.json (who labelled, and what was found for each label). How right those labels are is for `evaluate` to say.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pet.algorithms.ensemble import Array, pool_scores
from pet.algorithms.self_training import LabelDraw, apportion, choose_teachers, draw_texts, generations_for, schedule
from pet.config.identity import identity_settings
from pet.config.schema import Settings
from pet.pipeline import drawn_texts
from pet.pipeline.context import RunContext
from pet.pipeline.node import Node, Stage
from pet.pipeline.publishing import make_each
from pet.pipeline.score_files import open_scores
from pet.pipeline.stages import label, prepare
from pet.pipeline.stages.finetune import Members, Plan, members_of
from pet.store.draft import Draft
from pet.tasks.splits import derive_seed
from pet.tasks.texts import Texts, concatenate, write_texts

ENDLESS = 10**12
"""Texts of a pool that cuts no schedule short."""


def generations(ctx: RunContext) -> int:
    """How many ensembles there are after generation 0, one at least."""
    settings = ctx.settings
    return settings.ipet.generations or max(1, enough(settings, ctx.num_labelled))


def enough(settings: Settings, labelled: int) -> int:
    """How many the paper would have; none where there are as many labelled texts as its last training sets hold."""
    return generations_for(labelled, settings.ipet.growth, settings.ipet.first_examples)


def sizes(ctx: RunContext, labelled: int, pool: int) -> list[int]:
    """Texts in a training set of each generation, generation 0 first."""
    chosen = ctx.settings.ipet
    return schedule(labelled, pool, generations(ctx), chosen.growth, chosen.first_examples, chosen.pool_share)


def plans(ctx: RunContext, prepared: Node, before: Members, generation: int) -> list[Plan]:
    """The members of a generation, each with its training set."""
    wanted = [Plan(*one, generation) for one in members_of(ctx)]
    return [replace(plan, drawn=node(ctx, prepared, plan, teachers_of(ctx, plan, before))) for plan in wanted]


def node(ctx: RunContext, prepared: Node, plan: Plan, teachers: Members) -> Node:
    """Depends on who labels, on how much is drawn and how, and on whom it is for; not on how many generations there
    will be."""
    settings = {
        "generation": plan.generation,
        "ipet": identity_settings(ctx.settings.ipet),
        "label": identity_settings(ctx.settings.label),
        "labels": list(ctx.card.labels),
        "pattern": plan.pvp.name,
        "repetition": plan.repetition,
        "seed": ctx.settings.seed,
    }
    inputs = {f"member-{number}": one for number, one in enumerate(sorted(one.identity for one in teachers.tuned))}
    return ctx.node(
        STAGE,
        [prepared, plan, teachers],
        settings,
        {"prepare": prepared.identity, **inputs},
        about=f"{plan.label}  training set",
        label=f"{ctx.label}-{plan.label}",
        title=f"draw {plan.label}",
    )


def teachers_of(ctx: RunContext, plan: Plan, before: Members) -> Members:
    """Those who label a member's training set, chosen by the seed among the members of the generation before. Not its
    own forerunner, unless there is no other.

    An untuned pattern is asked once and stands for as many members as there are repetitions, as in the published code:
    where a share of the others is drawn, it is drawn among so many copies, may come several times, and counts as often.
    """
    copies = ctx.settings.finetune.repetitions if ctx.settings.ipet.teachers < 1 else 1
    others: list[tuple[Plan, Node]] = []
    for one, made in zip(before.plans, before.tuned, strict=True):
        is_own = one.pvp.number == plan.pvp.number and one.repetition in (plan.repetition, None)
        others += [(one, made)] * ((copies if one.repetition is None else 1) - is_own)
    others = others or list(zip(before.plans, before.tuned, strict=True))
    others = sorted(others, key=lambda pair: (pair[0].pvp.name, pair[0].repetition or 0))
    rng = np.random.default_rng(stream(ctx, "teachers", plan))
    chosen = choose_teachers(others, ctx.settings.ipet.teachers, rng)
    return Members(before.untuned, [one for one, _ in chosen], [made for _, made in chosen])


def stream(ctx: RunContext, purpose: str, plan: Plan) -> int:
    """A seed of what is random here."""
    return derive_seed(purpose, ctx.settings.seed, plan.generation, plan.pvp.name, plan.repetition)


def make_all(ctx: RunContext, nodes: Sequence[Node], kept: dict[str, Any], wait: bool) -> None:
    """Draw the training sets of one generation, then say which labels were hardly predicted."""
    make_each(ctx, nodes, wait)
    generation = nodes[0].given[1].generation
    for line in remarks(ctx.card.labels, [node.artifact.read_json("drawn.json") for node in nodes]):
        ctx.say(f"generation {generation}: {line}")


def describe(teachers: Members) -> str:
    """Who labels, as the beginning of a sentence."""
    counts = Counter(plan.label for plan in teachers.plans)
    names = [name + (f" ({count}x)" if count > 1 else "") for name, count in counts.items()]
    return ", ".join(names) + (" gives" if len(names) == 1 else " give")


def describe_teachers(teachers: Members, weights: Array) -> list[dict[str, Any]]:
    """One entry for each teacher: its weight in all, and how many times it was drawn, where that is more than once."""
    names = [plan.label for plan in teachers.plans]
    found = []
    for name, made in dict(zip(names, teachers.tuned, strict=True)).items():
        own = [float(weight) for one, weight in zip(names, weights, strict=True) if one == name]
        times = {"times": len(own)} if len(own) > 1 else {}
        found.append({"member": name, "identity": made.identity, "weight": round(sum(own), 6), **times})
    return found


def make(ctx: RunContext, draft: Draft, prepared: Node, plan: Plan, teachers: Members) -> None:
    """Draw and write one training set."""
    ctx.say(f"draw {plan.label}: {describe(teachers)} the labels")
    splits, labels = drawn_texts.load(prepared.artifact), ctx.card.labels
    weights = label.weigh(ctx, teachers)
    pooled = pool_scores(read_pool_scores(teachers), weights)
    opinion = ctx.labels.probabilities(pooled + label.find_shift(ctx, lambda: pooled))
    counts = ctx.labels.count(ctx.labels.encode(splits.train.labels)).tolist()
    size = sizes(ctx, len(splits.train), len(splits.pool))[plan.generation] - len(splits.train)
    wanted = apportion(size, counts if len(splits.train) else [1] * len(labels))
    first = not len(splits.train) and plan.generation == 1
    candidates = ctx.settings.ipet.first_candidates if first else None
    rng = np.random.default_rng(stream(ctx, "draw", plan))
    drawn = draw_texts(opinion, wanted, rng, candidates, ctx.settings.ipet.surest)
    write_texts(draft.path / "train.parquet", concatenate([splits.train, label_texts(splits.pool, drawn, labels)]))
    report = {
        "generation": plan.generation,
        "teachers": describe_teachers(teachers, weights),
        "labelled": len(splits.train),
        "labels": {
            name: {"wanted": size, "drawn": len(one.rows), "predicted": one.predicted, "filled": one.filled}
            for name, size, one in zip(labels, wanted, drawn, strict=True)
        },
    }
    draft.write_json("drawn.json", report)


STAGE = Stage("draw", version=1, make=make, step="draw", make_all=make_all)


def read_pool_scores(members: Members) -> NDArray[np.float32]:
    """Their scores on the pool [M, N, L]."""
    found = []
    for one in members.tuned:
        with open_scores(one.artifact, "pool") as scores:
            found.append(scores[:])
    return np.stack(found)


def label_texts(pool: Any, drawn: Sequence[LabelDraw], labels: Sequence[str]) -> Texts:
    """The drawn texts with the labels they were drawn for, label by label."""
    rows = [int(row) for one in drawn for row in one.rows]
    texts = pool.take(rows)
    given: list[str | None] = [name for name, one in zip(labels, drawn, strict=True) for _ in one.rows]
    return Texts(texts.ids, texts.fields, given)


def describe_schedule(ctx: RunContext) -> list[str]:
    """What is going to happen: the training sets' sizes, and who labels them."""
    expected = prepare.expected_sizes(ctx)
    labelled, pool = expected["train"], expected["pool"]
    planned = sizes(ctx, labelled, pool)
    members = len(members_of(ctx))
    grown = " -> ".join(f"{size:,}" for size in planned)
    each = f"{members} member{'s' * (members > 1)} each"
    later = "" if labelled else ", generation 0 the patterns untuned"
    lines = [f"ipet: {grown} labelled texts, {each}{later}"]
    if planned != sizes(ctx, labelled, ENDLESS):
        lines.append(
            f"ipet: no more than {planned[-1] - labelled:,} of the {pool:,} pool texts are drawn (ipet.pool_share "
            f"{ctx.settings.ipet.pool_share:g})"
        )
    if 0 < labelled < len(ctx.card.labels):
        lines.append(
            f"ipet: {labelled} labelled texts are too few for {len(ctx.card.labels)} labels; a label without one is "
            "never drawn for"
        )
    if members == 1:
        lines.append("ipet: there is one member, so it labels its own training sets")
    return lines


def remarks(labels: Sequence[str], reports: Sequence[dict[str, Any]]) -> list[str]:
    """What a person should know of the training sets just drawn: labels that were hardly predicted."""
    lines = []
    for name in labels:
        found = [one["labels"][name] for one in reports]
        never = sum(one["wanted"] > 0 and one["predicted"] == 0 for one in found)
        filled = sum(one["filled"] for one in found)
        if never:
            lines.append(
                f"no text was labelled {name!r} by those who label for {never} of {len(found)} members; the texts that "
                "come nearest to it were taken"
            )
        elif filled:
            lines.append(f"{filled} of the texts drawn as {name!r} were given another label; too few were given it")
    return lines
