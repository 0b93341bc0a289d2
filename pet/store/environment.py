"""What an artifact was made with: packages, commit, host."""

import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

RECORDED_PACKAGES = (
    "pet accelerate datasets numpy peft safetensors scikit-learn scipy tokenizers torch transformers".split()
)


@cache
def environment() -> dict[str, Any]:
    """Versions, and the commit of the code when it runs from a checkout."""
    versions = {}
    for name in RECORDED_PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {"python": platform.python_version(), "packages": versions, "code": code_state()}


def code_state() -> dict[str, Any] | None:
    """Commit and whether it has uncommitted changes; `None` outside a checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        head = git(root, "rev-parse", "HEAD")
        return {"commit": head, "dirty": bool(git(root, "status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def git(root: Path, *arguments: str) -> str:
    """What a git command prints."""
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.strip()
