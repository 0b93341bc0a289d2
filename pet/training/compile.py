"""torch.compile for the layers of a model, with kernels chosen by rule."""

from typing import Any

import torch

from pet.modeling.loading import layers_of
from pet.training.device import Runtime


def compile_layers(model: Any, runtime: Runtime, alike: bool = False) -> bool:
    """Let torch.compile fuse what lies between the matrix products of the layers, in place, if the runtime asks for it;
    says whether. `alike`: all batches have one shape, or two.

    Layers are compiled one by one: they share one program, so it takes seconds. The last layer may differ from the
    others (`families.ReadLayer`), as the embeddings do, and where lengths are free to differ these two took 15 of the
    34 s of a first training step on one H100, and are one part in 25 of RoBERTa-large's work. For batches that are
    alike, all is compiled, for just their shapes: a step of `mini`'s took 45.7 ms then instead of 47.1.
    """
    wanted = runtime.compiles(sum(one.numel() for one in model.parameters()))
    if wanted:
        # All layers share one function: in training, in scoring, with adapters or frozen. At 8 variants, torch's limit,
        # it would go on uncompiled.
        torch._dynamo.config.recompile_limit = 64
        layers = layers_of(model)
        embeddings = [one for name, one in model.base_model.named_children() if name == "embeddings"]
        for part in [*embeddings, *layers] if alike else layers[:-1]:
            part.compile(dynamic=not alike)
        make_deterministic()
        model.pet_kinds_seen = None if alike else set()
    return wanted


def make_deterministic() -> None:
    """Have Inductor choose kernels by rule, not by which was the fastest just now: two that are nearly alike may sum in
    another order, and another process, or this one the next time, take the other (pytorch/pytorch#189121)."""
    from torch._inductor import config

    if hasattr(config, "deterministic"):  # torch 2.10 and newer
        config.deterministic = True
