"""Which text goes where: drawing labelled texts, pool and test set, and finding texts that stand in two of them.

All draws are functions of (labels, sizes, seed) and return row numbers; nothing here holds a text longer than it looks
at it, and nothing is written.
"""

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from pet.errors import TaskError


def derive_seed(*parts: object) -> int:
    """A 32-bit seed from anything with a stable text, so that each use of the run's seed has its own stream."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:4], "big")


def divide_evenly(total: int, num_shares: int) -> list[int]:
    """`total` in `num_shares` shares that differ by at most one, the larger first (10 over 3: 4, 3, 3)."""
    share, rest = divmod(total, num_shares)
    return [share + (index < rest) for index in range(num_shares)]


@dataclass(frozen=True)
class Draw:
    """Row numbers of the labelled texts, the pool and the test set (of the test side, if the source has one)."""

    train: list[int]
    pool: list[int]
    test: list[int]


def draw_by_seed(
    labels: Sequence[str | None],
    names: Sequence[str],
    train_examples: int,
    pool_size: int,
    test_size: int | None,
    seed: int,
    test_rows: int | None = None,
    given: Collection[int] = (),
    barred: Collection[int] = (),
) -> Draw:
    """Recipe `fixed`: labelled texts balanced over the labels, then the pool from what is left, whatever its label.

    `labels`: label per row of the train side, `None` where unknown; `names`: the task's labels.
    `test_size`: texts of the test set, at most; `None`: all.
    `test_rows`: number of rows on the test side; `None` when the source has no test set: then at most half of the
    labelled rows of the train side are drawn for it, before everything else.
    `given`: rows that are labelled texts in any case, beside those drawn. As long as they come from the pool of the
    same seed, the labelled texts drawn and the test set are what they are without them.
    `barred`: rows that are never drawn for the test set.

    Raises:
        TaskError: a label has too few texts, or nothing is left for the pool or the test set.
    """
    rng = np.random.default_rng(derive_seed("draw", seed))
    order = [int(row) for row in rng.permutation(len(labels))]
    kept = set(given)
    if test_rows is None:
        labelled = [row for row in order if labels[row] is not None]
        most = min(len(labelled) // 2, test_size or len(labelled))
        out = kept | set(barred)
        test = [row for row in labelled if row not in out][:most]
        taken = set(test)
        order = [row for row in order if row not in taken]
    else:
        test = [int(row) for row in rng.permutation(test_rows)[:test_size]]
    order = [row for row in order if row not in kept]
    train = take_per_label(order, labels, names, divide_evenly(train_examples, len(names)))
    taken = set(train)
    pool = [row for row in order if row not in taken][:pool_size]
    return checked(Draw([*train, *sorted(kept)], pool, sorted(test)))


def draw_first(
    labels: Sequence[str | None],
    names: Sequence[str],
    train_examples: int,
    pool_per_label: int,
    test_size: int | None,
    test_rows: int,
    given: Collection[int] = (),
) -> Draw:
    """Recipe `paper`: the first texts of each label in file order; the pool holds the labelled texts too (P1 App C).

    Texts without a label, which the paper's tasks do not have, come into the pool like one more label. `given`: rows
    that are labelled texts in any case, beside the first ones; these are not in the pool.

    Raises:
        TaskError: as `draw_by_seed`.
    """
    kept = set(given)
    order = [row for row in range(len(labels)) if row not in kept]
    train = take_per_label(order, labels, names, divide_evenly(train_examples, len(names)))
    by_label: dict[str | None, list[int]] = defaultdict(list)
    for row in order:
        by_label[labels[row]].append(row)
    pool = sorted(row for name in (*names, None) for row in by_label[name][:pool_per_label])
    return checked(Draw([*train, *sorted(kept)], pool, list(range(test_rows))[:test_size]))


def take_per_label(
    order: Iterable[int], labels: Sequence[str | None], names: Sequence[str], sizes: Sequence[int]
) -> list[int]:
    """The first `sizes[i]` rows of label `names[i]` in `order`, for every label; sorted by place in `order`.

    Raises:
        TaskError: names every label that has too few.
    """
    wanted = dict(zip(names, sizes, strict=True))
    left = dict(wanted)
    taken = []
    for row in order:
        name = labels[row]
        if name is not None and left[name] > 0:
            left[name] -= 1
            taken.append(row)
    short = [f"{name!r} has {wanted[name] - left[name]}, needs {wanted[name]}" for name in names if left[name]]
    if short:
        raise TaskError(
            f"{sum(sizes)} training examples need more labelled texts than there are: {', '.join(short)}; "
            "lower --train-examples (or data.test, where the test set is drawn from the same texts), or label more"
        )
    return taken


def checked(draw: Draw) -> Draw:
    """The draw, if pool and test set have at least one text each."""
    if not draw.test:
        raise TaskError("no labelled texts are left for the test set; add a test file or label more texts")
    if not draw.pool:
        raise TaskError("no texts are left for the unlabelled pool; lower data.test or --train-examples, or add texts")
    return draw
