"""LoRA members (Hu et al. 2021) on one frozen model: all in one batch, each token with its own member's adapter.

For member m an adapted linear map y = W x becomes y = W x + s B_m A_m x. The A of all M members are kept as one matrix
[M r, in], the B as one [M r, out], and a gate [N, M r] is s in the columns of a token's own member and 0 elsewhere. So
M members cost two thin matrix products more than none, tokens may come in any order, and a member's gradient is that of
training it alone. Adapters are written as `peft` writes them. Nothing here knows of patterns or training loops.

Shapes: M members, r rank, N tokens of all rows together, in/out sizes of a linear map.
"""

import json
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from pet.config.schema import ALL_LINEAR, FinetuneSettings, PretrainSettings
from pet.errors import ModelError, NotFinite, SettingsError
from pet.modeling.batch import all_finite
from pet.modeling.families import family_of
from pet.modeling.loading import layers_of
from pet.modeling.quiet import quiet_transformers

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX, A, B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
"""peft's files, and what it puts around a linear map's name."""


class Gate:
    """What all adapted maps and dropouts of a model read, for the batch at hand: the gate [N, M r], or `None`: no
    adapter at all; and the tokens' random keys for the next dropout [N], or `None`: no dropout."""

    value: torch.Tensor | None = None
    keys: torch.Tensor | None = None
    reads: torch.Tensor | None = None

    def of(self, values: torch.Tensor, count: int) -> torch.Tensor | None:
        """A token's row of `values` [N, ...] for each of `count` rows of hidden states: of all tokens, or of those that
        the last layer is asked about, always fewer; `None` for any other number."""
        if count == len(values):
            return values
        return values[self.reads] if self.reads is not None and count == len(self.reads) else None

    def notice(self, module: nn.Module, inputs: Any, named: dict[str, Any]) -> None:
        """Hook of the last layer, before it computes."""
        reads = named.get("reads")
        self.reads = None if reads is None else reads.tokens


class Pair(nn.Module):
    """One map's adapters of all members: `down` [M, r, in], `up` [M, r, out]."""

    def __init__(self, base: nn.Linear, generators: Sequence[torch.Generator], rank: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(base.in_features)  # as nn.Linear and peft begin; B begins at 0
        drawn = [torch.empty(rank, base.in_features).uniform_(-bound, bound, generator=one) for one in generators]
        device = base.weight.device
        self.down = nn.Parameter(torch.stack(drawn).to(device))
        self.up = nn.Parameter(torch.zeros(len(generators), rank, base.out_features, device=device))


class Adapted(nn.Module):
    """A frozen linear map with its pair."""

    def __init__(self, base: nn.Linear, pair: Pair, gate: Gate) -> None:
        super().__init__()
        self.base = base
        self.pair = pair
        self.gate = gate

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out]."""
        found = self.base(inputs)
        if self.gate.value is None:
            return torch.as_tensor(found)
        rows = inputs.flatten(0, -2)  # [N, in]
        gate = self.gate.of(self.gate.value, len(rows))
        assert gate is not None, f"{len(rows)} rows are those of no tokens"
        down, up = (one.flatten(0, 1).to(inputs.dtype) for one in (self.pair.down, self.pair.up))
        inner = functional.linear(rows, down) * gate  # [N, M r]
        return torch.addmm(found.flatten(0, -2), inner, up).view(found.shape)


class KeyedDropout(nn.Module):
    """Dropout of hidden states whose mask is a hash of each token's key, of how many such came before it in this pass,
    and of the column: so a member's random stream is its own, whichever others are in the batch. Attention
    probabilities are left alone."""

    def __init__(self, p: float, gate: Gate) -> None:
        super().__init__()
        self.p = p
        self.gate = gate

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[..., H] -> [..., H], if there is one row for each key."""
        if self.gate.keys is None:
            return inputs
        keys = self.gate.of(self.gate.keys, inputs.shape[:-1].numel())
        if keys is None:
            return inputs
        self.gate.keys = self.gate.keys + PASS_STEP
        columns = torch.arange(inputs.shape[-1], dtype=torch.int32, device=inputs.device)
        kept = hash_bits(keys[:, None] + hash_bits(columns)) >= int(self.p * HASH_RANGE)
        return inputs * kept.view(inputs.shape) / (1 - self.p)


PASS_STEP = -2_048_144_789
"""What a dropout adds to the keys for the next one. A layer's number would not do: layers can be one module (ALBERT),
and compiled ones share a program. For 200 dropouts of 40,000 tokens (`batches.KEY_STEP`) it leads to no key twice."""

HASH_RANGE = 1 << 24


def hash_bits(values: torch.Tensor) -> torch.Tensor:
    """int32 values, hashed to 24 bits: two rounds of multiplying and folding, as in MurmurHash3's last step."""
    for factor, shift in ((-2048144789, 13), (-1028477387, 16)):
        values = (values ^ ((values >> shift) & ((1 << (32 - shift)) - 1))) * factor  # the shift fills with zeros
    return ((values ^ ((values >> 15) & 0x1FFFF)) >> 4) & (HASH_RANGE - 1)


class Adapters(nn.Module):
    """The adapters of M members on a model. Its parameters are theirs; the model's own are frozen while `installed`.

    `model` may be a copy of `master` in lower precision: what is folded into its weights is computed from the master's.
    `seeds`: one a member, of its starting weights.
    """

    def __init__(
        self, model: Any, master: Any, seeds: Sequence[int], settings: FinetuneSettings | PretrainSettings
    ) -> None:
        """
        Raises:
            SettingsError: the model has no such linear maps.
        """
        super().__init__()
        self.settings = settings.lora
        self.scale = settings.lora.alpha / settings.lora.rank
        self.num_members = len(seeds)
        self.gate = Gate()
        names = find_targets(master, settings.lora.targets, settings.frozen_layers)
        self.bases: dict[str, nn.Linear] = {name: model.get_submodule(name) for name in names}
        self.originals = {name: master.get_submodule(name).weight.detach().clone() for name in names}
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.pairs = nn.ModuleList(Pair(base, generators, settings.lora.rank) for base in self.bases.values())
        self.host = (model,)  # in a tuple: not a part of this module

    @contextmanager
    def installed(self) -> Iterator[None]:
        """The model with the adapters in it, frozen and in eval mode; afterwards as it was, weights and all."""
        (model,) = self.host
        trained = [one for one in model.parameters() if one.requires_grad]
        dropouts = {
            name: one for name, one in model.base_model.named_modules() if isinstance(one, nn.Dropout) and one.p
        }
        was_training = model.training
        model.requires_grad_(False).eval()
        for name, dropout in dropouts.items():
            replace(model.base_model, name, KeyedDropout(dropout.p, self.gate))
        for (name, base), pair in zip(self.bases.items(), self.pairs, strict=True):
            replace(model, name, Adapted(base, pair, self.gate))  # type: ignore[arg-type]
        hooks = [layer.register_forward_pre_hook(self.gate.notice, with_kwargs=True) for layer in layers_of(model)[-1:]]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for name, base in self.bases.items():
                replace(model, name, base)
            for name, dropout in dropouts.items():
                replace(model.base_model, name, dropout)
            self.restore()
            model.train(was_training)
            for one in trained:
                one.requires_grad_(True)

    def open_gate(self, members: torch.Tensor, dtype: torch.dtype, keys: torch.Tensor | None = None) -> None:
        """Say which member each token of the next batch belongs to [N]; `keys`: of their dropout [N], `None`: none."""
        own = functional.one_hot(members, self.num_members).to(dtype) * self.scale  # [N, M]
        self.gate.value = own.repeat_interleave(self.settings.rank, dim=1)
        self.gate.keys = keys

    def close_gate(self) -> None:
        """Let the model answer without adapters and dropout."""
        self.gate.value = self.gate.keys = None

    @torch.no_grad()
    def clip(self, max_norm: float) -> None:
        """Clip each member's gradient to a norm of its own."""
        gradients = [one.grad for one in self.parameters() if one.grad is not None]
        squares = torch.stack([one.square().sum((1, 2)) for one in gradients])  # [parameters, M]
        factor = (max_norm / (squares.sum(0).sqrt() + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grad_norm_
        for one in gradients:
            one.mul_(factor[:, None, None])

    @torch.no_grad()
    def fold(self, member: int) -> None:
        """Fold one member into the model's weights, in place: W + s B A, computed in fp32. The gate must be closed."""
        for name, change in self.changes(member):
            self.bases[name].weight.copy_(self.originals[name].float() + change)

    @torch.no_grad()
    def changes(self, member: int) -> Iterator[tuple[str, torch.Tensor]]:
        """What one member adds to each map's weights [out, in], in fp32, by the map's name."""
        for name, pair in zip(self.bases, self.pairs, strict=True):
            yield name, self.scale * (pair.up[member].T @ pair.down[member])  # type: ignore[index]

    @torch.no_grad()
    def restore(self) -> None:
        """Undo `fold`."""
        for name, base in self.bases.items():
            base.weight.copy_(self.originals[name])

    def save(self, member: int, folder: Path, model_name: str, revision: str | None = None) -> None:
        """Write one member as a peft adapter of this model."""
        folder.mkdir()
        tensors = {}
        for name, pair in zip(self.bases, self.pairs, strict=True):
            tensors[f"{PREFIX}{name}{A}"] = pair.down[member].detach().cpu().contiguous()  # type: ignore[index]
            tensors[f"{PREFIX}{name}{B}"] = pair.up[member].detach().T.cpu().contiguous()  # type: ignore[index]
        save_file(tensors, folder / WEIGHTS)
        config = {
            "peft_type": "LORA",
            "base_model_name_or_path": model_name,
            "revision": revision,
            "r": self.settings.rank,
            "lora_alpha": self.settings.alpha,
            "lora_dropout": 0.0,
            "bias": "none",
            "target_modules": list(self.bases),
            "inference_mode": True,
        }
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def find_targets(
    model: Any, wanted: Sequence[str] | None, frozen_layers: int | None, setting: str = "finetune.lora.targets"
) -> list[str]:
    """Full names of the linear maps that get adapters. `wanted`: the ends of their names, ALL_LINEAR for all, or
    `None`: the family's default. `frozen_layers`: as of `adaptable_maps`. `setting`: what says so, for the message.

    Raises:
        SettingsError: there are none of these names, says which there are; or no adapter can be theirs.
    """
    family = family_of(model)
    linear = adaptable_maps(model, frozen_layers)
    if wanted == (ALL_LINEAR,):
        wanted = sorted({name.rpartition(".")[2] for name in linear})
    ends = tuple(wanted or family.lora_targets)
    found = {end: [name for name in linear if f".{name}".endswith(f".{end}")] for end in ends}
    unknown = [end for end, names in found.items() if not names]
    if unknown or not found:
        names = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
        raise SettingsError(
            f"{setting} {unknown}: the {family.model_type} model has no such linear maps; name some of {names}, "
            f"or {ALL_LINEAR} alone"
        )
    chosen = {name for names in found.values() for name in names}
    if getattr(model.config, "share_att_key", False) and any(name.endswith(family.positional_maps) for name in chosen):
        raise SettingsError(
            f"{setting} {list(ends)}: in this {family.model_type} model query and key maps also read a table of "
            "positions (share_att_key), which belongs to no member; name others, such as value_proj, or use "
            "finetune.method=full"
        )
    return [name for name in linear if name in chosen]


def adaptable_maps(model: Any, frozen_layers: int | None) -> list[str]:
    """Full names of all linear maps in the layers but those in so many lower ones, `None`: in half of them; then no
    gradient goes there.

    Raises:
        SettingsError: no layer is left.
    """
    layers = layers_of(model)
    upper = layers[len(layers) // 2 if frozen_layers is None else frozen_layers :]
    inside = {id(module) for part in (upper if layers else [model.base_model]) for module in part.modules()}
    linear = [name for name, one in model.named_modules() if isinstance(one, nn.Linear) and id(one) in inside]
    if not linear:
        raise SettingsError(
            f"finetune.frozen_layers {frozen_layers} leaves no layer of the {model.config.model_type} model to adapt; "
            "lower it, or use finetune.method=full"
        )
    return linear


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put another module in place of one."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


# ---- reading and merging, by peft ----------------------------------------------------------------------------------

MOST_DIFFERENCE = 1e-4
"""Of merged and adapted logits, relative to the largest: fp32 rounding through some thirty layers stays under it."""


class Stored(NamedTuple):
    """An adapter as read from its folder: peft's configuration, and the weights by the names that peft writes."""

    folder: Path
    config: Any
    tensors: dict[str, torch.Tensor]


def read(folder: Path) -> Stored:
    """Read the LoRA adapter in a folder. peft itself is never given the path of the weights: where there are no
    safetensors it would read a pickle, or ask the hub.

    Raises:
        ModelError: there is none, it is damaged, a weight is NaN or infinite, or peft does not know or would not obey
            all that its configuration says.
    """
    from peft import PeftConfig

    if not folder.exists():
        raise ModelError(f"there is no folder {folder}; give a member made with finetune.method=lora")
    if not (folder / CONFIG).is_file():
        raise ModelError(f"{folder} holds no LoRA adapter; give a member made with finetune.method=lora")
    with readable_errors(f"{folder} holds no LoRA adapter that can be used; make the member anew"):
        with warnings.catch_warnings(record=True) as ignored:  # so peft says which fields it does not know, or not use
            warnings.simplefilter("always")
            config = PeftConfig.from_pretrained(str(folder))
        if config.peft_type != "LORA":
            raise ValueError(f"its peft_type is {config.peft_type.value}")
        if ignored or config.megatron_config:
            raise ValueError(ignored[0].message if ignored else "megatron_config makes peft import other code")
        if not isinstance(config.base_model_name_or_path, str) or not isinstance(config.revision, str | None):
            raise ValueError("base_model_name_or_path or revision is no name")
        tensors = {name: one.float() for name, one in load_file(folder / WEIGHTS).items()}
    if not all_finite(tensors.values()):
        raise ModelError(f"the LoRA adapter in {folder} has weights that are NaN or infinite; make the member anew")
    return Stored(folder, config, tensors)


@contextmanager
def readable_errors(sentence: str) -> Iterator[None]:
    """Keep peft quiet, and turn what it raises into one sentence.

    Raises:
        ModelError: anything went wrong.
    """
    try:
        with quiet_transformers():
            yield
    except Exception as problem:  # peft checks little of what a folder says before it uses it
        raise ModelError(f"{sentence} ({type(problem).__name__}: {problem})") from None


def attach(model: Any, stored: Stored) -> Any:
    """Make a peft model, in eval mode, of a model and an adapter. `merge_and_unload(safe_merge=True)` folds the adapter
    into the model's weights and takes peft's modules out again. That replaces the `data` of the parameters that it
    changes, so a caller who has kept their `data` can put it back.

    Raises:
        ModelError: the adapter is of another model, or not all of it can be used.
    """
    from peft import PeftModel, set_peft_model_state_dict

    base = stored.config.base_model_name_or_path
    with readable_errors(f"{stored.folder} does not fit the model {base!r}; it was made for another one"):
        adapted = PeftModel(model, stored.config, low_cpu_mem_usage=True).eval()  # without drawing weights first
        found = set_peft_model_state_dict(adapted, stored.tensors, low_cpu_mem_usage=True)
        unset = [name for name, one in adapted.named_parameters() if one.is_meta]
        if found.unexpected_keys or unset:
            raise ValueError(f"no place for {found.unexpected_keys[:1]}, no weights for {unset[:1]}")
    return adapted


@torch.no_grad()
def merge(model: Any, stored: Stored, probe: dict[str, torch.Tensor]) -> float:
    """Fold an adapter into a model's weights, in place, and check on `probe` (keyword arguments of the model, rows
    padded) that weights changed and that the merged model answers like the adapted one. Returns the largest difference,
    as a share of the largest logit.

    Raises:
        ModelError: it is of another model, changes nothing, cannot be merged, or answers differ.
        NotFinite: an answer is NaN or infinite.
    """
    folder, before = stored.folder, {name: one.data for name, one in model.named_parameters()}
    adapted = attach(model.eval(), stored)
    expected = adapted(**probe).logits
    with readable_errors(f"{folder}: peft cannot merge this adapter"):
        adapted.merge_and_unload(safe_merge=True)
    merged = model(**probe).logits
    if all(torch.equal(one, before[name]) for name, one in model.named_parameters()):
        raise ModelError(f"{folder}: the adapter changes no weight; it was never trained")
    worst = float((expected - merged).abs().max() / expected.abs().max())
    if not math.isfinite(worst):
        raise NotFinite(
            f"{folder}: the model of the adapter, or with it, computes NaN or infinity; give another member"
        )
    if not worst <= MOST_DIFFERENCE:
        raise ModelError(
            f"{folder}: merged and adapted model differ by {worst:.1e} of the largest logit, more than "
            f"{MOST_DIFFERENCE:.0e}; the model is not the one the adapter was trained on, or it is numerically unstable"
        )
    return worst
