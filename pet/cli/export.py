"""`pet export`: a run's student as a folder for transformers or onnxruntime."""

from pathlib import Path

import click

from pet.cli.options import shared


@click.command()
@click.argument("run")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--format", "form", type=click.Choice(["hf", "onnx"]), default="hf", show_default=True, help="What to write."
)
@shared("store")
def export(run: str, folder: Path, form: str, store: str) -> None:
    """Write the student of RUN into the new folder DIR, to be used where there is no pet, with its tokenizer and a
    model card.

    RUN is the folder of a run, its name, the beginning of its identity, or `last`. Format `hf` is a checkpoint that
    transformers.pipeline("text-classification", DIR) loads; `onnx` a model for onnxruntime, written only if it gives
    torch's probabilities.

    \b
    Examples:
        pet export last classifier
        pet export last classifier-onnx --format onnx
    """
    from pet.pipeline.runs import open_run
    from pet.store.store import Store
    from pet.tools.export import checkpoint as exporting

    found = open_run(run, Store(store))
    for line in exporting.export(found, folder, "onnx" if form == "onnx" else "hf"):
        click.echo(line)
    click.echo(f"{folder}: the student of {found.path.name} for {'onnxruntime' if form == 'onnx' else 'transformers'}")
