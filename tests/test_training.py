"""The training loop against a plain one written out here, AdamW and all."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn

from pet.runtime import Runtime, Silent
from pet.settings import Optimisation
from pet.training import LOG_EVERY, build_optimizer, endless_order, rate_factor, train

torch.set_num_threads(1)  # models this small lose more by waiting for a second core than they gain

Rows = tuple[torch.Tensor, torch.Tensor]


class Listening(Silent):
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.bars: list[tuple[str, int, str]] = []
        self.done = 0
        self.logs: list[tuple[str, dict[str, float], int]] = []

    @contextmanager
    def track(self, label, total, unit):
        self.bars.append((label, total, unit))

        def advance(done: int) -> None:
            self.done += done

        yield advance

    def log(self, name, values, step):
        self.logs.append((name, dict(values), step))


def runtime_of(reporter: Silent | None = None, dtype: torch.dtype | None = None) -> Runtime:
    return Runtime(torch.device("cpu"), dtype, 2048, reporter or Silent())


def small_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 3))


def rows(seed: int, count: int) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 6, generator=generator), torch.randint(3, (count,), generator=generator)


def batches(size: int, data: Rows) -> Iterator[Rows]:
    while True:
        for start in range(0, len(data[0]), size):
            yield data[0][start : start + size], data[1][start : start + size]


def losses_of(model: nn.Module):
    return lambda batch: {"loss": nn.functional.cross_entropy(model(batch[0]), batch[1])}


def parameters(model: nn.Module) -> torch.Tensor:
    return torch.cat([one.detach().flatten() for one in model.parameters()])


def plain_loop(model: nn.Module, settings: Optimisation, data: Iterator[Rows]) -> list[float]:
    """Loshchilov & Hutter's AdamW, linear warm-up and decay, clipping by the norm of all gradients: line by line."""
    own = list(model.parameters())
    first, second = [torch.zeros_like(one) for one in own], [torch.zeros_like(one) for one in own]
    found = []
    for step in range(settings.steps):
        total = 0.0
        for one in own:
            one.grad = None
        for _ in range(settings.accumulation):
            inputs, labels = next(data)
            loss = nn.functional.cross_entropy(model(inputs), labels) / settings.accumulation
            loss.backward()
            total += loss.item()
        found.append(total)
        if step < settings.warmup_steps:
            rate = settings.learning_rate * step / settings.warmup_steps
        else:
            rate = settings.learning_rate * (settings.steps - step) / (settings.steps - settings.warmup_steps)
        norm = sum(float((one.grad**2).sum()) for one in own) ** 0.5
        shrink = min(1.0, settings.max_grad_norm / (norm + 1e-6))
        with torch.no_grad():
            for one, mean, square in zip(own, first, second, strict=True):
                gradient = one.grad * shrink
                mean.mul_(0.9).add_(gradient, alpha=0.1)
                square.mul_(0.999).add_(gradient**2, alpha=0.001)
                decay = settings.weight_decay if one.ndim > 1 else 0.0
                one.mul_(1 - rate * decay)
                upwards = (square / (1 - 0.999 ** (step + 1))).sqrt() + settings.adam_epsilon
                one.sub_(rate * mean / (1 - 0.9 ** (step + 1)) / upwards)
    return found


@pytest.mark.parametrize(
    "settings",
    [
        Optimisation(steps=10, learning_rate=0.01),
        Optimisation(steps=10, learning_rate=0.01, warmup_steps=4, weight_decay=0.3, max_grad_norm=0.2),
        Optimisation(steps=10, learning_rate=0.01, accumulation=3, adam_epsilon=1e-3),
    ],
    ids=["plain", "warm-up, decay, clipping", "accumulation"],
)
def test_training_follows_a_plain_loop_step_by_step(settings):
    data = rows(1, 40)
    mine, plain = small_model(), small_model()
    report = train(mine, settings, batches(8, data), losses_of(mine), runtime_of(), "test")
    losses = plain_loop(plain, settings, batches(8, data))
    torch.testing.assert_close(parameters(mine), parameters(plain), atol=1e-6, rtol=0)
    assert not torch.allclose(parameters(mine), parameters(small_model()), atol=1e-3), "it moved"
    assert report.losses["loss"] == pytest.approx([np.mean(losses)], abs=1e-6)


def test_small_batches_accumulated_train_like_a_large_one():
    data = rows(2, 64)
    found = []
    for size, accumulation in ((8, 1), (4, 2)):
        model = small_model()
        settings = Optimisation(steps=6, accumulation=accumulation, learning_rate=0.01)
        train(model, settings, batches(size, data), losses_of(model), runtime_of(), "test")
        found.append(parameters(model))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_steps_are_counted_after_accumulation_and_there_are_exactly_so_many(accumulation, monkeypatch):
    model, listening, taken = small_model(), Listening(), []
    settings = Optimisation(steps=13, accumulation=accumulation, learning_rate=0.01)
    data = batches(2, rows(3, 200))
    step = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW, "step", lambda self, *rest: taken.append(self.param_groups[0]["lr"]) or step(self, *rest)
    )

    def counted() -> Iterator[Rows]:
        for _ in range(13 * accumulation):
            yield next(data)
        raise AssertionError("asked for one batch too many")

    train(model, settings, counted(), losses_of(model), runtime_of(listening), "test")
    assert taken == pytest.approx([0.01 * (13 - number) / 13 for number in range(13)])
    assert listening.bars == [("test", 13, "step")]
    assert listening.done == 13


def test_weights_are_decayed_but_not_biases_and_norms():
    model = small_model()
    decayed, others = build_optimizer(model, Optimisation(weight_decay=0.2, learning_rate=0.5)).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(one)] for one in decayed["params"]} == {"0.weight", "3.weight"}
    assert {names[id(one)] for one in others["params"]} == {"0.bias", "1.weight", "1.bias", "3.bias"}
    assert (decayed["weight_decay"], others["weight_decay"], decayed["lr"]) == (0.2, 0.0, 0.5)


def test_frozen_parameters_stay_as_they_are():
    model = small_model()
    model[0].requires_grad_(False)
    before = [one.detach().clone() for one in model.parameters()]
    optimizer = build_optimizer(model, Optimisation())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 4
    train(model, Optimisation(steps=3, learning_rate=0.1), batches(8, rows(4, 8)), losses_of(model), runtime_of(), "")
    changed = [not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)]
    assert changed == [False, False, True, True, True, True]


def test_the_rate_rises_in_the_warm_up_and_falls_to_zero_at_the_end():
    settings = Optimisation(steps=10, warmup_steps=4)
    assert [rate_factor(step, settings) for step in range(11)] == pytest.approx(
        [0, 0.25, 0.5, 0.75, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0]
    )
    assert rate_factor(11, settings) == 0
    assert [rate_factor(step, Optimisation(steps=2)) for step in range(3)] == [1, 0.5, 0]


def test_a_model_trains_in_training_mode_and_is_left_in_the_other():
    model, modes = small_model().eval(), []

    def losses(batch: Rows) -> dict[str, torch.Tensor]:
        modes.append(model.training)
        return losses_of(model)(batch)

    train(model, Optimisation(steps=2), batches(8, rows(5, 8)), losses, runtime_of(), "test")
    assert modes == [True, True]
    assert not model.training
    assert all(one.grad is None for one in model.parameters())


def test_the_loss_is_computed_in_the_precision_of_the_runtime_and_weights_stay_in_full():
    model, dtypes = small_model(), set()

    def losses(batch: Rows) -> dict[str, torch.Tensor]:
        scores = model(batch[0])
        dtypes.add(scores.dtype)
        return {"loss": nn.functional.cross_entropy(scores.float(), batch[1])}

    train(model, Optimisation(steps=2), batches(8, rows(5, 8)), losses, runtime_of(dtype=torch.bfloat16), "test")
    assert dtypes == {torch.bfloat16}
    assert {one.dtype for one in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(("steps", "expected"), [(3, [3]), (10, [10]), (25, [10, 20, 25])])
def test_the_report_has_the_mean_of_every_loss_over_each_stretch(steps, expected):
    model, listening, seen = small_model(), Listening(), []
    settings = Optimisation(steps=steps, accumulation=2, learning_rate=0.01)

    def losses(batch: Rows) -> dict[str, torch.Tensor]:
        loss = losses_of(model)(batch)["loss"]
        seen.append(loss.item())
        return {"loss": loss, "mlm": 2 * loss}

    report = train(model, settings, batches(4, rows(6, 64)), losses, runtime_of(listening), "p0-r1")
    assert LOG_EVERY == 10
    assert report.steps == expected
    means, start = [], 0
    for stop in expected:
        means.append(np.mean(seen[2 * start : 2 * stop]))
        start = stop
    assert report.losses["loss"] == pytest.approx(means, abs=2e-6)
    assert report.losses["mlm"] == pytest.approx([2 * mean for mean in means], abs=2e-6)
    assert [(name, step) for name, _, step in listening.logs] == [("p0-r1", step) for step in expected]
    assert [values["loss"] for _, values, _ in listening.logs] == pytest.approx(means, abs=1e-6)


# ---- order of rows -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "batch"), [(10, 4), (7, 7), (3, 8), (1, 2), (100, 1)])
def test_no_row_comes_again_before_every_other_one_has_come(size, batch):
    order = endless_order(size, batch, np.random.default_rng(0))
    found = [next(order) for _ in range(3 * size)]
    assert {len(one) for one in found} == {batch}
    flat = np.concatenate(found)
    for start in range(0, len(flat) - size + 1, size):
        assert sorted(flat[start : start + size]) == list(range(size))


def test_every_pass_is_shuffled_anew_and_the_random_state_decides():
    first, again, other = (endless_order(50, 50, np.random.default_rng(seed)) for seed in (1, 1, 2))
    passes = [next(first).tolist() for _ in range(3)]
    assert passes == [next(again).tolist() for _ in range(3)]
    assert passes[0] != passes[1]
    assert passes[0] != next(other).tolist()
