"""finetune: what each member writes, that nothing but its own settings decides what it becomes, and its losses."""

import dataclasses
import json
import shutil
from itertools import islice

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file
from support.plain import FILLED, alone, assert_same_gradients, gradients, tokens_of
from support.rows import (
    LABELS,
    MAX_LENGTH,
    PATTERNS,
    digest,
    files_of,
    find_all,
    find_one,
    garble,
    lay_ground,
    lively_model,
    make_up_to,
    members_of,
    node_of,
    open_context,
    pet_run,
    read_json,
    save_lively,
)
from transformers import AutoModelForMaskedLM, AutoTokenizer

from pet.errors import DamagedArtifact, SettingsError
from pet.modeling import packing
from pet.modeling.batch import Layout, round_up, tensors_of
from pet.modeling.token_losses import IGNORED
from pet.pipeline.members.batches import TARGET_MULTIPLE, cloze_losses, pad_targets
from pet.pipeline.members.data import MemberData, MemberTrainer
from pet.pipeline.score_files import open_scores, read_scores
from pet.pipeline.stages import finetune
from pet.pipeline.stages.finetune import draw_batches
from pet.store.store import Store
from pet.tasks.texts import read_texts

SCORES = "scores.safetensors"
CHECKPOINT = {"model/config.json", "model/model.safetensors", "model/tokenizer.json", "model/tokenizer_config.json"}
MEMBERS = ["p0-r0", "p0-r1", "p1-r0", "p1-r1"]


def scores_of(folder):
    return load_file(folder / SCORES)


# ---- what is written -----------------------------------------------------------------------------------------------


def test_there_is_one_untuned_artifact_a_pattern_and_one_member_a_pattern_and_repetition(done):
    names = {folder.name.split("-lively-")[1].rsplit("-", 1)[0] for folder in find_all(done.store, "finetune")}
    assert names == {"p0-untuned", "p1-untuned", *MEMBERS}


@pytest.mark.parametrize("member", MEMBERS)
def test_a_member_writes_scores_training_and_a_checkpoint(done, member):
    folder = done.one("finetune", member)
    assert files_of(folder) == {"manifest.json", SCORES, "training.json", *CHECKPOINT}
    assert {name: array.shape for name, array in scores_of(folder).items()} == {
        "train": (12, 3),
        "pool": (30, 3),
        "test": (20, 3),
    }
    training = read_json(folder / "training.json")
    assert training["steps"] == [2]
    assert set(training["losses"]) == {"loss", "label_loss", "mlm_loss"}


@pytest.mark.parametrize("pattern", [0, 1])
def test_an_untuned_pattern_writes_scores_but_no_weights_and_leaves_the_pool_alone(done, pattern):
    folder = done.one("finetune", f"p{pattern}-untuned")
    assert files_of(folder) == {"manifest.json", SCORES, "training.json"}
    assert set(scores_of(folder)) == {"train", "test"}
    assert set(read_json(folder / "training.json")) == {"train_accuracy"}


@pytest.mark.parametrize("member", ["p0-untuned", "p1-r1"])
def test_the_accuracy_on_the_labelled_texts_is_that_of_the_scores(done, member):
    folder = done.one("finetune", member)
    gold = read_texts(done.one("prepare") / "train.parquet").labels
    predicted = [LABELS[number] for number in scores_of(folder)["train"].argmax(-1)]
    right = sum(one == other for one, other in zip(gold, predicted, strict=True))
    assert read_json(folder / "training.json")["train_accuracy"] == pytest.approx(right / len(gold))


def ask(folder, pattern, texts):
    """Scores [N, L] as a user of transformers would compute them: fill the pattern, tokenise it as a whole, read the
    full logits at the mask."""
    lm, tokenizer = AutoModelForMaskedLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    words = tokenizer.convert_tokens_to_ids(LABELS)
    found = []
    for headline, body in zip(texts.fields["headline"], texts.fields["body"], strict=True):
        segments = pattern.format(mask="[MASK]", headline=headline, body=body).split(" || ")
        inputs = tokenizer(*segments, return_tensors="pt")
        place = inputs["input_ids"][0].tolist().index(tokenizer.mask_token_id)
        with torch.inference_mode():
            found.append(lm(**inputs).logits[0, place, words].numpy())
    return np.stack(found)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("split", ["train", "pool", "test"])
def test_a_member_s_checkpoint_loads_in_transformers_and_gives_its_scores(done, number, split):
    folder = done.one("finetune", f"p{number}-r1")
    texts = read_texts(done.one("prepare") / f"{split}.parquet")
    np.testing.assert_allclose(
        ask(folder / "model", PATTERNS[number], texts), scores_of(folder)[split], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("number", [0, 1])
def test_the_scores_of_an_untuned_pattern_are_those_of_the_model_itself(done, tmp_path_factory, number):
    model = lively_model(tmp_path_factory.getbasetemp())
    texts = read_texts(done.one("prepare") / "test.parquet")
    untuned = scores_of(done.one("finetune", f"p{number}-untuned"))["test"]
    np.testing.assert_allclose(ask(model, PATTERNS[number], texts), untuned, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("stage", "part"), [("prepare", ""), ("finetune", "p1-untuned"), ("finetune", "p0-r0"), ("distill", "")]
)
def test_a_manifest_says_what_was_made_from_what_and_how(done, stage, part):
    folder = done.one(stage, part)
    manifest = read_json(folder / "manifest.json")
    assert folder.name == f"{manifest['label']}-{manifest['identity']}"
    assert (manifest["stage"], manifest["seed"], manifest["device"]) == (stage, 0, "cpu")
    assert manifest["precision"] == "fp32"
    assert manifest["peak_memory_bytes"] > 2**20
    assert manifest["seconds"] >= 0
    assert {"torch", "transformers"} <= set(manifest["packages"])
    prepared = read_json(done.one("prepare") / "manifest.json")["identity"]
    assert manifest["inputs"].get("prepare") == (None if stage == "prepare" else prepared)


@pytest.mark.parametrize("stage", ["prepare", "finetune", "label", "distill", "baseline", "evaluate", "run"])
def test_a_manifest_lists_every_file_with_its_size_and_digest(done, stage):
    for folder in find_all(done.store, stage):
        listed = read_json(folder / "manifest.json")["files"]
        assert {one["path"] for one in listed} == files_of(folder) - {"manifest.json"}
        for one in listed:
            path = folder / one["path"]
            assert (one["size"], one["sha256"]) == (path.stat().st_size, digest(path)), path


# ---- what decides what a member becomes ----------------------------------------------------------------------------


def test_training_changes_the_weights_and_the_scores(done, tmp_path_factory):
    folder = done.one("finetune", "p0-r0")
    before = load_file(lively_model(tmp_path_factory.getbasetemp()) / "model.safetensors")
    after = load_file(folder / "model" / "model.safetensors")
    assert set(after) == set(before)
    unchanged = [name for name in after if np.array_equal(before[name], after[name])]
    assert unchanged == []
    assert not np.allclose(scores_of(folder)["test"], scores_of(done.one("finetune", "p0-untuned"))["test"])


def test_two_repetitions_of_a_pattern_differ(done):
    one, other = (scores_of(done.one("finetune", f"p0-r{repetition}"))["pool"] for repetition in (0, 1))
    assert not np.allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("patterns", ["[1]", "[1, 0]"])
def test_a_member_does_not_depend_on_which_others_are_made_or_in_which_order(done, tmp_path, patterns):
    """In a fresh store: the same identities, and the same bytes as in the whole run."""
    pet_run(done.ground, tmp_path, "--stage", "prepare")
    pet_run(done.ground, tmp_path, "--stage", "finetune", "--set", f"finetune.patterns={patterns}")
    made = find_all(tmp_path, "finetune")
    assert len(made) == 3 * len(json.loads(patterns))
    for folder in made:
        for name in files_of(folder) - {"manifest.json"}:
            assert digest(folder / name) == digest(done.store / "finetune" / folder.name / name), (folder.name, name)


def test_another_seed_trains_another_member_even_on_the_same_draw(done, tmp_path):
    """Drawing `first`, so that the seed only moves the training."""
    options = ["--set", "data.draw=first", "--set", "finetune.repetitions=1", "--set", "finetune.patterns=[0]"]
    for seed in (0, 1):
        pet_run(done.ground, tmp_path, "--stage", "prepare", "--seed", seed, *options)
        pet_run(done.ground, tmp_path, "--stage", "finetune", "--seed", seed, *options)
    assert len(find_all(tmp_path, "prepare")) == 1
    assert len(find_all(tmp_path, "finetune", "untuned")) == 1
    zero, one = (scores_of(find_one(tmp_path, "finetune", f"-s{seed}-lively-p0-r0"))["pool"] for seed in (0, 1))
    assert not np.allclose(zero, one, atol=1e-4)


def test_members_are_made_again_where_the_card_asks_otherwise(done, tmp_path):
    """Another word for a label, another identity; the texts stay."""
    shutil.copytree(done.ground.folder, tmp_path / "ground")
    card = yaml.safe_load((tmp_path / "ground" / "task.yaml").read_text())
    card["verbalizers"]["default"]["tech"] = ["code"]
    (tmp_path / "ground" / "task.yaml").write_text(yaml.safe_dump(card, sort_keys=False))
    result = pet_run(done.ground, done.store, "--dry-run", "--task", tmp_path / "ground")
    states = {line.split()[0]: line.endswith("(to be made)") for line in result.stdout.splitlines()[:-1]}
    assert states == {"prepare": False, "finetune": True, "label": True, "distill": True, "evaluate": True}


# ---- micro-batches and losses --------------------------------------------------------------------------------------


LAYOUTS = {"end to end": None, "filled up": FILLED, "padded": Layout(True, None, 8)}


def member_data_of(ctx):
    """What the members of a run share."""
    return MemberData(ctx, node_of(ctx, "prepare").artifact, MemberTrainer(ctx, ctx.start(None, None)))


@pytest.fixture
def open_bench(done):
    """A bench over the finished run's splits, with finetune settings of one's own."""

    def open_it(**settings):
        ctx = open_context(done.ground, done.store, finetune=settings)
        return member_data_of(ctx)

    return open_it


@pytest.fixture(params=LAYOUTS)
def any_layout(request, monkeypatch):
    """Batches as on a CPU, as on a GPU, and as of a family that needs padded rows."""
    if LAYOUTS[request.param]:
        monkeypatch.setattr(MemberTrainer, "layout", lambda self: LAYOUTS[request.param])
    return request.param


def batches_of(member_data, number, *patterns, seed=0):
    """The first micro-batches of one member of each of these patterns (default: the first), and what they are asked."""
    asked = [member_data.ask(member_data.ctx.pvps[pattern]) for pattern in patterns or (0,)]
    drawn = draw_batches(member_data, asked, [seed + pattern for pattern in patterns or (0,)])
    return list(islice(drawn, number)), asked


def targets_of(given):
    """Places and tokens of a batch's MLM targets, without what fills them up; that comes last."""
    asked = int((given.targets != IGNORED).sum())
    assert (given.targets[asked:] == IGNORED).all()
    return given.target_places[:asked], given.targets[:asked]


def rows_of(given):
    """Token ids of each row, without padding."""
    return [tuple(given.batch.input_ids[tokens].tolist()) for _, tokens in alone(given.batch)]


def texts_of(rows):
    """Token ids of all texts of a split."""
    found = rows.encoder.join(rows, np.arange(len(rows)))
    return [tuple(one.tolist()) for one in np.split(found.ids, np.cumsum(found.lengths)[:-1])]


def reference_losses(member_data, given, member=0):
    """(label loss, MLM loss) of a member in float64, from the full logits of one row after another."""
    lm = AutoModelForMaskedLM.from_pretrained(member_data.ctx.settings.model.name).double()
    logits = torch.zeros(len(given.batch.input_ids), lm.config.vocab_size, dtype=torch.float64)
    with torch.inference_mode():
        for inputs, tokens in alone(given.batch):
            logits[tokens] = lm(**inputs).logits[0]
    words = member_data.ctx.prompt_tokenizer.tokenizer.convert_tokens_to_ids(LABELS)
    labels = given.labels[member].tolist()
    places = given.label_places.view(given.labels.shape)[member]
    label = 0.0
    for place, gold in zip(places.tolist(), labels, strict=True):
        assert given.batch.input_ids[place] == member_data.ctx.prompt_tokenizer.mask_id
        label -= float(logits[place, words].log_softmax(-1)[gold]) / len(labels)
    own = [(p, t) for p, t in zip(*targets_of(given), strict=True) if given.members[p] == member]
    mlm = -sum(float(logits[place].log_softmax(-1)[target]) for place, target in own) / len(own)
    return label, mlm


@pytest.mark.parametrize("alpha", [1e-4, 0.3])
@pytest.mark.parametrize("pattern", [0, 1])
def test_the_losses_are_those_of_the_full_logits_in_float64(open_bench, any_layout, alpha, pattern):
    """L = (1 - alpha) CE + alpha MLM (P1 section 3.2), from a separate forward pass without any shortcut."""
    member_data = open_bench(labelled_batch=4, unlabelled_batch=5, mask_probability=0.4)
    (given,), _ = batches_of(member_data, 1, pattern)
    assert (len(given.batch), given.labels.shape) == (9, (1, 4))
    assert len(targets_of(given)[0]) > 5
    assert (len(given.targets) > len(targets_of(given)[0])) == (any_layout == "filled up"), "targets are filled up too"
    assert (len(given.batch.input_ids) > int(given.batch.starts[9])) == (any_layout == "filled up")
    found = {
        name: float(value.detach())
        for name, value in cloze_losses(member_data.member_trainer.cloze, given, alpha).items()
    }
    label, mlm = reference_losses(member_data, given)
    assert found["label_loss"] == pytest.approx(label, rel=1e-5)
    assert found["mlm_loss"] == pytest.approx(mlm, rel=1e-5)
    assert found["loss"] == pytest.approx((1 - alpha) * label + alpha * mlm, rel=1e-5)


@pytest.mark.parametrize("targets", ["content", "any"])
def test_labelled_rows_are_never_masked_and_show_the_labelled_texts(open_bench, targets):
    member_data = open_bench(mask_targets=targets, mask_probability=0.9)
    batches, (asked,) = batches_of(member_data, 4)
    seen, texts = [], texts_of(asked.rows["train"])
    for given in batches:
        (labels,) = given.labels
        places, _ = targets_of(given)
        assert len(places) > 0
        assert places.min() >= given.batch.starts[len(labels)]
        for ids, label in zip(rows_of(given), labels.tolist(), strict=False):
            seen.append(texts.index(ids))
            assert label == asked.labels[seen[-1]]
    assert sorted(seen) == list(range(12)), "one pass over the twelve labelled texts"


@pytest.mark.parametrize("pattern", [0, 1])
def test_content_targets_are_tokens_of_the_filled_pattern_and_nothing_else(open_bench, any_layout, pattern):
    """Neither padding nor special tokens nor the pattern's mask, however many tokens are hidden (P1 section 3.2); nor
    what fills a batch up."""
    member_data = open_bench(mask_targets="content", mask_probability=0.999, unlabelled_batch=6)
    specials = set(member_data.ctx.prompt_tokenizer.tokenizer.all_special_ids)
    batches, _ = batches_of(member_data, 10, pattern)
    number = 0
    for given in batches:
        places, targets = targets_of(given)
        number += len(targets)
        assert not set(targets.tolist()) & specials
        assert set(places.tolist()) <= set(tokens_of(given.batch).tolist())
        assert not set(places.tolist()) & set(given.batch.mask_positions.tolist())
        masks = given.batch.input_ids[given.batch.mask_positions]
        assert set(masks.tolist()) == {member_data.ctx.prompt_tokenizer.mask_id}, "the mask is still there"
    assert number > 500


def test_content_targets_are_the_hidden_tokens_themselves(open_bench, any_layout):
    member_data = open_bench(mask_probability=0.5)
    (given,), (asked,) = batches_of(member_data, 1)
    places, targets = targets_of(given)
    hidden = given.batch.input_ids[places].clone()
    given.batch.input_ids[places] = targets
    originals = texts_of(asked.rows["pool"])
    assert len(given.batch) == 6
    assert all(ids in originals for ids in rows_of(given)[3:])
    assert (hidden == member_data.ctx.prompt_tokenizer.mask_id).float().mean() > 0.5


def test_any_targets_are_what_the_published_code_masks(open_bench):
    """Rows padded to max_length; padding and the pattern's mask are targets, the frame never is (fact sheet 2.4-2)."""
    member_data = open_bench(mask_targets="any", mask_probability=0.5, unlabelled_batch=6)
    tokenizer = member_data.ctx.prompt_tokenizer.tokenizer
    batches, _ = batches_of(member_data, 10)
    targets = torch.cat([targets_of(given)[1] for given in batches])
    assert {given.batch.width for given in batches} == {MAX_LENGTH}
    assert {len(given.batch.input_ids) for given in batches} == {9 * MAX_LENGTH}
    assert (targets == tokenizer.pad_token_id).float().mean() > 0.3
    assert (targets == tokenizer.mask_token_id).sum() > 10
    assert not set(targets.tolist()) & {tokenizer.cls_token_id, tokenizer.sep_token_id}


@pytest.mark.parametrize("off", [{"alpha": 0}, {"unlabelled_batch": 0}])
@pytest.mark.parametrize("targets", ["content", "any"])
def test_without_alpha_or_unlabelled_rows_there_is_no_mlm_loss(open_bench, off, targets):
    member_data = open_bench(mask_targets=targets, **off)
    (given,), _ = batches_of(member_data, 1)
    assert len(given.batch) == given.labels.numel() == 3
    assert len(given.targets) == 0
    found = cloze_losses(member_data.member_trainer.cloze, given, member_data.ctx.settings.finetune.alpha)
    assert set(found) == {"loss", "label_loss"}
    assert found["loss"] is found["label_loss"]


def test_a_batch_in_which_nothing_was_hidden_has_an_mlm_loss_of_zero(open_bench, any_layout):
    member_data = open_bench(mask_probability=1e-9, unlabelled_batch=16)
    (given,), _ = batches_of(member_data, 1)
    assert len(targets_of(given)[1]) == 0
    found = cloze_losses(member_data.member_trainer.cloze, given, 0.5)
    assert float(found["mlm_loss"].detach()) == 0
    found["loss"].sum().backward()
    assert all(
        one.grad.isfinite().all() for one in member_data.member_trainer.cloze.parameters() if one.grad is not None
    )


@pytest.mark.parametrize("count", [0, 1, 40, 111, 112, 113, 128, 200])
def test_targets_are_filled_up_with_places_that_are_none_and_keep_their_order(count):
    places = np.random.default_rng(count).integers(1000, size=count)
    found = pad_targets(places, 64.0)
    assert len(found) == round_up(max(112, count), TARGET_MULTIPLE), "64 expected and six standard deviations of 8"
    assert np.array_equal(found[:count], places)
    assert (found[count:] == -1).all()


def test_where_no_target_is_expected_nothing_is_filled_up():
    assert pad_targets(np.empty(0, dtype=np.int64), 0.0).shape == (0,)


@pytest.mark.parametrize("targets", ["content", "any"])
@pytest.mark.parametrize("patterns", [[0], [1], [0, 1]])
def test_batches_of_one_shape_have_equally_many_targets(open_bench, monkeypatch, targets, patterns):
    layout = FILLED if targets == "content" else packing.training_layout(None, True, MAX_LENGTH)
    monkeypatch.setattr(MemberTrainer, "layout", lambda self: layout)
    member_data = open_bench(mask_targets=targets, unlabelled_batch=16, mask_probability=0.15)
    batches, _ = batches_of(member_data, 30, *patterns)
    sizes = {(given.batch.input_ids.shape, len(given.targets)) for given in batches}
    assert len(sizes) == len({shape for shape, _ in sizes}) < 10
    assert all(size % TARGET_MULTIPLE == 0 and size > 0 for _, size in sizes)
    assert len({len(targets_of(given)[1]) for given in batches}) > 5, "those that are asked for vary"


def test_what_fills_up_the_targets_changes_neither_losses_nor_gradients(open_bench, monkeypatch):
    monkeypatch.setattr(MemberTrainer, "layout", lambda self: FILLED)
    member_data = open_bench(mask_probability=0.4)
    (given,), _ = batches_of(member_data, 1)
    places, targets = targets_of(given)
    assert len(targets) < len(given.targets)
    members = given.target_members[: len(targets)]
    bare = dataclasses.replace(given, target_places=places, targets=targets, target_members=members)
    losses, found = [], []
    for one in (given, bare):
        mine = cloze_losses(member_data.member_trainer.cloze, one, 0.5)
        losses.append({name: float(value.detach()) for name, value in mine.items()})
        found.append(gradients(member_data.member_trainer.cloze, mine["loss"].sum()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert_same_gradients(*found)


def test_a_batch_carries_its_label_words_and_moves_as_a_whole(open_bench, any_layout):
    member_data = open_bench()
    (given,), (asked,) = batches_of(member_data, 1)
    assert torch.equal(given.verbalizer.words, asked.verbalizers.words)
    assert torch.equal(given.verbalizer.averaging, asked.verbalizers.averaging[None])
    same = given.to(torch.device("cpu"))
    assert all(torch.equal(one, other) for one, other in zip(tensors_of(same), tensors_of(given), strict=True))
    moved = tensors_of(given.to(torch.device("meta")))
    assert [one.shape for one in moved] == [one.shape for one in tensors_of(given)]
    assert {one.device.type for one in moved} == {"meta"}


@pytest.mark.parametrize("targets", ["content", "any"])
def test_what_a_member_is_trained_on_does_not_depend_on_which_others_share_the_batch(open_bench, targets):
    """Each draws from its own random stream: its rows, what is hidden in them, its words and its losses."""
    member_data = open_bench(mask_targets=targets, mask_probability=0.4, unlabelled_batch=4)
    together, asked = batches_of(member_data, 3, 0, 1)
    for member in (0, 1):
        single, _ = batches_of(member_data, 3, member)
        for number, (given, mine) in enumerate(zip(together, single, strict=True)):
            own = given.members[: len(given.batch.rows)] == member
            assert torch.equal(given.batch.input_ids[own], mine.batch.input_ids), number
            assert torch.equal(given.labels[member], mine.labels[0])
            place, targets_there = targets_of(given)
            assert torch.equal(targets_there[given.members[place] == member], targets_of(mine)[1])
            assert torch.equal(given.target_members[: len(place)], given.members[place])
            averaging = given.verbalizer.averaging[member]
            scores = averaging[averaging.any(1)]
            assert torch.equal(scores, asked[member].verbalizers.averaging)
            with torch.no_grad():
                found, alone_ = (
                    cloze_losses(member_data.member_trainer.cloze, given, 0.3),
                    cloze_losses(member_data.member_trainer.cloze, mine, 0.3),
                )
            for name, value in alone_.items():
                assert float(found[name][member]) == pytest.approx(float(value), rel=1e-5), name
    assert given.batch.input_ids.shape[0] == sum(
        len(batches_of(member_data, 3, one)[0][2].batch.input_ids) for one in (0, 1)
    )


def test_the_losses_of_members_in_one_batch_are_those_of_the_full_logits(open_bench, any_layout):
    member_data = open_bench(mask_probability=0.4, unlabelled_batch=4)
    if any_layout == "padded":
        member_data.member_trainer.layout = lambda: Layout(True, MAX_LENGTH)
    (given,), _ = batches_of(member_data, 1, 0, 1)
    found = cloze_losses(member_data.member_trainer.cloze, given, 0.3)
    for member in (0, 1):
        label, mlm = reference_losses(member_data, given, member)
        assert float(found["label_loss"][member].detach()) == pytest.approx(label, rel=1e-5)
        assert float(found["mlm_loss"][member].detach()) == pytest.approx(mlm, rel=1e-5)


def test_rows_in_training_are_padded_only_where_they_must_be(open_bench, done, electra):
    """Because the family needs it, or because padding is a target; to one width where members share a batch."""
    assert (
        open_bench().member_trainer.layout()
        == open_bench(method="lora").member_trainer.layout()
        == Layout(False, None, 8)
    )
    assert open_bench(mask_targets="any").member_trainer.layout() == Layout(True, MAX_LENGTH, 8)
    for method, width in (("full", None), ("lora", MAX_LENGTH)):
        ctx = open_context(done.ground, done.store, model={"name": str(electra)}, finetune={"method": method})
        assert member_data_of(ctx).member_trainer.layout() == Layout(True, width, 8)


def test_all_members_are_trained_by_one_trainer(open_bench):
    member_data = open_bench()
    assert member_data.member_trainer.trainer is member_data.member_trainer.trainer
    assert member_data.member_trainer.trainer.model is member_data.member_trainer.cloze


def test_a_member_learns_its_labelled_texts(tiny_folder, tmp_path):
    settings = {"steps": 60, "patterns": [0], "repetitions": 1, "learning_rate": 4e-3, "labelled_batch": 12}
    ctx = open_context(lay_ground(tmp_path / "ground", tiny_folder), tmp_path, finetune=settings)
    make_up_to(ctx, "finetune")
    training = members_of(ctx).tuned[0].artifact.read_json("training.json")
    assert training["steps"] == [10, 20, 30, 40, 50, 60]
    assert training["losses"]["label_loss"][-1] < 0.7 * training["losses"]["label_loss"][0]
    assert training["train_accuracy"] > 0.8


# ---- frozen layers, other families ---------------------------------------------------------------------------------


def test_frozen_layers_keep_their_weights_and_the_others_move(done, tmp_path, tmp_path_factory):
    pet_run(done.ground, tmp_path, "--stage", "prepare")
    options = ["--set", "finetune.frozen_layers=1", "--set", "finetune.repetitions=1"]
    pet_run(done.ground, tmp_path, "--stage", "finetune", *options)
    before = load_file(lively_model(tmp_path_factory.getbasetemp()) / "model.safetensors")
    for member in ("p0-r0", "p1-r0"):
        after = load_file(find_one(tmp_path, "finetune", member) / "model" / "model.safetensors")
        moved = {name for name in after if not np.array_equal(before[name], after[name])}
        frozen = {name for name in after if ".embeddings." in name or ".layer.0." in name}
        assert moved == set(after) - frozen


def test_more_frozen_layers_than_there_are_is_refused(done, tmp_path):
    ctx = open_context(done.ground, tmp_path, finetune={"frozen_layers": 3})
    with pytest.raises(SettingsError, match="frozen_layers is 3, but this bert model has 2 layers"):
        make_up_to(ctx, "finetune")


@pytest.fixture(scope="module")
def electra(tmp_path_factory):
    return save_lively(tmp_path_factory.mktemp("electra"), "electra", embedding_size=16)


def test_an_unknown_family_is_said_to_be_slower_and_gives_the_same_scores(done, tmp_path, electra):
    ground = lay_ground(tmp_path / "ground", electra, finetune={"repetitions": 1, "patterns": [0]})
    pet_run(ground, tmp_path, "--stage", "prepare")
    result = pet_run(ground, tmp_path, "--stage", "finetune")
    assert "model family 'electra' is not known to pet; taking full vocabulary logits (slower)" in result.stderr
    folder = find_one(tmp_path, "finetune", "p0-r0")
    texts = read_texts(find_one(tmp_path, "prepare") / "test.parquet")
    expected = ask(folder / "model", PATTERNS[0], texts)
    np.testing.assert_allclose(expected, scores_of(folder)["test"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["roberta", "albert", "modernbert"])
def test_other_families_take_the_same_way(tmp_path, family):
    model = save_lively(tmp_path / family, family)
    ground = lay_ground(tmp_path / "ground", model, finetune={"repetitions": 1, "patterns": [1], "steps": 1})
    pet_run(ground, tmp_path, "--stage", "prepare")
    result = pet_run(ground, tmp_path, "--stage", "finetune")
    assert "not known to pet" not in result.stderr
    assert scores_of(find_one(tmp_path, "finetune", "p1-r0"))["pool"].shape == (30, 3)


# ---- without labels, and what is missing or damaged ----------------------------------------------------------------


def test_without_labelled_texts_the_untuned_patterns_are_the_ensemble(done, tmp_path):
    ctx = open_context(done.ground, tmp_path, data={"train_examples": 0})
    make_up_to(ctx, "finetune")
    members = members_of(ctx)
    assert [plan.label for plan in members.plans] == ["p0-untuned", "p1-untuned"]
    assert [one.identity for one in members.tuned] == [one.identity for one in members.untuned.values()]
    for one in members.tuned:
        assert {"pool", "test"} <= set(read_scores(one.artifact))
        assert one.artifact.read_json("training.json") == {"train_accuracy": None}


@pytest.mark.parametrize("chosen", [[], [2], [0, 7], [0, 0]])
def test_patterns_the_card_does_not_have_or_named_twice_are_refused(done, tmp_path, chosen):
    ctx = open_context(done.ground, tmp_path, finetune={"patterns": chosen})
    with pytest.raises(SettingsError, match="task 'topics' has patterns 0 to 1; name at least one of them"):
        members_of(ctx)


def test_damaged_scores_are_not_read(done, tmp_path):
    shutil.copytree(done.one("finetune", "p0-r0"), tmp_path / "member")
    garble(tmp_path / "member" / SCORES)
    member = Store(tmp_path).open(tmp_path / "member")
    with pytest.raises(DamagedArtifact, match=f"{SCORES} is damaged: its content has changed"):
        read_scores(member)
    with pytest.raises(DamagedArtifact, match=f"{SCORES} is damaged"), open_scores(member, "test"):
        pytest.fail("nor in parts")


def test_a_member_has_a_random_state_of_its_own_in_every_generation_the_first_as_in_pet(done):
    ctx = open_context(done.ground, done.store)
    plans = [finetune.Plan(ctx.pvps[0], 0, generation) for generation in (0, 1, 2)]
    seeds = [finetune.member_seed(ctx, plan) for plan in plans]
    assert len(set(seeds)) == 3
    assert seeds[0] == finetune.member_seed(ctx, finetune.Plan(ctx.pvps[0], 0))


def test_members_that_are_not_kept_have_the_same_scores_and_identity_and_no_weights(done, tmp_path):
    pet_run(done.ground, tmp_path, "--set", "runtime.keep_members=false")
    for folder in find_all(done.store, "finetune"):
        light = tmp_path / "finetune" / folder.name
        assert files_of(light) == {"manifest.json", "scores.safetensors", "training.json"}
        assert digest(light / "scores.safetensors") == digest(folder / "scores.safetensors")
    assert find_one(tmp_path, "run").name == done.one("run").name
