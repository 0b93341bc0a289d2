"""The loop shape of PET's original code, written anew: what every speed figure is a ratio to.

fp32; every row padded to 256; logits over the whole vocabulary at every position; labelled and unlabelled rows in two
forward passes; batches of 8 in scoring; a Python loop over rows to pick the label words. The original accumulates
micro-batches of 1 + 3 rows; here a step's 4 + 12 rows are one micro-batch, which is kinder to it (measured on one H100:
563 ms a step with accumulation). Nothing of `pet` is used.
"""

from typing import Any

import numpy as np
import torch
from torch.nn import functional

LENGTH = 256
LABELLED, SCORING_BATCH = 4, 8
ALPHA = 0.9999
PAD, MASK = 1, 4


def padded(lengths: np.ndarray, rng: np.random.Generator, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Random ids [B, 256] with the mask at position 1, and the attention mask."""
    ids = torch.from_numpy(rng.integers(10, 50_000, size=(len(lengths), LENGTH)))
    attention = (torch.arange(LENGTH)[None] < torch.from_numpy(lengths)[:, None]).long()
    ids = torch.where(attention.bool(), ids, PAD)
    ids[:, 1] = MASK
    return ids.to(device), attention.to(device)


def label_scores(logits: torch.Tensor, words: list[int]) -> torch.Tensor:
    """Row by row, as the original does."""
    return torch.stack([row[1][torch.tensor(words, device=logits.device)] for row in logits])


class Reference:
    """Model, optimizer and both loops of the original."""

    def __init__(self, lm: Any, words: list[int]) -> None:
        self.lm = lm
        self.words = words
        self.optimizer = torch.optim.AdamW(lm.parameters(), lr=1e-5, eps=1e-8, weight_decay=0.01, foreach=False)

    def train_step(self, lengths: np.ndarray, rng: np.random.Generator) -> None:
        """One optimizer step; the first 4 rows are the labelled ones."""
        device = next(self.lm.parameters()).device
        self.lm.train()
        ids, attention = padded(lengths[:LABELLED], rng, device)
        scores = label_scores(self.lm(input_ids=ids, attention_mask=attention).logits, self.words)
        label = functional.cross_entropy(scores, torch.zeros(LABELLED, dtype=torch.long, device=device))
        ids, attention = padded(lengths[LABELLED:], rng, device)
        targets = torch.where(torch.rand(ids.shape, device=device) < 0.15, ids, -100)
        logits = self.lm(input_ids=ids, attention_mask=attention).logits
        mlm = functional.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))
        (ALPHA * label + (1 - ALPHA) * mlm).backward()
        torch.nn.utils.clip_grad_norm_(self.lm.parameters(), 1.0)
        self.optimizer.step()
        self.lm.zero_grad()

    @torch.no_grad()
    def score(self, lengths: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Label scores of all rows in batches of 8, moved to the host batch by batch."""
        device = next(self.lm.parameters()).device
        self.lm.eval()
        found = None
        for start in range(0, len(lengths), SCORING_BATCH):
            ids, attention = padded(lengths[start : start + SCORING_BATCH], rng, device)
            scores = label_scores(self.lm(input_ids=ids, attention_mask=attention).logits, self.words).cpu().numpy()
            found = scores if found is None else np.append(found, scores, axis=0)
        assert found is not None
        return found


class DistillReference:
    """The original's training of the student: padded to 256, fp32, one forward pass a micro-batch of 16."""

    def __init__(self, model: Any, temperature: float = 2.0) -> None:
        self.model = model
        self.temperature = temperature
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, eps=1e-8, weight_decay=0.01, foreach=False)

    def train_step(self, lengths: np.ndarray, rng: np.random.Generator) -> None:
        """One optimizer step on random teacher scores."""
        device = next(self.model.parameters()).device
        self.model.train()
        ids, attention = padded(lengths, rng, device)
        logits = self.model(input_ids=ids, attention_mask=attention).logits
        teacher = torch.from_numpy(rng.normal(size=tuple(logits.shape))).float().to(device)
        log_student = functional.log_softmax(logits / self.temperature, dim=-1)
        target = functional.softmax(teacher / self.temperature, dim=-1)
        loss = functional.kl_div(log_student, target, reduction="sum") * self.temperature**2 / len(logits)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.model.zero_grad()
