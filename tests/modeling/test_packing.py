"""Rows end to end are read like each row alone: states, logits and gradients, for every family, and what fills a batch
up counts for nothing. What transformers does when it is asked in the ordinary way stays as it was."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.plain import (
    FILLED,
    LIVELY,
    OTHERS,
    PACKED,
    alone,
    assert_near,
    assert_same_gradients,
    gradients,
    kind,
    some_batch,
    tokens_of,
)
from support.tiny import FAMILIES, TOKENIZERS, tiny_model
from transformers import AttentionInterface, AutoModelForMaskedLM

from pet.modeling import packing
from pet.modeling.attention import ATTENTION, packed_attention, unpack
from pet.modeling.batch import Batch, Layout
from pet.modeling.loading import layers_of
from pet.modeling.packing import TOKEN_MULTIPLE, TRAINING_WIDTHS, full_logits, hidden_states, states_at
from pet.training.device import Runtime
from pet.training.reporter import Silent

pytestmark = pytest.mark.slow

END_TO_END = {"end to end": Layout(False), "filled up": FILLED}
PADDED = {"padded": Layout(True, width_multiple=8), "padded to one width": Layout(True, 72)}
CASES = [(family, name) for family in PACKED for name in (*END_TO_END, *PADDED)]
CASES += [(family, name) for family in (*FAMILIES, *OTHERS) if family not in PACKED for name in PADDED]


def model_of(family: str, installed: bool = True, **more: object):
    lm = tiny_model(family, TOKENIZERS[kind(family)](), **{**LIVELY, **more})
    if installed:
        assert packing.install(lm) == (family in PACKED)
    return lm


def runtime_of(device: str, capture: bool = True) -> Runtime:
    return Runtime(torch.device(device), None, 2048, Silent(), capture)


# ---- every family --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "layout"), CASES)
def test_states_and_logits_of_a_batch_are_those_of_each_row_alone(family, layout):
    batch = some_batch(family, {**END_TO_END, **PADDED}[layout])
    mine, untouched = model_of(family), model_of(family, installed=False)
    sizes = set()
    with torch.no_grad():
        states, logits = hidden_states(mine, batch), full_logits(mine, batch)
        for inputs, tokens in alone(batch):
            sizes.add(len(tokens))
            assert_near(states[tokens], untouched.base_model(**inputs).last_hidden_state[0])
            assert_near(logits[tokens], untouched(**inputs).logits[0])
    assert len(states) == len(logits) == len(batch.input_ids) > untouched.config.max_position_embeddings
    assert len(sizes) > 4, "rows of different lengths"
    if batch.token_type_ids is not None:
        assert set(batch.token_type_ids[tokens_of(batch)].tolist()) == {0, 1}


@pytest.mark.parametrize(("family", "layout"), CASES)
def test_gradients_of_a_batch_are_those_of_each_row_alone(family, layout):
    """Of a loss that weighs every hidden value of every token differently."""
    batch = some_batch(family, {**END_TO_END, **PADDED}[layout])
    mine, untouched = model_of(family), model_of(family, installed=False)
    weights = torch.randn(len(batch.input_ids), 32, generator=torch.Generator().manual_seed(0))
    own = tokens_of(batch)
    found = gradients(mine, (hidden_states(mine, batch)[own] * weights[own]).sum())
    each = [
        (untouched.base_model(**inputs).last_hidden_state[0] * weights[tokens]).sum() for inputs, tokens in alone(batch)
    ]
    assert_same_gradients(found, gradients(untouched, torch.stack(each).sum()))


@pytest.mark.parametrize("family", PACKED)
def test_what_fills_a_batch_up_changes_neither_states_nor_gradients(family):
    """Neither by being there nor by what it says; also where it is a row of nothing."""
    bare, filled = some_batch(family, Layout(False)), some_batch(family, FILLED)
    size, extra = len(bare.input_ids), len(filled.input_ids) - len(bare.input_ids)
    assert 0 < extra < 64
    other = dataclasses.replace(filled, input_ids=filled.input_ids.clone())
    other.input_ids[size:] = torch.arange(extra) + 20
    nothing = some_batch(family, Layout(False, None, 128, size))
    assert nothing.starts[-2:].tolist() == [size, size]
    lm = model_of(family)
    weights = torch.randn(size, 32, generator=torch.Generator().manual_seed(0))

    def ask(batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        states = hidden_states(lm, batch)[:size]
        return states.detach(), gradients(lm, (states * weights).sum())

    states, expected = ask(bare)
    assert states.isfinite().all()
    for batch in (filled, other, nothing):
        found, mine = ask(batch)
        assert_near(found, states)
        assert all(one.isfinite().all() for one in mine.values())
        assert_same_gradients(mine, expected)


@pytest.mark.parametrize("family", (*PACKED, "distilbert", "deberta-v2", "modernbert"))
def test_padding_is_attended_to_by_no_token_of_a_row(family):
    """Whatever is written there: it may be hidden and asked for (`mask_targets: any`)."""
    batch = some_batch(family, Layout(True, 72))
    changed = dataclasses.replace(batch, input_ids=batch.input_ids.clone())
    padding = batch.attention_mask == 0
    assert padding.any()
    changed.input_ids[padding] = torch.arange(int(padding.sum())) % 50 + 10
    lm, own = model_of(family), tokens_of(batch)
    with torch.no_grad():
        first, second = full_logits(lm, batch), full_logits(lm, changed)
    assert_near(second[own], first[own])


@pytest.mark.parametrize("family", (*FAMILIES, *OTHERS))
def test_a_model_still_answers_as_transformers_does_when_it_is_asked_in_the_ordinary_way(family):
    mine, untouched = model_of(family), model_of(family, installed=False)
    batch = some_batch(family, Layout(True))
    shape = (len(batch), batch.width)
    padded = {"input_ids": batch.input_ids.view(shape), "attention_mask": batch.attention_mask.view(shape)}
    row = next(alone(batch))[0]
    with torch.no_grad():
        for inputs in (padded, row):
            assert torch.equal(mine(**inputs).logits, untouched(**inputs).logits)


@pytest.mark.parametrize("family", [*PACKED, "distilbert"])
def test_a_checkpoint_says_nothing_of_how_its_batches_were_laid_out(family, tmp_path):
    lm = model_of(family)
    lm.save_pretrained(tmp_path)
    assert ATTENTION not in (tmp_path / "config.json").read_text()
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert not packing.is_packed(loaded)
    row = next(alone(some_batch(family, Layout(True))))[0]
    with torch.no_grad():
        assert torch.equal(loaded(**row).logits, lm(**row).logits)


# ---- attention -----------------------------------------------------------------------------------------------------


def reference_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
    """[h, T, d] of one row -> [T, h, d]."""
    return ((query @ key.transpose(1, 2) * scaling).softmax(-1) @ value).transpose(0, 1)


def ragged_call(sizes: list[int], width: int) -> dict[str, Any]:
    """What the attention is told of rows of these sizes."""
    rows = torch.tensor([row for row, size in enumerate(sizes) for _ in range(size)])
    places = torch.tensor([place for size in sizes for place in range(size)])
    starts = torch.tensor([0, *sizes]).cumsum(0).int()
    full = all(size == width for size in sizes)
    return {"starts": starts, "rows": rows, "places": places, "width": width, "full": full}


@pytest.mark.parametrize("sizes", [[3, 1, 7, 2], [5], [4, 0, 3, 0], [7, 7, 7]])
@pytest.mark.parametrize("width", [7, 16])
def test_attention_is_that_of_each_row_to_itself(sizes, width):
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, sum(sizes), 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    found, _ = packed_attention(torch.nn.Module(), query, key, value, None, scaling=0.3, **ragged_call(sizes, width))
    rows = zip(*(one[0].split(sizes, dim=1) for one in (query, key, value)), strict=True)
    expected = torch.cat([reference_attention(*row, 0.3) for row in rows])[None]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(expected)
    mine = torch.autograd.grad((found * weights).sum(), [query, key, value])
    for one, other in zip(mine, torch.autograd.grad((expected * weights).sum(), [query, key, value]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


def test_rows_are_unpacked_to_their_places_with_zeros_in_the_gaps():
    flat = torch.randn(9, 2, 3)
    call = ragged_call([4, 0, 5], 6)
    found = unpack(flat, call["rows"], call["places"], 3, 6)
    expected = torch.zeros(3, 2, 6, 3)
    expected[0, :, :4] = flat[:4].transpose(0, 1)
    expected[2, :, :5] = flat[4:].transpose(0, 1)
    assert torch.equal(found, expected)


@pytest.fixture
def attention_calls() -> Iterator[list[dict[str, object]]]:
    """The keyword arguments, and the mask, of every call of our attention."""
    seen: list[dict[str, object]] = []

    def watched(module, query, key, value, attention_mask, **rest):
        seen.append({"mask": attention_mask, **rest})
        return packed_attention(module, query, key, value, attention_mask, **rest)

    AttentionInterface.register(ATTENTION, watched)
    yield seen
    AttentionInterface.register(ATTENTION, packed_attention)


@pytest.mark.parametrize("family", PACKED)
def test_no_mask_of_all_tokens_to_all_tokens_is_made(attention_calls, family):
    """It would have N x N places, at 65,536 tokens 4 GiB."""
    batch = some_batch(family, FILLED)
    with torch.no_grad():
        hidden_states(model_of(family), batch)
    assert len(attention_calls) == 2, "one a layer"
    for call in attention_calls:
        assert call["mask"] is None
        assert call["starts"] is batch.starts
        assert call["width"] == batch.width


@pytest.mark.parametrize("family", PACKED)
def test_attention_weights_are_dropped_in_training_and_the_seed_decides_which(family):
    lm = model_of(family, attention_probs_dropout_prob=0.5, hidden_dropout_prob=0.0)
    batch, found = some_batch(family, Layout(False)), []
    with torch.no_grad():
        exact = hidden_states(lm, batch)
        lm.train()
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            found.append(hidden_states(lm, batch))
    assert torch.equal(found[0], found[1])
    for one, other in ((exact, found[0]), (found[0], found[2])):
        assert not torch.allclose(one, other, atol=1e-2)


# ---- layouts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", (*FAMILIES, *OTHERS))
def test_only_families_that_were_tested_here_are_read_end_to_end(family):
    lm = model_of(family)
    assert packing.is_packed(lm) == (family in PACKED)
    assert packing.scoring_layout(lm).padded == (family not in PACKED)
    assert packing.training_layout(lm, runtime_of("cpu").captures).padded == (family not in PACKED)


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_on_a_cpu_training_and_scoring_batches_are_not_filled_up(family):
    lm = model_of(family)
    expected = Layout(family not in PACKED, None, 8)
    assert packing.scoring_layout(lm) == expected
    for runtime in (runtime_of("cpu"), runtime_of("cuda", capture=False)):
        assert packing.training_layout(lm, runtime.captures) == expected


def test_where_steps_are_captured_few_shapes_occur():
    bert, distilbert, gpu = model_of("bert"), model_of("distilbert"), runtime_of("cuda")
    assert packing.training_layout(bert, gpu.captures) == Layout(False, None, TRAINING_WIDTHS[False], TOKEN_MULTIPLE)
    assert packing.training_layout(distilbert, gpu.captures) == Layout(
        True, None, TRAINING_WIDTHS[True], TOKEN_MULTIPLE
    )
    assert min(*TRAINING_WIDTHS.values(), TOKEN_MULTIPLE) >= 32
    assert packing.scoring_layout(bert).token_multiple == 1, "scoring is not captured"


@pytest.mark.parametrize("family", ["bert", "distilbert"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_rows_can_be_padded_to_one_width_whatever_the_model(family, device):
    layout = packing.training_layout(model_of(family), runtime_of(device).captures, 40)
    assert (layout.padded, layout.width) == (True, 40)


def test_what_fills_up_a_training_batch_is_never_longer_than_its_width():
    """The width bounds the attention of that row too."""
    layout = packing.training_layout(model_of("bert"), runtime_of("cuda").captures)
    assert layout.token_multiple <= layout.width_multiple


# ---- on a GPU ------------------------------------------------------------------------------------------------------


def some_tokens(batch: Batch, kind: str) -> torch.Tensor:
    """What is asked about: one token of each row, or several of some rows in any order, one of them twice."""
    first = batch.starts[: len(batch)].long()
    return {
        "first": first,
        "second": first + 1,
        "some": torch.cat([first[[5, 2]], first[2:3] + 4, first[[0, 0, 6]] + 2, first[5:6] + 1, first[:1]]),
    }[kind]


@pytest.mark.parametrize("kind", ["first", "second", "some"])
@pytest.mark.parametrize(("family", "layout"), CASES)
def test_states_at_some_tokens_and_their_gradients_are_those_of_all_states(family, layout, kind):
    """The last layer computes those only; the same gradient for every weight."""
    batch = some_batch(family, {**END_TO_END, **PADDED}[layout])
    tokens = some_tokens(batch, kind)
    one, other = model_of(family), model_of(family)
    expected = hidden_states(one, batch)[tokens]
    found = states_at(other, batch, tokens, None if kind == "some" else 1)
    assert_near(found.detach(), expected.detach())
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0))
    assert_same_gradients(gradients(other, (found * weights).sum()), gradients(one, (expected * weights).sum()))


@pytest.mark.parametrize("kind", ["first", "some"])
def test_no_other_token_of_the_last_layer_is_computed(kind):
    """Seen at the feed-forward part."""
    model, batch = model_of("roberta"), some_batch("roberta", Layout(False))
    tokens = some_tokens(batch, kind)
    seen = []
    for layer in layers_of(model):
        layer.intermediate.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[1]))
    states_at(model, batch, tokens)
    assert seen == [len(batch.input_ids), len(tokens)]


def test_where_all_tokens_are_asked_about_and_more_all_states_are_computed():
    model, batch = model_of("bert"), some_batch("bert", Layout(False))
    tokens = torch.cat([torch.arange(len(batch.input_ids)).flip(0), torch.tensor([3])])
    with torch.no_grad():
        assert torch.equal(states_at(model, batch, tokens), hidden_states(model, batch)[tokens])


def test_a_model_can_be_installed_twice():
    """As where two wrappers are made of one model."""
    model, batch = model_of("bert"), some_batch("bert", Layout(False))
    expected = states_at(model, batch, batch.mask_positions)
    kind = type(layers_of(model)[-1])
    assert packing.install(model)
    assert type(layers_of(model)[-1]) is kind
    assert torch.equal(states_at(model, batch, batch.mask_positions), expected)


def test_the_last_layer_keeps_the_names_of_its_weights_and_loads_again(tmp_path):
    model = model_of("bert")
    model.save_pretrained(tmp_path)
    again = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert set(again.state_dict()) == set(model.state_dict())


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="these kernels are a GPU's")


@needs_gpu
@pytest.mark.parametrize("layout", [Layout(False), FILLED], ids=["end to end", "filled up"])
@pytest.mark.parametrize("family", PACKED)
def test_states_and_gradients_on_a_gpu_are_those_of_a_cpu(family, layout):
    """In fp32, and with the kernels for half precision, to its digits; states at some tokens too."""
    batch = some_batch(family, layout)
    own, lm = tokens_of(batch), model_of(family)
    weights = torch.randn(len(batch.input_ids), 32, generator=torch.Generator().manual_seed(0))
    asked = own[torch.randperm(len(own), generator=torch.Generator().manual_seed(0))]
    expected = hidden_states(lm, batch)[own]
    gradient = gradients(lm, (expected * weights[own]).sum())
    there, lm = batch.to(torch.device("cuda")), lm.cuda()
    for dtype, share in ((None, 1e-3), (torch.bfloat16, 0.1)):
        lm.base_model.to(dtype or torch.float32)
        everything = hidden_states(lm, there).float().cpu()
        found = everything[own]
        with torch.no_grad():
            scored = hidden_states(lm, there).float().cpu()[own]
            single = states_at(lm, there, there.mask_positions, 1).float().cpu()
            several = {count: states_at(lm, there, asked[:count].cuda()).float().cpu() for count in (7, 19)}
        assert_near(found.detach(), expected.detach(), share)
        assert_near(scored, expected.detach(), share)
        assert_near(single, everything[batch.mask_positions].detach(), max(share / 2, 1e-5))
        for count, states in several.items():
            assert_near(states, everything[asked[:count]].detach(), max(share / 2, 1e-5))
        mine = gradients(lm, (found * weights[own]).sum())
        largest = max(float(one.norm()) for one in gradient.values())
        for name, one in gradient.items():
            assert float((mine[name].cpu().float() - one).norm()) < share * (float(one.norm()) + 0.1 * largest), name


@needs_gpu
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 1e-9], ids=["short rows", "flash"])
@pytest.mark.parametrize("sizes", [[40, 3, 17, 1, 0], [64, 64, 64]], ids=["ragged", "full"])
def test_both_kernels_for_half_precision_let_each_row_attend_to_itself(training, dropout, sizes):
    """The one without dropout and the one with it; also beside a row of nothing."""
    torch.manual_seed(0)
    tensors = [torch.randn(1, 2, sum(sizes), 16, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
    query, key, value = (one.requires_grad_(training) for one in tensors)
    call = {name: one.cuda() if isinstance(one, torch.Tensor) else one for name, one in ragged_call(sizes, 64).items()}
    found, _ = packed_attention(torch.nn.Module(), query, key, value, None, scaling=0.3, dropout=dropout, **call)
    rows = zip(*(one[0].float().split(sizes, dim=1) for one in (query, key, value)), strict=True)
    expected = torch.cat([reference_attention(*row, 0.3) for row in rows])[None]
    pairs = [(found, expected)]
    if training:
        weights = torch.randn_like(expected)
        both = (torch.autograd.grad((one * weights).sum(), [query, key, value]) for one in (found, expected))
        pairs += zip(*both, strict=True)
    for one, exact in pairs:
        assert one.isfinite().all()
        assert float((one - exact).detach().norm()) < 0.02 * float(exact.detach().float().norm())
