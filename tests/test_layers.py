"""Who may import whom: the layers of pet/, stated once. Imports inside functions and for types only count too."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

import pet

ROOT = Path(pet.__file__).parent

LAYERS = {
    "errors": 0,
    "signals": 0,
    "outside": 1,
    "settings": 1,
    "files": 1,
    "finite": 1,
    "examples": 1,
    "patterns": 2,
    "sampling": 2,
    "ensemble": 2,
    "generations": 2,
    "metrics": 2,
    "calibration": 2,
    "petal": 2,
    "identity": 2,
    "drafts": 2,
    "artifacts": 2,
    "tasks": 3,
    "givenlabels": 3,
    "rowfiles": 3,
    "corpus": 4,
    "delta": 4,
    "encoding": 4,
    "packing": 4,
    "attention": 4,
    "cloze": 4,
    "classification": 4,
    "lora": 4,
    "losses": 4,
    "models": 4,
    "ranks": 4,
    "runtime": 4,
    "optimizer": 5,
    "training": 5,
    "checkpoint": 5,
    "inference": 5,
    "stages.*": 6,
    "pipeline": 7,
    "export": 7,
    "ipet": 7,
    "modelcard": 7,
    "plot": 7,
    "published": 7,
    "table": 7,
    "tabulate": 7,
    "cleaning": 7,
    "page": 7,
    "report": 7,
    "runs": 7,
    "events": 7,
    "labelwords": 7,
    "newcard": 7,
    "check": 7,
    "cluster": 7,
    "telling": 7,
    "members": 7,
    "predict": 7,
    "suggest": 7,
    "tracking": 7,
    "verbalize": 7,
    "cli": 8,
    "cli.*": 8,
    "__main__": 8,
}
"""Module of pet/ -> layer. An import may go down or stay in its layer, and never comes back to where it started."""

NAMESPACES = ("", "stages")
"""Packages that only hold modules: their `__init__` imports nothing of pet, but for DOORS."""

DOORS = {("", "predict")}
"""(namespace, module) that may be imported all the same: `pet.load` is what a program calls, so it stands in `pet`
itself, its import in the function; nothing of pet imports `pet` for a name in it, which would be a cycle."""

HOMES = {
    "torch": ("layer", 4),
    "transformers": ("layer", 4),
    "accelerate": ("layer", 4),
    "peft": ("layer", 4),
    "safetensors": ("layer", 4),
    "wandb": ("layer", 7),
    "pandas": ("layer", 7),
    "matplotlib": ("layer", 7),
    "jinja2": ("layer", 7),
    "datasets": ("modules", "tasks"),
    "ray": ("modules", "cluster"),
    "click": ("modules", "cli*"),
    "rich": ("modules", "cli*"),
}
"""Library -> the lowest layer, or the only modules, that may import it."""

Graph = Mapping[str, frozenset[str]]


# ---- the checker ---------------------------------------------------------------------------------------------------


def read_modules(root: Path) -> dict[str, Path]:
    """Name below `pet` -> file; a package goes by its own name, `pet` itself by the empty one."""
    files = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def imported_names(module: str, path: Path) -> Iterator[tuple[str, str | None]]:
    """(absolute name of a module, name taken from it) of every import statement, wherever it stands."""
    package = ["pet", *filter(None, module.split("."))]
    if path.name != "__init__.py":
        package.pop()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *filter(None, [node.module])])
            yield from ((source, alias.name) for alias in node.names)


def read_imports(root: Path) -> tuple[Graph, Graph]:
    """Per module: the modules of pet it imports, and the libraries."""
    files = read_modules(root)
    inside: dict[str, frozenset[str]] = {}
    outside: dict[str, frozenset[str]] = {}
    for module, path in files.items():
        own, libraries = set(), set()
        for source, name in imported_names(module, path):
            top, _, rest = source.partition(".")
            if top != "pet":
                libraries.add(top)
                continue
            inner = f"{rest}.{name}".strip(".")  # `from pet import report` and `from pet.stages import label`
            own.add(inner if name and inner in files else rest)
        inside[module], outside[module] = frozenset(own), frozenset(libraries)
    return inside, outside


def layer_of(module: str) -> int | None:
    """Its layer; `None` for a module that the table does not know. Namespaces are below everything."""
    if module in NAMESPACES:
        return -1
    return next((layer for pattern, layer in LAYERS.items() if fnmatchcase(module, pattern)), None)


def find_violations(imports: Graph) -> list[str]:
    """One sentence for each unknown module, upward arrow and namespace that imports, and for one cycle."""
    unknown = sorted(module for module in {*imports}.union(*imports.values()) if layer_of(module) is None)
    found = [f"pet.{module} is in no layer; add it to the table" for module in unknown]
    for module, targets in sorted(imports.items()):
        for target in sorted(targets - set(unknown)):
            source, goal = layer_of(module), layer_of(target)
            if (module, target) in DOORS:
                continue
            if source is not None and goal is not None and goal > source:
                found.append(f"pet.{module} ({source}) imports pet.{target} ({goal}), which is above it")
    cycle = find_cycle(imports)
    return found + ([f"import cycle: {' -> '.join(f'pet.{module}' for module in cycle)}"] if cycle else [])


def find_cycle(imports: Graph) -> list[str]:
    """The modules of one import cycle, the first repeated at the end; empty when there is none."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for target in sorted(imports.get(module, ())):
            cycle = visit(target, [*path, module])
            if cycle:
                return cycle
        done.add(module)
        return []

    return next((cycle for module in sorted(imports) if (cycle := visit(module, []))), [])


def find_strays(libraries: Graph) -> list[str]:
    """One sentence for each library that is imported where it does not belong."""
    strays = []
    for module, names in sorted(libraries.items()):
        for name in sorted(names & HOMES.keys()):
            kind, home = HOMES[name]
            layer = layer_of(module)
            belongs = layer is not None and layer >= home if kind == "layer" else fnmatchcase(module, home)
            if not belongs:
                strays.append(f"pet.{module} imports {name}, which belongs to {kind} {home}")
    return strays


# ---- pet itself ----------------------------------------------------------------------------------------------------


def test_imports_go_down_only_and_never_in_a_circle():
    imports, _ = read_imports(ROOT)
    assert len(imports) > 20, "the package was found"
    assert find_violations(imports) == []


def test_heavy_libraries_stay_where_they_belong():
    _, libraries = read_imports(ROOT)
    assert "torch" in libraries["cloze"], "libraries were found"
    assert find_strays(libraries) == []


HEAVY = {"torch", "transformers", "datasets", "pydantic", "numpy", "rich", "accelerate", "wandb"}


@pytest.mark.parametrize(
    "words",
    [["--help"], ["run", "--help"], ["pretrain", "--help"], ["check", "--help"], ["init", "--help"]],
    ids=" ".join,
)
def test_help_imports_nothing_heavy(words):
    script = (
        "import json, sys\n"
        "from pet.cli import main\n"
        f"main({words!r}, prog_name='pet', standalone_mode=False)\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("Usage: pet")
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert "click" in loaded
    assert loaded & HEAVY == set()


def test_importing_pet_imports_nothing_else():
    script = "import sys, pet; print([one for one in sys.modules if one.startswith(('pet.', 'torch', 'numpy'))])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


# ---- the checker catches what it is for ----------------------------------------------------------------------------


def plant(root: Path, files: Mapping[str, str]) -> Path:
    """A package of the given sources."""
    for name, source in {"__init__.py": "", "stages/__init__.py": "", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    return root


FOR_TYPES = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pet.modeling.loading import Model\n"


@pytest.mark.parametrize(
    ("name", "source", "target"),
    [
        ("sampling.py", "import pet.modeling.loading\n", "models"),
        ("sampling.py", "from pet import models\n", "models"),
        ("sampling.py", "from pet.modeling.loading import Model\n", "models"),
        ("sampling.py", "from .models import Model\n", "models"),
        ("sampling.py", "from . import models\n", "models"),
        ("sampling.py", "def late():\n    from pet.modeling.loading import Model\n", "models"),
        ("sampling.py", "class A:\n    async def late(self):\n        import pet.modeling.loading as m\n", "models"),
        ("sampling.py", "try:\n    import pet.modeling.loading\nexcept ImportError:\n    pass\n", "models"),
        ("sampling.py", FOR_TYPES, "models"),
        ("models.py", "from pet.stages import label\n", "stages.label"),
        ("models.py", "from pet.pipeline.stages.label import run\n", "stages.label"),
        ("stages/label.py", "from ..cli import main\n", "cli"),
        ("stages/label.py", "from ..cli.run import run\n", "cli.run"),
        ("stages/__init__.py", "from pet.pipeline.stages.label import run\n", "stages.label"),
        ("stages/__init__.py", "from . import label\n", "stages.label"),
        ("__init__.py", "from .errors import PetError\n", "errors"),
    ],
)
def test_an_upward_arrow_is_caught_however_it_is_written(name, source, target, tmp_path):
    files = {"errors.py": "", "models.py": "", "stages/label.py": "", "cli/__init__.py": "", "cli/run.py": ""}
    imports, _ = read_imports(plant(tmp_path / "pet", {**files, name: source}))
    (violation,) = find_violations(imports)
    assert f"imports pet.{target} (" in violation
    assert "which is above it" in violation


def test_arrows_down_and_inside_a_layer_are_fine(tmp_path):
    files = {
        "errors.py": "import os\n",
        "examples.py": "",
        "settings.py": "from pet.errors import A\n",
        "models.py": "from pet import settings\nfrom pet.training.device import B\n",
        "runtime.py": "import torch\n",
        "stages/work.py": "from pet import models\nimport pet.tasks.texts\n",
        "stages/label.py": "from pet.pipeline.context import Work\nfrom pet.stages import prepare\n",
        "stages/prepare.py": "def late():\n    from .work import Work\n    from ..errors import A\n",
        "cli/__init__.py": "from pet.cli.run import run\n",
        "cli/run.py": "def run():\n    from pet.stages import label, prepare\n",
    }
    imports, libraries = read_imports(plant(tmp_path / "pet", files))
    assert find_violations(imports) == []
    assert find_strays(libraries) == []
    assert imports["stages.prepare"] == {"stages.work", "errors"}
    assert imports["cli.run"] == {"stages.label", "stages.prepare"}
    assert libraries["errors"] == {"os"}


def test_a_cycle_inside_a_layer_is_caught_also_when_a_function_hides_it(tmp_path):
    files = {
        "models.py": "from pet.training.device import A\n",
        "runtime.py": "from pet.modeling.cloze import B\n",
        "cloze.py": "def late():\n    from pet import models\n",
    }
    imports, _ = read_imports(plant(tmp_path / "pet", files))
    assert find_violations(imports) == [
        "import cycle: pet.modeling.cloze -> pet.modeling.loading -> pet.training.device -> pet.modeling.cloze"
    ]


def test_a_module_that_imports_itself_is_a_cycle(tmp_path):
    imports, _ = read_imports(plant(tmp_path / "pet", {"models.py": "import pet.modeling.loading\n"}))
    assert find_violations(imports) == ["import cycle: pet.modeling.loading -> pet.modeling.loading"]


def test_a_module_of_the_command_line_that_imports_its_entry_is_a_cycle(tmp_path):
    files = {"cli/__init__.py": "from pet.cli.run import run\n", "cli/run.py": "from pet.cli import main\n"}
    imports, _ = read_imports(plant(tmp_path / "pet", files))
    assert find_violations(imports) == ["import cycle: pet.cli -> pet.cli.run -> pet.cli"]


def test_a_module_that_is_in_no_layer_is_caught(tmp_path):
    files = {"helpers.py": "", "stages/more/deep.py": "from pet.modeling.loading import A\n", "models.py": ""}
    imports, _ = read_imports(plant(tmp_path / "pet", files))
    assert find_violations(imports) == ["pet.helpers is in no layer; add it to the table"]


@pytest.mark.parametrize(
    ("name", "source", "stray"),
    [
        ("sampling.py", "def late():\n    import torch.nn.functional as F\n", "torch"),
        ("tasks.py", "from transformers import AutoTokenizer\n", "transformers"),
        ("artifacts.py", "import safetensors.numpy\n", "safetensors"),
        ("stages/label.py", "import pandas as pd\n", "pandas"),
        ("stages/prepare.py", "def late():\n    import datasets\n", "datasets"),
        ("report.py", "from rich.table import Table\n", "rich"),
        ("__main__.py", "import click\n", "click"),
    ],
)
def test_a_heavy_library_in_the_wrong_place_is_caught(name, source, stray, tmp_path):
    _, libraries = read_imports(plant(tmp_path / "pet", {name: source}))
    (violation,) = find_strays(libraries)
    assert f" imports {stray}, which belongs to " in violation
