"""The command line: `pet run` and what else people type. A command parses, calls one function, prints.

Everything heavy is imported inside the commands, so that `pet --help` answers at once.
"""

import click

from pet.cli.check import check
from pet.cli.export import export
from pet.cli.group import PetGroup
from pet.cli.init import init
from pet.cli.ipet import ipet
from pet.cli.merge import merge
from pet.cli.predict import predict
from pet.cli.pretrain import pretrain
from pet.cli.report import report
from pet.cli.run import run
from pet.cli.runs import runs
from pet.cli.suggest import suggest
from pet.cli.table import table
from pet.cli.tasks import tasks
from pet.cli.verbalize import verbalize


@click.group(cls=PetGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="pet", prog_name="pet")
def main() -> None:
    """Ten labels and a mountain of unlabelled text in, one classifier out (Pattern-Exploiting Training).

    \b
    Example:
        pet run                       the demo: BBC news, ten labels, on any two cores
        pet init mine --input my.csv  a task card for your own texts
        pet run agnews --data DIR     AG News from the original archive's files
        pet ipet agnews --data DIR    the same with iPET's generations
        pet table agnews --data DIR   methods, numbers of labels and seeds compared
    """


for one in (init, tasks, check, verbalize, run, ipet, table, suggest, predict, report, export, runs, pretrain, merge):
    main.add_command(one)
