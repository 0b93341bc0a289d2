"""A family is one entry: a toy one, made known here alone, takes every way that BERT takes. One without an entry is
computed in full, with the same answers."""

import ast
import copy
import dataclasses
import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from support.plain import FILLED, LIVELY, alone, assert_near, assert_same_gradients, gradients, some_batch
from support.rows import Ground, find_all, find_one, lay_ground, pet_run
from support.tiny import KIND_OF, TOKENIZERS, random_model, tiny_model, wordpiece_tokenizer
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    BertPreTrainedModel,
)
from transformers.modeling_outputs import MaskedLMOutput, SequenceClassifierOutput

from pet.config.schema import ModelSettings
from pet.errors import SettingsError
from pet.modeling import families, packing
from pet.modeling.backbones import MaskedLM
from pet.modeling.batch import Batch, Layout
from pet.modeling.classifier import ClassifierModel
from pet.modeling.families import FAMILIES, Family, family_of, register
from pet.modeling.loading import check_length, layers_of
from pet.modeling.lora import find_targets

# ---- a toy family: BERT's body, and heads like nobody else's -------------------------------------------------------


class ToyConfig(BertConfig):
    model_type = "toy"


class ToyModel(BertModel):
    config_class = ToyConfig


class WithHead(BertPreTrainedModel):
    """What both heads sit on: a body under a name of its own."""

    config_class = ToyConfig
    base_model_prefix = "body"

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.body = ToyModel(config, add_pooling_layer=False)


class ToyForMaskedLM(WithHead):
    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.turn = nn.Linear(config.hidden_size, config.hidden_size)
        self.say = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def forward(self, input_ids: torch.Tensor, **inputs: Any) -> MaskedLMOutput:
        return MaskedLMOutput(logits=self.say(self.turn(self.body(input_ids, **inputs).last_hidden_state).sin()))


class ToyForSequenceClassification(WithHead):
    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.judge = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, input_ids: torch.Tensor, **inputs: Any) -> SequenceClassifierOutput:
        first = self.body(input_ids, **inputs).last_hidden_state[:, 0]
        return SequenceClassifierOutput(logits=self.judge(first.cos()))


AutoConfig.register("toy", ToyConfig)
AutoModel.register(ToyConfig, ToyModel)
AutoModelForMaskedLM.register(ToyConfig, ToyForMaskedLM)
AutoModelForSequenceClassification.register(ToyConfig, ToyForSequenceClassification)

TOY = Family(
    "toy",
    lm_head=lambda lm: (lambda hidden: lm.turn(hidden).sin(), lm.say.weight, lm.say.bias),
    classifier_head=lambda model, first: model.judge(first.to(model.judge.weight.dtype).cos()),
    packs=True,
    read_layer=families.ReadLayer,
    lora_targets=("key", "value"),
)


STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
"""Dropout of padded rows draws other numbers than that of rows end to end."""


@contextmanager
def with_entry(entry: Family) -> Iterator[None]:
    """The family is known inside."""
    register(entry)
    try:
        yield
    finally:
        del FAMILIES[entry.model_type]


@pytest.fixture(params=["known", "unknown"])
def known(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether the toy family has an entry while the test runs."""
    with with_entry(TOY) if request.param == "known" else nullcontext():
        yield request.param == "known"


def tiny_toy(auto: type, **more: object) -> Any:
    return random_model(auto, "toy", wordpiece_tokenizer(), 0, **LIVELY, **STILL, **more)


def batch_of(known: bool) -> Batch:
    return some_batch("bert", FILLED if known else Layout(True, width_multiple=8))


# ---- what an entry does --------------------------------------------------------------------------------------------


def test_an_entry_opens_the_fast_path_and_answers_and_gradients_stay_the_same(known):
    mine, untouched = (tiny_toy(AutoModelForMaskedLM) for _ in range(2))
    cloze, batch = MaskedLM(mine), batch_of(known)
    assert cloze.shortcut == packing.is_packed(cloze.lm) == known
    seen: list[int] = []
    layers_of(cloze.lm)[-1].intermediate.register_forward_hook(
        lambda module, inputs, output: seen.append(inputs[0].shape[:-1].numel())
    )
    words = torch.arange(20, 30)
    found = cloze.word_logits(cloze.states_at(batch, batch.mask_positions, most=1), words)
    assert seen == [len(batch) if known else len(batch.input_ids)], "tokens that the last layer computes"
    rows = zip(alone(batch), batch.mask_positions, strict=True)
    logits = [untouched(**inputs).logits[0, tokens == mask][0, words] for (inputs, tokens), mask in rows]
    expected = torch.stack(logits)
    assert_near(found.detach(), expected.detach())
    assert_same_gradients(gradients(cloze.lm, found.square().sum()), gradients(untouched, expected.square().sum()))


def test_an_entry_takes_the_classifier_apart_and_answers_and_gradients_stay_the_same(known):
    mine, untouched = (tiny_toy(AutoModelForSequenceClassification, num_labels=3) for _ in range(2))
    classifier, batch = ClassifierModel(mine), batch_of(known)
    assert classifier.shortcut == packing.is_packed(mine) == known
    found, expected = classifier.logits(batch), torch.cat([untouched(**inputs).logits for inputs, _ in alone(batch)])
    assert_near(found.detach(), expected.detach())
    assert_same_gradients(gradients(mine, found.square().sum()), gradients(untouched, expected.square().sum()))


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """The small task, on a toy model."""
    folder = tmp_path_factory.mktemp("toy")
    tiny_toy(AutoModelForMaskedLM).save_pretrained(folder / "toy")
    wordpiece_tokenizer().save_pretrained(folder / "toy")
    training = {"repetitions": 1, "patterns": [0], "adam_epsilon": 1e-3}
    student = {"adam_epsilon": 1e-3}
    return lay_ground(folder, folder / "toy", finetune=training, distill=student, baseline=student)


def assert_same_scores(one: Path, other: Path, *stages: str) -> None:
    """Artifacts of the same names with nearly the same scores."""
    for stage in stages:
        folders = find_all(one, stage)
        assert folders
        assert [folder.name for folder in folders] == [folder.name for folder in find_all(other, stage)]
        for mine, theirs in zip(folders, find_all(other, stage), strict=True):
            scores, expected = (load_file(folder / "scores.safetensors") for folder in (mine, theirs))
            assert set(scores) == set(expected)
            for name, values in expected.items():
                np.testing.assert_allclose(scores[name], values, rtol=0, atol=1e-4 * np.abs(values).max())


def test_a_whole_run_makes_the_same_with_an_entry_and_without(ground, tmp_path):
    """Members, student and baseline; the entry is in no identity."""
    with with_entry(TOY):
        said = pet_run(ground, tmp_path / "known").stderr
    assert "is not known to pet" not in said
    said = pet_run(ground, tmp_path / "unknown").stderr
    assert "model family 'toy' is not known to pet; taking full vocabulary logits (slower)" in said
    assert_same_scores(tmp_path / "known", tmp_path / "unknown", "finetune", "distill", "baseline")


def test_adapters_go_where_the_entry_says(ground, tmp_path):
    """Without an entry, settings must name the maps; the same maps give the same members."""
    lora = ("--set", "finetune.method=lora")

    def finetune(store: str, *more: str) -> None:
        for stage in ("prepare", "finetune"):
            pet_run(ground, tmp_path / store, "--stage", stage, *lora, *more)

    with with_entry(TOY):
        finetune("known")
    written = load_file(find_one(tmp_path / "known", "finetune", "p0-r0") / "adapter" / "adapter_model.safetensors")
    assert {name.removesuffix(".weight").split(".")[-2] for name in written} == {"key", "value"}
    said = pet_run(ground, tmp_path / "unnamed", *lora, code=2).output
    assert "the toy model has no such linear maps; name some of dense, key, query, value" in said
    finetune("unknown", "--set", "finetune.lora.targets=[key,value]")
    mine, theirs = (
        load_file(find_one(tmp_path / store, "finetune", "p0-r0") / "scores.safetensors")["test"]
        for store in ("known", "unknown")
    )
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


def test_positions_are_numbered_as_the_entry_says():
    """So are those that are given to the model and those that there are for a text."""
    config = ToyConfig(max_position_embeddings=40, pad_token_id=3)
    settings = ModelSettings(name="any", max_length=37)
    check_length(settings, config)
    with with_entry(dataclasses.replace(TOY, positions_follow_padding=True)):
        with pytest.raises(SettingsError, match="max_length 37 is more than the 36 tokens"):
            check_length(settings, config)
        lm = tiny_toy(AutoModelForMaskedLM, pad_token_id=3)
        batch = some_batch("bert", Layout(False))
        assert packing.install(lm)
        assert torch.equal(packing.inputs_of(lm, batch)["position_ids"][0], batch.places + 4)


def test_maps_that_read_a_table_of_positions_get_no_adapter():
    with with_entry(dataclasses.replace(TOY, positional_maps=("key",))):
        find_targets(tiny_toy(AutoModelForMaskedLM), None, 0)
        with pytest.raises(SettingsError, match="in this toy model query and key maps also read a table of positions"):
            find_targets(tiny_toy(AutoModelForMaskedLM, share_att_key=True), None, 0)


# ---- the registry --------------------------------------------------------------------------------------------------


def test_a_family_without_an_entry_gets_the_defaults_by_its_own_name():
    found = family_of(SimpleNamespace(model_type="unheard-of"))
    assert found == Family("unheard-of")
    assert (found.lm_head, found.classifier_head, found.packs, found.lora_targets) == (None, None, False, ())
    assert found.first_position(SimpleNamespace(pad_token_id=1)) == 0
    assert not found.has_known_bias(SimpleNamespace())


def test_a_model_and_its_configuration_are_of_one_family():
    lm = tiny_model("roberta", TOKENIZERS["byte-bpe"]())
    assert family_of(lm) is family_of(lm.config) is FAMILIES["roberta"]


def test_every_entry_stands_under_its_own_name_and_cannot_be_changed():
    for name, one in FAMILIES.items():
        assert one.model_type == name
        with pytest.raises(dataclasses.FrozenInstanceError):
            one.packs = True


def test_every_fact_of_a_family_says_what_it_is():
    """A line of documentation under each field: they are what an author of an entry reads."""
    body = ast.parse(inspect.getsource(Family)).body[0].body
    fields = [(one.target.id, below) for one, below in pairwise(body) if isinstance(one, ast.AnnAssign)]
    assert [name for name, _ in fields] == [one.name for one in dataclasses.fields(Family)]
    assert all(isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) for _, below in fields)


def test_nothing_else_decides_by_a_model_s_type():
    """So that what a family is stays in one place. Messages may name it."""
    here = Path(families.__file__)
    for path in set(here.parents[1].rglob("*.py")) - {here}:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            looks_up = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get"
            if isinstance(node, ast.Compare | ast.Subscript) or looks_up:
                asked = [one for one in ast.walk(node) if isinstance(one, ast.Attribute) and one.attr == "model_type"]
                assert not asked, f"{path.name}: {ast.unparse(node)}"


# ---- the last layer ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [name for name, one in FAMILIES.items() if one.read_layer is not None])
def test_the_last_layer_is_another_one_with_the_same_parts_under_the_same_names(family):
    lm = tiny_model(family, TOKENIZERS[KIND_OF[family]]()).train()
    before, names, given = layers_of(lm)[-1], list(lm.state_dict()), dict(lm.named_parameters())
    kind = type(before)
    before.intermediate.dense.weight.requires_grad_(False)
    packing.install(lm)
    after = layers_of(lm)[-1]
    assert type(before) is kind, "who holds the old one still has it"
    assert after is not before
    assert isinstance(after, families.ReadLayer)
    assert isinstance(after, kind)
    assert after.training
    assert list(lm.state_dict()) == names
    assert all(one is given[name] for name, one in lm.named_parameters())
    assert not after.intermediate.dense.weight.requires_grad
    assert type(copy.deepcopy(lm).base_model.encoder.layer[-1]) is type(after), "torch.compile: one class, one program"
    lm.base_model.to(torch.bfloat16)
    assert {one.dtype for one in after.parameters()} == {torch.bfloat16}
