"""iPET: generations of ensembles, each trained on larger sets that the one before it labelled (P1 section 3.4).

The walk alone. Generation 0 is PET's ensemble, the same artifacts; the last one labels the pool for the student. What
is drawn and how is the business of `stages/draw`.
"""

from pet.pipeline.context import Work, mending
from pet.pipeline.members.data import Bench
from pet.pipeline.runner import Outcome, adapt_model, check, publish_run
from pet.pipeline.stages import distill, draw, evaluate, finetune, label, prepare
from pet.pipeline.stages.evaluate import Generation
from pet.pipeline.stages.finetune import Members
from pet.store.store import Artifact

ENDLESS = 10**12
"""Texts of a pool that cuts no schedule short."""


def run_ipet(work: Work) -> Artifact:
    """All generations, the student and the run's artifact; what is in the store already is reused.

    Raises:
        PetError: of any stage.
    """
    check(work)
    for line in describe_schedule(work):
        work.runtime.reporter.say(line)
    return mending(work.store, work.runtime, lambda: walk(work))


def walk(work: Work) -> Artifact:
    """As `run_ipet`; a damaged artifact is raised."""
    prepared = prepare.run(work)
    adapted = adapt_model(work, prepared, here=True)
    bench = Bench(work, prepared)
    finetune.make(bench, finetune.distinct(*finetune.plans(work)))
    members = finetune.need(work, prepared)
    generations = [Generation(members, label.run(work, prepared, members))]
    for number in range(1, draw.generations(work) + 1):
        plans = draw.run(work, prepared, members, number)
        finetune.make(bench, plans)
        members = Members(members.untuned, plans, finetune.find(work, prepared, plans))
        generations.append(Generation(members, label.run(work, prepared, members)))
    labelled = generations[-1].labelled
    student = work.train(distill, prepared, labelled)
    scored = evaluate.run(work, prepared, members, labelled, student)
    base = evaluate.find_baseline(work, prepared)
    return publish_run(work, Outcome(prepared, adapted, generations, student, scored, base))


def describe_schedule(work: Work) -> list[str]:
    """What is going to happen: the training sets' sizes, and who labels them."""
    expected = prepare.expected_sizes(work)
    labelled, pool = expected["train"], expected["pool"]
    sizes = draw.sizes(work, labelled, pool)
    members = len(finetune.members_of(work))
    grown = " -> ".join(f"{size:,}" for size in sizes)
    each = f"{members} member{'s' * (members > 1)} each"
    later = "" if labelled else ", generation 0 the patterns untuned"
    lines = [f"ipet: {grown} labelled texts, {each}{later}"]
    if sizes != draw.sizes(work, labelled, ENDLESS):
        lines.append(
            f"ipet: no more than {sizes[-1] - labelled:,} of the {pool:,} pool texts are drawn (ipet.pool_share "
            f"{work.settings.ipet.pool_share:g})"
        )
    if 0 < labelled < len(work.card.labels):
        lines.append(
            f"ipet: {labelled} labelled texts are too few for {len(work.card.labels)} labels; a label without one is "
            "never drawn for"
        )
    if members == 1:
        lines.append("ipet: there is one member, so it labels its own training sets")
    return lines
