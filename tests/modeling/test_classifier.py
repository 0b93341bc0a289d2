"""A classifier asked in batches of rows end to end gives the logits, features and gradients of the whole transformers
model asked row by row, for every family."""

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
)
from support.tiny import FAMILIES, TOKENIZERS, tiny_classifier

from pet.modeling import families
from pet.modeling.batch import Batch, Layout
from pet.modeling.classifier import ClassifierModel

END_TO_END = {"end to end": Layout(False), "filled up": FILLED}
PADDED = {"padded": Layout(True, width_multiple=8)}
CASES = [(family, name) for family in PACKED for name in (*END_TO_END, *PADDED)]
CASES += [(family, "padded") for family in (*FAMILIES, *OTHERS) if family not in PACKED]
HEADS = tuple(name for name, one in families.FAMILIES.items() if one.classifier_head is not None)
TARGETS = torch.tensor([0, 2, 1, 1, 0, 2, 2])


def pair_of(family: str, **more: object) -> tuple[ClassifierModel, torch.nn.Module]:
    """A classifier, and the same transformers model, untouched."""
    mine, untouched = (tiny_classifier(family, TOKENIZERS[kind(family)](), **{**LIVELY, **more}) for _ in range(2))
    return ClassifierModel(mine), untouched


def batch_of(family: str, layout: str) -> Batch:
    return some_batch(family, {**END_TO_END, **PADDED}[layout])


def logits_alone(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """[B, L] as a user of transformers would compute them."""
    return torch.cat([model(**inputs).logits for inputs, _ in alone(batch)])


def features_alone(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """[B, H]: the mean of each row's last hidden states, at unit length, in float64."""
    means = [model.base_model(**inputs).last_hidden_state[0].double().mean(0) for inputs, _ in alone(batch)]
    return torch.stack([mean / mean.norm() for mean in means])


def test_heads_are_known_of_the_families_that_are_read_end_to_end():
    """The others are asked as a whole, which needs padded rows."""
    assert set(HEADS) == set(PACKED)
    for family in (*FAMILIES, *OTHERS):
        assert pair_of(family)[0].shortcut == (family in HEADS)


@pytest.mark.parametrize(("family", "layout"), CASES)
def test_logits_are_those_of_the_whole_model_asked_row_by_row(family, layout):
    mine, untouched = pair_of(family)
    batch = batch_of(family, layout)
    with torch.no_grad():
        found, expected = mine.logits(batch), logits_alone(untouched, batch)
    assert found.shape == (7, 3)
    assert expected.std(0).min() > 0.1, "rows differ"
    assert_near(found, expected)


@pytest.mark.parametrize(("family", "layout"), CASES)
def test_features_are_the_mean_of_each_row_s_last_hidden_states_at_unit_length(family, layout):
    mine, untouched = pair_of(family)
    batch = batch_of(family, layout)
    with torch.no_grad():
        found, expected = mine.features(batch), features_alone(untouched, batch)
    assert found.dtype == torch.float32
    assert found.shape == (7, 32)
    assert expected.std(0).min() > 0.01, "rows differ"
    assert_near(found.double(), expected)


@pytest.mark.parametrize(("family", "layout"), CASES)
def test_every_parameter_gets_the_gradient_of_the_whole_model(family, layout):
    mine, untouched = pair_of(family)
    batch = batch_of(family, layout)
    loss = torch.nn.functional.cross_entropy
    found = gradients(mine.lm, loss(mine.logits(batch), TARGETS))
    assert all(one.isfinite().all() for one in found.values())
    assert_same_gradients(found, gradients(untouched, loss(logits_alone(untouched, batch), TARGETS)))


@pytest.mark.parametrize("family", HEADS)
def test_the_head_s_dropout_is_the_whole_model_s(family):
    """The same values are dropped if the seed is the same, and there is no other dropout."""
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    rates["classifier_dropout_prob" if family == "albert" else "classifier_dropout"] = 0.5
    mine, untouched = pair_of(family, **rates)
    batch, padded = batch_of(family, "end to end"), batch_of(family, "padded")
    mine.train()
    untouched.train()
    inputs = {"input_ids": padded.input_ids, "attention_mask": padded.attention_mask}
    if padded.token_type_ids is not None:
        inputs["token_type_ids"] = padded.token_type_ids
    shaped = {name: one.view(len(padded), padded.width) for name, one in inputs.items()}
    with torch.no_grad():
        torch.manual_seed(0)
        found = mine.logits(batch)
        torch.manual_seed(0)
        expected = untouched(**shaped).logits
        assert_near(found, expected)
        assert not torch.allclose(mine.eval().logits(batch), found, atol=1e-3)


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_its_parameters_and_its_mode_are_the_transformers_model_s(family):
    mine, _ = pair_of(family)
    assert {id(one) for one in mine.parameters()} == {id(one) for one in mine.lm.parameters()}
    assert mine.train().lm.training
    assert not mine.eval().lm.training


@pytest.mark.parametrize("family", HEADS)
def test_a_body_in_lower_precision_may_have_a_head_in_full(family):
    """As a scoring copy on a GPU has it."""
    mine, untouched = pair_of(family)
    mine.lm.base_model.to(torch.bfloat16)
    batch = batch_of(family, "end to end")
    with torch.no_grad():
        logits, features = mine.logits(batch), mine.features(batch)
        assert (logits.dtype, features.dtype) == (torch.float32, torch.float32)
        assert_near(logits, logits_alone(untouched, batch), 0.05)
        assert_near(features.double(), features_alone(untouched, batch), 0.05)
