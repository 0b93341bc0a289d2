"""A model as a difference of eight bits a weight: small, and off by no more than half a step."""

import pytest
import torch

from pet.modeling.delta import pack, unpack


def state(seed, **more):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"body.a": (5, 7), "body.b": (9, 3), "body.bias": (5,), "body.still": (4, 4), "head.a": (3, 3)} | more
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture
def both():
    """A model before and after training; one matrix stayed as it was, and so did one row of another."""
    base, trained = state(0), state(1)
    trained["body.still"] = base["body.still"].clone()
    trained["body.a"][2] = base["body.a"][2]
    return base, trained


def test_no_weight_is_off_by_more_than_half_a_step_of_its_row(both):
    base, trained = both
    found = unpack(base, pack(base, trained, "body."))
    assert found.keys() == trained.keys()
    for name in ("body.a", "body.b"):
        step = (trained[name] - base[name]).abs().amax(1, keepdim=True) / 127
        assert ((found[name] - trained[name]).abs() <= 0.51 * step + 1e-6).all()
    assert torch.equal(found["body.a"][2], base["body.a"][2])
    assert torch.equal(found["body.still"], base["body.still"])
    for name in ("body.bias", "head.a"):
        assert torch.equal(found[name], trained[name].half().float())


def test_a_changed_weight_takes_a_byte_and_an_unchanged_matrix_nothing(both):
    base, trained = both
    packed = pack(base, trained, "body.")
    assert not any("still" in name for name in packed)
    assert packed["body.a.delta"].dtype == torch.int8
    assert sum(one.numel() for name, one in packed.items() if one.dtype == torch.float32) == 5 + 9  # a scale a row


def test_a_base_without_a_head_is_given_the_one_that_was_trained(both):
    base, trained = both
    packed = pack(base, trained, "body.")
    body = {name: value for name, value in base.items() if name.startswith("body.")}
    assert torch.equal(unpack(body, packed)["head.a"], trained["head.a"].half().float())


def test_changes_too_small_for_half_precision_are_not_lost(both):
    """fp16 steps below 6e-8 would round to 0; a row's step is its largest change over 127."""
    base = {"body.a": torch.zeros(2, 4)}
    trained = {"body.a": torch.tensor([[1e-6, -5e-7, 0.0, 1e-6], [1.0, -0.5, 0.0, 0.25]])}
    found = unpack(base, pack(base, trained, "body."))["body.a"]
    torch.testing.assert_close(found[0], trained["body.a"][0], rtol=0.02, atol=1e-8)
