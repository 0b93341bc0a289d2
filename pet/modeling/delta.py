"""A model as the difference to the one it was trained from, in eight bits a weight: a quarter of its size.

What is in a file: for a matrix of the body that changed, `<name>.delta` (int8 [out, in]) and `<name>.scale` (fp32
[out], one a row); for a vector of the body that changed and for everything of the head, `<name>` itself in fp16.
Nothing here knows how the model was trained.
"""

from collections.abc import Mapping

import torch

DELTA, SCALE = ".delta", ".scale"
MOST = 127

State = Mapping[str, torch.Tensor]


def pack(base: State, trained: State, body: str) -> dict[str, torch.Tensor]:
    """The file's tensors. `base`, `trained`: states of the same model, names of its body beginning with `body`.

    A row's steps are its largest change over 127, so no weight is off by more than half of that.
    """
    packed: dict[str, torch.Tensor] = {}
    for name, value in trained.items():
        if not name.startswith(body):
            packed[name] = value.half()
            continue
        change = value.float() - base[name].float()
        if not change.any():
            continue
        if change.ndim < 2:
            packed[name] = value.half()
            continue
        scale = change.abs().amax(1) / MOST
        packed[name + SCALE] = scale
        packed[name + DELTA] = (change / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round().char()
    return packed


def unpack(base: State, packed: State) -> dict[str, torch.Tensor]:
    """The model's state in fp32, as far as it can be told: `base`, which may lack a head, with what was packed."""
    state = {name: value.float() for name, value in base.items()}
    for name, value in packed.items():
        if name.endswith(DELTA):
            matrix = name.removesuffix(DELTA)
            state[matrix] = state[matrix] + value.float() * packed[matrix + SCALE][:, None]
        elif not name.endswith(SCALE):
            state[name] = value.float()
    return state
