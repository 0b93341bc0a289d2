"""iPET: generations of ensembles, each trained on larger sets that the one before it labelled (P1 section 3.4).

The walk alone. Generation 0 is PET's ensemble, the same artifacts; the last one labels the pool for the student. What
is drawn and how is the business of `stages/draw`.
"""

from pet.pipeline.context import RunContext, mending
from pet.pipeline.members.data import MemberData
from pet.pipeline.runner import Outcome, adapt_model, check, publish_run
from pet.pipeline.stages import distill, draw, evaluate, finetune, label, prepare
from pet.pipeline.stages.evaluate import Generation
from pet.pipeline.stages.finetune import Members
from pet.store.store import Artifact

ENDLESS = 10**12
"""Texts of a pool that cuts no schedule short."""


def run_ipet(ctx: RunContext) -> Artifact:
    """All generations, the student and the run's artifact; what is in the store already is reused.

    Raises:
        PetError: of any stage.
    """
    check(ctx)
    for line in describe_schedule(ctx):
        ctx.runtime.reporter.say(line)
    return mending(ctx.store, ctx.runtime, lambda: walk(ctx))


def walk(ctx: RunContext) -> Artifact:
    """As `run_ipet`; a damaged artifact is raised."""
    prepared = prepare.run(ctx)
    adapted = adapt_model(ctx, prepared, here=True)
    member_data = MemberData(ctx, prepared)
    finetune.make(member_data, finetune.distinct(*finetune.plans(ctx)))
    members = finetune.need(ctx, prepared)
    generations = [Generation(members, label.run(ctx, prepared, members))]
    for number in range(1, draw.generations(ctx) + 1):
        plans = draw.run(ctx, prepared, members, number)
        finetune.make(member_data, plans)
        members = Members(members.untuned, plans, finetune.find(ctx, prepared, plans))
        generations.append(Generation(members, label.run(ctx, prepared, members)))
    labelled = generations[-1].labelled
    student = ctx.train(distill, prepared, labelled)
    scored = evaluate.run(ctx, prepared, members, labelled, student)
    base = evaluate.find_baseline(ctx, prepared)
    return publish_run(ctx, Outcome(prepared, adapted, generations, student, scored, base))


def describe_schedule(ctx: RunContext) -> list[str]:
    """What is going to happen: the training sets' sizes, and who labels them."""
    expected = prepare.expected_sizes(ctx)
    labelled, pool = expected["train"], expected["pool"]
    sizes = draw.sizes(ctx, labelled, pool)
    members = len(finetune.members_of(ctx))
    grown = " -> ".join(f"{size:,}" for size in sizes)
    each = f"{members} member{'s' * (members > 1)} each"
    later = "" if labelled else ", generation 0 the patterns untuned"
    lines = [f"ipet: {grown} labelled texts, {each}{later}"]
    if sizes != draw.sizes(ctx, labelled, ENDLESS):
        lines.append(
            f"ipet: no more than {sizes[-1] - labelled:,} of the {pool:,} pool texts are drawn (ipet.pool_share "
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
