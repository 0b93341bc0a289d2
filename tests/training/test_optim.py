"""AdamW: torch's, and ours on fp32 weights of a model that computes in a lower precision; step by step the same."""

import copy

import pytest
import torch
from torch import nn

from pet.config.schema import Optimisation
from pet.training.optim import FusedAdamW, MasterAdamW, Optimizer, build_optimizer, clip_to

CPU = torch.device("cpu")
SETTINGS = Optimisation(learning_rate=0.03, weight_decay=0.2, adam_epsilon=1e-6)

torch.set_num_threads(1)


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 5), nn.LayerNorm(5), nn.Linear(5, 3))


def gradients(step: int, model: nn.Module) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(one.shape, generator=generator) for one in model.parameters()]


def plain_step(weights, moments, found, step, rate, scale=1.0, goals=None):
    """Algorithm 2 of the AdamW paper, with torch's defaults; with `goals`, weights are decayed to them alone."""
    for place, (weight, gradient) in enumerate(zip(weights, found, strict=True)):
        gradient = gradient / scale
        first, second = moments[place]
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        moments[place] = first, second
        decay = 0.2 if weight.ndim > 1 else 0.0
        direction = (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-6)
        if goals is None:
            weights[place] = weight * (1 - rate * decay) - rate * direction
        else:
            weights[place] = weight - rate * decay * (weight - goals.get(place, weight)) - rate * direction


def run(optimizer: Optimizer, model: nn.Module, steps: range, scale: float = 1.0) -> None:
    """Steps with made-up gradients at a rate of a hundredth of the step's number."""
    for step in steps:
        optimizer.zero_grad()
        for one, gradient in zip(model.parameters(), gradients(step, model), strict=True):
            one.grad = gradient.to(one.dtype) if one.requires_grad else None
        optimizer.set_rate(step / 100)
        optimizer.grad_scale = torch.tensor(scale)
        optimizer.step()


@pytest.mark.parametrize("scale", [1.0, 2.5])
@pytest.mark.parametrize("low", [False, True], ids=["fused", "master"])
def test_each_step_is_that_of_the_paper(low, scale):
    """Biases and norm weights are not decayed; gradients are divided by the scale."""
    model = small_model()
    used = copy.deepcopy(model) if low else model  # in fp32, so that rounding hides nothing
    optimizer = build_optimizer(used, model if low else None, SETTINGS, CPU)
    assert isinstance(optimizer, MasterAdamW if low else FusedAdamW)
    weights = [one.detach().double() for one in model.parameters()]
    moments = [(torch.zeros_like(one), torch.zeros_like(one)) for one in weights]
    for step in range(1, 13):
        run(optimizer, used, range(step, step + 1), scale)
        plain_step(weights, moments, [one.double() for one in gradients(step, model)], step, step / 100, scale)
        for mine, exact in zip(model.parameters(), weights, strict=True):
            torch.testing.assert_close(mine.double(), exact, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), used.parameters(), strict=True))


@pytest.mark.parametrize("low", [False, True], ids=["one", "master"])
def test_matrices_that_are_held_are_decayed_to_what_they_were_and_nothing_else_is(low):
    model = small_model()
    used = copy.deepcopy(model) if low else model
    optimizer = build_optimizer(used, model if low else None, SETTINGS, CPU, held=model[0])
    weights = [one.detach().double() for one in model.parameters()]
    goals, moments = {0: weights[0]}, [(torch.zeros_like(one), torch.zeros_like(one)) for one in weights]
    for step in range(1, 13):
        run(optimizer, used, range(step, step + 1))
        found = [one.double() for one in gradients(step, model)]
        plain_step(weights, moments, found, step, step / 100, goals=goals)
        for mine, exact in zip(model.parameters(), weights, strict=True):
            torch.testing.assert_close(mine.double(), exact, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), used.parameters(), strict=True))


def test_a_model_in_lower_precision_has_the_rounded_weights_of_its_master_after_every_step():
    master = small_model()
    used = copy.deepcopy(master).to(torch.bfloat16)
    exact = copy.deepcopy(master)
    low, full = MasterAdamW(master, used, SETTINGS), FusedAdamW(exact, SETTINGS, CPU)
    for step in range(1, 30):
        run(low, used, range(step, step + 1))
        run(full, exact, range(step, step + 1))
        for one, kept in zip(used.parameters(), master.parameters(), strict=True):
            assert (one.dtype, kept.dtype) == (torch.bfloat16, torch.float32)
            assert torch.equal(one, kept.to(torch.bfloat16))
    for kept, other in zip(master.parameters(), exact.parameters(), strict=True):
        assert not torch.equal(kept, kept.to(torch.bfloat16).float()), "it keeps more digits than the model has"
        torch.testing.assert_close(kept, other, rtol=0.01, atol=0.01)  # only gradients were rounded


def test_small_steps_are_not_lost_in_the_rounding_of_the_model():
    master = nn.Linear(1, 1, bias=False)
    nn.init.ones_(master.weight)
    used = copy.deepcopy(master).to(torch.bfloat16)
    optimizer = MasterAdamW(master, used, Optimisation(weight_decay=0.0))
    for _ in range(100):
        used.weight.grad = torch.ones_like(used.weight)
        optimizer.set_rate(1e-4)
        optimizer.step()
    assert used.weight.item() == pytest.approx(0.99, abs=0.004)


@pytest.mark.parametrize("low", [False, True], ids=["fused", "master"])
def test_what_is_frozen_or_has_no_gradient_stays(low):
    model = small_model()
    model[0].requires_grad_(False)
    used = copy.deepcopy(model).to(torch.bfloat16) if low else model
    before = [one.detach().clone() for one in model.parameters()]
    optimizer = build_optimizer(used, model if low else None, SETTINGS, CPU)
    for one in used[2].parameters():
        one.grad = torch.ones_like(one)
    optimizer.grad_scale = torch.ones(())
    optimizer.step()
    moved = [not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)]
    assert moved == [False] * 4 + [True] * 2


@pytest.mark.parametrize("low", [False, True], ids=["fused", "master"])
def test_a_vector_without_a_gradient_stays_beside_those_that_have_one(low):
    model = small_model()
    used = copy.deepcopy(model).to(torch.bfloat16) if low else model
    before = [one.detach().clone() for one in model.parameters()]
    optimizer = build_optimizer(used, model if low else None, SETTINGS, CPU)
    for step in range(3):
        optimizer.zero_grad()
        used[0].bias.grad = torch.full_like(used[0].bias, step + 1)
        optimizer.grad_scale = torch.ones(())
        optimizer.step()
    moved = [not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)]
    assert moved == [False, True, False, False, False, False]


def test_vectors_of_a_model_in_two_precisions_are_updated_in_their_own():
    """As a body in bf16 below a head in fp32."""
    master = small_model()
    used = copy.deepcopy(master)
    used[0].to(torch.bfloat16)
    optimizer, exact = MasterAdamW(master, used, SETTINGS), copy.deepcopy(master)
    full = FusedAdamW(exact, SETTINGS, CPU)
    run(optimizer, used, range(1, 6))
    run(full, exact, range(1, 6))
    assert [one.dtype for one in used.parameters()] == [torch.bfloat16] * 2 + [torch.float32] * 4
    for mine, kept, other in zip(used.parameters(), master.parameters(), exact.parameters(), strict=True):
        assert torch.equal(mine, kept.to(mine.dtype))
        torch.testing.assert_close(kept, other, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("low", [False, True], ids=["fused", "master"])
def test_an_optimizer_forgets_in_place_all_it_has_seen(low):
    """Used again it does what a new one does, and its tensors are where they were."""
    model = small_model()
    used = copy.deepcopy(model).to(torch.bfloat16) if low else model
    optimizer = build_optimizer(used, model if low else None, SETTINGS, CPU)

    def tensors() -> list[torch.Tensor]:
        if isinstance(optimizer, MasterAdamW):
            return [optimizer.count, *(one for piece in optimizer.pieces for one in (piece.first, piece.second))]
        return [value for state in optimizer.inner.state.values() for value in state.values()]

    run(optimizer, used, range(1, 6))
    before = tensors()
    assert all(one.any() for one in before)
    optimizer.reset()
    assert all(one is other for one, other in zip(before, tensors(), strict=True))
    assert not any(one.any() for one in before)
    start = copy.deepcopy(model)
    fresh = copy.deepcopy(used)
    new = build_optimizer(fresh, start if low else None, SETTINGS, CPU)
    run(new, fresh, range(6, 9))
    run(optimizer, used, range(6, 9))
    assert all(torch.equal(one, other) for one, other in zip(used.parameters(), fresh.parameters(), strict=True))


@pytest.mark.parametrize("dtypes", [[torch.float32], [torch.bfloat16], [torch.bfloat16, torch.float32]])
@pytest.mark.parametrize("most", [0.1, 1e6])
def test_gradients_are_divided_by_what_they_are_too_long(dtypes, most):
    """In fp32 also for gradients of three digits, and for both in one model: against torch's own clipping of the same
    values."""
    model = small_model()
    for number, one in enumerate(model.parameters()):
        one.data = one.data.to(dtypes[number % len(dtypes)])
    optimizer = MasterAdamW(small_model(), model, SETTINGS)
    for one, gradient in zip(model.parameters(), gradients(0, model), strict=True):
        one.grad = gradient.to(one.dtype)
    other = [one.grad.float() for one in model.parameters()]
    clip_to(model, optimizer, most)
    norm = torch.cat([one.flatten() for one in other]).norm()
    assert optimizer.grad_scale.item() == pytest.approx(max(1.0, norm.item() / most), rel=1e-5)
