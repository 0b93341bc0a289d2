"""What the pages say is what the program says."""

import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pet.config.messages import known_keys
from pet.config.resolve import resolve_settings
from pet.config.schema import Settings

DOCS = Path(__file__).parents[1] / "docs"
PAGE = runpy.run_path(str(DOCS / "commands.py"))
COMMANDS = dict(PAGE["commands"](PAGE["main"], "pet"))


def test_the_command_reference_is_what_help_says():
    assert (DOCS / "commands.md").read_text(encoding="utf-8") == PAGE["reference"](), "stale: make docs"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_of_itself_in_its_help(name):
    _, _, examples = (COMMANDS[name].help or "").partition("Example")
    assert f"    {name} " in f"{examples} " or f"    {name}\n" in f"{examples}\n", "no example"


# ---- recipe `paper` ------------------------------------------------------------------------------------------------

RECIPE_PAGE = (DOCS / "paper-recipe.md").read_text(encoding="utf-8")
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


def test_no_page_names_a_setting_that_does_not_exist_beside_recipe_paper():
    sections = {key.partition(".")[0] for key in LEAVES if "." in key}
    named = {key for key in SETTING.findall(RECIPE_PAGE) if key.partition(".")[0] in sections and "." in key}
    assert named <= set(known_keys(Settings))
    assert named >= CHANGED


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "pet/config/schema.py", "pipelines/table-1.yaml"])
def test_whoever_describes_recipe_paper_points_to_what_it_does_not_restore(page):
    text = (DOCS.parent / page).read_text(encoding="utf-8")
    assert "paper-recipe.md" in text
    assert "as its code ran" not in text


# ---- draws ---------------------------------------------------------------------------------------------------------

ROOT = DOCS.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.glob("*.md"), *(ROOT / "pipelines").glob("*.yaml")]
PAGES += [*(ROOT / "pet").glob("*/README.md"), *(ROOT / "results").glob("*/table.md")]


def test_no_page_calls_draws_untouched_or_tests_a_sample_that_grew():
    """The five draws of the table and the ten after them are not one sample (results/draws.md)."""
    for page in PAGES:
        text = " ".join(page.read_text(encoding="utf-8").split())
        for claim in ("no setting was chosen on", "table's own draws are others", "these and ten more", "p = 0.01;"):
            assert claim not in text, page


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", "pipelines/table-1-mini.yaml", "pet/modeling/weights/mini/README.md"]
)
def test_whoever_speaks_of_draws_points_to_what_was_looked_at(page):
    assert "results/draws.md" in (ROOT / page).read_text(encoding="utf-8")


def test_the_draws_of_tables_and_of_the_rule_are_listed():
    text = (ROOT / "results" / "draws.md").read_text(encoding="utf-8")
    for name in ("table-1-mini", "table-1-mini-adapt"):
        table = json.loads((ROOT / "results" / name / "table.json").read_text(encoding="utf-8"))
        seeds = {int(seed) for line in table["lines"] for seed in line["values"]}
        for task in table["tasks"]:
            title = {"agnews": "AG News", "yelp-full": "Yelp"}[task]
            section = next(part for part in text.split("\n## ") if part.startswith(title))
            (line,) = (one for one in section.splitlines() if f"`{name}`" in one or f"`{name}`," in one)
            assert line.startswith(f"| {min(seeds)} to {max(seeds)} |")
    assert "**40 to 49**" in text
