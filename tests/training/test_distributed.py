"""Several processes that walk together get the scores of one, and every text is scored by one of them."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file
from support import walkers
from support.plain import assert_near

from pet.config.schema import RuntimeSettings
from pet.errors import SettingsError
from pet.training.device import open_runtime
from pet.training.distributed import ALONE, Ranks, buckets_of, join_ranks, shard

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[1]
SIZE = 2


@contextmanager
def launched(*arguments: object) -> Iterator[None]:
    """Two walkers. Inside the context something else can be done meanwhile; they must end well."""
    walker = TESTS / "support" / "walkers.py"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        SIZE,
        walker,
        *arguments,
    ]
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    env = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    words = [str(one) for one in command]
    together = subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield
        said, _ = together.communicate(timeout=300)
        assert together.returncode == 0, said
    finally:
        together.terminate()  # it then ends the others


def both(base: Path, device: str) -> tuple[list[Path], dict[str, Any], list[dict[str, Any]]]:
    """What one process found, and two, at the same time: OUT of each, and what each process wrote down."""
    walkers.build(base / "ground")
    outs = [base / name for name in ("one", "two")]
    for out in outs:
        out.mkdir()
    with launched(base / "ground", outs[1], device):
        walkers.main(base / "ground", outs[0], device)
    alone = torch.load(outs[0] / "0.pt", weights_only=False)
    return outs, alone, [torch.load(outs[1] / f"{rank}.pt", weights_only=False) for rank in range(SIZE)]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """As of `both`, on a CPU."""
    return both(tmp_path_factory.mktemp("ranks"), "cpu")


def tensors_in(store: Path) -> dict[str, torch.Tensor]:
    """All scores and trained weights in a store, by file and name."""
    files = sorted(store.rglob("*.safetensors"))
    return {f"{named(path, store)} {name}": one for path in files for name, one in load_file(path).items()}


def named(path: Path, store: Path) -> str:
    """A file by its place, without identities: what several processes train has one of its own."""
    return re.sub(r"-[0-9a-f]{16}(?=/)", "", path.relative_to(store).as_posix())


def losses_in(store: Path) -> dict[str, dict[str, list[float]]]:
    """Losses along the way of every training in a store."""
    files = sorted(store.rglob("training.json"))
    found = {named(path, store): json.loads(path.read_text()).get("losses") for path in files}
    return {name: losses for name, losses in found.items() if losses}


# ---- together as alone ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*walkers.WALKS, *(f"{name}, few shapes" for name in walkers.FEW_SHAPES)])
def test_two_processes_get_the_scores_and_the_losses_of_one(found, name):
    (one, two), _, _ = found
    published, expected = tensors_in(one / "store" / name), tensors_in(one / "0" / name)
    assert expected
    for key, values in tensors_in(two / "store" / name).items():
        assert_near(values[published[key].isfinite()], published[key][published[key].isfinite()])
    for rank in range(SIZE):
        got = tensors_in(two / str(rank) / name)
        assert set(got) == {key for key in expected if rank == 0 or "/model.safetensors" not in key}
        for key, values in got.items():
            finite = torch.isfinite(expected[key])
            assert_near(values[finite], expected[key][finite])
            assert torch.equal(values.isfinite(), finite)
        told, losses = losses_in(one / "0" / name), losses_in(two / str(rank) / name)
        assert list(losses) == list(told) != []
        for path, by_name in told.items():
            assert losses[path] == {key: pytest.approx(some, rel=1e-5, abs=2e-6) for key, some in by_name.items()}


def test_what_is_trained_would_have_shown_a_difference(found):
    """So that the test above is worth something: training moved the scores by far more than it allows."""
    (one, _), _, _ = found
    scores = tensors_in(one / "0" / "members")
    scores = {key: values for key, values in scores.items() if key.endswith(" test")}
    untuned, tuned = (next(one for key, one in scores.items() if part in key) for part in ("p0-untuned", "p0-r0"))
    assert float((untuned - tuned).abs().max()) > 1e-2 * float(untuned.abs().max())


def test_both_processes_end_with_the_same_numbers_to_the_bit(found):
    (_, two), _, _ = found
    for name in walkers.WALKS:
        first, second = (tensors_in(two / str(rank) / name) for rank in range(SIZE))
        assert all(torch.equal(one, first[key]) for key, one in second.items())


def test_what_the_student_has_seen_is_what_both_processes_computed(found):
    (one, two), _, _ = found
    seen = [
        pyarrow.parquet.read_table(next((folder / "store" / "members" / "distill").glob("*/seen.parquet"))).to_pydict()
        for folder in (one, two)
    ]
    assert seen[0] == seen[1]
    assert sum(seen[0]["seen"]) == 20, "four steps of five texts"


def test_the_main_process_clock_ends_the_training_of_both(found):
    (_, two), _, _ = found
    paths = [next((two / str(rank) / "by the clock").glob("adapt/*/training.json")) for rank in range(SIZE)]
    first, second = (json.loads(path.read_text()) for path in paths)
    assert (first["steps"], first["losses"]) == (second["steps"], second["losses"])
    assert first["held_out_loss"] == second["held_out_loss"]
    assert first["steps"][-1] < 200


@pytest.mark.parametrize("count", [0, 1, 2, 7, 23])
def test_each_row_is_scored_by_one_process_and_known_to_all(found, count):
    _, alone, ranks = found
    asked = [sorted(one[f"asked of {count}"]) for one in ranks]
    windows = [range(start, min(start + walkers.WINDOW, count)) for start in range(0, count, walkers.WINDOW)]
    assert sorted(asked[0] + asked[1]) == list(range(count)) == sorted(alone[f"asked of {count}"])
    for window in windows:
        shares = [sum(row in window for row in one) for one in asked]
        assert shares[0] - shares[1] in (0, 1)
    for one in ranks:
        assert np.array_equal(one[f"scores of {count}"], alone[f"scores of {count}"])
    assert len(alone[f"scores of {count}"]) == count


def test_the_longest_rows_are_dealt_out_evenly(found):
    _, _, ranks = found
    lengths = walkers.some_rows(23).lengths()
    tokens = [int(lengths[np.asarray(one["asked of 23"])].sum()) for one in ranks]
    assert abs(tokens[0] - tokens[1]) <= 3 * int(lengths.max()), "a row in each of three windows"


@pytest.mark.parametrize("name", walkers.FEW_SHAPES)
def test_all_processes_meet_a_new_shape_at_the_same_step(found, name):
    """On GPUs they then capture it at the same step, and none waits for another one's captures."""
    _, _, ranks = found
    first, second = (one[f"shapes of {name}"] for one in ranks)
    assert first == second
    assert 1 < len(set(first)) < len(first)


@pytest.mark.skipif(torch.cuda.device_count() < SIZE, reason="there are no two GPUs here")
def test_two_gpus_get_the_scores_of_one_with_captured_steps(tmp_path):
    """Wider than on a CPU: kernels add up in another order, and few steps of training make more of it."""
    (one, two), _, ranks = both(tmp_path, "auto")
    for name in walkers.WALKS:
        expected = tensors_in(one / "0" / name)
        for rank in range(SIZE):
            for key, values in tensors_in(two / str(rank) / name).items():
                finite = torch.isfinite(expected[key])
                assert_near(values[finite], expected[key][finite], 1e-3)
    assert all(
        first[f"shapes of {name}"] == ranks[0][f"shapes of {name}"] for name in walkers.FEW_SHAPES for first in ranks
    )


def test_a_whole_run_of_two_processes_scores_as_that_of_one(found):
    stores = [out / "store" / "run" for out in found[0]]
    expected, got = map(tensors_in, stores)
    assert set(got) == set(expected)
    trained, also = ({path.name for path in store.glob("finetune/*-r*")} for store in stores)
    assert trained and trained.isdisjoint(also), "with dropout it would not be the same, so it is another artifact"
    for key, values in got.items():
        finite = torch.isfinite(expected[key])
        assert_near(values[finite], expected[key][finite])


# ---- what they say to each other -----------------------------------------------------------------------------------


def test_ranks_know_their_place_and_only_the_first_one_talks(found):
    _, alone, ranks = found
    assert (alone["ranks"], [one["ranks"] for one in ranks]) == ((0, 1), [(0, 2), (1, 2)])
    assert [one["main"] for one in ranks] == [True, False]
    assert [one["talks"] for one in ranks] == [True, False]
    assert [one["device"] for one in (alone, *ranks)] == ["cpu", "2 x cpu", "2 x cpu"]


def test_sums_are_of_all_ranks_in_place_and_in_their_own_precision(found):
    _, alone, ranks = found
    for size, one in ((1, alone), *((2, one) for one in ranks)):
        assert [(values.dtype, set(values.flatten().tolist())) for values in one["sums"]] == [
            (dtype, {3.0 if size == 2 else 1.0}) for _, dtype in walkers.SUMMED
        ]


def test_all_hear_the_main_rank_and_what_holds_for_any(found):
    _, alone, ranks = found
    for one in (alone, *ranks):
        assert one["said"] == {"from": 0}
        assert one["any"] == [True, True, False]


def test_nan_on_one_rank_ends_all_of_them_at_the_same_step_with_one_sentence(found):
    _, alone, ranks = found
    for what, said in (("training", "it: the loss became nan in step 13 of 50"), ("scoring", "it: the score of text ")):
        told = [one[f"{what} failed"] for one in (alone, *ranks)]
        assert all(said in one for one in told)
        assert told[1] == told[2]


def test_random_numbers_are_each_ranks_own_in_training_only(found):
    _, alone, ranks = found
    assert not torch.equal(ranks[0]["apart"], ranks[1]["apart"])
    assert [one["random state"] for one in ranks] == [True, True]
    torch.manual_seed(3)
    assert torch.equal(alone["apart"], torch.rand(4)), "alone they are what they ever were"


# ---- alone ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "size", "expected"),
    [
        (5, 2, [[0, 2, 4], [1, 3]]),
        (1, 3, [[0], [0], [0]]),
        (0, 2, [[], []]),
        (4, 1, [[0, 1, 2, 3]]),
    ],
)
def test_rows_are_dealt_out_one_by_one_and_a_filler_counts_for_nothing(count, size, expected):
    assert [some.tolist() for some in shard(count, size)] == expected
    shares = [Ranks(rank, size).share(count) for rank in range(size)] if count else []
    assert shares == [len(range(rank, count, size)) / count for rank in range(size if count else 0)]
    assert not count or sum(shares) == pytest.approx(1)


def test_alone_nothing_is_copied_and_nobody_is_asked():
    values = [torch.ones(3)]
    ALONE.sum_tensors(values)
    ALONE.barrier()
    ALONE.leave()
    assert values[0].tolist() == [1, 1, 1]
    said = {"a": 1}
    assert ALONE.broadcast(said) is said
    assert not torch.distributed.is_initialized()


def test_buckets_hold_every_tensor_once_in_one_precision(monkeypatch):
    monkeypatch.setattr("pet.training.distributed.BUCKET", 10)
    tensors = [torch.zeros(size, dtype=dtype) for size in (4, 4, 30, 1) for dtype in (torch.float32, torch.bfloat16)]
    buckets = list(buckets_of(tensors))
    assert sorted(id(one) for bucket in buckets for one in bucket) == sorted(id(one) for one in tensors)
    assert [(bucket[0].dtype, [one.numel() for one in bucket]) for bucket in buckets] == [
        (dtype, sizes) for dtype in (torch.float32, torch.bfloat16) for sizes in ([4, 4], [30], [1])
    ]
    assert all(one.dtype == bucket[0].dtype for bucket in buckets for one in bucket)


@pytest.mark.parametrize(
    ("device", "environment", "expected"),
    [
        ("cuda:1", {}, "device 'cuda:1' with 2 processes: each takes a GPU of its own; use --device auto or cpu"),
        ("auto", {"LOCAL_WORLD_SIZE": "1"}, "2 processes were started, 1 of them here; start all on one host"),
    ],
)
def test_what_several_processes_cannot_do_is_refused(device, environment, expected, monkeypatch):
    for name, value in {"WORLD_SIZE": "2", **environment}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as problem:
        open_runtime(RuntimeSettings(device=device))
    assert str(problem.value) == expected


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(SettingsError, match="4 processes were started, and there are 2 GPUs; start 2, or use"):
        join_ranks("auto")


def test_one_process_of_a_launcher_is_alone(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert join_ranks("cuda:0") is ALONE
