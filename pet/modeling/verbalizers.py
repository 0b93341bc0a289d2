"""Label words as token ids, and the matrix that averages their logits for each label."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pet.errors import TaskError, raise_problems
from pet.modeling.batch import send
from pet.modeling.tokenization import PromptTokenizer, mask_glue
from pet.tasks.patterns import PVP

# ---- verbalizers ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VerbalizerIds:
    """Token ids [W] of all label words, and the matrix [W, L] that averages word scores into label scores."""

    words: torch.Tensor
    averaging: torch.Tensor

    def to(self, device: torch.device) -> "VerbalizerIds":
        """The same on a device."""
        return send(self, device)


def encode_verbalizers(prompt_tokenizer: PromptTokenizer, pvps: Sequence[PVP], task: str) -> list[VerbalizerIds]:
    """The label words of every PVP as token ids, spelled as they stand at the pattern's mask.

    Raises:
        TaskError: words that are not exactly one token; names task, label, word, tokenizer and the pieces of each.
    """
    problems: dict[str, None] = {}
    found = []
    for pvp in pvps:
        after = mask_glue(pvp.pattern)
        ids, labels = [], []
        for number, (label, words) in enumerate(pvp.words.items()):
            for word in words:
                token = prompt_tokenizer.word_id(word, after)
                if isinstance(token, int):
                    ids.append(token)
                    labels.append(number)
                else:
                    what = f"is {len(token)} tokens {token}" if len(token) > 1 else "is not in the vocabulary"
                    problems[f"label {label!r}, word {word!r} {what}"] = None
        averaging = torch.zeros(len(ids), len(pvp.words))
        for place, number in enumerate(labels):
            averaging[place, number] = 1 / labels.count(number)
        found.append(VerbalizerIds(torch.tensor(ids, dtype=torch.long), averaging))
    raise_problems(
        TaskError, f"task {task!r}: label words must be one known token of {prompt_tokenizer.name!r}", list(problems)
    )
    return found
