"""The training loop against a plain one written out here, AdamW and all."""

import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
import pytest
import torch
from support.plain import FILLED, alone, kind, some_rows
from support.tiny import TOKENIZERS, tiny_model
from torch import nn

from pet.config.schema import Optimisation
from pet.errors import NotFinite
from pet.modeling.backbones import ClozeBatch, MaskedLM
from pet.modeling.batch import Batch, Layout, map_tensors, pad_to_multiples, parts_of, plain_values_of, tensors_of
from pet.modeling.token_losses import IGNORED
from pet.modeling.verbalizers import Verbalizer
from pet.pipeline.members.batches import cloze_losses
from pet.training import cuda_graphs, optim
from pet.training import trainer as trainer_module
from pet.training.cuda_graphs import CapturedSteps
from pet.training.device import Runtime
from pet.training.finite import Origin
from pet.training.reporter import Silent
from pet.training.schedule import endless_order, rate_factor
from pet.training.trainer import LOG_EVERY, Trainer

CPU = torch.device("cpu")


def clone(tree):
    """A nested batch with copies of its tensors."""
    return map_tensors(tree, torch.Tensor.clone)


def train(model, settings, batches, losses, runtime, name):
    """One training, its report."""
    (report,) = Trainer(model, settings, losses, runtime).run(batches, name)
    return report


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
        Optimisation(steps=10, learning_rate=0.1, max_grad_norm=0.05, adam_epsilon=0.1),
    ],
    ids=["plain", "warm-up, decay, clipping", "accumulation", "clipping where the size of a gradient counts"],
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


def test_frozen_parameters_stay_as_they_are():
    model = small_model()
    model[0].requires_grad_(False)
    before = [one.detach().clone() for one in model.parameters()]
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


# ---- several members in one batch ----------------------------------------------------------------------------------


class Members(nn.Module):
    """Models that share no parameter, each with its own loss of the same batch."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.each = nn.ModuleList(small_model(seed) for seed in range(number))

    def losses(self, batch: Rows) -> dict[str, torch.Tensor]:
        found = torch.stack([losses_of(one)(batch)["loss"] for one in self.each])
        return {"loss": found, "twice": 2 * found}

    def clip(self, max_norm: float) -> None:
        for one in self.each:
            nn.utils.clip_grad_norm_(one.parameters(), max_norm)


@pytest.mark.parametrize("most", [0.1, 100.0], ids=["clipped", "not clipped"])
def test_members_trained_in_one_batch_become_what_each_becomes_alone(most):
    """A large epsilon, so that the size of a gradient counts."""
    settings = Optimisation(
        steps=12, learning_rate=0.02, weight_decay=0.1, max_grad_norm=most, accumulation=2, adam_epsilon=0.1
    )
    together, listening = Members(3), Listening()
    trainer = Trainer(together, settings, together.losses, runtime_of(listening), together.clip)
    reports = trainer.run(batches(8, rows(7, 80)), "p0-r0", "p0-r1", "p1-r0")
    assert listening.bars == [("3 members", 12, "step")]
    assert [(name, step) for name, _, step in listening.logs] == [
        (name, step) for step in (10, 12) for name in ("p0-r0", "p0-r1", "p1-r0")
    ]
    for number, found in enumerate(reports):
        single = small_model(number)
        report = train(single, settings, batches(8, rows(7, 80)), losses_of(single), runtime_of(), "alone")
        torch.testing.assert_close(parameters(together.each[number]), parameters(single), atol=1e-6, rtol=0)
        assert found.steps == report.steps == [10, 12]
        assert found.losses["loss"] == pytest.approx(report.losses["loss"], abs=2e-6)
        assert found.losses["twice"] == pytest.approx([2 * one for one in report.losses["loss"]], abs=4e-6)
        own = [values["loss"] for name, values, _ in listening.logs if name == ("p0-r0", "p0-r1", "p1-r0")[number]]
        assert own == pytest.approx(report.losses["loss"], abs=2e-6)
    assert reports[0].losses != reports[1].losses


# ---- losses that are no numbers ------------------------------------------------------------------------------------


def spoilt(members: Members, step: int, number: int, value: float):
    """The losses of members, one of which is `value` from a step on; gradients too."""
    steps = itertools.count(1)

    def losses(batch: Rows) -> dict[str, torch.Tensor]:
        found = members.losses(batch)
        if next(steps) >= step:
            factor = torch.ones(len(members.each)).index_fill(0, torch.tensor([number]), value)
            found = {name: one * factor for name, one in found.items()}
        return found

    return losses


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("step", [2, 10, 11, 24, 25])
def test_a_training_stops_at_the_first_loss_that_is_no_number_and_says_whose_it_is(step, value):
    members, listening = Members(3), Listening()
    settings = Optimisation(steps=25, learning_rate=0.02)
    origin = Origin("some/model", "finetune.lora.learning_rate", 0.02)
    losses = spoilt(members, step, 1, value)
    trainer = Trainer(members, settings, losses, runtime_of(listening), members.clip, origin=origin)
    said = f"finetune p0-r1: the loss became {value} in step {step} of 25; finetune.lora.learning_rate is 0.02: lower"
    with pytest.raises(NotFinite, match=re.escape(said)):
        trainer.run(batches(8, rows(7, 80)), "p0-r0", "p0-r1", "p1-r0")
    assert all(np.isfinite(list(values.values())).all() for _, values, _ in listening.logs)
    assert listening.done <= step + 2 * LOG_EVERY, "not all steps are run"
    assert not members.training, "whoever is trained next finds it as it was"


def test_a_first_loss_that_is_no_number_is_the_fault_of_the_weights_and_not_of_the_rate():
    model = small_model()
    model[0].weight.data[0, 0] = float("nan")
    runtime = runtime_of(dtype=torch.bfloat16)
    trainer = Trainer(
        model, Optimisation(steps=5), losses_of(model), runtime, origin=Origin("some/model", "distill.learning_rate", 1)
    )
    said = "distill student: the loss is nan in step 1, before any training; the weights of 'some/model' are damaged"
    with pytest.raises(NotFinite, match=re.escape(said)) as it:
        trainer.run(batches(8, rows(1, 40)), "student")
    assert "runtime.precision" in str(it.value) and "learning_rate" not in str(it.value)


def test_a_trainer_whose_training_failed_trains_the_next_one_as_a_fresh_one():
    used, fresh = small_model(), small_model()
    settings = Optimisation(steps=12, learning_rate=0.02)
    bad = iter([1.0] * 4 + [float("nan")] * 99)
    trainer = Trainer(used, settings, losses_of(used), runtime_of())
    trainer.losses = lambda batch: {"loss": losses_of(used)(batch)["loss"] * next(bad)}
    with pytest.raises(NotFinite, match="step 5 of 12"):
        trainer.run(batches(8, rows(7, 80)), "first")
    trainer.losses = losses_of(used)
    used.load_state_dict(small_model().state_dict())
    (second,) = trainer.run(batches(8, rows(8, 80)), "second")
    assert second == train(fresh, settings, batches(8, rows(8, 80)), losses_of(fresh), runtime_of(), "fresh")


def test_losses_that_are_numbers_but_too_large_together_are_a_failure_too():
    recent = [{"loss": torch.tensor([3e38])} for _ in range(10)]
    assert trainer_module.find_lost(recent, 20, 1) == trainer_module.Lost(20, float("inf"), [0])


# ---- one Trainer, several trainings --------------------------------------------------------------------------------


BUSY = Optimisation(steps=12, learning_rate=0.02, warmup_steps=3, weight_decay=0.1, max_grad_norm=0.5, accumulation=2)


def train_twice() -> tuple[nn.Module, nn.Module, trainer_module.TrainingReport, trainer_module.TrainingReport]:
    """The second training of a used Trainer, its weights put back before, and the same training of a fresh one."""
    used, fresh = small_model(), small_model()
    trainer = Trainer(used, BUSY, losses_of(used), runtime_of())
    trainer.run(batches(8, rows(7, 80)), "first")
    used.load_state_dict(small_model().state_dict())
    (second,) = trainer.run(batches(8, rows(8, 80)), "second")
    return used, fresh, second, train(fresh, BUSY, batches(8, rows(8, 80)), losses_of(fresh), runtime_of(), "fresh")


def test_the_second_training_of_a_trainer_is_that_of_a_fresh_one():
    used, fresh, second, only = train_twice()
    assert torch.equal(parameters(used), parameters(fresh)), "to the bit"
    assert not torch.allclose(parameters(used), parameters(small_model()), atol=1e-3), "it moved"
    assert second == only


def test_what_is_forgotten_between_two_trainings_would_have_been_seen(monkeypatch):
    """So that the test above is worth something."""
    monkeypatch.setattr(optim.FusedAdamW, "reset", lambda self: None)
    used, fresh, _, _ = train_twice()
    assert not torch.allclose(parameters(used), parameters(fresh), atol=1e-3)


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


def test_a_batch_has_as_many_tensors_as_its_layout_needs():
    counts = {"bert": 6, "roberta": 5}  # the first with token types
    for family, count in counts.items():
        packed, padded = (some_rows(family).batch(np.arange(3), layout) for layout in (FILLED, Layout(True)))
        assert (len(tensors_of(packed)), len(tensors_of(padded))) == (count, count + 1)
        assert (clone(packed).token_type_ids is None) == (family == "roberta")
        assert (clone(packed).attention_mask, clone(packed).width) == (None, 128)


def test_the_plain_values_of_a_nested_batch_are_found_in_a_fixed_order():
    tree, _ = nested()
    assert plain_values_of(tree) == [None, 7, "x", "given", None]
    assert plain_values_of(torch.ones(3)) == []
    assert plain_values_of([torch.ones(3), (2, torch.ones(1))]) == [2]
    batch = some_rows("bert").batch(np.arange(3), FILLED)
    assert plain_values_of([batch, torch.ones(3)]) == [128, None, False], "its width; no attention mask; not full"


# ---- captured steps ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capture", [True, False])
def test_on_a_cpu_no_step_is_captured(monkeypatch, capture):
    def refuse(*rest: object) -> None:
        raise AssertionError("captured on a CPU")

    monkeypatch.setattr(cuda_graphs, "CapturedSteps", refuse)
    model, plain = small_model(), small_model()
    settings = Optimisation(steps=4, learning_rate=0.01)
    runtime = Runtime(CPU, None, 2048, Silent(), capture)
    trainer = Trainer(model, settings, losses_of(model), runtime)
    assert trainer.run_step == trainer.step
    trainer.run(batches(8, rows(1, 40)), "test")
    plain_loop(plain, settings, batches(8, rows(1, 40)))
    torch.testing.assert_close(parameters(model), parameters(plain), atol=1e-6, rtol=0)


class Noted(CapturedSteps):
    """Says what it would do; the rest needs a GPU."""

    def __init__(self) -> None:
        self.seen, self.captured = set(), {}
        self.done: list[str] = []

    def run_plain(self, micro_batches):
        self.done.append("plain")

    def capture(self, micro_batches):
        self.done.append("capture")

    def replay(self, captured, tensors):
        self.done.append("replay")


def test_a_shape_is_run_once_then_captured_then_replayed():
    steps = Noted()
    for _ in range(4):
        steps([torch.ones(3)])
    assert steps.done == ["plain", "capture", "replay", "replay", "replay"]


@pytest.mark.parametrize(
    "other",
    [
        lambda: [Inner(torch.ones(3), None, 8)],
        lambda: [Inner(torch.ones(4), None, 7)],
        lambda: [Inner(torch.ones(3, dtype=torch.long), None, 7)],
        lambda: [Inner(torch.ones(3), torch.ones(3), 7)],
        lambda: [Inner(torch.ones(3), None, 7)] * 2,
    ],
    ids=["another number", "another length", "another type", "one tensor more", "one batch more"],
)
def test_whatever_a_captured_step_holds_fixed_is_part_of_its_shape(other):
    """A number in a batch, say its width, is written into what is captured: another number, another capture."""
    steps = Noted()
    for _ in range(2):
        steps([Inner(torch.ones(3), None, 7)])
        steps([Inner(torch.zeros(3), None, 7)])
    assert len(steps.captured) == 1, "values are no part of it"
    steps.done.clear()
    for _ in range(2):
        steps(other())
    assert steps.done == ["plain", "capture", "replay"]


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="captured steps are CUDA graphs")
SHAPES = [(4, 4, 256), (4, 4, 320), (2, 6, 320), (4, 4, 256), (3, 1, 128)]
"""Labelled rows, unlabelled rows, tokens of all together when they are filled up."""


def tiny_cloze(device: str, dropout: float = 0.0, family: str = "bert") -> MaskedLM:
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return MaskedLM(tiny_model(family, TOKENIZERS[kind(family)](), **rates)).to(device)


def clone_state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def cloze_batches(seed: int, device: str, has_types: bool = True) -> Iterator[ClozeBatch]:
    """Random micro-batches of one member, of these shapes in turn: rows end to end, with tokens that fill them up, and
    targets that are filled up too."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator)

    for labelled, unlabelled, tokens in cycle(SHAPES):
        count = labelled + unlabelled
        sizes = (tokens - 10) // count - draw(0, 4, count)
        starts = torch.cat([torch.zeros(1, dtype=torch.long), sizes.cumsum(0)])
        size = int(starts[-1])
        row_of = torch.arange(count).repeat_interleave(sizes)
        places = torch.arange(size) - starts[row_of]
        types = (places > 8).long() if has_types else None
        bare = Batch(draw(5, 150, size), types, places, row_of, starts.int(), starts[:-1] + draw(0, 9, count), 128)
        batch = pad_to_multiples(bare, FILLED)
        assert size < len(batch.input_ids) == tokens
        targets = draw(5, 150, 64)
        targets[40 + labelled :] = IGNORED
        yield ClozeBatch(
            batch=batch,
            members=torch.zeros(tokens, dtype=torch.long),
            keys=torch.zeros(tokens, dtype=torch.int32),
            labels=draw(0, 3, 1, labelled),
            label_places=batch.mask_positions[:labelled],
            target_places=draw(int(starts[labelled]), size, 64),
            target_members=torch.zeros(64, dtype=torch.long),
            targets=targets,
            verbalizer=Verbalizer(torch.tensor([10, 20, 30, 40]), torch.eye(4)[None, :, :3]),
        ).to(torch.device(device))


STEPS = Optimisation(steps=20, learning_rate=2e-3, adam_epsilon=1e-3, weight_decay=0.1, warmup_steps=2)
"""With a large epsilon, so that AdamW does not blow up the noise of gradients that should be zero."""


def cloze_trainer(model: MaskedLM, device: str, capture: bool, accumulation: int = 1) -> Trainer[ClozeBatch]:
    settings = STEPS.model_copy(update={"accumulation": accumulation})
    runtime = Runtime(torch.device(device), None, 2048, Silent(), capture)
    return Trainer(model, settings, lambda given: cloze_losses(model, given, 0.3), runtime)


def padded_loss(lm: Any, given: ClozeBatch) -> torch.Tensor:
    """0.7 CE + 0.3 MLM from the full logits of rows that are padded, as a user of transformers would write it."""
    rows_apart = [tokens for _, tokens in alone(given.batch)]
    width = max(len(tokens) for tokens in rows_apart)
    inputs = {name: torch.zeros(len(rows_apart), width, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    inputs["input_ids"] += lm.config.pad_token_id
    if given.batch.token_type_ids is not None:
        inputs["token_type_ids"] = torch.zeros(len(rows_apart), width, dtype=torch.long)
    place_of = torch.zeros(len(given.batch.input_ids), dtype=torch.long)
    for row, tokens in enumerate(rows_apart):
        inputs["input_ids"][row, : len(tokens)] = given.batch.input_ids[tokens]
        inputs["attention_mask"][row, : len(tokens)] = 1
        if given.batch.token_type_ids is not None:
            inputs["token_type_ids"][row, : len(tokens)] = given.batch.token_type_ids[tokens]
        place_of[tokens] = row * width + torch.arange(len(tokens))
    logits = lm(**inputs).logits.flatten(0, 1)
    scores = logits[place_of[given.label_places]][:, given.verbalizer.words[:3]]
    asked = given.targets != IGNORED
    mlm = nn.functional.cross_entropy(logits[place_of[given.target_places[asked]]], given.targets[asked])
    return 0.7 * nn.functional.cross_entropy(scores, given.labels[0]) + 0.3 * mlm


@pytest.mark.parametrize("family", ["bert", "roberta", "albert"])
def test_training_on_rows_end_to_end_is_training_on_padded_rows(family):
    """20 steps of AdamW on the same batches, in fp32 and without dropout: the same losses, step by step."""
    seen: list[float] = []
    cloze = tiny_cloze("cpu", family=family)
    trainer = cloze_trainer(cloze, "cpu", True)
    losses = trainer.losses

    def watched(given: ClozeBatch) -> dict[str, torch.Tensor]:
        found = losses(given)
        seen.append(found["loss"].item())
        return found

    trainer.losses = watched
    trainer.run(cloze_batches(1, "cpu", family == "bert"), "test")

    lm = tiny_cloze("cpu", family=family).lm
    lm.set_attn_implementation("sdpa")
    decayed = [one for one in lm.parameters() if one.ndim > 1]
    others = [one for one in lm.parameters() if one.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer, expected = torch.optim.AdamW(groups, eps=1e-3), []
    for step, given in zip(range(20), cloze_batches(1, "cpu", family == "bert"), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (step / 2 if step < 2 else (20 - step) / 18)
        loss = padded_loss(lm.train(), given)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(lm.parameters(), STEPS.max_grad_norm)
        optimizer.step()
        expected.append(loss.item())
    assert seen == pytest.approx(expected, rel=1e-4)
    untrained = tiny_cloze("cpu", family=family).lm
    assert abs(padded_loss(untrained, given).item() - expected[-1]) > 0.01, "training matters"


@needs_gpu
@pytest.mark.parametrize(("most", "captured"), [(16, 4), (2, 2)], ids=["all shapes", "two shapes at most"])
def test_a_captured_training_gives_the_weights_and_losses_of_a_plain_one_and_so_does_a_second(
    monkeypatch, most, captured
):
    monkeypatch.setattr(cuda_graphs, "MAX_CAPTURED", most)
    mine, plain = tiny_cloze("cuda"), tiny_cloze("cuda")
    start, before = clone_state(mine), parameters(mine)
    trainer = cloze_trainer(mine, "cuda", True)
    assert isinstance(trainer.run_step, CapturedSteps)
    for seed in (1, 2):
        mine.load_state_dict(start)
        plain.load_state_dict(start)
        fresh = cloze_trainer(plain, "cuda", False)
        assert fresh.run_step == fresh.step
        (found,) = trainer.run(cloze_batches(seed, "cuda"), "test")
        (expected,) = fresh.run(cloze_batches(seed, "cuda"), "test")
        assert len(trainer.run_step.captured) == captured
        torch.testing.assert_close(parameters(mine), parameters(plain), atol=1e-5, rtol=0)
        assert not torch.allclose(parameters(mine), before, atol=1e-3), "it moved"
        assert found.steps == expected.steps == [10, 20]
        assert found.losses["loss"] == pytest.approx(expected.losses["loss"], abs=1e-4)


@needs_gpu
def test_captured_micro_batches_are_accumulated():
    mine, plain = tiny_cloze("cuda"), tiny_cloze("cuda")
    cloze_trainer(mine, "cuda", True, 5).run(cloze_batches(1, "cuda"), "test")
    cloze_trainer(plain, "cuda", False, 5).run(cloze_batches(1, "cuda"), "test")
    torch.testing.assert_close(parameters(mine), parameters(plain), atol=1e-5, rtol=0)


@needs_gpu
def test_captured_dropout_follows_the_seed():
    """Once all is captured: the same training from the same seed, another one from another."""
    model, found = tiny_cloze("cuda", 0.3), []
    start = clone_state(model)
    trainer = cloze_trainer(model, "cuda", True)
    for seed in (0, 1, 1, 2):
        model.load_state_dict(start)
        torch.manual_seed(seed)
        trainer.run(cloze_batches(1, "cuda"), "test")
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
