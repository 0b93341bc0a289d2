"""This process as what makes artifacts, one after another."""

from collections.abc import Sequence
from typing import Any

from pet.pipeline.context import RunContext
from pet.pipeline.node import Node, Stage
from pet.pipeline.publishing import make_each


class LocalExecutor:
    """Makes artifacts in this process. What a training stage has loaded is kept until another one needs the room: the
    next generation of members starts from the same model and texts."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}
        self._stage = ""

    def make(self, ctx: RunContext, nodes: Sequence[Node], wait: bool = True) -> None:
        """Make these artifacts, all of one stage. `wait`: also for those that other processes are making."""
        stage = nodes[0].stage
        kept = self.room_for(stage)
        if stage.make_all:
            stage.make_all(ctx, nodes, kept, wait)
        else:
            make_each(ctx, nodes, wait)

    def room_for(self, stage: Stage) -> dict[str, Any]:
        """What a stage has kept, if no other one has trained since."""
        if stage.trains and stage.name != self._stage:
            self.kept.clear()
            self._stage = stage.name
        return self.kept
