"""What the published method does, in a few lines each and without pet: the references of tests/test_parity*.py.

Written from the paper (Schick & Schuetze 2021, arXiv 2001.07676) and from what its published code does
(github.com/timoschick/pet, commit 21d32de; file and line stand at each function). Shapes: B rows, L labels, V words.
"""

import string
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from support.tiny import TOKENIZERS, WORDS

# ---- tokenizers ----------------------------------------------------------------------------------------------------


@cache
def albert_tokenizer() -> PreTrainedTokenizerFast:
    """Like ALBERT's: SentencePiece with a word-start mark before every word, in lower case, BERT's special tokens and
    token types."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = ["\u2581", *string.ascii_lowercase, *string.digits, *string.punctuation]
    pieces = [(one, 0.0) for one in specials] + [("\u2581" + word, -3.0) for word in WORDS]
    known = {piece for piece, _ in pieces}
    tokenizer = Tokenizer(models.Unigram(pieces + [(one, -10.0) for one in letters if one not in known], unk_id=1))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(specials)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


FOUR_TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {**TOKENIZERS, "albert": albert_tokenizer}
"""As of BERT, RoBERTa, XLM-R and ALBERT."""

FRAMES = {
    "wordpiece": (["[CLS]"], ["[SEP]"], ["[SEP]"]),
    "byte-bpe": (["<s>"], ["</s>", "</s>"], ["</s>"]),
    "unigram": (["<s>"], ["</s>", "</s>"], ["</s>"]),
    "albert": (["[CLS]"], ["[SEP]"], ["[SEP]"]),
}
"""Special tokens before the first segment, between the two, and at the end (`build_inputs_with_special_tokens`)."""

HAS_TYPES = {"wordpiece": True, "byte-bpe": False, "unigram": False, "albert": True}


def ids_of(kind: str, words: str) -> list[int]:
    """Token ids without special ones; of RoBERTa's kind with `add_prefix_space` (pvp.py:128-140)."""
    return list(_encode(kind, f" {words}" if kind == "byte-bpe" else words))


@cache
def _encode(kind: str, text: str) -> tuple[int, ...]:
    return tuple(FOUR_TOKENIZERS[kind]()(text, add_special_tokens=False)["input_ids"])


# ---- a filled pattern as token ids ---------------------------------------------------------------------------------


class Item(NamedTuple):
    """An item of the published code's lists of parts: its segment, its token ids, and whether it may be shortened."""

    segment: int
    ids: list[int]
    free: bool


class Row(NamedTuple):
    """Token ids, segment ids and the place of the mask."""

    ids: list[int]
    types: list[int]
    mask: int


def items_of(kind: str, pattern: str, texts: Sequence[str]) -> list[Item]:
    """The parts of a pattern, each tokenised by itself. `pattern`: `_` the mask, `<a>`, `<b>` the texts, `<a'>` a text
    without the punctuation at its end, `||` between segments."""
    found = []
    for segment, half in enumerate(pattern.split("||")):
        for piece in half.replace("<", "\0<").replace(">", ">\0").replace("_", "\0_\0").split("\0"):
            if piece == "_":
                found.append(Item(segment, [FOUR_TOKENIZERS[kind]().mask_token_id], False))
            elif piece in ("<a>", "<a'>", "<b>"):
                text = texts["ab".index(piece[1])]
                text = text.rstrip(string.punctuation) if piece == "<a'>" else text  # pvp.py:98-102
                found.append(Item(segment, ids_of(kind, text) if text else [], True))
            elif piece.strip():
                found.append(Item(segment, ids_of(kind, piece.strip()), False))
    return found


def cut_as_published(items: list[Item]) -> None:
    """One token: of the segment with more tokens that may go (of equals the second), from its last part that has any
    (pvp.py:160-182)."""
    counts = [sum(len(one.ids) for one in items if one.free and one.segment == side) for side in (0, 1)]
    side = 0 if counts[0] > counts[1] else 1
    [one for one in items if one.free and one.segment == side and one.ids][-1].ids.pop()


def cut_as_paper(items: list[Item]) -> None:
    """One token of the longest text, the last of equals (section 4: texts are cut before the pattern is applied)."""
    longest = max(len(one.ids) for one in items if one.free)
    [one for one in items if one.free and len(one.ids) == longest][-1].ids.pop()


def reference_row(kind: str, pattern: str, texts: Sequence[str], length: int, cut: Callable[[list[Item]], None]) -> Row:
    """The filled pattern with its special tokens, no longer than `length`."""
    items = items_of(kind, pattern, texts)
    tokenizer = FOUR_TOKENIZERS[kind]()
    before, between, after = (tokenizer.convert_tokens_to_ids(one) for one in FRAMES[kind])
    between = between if "||" in pattern else []
    while sum(len(one.ids) for one in items) + len(before + between + after) > length:
        cut(items)
    first, second = ([one for item in items if item.segment == side for one in item.ids] for side in (0, 1))
    ids = before + first + between + second + after
    second_types = [int(HAS_TYPES[kind])] * len(second + after) if between else [0] * len(after)
    types = [0] * len(before + first + between) + second_types
    return Row(ids, types, ids.index(tokenizer.mask_token_id))


# ---- losses --------------------------------------------------------------------------------------------------------


def published_loss(
    lm: Any, labelled: dict[str, Any], unlabelled: dict[str, Any], words: list[list[int]], alpha: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(1 - alpha) CE + alpha MLM, CE and MLM by two forward passes with the logits of the whole vocabulary (section
    3.2; wrapper.py:471-488).

    `labelled`: `input_ids` and so on, with `mask` and `labels` [B]; `unlabelled`: with `targets` [B, T], -100 where
    nothing is asked; `words`: of each label.
    """
    inputs = {name: value for name, value in labelled.items() if name not in ("mask", "labels")}
    logits = lm(**inputs).logits
    at_mask = logits[torch.arange(len(logits)), labelled["mask"]]  # [B, V]
    scores = torch.stack([sum(at_mask[:, one] for one in of_label) / len(of_label) for of_label in words], dim=1)
    label = functional.cross_entropy(scores, labelled["labels"])
    inputs = {name: value for name, value in unlabelled.items() if name != "targets"}
    logits = lm(**inputs).logits
    mlm = functional.cross_entropy(logits.flatten(0, 1), unlabelled["targets"].flatten(), ignore_index=-100)
    return (1 - alpha) * label + alpha * mlm, label, mlm


# ---- iPET ----------------------------------------------------------------------------------------------------------


def published_sizes(labelled: int, ensembles: int) -> list[int]:
    """Texts in the training sets of all ensembles: `int(|T| * 5 ** (g + 1) - |T|)` new ones (modeling.py:604-764); for
    no labelled text |T| counts as 10 / 5."""
    start = labelled or 10 / 5
    return [labelled, *(labelled + int(start * 5**number - labelled) for number in range(1, ensembles))]


def published_counts(labelled: list[int], new: int) -> list[int]:
    """New texts of each label: `int(count * new / |T|)`, without labelled texts divided evenly, the first labels
    taking what is over (modeling.py:604-764, utils.py `eq_div`)."""
    if not sum(labelled):
        return [new // len(labelled) + (place < new % len(labelled)) for place in range(len(labelled))]
    return [int(count * new / sum(labelled)) for count in labelled]


def pair_chances(weights: Sequence[float]) -> dict[frozenset[int], float]:
    """Chance of each pair of texts where two are drawn one after the other, never the same, by weight."""
    shares = np.asarray(weights) / sum(weights)
    found: dict[frozenset[int], float] = {}
    for one, first in enumerate(shares):
        for other, second in enumerate(shares):
            if one != other:
                pair = frozenset((one, other))
                found[pair] = found.get(pair, 0.0) + first * second / (1 - first)
    return found


# ---- training ------------------------------------------------------------------------------------------------------

UNDECAYED = ("bias", "LayerNorm.weight")
"""Parts of names of weights that the published code does not decay (wrapper.py:256-266)."""


def plain_training(
    model: torch.nn.Module, losses: Iterator[Callable[[], torch.Tensor]], settings: Any, decayed: set[str]
) -> list[float]:
    """`settings.steps` updates of AdamW with linear decay, accumulation and clipping, written out (wrapper.py:256-300);
    the rates. Each of `losses` is the loss of one micro-batch."""
    named = dict(model.named_parameters())
    first = {name: torch.zeros_like(one) for name, one in named.items()}
    second = {name: torch.zeros_like(one) for name, one in named.items()}
    rates = []
    for step in range(settings.steps):
        model.zero_grad()
        for _ in range(settings.accumulation):
            (next(losses)() / settings.accumulation).backward()
        gradients = {name: one.grad for name, one in named.items() if one.grad is not None}
        norm = torch.stack([one.norm() for one in gradients.values()]).norm()
        shrink = min(1.0, settings.max_grad_norm / (float(norm) + 1e-6))
        warm = settings.warmup_steps
        left = (settings.steps - step) / (settings.steps - warm)
        rates.append(settings.learning_rate * (step / warm if step < warm else left))
        with torch.no_grad():
            for name, gradient in gradients.items():
                first[name] = 0.9 * first[name] + 0.1 * gradient * shrink
                second[name] = 0.999 * second[name] + 0.001 * (gradient * shrink) ** 2
                upwards = (second[name] / (1 - 0.999 ** (step + 1))).sqrt() + settings.adam_epsilon
                if name in decayed:
                    named[name] *= 1 - rates[-1] * settings.weight_decay
                named[name] -= rates[-1] * first[name] / (1 - 0.9 ** (step + 1)) / upwards
    return rates


# ---- draws ---------------------------------------------------------------------------------------------------------


def first_of_each(labels: Sequence[str], names: Sequence[str], most: Sequence[int]) -> list[int]:
    """Rows in file order, of each label so many at most (`LimitedExampleList` of release 1.1.0)."""
    left = dict(zip(names, most, strict=True))
    found = []
    for row, label in enumerate(labels):
        if left[label] > 0:
            left[label] -= 1
            found.append(row)
    return found
