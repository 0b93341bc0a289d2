"""`pet predict`: labels and probabilities of new texts, from a finished run."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pet.cli.options import shared
from pet.errors import SettingsError

if TYPE_CHECKING:
    from pet.config.schema import RuntimeSettings
    from pet.pipeline.runs import Run
    from pet.tools.inference.predict_file import FileReport
    from pet.tools.inference.predictor import Prediction, Predictor

SHOWN_TEXT = 60
"""Characters of a text that are shown beside its label."""


@click.command()
@click.argument("run")
@click.option(
    "--text", "texts", multiple=True, help="A text, as the task's first field (others empty); may be repeated."
)
@click.option(
    "--input",
    "source",
    type=click.Path(path_type=Path),
    help="CSV, TSV, JSONL or Parquet file, or .txt with one text per line (also .gz).",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="CSV, TSV, JSONL or Parquet file (also .gz) to write, or to replace; default: CSV to the screen.",
)
@click.option(
    "--from",
    "kind",
    type=click.Choice(["student", "ensemble"]),
    default="student",
    show_default=True,
    help="Which of the run's classifiers.",
)
@click.option("--abstain", type=float, metavar="P", help="Give no label where its probability is below P.")
@click.option("--strict", is_flag=True, help="Stop at the first row without a text, before anything is written.")
@shared("store")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
@click.option(
    "--precision", type=click.Choice(["auto", "fp32", "bf16"]), default="auto", show_default=True, help="Of products."
)
@click.pass_context
def predict(
    ctx: click.Context,
    run: str,
    texts: tuple[str, ...],
    source: Path | None,
    output: Path | None,
    kind: str,
    abstain: float | None,
    strict: bool,
    store: str,
    device: str,
    precision: str,
) -> None:
    """Label new texts with the student, or the ensemble, of a finished RUN.

    RUN is its folder, its name, the beginning of its identity, or `last`. The input's columns are the task's fields
    (or those that the task card read them from). The run has kept what the card said of its files (quotation marks,
    encodings, columns, `replace`), and a file of their format is read by that, from any folder. All columns are
    kept, and `label`, `probability` and one `probability_<label>` a label are added, `predicted_...` where the
    input has that name already. Rows without a text are left out and reported; the exit code is 0 then, and 2 with
    --strict.

    \b
    Examples:
        pet predict last --text "Shares fall as oil prices rise"
        pet predict last --input news.csv --output labelled.csv
        pet predict last --input news.jsonl --output labelled.parquet --abstain 0.7
    """
    if bool(texts) == bool(source):
        raise SettingsError("predict needs texts; give either --text TEXT or --input FILE")
    if texts and (output or strict):
        raise SettingsError("--output and --strict go with --input; --text is shown on the screen")
    from pet.config.schema import RuntimeSettings
    from pet.pipeline.runs import open_run
    from pet.store.store import Store
    from pet.tools.inference.predict_file import check_files, open_layout, predict_file, refuse_broken
    from pet.tools.inference.predictor import check_abstain

    check_abstain(abstain)
    runtime = RuntimeSettings.model_validate({"device": device, "precision": precision})
    try:
        if source is None:
            show_texts(open_predictor(open_run(run, Store(store)), kind, runtime), texts, abstain)
            return
        # What is wrong with the file is found before the model is loaded, as far as that can be.
        check_files(source, output)
        found = open_run(run, Store(store))
        reading = open_layout(found, source)
        if strict:
            refuse_broken(reading)
        describe(predict_file(open_predictor(found, kind, runtime), reading, output, abstain), output)
    except KeyboardInterrupt as stop:
        click.echo("\nInterrupted. No output file was written.", err=True)
        ctx.exit(getattr(stop, "code", 130))


def open_predictor(run: "Run", kind: str, runtime: "RuntimeSettings") -> "Predictor":
    """The classifier, with what has to be said of it."""
    from pet.cli.screen import Screen
    from pet.tools.inference.predictor import load_predictor

    screen = Screen()
    found = load_predictor(run, kind, runtime, screen)  # type: ignore[arg-type]
    if found.problem:
        screen.warn(f"the probabilities of this {kind} are raw (temperature 1): {found.problem}")
    return found


def show_texts(predictor: "Predictor", texts: Sequence[str], abstain: float | None) -> None:
    """One line a text: label, probability, text."""
    found = predictor.predict(texts, abstain)
    width = max(len(shown_label(one)) for one in found)
    for text, one in zip(texts, found, strict=True):
        words = " ".join(text.split())
        words = words if len(words) <= SHOWN_TEXT else words[: SHOWN_TEXT - 3] + "..."
        click.echo(f"{shown_label(one):<{width}}  {one.probability:.3f}  {words}")


def shown_label(prediction: "Prediction") -> str:
    """The label, or a dash where there is none."""
    return prediction.label or "-"


def describe(report: "FileReport", output: Path | None) -> None:
    """What was done, and what was left out."""
    for problem in report.problems:
        click.echo(f"left out {problem}", err=True)
    if (more := report.left_out - len(report.problems)) > 0:
        click.echo(f"left out {more:,} more", err=True)
    renamed = [name for name in report.names if name.startswith("predicted_")]
    if renamed:
        click.echo(f"The input has columns of these names already, so the new ones are {', '.join(renamed)}.", err=True)
    labelled = f"{report.predicted - report.abstained:,} of " if report.abstained else ""
    texts = f"text{'s' * (report.predicted != 1)} labelled"
    line = f"{labelled}{report.predicted:,} {texts}" + (f": {output}" if output else "")
    click.echo(line + (f"; {report.left_out:,} rows left out" if report.left_out else ""), err=True)
