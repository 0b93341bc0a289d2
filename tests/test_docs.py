"""What the pages say is what the program says."""

import json
import pkgutil
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.core import UNSET
from support.pages import DOCS, INCLUDE, PAGES, READMES, ROOT, SITE, anchors_of, commands_in, links_in, name_of

from pet import errors
from pet.cli import main
from pet.config.messages import known_keys
from pet.config.resolve import resolve_settings
from pet.config.schema import Pretraining, Settings
from pet.config.shipped import shipped_names
from pet.tasks.card import FilesSource, FolderSource, HubSource, Source, TaskCard

GENERATED = runpy.run_path(str(DOCS / "generate.py"))
COMMANDS = dict(GENERATED["commands"](main, "pet"))
README = ROOT / "README.md"
ENDINGS = {"csv", "json", "jsonl", "md", "parquet", "py", "safetensors", "tokens", "txt", "xz", "yaml"}
ALL_KEYS = {*known_keys(Settings), *known_keys(Pretraining)}


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", GENERATED["PAGES"])
def test_generated_pages_are_what_the_program_says(name):
    assert read(DOCS / "reference" / name) == GENERATED["PAGES"][name](), "stale: make docs"


def test_the_page_of_settings_has_every_setting():
    rows = {row[0].strip("`") for row in cells(read(DOCS / "reference" / "settings.md"))}
    sections = {key.rpartition(".")[0] for key in ALL_KEYS}
    assert rows == ALL_KEYS - sections


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_of_itself_in_its_help(name):
    _, _, examples = (COMMANDS[name].help or "").partition("Example")
    assert f"    {name} " in f"{examples} " or f"    {name}\n" in f"{examples}\n", "no example"


# ---- commands, links, lengths --------------------------------------------------------------------------------------


def parse(arguments: list[str]) -> dict[str, Any]:
    """The values of a command's parameters; an unknown one, or one too many or too few, is an error."""
    name, command = "pet", COMMANDS["pet"]
    while isinstance(command, click.Group) and arguments and f"{name} {arguments[0]}" in COMMANDS:
        name = f"{name} {arguments[0]}"
        command, arguments = COMMANDS[name], arguments[1:]
    if isinstance(command, click.Group):
        assert command.invoke_without_command and not arguments, f"{name} has no command {arguments}"
        return {}
    values, more, _ = command.make_parser(click.Context(command, info_name=name)).parse_args(list(arguments))
    assert not more, f"{name} takes no {more}"
    for one in command.params:
        given = values.get(one.name) not in (None, UNSET, ())
        assert given or not one.required, f"{name} needs {one.name}"
        if given and isinstance(one.type, click.Choice):
            assert values[one.name] in one.type.choices, f"{name} has no {one.name} {values[one.name]}"
    return {key: value for key, value in values.items() if value is not UNSET}


WITH_COMMANDS = [page for page in PAGES if name_of(page) != "docs/reference/commands.md" and any(commands_in(page))]


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=name_of)
def test_every_command_of_a_page_parses_and_names_what_there_is(page):
    for arguments in commands_in(page):
        values = parse(arguments)
        for setting in values.get("assignments") or ():
            assert setting.partition("=")[0] in ALL_KEYS, (arguments, setting)
        pipeline = values.get("pipeline") or "demo"
        assert pipeline in shipped_names("pipelines") or pipeline.endswith(".yaml"), arguments
        task = values.get("task") or "bbc"
        assert task in shipped_names("data") or task.endswith(".yaml"), arguments


def test_readme_and_tutorial_show_commands():
    assert len(list(commands_in(README))) >= 7
    assert len(list(commands_in(DOCS / "tutorial.md"))) >= 8


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_has_a_text_and_leads_to_a_file_and_heading_of_the_repository(page):
    for text, link in links_in(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert text, f"{link} has no text"
        assert target.exists() and target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors_of(target), link
    for included in INCLUDE.findall(read(page)):
        assert (page.parent / included).is_file(), included


def test_every_page_of_the_site_is_in_a_table_of_contents():
    listed = set()
    for page in SITE:
        for block in re.findall(r"^```\{toctree\}\n(.*?)^```$", read(page), re.MULTILINE | re.DOTALL):
            names = [line for line in block.splitlines() if line and not line.startswith(":")]
            names = [re.sub(r".* <(.*)>", r"\1", name) for name in names]
            found = [one for name in names for one in page.parent.glob(f"{name}.md")]
            assert len(found) >= len(names), block
            listed |= set(found)
    assert set(SITE) - listed == {DOCS / "index.md"}
    decisions = DOCS / "decisions"
    assert {link for _, link in links_in(decisions / "index.md")} == {
        page.name for page in decisions.glob("*.md") if page.name != "index.md"
    }


MODULES = [path for path in (ROOT / "pet").rglob("*.py") if path.stem != "__init__"]


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=name_of)
def test_every_file_and_name_of_the_code_that_a_page_mentions_is_there(page):
    text = read(page)
    for path in re.findall(r"`((?:[a-z_]+/)+\w+\.(?:py|md))`", text):
        assert (ROOT / path).is_file() or (ROOT / "pet" / path).is_file(), path
    for module, name in re.findall(r"`(\w+)\.([A-Za-z_]+)(?:\(.*?\))?`", text):
        sources = [read(path) for path in MODULES if path.stem == module]
        if sources and f"{module}.{name}" not in ALL_KEYS and name not in ENDINGS:
            assert any(re.search(rf"\b{name}\b", source) for source in sources), f"{module}.{name}"


def test_the_readme_is_short():
    assert len(read(README).splitlines()) <= 150
    assert len(read(README).split()) <= 1200


def test_the_results_of_the_readme_are_those_of_the_table():
    table = {(row[0], row[1]): row[2] for row in cells(read(ROOT / "results" / "table-1-mini" / "table.md"))}
    methods = ("supervised: fine-tuned", "supervised: fine-tuned, shares even", "PET", "iPET")
    rows = [row for row in cells(read(README)) if (row[0], "PET") in table]
    assert len(rows) == 3
    for labels, *values in rows:
        assert values == [table.get((labels, method), "").partition(" (")[0] for method in methods]


def test_no_page_and_no_message_installs_another_project():
    """The `pet` of the package index is not this one."""
    wrong = re.compile(r"""pip install (?:-\S+ \S+ )*['"]?pet(?![\w/-])""")
    sources = [*(ROOT / "pet").rglob("*.py"), *(ROOT / "data").glob("*/README.md"), ROOT / "Makefile", *PAGES]
    assert [name_of(one) for one in sources if wrong.search(read(one))] == []
    assert wrong.search("pip install 'pet[ray]'") and wrong.search("pip install -c constraints.txt pet")


# ---- the task card -------------------------------------------------------------------------------------------------


def test_the_page_of_the_task_card_has_every_key_and_no_other():
    text = read(DOCS / "reference" / "task-card.md")
    own = [set(model.model_fields) - set(Source.model_fields) for model in (FilesSource, FolderSource, HubSource)]
    expected = {"Keys": {*TaskCard.model_fields, "extends"}, "Sources": set(Source.model_fields)}
    expected |= dict(zip(("`files`", "`folder`", "`hub`"), own, strict=True))
    for head, keys in expected.items():
        part = re.split(r"^##+ ", text.partition(f"# {head}\n")[2], flags=re.MULTILINE)[0]
        assert {key for row in cells(part) for key in re.findall(r"`([a-z_]+)`", row[0])} == keys, head


# ---- Python --------------------------------------------------------------------------------------------------------


def test_the_page_of_python_has_what_there_is_and_every_error():
    names = re.findall(r"^\.\. auto\w+:: ([\w.]+)", read(DOCS / "reference" / "python.md"), re.MULTILINE)
    assert all(pkgutil.resolve_name(name) for name in names)
    own = [name for name, one in vars(errors).items() if isinstance(one, type) and issubclass(one, errors.PetError)]
    assert {f"pet.errors.{name}" for name in own} <= set(names)


# ---- artifacts -----------------------------------------------------------------------------------------------------


def test_the_page_of_files_has_every_file_of_a_run_and_every_key_of_a_manifest(done):
    text = read(DOCS / "reference" / "artifacts.md")
    files: dict[str, set[str]] = {}
    stages: tuple[str, ...] = ()
    for row in cells(text.partition("## By stage")[2].partition("## Beside")[0]):
        stages = tuple(re.findall(r"`(\w+)`", row[0])) or stages
        for stage in stages:
            files.setdefault(stage, set()).update(re.findall(r"`([\w.]+)/?`", row[1]))
    manifests = list(done.store.glob("[a-z]*/*/manifest.json"))
    assert {one.parts[-3] for one in manifests} == files.keys() - {"adapt", "pretrain", "corpus", "draw"}
    for one in manifests:
        manifest = json.loads(read(one))
        assert {file["path"].partition("/")[0] for file in manifest["files"]} <= files[manifest["stage"]]
        assert all(f"`{key}`" in text for key in manifest), manifest.keys()


# ---- recipe `paper` ------------------------------------------------------------------------------------------------

RECIPE_PAGE = read(DOCS / "explanation" / "paper-recipe.md")
RESTORED, NOT_RESTORED = RECIPE_PAGE.split("## Not restored")
SETTING = re.compile(r"`([a-z]+(?:\.[a-z_]+)?)`")


def cells(part: str) -> Iterator[list[str]]:
    """The rows of all tables, without heads and lines."""
    rows = [[one.strip() for one in line[1:-1].split("|")] for line in part.splitlines() if line.startswith("|")]
    heads = [number - 1 for number, row in enumerate(rows) if set("".join(row)) <= set("-|")]
    yield from (row for number, row in enumerate(rows) if number not in heads and number - 1 not in heads)


def value(recipe: str, key: str) -> Any:
    found: Any = resolve_settings(None, {"recipe": recipe})
    for part in key.split("."):
        found = getattr(found, part)
    return found


LEAVES = [key for key in known_keys(Settings) if not any(one.startswith(f"{key}.") for one in known_keys(Settings))]
CHANGED = {key for key in LEAVES if key != "recipe" and value("fixed", key) != value("paper", key)}


def test_the_page_on_recipe_paper_has_a_row_for_each_setting_that_the_recipe_changes_and_for_no_other():
    rows = {SETTING.findall(row[0])[0]: row for row in cells(RESTORED)}
    assert set(rows) == CHANGED
    for key, (_, fixed, paper, source) in rows.items():
        for recipe, cell in (("fixed", fixed), ("paper", paper)):
            shown = value(recipe, key)
            assert f"`{shown}`" in cell if isinstance(shown, str) else cell.startswith(str(shown)), (key, recipe)
        assert source


def test_what_the_page_calls_not_restored_is_the_same_in_both_recipes_and_every_row_says_why():
    rows = list(cells(NOT_RESTORED))
    assert len(rows) > 30
    for what, published, ours, setting, why in rows:
        assert what and published and ours, what
        assert why or published == "none", what
        for key in SETTING.findall(setting):
            assert key in LEAVES, f"{what}: there is no setting {key}"
            assert key not in CHANGED, f"{what}: recipe paper restores {key}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_page_names_a_setting_that_does_not_exist(page):
    sections = {key.partition(".")[0] for key in ALL_KEYS if "." in key}
    named = {key for key in SETTING.findall(read(page)) if key.partition(".")[0] in sections and "." in key}
    assert {key for key in named if key.rpartition(".")[2] not in ENDINGS} <= ALL_KEYS


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "pet/config/schema.py", "pipelines/table-1.yaml"])
def test_whoever_describes_recipe_paper_points_to_what_it_does_not_restore(page):
    text = read(ROOT / page)
    assert "paper-recipe.md" in text
    assert "as its code ran" not in text


# ---- draws ---------------------------------------------------------------------------------------------------------

SPEAKING = [*READMES, *SITE, *(ROOT / "pipelines").glob("*.yaml")]
SPEAKING += [*(ROOT / "pet").glob("*/README.md"), *(ROOT / "results").glob("*/table.md")]


def test_no_page_calls_draws_untouched_or_tests_a_sample_that_grew():
    """The five draws of the table and the ten after them are not one sample (results/draws.md)."""
    for page in SPEAKING:
        text = " ".join(read(page).split())
        for claim in ("no setting was chosen on", "table's own draws are others", "these and ten more", "p = 0.01;"):
            assert claim not in text, page


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", "pipelines/table-1-mini.yaml", "pet/modeling/weights/mini/README.md"]
)
def test_whoever_speaks_of_draws_points_to_what_was_looked_at(page):
    assert "results/draws.md" in read(ROOT / page)


def test_the_draws_of_tables_and_of_the_rule_are_listed():
    text = read(ROOT / "results" / "draws.md")
    for name in ("table-1-mini", "table-1-mini-adapt"):
        table = json.loads(read(ROOT / "results" / name / "table.json"))
        seeds = {int(seed) for line in table["lines"] for seed in line["values"]}
        for task in table["tasks"]:
            title = {"agnews": "AG News", "yelp-full": "Yelp"}[task]
            section = next(part for part in text.split("\n## ") if part.startswith(title))
            (line,) = (one for one in section.splitlines() if f"`{name}`" in one or f"`{name}`," in one)
            assert line.startswith(f"| {min(seeds)} to {max(seeds)} |")
    assert "**40 to 49**" in text
