"""What every test needs: no hub, no progress bars, and a tiny model on disk made once."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # a worker of pytest a core
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support import quick

from pet.training import device

if TYPE_CHECKING:
    from support.rows import Finished


def pytest_configure(config: pytest.Config) -> None:
    if "not slow" in config.getoption("markexpr"):  # elsewhere a slow machine would fail what is right
        config.pluginmanager.register(quick.Watch())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that no worker is left with one at the end."""
    slow = {item.path for item in items if quick.is_slow(item)}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session", autouse=True)
def same_on_every_cpu() -> Iterator[None]:
    """`auto` is fp32 here, also on a CPU that is faster in bf16."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "CPU_BF16", frozenset())
        yield


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer random BERT with its tokenizer; never write into it."""
    from support.tiny import save_tiny

    return save_tiny(tmp_path_factory.mktemp("models") / "tiny-bert")


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory) -> "Finished":
    """A finished run, made once; never write into its folders."""
    from support.rows import finish_run

    return finish_run(tmp_path_factory.getbasetemp())
