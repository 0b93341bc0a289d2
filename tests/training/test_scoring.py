"""Scoring many rows: whatever the batches, the scores are those of each row alone and in the rows' own order; and the
copy that scores is the model in another precision."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from support.plain import LIVELY, OTHERS, PACKED, assert_near, kind, some_batch
from support.tiny import FAMILIES, TOKENIZERS, WORDS, tiny_classifier, tiny_model

from pet.errors import NotFinite
from pet.modeling.backbones import MaskedLM
from pet.modeling.batch import Batch, Layout, round_up
from pet.modeling.classifier import ClassifierModel
from pet.modeling.prompts import EncodedTexts, Encoder
from pet.modeling.tokenization import PromptTokenizer, TokenizedTexts
from pet.modeling.verbalizers import encode_verbalizers
from pet.tasks.patterns import PVP, parse_pattern
from pet.tasks.texts import Texts
from pet.training import scoring
from pet.training.device import Runtime
from pet.training.finite import Origin
from pet.training.reporter import Silent
from pet.training.scoring import computing_copy, refresh, score_rows, token_batches

COUNT = 37
LAYOUTS = {"end to end": Layout(False, width_multiple=8), "padded": Layout(True, width_multiple=8)}


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> Layout:
    return LAYOUTS[request.param]


@pytest.fixture(params=[None, 5], ids=["one window", "windows of 5"])
def window(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Rows that are sorted at a time."""
    if request.param:
        monkeypatch.setattr(scoring, "WINDOW", request.param)
    return request.param or COUNT


@pytest.fixture(scope="module")
def prompt_tokenizer() -> PromptTokenizer:
    return PromptTokenizer(TOKENIZERS["wordpiece"](), "wordpiece")


@pytest.fixture(scope="module")
def pvp() -> PVP:
    return PVP(0, parse_pattern("{a} . It was {mask} .", ["a"]), {"yes": ("good", "great"), "no": ("bad",)})


@pytest.fixture(scope="module")
def rows(prompt_tokenizer: PromptTokenizer, pvp: PVP) -> EncodedTexts:
    rng = np.random.default_rng(0)
    column = [" ".join(rng.choice(WORDS, size=size)) for size in rng.integers(0, 50, size=COUNT)]
    texts = Texts([str(number) for number in range(COUNT)], {"a": column}, [None] * COUNT)
    return Encoder(prompt_tokenizer, pvp.pattern, 56).encode(TokenizedTexts(prompt_tokenizer, texts))


@pytest.fixture(scope="module")
def score(prompt_tokenizer: PromptTokenizer, pvp: PVP):
    """Label scores of a tiny BERT."""
    cloze = MaskedLM(tiny_model("bert", prompt_tokenizer.tokenizer, **LIVELY))
    (verbalizers,) = encode_verbalizers(prompt_tokenizer, [pvp], "mood")
    return lambda batch: cloze.label_scores(batch, verbalizers)


def runtime_of(batch_tokens: int, reporter: Silent | None = None, dtype: torch.dtype | None = None) -> Runtime:
    return Runtime(torch.device("cpu"), dtype, batch_tokens, reporter or Silent())


def checksum(batch: Batch) -> torch.Tensor:
    """[B, 2]: exact whatever the padding."""
    ids = batch.input_ids if batch.attention_mask is None else batch.input_ids * batch.attention_mask
    sums = torch.zeros(len(batch), dtype=torch.long).index_add(0, batch.rows, ids * (batch.places + 1))
    return torch.stack([sums, batch.mask_positions - batch.starts[: len(batch)]], dim=1)


@pytest.mark.parametrize("batch_tokens", [64, 200, 1000, 10**6])
def test_results_come_in_the_rows_own_order(rows, layout, window, batch_tokens):
    found = score_rows(checksum, rows, layout, runtime_of(batch_tokens), "test")
    expected = []
    for row in range(COUNT):
        joined = rows.encoder.join(rows, np.array([row]))
        expected.append([sum(place * one for place, one in enumerate(joined.ids.tolist(), 1)), *joined.mask_places])
    assert len({tuple(one) for one in expected}) > COUNT - 5, "rows differ"
    assert found.dtype == np.float32
    assert found.tolist() == expected


def test_scores_do_not_depend_on_what_shares_a_batch(rows, layout, window, score):
    with torch.no_grad():
        alone = [score(rows.batch(np.array([row]), Layout(False)))[0].numpy() for row in range(COUNT)]
    assert np.std(alone, axis=0).min() > 0.1, "rows differ"
    for batch_tokens in (64, 500, 10**6):
        found = score_rows(score, rows, layout, runtime_of(batch_tokens), "test")
        np.testing.assert_allclose(found, np.stack(alone), atol=1e-5)


@pytest.mark.parametrize("batch_tokens", [64, 200, 1000])
def test_a_batch_keeps_to_its_budget_of_tokens_and_is_no_smaller_than_it_must_be(rows, layout, window, batch_tokens):
    """Padding counted, whether there is any or not: at the end of rows that lie end to end, attention has some."""
    shapes: list[tuple[int, int]] = []

    def watched(batch: Batch) -> torch.Tensor:
        shapes.append((len(batch), batch.width))
        assert len(batch.input_ids) <= len(batch) * batch.width
        return checksum(batch)

    score_rows(watched, rows, layout, runtime_of(batch_tokens), "test")
    assert all(height * width <= batch_tokens or height == 1 for height, width in shapes)
    assert all(width % 8 == 0 for _, width in shapes)
    start = 0
    while start < COUNT:  # a window
        size, mine = 0, []
        while size < min(window, COUNT - start):
            mine.append(shapes.pop(0))
            size += mine[-1][0]
        assert size == min(window, COUNT - start), "no batch has rows of two windows"
        assert all((height + 1) * width > batch_tokens for height, width in mine[:-1])
        widths = [width for _, width in mine]
        assert widths == sorted(widths, reverse=True), "the longest first, so that memory runs out at once or never"
        start += size
    assert shapes == []


def test_no_more_rows_are_looked_at_than_those_of_a_window(rows, layout, window, monkeypatch):
    """Memory does not grow with the pool."""
    asked, lengths = [], EncodedTexts.lengths

    def watched(self: EncodedTexts, chosen: slice) -> np.ndarray:
        found = lengths(self, chosen)
        asked.append(len(found))
        return found

    monkeypatch.setattr(EncodedTexts, "lengths", watched)
    score_rows(checksum, rows, layout, runtime_of(200), "test")
    assert sum(asked) == COUNT
    assert max(asked) == window


def test_a_row_longer_than_the_budget_is_scored_alone(layout):
    lengths = np.array([5, 100, 7, 90])
    assert [chosen.tolist() for chosen in token_batches(lengths, 16, layout)] == [[1], [3], [2, 0]]


def test_every_row_is_in_exactly_one_batch(layout):
    rng = np.random.default_rng(1)
    for budget in (8, 64, 300):
        lengths = rng.integers(1, 60, size=80)
        found = list(token_batches(lengths, budget, layout))
        assert sorted(np.concatenate(found)) == list(range(80))
        assert all(len(one) * round_up(int(lengths[one].max()), 8) <= budget or len(one) == 1 for one in found)


def test_no_rows_have_no_scores_and_ask_no_model(prompt_tokenizer, pvp, layout):
    def never(batch: Batch) -> torch.Tensor:
        raise AssertionError("asked")

    none = Encoder(prompt_tokenizer, pvp.pattern, 56).encode(TokenizedTexts(prompt_tokenizer, Texts([], {"a": []}, [])))
    found = score_rows(never, none, layout, runtime_of(64), "test")
    assert (found.shape, found.dtype) == ((0, 0), np.float32)
    assert list(token_batches(np.zeros(0, dtype=np.int64), 64, layout)) == []


def test_nothing_is_recorded_for_gradients_and_the_precision_is_the_model_s_own_affair(rows, layout):
    weight = torch.ones(1, 1, requires_grad=True)
    dtypes = set()

    def scored(batch: Batch) -> torch.Tensor:
        result = batch.mask_positions[:, None].float() @ weight
        dtypes.add((result.dtype, result.requires_grad))
        return result.bfloat16()

    found = score_rows(scored, rows, layout, runtime_of(500, dtype=torch.bfloat16), "test")
    assert dtypes == {(torch.float32, False)}
    assert found.dtype == np.float32


def test_the_progress_bar_counts_texts(rows, layout, window):
    class Bar(Silent):
        opened, done = None, 0

        @contextmanager
        def track(self, label, total, unit):
            assert self.opened is None, "one bar, however many windows"
            self.opened = (label, total, unit)

            def advance(done: int) -> None:
                self.done += done

            yield advance

    bar = Bar()
    score_rows(checksum, rows, layout, runtime_of(300, bar), "pool")
    assert (bar.opened, bar.done) == (("pool", COUNT, "text"), COUNT)


# ---- the copy that scores ------------------------------------------------------------------------------------------


LOW = torch.bfloat16
MAKERS = {
    "cloze": lambda *rest: MaskedLM(tiny_model(*rest, **LIVELY)),
    "classifier": lambda *rest: ClassifierModel(tiny_classifier(*rest, **LIVELY)),
}


def answers(model: MaskedLM | ClassifierModel, family: str) -> torch.Tensor:
    batch = some_batch(family, Layout(family not in PACKED))
    with torch.no_grad():
        if isinstance(model, ClassifierModel):
            return model.logits(batch)
        return model.word_logits(model.states(batch)[batch.mask_positions], torch.arange(20, 30))


@pytest.mark.parametrize("make", MAKERS)
def test_in_full_precision_the_model_itself_scores(make):
    model = MAKERS[make]("bert", TOKENIZERS["wordpiece"]())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert computing_copy(model, runtime_of(64)) is model
    refresh(model, model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
def test_in_a_lower_one_a_copy_scores_nearly_the_same_and_the_model_keeps_its_own(make, family):
    model = MAKERS[make](family, TOKENIZERS[kind(family)]()).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    compute_model = computing_copy(model, runtime_of(64, dtype=LOW))
    assert {one.dtype for one in compute_model.lm.base_model.parameters()} == {LOW}
    assert compute_model.training and model.training
    compute_model.eval()
    found = answers(compute_model, family).float()
    assert not torch.equal(found, answers(model.eval(), family))
    assert_near(found, answers(model, family), 0.1)
    assert set(before) == set(model.state_dict())
    for name, value in model.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])
    assert all(one.requires_grad for one in model.parameters())


@pytest.mark.parametrize("make", MAKERS)
def test_a_copy_has_the_weights_of_its_model_when_it_is_brought_up_to_date(make):
    """To the bit those of a copy made then, in place, so that what was captured or compiled stays of use."""
    model = MAKERS[make]("bert", TOKENIZERS["wordpiece"]())
    compute_model = computing_copy(model, runtime_of(64, dtype=LOW))
    places = [one.data_ptr() for one in compute_model.parameters()]
    old = answers(compute_model, "bert")
    with torch.no_grad():
        for one in model.parameters():
            one.add_(0.05 * torch.randn_like(one))
    assert torch.equal(answers(compute_model, "bert"), old)
    refresh(compute_model, model)
    assert not torch.allclose(answers(compute_model, "bert"), old, atol=1e-2)
    assert torch.equal(
        answers(compute_model, "bert"), answers(computing_copy(model, runtime_of(64, dtype=LOW)), "bert")
    )
    assert [one.data_ptr() for one in compute_model.parameters()] == places


# ---- scores that are no numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("origin", [Origin("some/model"), Origin("some/model", "finetune.learning_rate", 1e30)])
def test_a_score_that_is_no_number_stops_the_scoring_with_whose_it_is_and_what_to_look_at(rows, layout, value, origin):
    asked = []

    def score(batch: Batch) -> torch.Tensor:
        asked.append(len(batch))
        found = checksum(batch).float()
        return found.index_fill(0, torch.tensor([len(batch) - 1]), value) if len(asked) == 2 else found

    with pytest.raises(NotFinite, match=f"p0-r1 on pool: the score of text [0-9]+ is {value}; ") as said:
        score_rows(score, rows, layout, runtime_of(60), "p0-r1 on pool", origin)
    blame = "finetune.learning_rate is 1e+30: lower it" if origin.setting else "the weights of 'some/model' are damaged"
    assert blame in str(said.value)
    assert len(asked) == 2, "nothing is computed after it"
