"""Texts that say nearly the same: shingles, and an index of them."""

import re
import zlib
from collections import defaultdict
from collections.abc import Iterable

SHINGLE_WORDS = 5
SKETCH_SIZE = 8
DUPLICATE_JACCARD = 0.8
"""Two texts are near-duplicates when this share of their 5-word sequences is common. Candidates share one of their 8
smallest sequence hashes, which finds a pair at the threshold with probability > 0.99 (bottom-k sketch, Broder 1997)."""


def shingles(text: str) -> frozenset[int]:
    """Hashes of all 5-word sequences of a text, its case and punctuation ignored; of all its words if it is shorter."""
    words = re.findall(r"\w+", text.casefold())
    starts = range(max(1, len(words) - SHINGLE_WORDS + 1))
    return frozenset(zlib.crc32(" ".join(words[start : start + SHINGLE_WORDS]).encode()) for start in starts)


class NearDuplicateIndex:
    """Texts, to ask which of them say nearly the same as another (Jaccard of 5-word sequences >= 0.8)."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.sets: list[frozenset[int]] = []
        self._rows: dict[int, list[int]] = defaultdict(list)
        for text in texts:
            self.add(shingles(text))

    def add(self, found: frozenset[int]) -> None:
        """One more, by its shingles."""
        for value in sorted(found)[:SKETCH_SIZE]:
            self._rows[value].append(len(self.sets))
        self.sets.append(found)

    def like(self, other: frozenset[int]) -> list[int]:
        """The rows of those that say nearly the same as a text of these shingles."""
        candidates = {row for value in sorted(other)[:SKETCH_SIZE] for row in self._rows.get(value, ())}
        return [row for row in sorted(candidates) if jaccard(self.sets[row], other) >= DUPLICATE_JACCARD]


def count_near_duplicates(train: Iterable[str], pool: Iterable[str], test: Iterable[str]) -> dict[str, int]:
    """How many texts of one split say nearly the same as one of another. Of the pool nothing is held in memory."""
    labelled, tested = NearDuplicateIndex(train), NearDuplicateIndex(test)
    repeated: set[int] = set()
    of_train = 0
    for text in pool:
        found = shingles(text)
        of_train += bool(labelled.like(found))
        repeated.update(tested.like(found))
    return {
        "test_of_train": sum(bool(labelled.like(found)) for found in tested.sets),
        "test_of_pool": len(repeated),
        "pool_of_train": of_train,
    }


def jaccard(one: frozenset[int], other: frozenset[int]) -> float:
    """|intersection| / |union|."""
    return len(one & other) / len(one | other)
