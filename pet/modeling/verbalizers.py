"""Label words as token ids, and how the scores of labels come from what a model says of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from pet.errors import TaskError, raise_problems
from pet.modeling.batch import send
from pet.modeling.tokenization import PromptTokenizer, mask_glue
from pet.tasks.patterns import PVP

# ---- verbalizers ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verbalizer:
    """The label words of one pattern, each of one token, or those of M members that share a batch.

    All that a label's score takes from a model is asked for in `scores`, so that words may come to depend on the row.
    """

    words: torch.Tensor
    """Token ids of all label words [W]."""

    averaging: torch.Tensor
    """From their logits to label scores, the mean of each label's words: [W, L], or of M members [M, W, L]."""

    def scores(self, word_logits: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Scores of labels: for each the mean logit of its words at the mask (fact sheet 3.3).

        Args:
            word_logits: says for words [W] their logits at the masks of B rows [B, W].

        Returns:
            [B, L]; of M members, whose rows come one after another and are as many each, [M, B / M, L].
        """
        logits = word_logits(self.words)
        if self.averaging.ndim == 3:
            logits = logits.view(len(self.averaging), -1, len(self.words))
        return logits @ self.averaging

    def to(self, device: torch.device) -> "Verbalizer":
        """The same on a device."""
        return send(self, device)


def encode_verbalizers(prompt_tokenizer: PromptTokenizer, pvps: Sequence[PVP], task: str) -> list[Verbalizer]:
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
        found.append(Verbalizer(torch.tensor(ids, dtype=torch.long), averaging))
    raise_problems(
        TaskError, f"task {task!r}: label words must be one known token of {prompt_tokenizer.name!r}", list(problems)
    )
    return found
