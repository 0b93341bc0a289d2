"""run: what the stages of one run found, as one artifact that names all the others.

Writes summary.json, summary.md, settings.yaml, reading.json (what the card says about reading) and, where there is a
log, events.jsonl.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from pet.config.identity import fields_of, identity_settings
from pet.config.resolve import settings_yaml
from pet.config.schema import Settings
from pet.pipeline import drawn_texts, event_log
from pet.pipeline import summary as summary_module
from pet.pipeline.context import RunContext
from pet.pipeline.node import Node, Stage
from pet.pipeline.runs import READING
from pet.pipeline.stages import evaluate, prepare
from pet.pipeline.stages.evaluate import Generation
from pet.store.draft import Draft
from pet.store.store import Artifact
from pet.tasks.card import SOURCES, reading_of
from pet.tasks.texts import marks

IPET, ADAPT = fields_of(Settings, "ipet"), fields_of(Settings, "adapt")
"""Sections that are no part of the identity of a run without generations, and of one without in-domain training."""


def node(
    ctx: RunContext, prepared: Node, generations: Sequence[Generation], scored: Node, nodes: Sequence[Node]
) -> Node:
    """Depends on the settings, and on what was scored. `nodes`: all of the run."""
    is_ipet = len(generations) > 1
    unused = (frozenset() if is_ipet else IPET) | (frozenset() if ctx.settings.adapt.enabled else ADAPT)
    settings = identity_settings(ctx.settings, of_run=True, without=unused)
    inputs = {"evaluate": scored.identity}
    if is_ipet:
        inputs |= {f"generation-{number}": one.labelled.identity for number, one in enumerate(generations)}
    label = ctx.label + ("-ipet" if is_ipet else "")
    return ctx.node(STAGE, [prepared, generations, nodes], settings, inputs, about="summary", label=label)


def make(
    ctx: RunContext, draft: Draft, prepared: Node, generations: Sequence[Generation], nodes: Sequence[Node]
) -> None:
    """Write the summary."""
    artifacts: dict[str, list[Artifact]] = {}
    for step, of_step in groupby(nodes, lambda node: node.stage.step):
        artifacts.setdefault(step, []).extend(node.artifact for node in of_step)
    splits = prepared.artifact
    summary = summary_module.build_summary(
        ctx.settings, ctx.card.name, ctx.card.labels, artifacts, drawn_texts.sizes(splits), prepare.untested(splits)
    )
    if more := len(set(ctx.card.words_from).difference(marks(drawn_texts.load(splits).train))):
        summary["word_texts"] = more
    if len(generations) > 1:
        scored = [evaluate.score_generation(ctx, prepared, one) for one in generations]
        summary["generations"] = summary_module.flag_generations(scored)
    draft.write_json("summary.json", summary)
    (draft.path / "summary.md").write_text(summary_module.summary_markdown(summary), encoding="utf-8")
    (draft.path / "settings.yaml").write_text(settings_yaml(ctx.settings), encoding="utf-8")
    draft.write_json(READING, reading_of(ctx.card).model_dump(mode="json"))
    event_log.save(ctx.runtime.reporter, draft.path, draft.final.name)


STAGE = Stage("run", version=1, make=make, step="evaluate")


def checked(ctx: RunContext, made: Artifact) -> Artifact:
    """A run's artifact whose files are whole; prints where the card says otherwise how texts are read than it did.

    Raises:
        DamagedArtifact: a file is damaged, and can be made anew now.
    """
    kept = (READING,) if made.has(READING) else ()  # older runs have none
    for one in ("summary.json", "summary.md", "settings.yaml", *kept):
        made.file(one)
    if kept and (changed := changed_reading(made.read_json(READING), reading_of(ctx.card).model_dump(mode="json"))):
        ctx.say(
            f"run {made.path.name} was made when the card said otherwise how texts are read ({', '.join(changed)}), "
            f"and pet predict reads by that; to keep what it says now, remove {made.path} and run again"
        )
    return made


def changed_reading(kept: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What a card says otherwise about reading than it did, as dotted keys. The texts are the same: they are part
    of the run's identity."""
    changed = []
    for part in SOURCES:
        before, after = kept.get(part) or {}, now.get(part) or {}
        both = before.keys() & after.keys()
        changed += [f"{part}.{key}" for key in after if key in both and before[key] != after[key]]
        changed += [part] if bool(before) != bool(after) else []
    return changed
