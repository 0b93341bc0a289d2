"""torch.compile for the layers of a model, with kernels chosen by rule, and what compiled code sees first."""

from collections.abc import Callable
from typing import Any

import torch

from pet.modeling.backbones import Backbone
from pet.modeling.batch import Batch
from pet.modeling.classifier import ClassifierModel
from pet.modeling.loading import layers_of
from pet.training.device import Runtime

FIRST = (104, 10)
"""Rows, and tokens of each, of the batch that compiled layers see first: about as many tokens as a training step has.
Not 1,024: torch.compile would take it that tokens are always as many as a state is long."""

FIRST_TARGETS = 104
"""Targets that compiled token losses see first."""


def compile_layers(model: Any, runtime: Runtime, alike: bool = False) -> bool:
    """Let torch.compile fuse what lies between the matrix products of the layers, in place, if the runtime asks for it;
    says whether. `alike`: all batches have one shape, or two; otherwise `warm_up` comes before any batch.

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
    return wanted


def make_deterministic() -> None:
    """Have Inductor choose kernels by rule, not by which was the fastest just now: two that are nearly alike may sum in
    another order, and another process, or this one the next time, take the other (pytorch/pytorch#189121)."""
    from torch._inductor import config

    if hasattr(config, "deterministic"):  # torch 2.10 and newer
        config.deterministic = True


def warm_up(
    model: Backbone | ClassifierModel,
    padded: bool,
    training: bool = False,
    ask: Callable[[Batch], object] | None = None,
) -> None:
    """Show what is compiled `first_batch` before any other. Does nothing where nothing is compiled.

    What is compiled for any number of tokens is still fitted to the one that comes first, down to the order of its
    sums, and is kept on the disk for other processes. With whatever a process happens to begin with, a member would not
    come out the same whichever came before it, or a training that goes on as one that was never stopped. Adapters
    know of their own batch only (`lora.Gate`), and sum nothing over tokens but in matrix products: they need
    `warm_up_losses` alone.

    Args:
        model: what is to compute; from `computing_copy`, which does it for scoring.
        padded: whether its batches will be.
        training: for training, not for scoring.
        ask: what it will be asked; default: its `probe`.
    """
    if not model.compiled:
        return
    device, modes = next(model.parameters()).device, [(one, one.training) for one in model.modules()]
    model.train(training)
    # Compiled code looks at whether tensors are made for inference, too.
    with (
        torch.inference_mode(not training),
        torch.random.fork_rng([device] if device.type == "cuda" else []),
    ):
        (ask or model.probe)(first_batch(padded, device))
    for one, mode in modes:
        one.training = mode
    if training and isinstance(model, Backbone):
        warm_up_losses(model)


def warm_up_losses(model: Backbone) -> None:
    """Show compiled token losses FIRST_TARGETS before any other targets, forward and backward."""
    if model.compiled:
        products, bias = model.empty_products(FIRST_TARGETS)
        targets = torch.zeros(FIRST_TARGETS, dtype=torch.long, device=products.device)
        losses = model.token_losses(products.requires_grad_(), bias, targets)
        torch.autograd.grad(losses, products, torch.ones_like(losses))


def first_batch(padded: bool, device: torch.device) -> Batch:
    """A batch of FIRST rows and tokens of each, all of id 0."""
    rows, width = FIRST
    numbers = torch.arange(rows * width, device=device)
    return Batch(
        torch.zeros_like(numbers),
        None,
        numbers % width,
        numbers // width,
        torch.arange(rows + 1, dtype=torch.int32, device=device) * width,
        torch.arange(rows, device=device) * width,
        width if padded else 3 * width,
        (numbers % width < width - 1).long() if padded else None,  # some padding, as there mostly is
    )
