"""The model card (README.md) of an exported student, made from what its run's artifacts say of it. Measures nothing."""

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pet.errors import MissingArtifact
from pet.modeling.mini import EMBEDDED
from pet.pipeline.runs import Run, adapted_of
from pet.pipeline.summary import NAMES, absent_line, few_line, row_name, soft_label_line
from pet.store.environment import environment
from pet.store.files import scalar
from pet.tools.rendering import render

MINI_BASE = "sentence-transformers/all-MiniLM-L6-v2"
"""The hub's name of what `mini.EMBEDDED` come from (pet/modeling/weights/mini/README.md)."""


def model_card(run: Run, form: str, fields: Sequence[str], inputs: Sequence[str], check: str) -> str:
    """The text of README.md. `form`: hf or onnx; `fields`: of a text, in order; `inputs`: of the ONNX model; `check`:
    what was found out about the files."""
    summary, settings = run.summary, run.artifact.manifest["settings"]
    first, *rest = fields
    pair = " ".join(rest)
    return render(
        "model_card.md.jinja",
        run=run,
        summary=summary,
        settings=settings,
        made=run.student.manifest,
        packages=environment()["packages"],
        form=form,
        fields=fields,
        inputs=inputs,
        check=check,
        base=hub_base(run),
        student=shown_name(settings["distill"]["model"] or settings["model"]["name"]),
        teacher=shown_name(settings["model"]["name"]),
        call=repr({"text": first, "text_pair": pair} if rest else first),
        arguments=", ".join(f"[{one!r}]" for one in ([first, pair] if rest else [first])),
        scores=[(row_name(summary, key), summary["scores"][key]) for key in NAMES if key in summary["scores"]],
        patterns="\n".join(pattern_lines(run)),
        near=run.prepared.read_json("report.json")["near_duplicates"],
        calibration=summary.get("calibration", {}).get("student"),
        absent=absent_line(summary),
        few=few_line(summary),
        soft_label_line=soft_label_line,
        scalar=scalar,
        quoted=quoted,
        listed=listed,
    )


def hub_base(run: Run) -> str | None:
    """The hub id that the student's training began with; `None` where it was a folder or cannot be known any more."""
    settings = run.artifact.manifest["settings"]
    name = str(settings["distill"]["model"] or settings["model"]["name"])
    if name in EMBEDDED:
        return MINI_BASE
    weights = str(run.student.manifest["settings"]["model"]["weights"])
    if (adapted := adapted_of(run.student.manifest)) is not None:
        with suppress(MissingArtifact):
            weights = str(run.by_identity("adapt", adapted).manifest["settings"]["model"])
    return name if weights.startswith(f"{name}@") else None  # see `fingerprint`


def shown_name(model: str) -> str:
    """A model as others may know it: of a folder on this machine its last part."""
    return Path(model).name if model.startswith((".", "/", "~")) or Path(model).is_dir() else model


def quoted(text: str) -> str:
    """A text in a code span, where neither Markdown nor HTML means anything."""
    text = " ".join(text.split()) or " "
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if "`" in text else ""
    return f"{fence}{space}{text}{space}{fence}"


def listed(texts: Sequence[str]) -> str:
    """Texts as code spans, one after another."""
    return ", ".join(map(quoted, texts))


def pattern_lines(run: Run) -> list[str]:
    """Each pattern of the members once, then the words of each label; with several sets of words, each pattern's."""
    sets: dict[str, dict[str, None]] = {}
    for member in run.members:
        asked = member.manifest["settings"]
        shown = "\n".join(f"- {quoted(label)}: {listed(each)}" for label, each in asked["words"].items())
        sets.setdefault(shown, {})[asked["pattern"]] = None
    lines: list[str] = []
    for words, patterns in sets.items():
        lines += [*(f"- {quoted(one)}" for one in patterns), "", "The word at the mask and its label:", "", words, ""]
    return lines[:-1]
