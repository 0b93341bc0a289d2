"""The training loop against a plain one written out here, AdamW and all."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_model, wordpiece_tokenizer
from torch import nn

from pet import training
from pet.cloze import ClozeModel
from pet.encoding import Batch, VerbalizerIds
from pet.losses import IGNORED
from pet.runtime import Runtime, Silent
from pet.settings import Optimisation
from pet.stages.finetune import ClozeBatch, member_losses
from pet.training import (
    LOG_EVERY,
    CapturedSteps,
    Trainer,
    build_optimizer,
    clone,
    endless_order,
    parts_of,
    rate_factor,
    reset_optimizer,
    tensors_of,
    train,
)

CPU = torch.device("cpu")

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
    settings = Optimisation(weight_decay=0.2, learning_rate=0.5)
    decayed, others = build_optimizer(model, settings, CPU).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(one)] for one in decayed["params"]} == {"0.weight", "3.weight"}
    assert {names[id(one)] for one in others["params"]} == {"0.bias", "1.weight", "1.bias", "3.bias"}
    assert (decayed["weight_decay"], others["weight_decay"], decayed["lr"]) == (0.2, 0.0, 0.5)


def test_frozen_parameters_stay_as_they_are():
    model = small_model()
    model[0].requires_grad_(False)
    before = [one.detach().clone() for one in model.parameters()]
    optimizer = build_optimizer(model, Optimisation(), CPU)
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


# ---- one Trainer, several trainings --------------------------------------------------------------------------------


BUSY = Optimisation(steps=12, learning_rate=0.02, warmup_steps=3, weight_decay=0.1, max_grad_norm=0.5, accumulation=2)


def train_twice() -> tuple[nn.Module, nn.Module, training.TrainingReport, training.TrainingReport]:
    """The second training of a used Trainer, its weights put back before, and the same training of a fresh one."""
    used, fresh = small_model(), small_model()
    trainer = Trainer(used, BUSY, losses_of(used), runtime_of())
    trainer.run(batches(8, rows(7, 80)), "first")
    used.load_state_dict(small_model().state_dict())
    second = trainer.run(batches(8, rows(8, 80)), "second")
    return used, fresh, second, train(fresh, BUSY, batches(8, rows(8, 80)), losses_of(fresh), runtime_of(), "fresh")


def test_the_second_training_of_a_trainer_is_that_of_a_fresh_one():
    used, fresh, second, only = train_twice()
    assert torch.equal(parameters(used), parameters(fresh)), "to the bit"
    assert not torch.allclose(parameters(used), parameters(small_model()), atol=1e-3), "it moved"
    assert second == only


def test_what_is_forgotten_between_two_trainings_would_have_been_seen(monkeypatch):
    """So that the test above is worth something."""
    monkeypatch.setattr(training, "reset_optimizer", lambda optimizer: None)
    used, fresh, _, _ = train_twice()
    assert not torch.allclose(parameters(used), parameters(fresh), atol=1e-3)


def test_an_optimizer_forgets_in_place_all_it_has_seen():
    model = small_model()
    optimizer = build_optimizer(model, Optimisation(), CPU)
    reset_optimizer(optimizer)
    losses_of(model)(rows(1, 8))["loss"].backward()
    optimizer.step()
    before = [value for state in optimizer.state.values() for value in state.values()]
    assert len(before) == 3 * 6, "a step count and two moments for each of six parameters"
    assert all(value.any() for value in before)
    reset_optimizer(optimizer)
    after = [value for state in optimizer.state.values() for value in state.values()]
    assert all(one is other for one, other in zip(before, after, strict=True))
    assert not any(value.any() for value in after)


# ---- nested batches ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inner:
    """Part of a batch."""

    first: torch.Tensor
    maybe: torch.Tensor | None
    size: int


@dataclass
class Outer:
    """A batch."""

    inner: Inner
    many: list[Any]
    last: torch.Tensor
    name: str = "given"


def nested() -> tuple[list[Any], list[torch.Tensor]]:
    """A list of micro-batches, and the tensors in it in their order."""
    one, two, three, four, five = (torch.full((number,), number) for number in range(1, 6))
    return [Outer(Inner(one, None, 7), [two, (three, "x")], four), None, five], [one, two, three, four, five]


def test_the_tensors_of_a_nested_batch_are_found_in_a_fixed_order():
    tree, tensors = nested()
    found = tensors_of(tree)
    assert len(found) == 5
    assert all(one is other for one, other in zip(found, tensors, strict=True)), "themselves, not copies"
    assert [len(one) for one in tensors_of(nested()[0])] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("plain", [None, 3, 0.5, "text", True, [], ()])
def test_a_plain_value_has_no_tensors_and_no_parts_and_is_its_own_copy(plain):
    assert tensors_of(plain) == parts_of(plain) == []
    assert clone(plain) == plain


def test_a_copy_of_a_nested_batch_is_equal_and_shares_no_memory():
    tree, tensors = nested()
    copy = clone(tree)
    for one, other in zip(tensors_of(copy), tensors, strict=True):
        assert torch.equal(one, other)
        assert one.data_ptr() != other.data_ptr()
    outer, nothing, _ = copy
    assert nothing is None
    assert isinstance(outer, Outer)
    assert isinstance(outer.inner, Inner)
    assert isinstance(outer.many[1], tuple)
    assert (outer.inner.maybe, outer.inner.size, outer.many[1][1], outer.name) == (None, 7, "x", "given")
    tensors_of(copy)[2].zero_()
    assert tensors[2].tolist() == [3, 3, 3]


def test_a_batch_without_token_types_has_one_tensor_less():
    ids = torch.ones(2, 8, dtype=torch.long)
    places = torch.tensor([1, 2])
    assert [len(tensors_of(Batch(ids, ids, types, places))) for types in (ids, None)] == [4, 3]
    assert clone(Batch(ids, ids, None, places)).token_type_ids is None


# ---- captured steps ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capture", [True, False])
def test_on_a_cpu_no_step_is_captured(monkeypatch, capture):
    def refuse(*rest: object) -> None:
        raise AssertionError("captured on a CPU")

    monkeypatch.setattr(training, "CapturedSteps", refuse)
    model, plain = small_model(), small_model()
    settings = Optimisation(steps=4, learning_rate=0.01)
    runtime = Runtime(CPU, None, 2048, Silent(), capture)
    trainer = Trainer(model, settings, losses_of(model), runtime)
    assert trainer.run_step == trainer.step
    trainer.run(batches(8, rows(1, 40)), "test")
    plain_loop(plain, settings, batches(8, rows(1, 40)))
    torch.testing.assert_close(parameters(model), parameters(plain), atol=1e-6, rtol=0)


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="captured steps are CUDA graphs")
SHAPES = [(4, 4, 16), (4, 4, 32), (2, 6, 32), (4, 4, 16), (3, 1, 48)]
"""Labelled rows, unlabelled rows, tokens."""


def tiny_cloze(dropout: float = 0.0) -> ClozeModel:
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return ClozeModel(tiny_model("bert", wordpiece_tokenizer(), **rates)).to("cuda")


def clone_state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def cloze_batches(seed: int) -> Iterator[ClozeBatch]:
    """Random micro-batches of these shapes in turn, with some padding and targets that are filled up."""
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(5, high, shape, generator=generator)

    words = VerbalizerIds(torch.tensor([10, 20, 30, 40]), torch.eye(4)[:, :3])
    for labelled, unlabelled, width in cycle(SHAPES):
        size = labelled + unlabelled
        seen = (torch.arange(width) < draw(width + 1, size, 1)).long()
        batch = Batch(draw(150, size, width), seen, torch.zeros_like(seen), torch.ones(size, dtype=torch.long))
        targets = draw(150, 64)
        targets[40 + labelled :] = IGNORED
        places = torch.stack([draw(size + 5, len(targets)) - 5, draw(width, len(targets))])
        yield ClozeBatch(batch, draw(8, labelled) - 5, places, targets, words).to(torch.device("cuda"))


def cloze_trainer(model: ClozeModel, capture: bool, accumulation: int = 1) -> Trainer[ClozeBatch]:
    """20 steps. A large epsilon, so that AdamW does not blow up the noise of gradients that should be zero."""
    settings = Optimisation(
        steps=20, learning_rate=2e-3, adam_epsilon=1e-3, weight_decay=0.1, warmup_steps=2, accumulation=accumulation
    )
    runtime = Runtime(torch.device("cuda"), None, 2048, Silent(), capture)
    return Trainer(model, settings, lambda given: member_losses(model, given, 0.3), runtime)


@needs_gpu
@pytest.mark.parametrize(("most", "captured"), [(16, 4), (2, 2)], ids=["all shapes", "two shapes at most"])
def test_a_captured_training_gives_the_weights_and_losses_of_a_plain_one_and_so_does_a_second(
    monkeypatch, most, captured
):
    monkeypatch.setattr(training, "MAX_CAPTURED", most)
    mine, plain = tiny_cloze(), tiny_cloze()
    start, before = clone_state(mine), parameters(mine)
    trainer = cloze_trainer(mine, True)
    assert isinstance(trainer.run_step, CapturedSteps)
    for seed in (1, 2):
        mine.load_state_dict(start)
        plain.load_state_dict(start)
        fresh = cloze_trainer(plain, False)
        assert fresh.run_step == fresh.step
        found = trainer.run(cloze_batches(seed), "test")
        expected = fresh.run(cloze_batches(seed), "test")
        assert len(trainer.run_step.captured) == captured
        torch.testing.assert_close(parameters(mine), parameters(plain), atol=1e-5, rtol=0)
        assert not torch.allclose(parameters(mine), before, atol=1e-3), "it moved"
        assert found.steps == expected.steps == [10, 20]
        assert found.losses["loss"] == pytest.approx(expected.losses["loss"], abs=1e-4)


@needs_gpu
def test_captured_micro_batches_are_accumulated():
    mine, plain = tiny_cloze(), tiny_cloze()
    cloze_trainer(mine, True, 5).run(cloze_batches(1), "test")
    cloze_trainer(plain, False, 5).run(cloze_batches(1), "test")
    torch.testing.assert_close(parameters(mine), parameters(plain), atol=1e-5, rtol=0)


@needs_gpu
def test_captured_dropout_follows_the_seed():
    """Once all is captured: the same training from the same seed, another one from another."""
    model, found = tiny_cloze(0.3), []
    start = clone_state(model)
    trainer = cloze_trainer(model, True)
    for seed in (0, 1, 1, 2):
        model.load_state_dict(start)
        torch.manual_seed(seed)
        trainer.run(cloze_batches(1), "test")
        found.append(parameters(model))
    _, first, again, other = found
    torch.testing.assert_close(first, again, atol=1e-5, rtol=0)
    assert not torch.allclose(first, other, atol=1e-4)


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
