"""`pet pretrain`: a masked language model trained on plain text."""

from pathlib import Path
from typing import Any

import click

from pet.cli.options import shared
from pet.cli.run import PLACES as RUN_PLACES
from pet.cli.run import flag_overrides, warn_of_code
from pet.errors import SettingsError

PLACES = RUN_PLACES | {
    "files": "corpus.files",
    "task": "corpus.task",
    "data": "corpus.data",
    "minutes": "pretrain.minutes",
}
"""Flag -> the setting that it sets."""


@click.command()
@click.argument("recipe", required=False)
@click.option(
    "--corpus", "files", multiple=True, help="Text file, one document a line, or .gz or .xz of it; repeat for several."
)
@click.option("--task", help="Task card whose texts are the corpus, those of its test set apart.")
@click.option("--data", help="Folder with that task's files.")
@click.option("--model", help="Model to start from: `mini`, `mini-encoder`, a folder or a hub id.")
@click.option("--minutes", type=float, help="Stop after so many minutes of training.")
@click.option("--seed", type=int, help="Seed of the order of the texts and of what is masked.")
@shared("set", "store", "device", "precision", "tracker", "trust")
@click.option("-v", "--verbose", is_flag=True, help="Also show losses as they are logged.")
def pretrain(
    recipe: str | None,
    files: tuple[str, ...],
    assignments: tuple[str, ...],
    store: str,
    tracker: str,
    verbose: bool,
    **flags: Any,
) -> None:
    """Train a masked language model on plain text, by a RECIPE (a YAML file) or the flags alone.

    What comes out can be named as --model of `pet run`. A model without an LM head, as a sentence encoder is, is given
    one. Interrupted, the same command goes on from the last checkpoint.

    \b
    Examples:
        pet pretrain --model mini-encoder --corpus english.txt.xz --minutes 10
        pet pretrain --model roberta-base --task agnews --data archives/ag_news_csv
    """
    from pet.cli.screen import Screen
    from pet.config.resolve import resolve_pretraining
    from pet.pipeline.event_log import open_log
    from pet.pipeline.stages import pretrain as stage
    from pet.pipeline.stages import tokenize_corpus as corpora
    from pet.pipeline.trackers import open_tracker
    from pet.store.store import Store
    from pet.training.device import open_runtime

    if recipe is not None and Path(recipe).is_file() and Path(recipe).suffix not in (".yaml", ".yml"):
        raise SettingsError(
            f"{recipe} is no recipe, which is a YAML file; if it is text to train on, give --corpus {recipe}"
        )
    flags["files"] = list(files) or None
    settings = resolve_pretraining(recipe, *flag_overrides(flags, PLACES, assignments))
    screen = Screen(verbose)
    warn_of_code(screen, settings.model)
    kept = Store(store)
    name = f"pretrain-{corpora.label_of(settings)}"
    given = settings.model_dump(mode="json")
    with (
        open_log(kept.root, name, screen, given, seed=settings.seed) as log,
        open_tracker(tracker, name, given, kept.root, log.warn) as screen.tracker,
    ):
        made = stage.run(settings, kept, open_runtime(settings.runtime, log))
    click.echo(f"model: {made.path / 'model'}")
