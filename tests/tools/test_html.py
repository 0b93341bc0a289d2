"""The page of a run: what stands in it is right, nothing in it runs or is fetched, and it can be read everywhere."""

import html
import random
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import yaml
from support.rows import (
    LABELS,
    TOPICS,
    find_one,
    garble,
    invent_rows,
    lay_ground,
    lively_model,
    pet,
    pet_run,
    read_json,
    write_csv,
)

from pet.pipeline import score_files
from pet.pipeline.runs import open_run
from pet.pipeline.score_files import read_scores
from pet.store.store import Store
from pet.tasks.texts import read_texts
from pet.tools.export.model_card import model_card
from pet.tools.reports import html as html_module

pytestmark = pytest.mark.slow

ODD = ["</table><script>alert(1)</script>", "sch\u00f6n & \"gut\" 'so'", "a_word_" * 12]
"""Labels of the task; the same stand in its texts."""

MODEL, PATTERN = "m<script>alert(3)&$_{$", "{mask} <b> news & : {headline} {body}"
"""Name of the model and first pattern; the same."""

VOID = {"meta", "br", "hr", "img", "input", "link"}

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with a run of PET and one of iPET over a task whose labels and texts are no friend of HTML."""
    folder = tmp_path_factory.mktemp("odd")
    model = folder / MODEL
    model.symlink_to(lively_model(tmp_path_factory.getbasetemp()))
    ground = lay_ground(folder, model, ipet={"growth": 2.0, "steps": 2})
    named = dict(zip(LABELS, ODD, strict=True))
    ground.change_card(title="<script>alert(4)</script>", patterns=[PATTERN, "{headline} || {body} ( {mask} )"])
    ground.change_card(labels=ODD, verbalizers={"default": {named[one]: TOPICS[one][:2] for one in LABELS}})
    rng = random.Random(0)
    for name, size in (("train.csv", 60), ("test.csv", 20)):
        rows = invent_rows(size, rng)
        write_csv(
            folder / name, [(named[label], f"{head} <script>alert(2)</script>", body) for label, head, body in rows]
        )
    pet_run(ground, folder / "store")
    pet("ipet", ground.pipeline, "--store", folder / "store", "--generations", 1)
    return folder / "store"


@pytest.fixture(scope="module")
def pages(store, tmp_path_factory):
    """The page of each of the two runs."""
    folder = tmp_path_factory.mktemp("pages")
    found = {}
    for kind, run in (("pet", plain(store)), ("ipet", find_one(store, "run", "ipet"))):
        pet("report", run, "--output", folder / f"{kind}.html")
        found[kind] = (folder / f"{kind}.html").read_text(encoding="utf-8")
    return found


def plain(store) -> Path:
    return next(path for path in (store / "run").iterdir() if "ipet" not in path.name)


class Reader(HTMLParser):
    """Elements with their attributes, the text of each, and that every one is closed where it was opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[int] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.texts.append("")
        if tag not in VOID:
            self.open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag, attrs):
        assert "svg" in [self.elements[one][0] for one in self.open], f"<{tag}/> outside of svg"
        self.elements.append((tag, dict(attrs)))
        self.texts.append("")

    def handle_endtag(self, tag):
        assert self.elements[self.open.pop()][0] == tag, f"</{tag}> closes another"

    def handle_data(self, data):
        for one in self.open:
            self.texts[one] += data

    def all(self, tag: str) -> list[str]:
        return [text.strip() for (name, _), text in zip(self.elements, self.texts, strict=True) if name == tag]


@pytest.mark.parametrize("kind", ["pet", "ipet"])
def test_a_page_is_well_formed_runs_nothing_and_fetches_nothing(pages, kind):
    read = Reader(pages[kind])
    names = {name for name, _ in read.elements}
    assert not names & {"script", "link", "img", "iframe", "object", "base"}
    for _, attributes in read.elements:
        assert not set(attributes) & {"src", "href", "srcset", "data"}
        assert not [name for name in attributes if name.startswith("on")]
        assert not [value for value in attributes.values() if value and "http" in value and "default-src" not in value]
    style = read.all("style")[0]
    assert "url(" not in style and "@import" not in style
    policy = [attributes["content"] for name, attributes in read.elements if "http-equiv" in attributes]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]


@pytest.mark.parametrize("kind", ["pet", "ipet"])
def test_labels_and_texts_stand_as_they_are(pages, kind):
    read = Reader(pages[kind])
    for label in ODD:
        assert read.all("th").count(label) >= 3  # soft labels, row and column of the confusion matrix
    assert any("<script>alert(2)</script>" in text for text in read.all("td"))


@pytest.mark.parametrize("kind", ["pet", "ipet"])
def test_pattern_and_model_stand_as_they_are(pages, kind):
    shown = " ".join(Reader(pages[kind]).texts)
    assert PATTERN in shown
    assert MODEL in shown


def test_nothing_in_a_model_card_is_read_as_html_or_as_more_yaml(store):
    run = open_run(str(plain(store)), Store(store))
    text = model_card(run, "hf", ["headline", "body"], ["input_ids"], "")
    _, front, body = text.split("---\n", 2)
    assert set(yaml.safe_load(front)) == {"library_name", "pipeline_tag", "tags"}
    assert "<script>" in body
    assert "<" not in re.sub(r"(`+).+?\1", "", body, flags=re.DOTALL), "but in code spans"


@pytest.mark.parametrize("kind", ["pet", "ipet"])
def test_every_figure_has_a_size_and_says_what_it_shows(pages, kind):
    figures = [attributes for name, attributes in Reader(pages[kind]).elements if name == "svg"]
    assert len(figures) > 8
    for one in figures:
        assert one["role"] == "img" and len(one["aria-label"]) > 10
        assert one["viewbox"] == f"0 0 {one['width']} {one['height']}"


def test_the_scores_are_those_of_the_summary(pages, store):
    cells = Reader(pages["pet"]).all("td")
    scores = read_json(plain(store) / "summary.json")["scores"]
    for one in (scores["student"], scores["ensemble"], *scores["members"]):
        assert f"{one['low']:.1f} to {one['high']:.1f}" in cells
    assert "Generations" in Reader(pages["ipet"]).all("h2")
    assert "Generations" not in Reader(pages["pet"]).all("h2")


def test_patterns_score_as_evaluate_says_untuned_and_tuned(store):
    for kind in (plain(store), find_one(store, "run", "ipet")):
        run = open_run(str(kind), Store(store))
        found = html_module.collect(run)
        given = sorted((one["number"], round(m["score"], 2)) for one in found["patterns"] for m in one["members"])
        scored = run.scored.read_json("scores.json")
        assert given == sorted((one["pattern"], one["value"]) for one in scored["members"])
        assert sum(member["weight"] for one in found["patterns"] for member in one["members"]) == pytest.approx(
            1, abs=1e-5
        )
        assert {one["pattern"] for one in found["patterns"]} == set(read_card(store)["patterns"])
        reliability = {one["name"]: one["accuracy"] for one in found["reliability"]}
        assert [100 * one for one in reliability.values()] == pytest.approx(
            [scored["student"]["value"], scored["ensemble"]["value"]], abs=0.01
        )


def read_card(store):
    return yaml.safe_load((store.parent / "task.yaml").read_text())


def test_confusions_are_counted_by_true_label(store):
    run = open_run(str(plain(store)), Store(store))
    gold = run.space.encode(read_texts(run.prepared.path / "test.parquet").labels)
    predicted = read_scores(run.student)["test"].argmax(-1)
    rows = html_module.collect(run)["confusion"]
    for i, row in enumerate(rows):
        for j, count in enumerate(row["counts"]):
            assert count == sum(one == i and other == j for one, other in zip(gold, predicted, strict=True))
    assert sum(row["texts"] for row in rows) == len(gold)


def test_calibration_is_that_of_guo_et_al():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet([0.4, 0.4, 0.4], 300)
    probabilities[:3] = [1, 0, 0], [0.4, 0.3, 0.3], [0.2, 0.6, 0.2]  # the ends of bins
    gold = rng.integers(0, 3, 300)
    error, held = 0.0, []
    for number in range(15):
        inside = [row for row, one in enumerate(probabilities) if number / 15 < max(one) <= (number + 1) / 15]
        if inside:
            right = np.mean([gold[row] == probabilities[row].argmax() for row in inside])
            error += len(inside) / 300 * abs(right - np.mean([max(probabilities[row]) for row in inside]))
            held.append(len(inside))
    found = html_module.reliability(gold, probabilities)
    assert found["error"] == pytest.approx(100 * error)
    assert [one["count"] for one in found["bins"]] == held


def test_the_texts_that_members_disagree_on_come_first(store, monkeypatch):
    monkeypatch.setattr(score_files, "CHUNK", 7)  # the pool has 30
    monkeypatch.setattr(html_module, "DISPUTED", 6)
    run = open_run(str(plain(store)), Store(store))
    predicted = np.stack([read_scores(one)["pool"].argmax(-1) for one in run.members])
    share = [np.mean([a != b for a, b in combinations(column, 2)]) for column in predicted.T]
    rows, given, found = html_module.most_disputed(run.members)
    assert found == pytest.approx([share[row] for row in rows])
    assert sorted(found, reverse=True) == pytest.approx(sorted(share, reverse=True)[: len(rows)])
    assert len(rows) == min(6, np.count_nonzero(share)) and len(set(rows)) == len(rows)
    assert (given == predicted[:, rows]).all()
    ids = read_texts(run.prepared.path / "pool.parquet").ids
    assert [one["id"] for one in html_module.find_disputed(run)] == [ids[row] for row in rows]


def test_the_hidden_labels_of_the_pool_are_not_opened(store, pages, tmp_path):
    shutil.copytree(store, tmp_path / "store")
    for path in (tmp_path / "store").rglob("pool_gold.parquet"):
        garble(path)
    pet("report", plain(tmp_path / "store"), "--output", tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == pages["pet"]


def test_a_pool_without_any_hidden_label_has_a_page_too(store):
    content = html_module.collect(open_run(str(plain(store)), Store(store)))
    scores = {name: one for name, one in content["summary"]["scores"].items() if name != "soft_labels"}
    text = html_module.render(html_module.TEMPLATE, **{**content, "summary": {**content["summary"], "scores": scores}})
    Reader(text)
    assert "The soft labels that the student learned from" not in text


def test_one_untuned_member_has_nobody_to_disagree_with(store, tmp_path):
    ground = lay_ground(tmp_path, yaml.safe_load((store.parent / "pipeline.yaml").read_text())["model"]["name"])
    pet_run(ground, tmp_path / "s", "--train-examples", 0, "--set", "finetune.patterns=[1]")
    pet("report", "last", "--store", tmp_path / "s", "--output", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "nobody to disagree with" in text and "not tuned" in text
    Reader(text)


def test_a_page_lies_where_it_was_asked_for_and_nothing_beside_it(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = pet("report", plain(store).name, "--store", store)
    name = f"{plain(store).name}.html"
    assert done.stdout == f"report: {name}\n"
    Path(name).write_text("an older page")
    pet("report", plain(store), "--store", store)
    assert Path(name).read_text(encoding="utf-8").startswith("<!doctype html>")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_what_cannot_be_written_or_read_is_told(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.html").mkdir()
    for arguments, told in (
        (("--output", "notes.txt"), "expected the name of a page"),
        (("--output", "no/such/a.html"), "cannot be written"),
        (("--output", "folder.html"), "cannot be written"),
    ):
        assert told in pet("report", plain(store), *arguments, code=2).output
    assert "is no run of" in pet("report", "nonsense", "--store", store, code=2).output
    assert [path.name for path in tmp_path.iterdir()] == ["folder.html"]


@pytest.mark.skipif(BROWSER is None, reason="there is no chromium to open the page in")
def test_a_browser_shows_the_page_without_overflow_on_desk_and_phone(pages, tmp_path):
    frames = "".join(
        f'<iframe style="width:{width}px;height:900px" srcdoc="{html.escape(pages[kind])}"></iframe>'
        for kind in ("pet", "ipet")
        for width in (1200, 390)
    )
    measure = (
        "document.title = Array.from(frames).map(f => f.document.documentElement.scrollWidth + '/' + f.innerWidth"
        " + '/' + f.document.querySelectorAll('svg').length).join(' ')"
    )
    harness = tmp_path / "harness.html"
    harness.write_text(f"<meta charset=utf-8>{frames}<script>onload = () => {{ {measure} }}</script>", encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'browser'}"]
    done = subprocess.run(
        [str(BROWSER), *options, "--enable-logging=stderr", "--dump-dom", harness.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found = re.search("<title>(.*)</title>", done.stdout)
    assert found, done.stderr
    sizes = [tuple(map(int, one.split("/"))) for one in found[1].split()]
    assert [inner for _, inner, _ in sizes] == [1200, 390] * 2
    assert all(wide <= inner and figures > 8 for wide, inner, figures in sizes), sizes
    assert "CONSOLE" not in done.stderr, done.stderr
