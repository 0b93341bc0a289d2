"""`pet check`: a task's patterns, words and texts, looked at before a run."""

from typing import Any

import click

from pet.cli.options import shared
from pet.cli.run import PLACES, flag_overrides, warn_of_code

SHOWN_LABELS = 10
"""Labels whose shares are shown for each pattern."""


@click.command()
@click.argument("task")
@click.option("--model", help="Masked language model: `mini`, a folder or a hub id.  [default: mini]")
@click.option("--sample", type=click.IntRange(1), default=200, show_default=True, help="Texts to ask about.")
@click.option("--train-examples", type=int, help="Number of labelled texts of the run to be estimated.")
@shared("data")
@click.option("--seed", type=int, help="Of the sample and the draw.  [default: 0]")
@shared("set", "device", "trust")
def check(task: str, sample: int, assignments: tuple[str, ...], **flags: Any) -> None:
    """Check a TASK's patterns, label words and texts against a model, before anything is trained.

    TASK is a shipped name or the path of a task.yaml; settings are those of the pipeline `quick`. Nothing is written.
    Up to half of the sample has labels, where there are so many, and they are looked at: tune patterns by such numbers
    and they are no test any more. A test file's texts are never sampled; without one a run draws its test texts from
    those that are.

    Exit code 1 if there is a problem: a word of several tokens, labels whose words are the same, a question asked
    twice, texts that cannot be read, a label without a text, one label for all texts in all patterns. Remarks are for
    you to judge and leave it at 0. 2: the card or the model cannot be loaded.

    \b
    Examples:
        pet check mails/task.yaml
        pet check agnews --data archives/ag_news_csv --model roberta-large --set model.max_length=256
    """
    from pet.cli.screen import Screen
    from pet.config.resolve import resolve_settings
    from pet.pipeline.context import RunContext
    from pet.store.store import Store
    from pet.tools.authoring.lint import check as look
    from pet.tools.rendering import render
    from pet.training.device import open_runtime

    screen = Screen()
    settings = resolve_settings("quick", *flag_overrides({"task": task, **flags}, PLACES, assignments))
    warn_of_code(screen, settings.model)
    ctx = RunContext(settings, Store("runs"), open_runtime(settings.runtime, screen))
    found = look(ctx, sample)
    shown = render(
        "check.txt.jinja",
        found=found,
        task=ctx.card.name,
        model=settings.model.name,
        shown_labels=SHOWN_LABELS,
        rough_time=rough_time,
        rough_size=rough_size,
    )
    screen.out.print(shown, end="")
    click.get_current_context().exit(1 if found.problems else 0)


def rough_time(seconds: float) -> str:
    """One digit, or two from ten on."""
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{float(f'{seconds / size:.{1 if seconds < 10 * size else 2}g}'):g} {unit}"
    return f"{max(10, round(seconds, -1)):.0f} seconds"


def rough_size(number: float) -> str:
    """Half GiB, upwards."""
    return f"{-(-number // 2**29) / 2:g} GiB"
