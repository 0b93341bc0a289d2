"""The losses against their formulas in float64, and what may become an MLM target."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pet.modeling.backbones.masked_lm import mask_tokens
from pet.modeling.token_losses import IGNORED, token_losses
from pet.training.compile import FIRST_TARGETS, warm_up_losses
from pet.training.losses import (
    combined_loss,
    compiled_token_losses,
    distillation_loss,
    fusible_token_losses,
    label_loss,
)
from pet.training.losses import mlm_loss as mlm_losses

MASK, VOCABULARY = 4, 1000


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def cross_entropy(scores: np.ndarray, targets: np.ndarray) -> float:
    return float(-np.log(softmax(scores)[np.arange(len(targets)), targets]).mean())


def divergence(teacher: np.ndarray, student: np.ndarray, temperature: float) -> float:
    """KL of the softened student from the softened teacher, a row at a time, times the temperature's square."""
    rows = []
    for one, other in zip(softmax(teacher / temperature), softmax(student / temperature), strict=True):
        rows.append(sum(p * np.log(p / q) for p, q in zip(one, other, strict=True)))
    return float(np.mean(rows)) * temperature**2


def scores(seed: int, *shape: int) -> np.ndarray:
    return 3 * np.random.default_rng(seed).standard_normal(shape)


def mlm_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Of the only member; logits [K, V]."""
    (loss,) = mlm_losses(token_losses(logits.T, None, targets), targets, torch.zeros_like(targets), 1)
    return loss


FORMS = {
    "plain": lambda: token_losses,
    "fusible": lambda: fusible_token_losses,
    "compiled": lambda: compiled_token_losses(False),
    "compiled for one shape": lambda: compiled_token_losses(True),
}
GPU = torch.cuda.is_available()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biased", [True, False])
def test_every_form_of_the_token_losses_is_the_cross_entropy_with_its_gradients(form, dtype, biased):
    """Against float64. What is compiled needs a GPU: there it is what training uses."""
    if form.startswith("compiled") and not GPU:
        pytest.skip("needs a GPU")
    device = "cuda" if form.startswith("compiled") else "cpu"
    rng = np.random.default_rng(0)
    for size, count in ((50, 7), (1013, 64)):
        products = torch.tensor(scores(1, size, count)).to(device, dtype).requires_grad_()
        bias = torch.tensor(scores(2, size), device=device, dtype=torch.float32).requires_grad_() if biased else None
        targets = torch.tensor(rng.integers(0, size, count), device=device)
        targets[::5] = IGNORED
        weights = torch.tensor(rng.random(count), device=device)
        found = FORMS[form]()(products, bias, targets)
        (found * weights).sum().backward()
        exact = products.detach().double().requires_grad_()
        exact_bias = bias.detach().double().requires_grad_() if biased else torch.zeros(size, device=device).double()
        each = (exact + exact_bias[:, None]).log_softmax(0)
        expected = -torch.where(targets == IGNORED, 0, each.gather(0, targets.clamp(min=0)[None])[0])
        (expected * weights).sum().backward()
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
        assert products.grad.is_contiguous()
        tolerance = 1e-6 if dtype == torch.float32 else 5e-3
        torch.testing.assert_close(products.grad.double(), exact.grad, rtol=tolerance, atol=tolerance)
        if biased:
            torch.testing.assert_close(bias.grad.double(), exact_bias.grad, rtol=1e-4, atol=1e-5)


def test_compiled_losses_see_the_same_number_of_targets_first_and_that_leaves_no_trace(monkeypatch):
    sizes: list[int] = []

    def noting(part: Any, dynamic: bool) -> Any:
        def call(products: torch.Tensor, *rest: Any) -> Any:
            sizes.append(products.shape[1])
            return part(products, *rest)

        return call

    monkeypatch.setattr(torch, "compile", noting)
    found = []
    for form in (compiled_token_losses.__wrapped__(False), fusible_token_losses):
        products = torch.tensor(scores(1, 50, 7)).requires_grad_()
        bias = torch.tensor(scores(2, 50)).requires_grad_()
        model = SimpleNamespace(compiled=True, token_losses=form)
        model.empty_products = lambda count, bias=bias: (bias.detach().new_zeros(50, count), bias)
        warm_up_losses(model)
        for _ in range(2):
            form(products, bias, torch.arange(7)).sum().backward()
        found.append((products.grad, bias.grad))
    assert sizes == [FIRST_TARGETS, FIRST_TARGETS, 7, 7, 7, 7]
    assert all(torch.equal(mine, plain) for mine, plain in zip(*found, strict=True))


def test_the_label_loss_is_the_mean_cross_entropy():
    found, labels = scores(0, 6, 4), np.array([0, 3, 1, 1, 2, 0])
    loss = label_loss(torch.tensor(found), torch.tensor(labels))
    assert float(loss) == pytest.approx(cross_entropy(found, labels), rel=1e-6)


def test_the_mlm_loss_is_the_mean_cross_entropy_over_targets():
    found, tokens = scores(1, 5, 50), np.array([7, 0, 49, 7, 12])
    loss = mlm_loss(torch.tensor(found), torch.tensor(tokens))
    assert float(loss) == pytest.approx(cross_entropy(found, tokens), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ignored_targets_change_neither_the_mlm_loss_nor_its_gradient(dtype):
    logits, tokens = torch.tensor(scores(6, 7, 50)).to(dtype), torch.tensor([7, 0, 49, 7, 12, 3, 3])
    wanted = torch.tensor([True, False, True, True, False, True, False])
    filled, bare = logits.clone().requires_grad_(), logits[wanted].clone().requires_grad_()
    loss = mlm_loss(filled, tokens.where(wanted, IGNORED))
    expected = mlm_loss(bare, tokens[wanted])
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert loss.item() == pytest.approx(
        cross_entropy(logits.double().numpy()[wanted], tokens[wanted].numpy()), rel=1e-5
    )
    loss.backward()
    expected.backward()
    torch.testing.assert_close(filled.grad[wanted], bare.grad)
    assert not filled.grad[~wanted].any()


def test_where_all_mlm_targets_are_ignored_the_loss_is_zero_and_can_still_be_differentiated():
    states = torch.randn(4, 8, requires_grad=True)
    loss = mlm_loss(states @ torch.randn(8, 20), torch.full((4,), IGNORED))
    assert loss.item() == 0
    loss.backward()
    assert states.grad is not None
    assert states.grad.isfinite().all()
    assert not states.grad.any()


def test_without_mlm_targets_the_loss_is_zero_and_can_still_be_differentiated():
    states = torch.randn(3, 8, requires_grad=True)
    loss = mlm_loss(states[:0] @ torch.randn(8, 20), torch.empty(0, dtype=torch.long))
    assert loss.item() == 0
    loss.backward()
    assert states.grad is not None
    assert not states.grad.any()


def test_each_member_has_the_losses_of_its_own_rows_and_targets():
    """Also one that has no target at all."""
    torch.manual_seed(0)
    scores, labels = torch.randn(3, 4, 5), torch.randint(0, 5, (3, 4))
    each = [label_loss(scores[member], labels[member]) for member in range(3)]
    torch.testing.assert_close(label_loss(scores, labels), torch.stack(each))
    logits, targets = torch.randn(9, 20), torch.randint(0, 20, (9,))
    members = torch.tensor([0, 2, 0, 2, 2, 0, 2, 0, 1])
    targets[[3, 8]] = IGNORED
    found = mlm_losses(token_losses(logits.T, None, targets), targets, members, 3)
    for member in (0, 2):
        torch.testing.assert_close(found[member], mlm_loss(logits[members == member], targets[members == member]))
    assert found[1] == 0


@pytest.mark.parametrize("alpha", [0.0, 1e-4, 0.3])
def test_the_combined_loss_weighs_the_label_loss_by_one_minus_alpha(alpha):
    loss = combined_loss(torch.tensor(0.7), torch.tensor(9.0), alpha)
    assert float(loss) == pytest.approx((1 - alpha) * 0.7 + alpha * 9.0, rel=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_the_distillation_loss_softens_both_sides_and_multiplies_by_the_square(temperature):
    student, teacher = scores(2, 7, 5), scores(3, 7, 5)
    loss = distillation_loss(torch.tensor(student), torch.tensor(teacher), temperature)
    assert float(loss) == pytest.approx(divergence(teacher, student, temperature), rel=1e-5)


def test_a_student_that_agrees_with_its_teacher_loses_nothing():
    teacher = torch.tensor(scores(4, 3, 5))
    assert float(distillation_loss(teacher + 11, teacher, 2.0)) == pytest.approx(0, abs=1e-6)


def test_losses_of_half_precision_scores_are_computed_in_full_precision():
    found, labels = torch.tensor(scores(5, 4, 30)).bfloat16(), torch.tensor([1, 2, 3, 0])
    exact = found.double().numpy()
    assert label_loss(found, labels).dtype == mlm_loss(found, labels).dtype == torch.float32
    assert float(mlm_loss(found, labels)) == pytest.approx(cross_entropy(exact, labels.numpy()), rel=1e-5)
    softened = distillation_loss(found, found.flip(1), 2.0)
    assert float(softened) == pytest.approx(divergence(exact[:, ::-1], exact, 2.0), rel=1e-5)


# ---- MLM targets ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """200,000 tokens of which the first quarter of every row may not be asked; ids, maskable, changed, targets."""
    ids = np.random.default_rng(0).integers(5, VOCABULARY, size=(400, 500))
    maskable = np.ones(ids.shape, dtype=bool)
    maskable[:, :125] = False
    return ids, maskable, *mask_tokens(ids, maskable, 0.15, MASK, VOCABULARY, np.random.default_rng(1))


def test_only_maskable_tokens_become_targets_or_change(large):
    ids, maskable, changed, targets = large
    assert (targets[~maskable] == IGNORED).all()
    assert (changed[~maskable] == ids[~maskable]).all()


def test_a_target_is_the_token_that_stood_there_and_nothing_else_changes(large):
    ids, _, changed, targets = large
    asked = targets != IGNORED
    assert (targets[asked] == ids[asked]).all()
    assert (changed[~asked] == ids[~asked]).all()


def test_targets_are_masked_swapped_and_kept_in_the_proportions_of_bert(large):
    ids, maskable, changed, targets = large
    asked = targets != IGNORED
    assert asked.sum() / maskable.sum() == pytest.approx(0.15, abs=0.005)
    kept = (changed == ids)[asked].mean()
    masked = (changed == MASK)[asked].mean()
    assert masked == pytest.approx(0.8, abs=0.01)
    assert kept == pytest.approx(0.1, abs=0.01)
    assert 1 - masked - kept == pytest.approx(0.1, abs=0.01)


def test_a_swapped_token_may_be_any_of_the_vocabulary(large):
    ids, _, changed, _ = large
    swapped = changed[(changed != ids) & (changed != MASK)]
    assert swapped.min() < 10
    assert swapped.max() > VOCABULARY - 10
    assert np.histogram(swapped, bins=4, range=(0, VOCABULARY))[0].min() > 0.2 * len(swapped)


def test_masking_leaves_its_input_alone_and_depends_only_on_the_random_state():
    ids, maskable = np.arange(5, 205).reshape(4, 50), np.ones((4, 50), dtype=bool)
    first, again, other = (
        mask_tokens(ids, maskable, 0.15, MASK, VOCABULARY, np.random.default_rng(seed)) for seed in (7, 7, 8)
    )
    assert (ids == np.arange(5, 205).reshape(4, 50)).all()
    assert all((one == two).all() for one, two in zip(first, again, strict=True))
    assert (first[1] != other[1]).any()


def test_nothing_is_masked_where_nothing_may_be():
    ids = np.arange(20).reshape(2, 10)
    changed, targets = mask_tokens(ids, np.zeros((2, 10), dtype=bool), 0.9, MASK, 30, np.random.default_rng(0))
    assert (changed == ids).all()
    assert (targets == IGNORED).all()
