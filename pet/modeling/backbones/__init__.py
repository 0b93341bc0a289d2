"""Kinds of language models, one file each, and the one place that says which kind a model is.

A kind is a subclass of `Backbone`: how it is loaded, how a cloze question is put to it, how labels are scored and what
its training asks for. Nothing else asks for a kind. What differs between families of one kind is in `families`.
"""

from typing import Any

import torch

from pet.config.schema import ModelSettings
from pet.modeling import loading
from pet.modeling.backbones.base import Backbone, ClozeBatch
from pet.modeling.backbones.masked_lm import MaskedLM
from pet.modeling.tokenization import PromptTokenizer

__all__ = ["KINDS", "Backbone", "ClozeBatch", "MaskedLM", "kind_of", "load", "load_tokenizer", "register"]

KINDS: list[type[Backbone]] = [MaskedLM]
"""The first one that takes a model has it. A masked LM takes any."""


def register(kind: type[Backbone]) -> None:
    """Make a kind known, before those that are.

    Args:
        kind: asked first, from then on, whether it takes a model.
    """
    KINDS.insert(0, kind)


def kind_of(model: ModelSettings) -> type[Backbone]:
    """Which kind a model is, by its configuration.

    Raises:
        ModelError: not found or not reachable.
    """
    from transformers import PretrainedConfig

    config: dict[str, Any]
    with loading.readable_errors(model):
        where, from_hub = loading.locate(model)
        config, _ = PretrainedConfig.get_config_dict(where, **from_hub)
        return next(kind for kind in KINDS if kind.takes(config))


def load(model: ModelSettings, device: torch.device, new_head: bool = False) -> Backbone:
    """The model, in fp32 and eval mode.

    Args:
        model: which one.
        device: where to put it.
        new_head: give a model without an LM head one, drawn from torch's current random state, to be trained.

    Raises:
        ModelError: it cannot be loaded; as of the kind's `load_lm`.
        SettingsError: `max_length` is more than the model can read.
    """
    kind = kind_of(model)
    with loading.readable_errors(model):
        return kind(kind.load_lm(model, new_head)).to(device).eval()


def load_tokenizer(model: ModelSettings) -> PromptTokenizer:
    """The model's tokenizer, as prompts need it.

    Raises:
        ModelError: it cannot be loaded, or has no token for the mask.
    """
    tokenizer = loading.load_tokenizer(model)
    return kind_of(model).prompt_tokenizer(tokenizer, model.name)
