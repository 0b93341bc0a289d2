"""The texts of one draw, as `prepare` published them: labelled texts, pool and test set."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from pet.store.store import Artifact
from pet.tasks.texts import TextFile, Texts, TextSource, read_texts

Pool = TypeVar("Pool", bound=TextSource)


@dataclass(frozen=True)
class Splits(Generic[Pool]):
    """The texts of one draw. `pool` has no labels; once written it is read from its file, never held in memory."""

    train: Texts
    pool: Pool
    test: Texts


def load(artifact: Artifact) -> Splits[TextFile]:
    """The splits of a prepare artifact."""
    train, pool, test = (artifact.file(f"{split}.parquet") for split in ("train", "pool", "test"))
    return Splits(read_texts(train), TextFile(pool), read_texts(test))


def sizes(artifact: Artifact) -> dict[str, int]:
    """Number of texts per split."""
    return dict(artifact.read_json("report.json")["sizes"])


def load_pool_gold(artifact: Artifact) -> list[tuple[str, str | None]]:
    """Id and hidden label of each pool text, `None` where unknown. For evaluation only."""
    texts = read_texts(artifact.file("pool_gold.parquet"))
    return list(zip(texts.ids, texts.labels, strict=True))
