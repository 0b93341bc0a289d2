"""`pet ipet`: generations of ensembles, and the student of the last one."""

from typing import Any

import click

from pet.cli.run import walk, walk_options


@click.command()
@click.option("--generations", type=int, help="Ensembles after generation 0. [default: the paper's; 3 for 10 labels]")
@walk_options
def ipet(**given: Any) -> None:
    """Run a PIPELINE with iPET: each generation of members is trained on more texts, labelled by the one before.

    Generation 0 is the ensemble of `pet run`, the same artifacts. What is in the store already is reused: interrupted,
    or asked for more generations, the same command goes on from there. Settings: `ipet.*` in pet/config/schema.py.

    \b
    Examples:
        pet ipet
        pet ipet agnews --data archives/ag_news_csv --generations 3
        pet ipet agnews --data archives/ag_news_csv --generations 4 --train-examples 0
    """
    from pet.pipeline.runner import plan_ipet, run_ipet

    walk(run_ipet, plan_ipet, **given)
