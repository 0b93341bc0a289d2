"""pretrain: trains as a few lines of plain torch do, goes on where it stopped, and makes a model for any task."""

import csv
import dataclasses
import itertools
import json
import shutil
import signal
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from support.rows import digest, files_of, find_all, find_one, garble, lay_ground, pet, pet_run, read_json, stop_at
from support.tiny import invent, save_tiny
from torch.func import functional_call
from torch.nn import functional
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from pet.config.resolve import resolve_pretraining
from pet.modeling import delta
from pet.modeling.backbones import MaskedLM
from pet.modeling.families import BERT
from pet.modeling.families import FAMILIES as KNOWN
from pet.modeling.loading import freeze_lower
from pet.modeling.token_losses import IGNORED
from pet.modeling.tokenization import PromptTokenizer
from pet.pipeline.stages import pretrain
from pet.training import checkpoint, mlm_masking, throughput
from pet.training.checkpoint import Checkpoint
from pet.training.device import Runtime, open_runtime
from pet.training.losses import fusible_token_losses
from pet.training.mlm_corpus import open_blocks

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
LENGTH, BLOCKS = 16, 6
EPSILON = 1e-5  # with less, AdamW makes whole steps of gradients that are nothing but rounding
FAMILIES = ["bert", "roberta", "distilbert"]
CHANGES = {
    "pretrain.steps": 25,
    "pretrain.blocks": BLOCKS,
    "pretrain.length": LENGTH,
    "pretrain.warmup_steps": 3,
    "pretrain.learning_rate": 5e-3,
    "pretrain.adam_epsilon": EPSILON,
    "corpus.held_out": 0.2,
}


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrain")
    (folder / "text.txt").write_text("\n".join(invent(120)), encoding="utf-8")
    for family in FAMILIES:
        save_tiny(folder / family, family)
    return folder


def run(ground, store, family="bert", model=None, code=0, **changes):
    """`pet pretrain` on a tiny model."""
    changes = CHANGES | {name.replace("__", "."): value for name, value in changes.items()}
    sets = [word for name, value in changes.items() for word in ("--set", f"{name}={value}")]
    given = ["--corpus", ground / "text.txt", "--model", model or ground / family, "--store", store]
    return pet("pretrain", *given, *sets, code=code)


@pytest.fixture(scope="module")
def stores(ground):
    """A trained model of each family; never write into it."""
    for family in FAMILIES:
        run(ground, ground / f"store-{family}", family)
    return {family: ground / f"store-{family}" for family in FAMILIES}


def made(store):
    return find_one(store, "pretrain")


def settings_of(ground, family, **changes):
    values = {"corpus": {"files": [str(ground / "text.txt")], "held_out": 0.2}, "model": {"name": str(ground / family)}}
    trained = {name.partition(".")[2]: value for name, value in CHANGES.items() if name.startswith("pretrain.")}
    return resolve_pretraining(None, {**values, "pretrain": {**trained, **changes}})


def plain_loss(model, ids, masked):
    """Cross-entropy at the targets by the transformers model itself, all blocks padded to one shape."""
    inputs = {"input_ids": masked.batch.input_ids.view(ids)}
    if model.config.model_type == "roberta":  # it takes a <pad> among the random tokens for padding, and counts on
        inputs["position_ids"] = torch.arange(ids[1]).expand(ids) + model.config.pad_token_id + 1
    logits = model(**inputs).logits.flatten(0, 1)
    return functional.cross_entropy(logits[masked.places], masked.targets, ignore_index=IGNORED)


# ---- what is trained -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "changes",
    [{}, {"accumulation": 2}, {"decay_to": "start", "weight_decay": 9.0}, {"frozen_head": True}],
    ids=str,
)
def test_training_is_what_plain_torch_does_on_the_same_batches(ground, stores, tmp_path, family, changes):
    store = stores[family]
    if changes:
        store = tmp_path
        run(ground, store, family, **{f"pretrain__{name}": value for name, value in changes.items()})
    settings = settings_of(ground, family, **changes)
    accumulation = settings.pretrain.accumulation
    model = AutoModelForMaskedLM.from_pretrained(ground / family).eval()
    prompt_tokenizer = PromptTokenizer(AutoTokenizer.from_pretrained(ground / family), family)
    blocks = open_blocks(find_one(store, "corpus"), "train", prompt_tokenizer, LENGTH)
    batches = pretrain.draw_batches([blocks], settings, open_runtime(settings.runtime), prompt_tokenizer, True, 0)
    if "frozen_head" in changes:  # tied embeddings are the decoder's; a head without a name of its own is all the rest
        body = {id(one) for one in model.base_model.parameters()}
        for one in model.parameters():
            one.requires_grad_(id(one) in body and one is not model.get_input_embeddings().weight)
    held = [one for one in model.base_model.parameters() if one.ndim > 1] if "decay_to" in changes else []
    began = [one.detach().clone() for one in held]
    decayed = [one for one in model.parameters() if one.ndim > 1 and not held]
    others = [one for one in model.parameters() if one.ndim == 1 or held]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, eps=EPSILON)
    losses = []
    for step in range(25):
        rate = 5e-3 * (step / 3 if step < 3 else (25 - step) / 22)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        found = [plain_loss(model, (BLOCKS, LENGTH), next(batches)) for _ in range(accumulation)]
        (sum(found) / accumulation).backward()
        losses.append(sum(found).item() / accumulation)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        with torch.no_grad():
            for one, start in zip(held, began, strict=True):
                one.lerp_(start, 9.0 * rate)
        optimizer.step()
    told = read_json(made(store) / "training.json")
    assert told["steps"] == [10, 20, 25]
    expected = [np.mean(losses[:10]), np.mean(losses[10:20]), np.mean(losses[20:])]
    assert told["losses"]["loss"] == pytest.approx(expected, rel=1e-4)
    trained = AutoModelForMaskedLM.from_pretrained(made(store) / "model")
    for (name, one), other in zip(trained.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4, msg=lambda said, name=name: f"{name}: {said}")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("frozen_head", [False, True])
def test_adapters_are_trained_as_plain_torch_trains_them_beside_the_head(ground, tmp_path, family, frozen_head):
    """Weights W + 2 B A in the model itself; the head is trained too unless it is frozen, the rest is not."""
    lora = {"pretrain__method": "lora", "pretrain__lora.rank": 2, "pretrain__lora.alpha": 4}
    lora["pretrain__frozen_head"] = frozen_head
    lora |= {"pretrain__lora.targets": "all-linear", "pretrain__lora.learning_rate": 1e-2}
    run(ground, tmp_path, family, **lora)
    start = AutoModelForMaskedLM.from_pretrained(ground / family).eval()
    prompt_tokenizer = PromptTokenizer(AutoTokenizer.from_pretrained(ground / family), family)
    blocks = open_blocks(find_one(tmp_path, "corpus"), "train", prompt_tokenizer, LENGTH)
    settings = settings_of(ground, family)
    batches = pretrain.draw_batches([blocks], settings, open_runtime(settings.runtime), prompt_tokenizer, True, 0)
    fixed = {name: one.detach().clone() for name, one in start.named_parameters()}
    prefix = f"{start.base_model_prefix}."
    maps = [name for name in fixed if name.startswith(prefix) and "layer." in name and fixed[name].ndim == 2]
    names = [] if frozen_head else [name for name in fixed if not name.startswith(prefix)]
    head = {name: fixed[name].clone().requires_grad_() for name in names}
    generator, pairs = torch.Generator().manual_seed(0), {}
    for name in maps:
        out, inside = fixed[name].shape
        down = torch.empty(2, inside).uniform_(-(inside**-0.5), inside**-0.5, generator=generator)
        pairs[name] = (down.requires_grad_(), torch.zeros(out, 2, requires_grad=True))
    trained = [*(one for pair in pairs.values() for one in pair), *head.values()]
    decayed, others = ([one for one in trained if (one.ndim > 1) == wanted] for wanted in (True, False))
    optimizer = torch.optim.AdamW([{"params": decayed}, {"params": others, "weight_decay": 0.0}], eps=EPSILON)

    def weights():
        return fixed | head | {name: fixed[name] + 2 * up @ down for name, (down, up) in pairs.items()}

    for step in range(25):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (step / 3 if step < 3 else (25 - step) / 22)
        optimizer.zero_grad()
        masked = next(batches)
        inputs = {"input_ids": masked.batch.input_ids.view(BLOCKS, LENGTH)}
        logits = functional_call(start, weights(), (), inputs, tie_weights=True).logits.flatten(0, 1)
        functional.cross_entropy(logits[masked.places], masked.targets, ignore_index=IGNORED).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    found = dict(AutoModelForMaskedLM.from_pretrained(made(tmp_path) / "model").named_parameters())
    for name, one in weights().items():
        torch.testing.assert_close(found[name], one, rtol=1e-3, atol=2e-4, msg=lambda m, n=name: n + m)
    assert not torch.equal(found[maps[0]], fixed[maps[0]])


@pytest.mark.parametrize("method", ["full", "lora"])
def test_what_is_packed_makes_the_published_model_from_the_one_it_began_as(ground, tmp_path, method):
    run(ground, tmp_path, pretrain__pack=True, pretrain__frozen_layers=0, pretrain__method=method)
    packed = load_file(made(tmp_path) / "delta.safetensors")
    start = AutoModelForMaskedLM.from_pretrained(ground / "bert")
    start.load_state_dict(delta.unpack(dict(start.named_parameters()), packed), strict=False)
    published = AutoModelForMaskedLM.from_pretrained(made(tmp_path) / "model")
    for (name, one), other in zip(start.named_parameters(), published.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6, msg=lambda m, n=name: n + m)
    assert not any("embeddings" in name for name in packed)
    told = read_json(made(tmp_path) / "training.json")["held_out_loss"]
    assert told["after"] < told["before"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_held_out_loss_is_that_of_the_plain_model_on_texts_it_was_not_trained_on(ground, stores, family):
    store = stores[family]
    prompt_tokenizer = PromptTokenizer(AutoTokenizer.from_pretrained(ground / family), family)
    blocks = open_blocks(find_one(store, "corpus"), "held_out", prompt_tokenizer, LENGTH)
    told = read_json(made(store) / "training.json")["held_out_loss"]
    for name, folder in (("before", ground / family), ("after", made(store) / "model")):
        model, rng = AutoModelForMaskedLM.from_pretrained(folder).eval(), np.random.default_rng(0)
        total = count = 0
        for numbers in np.array_split(np.arange(len(blocks)), -(-len(blocks) // 16)):
            ids = blocks.read(numbers)
            masked = mlm_masking.hide(ids, 0.15, prompt_tokenizer, True, rng, CPU)
            total += plain_loss(model, ids.shape, masked).item() * int((masked.targets != IGNORED).sum())
            count += int((masked.targets != IGNORED).sum())
        assert told[name] == pytest.approx(total / count, abs=1e-3)
    assert told["after"] < told["before"] - 0.3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("frozen", [None, 0, 1])
def test_the_work_of_a_token_is_that_of_every_product_it_goes_through(ground, family, frozen):
    """Two layers, hidden size 32; where the last can be computed for a quarter of the tokens, the others go through its
    keys and values. Forward, for the gradient of what comes in, and for that of the weights, where they are trained."""
    settings = settings_of(ground, family, mask_probability=0.25, frozen_layers=frozen).pretrain
    cloze = MaskedLM(AutoModelForMaskedLM.from_pretrained(ground / family))
    freeze_lower(cloze.lm, frozen, "frozen_layers")
    maps, attention = 4 * 32 * 32 + 2 * 32 * 48, 2 * LENGTH * 32  # attention has two products of T x H each
    layer = maps + attention
    last = layer if family == "distilbert" else 0.25 * layer + 0.75 * 2 * 32 * 32
    first = layer if frozen == 1 else 3 * layer
    dense, words = 32 * 32, 32 * cloze.lm.config.vocab_size
    head = 0.25 * (3 * dense + (3 if frozen is None else 2) * words)
    assert throughput.flops_per_token(cloze, settings) == pytest.approx(2 * (first + 3 * last + head))


@pytest.mark.parametrize(("size", "batch"), [(12, 6), (12, 5), (4, 6)])
def test_every_block_comes_once_before_any_comes_again(size, batch):
    seen = np.concatenate([pretrain.numbers_at(size, batch, number, seed=3) for number in range(2 * size)])
    passes = seen[: len(seen) // size * size].reshape(-1, size)
    assert (np.sort(passes) == np.arange(size)).all()
    assert len({tuple(one) for one in passes.tolist()}) > 1
    assert not np.array_equal(pretrain.numbers_at(size, batch, 0, seed=4), seen[:batch])


def test_blocks_of_the_shape_that_is_measured_are_trained_on(ground, tmp_path):
    run(
        ground, tmp_path, pretrain__blocks=12, pretrain__held_out_blocks=12, pretrain__steps=2, pretrain__warmup_steps=0
    )


def test_the_last_steps_read_longer_blocks_of_as_many_tokens(ground, stores, tmp_path):
    run(ground, tmp_path, pretrain__last_length=32, pretrain__last_share=0.4)
    settings = settings_of(ground, "bert", last_length=32, last_share=0.4)
    prompt_tokenizer = PromptTokenizer(AutoTokenizer.from_pretrained(ground / "bert"), "bert")
    streams = [open_blocks(find_one(tmp_path, "corpus"), "train", prompt_tokenizer, length) for length in (16, 32)]
    runtime = open_runtime(settings.runtime)
    found = [
        one.batch for one in islice(pretrain.draw_batches(streams, settings, runtime, prompt_tokenizer, True, 0), 25)
    ]
    assert [one.width for one in found] == [16] * 15 + [32] * 10
    assert {len(one.input_ids) for one in found} == {BLOCKS * 16}
    mine, other = (load_file(made(one) / "model" / "model.safetensors") for one in (tmp_path, stores["bert"]))
    assert not all(torch.equal(one, other[name]) for name, one in mine.items())


@pytest.mark.filterwarnings("default")  # torch's own, on its way through the code
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_what_is_compiled_for_blocks_learns_the_same_and_measuring_compiles_nothing(
    ground, stores, tmp_path, monkeypatch, family
):
    """Traced as on a GPU, in one piece a part, but run by torch itself."""
    compile_part, stats = torch.nn.Module.compile, torch._dynamo.utils.counters["stats"]

    def traced(self, dynamic):
        compile_part(self, dynamic=dynamic, backend="aot_eager", fullgraph=True)

    torch._dynamo.reset()
    stats.clear()
    monkeypatch.setattr(torch.nn.Module, "compile", traced)
    monkeypatch.setattr(Runtime, "compiles", lambda self, size: True)
    monkeypatch.setattr("pet.training.scoring.compiled_token_losses", lambda alike: fusible_token_losses)
    measured, graphs = pretrain.measure, []

    def measure(*given):
        before = stats["unique_graphs"]
        found = measured(*given)
        graphs.append(stats["unique_graphs"] - before)
        return found

    monkeypatch.setattr(pretrain, "measure", measure)
    run(ground, tmp_path, family)
    assert graphs == [0, 0]
    assert stats["unique_graphs"] == 3, "embeddings, a layer, the last layer"
    mine, other = (read_json(made(one) / "training.json") for one in (tmp_path, stores[family]))
    assert mine["losses"]["loss"] == pytest.approx(other["losses"]["loss"], rel=1e-4)
    assert mine["held_out_loss"]["after"] == pytest.approx(other["held_out_loss"]["after"], rel=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_half_of_their_frequency_is_taken_off_the_bias_of_rare_words(ground, stores, tmp_path, family, monkeypatch):
    """Against probabilities of a model that knows shares alone: those of rare words, together, stay what they were."""
    monkeypatch.setattr("pet.training.mlm_corpus.COUNTED", 70)
    monkeypatch.setattr(pretrain, "COMMONEST", 0.02)
    monkeypatch.setattr(pretrain, "RAREST", 0.004)
    run(ground, tmp_path, family, pretrain__logit_adjustment=0.5)
    mine, plain = (AutoModelForMaskedLM.from_pretrained(made(one) / "model") for one in (tmp_path, stores[family]))
    prompt_tokenizer = PromptTokenizer(AutoTokenizer.from_pretrained(ground / family), family)
    tokens = np.asarray(open_blocks(find_one(tmp_path, "corpus"), "train", prompt_tokenizer, LENGTH).tokens)
    share = np.array([(tokens == word).mean() for word in range(mine.config.vocab_size)])
    rare = share < 0.02
    bias = mine.get_output_embeddings().bias.detach() - plain.get_output_embeddings().bias.detach()
    shift = bias.double().numpy()
    assert (shift[~rare] == 0).all()
    assert (share * np.exp(shift))[rare].sum() == pytest.approx(share[rare].sum(), rel=1e-5)
    among = rare & (share > 0.004)
    assert len(set(share[among])) > 2
    assert np.ptp((shift + 0.5 * np.log(share, where=among, out=shift.copy()))[among]) < 1e-5
    rarest = shift[share < 0.004]
    assert len(rarest) > 1
    assert np.ptp(rarest) < 1e-6
    assert rarest[0] > shift[among].max() - 1e-6
    for (name, one), other in zip(mine.named_parameters(), plain.parameters(), strict=True):
        assert other is plain.get_output_embeddings().bias or torch.equal(one, other), name
    told, before = (read_json(made(one) / "training.json") for one in (tmp_path, stores[family]))
    assert told["losses"] == before["losses"]
    assert told["held_out_loss"]["after"] != before["held_out_loss"]["after"]


def test_a_corpus_without_rare_words_leaves_the_bias_as_it_is(ground, stores, tmp_path):
    """All words of these few texts are more frequent than one in a thousand."""
    run(ground, tmp_path, pretrain__logit_adjustment=0.5)
    mine, plain = (AutoModelForMaskedLM.from_pretrained(made(one) / "model") for one in (tmp_path, stores["bert"]))
    assert torch.equal(mine.get_output_embeddings().bias, plain.get_output_embeddings().bias)


def test_where_the_bias_is_not_known_adjusting_it_is_refused(ground, tmp_path, monkeypatch):
    monkeypatch.setitem(KNOWN, "bert", dataclasses.replace(BERT, lm_head=None))
    said = run(ground, tmp_path, code=2, pretrain__logit_adjustment=0.5).output
    assert "pretrain.logit_adjustment is 0.5, but this bert model has no LM head with a bias" in " ".join(said.split())


# ---- the artifact --------------------------------------------------------------------------------------------------


def test_the_model_can_be_named_by_a_task(ground, stores, tmp_path, tiny_folder):
    model = made(stores["bert"]) / "model"
    done = pet_run(lay_ground(tmp_path / "ground", tiny_folder), tmp_path / "store", "--model", model)
    assert "student" in done.stdout
    assert files_of(made(stores["bert"])) >= {"manifest.json", "training.json", "model/model.safetensors"}


def test_again_nothing_is_trained_and_no_file_changes(ground, stores, tmp_path):
    shutil.copytree(stores["bert"], tmp_path / "store")
    before = {name: digest(tmp_path / "store" / name) for name in files_of(tmp_path / "store")}
    done = run(ground, tmp_path / "store")
    assert "corpus: reused" in done.stderr
    assert "pretrain: reused" in done.stderr
    assert {name: digest(tmp_path / "store" / name) for name in files_of(tmp_path / "store")} == before


def test_another_rate_trains_anew_on_the_same_corpus(ground, stores, tmp_path):
    shutil.copytree(stores["bert"], tmp_path / "store")
    assert "corpus: reused" in run(ground, tmp_path / "store", pretrain__learning_rate=1e-3).stderr
    assert len(find_all(tmp_path / "store", "pretrain")) == 2


def test_an_encoder_without_a_head_is_given_one(ground, tmp_path):
    body = AutoModel.from_pretrained(ground / "bert", add_pooling_layer=False)
    body.save_pretrained(tmp_path / "body")
    AutoTokenizer.from_pretrained(ground / "bert").save_pretrained(tmp_path / "body")
    run(ground, tmp_path / "store", model=tmp_path / "body")
    _, info = AutoModelForMaskedLM.from_pretrained(made(tmp_path / "store") / "model", output_loading_info=True)
    assert not info["missing_keys"]
    told = read_json(made(tmp_path / "store") / "training.json")["held_out_loss"]
    assert told["after"] < told["before"] - 0.3


def test_a_model_that_lacks_more_than_its_head_is_refused(ground, tmp_path):
    shutil.copytree(ground / "bert", tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    weights = load_file(path)
    del weights["bert.encoder.layer.1.output.dense.weight"]
    save_file(weights, path, {"format": "pt"})
    done = run(ground, tmp_path / "store", model=tmp_path / "model", code=2)
    assert "its weights lack 'bert.encoder.layer.1.output.dense.weight'" in done.output
    assert not find_all(tmp_path / "store", "pretrain")


# ---- clock and interruption ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "dropout", "precision"),
    [("bert", 0.0, "fp32"), ("distilbert", 0.1, "fp32"), ("bert", 0.0, "bf16"), ("roberta", 0.1, "bf16")],
)
def test_an_interrupted_training_goes_on_and_ends_as_if_nothing_had_happened(
    ground, tmp_path, monkeypatch, family, dropout, precision
):
    changes = {"pretrain__dropout": dropout, "runtime__precision": precision}
    whole, store = tmp_path / "whole", tmp_path / "store"
    run(ground, whole, family, **changes)
    with monkeypatch.context() as patch:
        stop_at(patch, 13, signal.SIGINT)  # between two reports
        told = run(ground, store, family, code=130, **changes).stderr
    assert "pretrain: saved after step 13" in told
    assert "goes on from there" in told
    assert not find_all(store, "pretrain")
    assert "pretrain: going on after step 13" in run(ground, store, family, **changes).stderr
    assert_as_whole(store, whole)


def assert_as_whole(store, whole):
    """The same model and losses, and nothing is left of the way there."""
    mine, expected = (load_file(made(one) / "model" / "model.safetensors") for one in (store, whole))
    assert all(torch.equal(one, expected[name]) for name, one in mine.items())
    told, whole_told = (read_json(made(one) / "training.json") for one in (store, whole))
    assert (told["steps"], told["losses"]) == (whole_told["steps"], whole_told["losses"])
    assert [path.name for path in (store / "pretrain").iterdir()] == [made(store).name]
    assert made(store).name == made(whole).name


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: garble(next(folder.glob("state-*"))),
        lambda folder: next(folder.glob("state-*")).unlink(),
        lambda folder: garble(folder / "state.json"),
        lambda folder: (folder / "state.json").write_text("{}"),
    ],
    ids=["weights", "no weights", "garbled", "facts"],
)
def test_a_damaged_checkpoint_is_said_and_training_starts_anew(ground, stores, tmp_path, monkeypatch, harm):
    with monkeypatch.context() as patch:
        stop_at(patch, 13)
        run(ground, tmp_path, code=143)
    (checkpoint,) = tmp_path.glob("pretrain/.draft-*/.checkpoint")
    harm(checkpoint)
    assert "pretrain: the checkpoint is of no use, training starts anew: " in run(ground, tmp_path).stderr
    assert_as_whole(tmp_path, stores["bert"])


def test_what_is_saved_on_the_way_changes_nothing(ground, stores, tmp_path, monkeypatch):
    steps, write = [], Checkpoint.write

    def note(self, snapshot):
        steps.append(snapshot.facts["step"])
        write(self, snapshot)

    monkeypatch.setattr(Checkpoint, "write", note)
    run(ground, tmp_path, runtime__checkpoint_minutes=0)
    assert steps == list(range(1, CHANGES["pretrain.steps"] + 1))
    assert_as_whole(tmp_path, stores["bert"])


def ticking(monkeypatch):
    """A clock that goes on by a second whenever somebody looks."""
    clock = SimpleNamespace(perf_counter=map(float, itertools.count()).__next__)
    for module in (throughput, checkpoint):
        monkeypatch.setattr(module, "time", clock)


def test_after_the_minutes_asked_for_training_ends_with_the_rate_at_its_end(ground, tmp_path, monkeypatch):
    ticking(monkeypatch)
    done = run(ground, tmp_path, pretrain__steps=100_000, pretrain__minutes=1.0)
    assert " of 100,000 steps" in done.stderr
    told = json.loads((made(tmp_path) / "training.json").read_text())
    assert 10 <= told["steps"][-1] <= 40  # two looks at the clock a step, or a few more
    assert told["held_out_loss"]["after"] < told["held_out_loss"]["before"]


def test_the_minutes_of_a_training_that_was_stopped_are_counted(ground, tmp_path, monkeypatch):
    ticking(monkeypatch)
    changes = {"pretrain__steps": 100_000, "pretrain__minutes": 1.0}
    run(ground, tmp_path / "whole", **changes)
    with monkeypatch.context() as patch:
        stop_at(patch, 9)
        run(ground, tmp_path / "store", code=143, **changes)
    run(ground, tmp_path / "store", **changes)
    whole, stopped = (read_json(made(tmp_path / name) / "training.json") for name in ("whole", "store"))
    assert 9 < stopped["steps"][-1] <= whole["steps"][-1]
    assert 60 <= stopped["seconds"] < 70


def test_the_speed_told_is_that_of_training_without_pauses(ground, tmp_path, monkeypatch):
    clock = iter([*range(5), *range(1000, 2000)])  # a second for every ten steps, and once 996
    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: float(next(clock))))
    run(ground, tmp_path, pretrain__steps=60)
    told = read_json(made(tmp_path) / "training.json")
    assert told["tokens_per_second"] == 10 * BLOCKS * LENGTH
    assert told["share_of_matmul"] == pytest.approx(told["flops"] / told["matmul_rate"], rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pretrain__length": 161}, "pretrain.length 161 is more than the 160 tokens"),
        ({"pretrain__frozen_layers": 3}, "pretrain.frozen_layers is 3, but this bert model has 2 layers"),
        ({"pretrain__mask_probability": 0}, "pretrain.mask_probability"),
        ({"pretrain__learning_rate": 1e30, "pretrain__warmup_steps": 0}, "pretrain: the loss became nan in step "),
        ({"pretrain__last_length": 161}, "pretrain.last_length 161 is more than the 160 tokens"),
        ({"pretrain__frozen_layers": 3}, "pretrain.frozen_layers is 3, but this bert model has 2 layers; lower it"),
        ({"pretrain__warmup_steps": 25}, "pretrain.warmup_steps 25 is not less than pretrain.steps 25; lower it"),
        ({"pretrain__method": "lora", "pretrain__lora.targets": "[keys]"}, "pretrain.lora.targets ['keys']: the bert"),
        (
            {"pretrain__method": "lora", "pretrain__decay_to": "start"},
            "pretrain.decay_to is start, but with method lora",
        ),
        ({"corpus__data": "texts"}, "corpus.data 'texts' is of no task; give --task NAME too"),
        ({"finetune__steps": 3}, "`finetune` is a setting of another command; use pet run"),
    ],
)
def test_what_cannot_be_is_said(ground, tmp_path, changes, message):
    """Before the corpus is read, except for what only training can show."""
    assert message in run(ground, tmp_path, code=2, **changes).output.replace("\n", " ")
    assert "learning_rate" in str(changes) or not find_all(tmp_path, "corpus")


def test_a_tokenizer_with_more_words_than_the_model_is_refused(ground, tmp_path):
    shutil.copytree(ground / "bert", tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(ground / "bert")
    tokenizer.add_tokens([f"new{number}" for number in range(1000)])
    tokenizer.save_pretrained(tmp_path / "model")
    found = run(ground, tmp_path / "store", model=tmp_path / "model", code=2).output
    assert "words and the model" in found
    assert not find_all(tmp_path / "store", "corpus")


def test_the_texts_of_a_task_are_a_corpus_but_those_of_its_test_set(ground, tmp_path):
    task = lay_ground(tmp_path / "task", ground / "bert")
    sets = [word for name, value in CHANGES.items() for word in ("--set", f"{name}={value}")]
    pet("pretrain", "--task", task.card, "--model", ground / "bert", "--store", tmp_path, *sets)
    prompt_tokenizer = PromptTokenizer(AutoTokenizer.from_pretrained(ground / "bert"), "bert")
    streams = [np.fromfile(path, dtype="<u2") for path in sorted(find_one(tmp_path, "corpus").glob("*.tokens"))]
    (separator,) = prompt_tokenizer.frames[1].after
    pieces = [one for ids in streams for one in np.split(ids, np.flatnonzero(ids == separator) + 1) if len(one)]
    with (task.card.parent / "train.csv").open(newline="") as file:
        expected = [f"{row['headline']} {row['body']}" for row in csv.DictReader(file)]
    assert sorted(one[:-1].tolist() for one in pieces) == sorted(list(ids) for ids in prompt_tokenizer.spell(expected))


def test_a_task_whose_test_set_is_drawn_from_its_texts_is_refused(ground, tmp_path):
    task = lay_ground(tmp_path / "task", ground / "bert")
    card = yaml.safe_load(task.card.read_text())
    del card["files"]["test"]
    task.card.write_text(yaml.safe_dump(card))
    found = pet("pretrain", "--task", task.card, "--model", ground / "bert", "--store", tmp_path / "store", code=2)
    assert "has no test texts of its own" in found.output
    assert not find_all(tmp_path / "store", "corpus")


def test_texts_are_not_taken_for_a_recipe_nor_recipes_for_pipelines(ground, tmp_path):
    text = ground / "text.txt"
    assert f"give --corpus {text}" in pet("pretrain", text, code=2).output
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("corpus: {files: [text.txt]}")
    assert "`corpus` is a setting of another command; use pet pretrain, or leave it out" in (
        pet("run", recipe, "--dry-run", code=2).output.replace("\n", " ")
    )
    assert (
        "is a folder; name the files in it"
        in pet("pretrain", "--corpus", ground, "--model", ground / "bert", code=2).output
    )


def test_without_text_there_is_nothing_to_do(tmp_path):
    assert "nothing to train on; give --corpus FILE" in pet("pretrain", "--store", tmp_path, code=2).output
