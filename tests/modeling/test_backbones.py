"""A kind of language model is one class: a toy one, made known here alone, is trained, scored and asked like BERT."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from support.rows import LABELS, PATTERNS, Ground, find_one, lay_ground, lively_model, pet, pet_run, read_json
from support.tiny import wordpiece_tokenizer
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from pet.config.schema import ModelSettings
from pet.errors import ModelError
from pet.modeling import backbones, loading
from pet.modeling.backbones import Backbone, ClozeBatch, MaskedLM
from pet.modeling.batch import Batch
from pet.modeling.token_losses import IGNORED
from pet.modeling.tokenization import PromptTokenizer
from pet.modeling.verbalizers import Verbalizer
from pet.tasks.texts import Texts, read_texts

# ---- a toy kind: the words of a text in a bag, none of which is a mask ---------------------------------------------


class BagConfig(PretrainedConfig):
    model_type = "bag-of-words"
    hidden_size = 16
    num_hidden_layers = 0


class BagModel(PreTrainedModel):
    config_class = BagConfig

    def __init__(self, config: BagConfig) -> None:
        super().__init__(config)
        self.read = nn.Embedding(config.vocab_size, config.hidden_size)
        self.say = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        nn.init.normal_(module.weight)


class Bag(Backbone):
    """What a text says is the mean of its words' embeddings. The mask is the unknown word."""

    @classmethod
    def takes(cls, config: Mapping[str, Any]) -> bool:
        return config["model_type"] == "bag-of-words"

    @classmethod
    def load_lm(cls, model: ModelSettings, new_head: bool = False) -> BagModel:
        folder, _ = loading.locate(model)
        return BagModel.from_pretrained(folder)

    @classmethod
    def prompt_tokenizer(cls, tokenizer: Any, name: str) -> PromptTokenizer:
        return PromptTokenizer(tokenizer, name, tokenizer.unk_token_id)

    @staticmethod
    def hide(
        batch: Batch,
        maskable: NDArray[np.bool_],
        probability: float,
        prompt_tokenizer: PromptTokenizer,
        rng: np.random.Generator,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Hides nothing, and asks for a word that is there."""
        ids = batch.input_ids.numpy()
        return ids, np.where(maskable & (rng.random(len(ids)) < probability), ids, IGNORED)

    def logits(self, batch: Batch) -> torch.Tensor:
        """Of each row [B, V]."""
        assert batch.attention_mask is not None, "rows of what no family is known of are padded"
        shown = batch.attention_mask.view(len(batch), -1, 1)
        words = self.lm.read(batch.input_ids).view(len(batch), batch.width, -1)
        return self.lm.say((words * shown).sum(1) / shown.sum(1))

    def label_scores(self, batch: Batch, verbalizer: Verbalizer) -> torch.Tensor:
        return verbalizer.scores(lambda words: self.logits(batch)[:, words])

    def word_log_probabilities(self, batch: Batch, words: torch.Tensor) -> torch.Tensor:
        return self.logits(batch).log_softmax(-1)[:, words]

    def lm_losses(
        self, batch: Batch, places: torch.Tensor, targets: torch.Tensor, most: int | None = None
    ) -> torch.Tensor:
        return self.token_losses(self.logits(batch)[batch.rows[places]].T, None, targets)

    def answers(self, given: ClozeBatch) -> tuple[torch.Tensor, torch.Tensor]:
        logits, rows = self.logits(given.batch), given.batch.rows
        labelled = logits[rows[given.label_places]]
        losses = self.token_losses(logits[rows[given.target_places]].T, None, given.targets)
        return given.verbalizer.scores(lambda words: labelled[:, words]), losses


AutoConfig.register("bag-of-words", BagConfig)


@pytest.fixture
def bag_is_known() -> Iterator[None]:
    """While the test runs."""
    backbones.register(Bag)
    yield
    backbones.KINDS.remove(Bag)


def save_bag(folder: Path) -> Path:
    """A random model, and a tokenizer without a mask token."""
    whole = wordpiece_tokenizer()
    torch.manual_seed(0)
    BagModel(BagConfig(vocab_size=len(whole))).save_pretrained(folder)
    names = {f"{name}_token": getattr(whole, f"{name}_token") for name in ("unk", "pad", "cls", "sep")}
    inputs = whole.model_input_names
    PreTrainedTokenizerFast(
        tokenizer_object=whole.backend_tokenizer, **names, model_input_names=inputs
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """The small task, on a bag of words; student and baseline on BERT."""
    folder = tmp_path_factory.mktemp("bag")
    student = {"model": str(lively_model(tmp_path_factory.getbasetemp()))}
    training = {"repetitions": 1, "learning_rate": 0.1}
    return lay_ground(folder, save_bag(folder / "bag"), finetune=training, distill=student, baseline=student)


# ---- what a kind does ----------------------------------------------------------------------------------------------


def scores_by_hand(folder: Path, pattern: str, texts: Texts) -> NDArray[np.float32]:
    """Label scores [N, L] of a saved bag of words: nothing of pet's but the texts."""
    weights = load_file(folder / "model.safetensors")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    words = tokenizer.convert_tokens_to_ids(LABELS)
    found = []
    for headline, body in zip(texts.fields["headline"], texts.fields["body"], strict=True):
        segments = pattern.format(mask="[UNK]", headline=headline, body=body).split(" || ")
        found.append(weights["say.weight"][words] @ weights["read.weight"][tokenizer(*segments)["input_ids"]].mean(0))
    return np.stack(found)


def test_a_whole_run_on_a_toy_kind_trains_scores_and_pools_it(ground, bag_is_known, tmp_path):
    said = pet_run(ground, tmp_path)
    assert "is not known to pet" not in said.stderr, "that is said of masked LMs"
    texts = {split: read_texts(find_one(tmp_path, "prepare") / f"{split}.parquet") for split in ("train", "test")}
    for number, pattern in enumerate(PATTERNS):
        untuned, member = (find_one(tmp_path, "finetune", f"p{number}-{part}") for part in ("untuned", "r0"))
        for folder, weights in ((untuned, ground.folder / "bag"), (member, member / "model")):
            for split, of_split in texts.items():
                found = load_file(folder / "scores.safetensors")[split]
                np.testing.assert_allclose(found, scores_by_hand(weights, pattern, of_split), rtol=1e-4, atol=1e-4)
        training = read_json(member / "training.json")
        assert set(training["losses"]) == {"loss", "label_loss", "mlm_loss"}
        assert training["losses"]["mlm_loss"][-1] > 0
        assert training["train_accuracy"] > read_json(untuned / "training.json")["train_accuracy"]


def test_commands_that_ask_a_model_ask_a_toy_kind_too(ground, bag_is_known, tmp_path):
    """Members from their checkpoints, and the untuned model about words."""
    pet_run(ground, tmp_path / "store")
    new = tmp_path / "new.csv"
    new.write_text("headline,body\nteam,goal match\n")
    asked = ("predict", "last", "--store", tmp_path / "store", "--input", new, "--output", tmp_path / "out.csv")
    pet(*asked, "--from", "ensemble")
    assert (tmp_path / "out.csv").read_text().count("\n") == 2
    short = ("--model", ground.folder / "bag", "--set", "model.max_length=28")
    pet("check", ground.card, *short)
    assert "sports" in pet("verbalize", ground.card, "--train-examples", 12, *short).output


def test_the_configuration_says_which_kind_a_model_is_and_a_masked_lm_is_what_no_kind_takes(
    ground, bag_is_known, tmp_path
):
    bag, bert = (ModelSettings(name=str(one)) for one in (ground.folder / "bag", lively_model(tmp_path)))
    assert (backbones.kind_of(bag), backbones.kind_of(bert)) == (Bag, MaskedLM)
    model = backbones.load(bag, torch.device("cpu"))
    assert isinstance(model, Bag) and not model.training
    assert backbones.load_tokenizer(bag).mask_id == wordpiece_tokenizer().unk_token_id


def test_a_model_of_no_known_kind_is_refused_in_one_sentence(ground):
    bag = ModelSettings(name=str(ground.folder / "bag"))
    with pytest.raises(ModelError, match="its tokenizer has no mask token"):
        backbones.load_tokenizer(bag)
    with pytest.raises(ModelError, match="is not a masked LM"):
        backbones.load(bag, torch.device("cpu"))
