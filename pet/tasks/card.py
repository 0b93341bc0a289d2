"""Task cards, and the texts they point at: from `data/<task>/task.yaml` to `Texts` per split.

A card says what the texts are (fields, labels), what to ask (patterns, verbalizers) and where the texts come from. A
source may be `files` (CSV, TSV, JSONL, Parquet, each also .gz), a `folder` with one sub-folder per label, or a `hub`
dataset. Nothing here samples, tokenises or trains.
"""

import codecs
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from pet.config.limits import stays_inside
from pet.config.messages import parse_model
from pet.config.resolve import read_extended
from pet.config.schema import Revision, Section, spelled
from pet.config.shipped import find_file
from pet.errors import PetError, TaskError, raise_problems
from pet.tasks.patterns import PVP, parse_pattern

SPLITS = ("train", "test", "unlabelled")
SOURCES = ("files", "folder", "hub")
NOT_TEXT = ("idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined", "mbcs", "oem")
"""Encodings of Python that no text file has; some take time that grows with the square of its length."""

PackageName = Annotated[str, spelled(r"[A-Za-z][A-Za-z0-9_]*", "the name of an installed Python package")]
Requirement = Annotated[str, spelled(r"[A-Za-z0-9][A-Za-z0-9._=,\[\]-]*", "what pip installs, as in name==1.0")]
DatasetName = Annotated[
    str,
    spelled(
        r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?",
        "OWNER/NAME as the hub shows it; local files are named in `files:`",
    ),
]
ConfigName = Annotated[str, spelled(r"[\w(][\w ().,+=@-]*", "the name of a configuration, as the hub shows it")]
Mark = Annotated[str, spelled(r"[0-9a-f]{16}", "digests of 16 hexadecimal digits")]


class Source(Section):
    """What every source says: how its columns become the card's fields and labels."""

    label: str | None = "label"
    """Column with the label; null: the source has none."""
    id: str | None = None
    """Column with an id; default: the row's file and line."""
    fields: dict[str, str] = Field({})
    """Field -> template over columns, e.g. '{title} {body}'."""
    labels: dict[str, str] = Field({})
    """Label as written in the source -> label of the card."""
    replace: dict[str, str] = Field({})
    """Applied in order to every text: what -> by what."""
    where: dict[str, str] = Field({})
    """Keep only rows whose column has this value."""


class FilesSource(Source):
    """One file per split, in the card's folder or the one given by --data; `.gz` is found too."""

    format: Literal["csv", "tsv", "jsonl", "parquet"]
    train: str | None = None
    test: str | None = None
    unlabelled: str | None = None
    columns: tuple[str, ...] | None = None
    """Names of the columns of a file without a header line."""
    quoted: bool = True
    """`false`: quotation marks have no meaning (GLUE's TSV files)."""
    encodings: tuple[str, ...] = ("utf-8-sig",)
    """Tried in this order."""


class FolderSource(Source):
    """One text file per example in one sub-folder per label; columns `label`, `headline` (first line), `body`."""

    package: PackageName | None = None
    """Installed Python package that carries the folder; it is not imported."""
    install: Requirement | None = None
    """What to install when the package is missing."""
    folder: str = "."
    encodings: tuple[str, ...] = ("utf-8-sig",)


class HubSource(Source):
    """A dataset on the Hugging Face hub, read through `datasets`."""

    path: DatasetName
    config: ConfigName | None = None
    revision: Revision | None = None
    train: str | None = "train"
    test: str | None = "test"
    unlabelled: str | None = None


class PatternEntry(Section):
    """A pattern that names its verbalizer."""

    pattern: str
    verbalizer: str = "default"


Entry = Annotated[
    Annotated[str, Tag("<line>")] | Annotated[PatternEntry, Tag("<entry>")],
    Discriminator(lambda given: "<line>" if isinstance(given, str) else "<entry>"),
]

MAX_WORDS_FROM = 30_000
"""Marks that a card may have: so many fit into the limits of its YAML."""

Verbalizer = dict[str, Annotated[tuple[str, ...], Field(min_length=1)]]


class TaskCard(Section):
    """`task.yaml`, checked: see `load_card` for what is refused."""

    # What is compared with each other is counted: a card of a thousand patterns would be checked for minutes.
    name: Annotated[
        str, Field(max_length=80), spelled(r"[a-z0-9][a-z0-9._-]*", "small letters, digits, '.', '_' and '-'")
    ]  # part of folders' names
    title: str
    fields: Annotated[tuple[str, ...], Field(min_length=1, max_length=20)]
    labels: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=2, max_length=1000)]
    patterns: Annotated[tuple[Entry, ...], Field(min_length=1, max_length=100)]
    verbalizers: Annotated[dict[str, Verbalizer], Field(min_length=1, max_length=100)]
    metric: Literal["accuracy", "macro-f1"] = "accuracy"
    words_from: Annotated[tuple[Mark, ...], Field(max_length=MAX_WORDS_FROM)] = ()
    """`marks` of the texts whose labels chose the label words; none is ever a test text."""
    files: FilesSource | None = None
    folder: FolderSource | None = None
    hub: HubSource | None = None

    def pvps(self) -> list[PVP]:
        """All pattern-verbalizer pairs, numbered as in the card."""
        counts = Counter(entry.pattern for entry in self.entries)
        return [
            PVP(
                number,
                parse_pattern(entry.pattern, self.fields),
                {label: self.verbalizers[entry.verbalizer][label] for label in self.labels},
                repeated=counts[entry.pattern] > 1,
            )
            for number, entry in enumerate(self.entries)
        ]

    @property
    def entries(self) -> list[PatternEntry]:
        """The patterns, each with the name of its verbalizer."""
        return [one if isinstance(one, PatternEntry) else PatternEntry(pattern=one) for one in self.patterns]


class CardReading(Section):
    """What a card says about reading. A run keeps it, so that new texts are read as the run read its own, wherever the
    card is by then and whatever it says."""

    fields: tuple[str, ...]
    labels: tuple[str, ...]
    files: FilesSource | None = None
    folder: FolderSource | None = None
    hub: HubSource | None = None

    @property
    def sources(self) -> list[Source]:
        """The sources that the card names, in the order in which they are tried."""
        return [one for one in (self.files, self.folder, self.hub) if one]


def reading_of(card: TaskCard) -> CardReading:
    """What a card says about reading."""
    return CardReading.model_validate({name: getattr(card, name) for name in CardReading.model_fields})


def parse_reading(values: dict[str, Any], what: str, error: type[PetError]) -> CardReading:
    """What a run kept of its card, checked as the card was.

    Args:
        values: The content of the run's file.
        what: What the file is called in messages.
        error: What is raised.

    Raises:
        PetError: `error`, naming every problem.
    """
    reading = parse_model(CardReading, values, what, error)
    raise_problems(error, what, [problem for source in reading.sources for problem in source_problems(reading, source)])
    return reading


# ---- cards ---------------------------------------------------------------------------------------------------------


def load_card(name: str) -> tuple[TaskCard, Path]:
    """The task card of that name or path, and the folder it lies in.

    Raises:
        TaskError: no such card, not YAML, unknown keys, a pattern that does not parse, a verbalizer that lacks a label.
    """
    path = find_file("data", name, TaskError)
    card = parse_model(TaskCard, read_extended(path, "data", lay_over, TaskError), f"task card {path}", TaskError)
    raise_problems(TaskError, f"task card {path}", list(card_problems(card)))
    return card, path.parent


def lay_over(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """A card over the one it extends: the keys of a source one by one, everything else whole.

    Whole, because a card with fewer labels could not get rid of the other labels' words otherwise.
    """
    sources = {
        name: {**base[name], **values[name]}
        for name in SOURCES
        if isinstance(base.get(name), dict) and isinstance(values.get(name), dict)
    }
    return {**base, **values, **sources}


def card_problems(card: TaskCard) -> Iterator[str]:
    """Everything pydantic cannot see: fields, verbalizers and patterns that do not fit each other."""
    if "mask" in card.fields or len(set(card.fields)) < len(card.fields):
        yield f"fields {list(card.fields)} must be different names other than 'mask'"
    if len(set(card.labels)) < len(card.labels):
        yield f"labels {list(card.labels)} must be different"
    known = set(card.labels)
    for name, words in card.verbalizers.items():
        counts = Counter(word for label_words in words.values() for word in set(label_words))
        if shared := [word for word, count in counts.items() if count > 1]:
            yield f"verbalizer {name!r} uses {shared} for several labels; give each label its own words"
        if missing := [label for label in card.labels if label not in words]:
            yield f"verbalizer {name!r} has no words for {missing}"
        if unknown := [label for label in words if label not in known]:
            yield f"verbalizer {name!r} has words for {unknown}, which are not among the card's labels"
    for entry in card.entries:
        if entry.verbalizer not in card.verbalizers:
            there = list(card.verbalizers)
            yield f"pattern {entry.pattern!r} names verbalizer {entry.verbalizer!r}; known: {there}"
        try:
            parse_pattern(entry.pattern, card.fields)
        except TaskError as problem:
            yield str(problem)
    for (pattern, _), count in Counter((entry.pattern, frozen_words(card, entry)) for entry in card.entries).items():
        if count > 1:
            often = "twice" if count == 2 else f"{count} times"
            yield (
                f"pattern {pattern!r} stands {often} with the same words; keep one of them, or give the others words "
                "of their own"
            )
    for source in (card.files, card.folder, card.hub):
        if source:
            yield from source_problems(card, source)


def frozen_words(card: TaskCard, entry: PatternEntry) -> frozenset[tuple[str, frozenset[str]]]:
    """The words that a pattern is asked with, equal for equal ones: their order and their verbalizer's name do not
    count. A verbalizer that is not there has none."""
    words = card.verbalizers.get(entry.verbalizer, {entry.verbalizer: ()})
    return frozenset((label, frozenset(one)) for label, one in words.items())


def source_problems(card: TaskCard | CardReading, source: Source) -> Iterator[str]:
    """Fields or labels of a source that the card does not know, or a source with nothing to learn from."""
    for field in source.fields:
        if field not in card.fields:
            yield f"a source fills {field!r}, which is not a field"
    if isinstance(source, HubSource) and "/" not in source.path:
        yield (
            f"hub dataset {source.path!r} has no owner; write OWNER/NAME as the hub shows it, or name local files in "
            "`files:`"
        )
    if isinstance(source, FilesSource | HubSource) and not (source.train or source.unlabelled):
        yield "a source names neither `train` nor `unlabelled` texts"
    if isinstance(source, FilesSource | FolderSource):
        for name in paths_of(source):
            if not stays_inside(name):
                where = "put it there, or only name the file and give its folder by --data"
                yield f"{name!r} lies outside the card's folder; {where}"
        yield from (f"encoding {one!r} is none; try utf-8" for one in source.encodings if not is_encoding(one))
        if not source.encodings:
            yield "`encodings` is empty; leave it out for UTF-8"
    for template in source.fields.values():
        if not is_template(template):
            yield f"{template!r} is no template; write text and columns in braces, as in '{{title}} {{body}}'"
    if "" in source.replace:
        yield "`replace` has nothing to look for in one line; write what is to be replaced"
    for raw, label in source.labels.items():
        if label not in card.labels:
            yield f"a source maps {raw!r} to {label!r}, which is not a label"


def paths_of(source: FilesSource | FolderSource) -> list[str]:
    """The paths that a source names."""
    if isinstance(source, FolderSource):
        return [source.folder]
    return [name for split in SPLITS if (name := getattr(source, split)) is not None]


def is_encoding(name: str) -> bool:
    """Whether Python knows an encoding of texts by that name."""
    if not re.fullmatch(r"[\w-]+", name, re.ASCII):
        return False
    try:
        found = codecs.lookup(name)
        return found.name.replace("-", "_") not in NOT_TEXT and isinstance("".encode(name), bytes)
    except LookupError:  # unknown, or of bytes to bytes
        return False


def is_template(template: str) -> bool:
    """Whether it has only plain `{column}` in it: what else Python can format reads attributes, or pads to any size."""
    try:
        parts = list(Formatter().parse(template))
    except ValueError:
        return False
    return all(
        name is None or (not spec and conversion is None and re.fullmatch(r"(?!\d+$)[^][.!:{}]+", name))
        for _, name, spec, conversion in parts
    )
