"""`pet merge`: a LoRA member as an ordinary checkpoint."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pet.errors import ModelError

if TYPE_CHECKING:
    from pet.config.schema import ModelSettings

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
    from pet.modeling import backbones, loading, lora, quiet
    from pet.store.files import write_folder

    if out.exists():
        raise ModelError(f"{out} exists already; name a new folder, or remove it")
    if out.resolve().is_relative_to(member.resolve()):
        raise ModelError(f"{out} lies in the member itself, which is not to be changed; name a folder elsewhere")
    adapter = member / "adapter" if (member / "adapter").is_dir() else member
    stored = lora.read(adapter)
    settings = stored.base.model_copy(update={"max_length": PROBE_LENGTH})
    model, tokenizer = backbones.kind_of(settings).load_lm(settings), loading.load_tokenizer(settings)
    sentences = [PROBE, f"{PROBE} {tokenizer.mask_token}"]
    probe = tokenizer(sentences, padding=True, truncation=True, max_length=PROBE_LENGTH, return_tensors="pt")
    worst = lora.merge(model, stored, dict(probe))
    check_base(member, settings)
    with write_folder(out) as draft, quiet.quiet_transformers(), quiet.os_errors():
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
    click.echo(f"{out}: {settings.name} with {adapter} merged; answers as before to {worst:.0e} of the largest logit")


def check_base(member: Path, settings: "ModelSettings") -> None:
    """Refuse to merge into other weights than those the member's manifest names; an adapter alone names none.

    Raises:
        ModelError: they differ.
    """
    from pet.modeling import loading
    from pet.pipeline.runs import adapted_of
    from pet.store.files import read_json

    manifest = member / "manifest.json"
    if not manifest.is_file():
        return
    try:
        facts = read_json(manifest)
        trained_on, adapted = facts["settings"]["model"]["weights"], adapted_of(facts)
    except (KeyError, TypeError):
        raise ModelError(f"{manifest} is not of a member; give a member made with finetune.method=lora") from None
    if adapted is not None:  # the model lies in that artifact's folder
        same = Path(settings.name).resolve().parent.name.endswith(f"-{adapted}")
    else:
        same = loading.fingerprint(settings) == trained_on
    if not same:
        raise ModelError(
            f"the weights of {settings.name!r} are not those that {member} was trained on; give back the model it had, "
            "or train the member anew"
        )
