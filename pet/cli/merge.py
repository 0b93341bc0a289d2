"""`pet merge`: a LoRA member as an ordinary checkpoint."""

import shutil
from pathlib import Path

import click

from pet.errors import ModelError

PROBE = "The quick brown fox jumps over the lazy dog ."
PROBE_LENGTH = 16
"""Tokens of the two sentences that merged and adapted model are compared on, at most."""


@click.command()
@click.argument("member", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
def merge(member: Path, out: Path) -> None:
    """Fold a LoRA MEMBER into its model's weights and write the result to the new folder OUT.

    MEMBER is the folder of a member made with finetune.method=lora. OUT can be loaded with transformers, or named as
    --model. It is written only if weights changed and the merged model answers like the adapted one.

    \b
    Example:
        pet merge runs/finetune/bbc-n10-s0-mini-p0-r0-1f2e3d merged
    """
    from pet import lora, models
    from pet.settings import ModelSettings

    if out.exists():
        raise ModelError(f"{out} exists already; name a new folder, or remove it")
    adapter = member / "adapter" if (member / "adapter").is_dir() else member
    settings = ModelSettings(name=lora.read(adapter).base, max_length=PROBE_LENGTH)
    model, tokenizer = models.load_masked_lm(settings), models.load_tokenizer(settings)
    probe = tokenizer(
        [PROBE, f"{PROBE} {tokenizer.mask_token}"],
        padding=True,
        truncation=True,
        max_length=PROBE_LENGTH,
        return_tensors="pt",
    )
    worst = lora.merge(model, adapter, dict(probe))
    draft = out.with_name(f".{out.name}-draft")
    try:
        with models.quiet_transformers():
            model.save_pretrained(draft)
            tokenizer.save_pretrained(draft)
        draft.rename(out)
    except OSError as problem:
        raise ModelError(f"{out} cannot be written ({problem.strerror or problem}); name another folder") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    click.echo(f"{out}: {settings.name} with {adapter} merged; answers as before to {worst:.0e} of the largest logit")
