"""finetune with `method: lora`: members that are adapters on one model, trained together and published together; and
what is left when the making of members of either kind is cut short."""

import errno
import itertools
import os
import shutil
import signal
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.numpy import load_file
from support.rows import (
    LABELS,
    PATTERNS,
    Finished,
    digest,
    files_of,
    find_all,
    find_one,
    hidden_in,
    lay_ground,
    lively_model,
    open_context,
    pet_run,
    read_json,
    save_lively,
    stop_at,
)
from support.watched import watched_writer
from transformers import AutoModelForMaskedLM, AutoTokenizer

from pet.modeling.lora import Adapters
from pet.pipeline.graph import build_graph
from pet.pipeline.members.data import MemberData
from pet.pipeline.stages import finetune
from pet.store import draft as draft_module
from pet.store import manifest as manifest_module
from pet.store.draft import Draft
from pet.store.lock import acquire
from pet.tasks.texts import read_texts
from pet.training.checkpoint import CheckpointManager

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),  # peft asks it so
]

SCORES = "scores.safetensors"
ADAPTER = {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"}
MEMBERS = ["p0-r0", "p0-r1", "p1-r0", "p1-r1"]
UNTUNED = ["p0-untuned", "p1-untuned"]


def settings(**values):
    """Settings of finetune as `--set` takes them."""
    return [word for name, value in values.items() for word in ("--set", f"finetune.{name.replace('__', '.')}={value}")]


LORA = settings(method="lora", steps=4, lora__learning_rate=0.02, adam_epsilon=1e-3)
"""A rate at which four steps move scores far, and an epsilon that lets Adam make no steps of rounding."""


@pytest.fixture(scope="module")
def lora(done, tmp_path_factory) -> Finished:
    """A finished run whose members are adapters; never write into it."""
    store = tmp_path_factory.mktemp("lora") / "store"
    return Finished(done.ground, store, pet_run(done.ground, store, *LORA))


def names_of(store):
    """Plans that have an artifact."""
    return [folder.name.split("-lively-")[1].rsplit("-", 1)[0] for folder in find_all(store, "finetune")]


def scores_of(folder):
    return load_file(folder / SCORES)


def assert_same_member(found, expected):
    """Scores to 1e-5 of the largest, and losses."""
    mine, theirs = scores_of(found), scores_of(expected)
    assert set(mine) == set(theirs)
    for split, scores in theirs.items():
        np.testing.assert_allclose(mine[split], scores, rtol=0, atol=1e-5 * np.abs(scores).max(), err_msg=split)
    losses = read_json(expected / "training.json")["losses"]
    for name, values in read_json(found / "training.json")["losses"].items():
        assert values == pytest.approx(losses[name], rel=1e-4), name


def finetuned(ground, store, *options):
    for stage in ("prepare", "finetune"):
        pet_run(ground, store, "--stage", stage, *options)
    return store


# ---- what is written -----------------------------------------------------------------------------------------------


def test_there_are_the_same_artifacts_as_with_full_members(lora, done):
    assert sorted(names_of(lora.store)) == sorted(names_of(done.store)) == sorted([*MEMBERS, *UNTUNED])


@pytest.mark.parametrize("member", MEMBERS)
def test_a_member_writes_scores_training_and_a_small_adapter_but_no_model(lora, member):
    folder = lora.one("finetune", member)
    assert files_of(folder) == {"manifest.json", SCORES, "training.json", *ADAPTER}
    assert sum((folder / name).stat().st_size for name in ADAPTER) < 100_000
    assert {name: array.shape for name, array in scores_of(folder).items()} == {
        "train": (12, 3),
        "pool": (30, 3),
        "test": (20, 3),
    }
    listed = {one["path"]: one for one in read_json(folder / "manifest.json")["files"]}
    assert set(listed) == files_of(folder) - {"manifest.json"}
    assert all(one["sha256"] == digest(folder / name) for name, one in listed.items())


def test_a_member_says_how_its_own_training_went_and_with_whom(lora):
    found = [read_json(lora.one("finetune", member) / "training.json") for member in MEMBERS]
    for one in found:
        assert set(one) == {"train_accuracy", "steps", "losses", "trained_with"}
        assert one["steps"] == [4]
        assert set(one["losses"]) == {"loss", "label_loss", "mlm_loss"}
        assert one["trained_with"] == MEMBERS
    assert len({one["losses"]["label_loss"][0] for one in found}) == 4, "each its own"


def test_a_member_took_its_share_of_the_training_too(done, tmp_path, monkeypatch):
    """Of what four took together a quarter, and what it took to score it, not the others."""
    now, score = 0.0, MemberData.score

    def score_slowly(*given, **more):
        nonlocal now
        now += 7
        return score(*given, **more)

    monkeypatch.setattr(draft_module, "time", SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr(CheckpointManager, "spent", lambda self: 400.0)
    monkeypatch.setattr(MemberData, "score", score_slowly)
    finetuned(done.ground, tmp_path, *LORA)
    for member in MEMBERS:
        (folder,) = find_all(tmp_path, "finetune", f"-{member}-")
        assert read_json(folder / "manifest.json")["seconds"] == 107


def test_the_losses_and_the_training_of_every_member_are_shown(done, tmp_path):
    pet_run(done.ground, tmp_path, "--stage", "prepare", *LORA)
    result = pet_run(done.ground, tmp_path, "-v", "--stage", "finetune", *LORA)
    for member in MEMBERS:
        assert f"finetune {member}: {PATTERNS[int(member[1])]}" in result.stderr
        assert f"{member} step 4: loss " in result.stderr


def ask(model, adapter, pattern, texts):
    """Scores [N, L] as a user of transformers and peft would compute them: fill the pattern, tokenise it as a whole,
    read the full logits at the mask."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    lm = PeftModel.from_pretrained(AutoModelForMaskedLM.from_pretrained(model), adapter).eval()
    words = tokenizer.convert_tokens_to_ids([tokenizer.tokenize(f" {label}")[0] for label in LABELS])
    accepted = set(tokenizer.model_input_names)
    found = []
    for headline, body in zip(texts.fields["headline"], texts.fields["body"], strict=True):
        segments = pattern.format(mask=tokenizer.mask_token, headline=headline, body=body).split(" || ")
        if tokenizer.cls_token == "<s>":  # byte-level: a first word is spelled like any other
            segments = [f" {one}" for one in segments]
        inputs = tokenizer(*segments, return_tensors="pt")
        place = inputs["input_ids"][0].tolist().index(tokenizer.mask_token_id)
        with torch.inference_mode():
            logits = lm(**{name: one for name, one in inputs.items() if name in accepted}).logits
        found.append(logits[0, place, words].numpy())
    return np.stack(found)


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize("split", ["train", "pool", "test"])
def test_the_stored_scores_are_those_of_the_model_with_the_adapter_in_peft(lora, tmp_path_factory, member, split):
    folder, number = lora.one("finetune", member), int(member[1])
    texts = read_texts(lora.one("prepare") / f"{split}.parquet")
    expected = ask(lively_model(tmp_path_factory.getbasetemp()), folder / "adapter", PATTERNS[number], texts)
    found = scores_of(folder)[split]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    if split != "pool":
        untuned = scores_of(lora.one("finetune", f"p{number}-untuned"))[split]
        assert np.abs(found - untuned).max() > 0.1 * np.abs(untuned).max(), "training moved it"


def test_no_two_members_are_alike(lora):
    pools = [scores_of(lora.one("finetune", member))["pool"] for member in MEMBERS]
    adapters = {digest(lora.one("finetune", member) / "adapter" / "adapter_model.safetensors") for member in MEMBERS}
    assert len(adapters) == 4
    assert all(np.abs(pools[one] - pools[other]).max() > 0.05 for one in range(4) for other in range(one))


def test_members_learn_their_labelled_texts(done, tmp_path):
    """All in one batch, by their adapters alone: the head is frozen."""
    finetuned(done.ground, tmp_path, *settings(method="lora", steps=60, labelled_batch=12, lora__learning_rate=0.03))
    found = [read_json(find_one(tmp_path, "finetune", member) / "training.json") for member in MEMBERS]
    assert all(one["steps"] == [10, 20, 30, 40, 50, 60] for one in found)
    first, last = (sum(one["losses"]["label_loss"][place] for one in found) for place in (0, -1))
    assert last < 0.7 * first
    assert np.mean([one["train_accuracy"] for one in found]) > 0.75


# ---- what decides what a member becomes ----------------------------------------------------------------------------


def test_a_member_is_the_same_whether_it_is_trained_with_all_others_or_with_some(lora, tmp_path):
    """In a fresh store: the same identities; each has its own random stream, for dropout too."""
    finetuned(lora.ground, tmp_path, *LORA, *settings(patterns="[1]"))
    assert sorted(names_of(tmp_path)) == ["p1-r0", "p1-r1", "p1-untuned"]
    for member in ("p1-r0", "p1-r1"):
        mine = find_one(tmp_path, "finetune", member)
        assert mine.name == lora.one("finetune", member).name
        assert read_json(mine / "training.json")["trained_with"] == ["p1-r0", "p1-r1"]
        assert_same_member(mine, lora.one("finetune", member))


@pytest.mark.parametrize("member", MEMBERS)
def test_a_member_is_the_same_if_the_others_are_there_already(lora, tmp_path, member):
    shutil.copytree(lora.store, tmp_path / "store")
    gone = find_one(tmp_path / "store", "finetune", member)
    shutil.rmtree(gone)
    result = pet_run(lora.ground, tmp_path / "store", *LORA)
    assert result.stderr.count("finetune ") == 6
    assert result.stderr.count(": reused ") == 11, "all but this one; what depends on it does by its identity"
    assert read_json(gone / "training.json")["trained_with"] == [member]
    assert_same_member(gone, lora.one("finetune", member))


@pytest.mark.parametrize(
    "options",
    [
        ["--set", "recipe=paper"],
        settings(unlabelled_batch=0),
        settings(accumulation=3, max_grad_norm=0.1, warmup_steps=2),
        settings(frozen_layers=1),
    ],
    ids=["published code", "no MLM loss", "accumulation, clipping, warm-up", "frozen layers"],
)
def test_so_it_is_however_it_is_trained(done, tmp_path, options):
    options = [*LORA, *settings(repetitions=1), *options]
    finetuned(done.ground, tmp_path / "both", *options)
    finetuned(done.ground, tmp_path / "one", *options, *settings(patterns="[1]"))
    one, both = (find_one(tmp_path / store, "finetune", "p1-r0") for store in ("one", "both"))
    assert read_json(both / "training.json")["trained_with"] == ["p0-r0", "p1-r0"]
    assert_same_member(one, both)


@pytest.mark.parametrize(
    ("family", "more"), [("distilbert", {}), ("electra", {"embedding_size": 16}), ("modernbert", {})]
)
def test_so_it_is_in_other_families_and_peft_gives_its_scores(tmp_path, family, more):
    """Padded ones, where all rows of a batch are of one width; one whose head nobody took apart."""
    model = save_lively(tmp_path / family, family, **more)
    ground = lay_ground(tmp_path / "ground", model, finetune={"repetitions": 1})
    finetuned(ground, tmp_path / "both", *LORA)
    finetuned(ground, tmp_path / "one", *LORA, *settings(patterns="[1]"))
    one, both = (find_one(tmp_path / store, "finetune", "p1-r0") for store in ("one", "both"))
    assert_same_member(one, both)
    texts = read_texts(find_one(tmp_path / "one", "prepare") / "test.parquet")
    expected = ask(model, both / "adapter", PATTERNS[1], texts)
    np.testing.assert_allclose(scores_of(both)["test"], expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_members_are_trained_with_the_dropout_of_their_model(lora, tmp_path):
    """The same weights, told not to drop anything, come to other scores."""
    model = save_lively(tmp_path / "lively", hidden_dropout_prob=0.0)
    ground = lay_ground(tmp_path / "ground", model)
    finetuned(ground, tmp_path / "store", *LORA, *settings(patterns="[0]", repetitions=1))
    folder = lora.one("finetune", "p0-r0")
    untuned, mine, theirs = (
        scores_of(one)["test"]
        for one in (
            lora.one("finetune", "p0-untuned"),
            find_one(tmp_path / "store", "finetune", "p0-r0"),
            folder,
        )
    )
    own = scores_of(find_one(tmp_path / "store", "finetune", "p0-untuned"))["test"]
    np.testing.assert_array_equal(own, untuned)
    assert np.abs(mine - theirs).max() > 0.01 * np.abs(theirs).max()


def test_frozen_layers_get_no_adapter(done, tmp_path):
    finetuned(done.ground, tmp_path, *LORA, *settings(frozen_layers=1, patterns="[0]", repetitions=1))
    written = load_file(find_one(tmp_path, "finetune", "p0-r0") / "adapter" / "adapter_model.safetensors")
    assert len(written) == 4
    assert all(".layer.1." in name for name in written)


def identities(ground, store, **sections):
    """Identity of each untuned pattern and member under these settings of finetune."""
    ctx = open_context(ground, store, finetune=sections)
    return {finetune.plan_of(node).label: node.identity for node in build_graph(ctx).of(finetune.STAGE)}


@pytest.mark.parametrize(
    ("method", "changes", "matters"),
    [
        ("lora", {"learning_rate": 0.5}, False),
        ("lora", {"lora": {"rank": 4}}, True),
        ("lora", {"lora": {"alpha": 3}}, True),
        ("lora", {"lora": {"learning_rate": 0.5}}, True),
        ("lora", {"lora": {"targets": ["key"]}}, True),
        ("lora", {"frozen_layers": 1}, True),
        ("lora", {"steps": 9}, True),
        ("lora", {"patterns": [0, 1]}, False),
        ("full", {"learning_rate": 0.5}, True),
        ("full", {"lora": {"rank": 4}}, False),
        ("full", {"lora": {"alpha": 3, "learning_rate": 0.5, "targets": ["key"]}}, False),
        ("full", {"method": "lora"}, True),
    ],
)
def test_what_enters_the_identity_of_a_member(done, method, changes, matters):
    """What changes it, and nothing else; never that of an untuned pattern."""
    before = identities(done.ground, done.store, method=method)
    after = identities(done.ground, done.store, **{"method": method, **changes})
    assert list(before) == list(after) == [*UNTUNED, *MEMBERS]
    assert all(before[plan] == after[plan] for plan in UNTUNED)
    assert [before[plan] != after[plan] for plan in MEMBERS] == [matters] * 4


@pytest.mark.parametrize(
    ("options", "number"), [([], 0), (settings(learning_rate=0.5), 1), (settings(lora__rank=4), 8)]
)
def test_a_dry_run_knows_what_is_there(lora, options, number):
    last = pet_run(lora.ground, lora.store, "--dry-run", *LORA, *options).stdout.splitlines()[-1]
    assert last.startswith(f"{number} of 12 artifacts to be made")


def test_full_members_and_adapters_live_in_one_store_and_the_stages_after_run_on(done, lora, tmp_path):
    shutil.copytree(done.store, tmp_path / "store")
    result = pet_run(done.ground, tmp_path / "store", *LORA)
    assert all(f"finetune {plan}: reused" in result.stderr for plan in UNTUNED)
    assert not any(f"finetune {plan}: reused" in result.stderr for plan in MEMBERS)
    for member in MEMBERS:
        kinds = [
            {name.split("/")[0] for name in files_of(one)} for one in find_all(tmp_path / "store", "finetune", member)
        ]
        assert sorted("model" in one for one in kinds) == [False, True]
        assert sorted("adapter" in one for one in kinds) == [False, True]
    for stage in ("label", "distill", "evaluate", "run"):
        assert len(find_all(tmp_path / "store", stage)) == 2, stage
    assert len(find_all(tmp_path / "store", "baseline")) == len(find_all(done.store, "baseline"))
    mine = read_json(lora.one("run") / "summary.json")["scores"]
    theirs = read_json(done.one("run") / "summary.json")["scores"]
    assert set(mine) == set(theirs)
    for options in ([], LORA):
        again = pet_run(done.ground, tmp_path / "store", *options)
        assert again.stderr.count(": reused ") == len(again.stderr.splitlines()) == 12


def test_soft_labels_are_pooled_from_the_adapters_scores(lora):
    """Weighted by the untuned patterns' accuracy (P1 section 3.3)."""
    weights = [
        read_json(lora.one("finetune", f"p{member[1]}-untuned") / "training.json")["train_accuracy"]
        for member in MEMBERS
    ]
    pools = [scores_of(lora.one("finetune", member))["pool"].astype(float) for member in MEMBERS]
    expected = sum(weight * one for weight, one in zip(weights, pools, strict=True)) / sum(weights)
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(lora.one("label") / "soft_labels.parquet")
    found = np.stack([table[f"score_{label}"].to_numpy() for label in LABELS], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_without_labelled_texts_there_is_nothing_to_train_whatever_the_method(done, tmp_path):
    """The untuned patterns are the ensemble: the same artifacts for both."""
    options = ["--train-examples", 0]
    pet_run(done.ground, tmp_path, *LORA, *options)
    made = find_all(tmp_path, "finetune")
    assert sorted(names_of(tmp_path)) == UNTUNED
    assert all(set(scores_of(folder)) >= {"pool", "test"} for folder in made)
    assert not any("adapter" in name or "model" in name for folder in made for name in files_of(folder))
    last = pet_run(done.ground, tmp_path, "--dry-run", *options).stdout.splitlines()[-1]
    assert last.startswith("1 of "), "the run alone: its settings are others"


def test_a_target_that_is_nowhere_is_refused_in_one_sentence(done, tmp_path):
    result = pet_run(done.ground, tmp_path, *LORA, *settings(lora__targets="[qeury]"), code=2)
    assert "Traceback" not in result.output
    sentence = result.stderr.split("Error: ")[1]
    assert sentence.count("\n") == 1
    assert "finetune.lora.targets ['qeury']" in sentence
    assert "name some of dense, key, query, value" in sentence
    assert hidden_in(tmp_path) == []


def test_in_bf16_it_runs_to_the_end_and_scores_are_near_those_of_the_adapter_in_fp32(done, tmp_path, tmp_path_factory):
    """Within a tenth of the largest: the bound of scoring in bf16."""
    pet_run(done.ground, tmp_path, "--precision", "bf16", *LORA, *settings(repetitions=1))
    assert len(find_all(tmp_path, "run")) == 1
    texts = read_texts(find_one(tmp_path, "prepare") / "test.parquet")
    for number in (0, 1):
        folder = find_one(tmp_path, "finetune", f"p{number}-r0")
        assert read_json(folder / "manifest.json")["precision"] == "bf16"
        assert files_of(folder) == {"manifest.json", SCORES, "training.json", *ADAPTER}
        assert np.isfinite(read_json(folder / "training.json")["losses"]["loss"]).all()
        adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
        assert {array.dtype for array in adapter.values()} == {np.dtype(np.float32)}
        expected = ask(lively_model(tmp_path_factory.getbasetemp()), folder / "adapter", PATTERNS[number], texts)
        found = scores_of(folder)["test"]
        assert 0 < np.abs(found - expected).max() < 0.1 * np.abs(expected).max()
        untuned = scores_of(find_one(tmp_path, "finetune", f"p{number}-untuned"))["test"]
        assert np.abs(untuned - expected).max() > 0.2 * np.abs(expected).max(), "the bound could be missed"


# ---- runs that are cut short ---------------------------------------------------------------------------------------


PROBLEMS = {"Ctrl-C": KeyboardInterrupt, "a mistake of ours": RuntimeError("a mistake of ours")}


def run_into(problem, ground, store, *options):
    """A run that ends so."""
    if problem is KeyboardInterrupt:
        result = pet_run(ground, store, *options, code=130)
        assert "Interrupted. What was finished is kept" in result.stderr
        assert "Traceback" not in result.output
    else:
        with pytest.raises(RuntimeError, match="a mistake of ours"):
            pet_run(ground, store, *options)


def on_call(number, wrapped, problem):
    """A function that fails the `number`th time it is called."""
    calls = []

    def function(*arguments, **more):
        calls.append(0)
        if len(calls) == number:
            raise problem
        return wrapped(*arguments, **more)

    return function


@pytest.mark.parametrize("what", PROBLEMS)
def test_adapters_cut_short_while_they_are_written_leave_nothing_and_the_next_run_makes_all(
    lora, tmp_path, monkeypatch, what
):
    """They are published together, so that none is ever trained in other company."""
    save = Adapters.save

    def save_or_fail(self, member, *rest):
        if member == 2:
            assert len([path for path in hidden_in(tmp_path) if (path / "adapter").is_dir()]) == 2, "two are written"
            raise PROBLEMS[what]
        save(self, member, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Adapters, "save", save_or_fail)
        run_into(PROBLEMS[what], lora.ground, tmp_path, *LORA)
    assert hidden_in(tmp_path) == []
    assert sorted(names_of(tmp_path)) == UNTUNED
    again = pet_run(lora.ground, tmp_path, "--stage", "finetune", *LORA)
    assert again.stderr.count(": reused ") == 2
    assert_all_as_in(lora, tmp_path)


def assert_all_as_in(lora, store):
    """The members are those of an undisturbed run, byte by byte, and nothing else is in the store."""
    assert hidden_in(store) == []
    for member in MEMBERS:
        folder, other = find_one(store, "finetune", member), lora.one("finetune", member)
        assert folder.name == other.name
        assert files_of(folder) == files_of(other)
        for name in files_of(folder) - {"manifest.json"}:
            assert digest(folder / name) == digest(other / name), (member, name)
        assert read_json(folder / "training.json")["trained_with"] == MEMBERS


@pytest.mark.parametrize("what", PROBLEMS)
def test_adapters_cut_short_in_training_leave_nothing(lora, tmp_path, monkeypatch, what):
    with monkeypatch.context() as patch:
        patch.setattr(finetune, "cloze_losses", on_call(3, finetune.cloze_losses, PROBLEMS[what]))
        run_into(PROBLEMS[what], lora.ground, tmp_path, *LORA)
    assert hidden_in(tmp_path) == []
    assert sorted(names_of(tmp_path)) == UNTUNED
    pet_run(lora.ground, tmp_path, "--stage", "finetune", *LORA)
    assert_all_as_in(lora, tmp_path)


def test_adapters_that_were_asked_to_stop_go_on_from_there_and_come_out_the_same(lora, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        assert "finetune: saved after step 3" in pet_run(lora.ground, tmp_path, *LORA, code=143).stderr
    assert sorted(names_of(tmp_path)) == UNTUNED
    draft, checkpoint, *_ = hidden_in(tmp_path)
    assert draft == checkpoint.parent, "of all the drafts only the one with the checkpoint is left"
    again = pet_run(lora.ground, tmp_path, "--stage", "finetune", *LORA)
    assert "finetune: going on after step 3" in again.stderr
    assert_all_as_in(lora, tmp_path)


def test_a_checkpoint_of_other_company_is_not_gone_on_from(lora, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        pet_run(lora.ground, tmp_path, *LORA, code=143)
    more = [*LORA, *settings(repetitions=3)]
    assert "going on" not in pet_run(lora.ground, tmp_path, "--stage", "finetune", *more).stderr
    assert hidden_in(tmp_path) == []
    assert len(find_all(tmp_path, "finetune", "p1-r2")) == 1


def test_adapters_are_all_published_when_a_signal_comes_while_the_first_one_is(lora, tmp_path, monkeypatch):
    settle = draft_module.rename_into_place

    def stop(folder, final):
        if "-r" in final.name:
            os.kill(os.getpid(), signal.SIGINT)
            monkeypatch.setattr(draft_module, "rename_into_place", settle)
        settle(folder, final)

    monkeypatch.setattr(draft_module, "rename_into_place", stop)
    pet_run(lora.ground, tmp_path, *LORA, code=130)
    assert_all_as_in(lora, tmp_path)


@pytest.mark.parametrize("sealed", [1, 3, 4])
def test_adapters_whose_process_died_while_they_were_sealed_count_if_all_were(lora, tmp_path, monkeypatch, sealed):
    """As when the power goes: nothing is tidied up."""
    seals, write = itertools.count(1), manifest_module.write_manifest

    def die(folder, manifest):
        write(folder, manifest)
        if "-r" in manifest["label"] and next(seals) == sealed:
            monkeypatch.setattr(draft_module, "clear", lambda folder: None)
            raise KeyboardInterrupt

    monkeypatch.setattr(draft_module, "write_manifest", die)
    pet_run(lora.ground, tmp_path, *LORA, code=130)
    monkeypatch.undo()
    again = pet_run(lora.ground, tmp_path, "--stage", "finetune", *LORA)
    assert ("training these 4 members together" in again.stderr) == (sealed < 4)
    assert_all_as_in(lora, tmp_path)


def failing_write(monkeypatch, number, problem):
    """The `number`th model that is written fails, beside the training and not in it."""
    save = transformers.PreTrainedModel.save_pretrained
    calls = []

    def write(self, folder, **more):
        calls.append(threading.current_thread())
        if len(calls) == number:
            (folder / "half").mkdir(parents=True)
            raise problem
        save(self, folder, **more)

    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", write)
    return calls


@pytest.mark.parametrize("number", [2, 4])
def test_what_goes_wrong_in_writing_a_model_reaches_the_user_and_finished_members_are_kept(
    done, tmp_path, monkeypatch, number
):
    """Also when it is the last one."""
    with monkeypatch.context() as patch:
        calls = failing_write(patch, number, PROBLEMS["a mistake of ours"])
        run_into(PROBLEMS["a mistake of ours"], done.ground, tmp_path)
    assert len(calls) == number, "nothing was written after it"
    assert not {threading.main_thread(), threading.current_thread()} & set(calls)
    assert hidden_in(tmp_path) == []
    assert sorted(names_of(tmp_path)) == sorted([*UNTUNED, *MEMBERS[: number - 1]])
    pet_run(done.ground, tmp_path, "--stage", "finetune")
    for member in MEMBERS:
        folder = done.one("finetune", member)
        for name in files_of(folder) - {"manifest.json"}:
            assert digest(folder / name) == digest(tmp_path / "finetune" / folder.name / name), (member, name)


@pytest.mark.parametrize(
    "problem",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["told by Python", "told by safetensors"],
)
def test_a_full_disk_is_said_in_one_sentence(done, tmp_path, monkeypatch, problem):
    failing_write(monkeypatch, 2, problem)
    result = pet_run(done.ground, tmp_path, code=2)
    assert f"Error: the store {tmp_path} cannot be written" in result.stderr.splitlines()[-1]
    assert "No space left on device" in result.stderr.splitlines()[-1]
    assert hidden_in(tmp_path) == []
    assert sorted(names_of(tmp_path)) == sorted([*UNTUNED, "p0-r0"])


def test_a_model_that_is_written_slowly_has_its_own_weights(done, tmp_path, monkeypatch):
    """The next one is trained meanwhile, and waits before it takes the same memory."""
    waited_for, save = threading.Event(), transformers.PreTrainedModel.save_pretrained

    def write_slowly(self, folder, **more):
        assert waited_for.wait(20)
        waited_for.clear()
        save(self, folder, **more)

    monkeypatch.setattr(finetune, "BackgroundWriter", watched_writer(waited_for))
    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", write_slowly)
    finetuned(done.ground, tmp_path)
    for member in MEMBERS:
        one, other = find_one(tmp_path, "finetune", member), done.one("finetune", member)
        assert digest(one / "model" / "model.safetensors") == digest(other / "model" / "model.safetensors")


@pytest.mark.parametrize("what", PROBLEMS)
def test_a_model_that_is_being_written_when_the_next_one_s_training_is_cut_short_is_finished(
    done, tmp_path, monkeypatch, what
):
    cut, waited_for, save = [], threading.Event(), transformers.PreTrainedModel.save_pretrained
    draw = finetune.draw_batches

    def write_slowly(self, folder, **more):
        assert waited_for.wait(20)
        save(self, folder, **more)

    def draw_or_stop(member_data, asked, seeds, done):
        if find_all(tmp_path, "finetune", "p0-r0") or any((path / SCORES).is_file() for path in hidden_in(tmp_path)):
            cut.append(what)
            raise PROBLEMS[what]
        return draw(member_data, asked, seeds, done)

    with monkeypatch.context() as patch:
        patch.setattr(transformers.PreTrainedModel, "save_pretrained", write_slowly)
        patch.setattr(finetune, "BackgroundWriter", watched_writer(waited_for))
        patch.setattr(finetune, "draw_batches", draw_or_stop)
        run_into(PROBLEMS[what], done.ground, tmp_path)
    assert cut == [what]
    assert hidden_in(tmp_path) == []
    assert sorted(names_of(tmp_path)) == ["p0-r0", *UNTUNED]
    folder = done.one("finetune", "p0-r0")
    for name in files_of(folder) - {"manifest.json"}:
        assert digest(folder / name) == digest(tmp_path / "finetune" / folder.name / name), name


def test_members_are_written_and_hashed_beside_the_next_ones_training_and_published_in_the_main_thread(
    done, tmp_path, monkeypatch
):
    """Only the main thread hears signals, which a publication must outlast."""
    threads = {"seal": [], "publish": [], "close": []}

    def noting(name):
        method = getattr(Draft, name)

        def noted(self, *given, **more):
            if "-untuned" not in self.label:
                threads[name].append(threading.current_thread() is threading.main_thread())
            return method(self, *given, **more)

        return noted

    for name in threads:
        monkeypatch.setattr(Draft, name, noting(name))
    finetuned(done.ground, tmp_path)
    assert threads["publish"] == threads["close"] == [True] * 5, "the texts and four members"
    assert threads["seal"] == [True, *[False, True] * 4], "what is sealed beside need not be when it is published"


def test_what_is_written_is_published_before_another_process_is_waited_for(done, tmp_path, monkeypatch):
    """It may be waiting for just that."""
    identity = done.one("finetune", "p0-r1").name.rpartition("-")[2]
    ready, all_published, published, outcome = threading.Event(), threading.Event(), [], []
    publish = Draft.publish

    def publish_and_tell(self):
        publish(self)
        published.append(self.label)
        if len([label for label in published if label.endswith(("p0-r0", "p1-r0", "p1-r1"))]) == 3:
            all_published.set()

    def other_process():
        with acquire(tmp_path, "finetune", identity, None):
            ready.set()
            outcome.append(all_published.wait(20))

    pet_run(done.ground, tmp_path, "--stage", "prepare")
    other = threading.Thread(target=other_process)
    other.start()
    assert ready.wait(20)
    with monkeypatch.context() as patch:
        patch.setattr(Draft, "publish", publish_and_tell)
        pet_run(done.ground, tmp_path, "--stage", "finetune")
    other.join(20)
    assert outcome == [True]
    assert sorted(names_of(tmp_path)) == sorted([*UNTUNED, *MEMBERS])
