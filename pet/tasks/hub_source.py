"""Datasets of the hub, read as tables: nothing local, nothing that runs."""

import itertools
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

from pet.config.hub import hub_reachable
from pet.errors import TaskError
from pet.tasks.card import SPLITS, HubSource
from pet.tasks.readers import Row
from pet.tasks.texts import CHUNK

HUB_READERS = ("arrow", "csv", "json", "parquet", "text")
"""Builders of `datasets` that a dataset may be read by: tables and lines of text. All others, those of versions to come
among them, are refused: some unpickle, open what a row names, or hand bytes to decoders of pictures and sounds."""

HUB_CACHE = "cache"
"""The builder that reads what another one has left in the local cache."""


def hub_splits(task: str, source: HubSource) -> dict[str, Iterable[Row]]:
    """The rows of each split of a hub dataset, downloaded or from the local cache; never a file of this machine.

    Raises:
        TaskError: the hub cannot be reached and the cache does not have it, there is no such dataset or split, or it
            is not made of tables in its own repository.
    """
    if not hub_reachable():
        os.environ.setdefault("HF_DATASETS_OFFLINE", "1")  # read by datasets when it is imported
    import datasets

    datasets.disable_progress_bars()
    try:
        # Without hf:// a folder of that name would be read in its place.
        builder = datasets.load_dataset_builder(f"hf://datasets/{source.path}", source.config, revision=source.revision)
        refuse_foreign_data(task, source, builder)
        builder.download_and_prepare()
        return {
            split: hub_rows(name, builder.as_dataset(split=name))
            for split in SPLITS
            if (name := getattr(source, split)) is not None
        }
    except TaskError:
        raise
    except Exception as problem:
        reason = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
        raise TaskError(
            f"dataset {source.path!r} of task {task!r} could not be read from the hub ({reason}); "
            "check the connection, or give local files with --data"
        ) from None


def refuse_foreign_data(task: str, source: HubSource, builder: Any) -> None:
    """Look at what a builder of `datasets` would read, before it does: the page of a dataset can name any file.

    Raises:
        TaskError: files outside the dataset's own repository, a reader that is none of HUB_READERS, or a cached commit
            other than the one asked for.
    """
    what = f"dataset {source.path!r} of task {task!r}"
    reader = type(builder).__module__.rpartition(".")[2]
    if reader == HUB_CACHE:
        is_commit = re.fullmatch(r"[0-9a-f]{40}", source.revision or "")  # and no branch or tag
        if is_commit and builder.hash != source.revision:
            raise TaskError(
                f"{what} is in the local cache at commit {builder.hash}, not at {source.revision}; connect to the hub, "
                "or change `revision` in the card"
            )
        return
    if reader not in HUB_READERS:
        raise TaskError(
            f"{what} is read by {reader!r} of `datasets`, which is not allowed; give one made of "
            f"{', '.join(HUB_READERS)} files"
        )
    files = [str(one) for split in (builder.config.data_files or {}).values() for one in split]
    foreign = next((one for one in files if not one.startswith(f"hf://datasets/{source.path}@")), None)
    if foreign is not None or not files:
        raise TaskError(
            f"{what} names {foreign or 'no file'!r}, which is not in its own repository; give a dataset that holds its "
            "texts itself"
        )


def hub_rows(split: str, table: Any) -> Iterator[Row]:
    """Rows of one split. Nothing in them is decoded: a picture stays bytes or a path, which is not opened."""
    batches = table.with_format("arrow").iter(CHUNK)
    for number, values in enumerate(itertools.chain.from_iterable(batch.to_pylist() for batch in batches)):
        yield Row(f"{split}:{number}", values)
