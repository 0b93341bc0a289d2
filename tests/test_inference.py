"""Scoring many rows: whatever the batches, the scores are those of each row alone and in the rows' order."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from tiny import TOKENIZERS, WORDS, tiny_model

from pet.cloze import ClozeModel
from pet.encoding import Batch, Encoder, Rows, Speller, TokenizedTexts, encode_verbalizers, pad_rows, padded_length
from pet.examples import Texts
from pet.inference import score_rows, token_batches
from pet.patterns import PVP, parse_pattern
from pet.runtime import Runtime, Silent

COUNT = 37


@pytest.fixture(scope="module")
def speller() -> Speller:
    return Speller(TOKENIZERS["wordpiece"](), "wordpiece")


@pytest.fixture(scope="module")
def pvp() -> PVP:
    return PVP(0, parse_pattern("{a} . It was {mask} .", ["a"]), {"yes": ("good", "great"), "no": ("bad",)})


@pytest.fixture(scope="module")
def rows(speller: Speller, pvp: PVP) -> Rows:
    rng = np.random.default_rng(0)
    column = [" ".join(rng.choice(WORDS, size=size)) for size in rng.integers(0, 50, size=COUNT)]
    texts = Texts([str(number) for number in range(COUNT)], {"a": column}, [None] * COUNT)
    return Encoder(speller, pvp.pattern, 56).encode(TokenizedTexts(speller, texts))


@pytest.fixture(scope="module")
def score(speller: Speller, pvp: PVP):
    """Label scores of a tiny BERT."""
    cloze = ClozeModel(tiny_model("bert", speller.tokenizer))
    (verbalizers,) = encode_verbalizers(speller, [pvp], "mood")
    return lambda batch: cloze.label_scores(cloze.states(batch), batch.mask_positions, verbalizers)


def runtime_of(batch_tokens: int, reporter: Silent | None = None, dtype: torch.dtype | None = None) -> Runtime:
    return Runtime(torch.device("cpu"), dtype, batch_tokens, reporter or Silent())


def checksum(batch: Batch) -> torch.Tensor:
    """[B, 2]: exact whatever the padding."""
    masked = batch.input_ids * batch.attention_mask
    return torch.stack([masked.sum(dim=1), batch.mask_positions], dim=1)


@pytest.mark.parametrize("batch_tokens", [64, 200, 1000, 10**6])
def test_results_come_in_the_rows_own_order(rows, speller, batch_tokens):
    found = score_rows(checksum, rows, speller, runtime_of(batch_tokens), "test")
    expected = [[ids.sum(), position] for ids, position in zip(rows.ids, rows.mask_positions, strict=True)]
    assert found.dtype == np.float32
    assert found.tolist() == expected


def test_scores_do_not_depend_on_what_shares_a_batch(rows, speller, score):
    with torch.no_grad():
        alone = [score(pad_rows(rows, np.array([row]), speller, len(rows.ids[row])))[0].numpy() for row in range(COUNT)]
    for batch_tokens in (64, 500, 10**6):
        found = score_rows(score, rows, speller, runtime_of(batch_tokens), "test")
        np.testing.assert_allclose(found, np.stack(alone), atol=1e-5)


@pytest.mark.parametrize("batch_tokens", [64, 200, 1000])
def test_a_batch_keeps_to_its_budget_of_padded_tokens_and_is_no_smaller_than_it_must_be(rows, speller, batch_tokens):
    shapes = []

    def watched(batch: Batch) -> torch.Tensor:
        shapes.append(tuple(batch.input_ids.shape))
        return checksum(batch)

    score_rows(watched, rows, speller, runtime_of(batch_tokens), "test")
    assert all(height * width <= batch_tokens or height == 1 for height, width in shapes)
    assert all((height + 1) * width > batch_tokens for height, width in shapes[:-1])
    widths = [width for _, width in shapes]
    assert widths == sorted(widths, reverse=True), "the longest first, so that memory runs out at once or never"
    assert all(width % 8 == 0 for width in widths)
    assert sum(height for height, _ in shapes) == COUNT


def test_a_row_longer_than_the_budget_is_scored_alone():
    lengths = np.array([5, 100, 7, 90])
    assert [chosen.tolist() for chosen in token_batches(lengths, 16)] == [[1], [3], [2, 0]]


def test_every_row_is_in_exactly_one_batch():
    rng = np.random.default_rng(1)
    for budget in (8, 64, 300):
        lengths = rng.integers(1, 60, size=80)
        found = list(token_batches(lengths, budget))
        assert sorted(np.concatenate(found)) == list(range(80))
        assert all(len(one) * padded_length(int(lengths[one].max())) <= budget or len(one) == 1 for one in found)


def test_no_rows_have_no_scores_and_ask_no_model(speller):
    def never(batch: Batch) -> torch.Tensor:
        raise AssertionError("asked")

    found = score_rows(never, Rows([], [], np.zeros(0, dtype=np.int32)), speller, runtime_of(64), "test")
    assert found.shape == (0, 0)
    assert list(token_batches(np.zeros(0, dtype=np.int64), 64)) == []


def test_nothing_is_recorded_for_gradients_and_the_runtime_s_precision_is_used(rows, speller):
    weight = torch.ones(1, 1, requires_grad=True)
    dtypes = set()

    def scored(batch: Batch) -> torch.Tensor:
        result = batch.mask_positions[:, None].float() @ weight
        dtypes.add((result.dtype, result.requires_grad))
        return result

    found = score_rows(scored, rows, speller, runtime_of(500, dtype=torch.bfloat16), "test")
    assert dtypes == {(torch.bfloat16, False)}
    assert found.dtype == np.float32


def test_the_progress_bar_counts_texts(rows, speller):
    class Bar(Silent):
        opened, done = None, 0

        @contextmanager
        def track(self, label, total, unit):
            self.opened = (label, total, unit)

            def advance(done: int) -> None:
                self.done += done

            yield advance

    bar = Bar()
    score_rows(checksum, rows, speller, runtime_of(300, bar), "pool")
    assert (bar.opened, bar.done) == (("pool", COUNT, "text"), COUNT)
