"""What every test needs: no hub, no progress bars, and a tiny model on disk made once."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer random BERT with its tokenizer; never write into it."""
    from tiny import save_tiny

    return save_tiny(tmp_path_factory.mktemp("models") / "tiny-bert")
