"""`pet init`: any file of texts becomes a card that runs; what it guesses and proposes, and what it refuses."""

import csv
import gzip
import json
import re
import shlex
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import yaml
from support.rows import FILLERS, TOPICS, files_of, lively_model, pet
from support.tiny import TOKENIZERS, wordpiece_tokenizer

from pet.modeling.tokenization import PromptTokenizer
from pet.tasks.card import load_card
from pet.tasks.sources import load_texts
from pet.tasks.splits import draw_by_seed
from pet.tools.authoring.new_card import propose_sizes

LABELS = list(TOPICS)


@pytest.fixture
def model(tmp_path_factory):
    return lively_model(tmp_path_factory.getbasetemp())


def invent(size: int = 12, labelled: int = 6) -> list[dict[str, str | None]]:
    """Rows with a label in turn, the last ones without; each text once."""
    return [
        {
            "message": f"{FILLERS[number % 17]} {FILLERS[number // 17]} {TOPICS[LABELS[number % 3]][number % 4]}",
            "topic": LABELS[number % 3] if number < labelled else None,
        }
        for number in range(size)
    ]


def write(path: Path, rows) -> Path:
    """Rows as a file of the kind that its name says."""
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        content = path.read_bytes()
    elif kind == "jsonl":
        content = "".join(json.dumps({k: v for k, v in one.items() if v is not None}) + "\n" for one in rows).encode()
    else:
        sheet = path.with_name("sheet")
        with sheet.open("w", newline="", encoding="utf-8") as file:
            lines = csv.DictWriter(file, list(rows[0]), delimiter="\t" if kind == "tsv" else ",")
            lines.writeheader()
            lines.writerows(rows)
        content = sheet.read_bytes()
        sheet.unlink()
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return path


def init(model, source: Path, *more: object, **expected):
    """`pet init mails --input SOURCE` into the file's folder."""
    return pet(
        "init", "mails", "--input", source, "--model", model, "--out", source.parent / "mails", *more, **expected
    )


def read_card(source: Path):
    """The written card, and its texts."""
    card, folder = load_card(str(source.parent / "mails"))
    return card, load_texts(card, folder)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.parquet", "a.csv.gz", "a.jsonl.gz", "a.parquet.gz"])
def test_every_kind_of_file_becomes_a_card_with_the_same_texts(name, model, tmp_path):
    source = write(tmp_path / name, invent())
    result = init(model, source)
    card, texts = read_card(source)
    assert texts["train"].fields == {"message": [one["message"] for one in invent()]}
    assert texts["train"].labels == [one["topic"] for one in invent()]
    assert sorted(card.labels) == sorted(LABELS)
    assert len(card.pvps()) == 3
    assert files_of(source.parent) == {name, "mails/task.yaml", f"mails/{name}"}
    assert (source.parent / "mails" / name).read_bytes() == source.read_bytes()
    for said in (
        "'message' is taken for the text",
        "'topic' is taken for the label",
        "12 rows, 6 with a label, 6 with",
    ):
        assert said in result.output


def test_the_commands_it_prints_work_as_they_are_printed(model, tmp_path):
    source = write(tmp_path / "a.csv", invent(40, 8))
    commands = [shlex.split(line) for line in init(model, source).output.splitlines() if line.startswith("  pet ")]
    assert [one[1] for one in commands] == ["check", "run"]
    small = [f"{one}.frozen_layers=1" for one in ("finetune", "distill", "baseline")] + [f"distill.model={model}"]
    small = [word for one in small for word in ("--set", one)]
    pet(*commands[0][1:], *small)
    done = pet(*commands[1][1:], *small, "--stage", "prepare", "--store", tmp_path / "store")
    train, test = (int(re.search(rf"{name}[ =](\d+)", " ".join(commands[1]))[1]) for name in ("examples", "test"))
    assert train >= len(LABELS)
    assert f"{train} labelled, {40 - train - test} pool, {test} test texts" in done.output


@pytest.mark.parametrize("labelled", [0, 1, 2, 3, 4, 6, 9, 30])
def test_the_proposed_sizes_can_be_drawn_with_any_of_the_usual_seeds(labelled, model, tmp_path):
    init(model, write(tmp_path / "a.csv", invent(40, labelled)), "--labels", ",".join(LABELS))
    _, texts = read_card(tmp_path / "a.csv")
    sizes = propose_sizes(texts["train"], LABELS)
    assert (sizes is None) == (labelled < 2)
    for seed in (0, 1, 2) if sizes else ():
        drawn = draw_by_seed(texts["train"].labels, LABELS, sizes[0], 40, sizes[1], seed)
        assert (len(drawn.train), len(drawn.test)) == sizes
        assert min(sizes[1], len(drawn.pool)) >= 1


HOSTILE = [
    "yes",
    "1",
    "null",
    "a: b",
    "été 漢字",
    "two words",
    "<script>",
    "- #x",
    "'q\" {mask}",
    "0x1F",
    "~",
    "[a, b]",
    "a\nb",
]


def test_labels_that_yaml_would_read_as_something_else_survive(model, tmp_path):
    rows = [{"text": f"{FILLERS[number]} river", "label": label} for number, label in enumerate(HOSTILE)]
    source = write(tmp_path / "a.csv", rows)
    init(model, source)
    card, texts = read_card(source)
    assert sorted(card.labels) == sorted(HOSTILE)
    assert texts["train"].labels == HOSTILE
    assert set(card.verbalizers["default"]) == set(HOSTILE)


ENDS = ["a\x85b", "a\u2028b", "a\rb", "a\x1cb", "a: b\x0b#", "a\ufeffb", "\U0001f600 'x\"", "x" * 1100]
"""Labels with what ends a line for some readers, and one longer than a key of YAML."""


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_labels_columns_and_ids_come_back_whatever_is_in_them(kind, model, tmp_path):
    text, label = "text \x85\u2028", "label\r 'x\" #\x0b"
    rows = [
        {"id": f"{one}\r,", text: f"{FILLERS[number]} a\rb\x85c", label: one}
        for number, one in enumerate([*ENDS, *ENDS[:2]])
    ]
    rows = [row | {"id": f"{number}{row['id']}"} for number, row in enumerate(rows)]
    source = tmp_path / f"a \u2028.{kind}"
    if kind == "csv":
        with source.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, quoting=csv.QUOTE_ALL).writerows([list(rows[0]), *(row.values() for row in rows)])
    else:
        write(source, rows)
    init(model, source, "--text", text, "--label", label)
    card, texts = read_card(source)
    assert set(card.labels) == set(ENDS)
    assert texts["train"].labels == [row[label] for row in rows]
    assert texts["train"].ids == [row["id"] for row in rows]
    assert texts["train"].fields == {"text": [row[text] for row in rows]}


def test_words_are_single_tokens_of_the_model_and_no_two_labels_share_one(model, tmp_path):
    rows = [{"text": f"{FILLERS[number]} river", "label": label} for number, label in enumerate(HOSTILE)]
    init(model, write(tmp_path / "a.csv", rows))
    card, _ = read_card(tmp_path / "a.csv")
    prompt_tokenizer = PromptTokenizer(wordpiece_tokenizer(), "tiny")
    tokens = {
        label: {prompt_tokenizer.word_id(word, None) for word in words} for label, words in card.pvps()[0].words.items()
    }
    assert all(isinstance(one, int) for words in tokens.values() for one in words)
    assert sum(map(len, tokens.values())) == len(set.union(*tokens.values()))


def test_a_name_is_its_own_word_else_its_parts_else_the_models_words(model, tmp_path):
    rows = [
        {"text": f"{FILLERS[n]} river", "label": one} for n, one in enumerate(["SPORTS", "share/Price", "zzz", "3"])
    ]
    source = write(tmp_path / "a.csv", rows)
    init(model, source)
    words = read_card(source)[0].verbalizers["default"]
    assert words["SPORTS"] == ("SPORTS",), "its tokenizer knows no capitals"
    assert words["share/Price"] == ("share", "Price")
    for label in ("zzz", "3"):
        assert set(words[label]) <= set(TOKENIZERS["wordpiece"]().get_vocab())
    text = (tmp_path / "mails" / "task.yaml").read_text(encoding="utf-8")
    lines = dict(zip(text.splitlines()[1:], text.splitlines(), strict=False))  # line -> the one before it
    before = {label: next(lines[one] for one in lines if one.startswith(f"    {label}:")) for label in ("zzz", "'3'")}
    assert all("Proposed by the model" in one for one in before.values())


def test_the_models_words_come_from_the_labelled_texts_too(model, tmp_path):
    """Names that say nothing: what is proposed depends on which texts have them."""
    found = []
    for number, order in enumerate((("1", "2"), ("2", "1"))):
        folder = tmp_path / str(number)
        folder.mkdir()
        rows = [
            {"text": f"{one} {FILLERS[n]}", "label": order[n % 2]}
            for n in range(8)
            for one in [TOPICS[LABELS[n % 2]][0]]
        ]
        init(model, write(folder / "a.csv", rows))
        found.append(read_card(folder / "a.csv")[0].verbalizers["default"])
    assert set(found[0]["1"]) & set(found[1]["2"])
    assert found[0]["1"] != found[1]["1"]


def test_plain_lines_are_copied_to_a_file_that_can_be_labelled(model, tmp_path):
    source = tmp_path / "notes.txt"
    source.write_text('a river\n\nthe bank, "it"\n', encoding="utf-8")
    result = init(model, source, "--labels", 'sports, "business, etc"')
    card, texts = read_card(source)
    assert card.labels == ("sports", "business, etc")
    assert texts["train"].fields == {"text": ["a river", 'the bank, "it"']}
    assert texts["train"].labels == [None, None]
    assert "label some rows" in result.output
    assert (tmp_path / "mails" / "texts.csv").read_text().splitlines()[:2] == ["label,text", ",a river"]


def test_two_texts_a_row_and_columns_that_no_pattern_could_name(model, tmp_path):
    rows = [{"the claim": f"a {one}", "2nd": f"the {one}", "verdict": LABELS[n % 2]} for n, one in enumerate(FILLERS)]
    source = write(tmp_path / "a.csv", rows)
    init(model, source, "--text", "the claim", "--text-b", "2nd", "--label", "verdict")
    card, texts = read_card(source)
    assert card.fields == ("text", "text_b")
    assert texts["train"].fields["text_b"] == [f"the {one}" for one in FILLERS]
    assert all("{text}" in one and "{text_b}" in one for one in card.patterns)


def test_what_it_saw_is_counted(model, tmp_path):
    rows = [
        {"text": text, "label": label}
        for text, label in [
            ("a b", "sports"),
            ("a b", "business"),
            ("a b c", "sports"),
            ("a b c", "sports"),
            ("a", None),
        ]
    ]
    output = init(model, write(tmp_path / "a.csv", rows)).output
    for said in (
        "5 rows, 4 with a label, 1 without",
        "  sports: 3",
        "words of a text: 1 to 3, half of them up to 2",
        "characters of a text: 1 to 5",
        "texts that stood before, word for word: 2",
        "1 of those stood there with another label",
    ):
        assert said in output, output


BAD = {
    "no text column": ("a.csv", "x,y\n1,2\n", [], ["has the columns 'x', 'y'", "--text"]),
    "column not there": ("a.csv", "text,label\na,b\n", ["--text", "txt"], ["'text', 'label'", "--text 'txt' is none"]),
    "named twice": ("a.csv", "text,label\na,b\n", ["--text", "text", "--label", "text"], ["'text' is named twice"]),
    "unusable column": ("a.csv", "a.b,label\na,b\n", ["--text", "a.b"], ["cannot name the column 'a.b'"]),
    "no labels": ("a.txt", "a\nb\n", [], ["no column looks like a label", "--labels A,B"]),
    "one label": ("a.csv", "text,label\na,b\n", [], ["'label' has ['b']", "two labels at least"]),
    "unnamed label": ("a.csv", "text,label\na,b\na,c\n", ["--labels", "b,d"], ["label 'c' stands in 1 rows"]),
    "empty texts": ("a.csv", "text,label\n,b\na,c\n ,c\n", [], ["a.csv:2: the text is empty", "a.csv:4: the text"]),
    "ragged rows": ("a.csv", "text,label\na,b\na\na,b,c\n", [], ["line 3 has 1 columns", "line 4 has 3 columns"]),
    "bad json": ("a.jsonl", '{"text": "a"}\n{"tex\n', [], ["line 2 is not a JSON object"]),
    "no rows": ("a.csv", "text,label\n", [], ["has no texts"]),
    "nothing": ("a.csv", "", [], ["has no texts"]),
    "not UTF-8": ("a.csv", b"text,label\na,b\n\xe9,c\n", [], ["line 3: not UTF-8"]),
    "unknown kind": ("a.xlsx", "x", [], [".parquet"]),
    "not parquet": ("a.parquet", "x", [], ["is not a Parquet file"]),
    "not gzip": ("a.csv.gz", "text,label\na,b\n", [], ["cannot be read"]),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_used_is_one_sentence_and_nothing_is_written(case, tmp_path):
    name, content, more, words = BAD[case]
    source = tmp_path / name
    source.write_bytes(content if isinstance(content, bytes) else content.encode())
    result = init("mini", source, *more, code=2)
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert all(word in error for word in words), error
    assert files_of(tmp_path) == {name}


def test_it_overwrites_nothing_and_wants_a_name_a_card_can_have(tmp_path):
    source = write(tmp_path / "a.csv", invent())
    (tmp_path / "mails").mkdir()
    assert "exists already" in init("mini", source, code=2).stderr
    assert not any((tmp_path / "mails").iterdir())
    assert "'My Task' is not usable" in pet("init", "My Task", "--input", source, code=2).stderr
    assert "there is no file" in init("mini", tmp_path / "b.csv", "--out", tmp_path / "c", code=2).stderr


def test_a_card_and_its_texts_can_be_moved_together(model, tmp_path):
    source = write(tmp_path / "a.csv", invent())
    out = tmp_path / "deep" / "mails"
    pet("init", "mails", "--input", source, "--model", model, "--out", out)
    assert yaml.safe_load((out / "task.yaml").read_text())["files"]["train"] == "a.csv"
    source.unlink()
    assert len(load_texts(*load_card(str(out.rename(tmp_path / "elsewhere"))))["train"]) == 12


@pytest.mark.parametrize(("ids", "kept"), [(True, True), (False, False)], ids=["all different", "one twice"])
def test_a_column_of_ids_names_the_texts_if_it_tells_them_apart(ids, kept, model, tmp_path):
    rows = [{"ID": f"t{number if ids else min(number, 10)}", **row} for number, row in enumerate(invent())]
    source = write(tmp_path / "mails.csv", rows)
    init(model, source)
    card, folder = load_card(str(tmp_path / "mails"))
    found = load_texts(card, folder)["train"].ids
    assert (found == [row["ID"] for row in rows]) is kept
