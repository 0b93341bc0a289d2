"""What the pages for readers say, taken apart: their commands, links and headings."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
READMES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")]
SITE = sorted(DOCS.rglob("*.md"))
PAGES = [*READMES, *SITE]

COMMAND = re.compile(r"^(?:    |\$ )(?:.* -m |[A-Z_]+=\S+ )?pet (?P<arguments>.*)$", re.MULTILINE)
LINK = re.compile(r"(?<!`)\[(?P<text>[^]\[]*(?:\[[^]]*\][^]\[]*)*)\]\((?P<target>[^)\s]+)\)")
INCLUDE = re.compile(r"^```\{include\} (\S+)$", re.MULTILINE)


def name_of(page: Path) -> str:
    """A page's path in the repository."""
    return str(page.relative_to(ROOT))


def commands_in(page: Path) -> Iterator[list[str]]:
    """The arguments of every `pet` command of a page's blocks, comments and invented names (`...`) left out."""
    for found in COMMAND.finditer(page.read_text(encoding="utf-8")):
        words = shlex.split(found["arguments"], comments=True)
        yield [word for word in words if word != "..."]


def links_in(page: Path) -> Iterator[tuple[str, str]]:
    """Text and target of every link that stays inside the repository; what stands in blocks of code is no link."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for found in LINK.finditer(text):
        if not re.match(r"[a-z]+:", found["target"]):
            yield found["text"], found["target"]


def anchors_of(page: Path) -> set[str]:
    """What a link may name after `#`: the headings, spelled as GitHub and MyST spell them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
