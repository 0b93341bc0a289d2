"""The machine a run uses: which device and precision, that random states are set, and what memory was used."""

import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pet.config.schema import RuntimeSettings
from pet.errors import SettingsError
from pet.training import device as runtime_module
from pet.training import memory
from pet.training.device import BATCH_TOKENS, CPU_BF16, Runtime, open_runtime, seed_everything
from pet.training.memory import peak_memory, reset_peak_memory
from pet.training.reporter import Reporter, Silent

HAS_GPU = torch.cuda.is_available()


def settings(**values: object) -> RuntimeSettings:
    return RuntimeSettings.model_validate(values)


@pytest.fixture
def pretend_gpu(monkeypatch):
    """A GPU as far as questions about it go."""
    device = torch.device("cuda", 0)
    monkeypatch.setattr(runtime_module, "choose_device", lambda name: device)
    for name, answer in {
        "is_available": True,
        "is_bf16_supported": True,
        "get_device_name": "Big GPU",
        "reset_peak_memory_stats": None,
        "max_memory_allocated": 123,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *rest, answer=answer: answer)
    return device


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator here")
def test_without_a_gpu_auto_is_the_cpu_in_full_precision():
    runtime = open_runtime(settings())
    assert runtime.device == torch.device("cpu")
    assert runtime.dtype is None
    assert runtime.batch_tokens == BATCH_TOKENS["cpu"]
    assert runtime.facts() == {"device": "cpu", "precision": "fp32"}


def test_a_gpu_with_bf16_uses_it_and_larger_batches(pretend_gpu):
    runtime = open_runtime(settings())
    assert (runtime.device, runtime.dtype) == (pretend_gpu, torch.bfloat16)
    assert runtime.batch_tokens == BATCH_TOKENS["cuda"] > BATCH_TOKENS["cpu"]
    assert runtime.facts() == {"device": "Big GPU", "precision": "bf16"}


def test_a_gpu_without_bf16_runs_in_full_precision(pretend_gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert open_runtime(settings()).dtype is None


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", None), ("bf16", torch.bfloat16), ("auto", None)])
def test_the_precision_that_was_asked_for_is_used_on_a_cpu_even_beside_a_gpu(precision, dtype, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    runtime = open_runtime(settings(device="cpu", precision=precision))
    assert runtime.dtype == dtype
    assert runtime.facts()["precision"] == ("fp32" if dtype is None else "bf16")


@pytest.mark.parametrize(
    ("has", "precision"),
    [({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True, "avx512_bf16": False}, "bf16"), ({"avx2": True}, "fp32")],
)
def test_a_cpu_with_instructions_for_bf16_uses_it(has, precision, monkeypatch):
    monkeypatch.setattr(runtime_module, "CPU_BF16", CPU_BF16)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    assert open_runtime(settings(device="cpu")).facts()["precision"] == precision
    assert open_runtime(settings(device="cpu", precision="fp32")).dtype is None


def test_a_torch_that_cannot_tell_what_a_cpu_has_runs_in_full_precision(monkeypatch):
    monkeypatch.setattr(runtime_module, "CPU_BF16", CPU_BF16)
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert open_runtime(settings(device="cpu")).dtype is None


def test_full_precision_can_be_asked_for_on_a_gpu(pretend_gpu):
    assert open_runtime(settings(precision="fp32")).dtype is None


def test_the_size_of_scoring_batches_can_be_set():
    assert open_runtime(settings(device="cpu", batch_tokens=640)).batch_tokens == 640


def test_steps_are_captured_unless_that_is_turned_off():
    assert open_runtime(settings(device="cpu")).capture
    assert not open_runtime(settings(device="cpu", capture=False)).capture


@pytest.mark.parametrize(("device", "capture"), [("cpu", True), ("cpu", False), ("cuda", True), ("cuda", False)])
def test_steps_are_captured_on_a_gpu_only(device, capture):
    runtime = Runtime(torch.device(device), None, 64, Silent(), capture)
    assert runtime.captures == (device == "cuda" and capture)


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "mps:7", "tpu", "", "cpu:", "hpu", "xpu", "xla"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(name):
    with pytest.raises(SettingsError) as raised:
        open_runtime(settings(device=name))
    assert str(raised.value).startswith(f"device {name!r} is not to be had here; use --device auto or one of cpu")


def test_the_refusal_lists_the_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(SettingsError, match="one of cpu, cuda:0, cuda:1"):
        open_runtime(settings(device="gpu"))


def test_the_reporter_is_handed_down_and_logs_if_there_is_none():
    mine = Silent()
    assert open_runtime(settings(device="cpu"), mine).reporter is mine
    assert type(open_runtime(settings(device="cpu")).reporter) is Reporter


def test_a_seed_reproduces_every_kind_of_random_number():
    def draw(seed: int) -> tuple[float, float, float]:
        seed_everything(seed)
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    first, other = draw(7), draw(8)
    assert draw(7) == first
    assert not set(first) & set(other)
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


# ---- memory --------------------------------------------------------------------------------------------------------


def test_peak_memory_is_that_since_the_last_reset():
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("the kernel does not forget a peak here")
    reset_peak_memory()
    before = peak_memory()["peak_memory_bytes"]
    assert before > 10 * 2**20
    block = np.ones(64 * 2**20, dtype=np.uint8)
    assert peak_memory()["peak_memory_bytes"] > before + 32 * 2**20
    del block


@pytest.mark.parametrize(("platform", "scale"), [("linux", 1024), ("darwin", 1)])
def test_where_the_kernel_tells_no_peak_it_is_that_of_the_whole_process(monkeypatch, platform, scale):
    def refuse(self: Path, *rest: str) -> str:
        raise FileNotFoundError(self)

    monkeypatch.setattr(memory.Path, "read_text", refuse)
    monkeypatch.setattr(memory.Path, "write_text", refuse)
    monkeypatch.setattr(memory, "sys", SimpleNamespace(platform=platform))
    monkeypatch.setattr(memory.resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=5))
    reset_peak_memory()
    assert peak_memory()["peak_memory_bytes"] == 5 * scale


@pytest.mark.skipif(HAS_GPU, reason="a pretended GPU is for machines without one")
def test_the_peak_of_a_gpu_is_told_too(pretend_gpu):
    reset_peak_memory()
    assert peak_memory()["peak_gpu_memory_bytes"] == 123
