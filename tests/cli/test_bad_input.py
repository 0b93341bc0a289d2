"""What people get wrong: exit code 2, one sentence that says what to do, and a store without anything half-written."""

import shutil
from pathlib import Path

import pytest
import transformers
import yaml
from support.rows import Ground, digest, find_all, find_one, garble, hidden_in, is_kept, pet, pet_run, snapshot
from support.tiny import TOKENIZERS, tiny_config, wordpiece_tokenizer

from pet.config.schema import Settings


@pytest.fixture
def ground(done, tmp_path):
    """The small task, to be spoiled."""
    folder = tmp_path / "ground"
    shutil.copytree(done.ground.folder, folder)
    pipeline = folder / "pipeline.yaml"
    pipeline.write_text(pipeline.read_text().replace(str(done.ground.folder), str(folder)))
    return Ground(folder)


def refuse(ground, *arguments, store=None):
    """The sentence that `pet run` refuses its input with."""
    store = store or ground.folder.parent / "store"
    before = {str(one) for one in find_all(store, "*")}
    result = pet_run(ground, store, *arguments, code=2)
    assert "Traceback" not in result.output
    assert result.stderr.count("Error: ") == 1
    sentence = result.stderr.split("Error: ")[1]
    assert sentence.count("\n") == 1, sentence
    assert sentence.endswith("\n")
    assert result.stdout == ""
    assert_whole(store)
    assert before <= {str(one) for one in find_all(store, "*")}
    return sentence.strip()


def assert_whole(store):
    """No draft, and no artifact without a manifest."""
    if store.is_dir():
        assert not hidden_in(store)
        for stage in filter(is_kept, store.iterdir()):
            whole = [(folder / "manifest.json").is_file() for folder in stage.iterdir()]
            assert all(whole) or stage.name == "logs", stage


def check(sentence, *words):
    for word in words:
        assert word in sentence, sentence


# ---- names and settings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--task", "agnws"], ["unknown task 'agnws'", "did you mean 'agnews'?"]),
        (["--task", "zzz"], ["unknown task 'zzz'", "agnews, bbc", "the path of a YAML file"]),
        (["--stage", "train"], ["'train' is not one of", "'finetune'"]),
        (["--set", "finetune.stepz=3"], ["unknown setting 'finetune.stepz'", "did you mean 'finetune.steps'?"]),
        (["--set", "fintune.steps=3"], ["unknown setting 'fintune'", "finetune"]),
        (["--set", "recipe=papper"], ["unknown recipe 'papper'", "fixed, paper"]),
        (["--set", "finetune.steps"], ["expected NAME=VALUE", "--set finetune.steps=100"]),
        (["--set", "=3"], ["expected NAME=VALUE"]),
        (["--set", "finetune.steps=many"], ["finetune.steps", "'many'"]),
        (["--set", "finetune.steps=0"], ["finetune.steps", "greater than or equal to 1", "0"]),
        (["--set", "finetune.patterns=[0"], ["finetune.patterns", "is not a YAML value"]),
        (["--set", "finetune.lora.targets=[]"], ["finetune.lora.targets", "at least 1 item"]),
        (["--set", "finetune.alpha=1"], ["finetune.alpha", "less than 1"]),
        (["--set", "finetune.patterns=[2]"], ["finetune.patterns [2]", "'topics' has patterns 0 to 1"]),
        (["--set", "finetune.patterns=[]"], ["finetune.patterns []", "name at least one"]),
        (["--set", "finetune.patterns=[1, 1]"], ["finetune.patterns [1, 1]", "each once"]),
        (["--set", "finetune.patterns=[-1]"], ["finetune.patterns.0", "greater than or equal to 0"]),
        (["--seed", "1", "--seed", "2", "--seed", "1"], ["--seed got 1, 2, 1", "each seed once"]),
        (["--seed", "-1"], ["seed", "greater than or equal to 0"]),
        (["--seed", "one"], ["'one' is not a valid integer"]),
        (["--train-examples", "-1"], ["data.train_examples", "greater than or equal to 0", "-1"]),
        (["--train-examples", "ten"], ["'ten' is not a valid integer"]),
        (["--device", "cuda:99"], ["device 'cuda:99' is not to be had here", "--device auto", "cpu"]),
        (["--device", "gpu"], ["device 'gpu' is not to be had here"]),
        (["--precision", "fp16"], ["runtime.precision", "'auto', 'fp32' or 'bf16'", "'fp16'"]),
        (["--tracker", "mlflow"], ["unknown tracker 'mlflow'", "none, wandb, tensorboard"]),
        (["--data", "no/such/folder"], ["--data 'no/such/folder' is not a folder", "task 'topics'"]),
        (["--frobnicate"], ["--frobnicate"]),
    ],
)
def test_a_name_or_value_that_cannot_be_is_refused_with_what_can(ground, arguments, words):
    check(refuse(ground, *arguments), *words)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("agnws", ["unknown pipeline 'agnws'", "did you mean 'agnews'?"]),
        ("no/such/file.yaml", ["pipeline file 'no/such/file.yaml' does not exist", "demo"]),
    ],
)
def test_an_unknown_pipeline_is_refused_with_the_known_ones(tmp_path, name, words):
    result = pet("run", name, "--store", tmp_path / "store", code=2)
    check(result.stderr, *words)
    assert not (tmp_path / "store").exists()


def test_an_unknown_command_is_refused():
    check(pet("train", code=2).stderr, "No such command 'train'")


def test_a_pipeline_with_an_unknown_setting_is_refused_by_its_file(ground):
    values = yaml.safe_load(Path(ground.pipeline).read_text())
    values["finetune"]["batch"] = 3
    Path(ground.pipeline).write_text(yaml.safe_dump(values))
    check(refuse(ground), f"pipeline {ground.pipeline}", "unknown setting 'finetune.batch'")


def test_every_problem_of_the_settings_is_told_at_once(ground):
    sentence = refuse(ground, "--set", "finetune.steps=0", "--set", "distill.bach=4", "--precision", "fp8")
    check(sentence, "finetune.steps", "distill.bach", "runtime.precision")


# ---- texts ---------------------------------------------------------------------------------------------------------


def spoil(ground, old, new, name="train.csv"):
    path = ground.folder / name
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


def line_of(ground, number):
    return (ground.folder / "train.csv").read_bytes().splitlines()[number - 1]


def test_a_missing_file_is_named_with_the_folder_it_was_looked_for_in(ground):
    (ground.folder / "test.csv").unlink()
    check(refuse(ground), "test.csv (or .gz)", str(ground.folder), "--data")


def test_a_file_in_the_place_of_the_data_folder_is_refused(ground):
    check(refuse(ground, "--data", ground.folder / "train.csv"), "is not a folder", "task 'topics'")


def test_a_row_with_too_many_columns_is_named_with_its_line(ground):
    spoil(ground, line_of(ground, 5), line_of(ground, 5) + b",more")
    check(refuse(ground), "train.csv", "line 5 has 4 columns, expected 3 (label, headline, body)")


def test_a_label_that_is_not_in_the_card_is_named_with_its_line(ground):
    spoil(ground, line_of(ground, 7), b"gossip,the,match")
    check(refuse(ground), "train.csv:7", "label 'gossip' is not in the card", "['sports', 'business', 'tech']")


def test_an_empty_text_is_named_with_its_line(ground):
    spoil(ground, line_of(ground, 4), b"tech,,")
    check(refuse(ground), "train.csv:4", "the text is empty; remove the row or fill it")


def test_a_file_that_is_not_utf8_is_named_with_its_line(ground):
    spoil(ground, line_of(ground, 9), b"tech,caf\xe9,code")
    check(refuse(ground), "train.csv, line 9", "not UTF-8 text; convert the file to UTF-8")


def test_a_label_with_too_few_texts_is_named_with_what_it_has_and_needs(ground):
    """48 labelled rows, 16 a label; 51 need 17."""
    check(refuse(ground, "--train-examples", 51), "'sports' has 16, needs 17", "lower --train-examples")


def test_labelled_texts_that_leave_no_pool_are_refused(ground):
    text = (ground.folder / "train.csv").read_text().splitlines()[:49]
    (ground.folder / "train.csv").write_text("\n".join(text) + "\n")
    check(refuse(ground, "--train-examples", 48), "no texts are left for the unlabelled pool")


# ---- the card ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        (["news : {headline} {body}"], ["'news : {headline} {body}' has no {mask}"]),
        (["{mask} {mask} {body}"], ["2 times {mask}", "exactly once"]),
        (["{mask} {title}"], ["uses {title}", "['headline', 'body']"]),
        (["{mask} {body"], ["stray brace"]),
    ],
)
def test_a_pattern_that_cannot_be_filled_is_refused(ground, patterns, words):
    ground.change_card(patterns=patterns)
    check(refuse(ground), *words, str(ground.card))


def test_a_label_word_of_several_tokens_is_shown_in_its_pieces(ground):
    words = {"sports": ["sports"], "business": ["business", "marketplace"], "tech": ["astrophysics"]}
    ground.change_card(verbalizers={"default": words})
    check(refuse(ground), "label 'business', word 'marketplace' is", "label 'tech', word 'astrophysics'", "tokens [")


def test_a_card_without_words_for_a_label_is_refused(ground):
    ground.change_card(verbalizers={"default": {"sports": ["sports"]}})
    check(refuse(ground), "verbalizer 'default' has no words for ['business', 'tech']")


# ---- models --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["model.name", "distill.model", "baseline.model"])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("someone/no-such-model", ["'someone/no-such-model'", "the hub cannot be reached", "--model mini"]),
        ("./no-such-folder", ["'./no-such-folder'", "there is no such folder"]),
    ],
)
def test_a_model_that_is_not_to_be_had_is_refused_before_anything_runs(ground, setting, name, words):
    """The student's and the baseline's too: not after the members were trained."""
    check(refuse(ground, "--set", f"{setting}={name}"), *words)
    assert not any((ground.folder.parent / "store").glob("*/*"))


def test_a_folder_that_holds_no_model_is_refused(ground, tmp_path):
    (tmp_path / "empty").mkdir()
    check(refuse(ground, "--model", tmp_path / "empty"), f"model '{tmp_path / 'empty'}'")


def save(folder, model_class, family, tokenizer):
    config = tiny_config(family, len(tokenizer), tokenizer.pad_token_id)
    model_class(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_model_that_writes_instead_of_filling_in_is_refused(ground, tmp_path):
    """GPT-2's tokenizer has no mask."""
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=TOKENIZERS["byte-bpe"]().backend_tokenizer, eos_token="</s>", pad_token="<pad>"
    )
    folder = save(tmp_path / "gpt2", transformers.GPT2LMHeadModel, "gpt2", tokenizer)
    check(refuse(ground, "--model", folder), "its tokenizer has no mask token; expected that of a masked LM")


def test_a_model_with_a_mask_token_that_is_still_no_masked_lm_is_refused(ground, tmp_path):
    folder = save(tmp_path / "gpt2", transformers.GPT2LMHeadModel, "gpt2", wordpiece_tokenizer())
    check(refuse(ground, "--model", folder), "is not a masked LM; give an encoder such as RoBERTa")


def test_an_encoder_without_its_head_is_refused(ground, tmp_path):
    folder = save(tmp_path / "headless", transformers.BertModel, "bert", wordpiece_tokenizer())
    check(refuse(ground, "--model", folder), "is not a masked LM: its weights lack 'cls.predictions.", "more)")


def test_rows_longer_than_the_model_can_read_are_refused(ground):
    check(refuse(ground, "--set", "model.max_length=161"), "model.max_length 161", "the 160 tokens", "lower it")


def test_rows_too_short_for_the_pattern_are_refused(ground):
    ground.change_card(patterns=["All in all it was just {mask} news : {headline} {body}"])
    check(refuse(ground, "--set", "model.max_length=11"), "takes 11 tokens without its texts", "model.max_length is 11")


@pytest.mark.parametrize("section", ["finetune", "distill", "baseline"])
def test_more_frozen_layers_than_the_model_has_are_refused_before_anything_runs(ground, section):
    check(refuse(ground, "--set", f"{section}.frozen_layers=9"), f"{section}.frozen_layers is 9", "2 layers")
    assert not find_all(ground.folder.parent / "store", "*")


def test_lora_without_a_layer_to_adapt_is_refused_before_anything_runs(ground):
    sentence = refuse(ground, "--set", "finetune.method=lora", "--set", "finetune.frozen_layers=2")
    check(sentence, "finetune.frozen_layers 2 leaves no layer of the bert model to adapt")
    assert not find_all(ground.folder.parent / "store", "*")


def test_lora_targets_that_the_model_lacks_are_refused_before_anything_runs(ground):
    lora = ["--set", "finetune.method=lora", "--set", "finetune.lora.targets=[query, vlaue]"]
    check(refuse(ground, *lora), "finetune.lora.targets ['vlaue']", "name some of dense, key, query, value")
    assert not find_all(ground.folder.parent / "store", "*")


# ---- the store -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("below", "problem"), [("", "is no folder"), ("deeper", "cannot be written")])
def test_a_store_that_cannot_be_written_is_refused_before_anything_runs(ground, tmp_path, below, problem):
    """A file stands where the store should be (root may write anywhere else)."""
    (tmp_path / "file").write_text("mine")
    sentence = refuse(ground, store=tmp_path / "file" / below)
    check(sentence, f"the store {tmp_path / 'file' / below} {problem}", "--store")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "harm", "problem"),
    [
        ("manifest.json", lambda path: path.write_text("{"), "manifest.json is damaged"),
        ("manifest.json", lambda path: path.unlink(), "manifest.json is damaged, missing"),
        ("pool.parquet", lambda path: path.unlink(), "pool.parquet is missing"),
        ("pool.parquet", lambda path: path.write_bytes(b""), "pool.parquet is damaged: 0 bytes"),
    ],
)
def test_a_damaged_artifact_is_said_set_aside_and_made_anew_by_a_run(done, tmp_path, name, harm, problem):
    store = tmp_path / "store"
    shutil.copytree(done.store, store)
    folder = find_one(store, "prepare")
    harm(folder / name)
    told = pet_run(done.ground, store).stderr
    (writer,) = hidden_in(store)
    assert writer.name.startswith(f".damaged-{folder.name}-")
    check(told, f"prepare/{folder.name} is damaged ({problem}", f"set aside as {writer.name}")
    assert digest(folder / "pool.parquet") == digest(done.one("prepare") / "pool.parquet")
    assert told.count(": reused ") >= 11, "and nothing else"
    assert told.splitlines()[-1] == f"run: reused {find_one(store, 'run')}"
    assert pet_run(done.ground, store).stderr.count(": reused ") == 12


def test_a_file_whose_content_has_changed_is_seen_when_a_run_reads_it_not_before(done, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(done.store, store)
    garble(find_one(store, "prepare") / "pool.parquet")
    assert pet_run(done.ground, store).stderr.count(": reused ") == 12
    assert hidden_in(store) == []
    told = pet_run(done.ground, store, "--set", "distill.steps=4").stderr
    (writer,) = hidden_in(store)
    check(told, "pool.parquet is damaged: its content has changed (sha256)", f"set aside as {writer.name}")
    assert digest(find_one(store, "prepare") / "pool.parquet") == digest(done.one("prepare") / "pool.parquet")


@pytest.mark.parametrize(
    "command", [("predict", "last", "--text", "goal"), ("export", "last", "out"), ("report", "last")]
)
def test_a_damaged_artifact_is_one_sentence_to_other_commands_which_leave_it(done, tmp_path, monkeypatch, command):
    store = tmp_path / "store"
    shutil.copytree(done.store, store)
    monkeypatch.chdir(tmp_path)
    garble(find_one(store, "evaluate") / "calibration.json")
    garble(find_one(store, "run") / "summary.json")
    before = snapshot(store)
    sentence = pet(*command, "--store", store, code=2).stderr
    check(sentence, "is damaged: its content has changed", "give the command that made it once more")
    assert sentence.count("\n") == 1
    assert snapshot(store) == before
    assert list(tmp_path.iterdir()) == [store]


def test_nothing_was_set_by_a_refused_run(ground):
    """The defaults are frozen: a run cannot leave anything behind in them."""
    before = Settings().model_dump()
    refuse(ground, "--set", "finetune.steps=0")
    assert Settings().model_dump() == before
