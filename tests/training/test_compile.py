"""What is compiled is fitted to an invented batch, whatever comes first; nothing invented runs in a forward pass."""

import dataclasses
from typing import Any

import pytest
import torch
from support.plain import LIVELY, PACKED, kind, some_batch
from support.rows import lay_ground, lively_model, pet_run
from support.tiny import TOKENIZERS, tiny_classifier, tiny_model

from pet.modeling.backbones import MaskedLM
from pet.modeling.batch import Layout
from pet.modeling.classifier import ClassifierModel
from pet.modeling.token_losses import token_losses
from pet.modeling.verbalizers import Verbalizer
from pet.training.compile import FIRST, warm_up, warm_up_losses
from pet.training.device import Runtime
from pet.training.losses import fusible_token_losses
from pet.training.reporter import Silent
from pet.training.scoring import computing_copy

pytestmark = pytest.mark.slow

ROWS, WIDTH = FIRST
INVENTED = {False: [ROWS * WIDTH, ROWS + 1, 3 * WIDTH], True: [ROWS, WIDTH]}
"""Whether rows are padded -> the numbers of the invented batch."""
RUNTIME = Runtime(torch.device("cpu"), None, 2048, Silent())
COMPILE = torch.nn.Module.compile
WORDS = Verbalizer(torch.arange(20, 23), torch.eye(3))


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are taken to be compiled, as on a GPU; they are run as they are."""
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, dynamic: None)
    monkeypatch.setattr(Runtime, "compiles", lambda self, size: True)
    monkeypatch.setattr("pet.training.scoring.compiled_token_losses", lambda alike: fusible_token_losses)


@pytest.fixture
def fitted(compiles: None, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """They are compiled, but run by torch itself. Fills with the numbers that each program was fitted to."""
    found: list[list[int]] = []

    def backend(graph: Any, inputs: list[Any]) -> Any:
        sizes = [size for one in inputs for size in ([one] if isinstance(one, torch.SymInt) else one.shape)]
        found.append(sorted({size.node.hint for size in sizes if isinstance(size, torch.SymInt)}))
        return graph.forward

    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, dynamic: COMPILE(self, dynamic=dynamic, backend=backend)
    )
    torch._dynamo.reset()
    return found


def cloze_of(family: str) -> MaskedLM:
    return MaskedLM(tiny_model(family, TOKENIZERS[kind(family)](), **LIVELY)).eval()


def train_on_a_batch(model: MaskedLM, family: str) -> None:
    batch = some_batch(family, Layout(family not in PACKED))
    model.train()
    model.lm_losses(batch, batch.mask_positions, torch.arange(len(batch))).sum().backward()
    model.eval()


@torch.inference_mode()
def score_a_batch(model: MaskedLM, family: str) -> None:
    model.label_scores(some_batch(family, Layout(family not in PACKED)), WORDS)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["roberta", "deberta-v2"])
@pytest.mark.parametrize("first", [train_on_a_batch, score_a_batch], ids=["training first", "scoring first"])
def test_what_is_compiled_is_fitted_to_the_same_numbers_whatever_comes_first(fitted, family, first):
    padded = family not in PACKED
    model = computing_copy(cloze_of(family), RUNTIME)
    warm_up(model, padded, training=True)
    before = list(fitted)
    assert before == [sorted(INVENTED[padded])] * 2
    first(model, family)
    train_on_a_batch(model, family)
    score_a_batch(model, family)
    assert fitted == before


def test_no_stage_of_a_run_shows_compiled_layers_a_real_batch_first(compiles, monkeypatch, tmp_path):
    """Of each model (members, student, baseline, the probe's) in each way that it is asked."""
    first: dict[tuple[object, ...], int] = {}

    def note(layer: torch.nn.Module, given: tuple[torch.Tensor], named: dict[str, Any]) -> None:
        way = (layer, layer.training, torch.is_inference_mode_enabled(), named.get("reads") is None)
        first.setdefault(way, given[0].shape[:-1].numel())

    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, dynamic: self.register_forward_pre_hook(note, with_kwargs=True)
    )
    changes = {"patterns": [0], "repetitions": 1}
    ground = lay_ground(tmp_path / "ground", lively_model(tmp_path), finetune=changes)
    pet_run(ground, tmp_path / "store")
    ways = [way[1:] for way in first]
    assert ways.count((True, False, False)) == 3, "members, student and baseline are trained"
    assert ways.count((False, True, True)) == 1, "features of the probe"
    assert set(first.values()) == {ROWS * WIDTH}


def passes_of(lm: torch.nn.Module) -> list[int]:
    """Fills with the number of tokens of each forward pass."""
    found: list[int] = []
    hook = lambda module, inputs, named: found.append(named["input_ids"].numel())  # noqa: E731
    lm.base_model.register_forward_pre_hook(hook, with_kwargs=True)
    return found


def test_the_invented_batch_runs_when_it_is_asked_for_and_never_in_a_forward_pass(compiles):
    model = cloze_of("bert")
    passes = passes_of(model.lm)
    assert computing_copy(model, RUNTIME) is model
    assert passes == [ROWS * WIDTH], "to score"
    warm_up(model, padded=False, training=True)
    assert passes == [ROWS * WIDTH] * 2
    train_on_a_batch(model, "bert")
    score_a_batch(model, "bert")
    tokens = len(some_batch("bert", Layout(False)).input_ids)
    assert passes == [ROWS * WIDTH] * 2 + [tokens] * 2


@pytest.mark.parametrize("make", ["cloze", "classifier"])
def test_to_warm_up_changes_no_random_number_no_gradient_and_no_mode(compiles, make):
    tokenizer = TOKENIZERS["wordpiece"]()
    model = cloze_of("bert") if make == "cloze" else ClassifierModel(tiny_classifier("bert", tokenizer, **LIVELY))
    torch.manual_seed(0)
    expected = torch.get_rng_state()
    for mode in (True, False):
        model.lm.train(mode)
        modes = [one.training for one in model.modules()]
        assert computing_copy(model, RUNTIME) is model
        warm_up(model, padded=False, training=True)
        assert [one.training for one in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), expected)
    assert all(one.grad is None for one in model.parameters())


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("family", ["bert", "deberta-v2", "electra"])
def test_invented_losses_are_of_the_vocabulary_precision_and_bias_of_real_ones(family, dtype):
    """Else they would be compiled anew, for the first batch that comes."""
    model = computing_copy(cloze_of(family), dataclasses.replace(RUNTIME, dtype=dtype))
    seen: list[tuple[object, ...]] = []

    def watched(products: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor) -> torch.Tensor:
        seen.append((len(products), products.dtype, bias is None, products.requires_grad))
        return token_losses(products, bias, targets)

    model.token_losses, model.compiled = watched, True
    warm_up_losses(model)
    train_on_a_batch(model, family)
    assert seen[0] == seen[1]


@pytest.mark.parametrize("alike", [True, False])
def test_nothing_invented_runs_where_nothing_is_compiled_for_any_number_of_tokens(alike, request):
    if alike:
        request.getfixturevalue("compiles")
    model = cloze_of("bert")
    passes = passes_of(model.lm)
    warm_up(computing_copy(model, RUNTIME, alike=alike), padded=False, training=True)
    assert passes == []
