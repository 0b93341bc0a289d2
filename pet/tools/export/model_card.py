"""The model card (README.md) of an exported student, made from what its run's artifacts say of it. Measures nothing."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pet.errors import MissingArtifact
from pet.modeling.mini import EMBEDDED
from pet.pipeline.runs import Run, adapted_of
from pet.pipeline.summary import NAMES, absent_line, few_line, row_name, soft_label_line
from pet.store.environment import environment
from pet.store.files import readable_yaml

MINI_BASE = "sentence-transformers/all-MiniLM-L6-v2"
"""The hub's name of what `mini.EMBEDDED` come from (pet/modeling/weights/mini/README.md)."""

CARD = """\
---
{front}---

# {task}: a text classifier by Pattern-Exploiting Training

It gives a text one of {number} labels. It is the student of {method} ([Schick and Schuetze 2021](https://arxiv.org/abs/2001.07676)):
{members} masked language models, asked in the patterns below, labelled {pool} unlabelled texts, and this plain
classifier was trained on their soft labels.

- **Labels**: {labels}
- **Reads**: {fields}; {max_length} tokens at most, special tokens included
- **Base model**: {student}{base}; of the masked language models: {teacher}
- **Texts**: {train} labelled, {pool} unlabelled, {test} for the test
- **Seed** {seed}, recipe {recipe}, run `{run}`
- **Made** {created} by pet {version}{commit}; exported by pet {exporter} as {form}

## How to use it

{usage}

{check}

## Results

In percent, on the {test} test texts, each with its 95 % interval.

| | {metric} | 95 % interval |
|---|---:|---:|
{rows}

## Patterns and words

{patterns}

## Limits

{limits}
"""

HF = """\
```python
from transformers import pipeline

classify = pipeline("text-classification", "path/to/this/folder")
classify({call}, truncation=True)  # top_k=None: all labels
```
"""

ONNX = """\
```python
import onnxruntime
from transformers import AutoConfig, AutoTokenizer

folder = "path/to/this/folder"
session = onnxruntime.InferenceSession(f"{{folder}}/model.onnx")
tokenizer = AutoTokenizer.from_pretrained(folder)
found = tokenizer({arguments}, truncation=True, padding=True, return_tensors="np")
wanted = [one.name for one in session.get_inputs()]
(logits,) = session.run(["logits"], {{name: found[name] for name in wanted}})
names = AutoConfig.from_pretrained(folder).id2label
print([names[number] for number in logits.argmax(-1)])  # probabilities: the softmax of logits
```

Inputs: {inputs}, each int64 [batch, sequence]; output: `logits`, float32 [batch, {number}].
"""


def model_card(run: Run, form: str, fields: Sequence[str], inputs: Sequence[str], check: str) -> str:
    """The text of README.md. `form`: hf or onnx; `fields`: of a text, in order; `inputs`: of the ONNX model; `check`:
    what was found out about the files."""
    summary, settings = run.summary, run.artifact.manifest["settings"]
    here, there = environment(), run.student.manifest
    code = there.get("code") or {}
    usage = HF if form == "hf" else ONNX
    shown = {"call": example(fields), "arguments": ", ".join(f"[{one!r}]" for one in arguments(fields))}
    return CARD.format(
        front=front_matter(run, form),
        task=summary["task"],
        number=len(run.labels),
        method="iPET" if "generations" in summary else "PET",
        members=len(run.members),
        labels=listed(run.labels),
        fields=f"one field, {quoted(fields[0])}" if len(fields) == 1 else f"{len(fields)} fields, {listed(fields)}",
        max_length=there["settings"]["model"]["max_length"],
        base=f" ({base})" if (base := hub_base(run)) not in (None, settings["model"]["name"]) else "",
        student=quoted(shown_name(settings["distill"]["model"] or settings["model"]["name"])),
        teacher=quoted(shown_name(settings["model"]["name"])) + (", adapted to the pool" if summary["adapted"] else ""),
        train=f"{summary['train_examples']:,}",
        pool=f"{summary['pool']:,}",
        test=f"{summary['test']:,}",
        seed=summary["seed"],
        recipe=summary["recipe"],
        run=run.path.name,
        created=str(there["created"])[:10],
        version=there["packages"].get("pet", "of unknown version"),
        commit=f", commit {code['commit']}{' with changes' if code['dirty'] else ''}" if code else "",
        exporter=here["packages"].get("pet", "of unknown version"),
        form=f"{form} with transformers {here['packages']['transformers']} and torch {here['packages']['torch']}",
        usage=usage.format(**shown, inputs=listed(inputs), number=len(run.labels)) + "\n" + how_to_give(fields),
        check=check,
        metric=summary["metric"],
        rows="\n".join(score_lines(summary)),
        patterns="\n".join(pattern_lines(run)),
        limits="\n".join(f"- {one}" for one in limits(run)),
    )


def front_matter(run: Run, form: str) -> str:
    """What the hub reads; no licence, which only the person who publishes can know."""
    facts: dict[str, Any] = {
        "library_name": "transformers" if form == "hf" else "onnx",
        "pipeline_tag": "text-classification",
    }
    base = hub_base(run)
    if base is not None:
        facts["base_model"] = base
    method = ["ipet"] if "generations" in run.summary else []
    facts["tags"] = ["text-classification", "few-shot", "pattern-exploiting-training", "pet", *method]
    return readable_yaml(facts)


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


# ---- how texts are given -------------------------------------------------------------------------------------------


def arguments(fields: Sequence[str]) -> list[str]:
    """Stand-ins for what the tokenizer is given: a text, or two."""
    first, *rest = fields
    return [first, " ".join(rest)] if rest else [first]


def example(fields: Sequence[str]) -> str:
    """The argument of the pipeline, as Python."""
    return repr(dict(zip(("text", "text_pair"), arguments(fields), strict=False)) if len(fields) > 1 else fields[0])


def how_to_give(fields: Sequence[str]) -> str:
    """What the classifier was trained to read."""
    said = "Give texts without white space around them, as they were in training."
    if len(fields) == 1:
        return f"{said} Without `truncation=True` a text that is too long is not cut."
    pair = f"{quoted(fields[0])} is the first text (`text`) and {listed(fields[1:])} the second one (`text_pair`)"
    joined = ", its parts joined by one blank each, those that are empty left out" if len(fields) > 2 else ""
    return (
        f"{said} {pair}{joined}. A second text that is empty must still be a pair: give lists of one, "
        '`{"text": ["..."], "text_pair": [""]}`. Without `truncation=True` texts that are too long are not cut.'
    )


# ---- what is known of it -------------------------------------------------------------------------------------------


def score_lines(summary: Mapping[str, Any]) -> list[str]:
    """Rows of the table of results; members stand in the run's own summary."""
    found = [(row_name(summary, key), summary["scores"][key]) for key in NAMES if key in summary["scores"]]
    return [f"| {name} | {one['value']:.1f} | {one['low']:.1f} to {one['high']:.1f} |" for name, one in found]


def calibration(run: Run) -> str:
    """How far its probabilities can be believed."""
    found = run.summary.get("calibration", {}).get("student")
    if found is None:
        return "Its probabilities were not calibrated."
    if found.get("problem"):
        return (
            f"Its probabilities are raw: {found['problem']}. The expected calibration error on the test set is "
            f"{found['ece_before']:.1f} points."
        )
    return (
        f"Its logits are divided by the temperature {found['temperature']:g}, fitted on {found['fitted_on']}: the "
        f"expected calibration error on the test set is {found['ece_after']:.1f} points with it, "
        f"{found['ece_before']:.1f} without. {few_line(run.summary)}"
    ).strip()


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


def limits(run: Run) -> list[str]:
    """What a reader should know before relying on it."""
    summary, settings = run.summary, run.artifact.manifest["settings"]
    near = run.prepared.read_json("report.json")["near_duplicates"]
    found = [line] if (line := absent_line(summary)) else []
    if "soft_labels" in summary["scores"]:
        found.append(soft_label_line(summary) + " What the student was taught wrongly, it may have learnt.")
    else:
        found.append("How right its soft labels were cannot be known: the pool's texts have no labels.")
    if summary.get("word_texts"):
        found.append(
            f"Its label words were chosen by the labels of {summary['word_texts']:,} texts beside those that it was "
            "trained on; none of them is a test text."
        )
    if settings["label"]["shares"] == "even":
        found.append("The soft labels were made even: no label was allowed to be commoner in the pool than another.")
    found += [
        f"One run with one seed ({summary['seed']}) and one draw of labelled texts; another comes out differently, and "
        "the intervals do not say by how much.",
        f"The test texts come from the task's own source, and {near['test_of_pool']} of them nearly repeat an "
        f"unlabelled text, {near['test_of_train']} a labelled one; texts from elsewhere may be harder.",
        calibration(run),
        "Licence: unknown; it depends on the base model's and on that of the texts. State one before you publish this.",
    ]
    return found
