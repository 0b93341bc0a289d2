"""LoRA members (Hu et al. 2021): adapters of many members on one frozen model, trained in one batch.

An adapted linear map computes y = W x + s B_m A_m x for a token of member m. The A of all M members are one matrix
[M r, in], the B one of [M r, out]. Between them a gate [N, M r] multiplies by s in the columns of the token's own
member and by 0 in the others. So M members cost two thin matrix products, tokens may come in any order, and a member
gets the gradient that it would get alone. peft trains one adapter at a time, so this is our own. Adapters are written
in peft's format; peft reads, checks and merges them. Nothing here knows patterns or training loops.

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

from pet.config.limits import is_file
from pet.config.schema import ALL_LINEAR, FinetuneSettings, ModelSettings, PretrainSettings
from pet.errors import ModelError, NotFinite, SettingsError
from pet.modeling.batch import all_finite
from pet.modeling.families import family_of
from pet.modeling.loading import layers_of
from pet.modeling.quiet import quiet_transformers

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""Names of peft's files."""


class Gate:
    """What the adapted maps and dropouts of a model need to know about the current batch.

    `value`: the gate [N, M r]; `None` switches the adapters off. `keys`: a random key for each token, for the next
    dropout [N]; `None` switches dropout off. `reads`: the tokens that the last layer computes; `None`: all.
    """

    value: torch.Tensor | None = None
    keys: torch.Tensor | None = None
    reads: torch.Tensor | None = None

    def of(self, values: torch.Tensor, count: int) -> torch.Tensor | None:
        """Select the rows of `values` [N, ...] for an input of `count` rows.

        The input has a row for each token, or, in the last layer, for each token in `reads`, which are fewer. An input
        of any other size (a table of positions, say) gets `None`.
        """
        if count == len(values):
            return values
        return values[self.reads] if self.reads is not None and count == len(self.reads) else None

    def notice(self, module: nn.Module, inputs: Any, named: dict[str, Any]) -> None:
        """Remember which tokens the last layer computes: a hook that runs before it."""
        reads = named.get("reads")
        self.reads = None if reads is None else reads.tokens


class Pair(nn.Module):
    """The adapters of all members for one linear map: `down` [M, r, in], `up` [M, r, out]."""

    def __init__(self, base: nn.Linear, generators: Sequence[torch.Generator], rank: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(base.in_features)  # nn.Linear and peft start like this, with B at 0
        drawn = [torch.empty(rank, base.in_features).uniform_(-bound, bound, generator=one) for one in generators]
        device = base.weight.device
        self.down = nn.Parameter(torch.stack(drawn).to(device))
        self.up = nn.Parameter(torch.zeros(len(generators), rank, base.out_features, device=device))


class Adapted(nn.Module):
    """A frozen linear map with adapters."""

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
        assert gate is not None, f"{len(rows)} rows belong to no tokens"
        down, up = (one.flatten(0, 1).to(inputs.dtype) for one in (self.pair.down, self.pair.up))
        inner = functional.linear(rows, down) * gate  # [N, M r]
        return torch.addmm(found.flatten(0, -2), inner, up).view(found.shape)


class KeyedDropout(nn.Module):
    """Dropout of hidden states, the same for a member whichever others are in the batch.

    The mask is a hash of the token's key, of the number of dropouts before it in this pass, and of the column.
    Attention probabilities are not dropped.
    """

    def __init__(self, p: float, gate: Gate) -> None:
        super().__init__()
        self.p = p
        self.gate = gate

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[..., H] -> [..., H]; unchanged if its rows are not tokens."""
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
"""What each dropout adds to the keys for the next one. The number of the layer cannot be used: layers can be one module
(ALBERT), and compiled ones share a program. No key comes twice in 200 dropouts of 40,000 tokens (see `KEY_STEP`)."""

HASH_RANGE = 1 << 24


def hash_bits(values: torch.Tensor) -> torch.Tensor:
    """Hash int32 values to 24 bits, by two rounds of multiplying and folding like MurmurHash3's last step."""
    for factor, shift in ((-2048144789, 13), (-1028477387, 16)):
        values = (values ^ ((values >> shift) & ((1 << (32 - shift)) - 1))) * factor  # the shift fills with zeros
    return ((values ^ ((values >> 15) & 0x1FFFF)) >> 4) & (HASH_RANGE - 1)


class Adapters(nn.Module):
    """The adapters of M members on a model. The parameters are theirs alone; the model's are frozen while `installed`.

    Args:
        model: The model that computes; may be a copy of `master` in lower precision.
        master: The model whose weights `fold` and `restore` start from.
        seeds: One per member, for its first weights.
        settings: The section that has `lora` and `frozen_layers`.

    Raises:
        SettingsError: The model has no such linear maps.
    """

    def __init__(
        self, model: Any, master: Any, seeds: Sequence[int], settings: FinetuneSettings | PretrainSettings
    ) -> None:
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
        self.host = (model,)  # a tuple, so that it does not become a part of this module

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Put the adapters into the model, which is frozen and in eval mode. Afterwards all is as before."""
        (model,) = self.host
        body = set(model.base_model.modules())
        modules: dict[str, nn.Module] = {
            name: KeyedDropout(one.p, self.gate)
            for name, one in model.named_modules()
            if isinstance(one, nn.Dropout) and one.p and one in body
        }
        for (name, base), pair in zip(self.bases.items(), self.pairs, strict=True):
            modules[name] = Adapted(base, pair, self.gate)  # type: ignore[arg-type]
        before = {name: model.get_submodule(name) for name in modules}
        trained, was_training = [one for one in model.parameters() if one.requires_grad], model.training
        model.requires_grad_(False).eval()
        for name, module in modules.items():
            model.set_submodule(name, module)
        hooks = [layer.register_forward_pre_hook(self.gate.notice, with_kwargs=True) for layer in layers_of(model)[-1:]]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for name, module in before.items():
                model.set_submodule(name, module)
            self.restore()
            model.train(was_training)
            for one in trained:
                one.requires_grad_(True)

    def open_gate(self, members: torch.Tensor, dtype: torch.dtype, keys: torch.Tensor | None = None) -> None:
        """Set the member of each token of the next batch [N], and the key of its dropout [N]; `None`: no dropout."""
        own = functional.one_hot(members, self.num_members).to(dtype) * self.scale  # [N, M]
        self.gate.value = own.repeat_interleave(self.settings.rank, dim=1)
        self.gate.keys = keys

    def close_gate(self) -> None:
        """Compute without adapters and dropout from now on."""
        self.gate.value = self.gate.keys = None

    @torch.no_grad()
    def clip(self, max_norm: float) -> None:
        """Clip the gradient of each member by its own norm."""
        gradients = [one.grad for one in self.parameters() if one.grad is not None]
        squares = torch.stack([one.square().sum((1, 2)) for one in gradients])  # [parameters, M]
        factor = (max_norm / (squares.sum(0).sqrt() + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grad_norm_
        for one in gradients:
            one.mul_(factor[:, None, None])

    @torch.no_grad()
    def fold(self, member: int) -> None:
        """Fold one member into the model's weights, W + s B A in fp32. The gate must be closed."""
        for name, change in self.changes(member):
            self.bases[name].weight.copy_(self.originals[name].float() + change)

    @torch.no_grad()
    def changes(self, member: int) -> Iterator[tuple[str, torch.Tensor]]:
        """Compute s B A [out, in] of one member for each linear map, with its name."""
        for name, pair in zip(self.bases, self.pairs, strict=True):
            yield name, self.scale * (pair.up[member].T @ pair.down[member])  # type: ignore[index]

    @torch.no_grad()
    def restore(self) -> None:
        """Give the model its own weights back after `fold`."""
        for name, base in self.bases.items():
            base.weight.copy_(self.originals[name])

    def save(self, member: int, folder: Path, model_name: str, revision: str | None = None) -> None:
        """Write one member to a new folder, in peft's format. `model_name` and `revision` say what it adapts."""
        folder.mkdir()
        tensors = {}
        for name, pair in zip(self.bases, self.pairs, strict=True):
            down, up = (pair.get_parameter(one)[member].detach().cpu() for one in ("down", "up"))
            tensors[f"base_model.model.{name}.lora_A.weight"] = down.contiguous()
            tensors[f"base_model.model.{name}.lora_B.weight"] = up.T.contiguous()
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
    """List the full names of the linear maps that get adapters.

    Args:
        model: A transformers model; its weights are not needed.
        wanted: How their names end; `ALL_LINEAR` alone takes all, `None` those that the family has by default.
        frozen_layers: How many of the lower layers get none, so that no gradient goes there; `None`: half of them.
        setting: The setting that `wanted` comes from, for the message.

    Raises:
        SettingsError: There is no layer left, no map of such a name, or one that cannot have an adapter.
    """
    family, layers = family_of(model), layers_of(model)
    upper = layers[len(layers) // 2 if frozen_layers is None else frozen_layers :] if layers else [model.base_model]
    inside = {module for layer in upper for module in layer.modules()}
    linear = [name for name, one in model.named_modules() if isinstance(one, nn.Linear) and one in inside]
    if not linear:
        raise SettingsError(
            f"finetune.frozen_layers {frozen_layers} leaves no layer of the {family.model_type} model to adapt; "
            "lower it, or use finetune.method=full"
        )
    kinds = sorted({name.rpartition(".")[2] for name in linear})
    ends = kinds if wanted == (ALL_LINEAR,) else list(wanted or family.lora_targets)
    found = {end: [name for name in linear if f".{name}".endswith(f".{end}")] for end in ends}
    unknown = [end for end, names in found.items() if not names]
    if unknown or not found:
        raise SettingsError(
            f"{setting} {unknown}: the {family.model_type} model has no such linear maps; name some of "
            f"{', '.join(kinds)}, or {ALL_LINEAR} alone"
        )
    chosen = {name for names in found.values() for name in names}
    if getattr(model.config, "share_att_key", False) and any(name.endswith(family.positional_maps) for name in chosen):
        raise SettingsError(
            f"{setting} {ends}: in this {family.model_type} model query and key maps also read a table of positions "
            "(share_att_key), which belongs to no member; name others, such as value_proj, or use finetune.method=full"
        )
    return [name for name in linear if name in chosen]


# ---- reading and merging, by peft ----------------------------------------------------------------------------------

MOST_DIFFERENCE = 1e-4
"""Of merged and adapted logits, relative to the largest: fp32 rounding through some thirty layers stays under it."""


class Stored(NamedTuple):
    """An adapter as read from its folder: the model that it adapts, peft's configuration, weights by peft's names."""

    folder: Path
    base: ModelSettings
    config: Any
    tensors: dict[str, torch.Tensor]


def read(folder: Path) -> Stored:
    """Read the LoRA adapter in a folder.

    peft reads the configuration, but is never asked to find the weights: without safetensors it would read a pickle, or
    go to the hub.

    Raises:
        ModelError: There is none, it is damaged or not finite, or it says what peft does not know or obey.
    """
    if not folder.exists():
        raise ModelError(f"there is no folder {folder}; give a member made with finetune.method=lora")
    if not all(is_file(folder / name) for name in (CONFIG, WEIGHTS)):
        raise ModelError(
            f"{folder} holds no LoRA adapter ({CONFIG} and {WEIGHTS}); give a member made with finetune.method=lora"
        )
    from peft import PeftConfig

    with readable_errors(f"{folder} holds no LoRA adapter that can be used", "make the member anew"):
        with warnings.catch_warnings(record=True) as ignored:  # peft warns of fields that it does not know or obey
            warnings.simplefilter("always")
            config = PeftConfig.from_pretrained(str(folder))
        if config.peft_type != "LORA":
            raise ValueError(f"its peft_type is {config.peft_type.value}")
        if ignored:
            raise ValueError(ignored[0].message)
        # peft would import the module that a megatron_config needs; and before 0.21 it stored no biases of the model.
        if config.megatron_config or config.bias != "none":
            raise ValueError("megatron_config or bias is set")
        base = ModelSettings(name=config.base_model_name_or_path, revision=config.revision)
        tensors = {name: one.float() for name, one in load_file(folder / WEIGHTS).items()}
    if not all_finite(tensors.values()):
        raise ModelError(f"the LoRA adapter in {folder} has weights that are NaN or infinite; make the member anew")
    return Stored(folder, base, config, tensors)


@contextmanager
def readable_errors(what: str, remedy: str) -> Iterator[None]:
    """Keep peft quiet, and turn what it raises into one sentence.

    Raises:
        ModelError: Anything went wrong.
    """
    try:
        with quiet_transformers():
            yield
    except Exception as problem:  # peft checks little of what a folder says before it uses it
        reason = " ".join(f"{type(problem).__name__}: {problem}".split())[:200]
        raise ModelError(f"{what} ({reason}); {remedy}") from None


def attach(model: Any, stored: Stored) -> Any:
    """Put an adapter into a model. Returns peft's model around it, in eval mode.

    Raises:
        ModelError: The adapter is of another model, or not all of it can be used.
    """
    from peft import PeftModel, set_peft_model_state_dict

    what = f"{stored.folder} does not fit the model {stored.base.name!r}"
    with readable_errors(what, "it was made for another one"):
        adapted = PeftModel(model, stored.config, low_cpu_mem_usage=True).eval()  # without drawing weights first
        found: Any = set_peft_model_state_dict(adapted, stored.tensors, low_cpu_mem_usage=True)
        unset = [name for name, one in adapted.named_parameters() if one.is_meta]
        if found.unexpected_keys or unset:
            raise ValueError(f"no place for {found.unexpected_keys[:1]}, no weights for {unset[:1]}")
    return adapted


def detach(adapted: Any) -> list[Any]:
    """Take peft's layers out of the model that `attach` put them into.

    Each still holds one linear map of the model and its adapter. Its `merge(safe_merge=True)` gives that map's weight a
    new tensor as its `data`, so who has kept the one before can put it back.
    """
    from peft.tuners.lora import LoraLayer

    layers = [one for one in adapted.modules() if isinstance(one, LoraLayer)]
    adapted.unload()
    return layers


@torch.no_grad()
def merge(model: Any, stored: Stored, probe: dict[str, torch.Tensor]) -> float:
    """Merge an adapter into a model's weights, and check that they changed and that the answers did not.

    Args:
        model: Changed in place.
        stored: The adapter.
        probe: Keyword arguments of the model, to compare the merged model with the adapted one; rows padded.

    Returns:
        The largest difference, as a share of the largest logit.

    Raises:
        ModelError: It is of another model, changes nothing, cannot be merged, or answers differ.
        NotFinite: An answer is NaN or infinite.
    """
    folder, before = stored.folder, {name: one.data for name, one in model.named_parameters()}
    adapted = attach(model.eval(), stored)
    expected = adapted(**probe).logits
    with readable_errors(f"{folder}: peft cannot merge this adapter", "give another member"):
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
