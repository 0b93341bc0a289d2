"""`pet merge`: a member that is an adapter, as a checkpoint that gives its scores; and what is refused."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from support.rows import (
    LABELS,
    PATTERNS,
    Finished,
    files_of,
    find_one,
    lay_ground,
    lively_model,
    pet,
    pet_run,
    read_json,
    save_lively,
    snapshot,
)
from transformers import AutoModelForMaskedLM, AutoTokenizer

from pet.tasks.texts import read_texts

pytestmark = pytest.mark.slow

SCORES = "scores.safetensors"
CHECKPOINT = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
LORA = ["--set", "finetune.method=lora", "--set", "finetune.repetitions=1", "--set", "finetune.steps=4"]
LORA += ["--set", "finetune.lora.learning_rate=0.02"]
"""A rate at which four steps move scores far."""


def make_members(base, model) -> Finished:
    """A run up to its members."""
    ground = lay_ground(base / "ground", model)
    pet_run(ground, base / "store", "--stage", "prepare", *LORA)
    return Finished(ground, base / "store", pet_run(ground, base / "store", "--stage", "finetune", *LORA))


@pytest.fixture(scope="module")
def lora(tmp_path_factory) -> Finished:
    """Two members that are adapters on a model of 300 positions; never write into it."""
    base = tmp_path_factory.mktemp("lora")
    return make_members(base, save_lively(base / "wide", max_position_embeddings=300))


@pytest.fixture
def member(lora, tmp_path):
    """A copy of a member, to be spoiled."""
    shutil.copytree(lora.one("finetune", "p1-r0"), tmp_path / "member")
    return tmp_path / "member"


def ask(model, pattern, texts):
    """Scores [N, L] as a user of transformers would compute them."""
    lm, tokenizer = AutoModelForMaskedLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    words = tokenizer.convert_tokens_to_ids(LABELS)
    found = []
    for headline, body in zip(texts.fields["headline"], texts.fields["body"], strict=True):
        segments = pattern.format(mask="[MASK]", headline=headline, body=body).split(" || ")
        inputs = tokenizer(*segments, return_tensors="pt")
        place = inputs["input_ids"][0].tolist().index(tokenizer.mask_token_id)
        with torch.inference_mode():
            found.append(lm(**inputs).logits[0, place, words].numpy())
    return np.stack(found)


def near(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


# ---- what is written -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["", "adapter"])
@pytest.mark.parametrize("number", [0, 1])
def test_a_merged_member_loads_in_transformers_and_gives_the_member_s_scores(lora, tmp_path, number, part):
    """Named by the member's folder or by the adapter in it."""
    folder, out = lora.one("finetune", f"p{number}-r0"), tmp_path / "merged"
    before = snapshot(lora.store)
    result = pet("merge", folder / part, out)
    assert result.stdout.startswith(f"{out}: ")
    assert "answers as before" in result.stdout
    assert "\r" not in result.output
    assert files_of(tmp_path) == {f"merged/{name}" for name in CHECKPOINT}
    texts = read_texts(find_one(lora.store, "prepare") / "test.parquet")
    expected = load_file(folder / SCORES)["test"]
    near(ask(out, PATTERNS[number], texts), expected)
    untuned = load_file(lora.one("finetune", f"p{number}-untuned") / SCORES)["test"]
    assert np.abs(untuned - expected).max() > 0.1 * np.abs(untuned).max()
    assert snapshot(lora.store) == before


def test_only_the_weights_of_the_adapted_maps_change(lora, tmp_path):
    folder = lora.one("finetune", "p0-r0")
    pet("merge", folder, tmp_path / "merged")
    config = read_json(folder / "adapter" / "adapter_config.json")
    before = load_file(Path(config["base_model_name_or_path"]) / "model.safetensors")
    after = load_file(tmp_path / "merged" / "model.safetensors")
    assert set(after) == set(before)
    assert {array.dtype for array in after.values()} == {np.dtype(np.float32)}
    changed = {name.removesuffix(".weight") for name in after if not np.array_equal(before[name], after[name])}
    assert changed == set(config["target_modules"])


def test_a_merged_member_can_be_named_as_the_model_of_a_run(lora, tmp_path):
    """Asked untuned, it answers like the member."""
    pet("merge", lora.one("finetune", "p0-r0"), tmp_path / "merged")
    options = ["--model", tmp_path / "merged", "--set", "finetune.patterns=[0]", *LORA]
    for stage in ("prepare", "finetune"):
        pet_run(lora.ground, tmp_path / "store", "--stage", stage, *options)
    found = load_file(find_one(tmp_path / "store", "finetune", "p0-untuned") / SCORES)
    near(found["test"], load_file(lora.one("finetune", "p0-r0") / SCORES)["test"])


def test_a_member_on_a_model_that_was_adapted_to_the_pool_is_merged_with_that_one_only(tmp_path, tmp_path_factory):
    adapt = {"enabled": True, "steps": 3, "length": 16, "blocks": 2, "held_out": 0.2}
    ground = lay_ground(tmp_path / "ground", lively_model(tmp_path_factory.getbasetemp()), adapt=adapt)
    store = tmp_path / "store"
    for stage in ("prepare", "adapt", "finetune"):
        pet_run(ground, store, "--stage", stage, *LORA)
    member = find_one(store, "finetune", "p0-r0")
    pet("merge", member, tmp_path / "merged")
    texts = read_texts(find_one(store, "prepare") / "test.parquet")
    near(ask(tmp_path / "merged", PATTERNS[0], texts), load_file(member / SCORES)["test"])
    adapted = find_one(store, "adapt")
    other = adapted.with_name(f"{adapted.name[:-1]}{'0' if adapted.name[-1] != '0' else '1'}")
    adapted.rename(other)
    config = read_json(member / "adapter" / "adapter_config.json") | {"base_model_name_or_path": str(other / "model")}
    (member / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    refused = pet("merge", member, tmp_path / "other", code=2)
    assert "are not those that" in refused.stderr


def test_folders_above_are_made(lora, tmp_path):
    pet("merge", lora.one("finetune", "p0-r0"), tmp_path / "one" / "two" / "merged")
    assert files_of(tmp_path) == {f"one/two/merged/{name}" for name in CHECKPOINT}


def test_a_model_that_reads_less_than_the_default_length_is_merged(tmp_path, tmp_path_factory):
    made = make_members(tmp_path / "made", lively_model(tmp_path_factory.getbasetemp()))
    pet("merge", made.one("finetune", "p0-r0"), tmp_path / "merged")
    assert files_of(tmp_path / "merged") == CHECKPOINT
    modes = {path.stat().st_mode & 0o044 for path in (tmp_path / "merged").iterdir()}
    assert len(modes) == 1, "whoever may read one file may read all"


def test_a_member_of_a_model_named_by_a_relative_path_is_merged_from_any_folder(tmp_path, monkeypatch):
    (tmp_path / "at" / "home").mkdir(parents=True)
    save_lively(tmp_path / "at" / "home" / "wide")
    monkeypatch.chdir(tmp_path / "at")
    made = make_members(tmp_path / "made", "home/wide")
    monkeypatch.chdir(tmp_path)
    pet("merge", made.one("finetune", "p0-r0"), tmp_path / "merged")
    assert files_of(tmp_path / "merged") == CHECKPOINT


# ---- what is refused -----------------------------------------------------------------------------------------------


def refuse(*arguments):
    """The sentence with which `pet merge` refuses."""
    result = pet("merge", *arguments, code=2)
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr.removeprefix("Error: ").strip()


def test_an_existing_out_is_refused_and_stays_as_it_is(lora, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    before = snapshot(tmp_path)
    for name in ("folder", "file"):
        sentence = refuse(lora.one("finetune", "p0-r0"), tmp_path / name)
        assert sentence == f"{tmp_path / name} exists already; name a new folder, or remove it"
    assert snapshot(tmp_path) == before


def test_a_member_is_not_written_into(member):
    before = snapshot(member)
    assert "lies in the member itself" in refuse(member, member / "deep" / "merged")
    assert snapshot(member) == before


def test_what_is_no_adapter_is_refused(done, lora, tmp_path):
    """A full member, an untuned pattern, another artifact, nothing at all."""
    (tmp_path / "empty").mkdir()
    wrong = [done.one("finetune", "p0-r0"), done.one("finetune", "p0-r0") / "model", lora.one("finetune", "p0-untuned")]
    for folder in (*wrong, done.one("label"), tmp_path / "empty", lora.ground.card):
        sentence = refuse(folder, tmp_path / "merged")
        assert sentence.startswith(
            f"{folder} holds no LoRA adapter (adapter_config.json and adapter_model.safetensors)"
        )
    nothing = tmp_path / "nothing"
    expected = f"there is no folder {nothing}; give a member made with finetune.method=lora"
    assert refuse(nothing, tmp_path / "merged") == expected
    assert files_of(tmp_path) == set()
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def change_weights(member, change):
    path = member / "adapter" / "adapter_model.safetensors"
    save_file({name: change(name, array) for name, array in load_file(path).items()}, path)


def change_config(member, **changes):
    path = member / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(read_json(path) | changes))


def test_an_adapter_that_was_never_trained_is_refused(member, tmp_path):
    change_weights(member, lambda name, array: np.zeros_like(array) if "lora_B" in name else array)
    assert "the adapter changes no weight; it was never trained" in refuse(member, tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["member"]


def test_an_adapter_of_another_model_is_refused(member, tmp_path):
    other = save_lively(tmp_path / "other", max_position_embeddings=300, hidden_size=16)
    change_config(member, base_model_name_or_path=str(other))
    sentence = refuse(member, tmp_path / "merged")
    assert f"adapter does not fit the model '{other}' (" in sentence
    assert sentence.endswith("; it was made for another one")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["member", "other"]


def test_another_peft_type_is_refused(member, tmp_path):
    change_config(member, peft_type="IA3")
    assert "holds no LoRA adapter" in refuse(member, tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["member"]


def test_a_model_that_is_gone_is_named(member, tmp_path):
    change_config(member, base_model_name_or_path=str(tmp_path / "gone"))
    assert f"model '{tmp_path / 'gone'}': there is no such folder" in refuse(member, tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["member"]


@pytest.mark.parametrize("problem", [KeyboardInterrupt, RuntimeError("a mistake of ours")], ids=["Ctrl-C", "mistake"])
@pytest.mark.parametrize("half", ["model", "tokenizer"])
def test_nothing_is_left_where_writing_was_cut_short(lora, tmp_path, monkeypatch, problem, half):
    kind = transformers.PreTrainedModel if half == "model" else transformers.PreTrainedTokenizerBase
    save = kind.save_pretrained

    def save_half(self, folder, **more):
        save(self, folder, **more)
        assert list(tmp_path.iterdir()) != [], "it has begun"
        assert not (tmp_path / "merged").exists(), "it is not there before it is whole"
        raise problem

    monkeypatch.setattr(kind, "save_pretrained", save_half)
    command = ("merge", lora.one("finetune", "p0-r0"), tmp_path / "merged")
    if problem is KeyboardInterrupt:
        assert "Traceback" not in pet(*command, code=130).output
    else:
        with pytest.raises(RuntimeError, match="a mistake of ours"):
            pet(*command)
    assert list(tmp_path.iterdir()) == []


def test_an_out_that_cannot_be_written_is_refused(lora, tmp_path):
    """A file stands where its folder should be (root may write anywhere else)."""
    (tmp_path / "file").write_text("mine")
    assert str(tmp_path / "file") in refuse(lora.one("finetune", "p0-r0"), tmp_path / "file" / "merged")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_is_said_in_one_sentence_and_nothing_is_left(lora, tmp_path, monkeypatch):
    """As safetensors says it."""
    save = transformers.PreTrainedModel.save_pretrained

    def save_half(self, folder, **more):
        save(self, folder, **more)
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", save_half)
    assert "No space left on device" in refuse(lora.one("finetune", "p0-r0"), tmp_path / "new" / "merged")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["weights", "half the weights", "no JSON object", "no base model"])
def test_a_damaged_adapter_is_refused(member, tmp_path, damage):
    config, weights = (member / "adapter" / name for name in ("adapter_config.json", "adapter_model.safetensors"))
    values = read_json(config)
    if damage == "weights":
        weights.write_bytes(b"no tensors")
    elif damage == "half the weights":
        save_file({name: array for name, array in load_file(weights).items() if "lora_A" in name}, weights)
    elif damage == "no JSON object":
        config.write_text("[]")
    else:
        del values["base_model_name_or_path"]
        config.write_text(json.dumps(values))
    assert str(member) in refuse(member, tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["member"]


def test_weights_other_than_those_the_member_was_trained_on_are_refused(tmp_path, tmp_path_factory):
    """A base model of the same shape in the same place, which no check of shapes or answers can tell."""
    base = tmp_path / "base"
    shutil.copytree(lively_model(tmp_path_factory.getbasetemp()), base)
    made = make_members(tmp_path / "made", base)
    member = made.one("finetune", "p0-r0")
    weights = load_file(base / "model.safetensors")
    save_file({name: one + 0.01 for name, one in weights.items()}, base / "model.safetensors", {"format": "pt"})
    said = refuse(member, tmp_path / "merged")
    assert f"the weights of {str(base)!r} are not those that {member} was trained on" in said


# ---- help ----------------------------------------------------------------------------------------------------------


def test_the_help_shows_an_example():
    text = pet("merge", "--help").stdout
    assert "MEMBER OUT" in text
    assert re.search(r"Example:\n +pet merge runs/finetune/\S+ merged\n", text), text
    assert "merge" in pet("--help").stdout


@pytest.mark.parametrize("arguments", [[], ["only-a-member"], ["one", "two", "three"]])
def test_a_missing_or_further_argument_is_refused(arguments):
    result = pet("merge", *arguments, code=2)
    assert "Usage: " in result.stderr
