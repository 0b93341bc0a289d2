"""Small real things for tests: tokenizers of the three kinds over invented words, and two-layer random models.

Nothing is downloaded; a folder made here loads with `AutoTokenizer` and `AutoModelForMaskedLM` like any checkpoint.
"""

import string
from functools import cache
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

torch.set_num_threads(1)  # models this small lose more by waiting for a second core than they gain

WORDS = (
    "world sports business tech good bad great terrible okay yes no maybe right wrong news category question the a it "
    "was is in summary restaurant all just river boat market goal team match score price bank share profit engine code "
    "robot screen minister vote treaty border city rain soup bread waiter table slow quick warm cold fine loud"
).split(" ")

FAMILIES = ("roberta", "xlm-roberta", "bert", "albert", "deberta-v2", "distilbert", "modernbert")
"""Every family whose head pet.modeling.families takes apart."""


@cache
def wordpiece_tokenizer() -> PreTrainedTokenizerFast:
    """Like BERT's: lower case, `##` inside words, no trace of spaces, token types."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [*string.ascii_lowercase, *string.digits]
    pieces = [*specials, *WORDS, *letters, *("##" + one for one in letters), *string.punctuation]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(specials)
    ids = {token: tokenizer.token_to_id(token) for token in specials}
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    tokenizer.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


@cache
def byte_bpe_tokenizer() -> PreTrainedTokenizerFast:
    """Like RoBERTa's: a word's first token carries the space before it."""
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    words = [form for word in WORDS for form in (word, word.capitalize())]
    forms = [*("\u0120" + form for form in [*words, *string.punctuation]), "it"]  # "it" is known without a space too
    merges = dict.fromkeys((form[:end], form[end]) for form in forms for end in range(1, len(form)))
    pieces = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(left + right for left, right in merges)]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocabulary, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([*specials[:4], AddedToken("<mask>", lstrip=True)])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), True, False)
    tokenizer.decoder = decoders.ByteLevel()
    return named(tokenizer)


@cache
def unigram_tokenizer() -> PreTrainedTokenizerFast:
    """Like XLM-R's (SentencePiece): a word-start mark before every word, and always before the first one."""
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    whole = ["\u2581" + form for word in WORDS for form in (word, word.capitalize())]
    letters = ["\u2581", *string.ascii_letters, *string.digits, *string.punctuation]
    pieces = [(one, 0.0) for one in specials] + [(one, -3.0) for one in dict.fromkeys(whole)]
    known = {piece for piece, _ in pieces}
    tokenizer = Tokenizer(models.Unigram(pieces + [(one, -10.0) for one in letters if one not in known], unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.decoder = decoders.Metaspace()
    return named(tokenizer)


def named(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """With RoBERTa's names of special tokens; its mask takes the space before it."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token=AddedToken("<mask>", lstrip=True),
        model_input_names=["input_ids", "attention_mask"],
    )


TOKENIZERS = {"wordpiece": wordpiece_tokenizer, "byte-bpe": byte_bpe_tokenizer, "unigram": unigram_tokenizer}

KIND_OF = {
    "roberta": "byte-bpe",
    "xlm-roberta": "unigram",
    "bert": "wordpiece",
    "albert": "unigram",
    "deberta-v2": "unigram",
    "distilbert": "wordpiece",
    "modernbert": "byte-bpe",
}


def tiny_config(family: str, vocabulary: int, pad: int, **more: object) -> transformers.PretrainedConfig:
    """Two layers of width 32."""
    sizes: dict[str, object] = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 160,
        "pad_token_id": pad,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "cls_token_id": 0,
        "sep_token_id": 2,
        "type_vocab_size": 2 if family != "roberta" and family != "xlm-roberta" else 1,
    }
    extra: dict[str, dict[str, object]] = {
        "albert": {"embedding_size": 16},
        "distilbert": {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 2},
        "modernbert": {"global_attn_every_n_layers": 2, "local_attention": 16},
        "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16},
    }
    return transformers.AutoConfig.for_model(family, **{**sizes, **extra.get(family, {}), **more})


def tiny_model(family: str, tokenizer: PreTrainedTokenizerFast, seed: int = 0, **more: object):
    """A random masked LM of a family; its biases are random too, so that a forgotten one shows."""
    return random_model(transformers.AutoModelForMaskedLM, family, tokenizer, seed, **more)


def tiny_classifier(family: str, tokenizer: PreTrainedTokenizerFast, seed: int = 0, **more: object):
    """A random classifier of three labels."""
    auto = transformers.AutoModelForSequenceClassification
    return random_model(auto, family, tokenizer, seed, **{"num_labels": 3, **more})


def random_model(auto: type, family: str, tokenizer: PreTrainedTokenizerFast, seed: int, **more: object):
    torch.manual_seed(seed)
    model = auto.from_config(tiny_config(family, len(tokenizer), tokenizer.pad_token_id, **more))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def save_tiny(folder: Path, family: str = "bert", seed: int = 0) -> Path:
    """A folder with a tiny model and its tokenizer."""
    tokenizer = TOKENIZERS[KIND_OF[family]]()
    transformers.utils.logging.disable_progress_bar()
    tiny_model(family, tokenizer, seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def invent(count: int, seed: int = 0) -> list[str]:
    """So many invented texts of 1 to 29 words."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=size)) for size in rng.integers(1, 30, size=count)]
