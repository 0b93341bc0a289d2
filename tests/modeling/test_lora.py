"""Adapters of many members in one batch are, for each member, what folding or peft would give it alone: answers,
gradients, training. References are weights W + (alpha / rank) B A written out here, one row at a time, and peft."""

import copy
import json
import math
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import islice

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, VeraConfig, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from safetensors.torch import load_file, save_file
from support.plain import (
    FILLED,
    LIVELY,
    OTHERS,
    PACKED,
    alone,
    assert_near,
    kind,
    some_batch,
    some_rows,
    tokens_of,
    vocabulary_logits,
)
from support.tiny import FAMILIES, TOKENIZERS, WORDS, tiny_model
from torch.func import functional_call
from torch.nn import functional

from pet.config.schema import FinetuneSettings
from pet.errors import ModelError, NotFinite, SettingsError
from pet.modeling.backbones import ClozeBatch, MaskedLM
from pet.modeling.batch import Batch, Layout
from pet.modeling.families import FAMILIES as KNOWN
from pet.modeling.loading import freeze_lower
from pet.modeling.lora import (
    CONFIG,
    PASS_STEP,
    WEIGHTS,
    Adapted,
    Adapters,
    Gate,
    KeyedDropout,
    attach,
    detach,
    merge,
    read,
)
from pet.modeling.token_losses import IGNORED
from pet.modeling.verbalizers import Verbalizer
from pet.pipeline.members.batches import (
    KEY_STEP,
    MemberSources,
    cloze_losses,
    collate_members,
    draw_member_batches,
)
from pet.training.cuda_graphs import Losses
from pet.training.device import Runtime
from pet.training.reporter import Silent
from pet.training.scoring import computing_copy
from pet.training.trainer import Trainer, TrainingReport

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),  # peft asks it so
]

torch.set_num_threads(1)  # models this small lose more by waiting for a second core than they gain

RANK, ALPHA = 3, 7.0
"""A scale that is neither 1 nor alpha nor rank."""

SEEDS = (11, 12, 13)
"""Of three members."""

WHOSE = torch.tensor([2, 0, 1, 1, 0, 2, 0])
"""Which member each of the seven rows of a batch belongs to."""

MAPS = {
    "albert": ("query", "value", 1),
    "bert": ("query", "value", 2),
    "deberta-v2": ("query_proj", "value_proj", 2),
    "distilbert": ("q_lin", "v_lin", 2),
    "electra": ("query", "value", 2),
    "modernbert": ("Wqkv", "Wqkv", 2),
    "roberta": ("query", "value", 2),
    "xlm-roberta": ("query", "value", 2),
}
"""The maps of queries and values, and in how many layers of their own (ALBERT's two share theirs)."""


def settings_of(**more: object) -> FinetuneSettings:
    lora = {"rank": RANK, "alpha": ALPHA, **{name: more.pop(name) for name in ("targets", "rank") if name in more}}
    return FinetuneSettings.model_validate({"method": "lora", "lora": lora, "frozen_layers": 0, **more})


def model_of(family: str = "bert", **more: object):
    """A tiny model; the same one every time it is asked for."""
    return tiny_model(family, TOKENIZERS[kind(family)](), **{**LIVELY, **more})


def grow(adapters: Adapters) -> Adapters:
    """Adapters that say something: B is 0 before training."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, one in adapters.named_parameters():
            if name.endswith("up"):
                one.normal_(std=0.4, generator=generator)
    return adapters


def grown(lm: object, seeds: Sequence[int] = SEEDS, **more: object) -> Adapters:
    return grow(Adapters(lm, lm, seeds, settings_of(**more)))


def layout_of(family: str) -> Layout:
    """End to end and filled up, where the family can."""
    return FILLED if family in PACKED else Layout(True, 72)


def members_of(batch: Batch, whose: torch.Tensor = WHOSE, filler: int = 1) -> torch.Tensor:
    """The member of each token [N]; what fills the batch up is given to `filler`."""
    extra = torch.full((len(batch.starts) - 1 - len(whose),), filler)
    return torch.cat([whose, extra])[batch.rows]


def logits_of(cloze: MaskedLM, batch: Batch) -> torch.Tensor:
    """[N, V]."""
    return vocabulary_logits(cloze, cloze.states(batch)).T


def weights_of(adapters: Adapters, member: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """A [r, in] and B [out, r] of a member by the name of their map."""
    pairs = [(pair.get_parameter("down"), pair.get_parameter("up")) for pair in adapters.pairs]
    return {name: (down[member], up[member].T) for name, (down, up) in zip(adapters.bases, pairs, strict=True)}


def with_member(family: str, adapters: Adapters, member: int, **more: object):
    """The untouched transformers model with weights W + (alpha / rank) B A."""
    lm = model_of(family, **more)
    with torch.no_grad():
        for name, (down, up) in weights_of(adapters, member).items():
            lm.get_submodule(name).weight += ALPHA / RANK * up @ down
    return lm


# ---- answers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", MAPS)
def test_each_row_of_a_batch_is_answered_with_its_own_member_s_weights(family):
    """Whatever the order of the rows, and next to rows that no member asked for."""
    batch, cloze = some_batch(family, layout_of(family)), MaskedLM(model_of(family))
    adapters = grown(cloze.lm)
    references = [with_member(family, adapters, member) for member in range(3)]
    untouched = model_of(family)
    for whose in (WHOSE, WHOSE.flip(0)):
        with torch.no_grad(), adapters.installed():
            adapters.open_gate(members_of(batch, whose), torch.float32)
            states, logits = cloze.states(batch), logits_of(cloze, batch)
        for member, (inputs, tokens) in zip(whose.tolist(), alone(batch), strict=True):
            with torch.no_grad():
                expected, base = references[member](**inputs).logits[0], untouched(**inputs).logits[0]
                hidden = references[member].base_model(**inputs).last_hidden_state[0]
            assert_near(logits[tokens], expected)
            if cloze.shortcut:
                assert_near(states[tokens], hidden)
            assert (base - expected).abs().max() > 0.05 * base.abs().max(), "the adapters say something"


@pytest.mark.parametrize("family", PACKED)
def test_whom_the_filling_tokens_are_given_to_changes_no_row(family):
    batch, cloze = some_batch(family, FILLED), MaskedLM(model_of(family))
    adapters, own = grown(cloze.lm), tokens_of(batch)
    assert len(own) < len(batch.input_ids)
    found = []
    with torch.no_grad(), adapters.installed():
        for filler in range(3):
            adapters.open_gate(members_of(batch, filler=filler), torch.float32)
            found.append(cloze.states(batch))
    assert all(one.isfinite().all() for one in found)
    assert all(torch.equal(one[own], found[0][own]) for one in found)


def test_without_a_gate_the_model_answers_as_if_there_were_no_adapters():
    batch, cloze = some_batch("bert", FILLED), MaskedLM(model_of())
    adapters = grown(cloze.lm)
    with torch.no_grad():
        expected = cloze.states(batch)
        with adapters.installed():
            assert torch.equal(cloze.states(batch), expected)
            adapters.open_gate(members_of(batch), torch.float32)
            assert not torch.allclose(cloze.states(batch), expected, atol=0.1)
            adapters.close_gate()
            assert torch.equal(cloze.states(batch), expected)


@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "modernbert"])
def test_in_bf16_scores_are_within_a_tenth_of_those_in_fp32(family, folded):
    """Of the largest score: the bound of the copy that scores without adapters, too. Folded weights are computed from
    the fp32 ones."""
    cloze = MaskedLM(model_of(family))
    low = computing_copy(cloze, Runtime(torch.device("cpu"), torch.bfloat16, 2048, Silent()))
    assert low.lm.base_model.dtype == torch.bfloat16
    batch, words = some_batch(family, layout_of(family)), torch.arange(20, 40)
    exact = grown(cloze.lm)
    adapters = grow(Adapters(low.lm, cloze.lm, SEEDS, settings_of()))
    members = torch.full((len(batch.input_ids),), 1)
    with torch.no_grad(), exact.installed():
        exact.open_gate(members, torch.float32)
        expected = cloze.word_logits(cloze.states(batch)[batch.mask_positions], words)
    with torch.no_grad(), adapters.installed():
        if folded:
            adapters.fold(1)
            for name, (down, up) in weights_of(adapters, 1).items():
                full = cloze.lm.get_submodule(name).weight + ALPHA / RANK * up @ down
                assert (adapters.bases[name].weight != full.bfloat16()).float().mean() < 0.01, "rounded once"
        else:
            adapters.open_gate(members, torch.bfloat16)
        found = low.word_logits(low.states(batch)[batch.mask_positions], words)
    assert found.dtype == torch.float32
    assert not torch.equal(found, expected)
    assert_near(found, expected, 0.1)
    untouched = cloze.word_logits(cloze.states(batch)[batch.mask_positions], words)
    assert (untouched - expected).abs().max() > 0.2 * expected.abs().max(), "the bound could be missed"


def test_of_a_deberta_whose_queries_are_also_those_of_positions_only_values_are_adapted():
    """DeBERTa v3 (`share_att_key`): query and key maps also read the table of relative positions, no token's."""
    share, batch = {"share_att_key": True}, some_batch("deberta-v2", layout_of("deberta-v2"))
    cloze = MaskedLM(model_of("deberta-v2", **share))
    for targets in (None, ["key_proj"], ["value_proj", "query_proj"]):
        with pytest.raises(SettingsError, match=r"share_att_key.*such as value_proj, or use finetune.method=full"):
            grown(cloze.lm, targets=targets)
    adapters = grown(cloze.lm, targets=["value_proj"])
    with torch.no_grad(), adapters.installed():
        adapters.open_gate(members_of(batch), torch.float32)
        logits = logits_of(cloze, batch)
    for member, (inputs, tokens) in zip(WHOSE.tolist(), alone(batch), strict=True):
        with torch.no_grad():
            reference = with_member("deberta-v2", adapters, member, **share)
            assert_near(logits[tokens], reference(**inputs).logits[0])


# ---- gradients -----------------------------------------------------------------------------------------------------


def reference_gradients(
    family: str, adapters: Adapters, member: int, batch: Batch, weights: torch.Tensor
) -> dict[str, list[torch.Tensor]]:
    """Gradients of A [r, in] and B [out, r] of one member from its own rows, through the untouched model."""
    lm = model_of(family).double().requires_grad_(False)
    leaves = {
        name: [one.detach().clone().requires_grad_() for one in pair]
        for name, pair in weights_of(adapters, member).items()
    }
    adapted = {
        f"{name}.weight": lm.get_submodule(name).weight + ALPHA / RANK * up @ down
        for name, (down, up) in leaves.items()
    }
    total = torch.zeros((), dtype=torch.float64)
    for whose, (inputs, tokens) in zip(WHOSE.tolist(), alone(batch), strict=True):
        if whose == member:
            total = total + (functional_call(lm, adapted, (), inputs).logits[0] * weights[tokens]).sum()
    total.backward()
    return {name: [one.grad for one in pair] for name, pair in leaves.items()}


@pytest.mark.parametrize("family", MAPS)
def test_gradients_of_each_member_are_those_of_its_rows_alone(family):
    """Of a loss that weighs every logit of every token differently; in float64, where nothing hides in rounding. No
    weight of the model gets a gradient."""
    batch, cloze = some_batch(family, layout_of(family)), MaskedLM(model_of(family).double())
    adapters, own = grown(cloze.lm).double(), tokens_of(batch)
    shape, generator = (len(batch.input_ids), len(TOKENIZERS[kind(family)]())), torch.Generator().manual_seed(0)
    weights = torch.randn(shape, generator=generator, dtype=torch.float64)
    with adapters.installed():
        adapters.open_gate(members_of(batch), torch.float64)
        (logits_of(cloze, batch)[own] * weights[own]).sum().backward()
    assert all(one.grad is None for one in cloze.parameters())
    for member in range(3):
        expected = reference_gradients(family, adapters, member, batch, weights)
        scale = max(float(one.abs().max()) for pair in expected.values() for one in pair)
        for pair, (name, (down, up)) in zip(adapters.pairs, expected.items(), strict=True):
            for found, wanted in ((pair.down.grad[member], down), (pair.up.grad[member].T, up)):
                assert wanted.any()
                torch.testing.assert_close(
                    found,
                    wanted,
                    rtol=1e-9,
                    atol=1e-9 * scale,
                    msg=lambda text, n=name, m=member: f"{n} of {m}: {text}",
                )


@pytest.mark.parametrize("family", ["bert", "distilbert"])
@pytest.mark.parametrize("member", range(3))
def test_other_members_get_exactly_nothing_from_a_member_s_rows(family, member):
    batch, cloze = some_batch(family, layout_of(family)), MaskedLM(model_of(family))
    adapters = grown(cloze.lm)
    rows = [tokens for whose, (_, tokens) in zip(WHOSE.tolist(), alone(batch), strict=True) if whose == member]
    with adapters.installed():
        adapters.open_gate(members_of(batch, filler=(member + 1) % 3), torch.float32)
        cloze.states(batch)[torch.cat(rows)].square().sum().backward()
    for one in adapters.parameters():
        assert [bool(gradient.any()) for gradient in one.grad] == [other == member for other in range(3)]


@pytest.mark.parametrize("max_norm", [0.01, 1.0, 1000.0])
def test_each_member_s_gradient_is_clipped_to_a_norm_of_its_own(max_norm):
    """As torch.nn.utils.clip_grad_norm_ does it for that member alone; members of very different norms."""
    adapters = grown(model_of())
    generator = torch.Generator().manual_seed(1)
    for one in adapters.parameters():
        one.grad = torch.randn(one.shape, generator=generator) * torch.tensor([1e-3, 1.0, 50.0])[:, None, None]
    own = [[torch.nn.Parameter(one[member].detach().clone()) for one in adapters.parameters()] for member in range(3)]
    norms = []
    for member, parameters in enumerate(own):
        for mine, one in zip(parameters, adapters.parameters(), strict=True):
            mine.grad = one.grad[member].clone()
        norms.append(float(torch.nn.utils.clip_grad_norm_(parameters, max_norm)))
    assert norms[0] < 0.1 < 1 < norms[1] < 100 < norms[2]
    adapters.clip(max_norm)
    for member, parameters in enumerate(own):
        for mine, one in zip(parameters, adapters.parameters(), strict=True):
            torch.testing.assert_close(one.grad[member], mine.grad, rtol=1e-5, atol=0)


# ---- at the start --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_at_the_start_every_member_answers_like_the_model_itself(family):
    batch, cloze = some_batch(family, layout_of(family)), MaskedLM(model_of(family))
    adapters = Adapters(cloze.lm, cloze.lm, SEEDS, settings_of())
    with torch.no_grad():
        expected = cloze.states(batch)
        with adapters.installed():
            adapters.open_gate(members_of(batch), torch.float32)
            assert torch.equal(cloze.states(batch), expected)


def starts(seeds: Sequence[int]) -> list[torch.Tensor]:
    """The A [M, r, in] of all maps at the start."""
    lm = model_of()
    return [pair.get_parameter("down").detach() for pair in Adapters(lm, lm, seeds, settings_of()).pairs]


def test_a_member_starts_the_same_alone_and_in_any_group_and_two_seeds_differ():
    together = starts(SEEDS)
    torch.rand(3)  # torch's own random state has no say
    for member, seed in enumerate(SEEDS):
        assert all(torch.equal(mine[0], one[member]) for mine, one in zip(starts([seed]), together, strict=True))
    assert all(not torch.equal(one[member], one[other]) for one in together for member, other in ((0, 1), (1, 2)))
    assert not torch.equal(together[0], together[1]), "nor do two maps start alike"


def test_a_member_starts_within_peft_s_bound():
    """Uniform up to 1 / sqrt(in): so does peft draw it."""
    wide = {"hidden_size": 64, "intermediate_size": 96}
    lm = model_of(**wide)
    mine = [one for name, one in Adapters(lm, lm, SEEDS, settings_of()).named_parameters() if "down" in name]
    adapted = get_peft_model(model_of(**wide), LoraConfig(r=RANK, target_modules=["query", "value"]))
    theirs = [one for name, one in adapted.named_parameters() if "lora_A" in name]
    bound = 1 / math.sqrt(64)
    assert len(mine) == len(theirs) == 4
    assert all(0.9 * bound < one.detach().abs().max() <= bound for one in (*mine, *theirs))


# ---- dropout -------------------------------------------------------------------------------------------------------


def keys_of(start: int, count: int) -> torch.Tensor:
    """The keys of neighbouring tokens, as they are in a batch."""
    return torch.from_numpy((start + np.arange(count) * KEY_STEP).astype(np.int32))


def drop(inputs: torch.Tensor, keys: torch.Tensor | None, p: float = 0.1, before: int = 0) -> torch.Tensor:
    """`before`: so many dropouts came before it."""
    gate, found = Gate(), inputs
    gate.keys = keys
    for _ in range(before + 1):
        found = KeyedDropout(p, gate)(inputs)
    return found


@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("start", [0, 123_456_789])
def test_dropout_drops_its_share_without_a_pattern(p, start):
    """In all, of each token and of each column as a coin; neighbours, dropouts before and other keys say nothing."""
    tokens, columns = 4096, 96
    ones = torch.ones(1, tokens, columns)
    masks = {before: (drop(ones, keys_of(start, tokens), p, before)[0] == 0).double() for before in (0, 1, 7)}
    mask, size = masks[0], tokens * columns
    assert abs(float(mask.mean()) - p) < 4 * math.sqrt(p * (1 - p) / size)
    for shares, count in ((mask.mean(0), tokens), (mask.mean(1), columns)):
        spread = float(((shares - p) ** 2).mean()) / (p * (1 - p) / count)
        assert abs(spread - 1) < 6 * math.sqrt(2 / len(shares)), "of a binomial"
    next_step = (drop(ones, keys_of(start + 1_000_003, tokens), p)[0] == 0).double()
    pairs = [(mask[1:], mask[:-1]), (mask[:, 1:], mask[:, :-1]), (mask, next_step)]
    pairs += [(masks[1], mask), (masks[7], mask), (masks[1][:, :-1], mask[:, 1:])]
    for one, other in pairs:
        together = float(((one - p) * (other - p)).mean()) / (p * (1 - p))
        assert abs(together) < 5 / math.sqrt(one.numel())


@pytest.mark.parametrize("p", [0.1, 0.4])
def test_what_is_kept_grows_and_gradients_go_the_same_way(p):
    inputs = torch.randn(2, 40, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = drop(inputs, keys_of(5, 80), p)
    kept = found.detach() != 0
    torch.testing.assert_close(found, inputs * kept / (1 - p))
    found.sum().backward()
    torch.testing.assert_close(inputs.grad, kept / (1 - p))


def test_what_is_dropped_of_a_token_is_decided_by_its_key_alone():
    ones, keys = torch.ones(60, 32), keys_of(9, 60)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    assert torch.equal(drop(ones, keys[order]), drop(ones, keys)[order])
    assert torch.equal(drop(ones, keys), drop(ones, keys))
    assert len(set(map(tuple, drop(ones, keys).tolist()))) > 50, "no two tokens alike"


def test_no_two_tokens_of_a_batch_have_one_key_in_any_two_of_200_dropouts():
    starts = np.arange(200, dtype=np.int64)[:, None] * PASS_STEP  # of one token, from dropout to dropout
    others = np.arange(-40_000, 40_000, dtype=np.int64) * KEY_STEP  # of all tokens beside it, in one dropout
    assert not np.isin((starts[1:] % 2**32).ravel(), others % 2**32).any()


def test_without_keys_or_with_those_of_other_tokens_nothing_is_dropped():
    ones = torch.ones(2, 30, 16)
    assert drop(ones, None) is ones
    assert drop(ones, keys_of(0, 30)) is ones


@pytest.mark.parametrize("family", ["bert", "roberta", "albert", "distilbert", "electra", "deberta-v2"])
def test_a_row_in_a_batch_is_dropped_from_as_it_is_alone(family):
    """Whichever others are there and wherever it lies; other keys, other answers; none, as without."""
    rate = {"dropout": 0.2} if family == "distilbert" else {"hidden_dropout_prob": 0.2}
    batch, rows, layout = some_batch(family, layout_of(family)), some_rows(family), layout_of(family)
    cloze = MaskedLM(model_of(family, **rate))
    adapters = grown(cloze.lm)
    keys = keys_of(77, len(batch.input_ids))

    def ask(given: Batch, members: torch.Tensor, of_tokens: torch.Tensor | None) -> torch.Tensor:
        adapters.open_gate(members, torch.float32, of_tokens)
        return cloze.states(given)

    with torch.no_grad(), adapters.installed():
        together, members = ask(batch, members_of(batch), keys), members_of(batch)
        for row, (_, tokens) in enumerate(alone(batch)):
            single = rows.batch(np.asarray([row]), layout)
            own = torch.zeros(len(single.input_ids), dtype=torch.int32)
            own[: len(tokens)] = keys[tokens]
            found = ask(single, torch.full((len(single.input_ids),), int(WHOSE[row])), own)
            assert_near(found[: len(tokens)], together[tokens])
        without, other, again = ask(batch, members, None), ask(batch, members, keys.flip(0)), ask(batch, members, keys)
        adapters.close_gate()
        closed = cloze.states(batch)
    own = tokens_of(batch)
    assert torch.equal(again, together)
    scale = without[own].abs().max()
    assert all((one - together)[own].abs().max() > 0.1 * scale for one in (without, other))
    with torch.no_grad():
        assert_near(closed[own], MaskedLM(model_of(family)).states(batch)[own])


@pytest.mark.parametrize("layout", [Layout(False), FILLED], ids=["end to end", "filled up"])
@pytest.mark.parametrize("family", ["bert", "roberta", "albert"])
def test_states_at_some_tokens_are_those_of_all_states_with_adapters_and_dropout_too(family, layout):
    """The last layer computes those only, each with its own member's adapter and its own key; in the next pass too."""
    rate = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.0}
    batch, cloze = some_batch(family, layout), MaskedLM(model_of(family, **rate))
    adapters = grown(cloze.lm, targets=["query", "key", "value", "dense"])
    tokens = tokens_of(batch)[torch.tensor([30, 2, 3, 2, 17, 41])]
    with torch.no_grad(), adapters.installed():
        for start in (77, 78):
            for own in (keys_of(start, len(batch.input_ids)), None):
                found = []
                for ask in (lambda: cloze.states_at(batch, tokens), lambda: cloze.states(batch)[tokens]):
                    adapters.open_gate(members_of(batch), torch.float32, own)
                    found.append(ask())
                assert_near(*found)


@pytest.mark.parametrize(
    ("family", "dropouts"),
    [("bert", 5), ("distilbert", 3), ("albert", 3)],  # ALBERT's two layers are one module, and drop differently
)
def test_dropout_is_where_hidden_states_are_dropped_and_nowhere_drops_alike(family, dropouts):
    """Behind the embeddings and once or twice a layer; attention is left alone."""
    rate = {"dropout": 0.2} if family == "distilbert" else {"hidden_dropout_prob": 0.2}
    rate["attention_dropout" if family == "distilbert" else "attention_probs_dropout_prob"] = 0.2
    batch, cloze = some_batch(family, layout_of(family)), MaskedLM(model_of(family, **rate))
    adapters, masks = grown(cloze.lm), []

    def meter(module: torch.nn.Module, inputs: tuple[torch.Tensor], found: torch.Tensor) -> None:
        if found is not inputs[0]:
            masks.append(found.flatten(0, -2) == 0)

    with torch.no_grad(), adapters.installed():
        for one in cloze.lm.modules():
            if isinstance(one, KeyedDropout):
                one.register_forward_hook(meter)
        assert not any(isinstance(one, torch.nn.Dropout) and one.p for one in cloze.lm.base_model.modules())
        adapters.open_gate(members_of(batch), torch.float32, keys_of(77, len(batch.input_ids)))
        cloze.states(batch)
    assert len(masks) == dropouts
    widths = [one.shape[1] for one in masks]
    for number, one in enumerate(masks):
        for other in masks[:number]:
            width = min(one.shape[1], other.shape[1])
            assert not torch.equal(one[:, :width], other[:, :width]), widths


# ---- in and out of the model ---------------------------------------------------------------------------------------


def everything(lm: torch.nn.Module) -> list[object]:
    """Modules and parameters of a model, which they are and whether they are trained."""
    modules = [(name, id(one), one.training) for name, one in lm.named_modules()]
    return [*modules, *((name, id(one), one.requires_grad) for name, one in lm.named_parameters())]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("problem", [None, RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("family", ["bert", "albert", "distilbert"])
def test_after_it_the_model_is_exactly_what_it_was(family, problem, training):
    """Weights to the bit, what is trained, and which modules there are; also when something goes wrong inside."""
    lm = model_of(family)
    cloze = MaskedLM(lm)
    freeze_lower(lm.train(training), None if family == "albert" else 1)
    before, weights = everything(lm), copy.deepcopy(lm.state_dict())
    adapters = grown(lm)

    def use() -> None:
        with adapters.installed():
            own, inside = set(adapters.parameters()), {one for one in lm.modules() if isinstance(one, Adapted)}
            assert not any(one.requires_grad for one in lm.parameters() if one not in own)
            assert all(one.requires_grad for one in own)
            assert everything(lm) != before
            assert not any(
                one.training for one in lm.base_model.modules() if list(one.children()) and one not in inside
            )
            adapters.fold(2)
            assert not torch.equal(
                next(iter(adapters.bases.values())).weight, weights[f"{next(iter(adapters.bases))}.weight"]
            )
            if problem:
                raise problem

    if problem:
        with pytest.raises(problem):
            use()
    else:
        use()
    assert everything(lm) == before
    assert list(lm.state_dict()) == list(weights)
    assert all(torch.equal(one, weights[name]) for name, one in lm.state_dict().items())
    batch = some_batch(family, layout_of(family))
    lm.eval()
    assert_near(
        cloze.states(batch).detach()[tokens_of(batch)],
        MaskedLM(model_of(family)).states(batch).detach()[tokens_of(batch)],
    )


@pytest.mark.parametrize("family", ["bert", "albert", "modernbert"])
def test_a_member_folded_in_answers_as_it_does_in_a_batch(family):
    """One after another, in any order: each is folded into the original weights."""
    batch, cloze = some_batch(family, layout_of(family)), MaskedLM(model_of(family))
    adapters, own = grown(cloze.lm), tokens_of(batch)
    with torch.no_grad(), adapters.installed():
        base, expected = cloze.states(batch), []
        for member in range(3):
            adapters.open_gate(torch.full((len(batch.input_ids),), member), torch.float32)
            expected.append(cloze.states(batch))
            assert not torch.allclose(base, expected[member], atol=0.1)
        adapters.close_gate()
        for member in (1, 0, 2):
            adapters.fold(member)
            assert_near(cloze.states(batch)[own], expected[member][own])
        adapters.restore()
        assert torch.equal(cloze.states(batch), base)


# ---- which maps ----------------------------------------------------------------------------------------------------


def names_of(family: str = "bert", **more: object) -> list[str]:
    lm = model_of(family)
    return list(Adapters(lm, lm, [0], settings_of(**more)).bases)


def test_every_family_with_targets_is_tested_here():
    assert set(MAPS) == {name for name, one in KNOWN.items() if one.lora_targets}
    assert set(MAPS) <= {*FAMILIES, *OTHERS}


@pytest.mark.parametrize("family", MAPS)
def test_queries_and_values_of_every_layer_get_adapters(family):
    query, value, layers = MAPS[family]
    found = names_of(family)
    ends = [name.rpartition(".")[2] for name in found]
    assert len(set(found)) == len(found) == layers * len({query, value})
    assert {end: ends.count(end) for end in ends} == {query: layers, value: layers}


@pytest.mark.parametrize("family", ["bert", "distilbert", "modernbert"])
def test_frozen_layers_get_no_adapters(family):
    every = names_of(family)
    assert names_of(family, frozen_layers=0) == every
    assert (
        names_of(family, frozen_layers=1) == [name for name in every if ".0." not in name] == every[len(every) // 2 :]
    )
    with pytest.raises(SettingsError, match="frozen_layers 2 leaves no layer of the"):
        names_of(family, frozen_layers=2)


def test_targets_are_named_by_the_end_of_their_full_names_and_lie_in_the_body():
    """Not by the end of a word, and never in the head, which all members share."""
    layers = [f"bert.encoder.layer.{number}" for number in (0, 1)]
    assert names_of(targets=["key"]) == [f"{layer}.attention.self.key" for layer in layers]
    assert names_of(targets=["intermediate.dense"]) == [f"{layer}.intermediate.dense" for layer in layers]
    assert len(names_of(targets=["dense"])) == 6
    for nowhere in ("uery", "transform.dense", "decoder", "layer"):
        with pytest.raises(SettingsError):
            names_of(targets=[nowhere])


def test_targets_other_than_the_default_are_adapted_like_it():
    """Maps of other sizes, embeddings of another size than the layers."""
    batch, cloze = some_batch("albert", FILLED), MaskedLM(model_of("albert"))
    adapters = grown(cloze.lm, targets=["ffn", "ffn_output", "embedding_hidden_mapping_in"])
    assert {(one.in_features, one.out_features) for one in adapters.bases.values()} == {(32, 48), (48, 32), (16, 32)}
    with torch.no_grad(), adapters.installed():
        adapters.open_gate(members_of(batch), torch.float32)
        logits = logits_of(cloze, batch)
    for member, (inputs, tokens) in zip(WHOSE.tolist(), alone(batch), strict=True):
        with torch.no_grad():
            assert_near(logits[tokens], with_member("albert", adapters, member)(**inputs).logits[0])


@pytest.mark.parametrize(("family", "maps"), [("bert", 6), ("distilbert", 6), ("albert", 7), ("modernbert", 4)])
def test_all_linear_maps_of_the_layers_can_be_adapted_by_one_word(family, maps):
    """Neither embeddings nor head; ALBERT's two layers are one, and one map leads to them."""
    names = names_of(family, targets="all-linear")
    assert len(names) == maps if family == "albert" else 2 * maps
    assert not [name for name in names if "embeddings" in name or "head" in name or "cls" in name], names
    assert names_of(family, targets="all-linear", frozen_layers=1 if family != "albert" else 0) == names[-maps:]


@pytest.mark.parametrize("family", ["bert", "distilbert", "modernbert"])
def test_unless_told_otherwise_the_upper_half_of_the_layers_is_adapted(family):
    assert names_of(family, frozen_layers=None) == names_of(family, frozen_layers=1)


def test_where_layers_are_one_module_it_is_adapted():
    assert names_of("albert", frozen_layers=None) == names_of("albert", frozen_layers=0) != []


@pytest.mark.parametrize(
    ("family", "targets", "words"),
    [
        ("bert", ["qeury"], ["['qeury']", "the bert model", "name some of dense, key, query, value"]),
        ("distilbert", ["query"], ["['query']", "the distilbert model", "k_lin, lin1, lin2, out_lin, q_lin, v_lin"]),
        ("camembert", None, ["the camembert model", "name some of dense, key, query, value"]),
    ],
)
def test_a_name_that_is_nowhere_is_refused_and_those_that_are_there_are_told(family, targets, words):
    with pytest.raises(SettingsError) as refused:
        names_of(family, targets=targets)
    assert all(word in str(refused.value) for word in ["finetune.lora.targets", *words]), refused.value


def test_every_name_must_be_somewhere():
    """A misspelled one beside a right one, too."""
    with pytest.raises(SettingsError, match=r"vlaue.*name some of dense, key, query, value"):
        names_of(targets=["query", "vlaue"])


def test_a_family_without_a_default_takes_the_names_it_is_told():
    assert len(names_of("camembert", targets=["query", "key"])) == 4


# ---- peft ----------------------------------------------------------------------------------------------------------


def probe_of(family: str = "bert") -> dict[str, torch.Tensor]:
    """Two rows of different lengths, padded, with a mask."""
    tokenizer = TOKENIZERS[kind(family)]()
    texts = [" ".join([*WORDS[:9], str(tokenizer.mask_token)]), f"{tokenizer.mask_token} {WORDS[12]}"]
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    return {name: inputs[name] for name in ("input_ids", "attention_mask")}


def gated(adapters: Adapters, lm: torch.nn.Module, probe: dict[str, torch.Tensor], member: int = 0) -> torch.Tensor:
    with torch.no_grad(), adapters.installed():
        adapters.open_gate(torch.full((probe["input_ids"].numel(),), member), torch.float32)
        return torch.as_tensor(lm(**probe).logits)


def peft_folder(folder, family: str = "bert", kind_of_config=LoraConfig, touched: bool = True, **more: object):
    """What peft writes of a random adapter (untouched: one that was never trained), and the model it adapts."""
    config = {"r": RANK, "target_modules": list(dict.fromkeys(MAPS[family][:2])), **more}
    if kind_of_config is LoraConfig:
        config = {"lora_alpha": ALPHA, **config}
    model = get_peft_model(model_of(family), kind_of_config(**config)).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, one in model.named_parameters():
            if touched and "lora_" in name:
                one.normal_(std=0.4, generator=generator)
    save_theirs(model, folder)
    return model


def save_theirs(model: PeftModel, folder) -> None:
    """What peft writes, of an adapter on a model with a name."""
    model.save_pretrained(folder, save_embedding_layers=False)  # else it looks for the model on the hub
    change_config(folder, base_model_name_or_path="a-model")


def change_config(folder, **changes: object) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | changes))


@pytest.mark.parametrize("family", MAPS)
def test_peft_loads_what_is_saved_and_gives_the_same_logits(family, tmp_path):
    lm = model_of(family)
    adapters, probe = grown(lm), probe_of(family)
    for member in range(3):
        adapters.save(member, tmp_path / str(member), "somewhere/a-model")
        theirs = PeftModel.from_pretrained(model_of(family), tmp_path / str(member)).eval()
        assert {path.name for path in (tmp_path / str(member)).iterdir()} == {CONFIG, WEIGHTS}
        with torch.no_grad():
            assert_near(gated(adapters, lm, probe, member), theirs(**probe).logits)
        config = theirs.peft_config["default"]
        assert (config.r, config.lora_alpha, config.lora_dropout, config.bias) == (RANK, ALPHA, 0, "none")
        assert config.base_model_name_or_path == "somewhere/a-model"


def test_a_member_is_saved_in_fp32_under_peft_s_names(tmp_path):
    adapters = grown(model_of())
    adapters.save(1, tmp_path / "adapter", "a-model")
    tensors = load_file(tmp_path / "adapter" / WEIGHTS)
    assert all(one.dtype == torch.float32 for one in tensors.values())
    assert len(tensors) == 2 * len(adapters.bases)
    for name, (down, up) in weights_of(adapters, 1).items():
        assert torch.equal(tensors[f"base_model.model.{name}.lora_A.weight"], down)
        assert torch.equal(tensors[f"base_model.model.{name}.lora_B.weight"], up)


def with_stored(family: str, folder):
    """The untouched transformers model with the weights in a folder added: W + (alpha / rank) B A."""
    lm, tensors = model_of(family), load_file(folder / WEIGHTS)
    with torch.no_grad():
        for name in names_of(family):
            down, up = (tensors[f"base_model.model.{name}.lora_{part}.weight"].float() for part in "AB")
            lm.get_submodule(name).weight += ALPHA / RANK * up @ down
    return lm


@pytest.mark.parametrize("precision", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", MAPS)
def test_an_attached_adapter_answers_with_its_weights_added(family, precision, tmp_path):
    """In fp32, whatever the adapter was stored in; without dropout, and nothing is drawn."""
    peft_folder(tmp_path / "theirs", family, lora_dropout=0.5)
    weights = load_file(tmp_path / "theirs" / WEIGHTS)
    save_file({name: one.to(precision) for name, one in weights.items()}, tmp_path / "theirs" / WEIGHTS)
    lm, probe = model_of(family), probe_of(family)
    state = torch.get_rng_state()
    adapted = attach(lm, read(tmp_path / "theirs"))
    with torch.no_grad():
        assert_near(adapted(**probe).logits, with_stored(family, tmp_path / "theirs")(**probe).logits)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("family", ["bert", "albert", "modernbert"])
def test_adapters_that_were_detached_take_turns_in_one_model_and_leave_nothing_behind(family, tmp_path):
    lm, probe, adapters = model_of(family), probe_of(family), grown(model_of(family))
    modules, originals = everything(lm), [(one, one.data) for one in lm.parameters()]
    for member in range(2):
        adapters.save(member, tmp_path / str(member), "a-model")
    layers = [detach(attach(lm, read(tmp_path / str(member)))) for member in range(2)]
    for member in (0, 1, 0):
        with torch.no_grad():
            for layer in layers[member]:
                layer.merge(safe_merge=True)
                layer.merged_adapters.clear()
            assert_near(lm(**probe).logits, with_stored(family, tmp_path / str(member))(**probe).logits)
        for parameter, data in originals:
            parameter.data = data
        assert all(torch.equal(one, lm.state_dict()[name]) for name, one in model_of(family).state_dict().items())
    assert [one[:2] for one in everything(lm)] == [one[:2] for one in modules]


# ---- merging -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", MAPS)
def test_merging_changes_the_adapted_weights_alone_and_gives_what_peft_merges(family, tmp_path):
    theirs, lm, probe = peft_folder(tmp_path / "theirs", family), model_of(family), probe_of(family)
    assert merge(lm, read(tmp_path / "theirs"), probe) < 1e-4
    with torch.no_grad():
        assert_near(lm(**probe).logits, theirs(**probe).logits, 1e-4)
        assert_near(lm(**probe).logits, theirs.merge_and_unload()(**probe).logits, 1e-4)
    untouched, merged = model_of(family).state_dict(), lm.state_dict()
    assert list(untouched) == list(merged)
    changed = {name for name, one in merged.items() if not torch.equal(one, untouched[name])}
    assert changed == {f"{name}.weight" for name in names_of(family)}


def test_an_adapter_that_was_never_trained_is_not_merged(tmp_path):
    lm = model_of()
    Adapters(lm, lm, [0], settings_of()).save(0, tmp_path / "mine", "a-model")
    peft_folder(tmp_path / "theirs", touched=False)
    for name in ("mine", "theirs"):
        with pytest.raises(ModelError, match=f"{name}: the adapter changes no weight; it was never trained"):
            merge(model_of(), read(tmp_path / name), probe_of())


@pytest.mark.parametrize(
    ("family", "more"),
    [("bert", {"hidden_size": 64}), ("bert", {"num_hidden_layers": 1}), ("roberta", {}), ("distilbert", {})],
    ids=["wider", "with fewer layers", "of another family", "of a family with other names"],
)
def test_an_adapter_of_another_model_is_refused(family, more, tmp_path):
    adapters = grown(model_of())
    adapters.save(0, tmp_path / "mine", "that/one")
    with pytest.raises(ModelError, match=r"mine does not fit the model 'that/one' \(.*\); it was made for another one"):
        merge(model_of(family, **more), read(tmp_path / "mine"), probe_of(family))


def test_half_an_adapter_is_refused(tmp_path):
    """Of weights that are missing peft would only warn, those that are too many it would leave out."""
    grown(model_of()).save(0, tmp_path / "mine", "a-model")
    whole = load_file(tmp_path / "mine" / WEIGHTS)
    name = next(iter(whole))
    for tensors in (
        {key: one for key, one in whole.items() if key != name},
        whole | {name.replace("layer.0", "layer.7"): whole[name].clone()},
        whole | {"base_model.model.cls.predictions.bias": torch.ones(3)},
    ):
        save_file(tensors, tmp_path / "mine" / WEIGHTS)
        with pytest.raises(ModelError, match="mine does not fit the model 'a-model'"):
            merge(model_of(), read(tmp_path / "mine"), probe_of())


CONFIGS = {
    "of another kind": {"peft_type": "VERA"},
    "of a kind that peft derives from LoRA": {"peft_type": "ADALORA", "total_step": 10},
    "of a kind that peft does not know": {"peft_type": "TOMORROW"},
    "of no kind": {"peft_type": None},
    "of no model": {"base_model_name_or_path": None},
    "of a model that is no name": {"base_model_name_or_path": ["a-model"]},
    "of a model without a name": {"base_model_name_or_path": ""},
    "of a revision that is a number": {"revision": 5},
    "of a revision that is a path": {"revision": "../../main"},
    "with a field that peft does not know": {"lora_of_tomorrow": True},
    "with a field that peft would not obey": {"loftq_config": {"loftq_bits": 4}},
    "with code to import": {"megatron_config": {"a": 1}, "megatron_core": "a_module_of_theirs"},
    "with fields that exclude each other": {"layers_pattern": "layer"},
}


@pytest.mark.parametrize("what", CONFIGS)
def test_a_configuration_that_cannot_be_obeyed_as_a_whole_is_refused_before_there_is_a_model(what, tmp_path):
    grown(model_of()).save(0, tmp_path / "mine", "a-model")
    change_config(tmp_path / "mine", **CONFIGS[what])
    with pytest.raises(ModelError, match="mine holds no LoRA adapter that can be used"):
        read(tmp_path / "mine")


@pytest.mark.parametrize("config", ["", "{", "[]", "5", "null", '"LORA"', "{}", "[" * 100_000, "\udc80"])
def test_a_configuration_that_is_no_object_is_refused(config, tmp_path):
    grown(model_of()).save(0, tmp_path / "mine", "a-model")
    (tmp_path / "mine" / CONFIG).write_bytes(config.encode("utf-8", "surrogateescape"))
    with pytest.raises(ModelError, match="mine holds no LoRA adapter that can be used"):
        read(tmp_path / "mine")


def test_numbers_that_no_adapter_has_are_refused(tmp_path):
    grown(model_of()).save(0, tmp_path / "mine", "a-model")
    numbers = {"r": RANK, "lora_alpha": ALPHA}
    for wrong in (
        {"r": 0},
        {"r": -1},
        {"r": "3"},
        {"r": 2.5},
        {"r": 10**15},
        {"lora_alpha": "7"},
        {"lora_alpha": math.nan},
    ):
        change_config(tmp_path / "mine", **(numbers | wrong))
        with pytest.raises(ModelError, match=r"mine( does not fit|: peft cannot merge)"):
            merge(model_of(), read(tmp_path / "mine"), probe_of())


def test_a_folder_without_a_lora_adapter_is_refused_and_neither_a_pickle_nor_the_hub_is_asked(tmp_path, monkeypatch):
    for name in ("no weights", "no config", "a pickle", "damaged"):
        grown(model_of()).save(0, tmp_path / name, "a-model")
    (tmp_path / "no config" / CONFIG).unlink()
    (tmp_path / "damaged" / WEIGHTS).write_bytes(b"no tensors")
    (tmp_path / "no weights" / WEIGHTS).unlink()
    torch.save(load_file(tmp_path / "a pickle" / WEIGHTS), tmp_path / "a pickle" / "adapter_model.bin")
    (tmp_path / "a pickle" / WEIGHTS).unlink()
    (tmp_path / "empty").mkdir()

    def never(*given: object, **more: object) -> None:
        raise AssertionError("this is not to be asked")

    for module in ("config", "utils.save_and_load"):
        monkeypatch.setattr(f"peft.{module}.hf_hub_download", never)
    monkeypatch.setattr("peft.utils.save_and_load.file_exists", never)
    monkeypatch.setattr(torch, "load", never)
    for name in ("no weights", "no config", "a pickle", "damaged", "empty", "no such folder"):
        with pytest.raises(ModelError, match=f"(there is no folder .*|/){name}(; give| holds no LoRA adapter)") as said:
            read(tmp_path / name)
        assert "AssertionError" not in str(said.value)


def test_adapters_of_another_peft_type_are_refused(tmp_path):
    peft_folder(tmp_path / "vera", kind_of_config=VeraConfig)
    assert json.loads((tmp_path / "vera" / CONFIG).read_text())["peft_type"] == "VERA"
    with pytest.raises(ModelError, match=r"vera holds no LoRA adapter that can be used.*peft_type is VERA"):
        read(tmp_path / "vera")


def test_a_model_whose_answers_are_no_numbers_is_refused(tmp_path):
    peft_folder(tmp_path / "theirs")
    lm = model_of()
    with torch.no_grad():
        lm.get_submodule("bert.encoder.layer.0.attention.self.key").bias[3] = math.nan
    with pytest.raises(NotFinite, match="theirs: the model of the adapter, or with it, computes NaN or infinity"):
        merge(lm, read(tmp_path / "theirs"), probe_of())


def test_what_is_merged_is_what_was_asked(tmp_path, monkeypatch):
    """A model that is folded wrongly is found out."""
    peft_folder(tmp_path / "theirs")
    delta = LoraLinear.get_delta_weight
    monkeypatch.setattr(LoraLinear, "get_delta_weight", lambda *given: 2 * delta(*given))
    with pytest.raises(
        ModelError, match=r"merged and adapted model differ by \d\..* of the largest logit, more than 1e-04"
    ):
        merge(model_of(), read(tmp_path / "theirs"), probe_of())


MORE_THAN_MAPS = {
    "a scale of its own": {"use_rslora": True},
    "a map with another alpha": {"alpha_pattern": {"query": 20}},
    "a map with another rank": {"rank_pattern": {"query": 5}},
    "magnitudes": {"use_dora": True},
    "biases of its own": {"lora_bias": True},
    "whole modules": {"modules_to_save": ["transform"]},
    "some layers only": {"layers_to_transform": [1]},
    "maps of the head": {"target_modules": ["query", "transform.dense"]},
}
NOT_TO_BE_MERGED = {
    "embeddings of some tokens": {"trainable_token_indices": [5, 6]},
    "layers that are there twice": {"layer_replication": [[0, 2], [0, 2]]},
    "embeddings that are the head's, too": {"target_modules": ["query", "word_embeddings"]},
    "biases of the model, which peft before 0.21 does not store": {"bias": "lora_only"},
    "weights that it took from the model": {"init_lora_weights": "pissa"},
    "only from some token on": {"alora_invocation_tokens": [5, 6]},
}


@pytest.mark.filterwarnings(
    "ignore:aLoRA is currently only supported",
    "ignore:Model with .tie_word_embeddings",
    "ignore:Adapter .default.. 4 LoRA",
)
@pytest.mark.parametrize("what", [*MORE_THAN_MAPS, *NOT_TO_BE_MERGED])
def test_an_adapter_that_says_more_than_a_member_s_is_merged_whole_or_refused(what, tmp_path):
    """Never in part: what was merged would not be what was trained. What peft can merge is merged."""
    theirs = peft_folder(tmp_path / "theirs", **(MORE_THAN_MAPS | NOT_TO_BE_MERGED)[what])
    with torch.no_grad():
        for name, one in theirs.named_parameters():
            if one.requires_grad and "lora_" not in name:
                one.add_(1.0)
    save_theirs(theirs, tmp_path / "theirs")
    lm, probe = model_of(), probe_of()
    if what in MORE_THAN_MAPS:
        assert merge(lm, read(tmp_path / "theirs"), probe) < 1e-4
        with torch.no_grad():
            assert_near(lm(**probe).logits, theirs(**probe).logits, 1e-4)
    else:
        with pytest.raises(ModelError, match="theirs"):
            merge(lm, read(tmp_path / "theirs"), probe)


# ---- training ------------------------------------------------------------------------------------------------------


STEPS = 20
TRAINING = settings_of(
    steps=STEPS, labelled_batch=3, unlabelled_batch=2, alpha=0.3, warmup_steps=3, mask_probability=0.3
)
TRAINING = TRAINING.model_copy(
    update={"learning_rate": 0.02, "weight_decay": 0.1, "max_grad_norm": 0.7, "adam_epsilon": 1e-4}
)
ANSWERS = ("good", "bad", "okay")


def sources_of(member: int) -> MemberSources:
    """Each member with a pattern and label words of its own."""
    source = ("{mask} news : {a}", "{a} ? || It was {mask} . {a}", "{a} ( {mask} )")[member]
    rows, tokenizer = some_rows("bert", source, 40), TOKENIZERS["wordpiece"]()
    words = torch.tensor(tokenizer.convert_tokens_to_ids([*ANSWERS, WORDS[member]]))
    averaging = torch.zeros(4, 3)
    averaging[range(4), [0, 1, 2, 2]] = torch.tensor([1.0, 1.0, 0.5, 0.5])
    never = np.asarray(tokenizer.all_special_ids)
    return MemberSources(rows, np.asarray([0, 1, 2, 0, 1, 2, member]), rows, Verbalizer(words, averaging), never)


def batches_of(members: Sequence[int], layout: Layout = FILLED) -> Iterator[ClozeBatch]:
    """Micro-batches of these members for ever, each with its own random stream."""
    shares = [draw_member_batches(sources_of(one), TRAINING, layout, np.random.default_rng(one)) for one in members]
    while True:
        yield collate_members([next(one) for one in shares], TRAINING, layout)


@cache
def train(*members: int, dropout: bool) -> tuple[list[TrainingReport], Adapters]:
    """Members in one batch, as finetune does it."""
    cloze = MaskedLM(model_of())
    adapters = Adapters(cloze.lm, cloze.lm, [SEEDS[one] for one in members], TRAINING)

    def losses(given: ClozeBatch) -> Losses:
        adapters.open_gate(given.members, torch.float32, given.keys if dropout else None)
        return cloze_losses(cloze, given, TRAINING.alpha)

    with adapters.installed():
        trainer = Trainer(adapters, TRAINING, losses, Runtime(torch.device("cpu"), None, 2048, Silent()), adapters.clip)
        reports = trainer.run(batches_of(members), *(f"m{one}" for one in members))
    return reports, adapters


def assert_same_adapters(found: dict[str, tuple[torch.Tensor, ...]], expected: dict[str, tuple[torch.Tensor, ...]]):
    """A and B of every map to 1e-4 of their largest value."""
    assert set(found) == set(expected)
    for name, pair in expected.items():
        for mine, one in zip(found[name], pair, strict=True):
            assert_near(mine.detach(), one.detach(), 1e-4)


def test_keys_are_drawn_anew_for_every_batch_and_from_each_member_s_own_stream():
    together = list(islice(batches_of([0, 1, 2]), 3))
    seen = []
    for member in range(3):
        for given, single in zip(together, batches_of([member]), strict=False):
            own = (given.members == member) & (given.batch.rows < len(given.batch))
            mine = given.keys[own]
            assert torch.equal(mine, single.keys[: len(mine)])
            assert len(set(mine.tolist())) == len(mine), "no two tokens of a batch have one"
            seen += mine.tolist()
    assert len(set(seen)) > 0.999 * len(seen)


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("member", range(3))
def test_a_member_trained_in_a_batch_with_others_is_the_one_trained_alone(member, dropout):
    (expected,), single = train(member, dropout=dropout)
    reports, adapters = train(0, 1, 2, dropout=dropout)
    assert reports[member].steps == expected.steps == [10, 20]
    assert set(expected.losses) == {"loss", "label_loss", "mlm_loss"}
    for name, values in expected.losses.items():
        assert reports[member].losses[name] == pytest.approx(values, rel=1e-4), name
    assert_same_adapters(weights_of(adapters, member), weights_of(single, 0))
    assert all(up.abs().max() > 0.01 for _, up in weights_of(adapters, member).values()), "it has learned something"
    others = [weights_of(adapters, other) for other in range(3) if other != member]
    assert all(
        not torch.allclose(one[1], weights_of(adapters, member)[name][1])
        for other in others
        for name, one in other.items()
    )


def peft_loop(model: torch.nn.Module, batches: Iterator[ClozeBatch]) -> list[dict[str, float]]:
    """A peft model trained plainly: rows one at a time, AdamW, warm-up and linear decay, clipping."""
    own = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(own, lr=1.0, weight_decay=TRAINING.weight_decay, eps=TRAINING.adam_epsilon)
    found = []
    for step, given in enumerate(batches):
        rows = list(alone(given.batch))
        logits = torch.zeros(len(given.batch.input_ids), model.config.vocab_size)
        logits = logits.index_put(
            (torch.cat([tokens for _, tokens in rows]),), torch.cat([model(**inputs).logits[0] for inputs, _ in rows])
        )
        scores = logits[given.label_places][:, given.verbalizer.words] @ given.verbalizer.averaging[0]
        label = functional.cross_entropy(scores, given.labels[0])
        asked = given.targets != IGNORED
        mlm = functional.cross_entropy(logits[given.target_places[asked]], given.targets[asked])
        loss = (1 - TRAINING.alpha) * label + TRAINING.alpha * mlm
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(own, TRAINING.max_grad_norm)
        warm = TRAINING.warmup_steps
        share = step / warm if step < warm else (STEPS - step) / (STEPS - warm)
        optimizer.param_groups[0]["lr"] = TRAINING.learning_rate * share
        optimizer.step()
        found.append({"loss": loss.item(), "label_loss": label.item(), "mlm_loss": mlm.item()})
    return found


@pytest.mark.parametrize("member", [1])
def test_a_member_is_the_peft_model_trained_by_a_plain_loop_on_the_same_rows(tmp_path, member):
    """Started from the same A, without dropout."""
    lm = model_of()
    Adapters(lm, lm, [SEEDS[member]], TRAINING).save(0, tmp_path / "start", "a-model")
    model = PeftModel.from_pretrained(model_of(), tmp_path / "start", is_trainable=True).eval()
    losses = peft_loop(model, islice(batches_of([member]), STEPS))
    reports, adapters = train(0, 1, 2, dropout=False)
    for name, values in reports[member].losses.items():
        each = [one[name] for one in losses]
        assert values == pytest.approx([np.mean(each[:10]), np.mean(each[10:])], rel=1e-4), name
    end = {name: model.base_model.model.get_submodule(name) for name in adapters.bases}
    expected = {name: (one.lora_A["default"].weight, one.lora_B["default"].weight) for name, one in end.items()}
    assert_same_adapters(weights_of(adapters, member), expected)
