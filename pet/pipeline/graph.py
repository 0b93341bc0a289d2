"""The graph of a run: which artifacts it consists of, in the order in which they are made.

    prepare -> (adapt ->) finetune -> label -> distill ---> evaluate -> run
                             ^          |                      ^
                             +-- draw <-+  (iPET, each         +- baseline
                                            generation)

This is its only description. A run makes its nodes, a dry run lists them, --stage makes some of them, and a table makes
as much of many graphs as its rows need.
"""

from dataclasses import dataclass, field

from pet.pipeline.context import RunContext
from pet.pipeline.node import Node, Stage
from pet.pipeline.stages import adapt, baseline, distill, draw, evaluate, finetune, label, prepare, run
from pet.pipeline.stages.evaluate import Generation


@dataclass(frozen=True)
class Graph:
    """The nodes of a run, in the order in which they are made, and its generations of members."""

    nodes: list[Node] = field(default_factory=list)
    generations: list[Generation] = field(default_factory=list)

    def add(self, node: Node) -> Node:
        """Add a node after all that it needs."""
        self.nodes.append(node)
        return node

    def of(self, *stages: Stage) -> list[Node]:
        """The nodes of some stages."""
        return [node for node in self.nodes if node.stage in stages]


def build_graph(ctx: RunContext, generations: int = 0) -> Graph:
    """The graph of a run; nothing is made. `generations`: of iPET, after generation 0 (P1 section 3.4)."""
    graph = Graph()
    prepared = graph.add(prepare.node(ctx))
    adapted = graph.add(adapt.node(ctx, prepared)) if ctx.settings.adapt.enabled else None
    members = finetune.first_members(ctx, prepared, adapted)
    graph.nodes.extend({node.identity: node for node in (*members.untuned.values(), *members.tuned)}.values())
    graph.generations.append(Generation(members, graph.add(label.node(ctx, prepared, members))))
    for number in range(1, generations + 1):
        plans = draw.plans(ctx, prepared, members, number)
        graph.nodes.extend(plan.drawn for plan in plans if plan.drawn)
        members = finetune.next_members(ctx, prepared, adapted, members.untuned, plans)
        graph.nodes.extend(members.tuned)
        graph.generations.append(Generation(members, graph.add(label.node(ctx, prepared, members))))
    labelled = graph.generations[-1].labelled
    student = graph.add(distill.node(ctx, prepared, labelled, adapted))
    base = graph.add(baseline.node(ctx, prepared, adapted)) if ctx.num_labelled else None
    scored = graph.add(evaluate.node(ctx, prepared, members, labelled, student, base))
    graph.add(run.node(ctx, prepared, tuple(graph.generations), scored, tuple(graph.nodes)))
    return graph
