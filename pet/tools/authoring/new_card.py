"""A first task card for a file of texts: what is in the file, and the card that `pet init` writes.

Which label words it proposes is the business of `label_words`; nothing here loads a model or prints.
"""

import re
import shutil
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pet.errors import TaskError, raise_problems
from pet.store.files import flow, scalar, write_folder
from pet.tasks.card import load_card
from pet.tasks.readers import SUFFIXES, ReadingRules, Row, read_rows, suffix_of
from pet.tasks.sources import load_texts
from pet.tasks.splits import draw_by_seed
from pet.tasks.texts import Texts, marks, rows_from
from pet.tasks.writers import delimited_line
from pet.tools.authoring.label_words import FirstWords
from pet.tools.rendering import render

TEXT_NAMES = (
    "text body content message review sentence comment document description utterance tweet post article "
    "question title headline"
).split()
LABEL_NAMES = "label labels category class topic intent target sentiment rating stars".split()
"""Columns that are taken for text and label, the most likely first."""

PATTERNS = ("{mask} : {text}", "{text} ( {mask} )", "[ Category: {mask} ] {text}")
PAIR_PATTERNS = ("{mask} : {text} {text_b}", "{text} ( {mask} ) {text_b}", "{text} || {mask} , {text_b}")
"""What a card begins with: about the topic of a text, and short."""

SHIPPED_TEST = 500
MOST_TRAINING = 100
"""Of `pipelines/quick.yaml`: how many test texts it asks for; and how many labelled ones its steps can use."""

SEEDS = (0, 1, 2)
"""Seeds whose draws must work with the numbers that are proposed."""

LONGEST_KEY = 1000
"""Characters of a YAML key before a mere colon; YAML allows 1,024."""


# ---- the file ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """A file as it is: `kind` is the format of its `ReadingRules`, columns in order, rows."""

    path: Path
    kind: str
    columns: list[str]
    rows: list[Row]


@dataclass(frozen=True)
class Columns:
    """Which columns are texts (one or two) and which is the label; `guessed`: those that nobody named."""

    texts: tuple[str, ...]
    label: str | None
    guessed: tuple[str, ...]

    @property
    def fields(self) -> dict[str, str]:
        """Field of the card -> its column. A column that can stand in a pattern gives its field its name."""
        plain = ("text",) if len(self.texts) == 1 else ("text", "text_b")
        usable = all(one.isidentifier() and one != "mask" for one in self.texts)
        return dict(zip(self.texts if usable else plain, self.texts, strict=True))


@dataclass(frozen=True)
class Survey:
    """What a person should know of a file before anything is made of it.

    `words`, `characters`: least, median and most of a text. `repeated`: texts that stood before, word for word;
    `disputed`: those of them that stood there with another label.
    """

    rows: int
    labels: dict[str, int]
    unlabelled: int
    words: tuple[int, int, int]
    characters: tuple[int, int, int]
    empty: list[str]
    repeated: int
    disputed: int


def read_input(path: Path) -> Table:
    """A CSV, TSV, JSONL or Parquet file (each also .gz), or a .txt file with one text a line.

    Raises:
        TaskError: missing, of another kind, damaged or without a row; names every bad line.
    """
    suffix = suffix_of(path)
    if suffix not in SUFFIXES:
        known = ", ".join(f".{one}" for one in SUFFIXES)
        raise TaskError(
            f"--input {str(path)!r} ends in none of {known} (or one of them with .gz); rename or convert it"
        )
    kind = SUFFIXES[suffix]
    rows = list(read_rows(path, ReadingRules(kind)))
    if not rows:
        raise TaskError(f"--input {str(path)!r} has no texts; give a file with a header line and a row a text")
    return Table(path, kind, list(dict.fromkeys(name for row in rows for name in row.values)), rows)


def choose_columns(table: Table, text: str | None, text_b: str | None, label: str | None) -> Columns:
    """The columns that were named, and guesses for those that were not. No label column is a valid outcome.

    Raises:
        TaskError: a column that is not there, or no guess for the text; lists the columns.
    """
    given = {"--text": text, "--text-b": text_b, "--label": label}
    has = f"{table.path} has the columns {', '.join(map(repr, table.columns))}"
    problems = [
        f"{flag} {name!r} is none of them, name one that is"
        for flag, name in given.items()
        if name not in (None, *table.columns)
    ]
    if text_b is not None and text is None:
        problems.append("--text-b needs --text")
    named = [name for name in given.values() if name is not None]
    problems += [f"{name!r} is named twice" for name, count in Counter(named).items() if count > 1]
    free = [name for name in table.columns if name not in named]
    guessed_text = guess(free, TEXT_NAMES) if text is None and not problems else None
    if text is None and guessed_text is None and not problems:
        problems.append("none of them looks like the text; name it by --text (and the label by --label)")
    unusable = [one for one in (text or guessed_text, text_b) if one is not None and re.search(r"^\d*$|[][.:!{}]", one)]
    problems += [
        f"a card cannot name the column {one!r}; rename it, without any of [ ] . : ! {{ }}" for one in unusable
    ]
    raise_problems(TaskError, has, problems)
    guessed_label = guess([one for one in free if one != guessed_text], LABEL_NAMES) if label is None else None
    return Columns(
        tuple(one for one in (text or guessed_text, text_b) if one is not None),
        label or guessed_label,
        tuple(one for one in (guessed_text, guessed_label) if one is not None),
    )


def guess(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """The column with the likeliest name: the name itself, else one that contains it as a word."""
    parts = {column: re.findall(r"[a-z]+", column.lower()) for column in columns}
    whole = [column for name in names for column in columns if column.lower() == name]
    within = [column for name in names for column in columns if name in parts[column]]
    return next(iter([*whole, *within]), None)


def read_cell(row: Row, column: str | None) -> str:
    """A cell as `tasks` reads it: text without white space around it."""
    value = None if column is None else row.values.get(column)
    return "" if value is None else str(value).strip()


def survey(table: Table, columns: Columns) -> Survey:
    """Counts over the file; nothing is refused."""
    texts = [" ".join(filter(None, (read_cell(row, one) for one in columns.texts))) for row in table.rows]
    labels = [read_cell(row, columns.label) for row in table.rows]
    first: dict[str, str] = {}
    repeated = disputed = 0
    for text, label in zip(texts, labels, strict=True):
        if text in first:
            repeated += 1
            disputed += bool(label and first[text] and label != first[text])
        elif text:
            first[text] = label
    counts = Counter(filter(None, labels))
    return Survey(
        len(texts),
        {label: counts[label] for label in sorted(counts)},
        sum(not label for label in labels),
        spread([len(text.split()) for text in texts]),
        spread([len(text) for text in texts]),
        [row.where for row, text in zip(table.rows, texts, strict=True) if not text],
        repeated,
        disputed,
    )


def spread(sizes: Sequence[int]) -> tuple[int, int, int]:
    """Least, median and most."""
    return min(sizes), round(statistics.median(sizes)), max(sizes)


def choose_labels(found: Survey, columns: Columns, named: Sequence[str], path: Path) -> list[str]:
    """The card's labels: those of the file, or those that were named.

    Raises:
        TaskError: empty texts, fewer than two labels, one of the file that was not named, or one named twice.
    """
    problems = [f"{where}: the text is empty; remove the row or fill it" for where in found.empty]
    if len(set(named)) < len(named):
        problems.append(f"--labels {','.join(named)} names one twice")
    missing = [label for label in found.labels if named and label not in named]
    problems += [
        f"label {label!r} stands in {found.labels[label]} rows, but not in --labels: add it, or leave those rows out"
        for label in missing
    ]
    labels = list(named or found.labels)
    if len(labels) < 2:
        column = "no column looks like a label" if columns.label is None else f"column {columns.label!r} has {labels}"
        problems.append(
            f"{column}; a task has two labels at least: name the column by --label, or the labels by --labels A,B"
        )
    raise_problems(TaskError, str(path), problems)
    return labels


# ---- sizes of a run ------------------------------------------------------------------------------------------------


def propose_sizes(texts: Texts, labels: Sequence[str], read: Texts | None = None) -> tuple[int, int] | None:
    """Numbers of labelled and of test texts with which `pet run quick` can draw from these; `None`: it never can.
    `read`: those whose labels chose the words, which are not tested on.

    As many of each label for training, half of the scarcest label's at most; then as many test texts as leave those.
    """
    barred = rows_from(texts, set(marks(read))) if read else []
    counts = Counter(label for label in texts.labels if label is not None)
    most = min(SHIPPED_TEST, counts.total() // 2)
    scarcest = min(counts[label] for label in labels)
    first = min((scarcest + 1) // 2, max(1, MOST_TRAINING // len(labels)))
    for each in range(first, -1, -1):
        for test in range(most, 0, -1):
            if can_draw(texts, labels, each * len(labels), test, barred):
                return each * len(labels), test
    return None


def can_draw(texts: Texts, labels: Sequence[str], train: int, test: int, barred: Sequence[int] = ()) -> bool:
    """Whether exactly these sizes can be drawn with any of SEEDS; `barred`: rows that are not tested on."""
    try:
        draws = (draw_by_seed(texts.labels, labels, train, len(texts), test, seed, barred=barred) for seed in SEEDS)
        return all(len(drawn.test) == test for drawn in draws)
    except TaskError:
        return False


# ---- the card ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """Everything that a new card says."""

    name: str
    table: Table
    columns: Columns
    labels: Sequence[str]
    model: str
    out: Path

    @property
    def patterns(self) -> list[str]:
        """The patterns to begin with, over the card's own fields."""
        names = list(self.columns.fields)
        if len(names) == 1:
            return [one.replace("{text}", f"{{{names[0]}}}") for one in PATTERNS]
        first, second = names
        return [one.replace("{text}", f"{{{first}}}").replace("{text_b}", f"{{{second}}}") for one in PAIR_PATTERNS]

    @property
    def data_name(self) -> str:
        """What the file of the texts is called beside the card: a copy, as a card names no file outside its folder."""
        return "texts.csv" if self.table.kind == "lines" else self.table.path.name

    @property
    def id_column(self) -> str | None:
        """A column called `id` in which every row has a cell of its own."""
        others = (*self.columns.texts, self.columns.label)
        named = next((one for one in self.table.columns if one.lower() == "id" and one not in others), None)
        cells = [read_cell(row, named) for row in self.table.rows]
        return named if named and all(cells) and len(set(cells)) == len(cells) else None

    def texts(self) -> Texts:
        """The texts as the card will have them."""
        return Texts(
            [row.where for row in self.table.rows],
            {field: [read_cell(row, one) for row in self.table.rows] for field, one in self.columns.fields.items()},
            [read_cell(row, self.columns.label) or None for row in self.table.rows],
        )


def check_name(name: str, out: Path) -> None:
    """Refuse a name that no card can have, and a folder that exists.

    Raises:
        TaskError: says which.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name):
        raise TaskError(
            f"task name {name!r} is not usable; expected lower-case letters, digits, '.', '_' and '-' (and a letter or "
            "digit first), and the folder by --out"
        )
    if out.exists() or out.is_symlink():
        raise TaskError(f"{out} exists already; remove it, or name another folder by --out")


def write_card(plan: Plan, proposed: FirstWords) -> Path:
    """Write the folder of a new task; it appears complete and loads, or not at all. Returns the card's path.

    Raises:
        TaskError: the folder exists.
        StoreError: it cannot be written.
    """
    check_name(plan.name, plan.out)
    with write_folder(plan.out) as draft:
        if plan.table.kind == "lines":
            write_lines(draft / plan.data_name, plan.table.rows)
        else:
            shutil.copyfile(plan.table.path, draft / plan.data_name)
        (draft / "task.yaml").write_text(card_text(plan, proposed), encoding="utf-8")
        card, folder = load_card(str(draft / "task.yaml"))
        assert list(card.labels) == list(plan.labels), card.labels
        load_texts(card, folder)
    return plan.out / "task.yaml"


def write_lines(path: Path, rows: Iterable[Row]) -> None:
    """Plain lines as a CSV file with an empty label column, for a person to fill."""
    with path.open("w", newline="", encoding="utf-8") as file:
        file.writelines(map(delimited_line, [("label", "text"), *(("", read_cell(row, "text")) for row in rows)]))


def card_text(plan: Plan, proposed: FirstWords) -> str:
    """The card as YAML with comments."""
    return render(
        "task.yaml.jinja",
        plan=plan,
        proposed=proposed,
        lines=plan.table.kind == "lines",
        read=sorted(marks(proposed.read)),
        mapped={field: f"{{{column}}}" for field, column in plan.columns.fields.items() if field != column},
        longest_key=LONGEST_KEY,
        scalar=scalar,
        flow=flow,
    )
