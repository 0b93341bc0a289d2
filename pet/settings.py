"""Every setting of a run, each with one default, its unit and its source; and the files that hold settings.

Defaults are the numbers of the paper (Schick & Schuetze 2021, arXiv 2001.07676, "P1"). Recipe `fixed` (the default)
uses them and follows the paper's text; recipe `paper` changes those settings back (RECIPES, below) in which the
published code differs from it. Not all that it did: docs/paper-recipe.md has what is restored and what is not. A value
is looked for in this order, the last one found wins:

    default of the field  <-  recipe  <-  pipeline file  <-  command-line flag or --set

A flag and --set of the same are refused.

Nothing here reads a task card or knows what a stage does with a setting.
"""

import difflib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from pet.errors import PetError, SettingsError, raise_problems
from pet.outside import MAX_DEPTH, MAX_YAML, is_file, leads_inside, load_yaml, path_of, read_bytes, stays_inside

M = TypeVar("M", bound=BaseModel)

Count = Annotated[int, Field(ge=1, le=10**9)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1)]


def spelled(pattern: str, expected: str) -> AfterValidator:
    """A check that a text matches a pattern as a whole; who gives another one reads what is `expected`."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"expected {expected}")
        return text

    return AfterValidator(check)


Revision = Annotated[
    str, spelled(r"[A-Za-z0-9_+#-]+([./][A-Za-z0-9_+#-]+)*", "a branch, a tag or a commit, as the hub shows it")
]
"""A branch, tag or commit of the hub: the hub's libraries make it part of a path in their cache."""


def listed(value: Any) -> Any:
    """A list of one where only that one was given."""
    return [value] if isinstance(value, str) else value


class Concern(BaseModel):
    """One group of settings: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TaskSettings(Concern):
    """Which task card, and where its texts are."""

    name: Name = Field("bbc", description="a shipped task card (`bbc`, `agnews`, ...) or the path of a task.yaml")
    data: Name | None = Field(None, description="folder with the card's files; default: the card's own source")


class ModelSettings(Concern):
    """Which masked language model, and how much text it sees."""

    name: Name = Field("mini", description="`mini`, a folder, or a hub id of a masked language model")
    revision: Revision | None = Field(None, description="branch, tag or commit on the hub; default: main")
    max_length: Annotated[int, Field(ge=8, le=10**6)] = Field(
        256, description="tokens a row may have, pattern and special tokens included (P1 Tab 5: 256)"
    )
    trust_remote_code: bool = Field(
        False,
        description="run Python code that the model's folder or hub page brings along; it may do anything that you may",
    )


class DataSettings(Concern):
    """Sizes of the three splits and how they are drawn."""

    train_examples: Annotated[int, Field(ge=0, le=10**9)] = Field(
        10, description="labelled texts, divided evenly over the labels (P1 section 4: 10, 50, 100, 1000); 0: none"
    )
    pool_per_label: Count = Field(
        10_000, description="unlabelled pool: this many texts times the number of labels (P1 App C: 10,000)"
    )
    test: Count | None = Field(None, description="test texts, at most; default: all (P1 Tab 6)")
    draw: Literal["seed", "first"] = Field(
        "seed",
        description="`seed`: labelled texts and pool are drawn by the run's seed and do not overlap; "
        "`first`: the first texts of each label in file order, labelled texts also in the pool (P1 App C)",
    )
    train_files: Annotated[tuple[Name, ...], BeforeValidator(listed)] = Field(
        (),
        description="CSV files with the columns `id` and `label`, as `pet suggest` writes them: those texts of the "
        "task are labelled texts too, beside the train_examples that are drawn, and never in pool or test set. Where "
        "a row has the text too, its label goes to that text, also if the text has another id by now",
    )


class Optimisation(Concern):
    """What every training loop shares: AdamW, linear decay, clipping (P1 Tab 5)."""

    steps: Count = Field(1000, description="optimizer steps, counted after accumulation")
    accumulation: Count = Field(1, description="micro-batches per optimizer step")
    learning_rate: Positive = Field(1e-5, description="peak learning rate of AdamW (P1 Tab 5)")
    warmup_steps: Annotated[int, Field(ge=0, le=10**9)] = Field(
        0, description="steps of linear warm-up before the decay to 0"
    )
    weight_decay: NonNegative = Field(0.01, description="not applied to biases and norm weights (P1 Tab 5)")
    adam_epsilon: Positive = Field(1e-8, description="epsilon of AdamW (P1 Tab 5)")
    max_grad_norm: Positive = Field(1.0, description="gradients are clipped to this norm (P1 Tab 5)")
    frozen_layers: Annotated[int, Field(ge=0, le=10**6)] | None = Field(
        None,
        description="embeddings and this many lower layers are not trained; default: none of them (P1), with "
        "finetune.method=lora the lower half. Cheaper, and with ten labels no worse (measured on mini, results/LOG.md)",
    )


ALL_LINEAR = "all-linear"
"""As peft calls it."""


class LoraSettings(Concern):
    """Adapters of `finetune.method: lora`. Dropout is the model's, of hidden states only, from a member's own random
    stream: a member does not depend on which others it is trained with."""

    rank: Count = Field(8, description="rank of each adapter (Hu et al. 2021, Tab 9)")
    alpha: Positive = Field(16.0, description="the adapter's product is scaled by alpha / rank")
    learning_rate: Positive = Field(1e-3, description="peak learning rate of AdamW, instead of finetune.learning_rate")
    targets: Annotated[tuple[str, ...], BeforeValidator(listed), Field(min_length=1)] | None = Field(
        None,
        description="names of the linear maps that get an adapter, or `all-linear`; default: query and value (Hu et "
        "al. 4.2)",
    )


class FinetuneSettings(Optimisation):
    """Members: one masked language model per pattern and repetition."""

    method: Literal["full", "lora"] = Field(
        "full",
        description="`full`: every member is a model of its own (P1); `lora`: members are adapters on one frozen "
        "model, trained together",
    )
    lora: LoraSettings = LoraSettings()
    patterns: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None, description="numbers of the card's patterns to use; default: all"
    )
    repetitions: Count = Field(3, description="members per pattern, differing in their random state (P1 section 4)")
    labelled_batch: Count = Field(4, description="labelled rows per micro-batch (P1 Tab 5: 1, accumulated 4 times)")
    unlabelled_batch: Annotated[int, Field(ge=0, le=10**9)] = Field(
        12, description="pool rows per micro-batch for the auxiliary MLM loss (P1 Tab 5: 3, accumulated 4 times)"
    )
    alpha: Annotated[float, Field(ge=0, lt=1)] = Field(
        1e-4, description="loss = (1 - alpha) label loss + alpha MLM loss (P1 section 3.2); 0: no MLM loss"
    )
    mask_probability: Annotated[float, Field(gt=0, lt=1)] = Field(0.15, description="share of MLM targets (P1 Tab 5)")
    mask_targets: Literal["content", "any"] = Field(
        "content",
        description="`content`: never padding, special tokens or the pattern's mask (P1 section 3.2); "
        "`any`: any token but the special ones around the text, rows padded to max_length (published code)",
    )
    truncation: Literal["longest-first", "last-part"] = Field(
        "longest-first",
        description="`longest-first`: texts, before the pattern is applied (P1 section 4); "
        "`last-part`: from the last text of the longer segment (published code)",
    )


class LabelSettings(Concern):
    """Pooling of the members' scores into soft labels."""

    weighting: Literal["accuracy", "uniform"] = Field(
        "accuracy",
        description="weight of a member: accuracy of its untuned pattern on the labelled texts (P1 section 3.3), "
        "or the same for all",
    )
    shares: Literal["free", "even"] = Field(
        "free",
        description="of the labels among the soft labels. `free`: whatever comes out (P1); `even`: a constant is added "
        "to each label's scores so that all are equally probable over the pool, for a pool in which none is commoner "
        "(distribution alignment, Berthelot et al. 2020; measured, results/LOG.md)",
    )


class IpetSettings(Concern):
    """Generations of ensembles, each trained on larger sets that the one before it labelled (P1 section 3.4)."""

    generations: Annotated[int, Field(ge=1, le=100)] | None = Field(
        None,
        description="ensembles after generation 0; default: until training sets would hold 1,000 texts, one at least "
        "(P1 section 4: 3 for 10 labelled texts, 2 for 50 or 100, 4 for none)",
    )
    growth: Annotated[float, Field(ge=1.5, le=1000)] = Field(
        5.0, description="how many times as many texts a training set holds as in the generation before (P1 section 4)"
    )
    teachers: Annotated[float, Field(gt=0, le=1)] = Field(
        0.25,
        description="share of the other members that label a member's training set, one at least (P1 section 4); below "
        "1, an untuned pattern is drawn as often as there are repetitions (published code)",
    )
    surest: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0,
        description="of the texts that are given a label, the share with its highest probabilities that is drawn from; "
        "1: all (P1 section 3.4)",
    )
    pool_share: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="share of the pool that a training set draws at most: who takes all of it takes every mistake"
    )
    first_examples: Count = Field(
        10, description="texts in generation 1's training sets where none is labelled (P1 section 3.4)"
    )
    first_candidates: Count = Field(
        100, description="of each label, those are drawn from so many that fit it best (P1 section 3.4)"
    )
    steps: Count | None = Field(
        None, description="optimizer steps of a member after generation 0; default: finetune.steps (P1 section 4)"
    )


class DistillSettings(Optimisation):
    """The student: a plain classifier trained on the soft labels."""

    steps: Count = Field(5000, description="optimizer steps (P1 Tab 5)")
    model: str | None = Field(None, description="the student's model, may be a smaller one; default: model.name")
    batch: Count = Field(16, description="pool texts per micro-batch (P1 Tab 5: 4, accumulated 4 times)")
    temperature: Positive = Field(
        2.0, description="softens student and teacher; the loss is multiplied by its square (P1 Tab 5)"
    )


class BaselineSettings(Optimisation):
    """Supervised baselines on the same labelled texts: a fine-tuned classifier and a linear probe."""

    steps: Count = Field(250, description="optimizer steps of the fine-tuned classifier (P1 Tab 5)")
    model: str | None = Field(None, description="model of the fine-tuned classifier; default: model.name")
    batch: Count = Field(16, description="labelled texts per micro-batch (P1 Tab 5: 4, accumulated 4 times)")
    probe_c: Positive = Field(1.0, description="inverse L2 strength of the linear probe (scikit-learn's default)")


class CorpusSettings(Concern):
    """Texts without a task, to train a masked language model on."""

    files: Annotated[tuple[Name, ...], BeforeValidator(listed)] = Field(
        (), description="text files, one document a line; .gz and .xz are read too"
    )
    task: Name | None = Field(None, description="a task card whose texts are taken too, those of its test set apart")
    data: Name | None = Field(None, description="folder with that card's files; default: the card's own source")
    held_out: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.01, description="share of the documents that is not trained on, but measured on; chosen by their text"
    )


class PretrainSettings(Optimisation):
    """Masked-language-model training on a corpus."""

    method: Literal["full", "lora"] = Field(
        "full", description="`full`: all weights are trained; `lora`: adapters and the LM head, folded in at the end"
    )
    lora: LoraSettings = LoraSettings()
    frozen_head: bool = Field(
        False,
        description="the LM head and the embeddings of words stay as they are: with a small corpus, little of what the "
        "model says untuned is lost then (measured, results/LOG.md)",
    )
    pack: bool = Field(
        False, description="publish the model as its difference to the start too, in 8 bits a weight, and rounded to it"
    )
    steps: Count = Field(10_000, description="optimizer steps")
    learning_rate: Positive = Field(5e-4, description="peak learning rate of AdamW")
    warmup_steps: Annotated[int, Field(ge=0, le=10**9)] = Field(
        100, description="steps of linear warm-up before the decay to 0"
    )
    length: Annotated[int, Field(ge=8, le=10**6)] = Field(128, description="tokens of a block, special tokens included")
    blocks: Count = Field(128, description="blocks per micro-batch; a large GPU with a small model wants 512 and more")
    last_length: Annotated[int, Field(ge=8, le=10**6)] | None = Field(
        None, description="tokens of a block in the last steps, as many tokens in all; default: length"
    )
    last_share: Annotated[float, Field(gt=0, lt=1)] = Field(0.1, description="share of the steps with last_length")
    mask_probability: Annotated[float, Field(gt=0, lt=1)] = Field(0.15, description="share of MLM targets")
    logit_adjustment: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0,
        description="part of each word's frequency that is taken off the LM head's bias at the end, so that rare label "
        "words are not held back because they are rare (Menon et al. 2021); costs a little MLM loss",
    )
    decay_to: Literal["zero", "start"] = Field(
        "zero",
        description="what weight_decay pulls matrices to: 0, or those of the body to what they were at the start "
        "and no others (L2-SP, Li et al. 2018), with method `full`",
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="of hidden states and attention, with method `full`; with `lora` there is none"
    )
    held_out_blocks: Count = Field(2048, description="held-out blocks that are measured on, at most")
    minutes: Positive | None = Field(
        None, description="stop after so many minutes of training, the learning rate at 0 by then; default: all steps"
    )


Method = Literal["zero-shot", "supervised", "pet", "ipet"]


def require_distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The values; each may stand there once."""
    if len(set(values)) < len(values):
        raise ValueError("something is given twice; give each once")
    return values


class TableSettings(Concern):
    """Which runs `pet table` compares."""

    tasks: dict[str, dict[str, Any]] = Field(
        {}, description="task card -> sections laid over the pipeline's for it; default: the pipeline's own task"
    )
    sizes: Annotated[tuple[Annotated[int, Field(ge=0, le=10**9)], ...], AfterValidator(require_distinct)] = Field(
        (0, 10, 50, 100, 1000), min_length=1, description="numbers of labelled texts (P1 Tab 1)"
    )
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], AfterValidator(require_distinct)] = Field(
        (0, 1, 2), min_length=1, description="of the runs; each draws its own texts (P1 section 4: three)"
    )
    methods: Annotated[tuple[Method, ...], AfterValidator(require_distinct)] = Field(
        get_args(Method),
        min_length=1,
        description="what is compared; zero-shot has no labelled texts, supervised and PET have",
    )


class AdaptSettings(PretrainSettings):
    """In-domain training of the masked language model on the pool, before the members (P1 section 5, Tab 5)."""

    enabled: bool = Field(False, description="whether it is part of the walk")
    steps: Count = Field(50_000, description="optimizer steps (P1 Tab 5)")
    learning_rate: Positive = Field(5e-5, description="peak learning rate of AdamW (P1 Tab 5)")
    warmup_steps: Annotated[int, Field(ge=0, le=10**9)] = Field(
        0, description="steps of linear warm-up before the decay to 0"
    )
    weight_decay: NonNegative = Field(0.0, description="not applied to biases and norm weights (P1 Tab 5)")
    length: Annotated[int, Field(ge=8, le=10**6)] = Field(256, description="tokens of a block (P1 Tab 5)")
    blocks: Count = Field(12, description="blocks per micro-batch (P1 Tab 5: 2 on each of 3 GPUs, accumulated twice)")
    held_out: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.01, description="share of the pool that is not trained on, but measured on; chosen by its text"
    )


class RuntimeSettings(Concern):
    """Where and how fast: changes no result beyond rounding, so it is part of no identity.

    All but `precision`: the one asked for enters the identity of what is trained with it; `auto` is one value there,
    whatever it comes to on the device at hand (the manifest says).
    """

    device: str = Field("auto", description="`auto`, `cpu`, `cuda`, `cuda:1`, `mps`")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="of matrix products; `auto`: bf16 on a GPU or CPU made for it, else fp32; weights stay fp32"
    )
    capture: bool = Field(True, description="on a GPU, run each training step as one captured CUDA graph")
    compile: bool | None = Field(
        None,
        description="on a GPU, fuse what lies between a layer's matrix products (torch.compile: half a minute at the "
        "start); default: for models of 100 million parameters and more",
    )
    keep_members: bool = Field(
        True,
        description="keep the weights of members that are models of their own, which nothing after their scores needs: "
        "1.4 GB each of RoBERTa-large; `pet table` keeps none",
    )
    executor: Literal["local", "ray"] = Field(
        "local", description="who makes members, students and baselines: this process, or tasks of a Ray cluster"
    )
    task_gpus: Annotated[float, Field(ge=0, le=8)] | None = Field(
        None, description="GPUs of a Ray task, parts of one allowed; default: 1 if the cluster has any, else none"
    )
    checkpoint_minutes: NonNegative = Field(
        5.0,
        description="minutes of a training between two checkpoints, 0: after every step; more where it would take over "
        "2 % of the time (measured, docs/reliability.md)",
    )
    batch_tokens: Annotated[int, Field(ge=64, le=10**9)] | None = Field(
        None, description="tokens per batch when scoring, padding counted; default: 131,072 on a GPU, 2,048 on a CPU"
    )


class Settings(Concern):
    """Everything that describes one run."""

    recipe: Literal["fixed", "paper"] = Field(
        "fixed", description="`fixed`: as the paper says; `paper`: nearer to its code (docs/paper-recipe.md)"
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(0, description="of the draw and of every training")
    task: TaskSettings = TaskSettings()
    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    adapt: AdaptSettings = AdaptSettings()
    finetune: FinetuneSettings = FinetuneSettings()
    label: LabelSettings = LabelSettings()
    ipet: IpetSettings = IpetSettings()
    distill: DistillSettings = DistillSettings()
    baseline: BaselineSettings = BaselineSettings()
    table: TableSettings = TableSettings()
    runtime: RuntimeSettings = RuntimeSettings()


class Pretraining(Concern):
    """Everything that describes one masked-language-model training."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(0, description="of the order of the blocks and what is masked")
    model: ModelSettings = ModelSettings()
    corpus: CorpusSettings = CorpusSettings()
    pretrain: PretrainSettings = PretrainSettings()
    runtime: RuntimeSettings = RuntimeSettings()


RECIPES: dict[str, dict[str, Any]] = {
    "fixed": {},
    "paper": {
        "data": {"draw": "first"},
        "finetune": {
            "labelled_batch": 1,
            "unlabelled_batch": 3,
            "accumulation": 4,
            "mask_targets": "any",
            "truncation": "last-part",
        },
        "distill": {"batch": 4, "accumulation": 4},
        "baseline": {"batch": 4, "accumulation": 4},
    },
}
"""What each recipe changes: batch sizes of P1 Tab 5, and three ways of the published code (docs/paper-recipe.md)."""


# ---- files that hold settings: task cards and pipelines ------------------------------------------------------------


def shipped_folder(kind: Literal["data", "pipelines"]) -> Path:
    """Where the shipped task cards (`data`) or pipelines lie: in the checkout, or inside the installed package."""
    package = Path(__file__).parent
    installed = package / "shipped" / kind
    return installed if installed.is_dir() else package.parent / kind


def shipped_names(kind: Literal["data", "pipelines"]) -> list[str]:
    """Names of all shipped task cards or pipelines, sorted."""
    folder = shipped_folder(kind)
    found = folder.glob("*/task.yaml") if kind == "data" else folder.glob("*.yaml")
    return sorted(path.parent.name if kind == "data" else path.stem for path in found)


def find_file(kind: Literal["data", "pipelines"], name: str, error: type[PetError] = SettingsError) -> Path:
    """The file of a task card or pipeline given by shipped name or by path.

    Raises:
        error: there is neither; the sentence lists the shipped names.
    """
    given = path_of(name)
    if kind == "data" and is_file(given / "task.yaml"):
        return given / "task.yaml"
    if given.suffix in (".yaml", ".yml") and is_file(given):
        return given
    names = shipped_names(kind)
    if name in names:
        return shipped_folder(kind) / (f"{name}/task.yaml" if kind == "data" else f"{name}.yaml")
    word = "task" if kind == "data" else "pipeline"
    if given.suffix in (".yaml", ".yml"):
        raise error(f"{word} file {name!r} does not exist; check the path, or use one of {', '.join(names)}")
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(names)} or the path of a YAML file"
    raise error(f"unknown {word} {name!r}; {hint}")


def read_yaml(path: Path, error: type[PetError]) -> dict[str, Any]:
    """A YAML file as a dictionary; raises `error` when it cannot be read, parsed, is beyond a limit of `outside`, or is
    no mapping."""
    content = read_bytes(path, error, MAX_YAML)
    try:
        found = load_yaml(content.decode("utf-8-sig"))
    except UnicodeDecodeError as problem:
        line = content.count(b"\n", 0, problem.start) + 1
        raise error(f"{path} line {line} is not UTF-8 text; convert the file to UTF-8") from None
    except ValueError as problem:
        reason, number = problem.args
        place = f" line {number}" if number else ""
        raise error(f"{path}{place} is not valid YAML ({reason}); correct it there") from None
    if found is None:
        raise error(f"{path} is empty; expected names and values, or {{}} for none")
    if not isinstance(found, dict):
        raise error(f"{path} holds {kind_of(found)}; expected a mapping of names to values")
    return found


MAX_EXTENDED = 10
"""Files of which each extends the next; of the shipped ones it is 2."""


def read_extended(
    path: Path,
    kind: Literal["data", "pipelines"],
    combine: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]],
    error: type[PetError],
    extending: tuple[Path, ...] = (),
) -> dict[str, Any]:
    """A YAML file laid over the one it `extends`, by `combine`. `extending`: the files that led here.

    A card, which people pass on, extends a shipped one or one in its own folder; a pipeline any file.

    Raises:
        error: as `read_yaml`, or a file that extends itself, or what it may not extend.
    """
    if path in extending:
        raise error(f"{path} extends itself; name another file in `extends:`")
    if len(extending) == MAX_EXTENDED:
        raise error(f"{path} is the {MAX_EXTENDED + 1}th file of which each extends the next; put them together")
    values = read_yaml(path, error)
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise error(f"{path}: `extends:` is {kind_of(base)}; expected the name of a file")
    below = find_extended(path, base, error) if kind == "data" else find_file(kind, base, error)
    return combine(read_extended(below, kind, combine, error, (*extending, path)), values)


def find_extended(card: Path, base: str, error: type[PetError]) -> Path:
    """The card that a card extends: a shipped one, or a file in its own folder.

    Raises:
        error: it is neither.
    """
    if base in shipped_names("data"):
        return shipped_folder("data") / base / "task.yaml"
    found = card.parent / base
    found = found / "task.yaml" if is_file(found / "task.yaml") else found
    if not stays_inside(base) or not leads_inside(found, card.parent):
        raise error(f"{card} extends {base!r}, which lies outside its folder; copy that card there")
    if found.suffix in (".yaml", ".yml") and is_file(found):
        return found
    near = difflib.get_close_matches(base, shipped_names("data"), n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"name one of {', '.join(shipped_names('data'))}, or such a file"
    raise error(f"{card} extends an unknown task {base!r}, neither shipped nor a YAML file in its folder; {hint}")


def parse_model(model: type[M], values: Mapping[str, Any], what: str, error: type[PetError]) -> M:
    """Validate `values` as `model`; every problem in one sentence, raised as `error`."""
    try:
        return model.model_validate(values)
    except ValidationError as invalid:
        found = invalid.errors()
    # A list without its bad entries is too short for pydantic, which is no news.
    bad = {problem["loc"][:depth] for problem in found for depth in range(len(problem["loc"]))}
    problems = [describe_problem(model, one) for one in found if one["type"] != "too_short" or one["loc"] not in bad]
    raise_problems(error, what, problems)
    raise AssertionError("a validation error without a problem")


def describe_problem(model: type[BaseModel], problem: Any) -> str:
    """One pydantic error as words: the dotted key, what is wrong, the nearest known key."""
    # In <> what a union was taken for, which is no key.
    key = ".".join(str(part) for part in problem["loc"] if not str(part).startswith("<"))
    if problem["type"] != "extra_forbidden":
        given = problem.get("input")
        shown = "" if isinstance(given, dict) or problem["type"] == "missing" else f" (given: {show_value(given)})"
        if problem["loc"][-1:] == ("[key]",):
            return f"{key.removesuffix('.[key]')}: names are text; write {given} in quotes"
        if problem["type"] in ("model_type", "dict_type"):
            return f"{key or 'the file'}: expected names with values below it{shown}"
        # Python's word, not YAML's; and what our own checks say needs no heading.
        said = problem["msg"].replace("tuple", "list").replace("Tuple", "List").removeprefix("Value error, ")
        return f"{key or 'the file'}: {said[0].lower()}{said[1:]}{shown}"
    known = known_keys(model)
    prefix, _, name = key.rpartition(".")
    siblings = {one.rpartition(".")[2]: one for one in known if one.rpartition(".")[0] == prefix}
    # Names are compared without their prefix: with it, anything in a section looks like its neighbours.
    near = [siblings[one] for one in difflib.get_close_matches(name, siblings, n=1)]
    near = near or sorted((one for one in known if one.endswith(f".{name}")), key=lambda one: one.count("."))[:1]
    listed = ", ".join(siblings.values())
    hint = f"did you mean {near[0]!r}?" if near else f"expected one of {listed}" if listed else "correct or remove it"
    return f"unknown setting {key!r}; {hint}"


SHOWN_VALUE = 80
"""Characters of a value that is repeated in a message."""


def show_value(value: Any) -> str:
    """A value of a YAML file as a message repeats it."""
    plain = value is None or isinstance(value, str | bool | int | float)
    text = repr(value) if plain else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= SHOWN_VALUE else f"{text[:SHOWN_VALUE]} ..."


def kind_of(value: Any) -> str:
    """What a value of a YAML file is, as a person calls it."""
    names = {
        list: "a list",
        dict: "a mapping",
        str: "a text",
        int: "a number",
        float: "a number",
        bool: "true or false",
    }
    return names.get(type(value), "another kind of value")


def known_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """All dotted names of the fields of `model`, nested ones included."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        for one in (field.annotation, *get_args(field.annotation)):  # the arguments: `FilesSource | None`
            if isinstance(one, type) and issubclass(one, BaseModel):
                keys += known_keys(one, f"{prefix}{name}.")
    return keys


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries laid over each other; later layers win."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            old = result.get(key)
            result[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def lay_sections(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """`merge` for pipelines: a section that is named and left empty is `None` in YAML and says nothing."""
    return merge(*({key: value for key, value in layer.items() if value is not None} for layer in layers))


def parse_assignment(text: str) -> dict[str, Any]:
    """`finetune.steps=100` -> {"finetune": {"steps": 100}}; the value is read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip() or key.count(".") > MAX_DEPTH:
        raise SettingsError(f"--set got {text!r}; expected NAME=VALUE, for example --set finetune.steps=100")
    try:
        if len(value) > MAX_YAML:
            raise ValueError(f"more than {MAX_YAML:,} characters", None)
        return nest(key.strip(), load_yaml(value))
    except ValueError:
        raise SettingsError(f"--set {key}: {value[:SHOWN_VALUE]!r} is not a YAML value; quote it") from None


def nest(key: str, value: Any) -> dict[str, Any]:
    """`finetune.steps`, 100 -> {"finetune": {"steps": 100}}."""
    nested = value
    for part in reversed(key.split(".")):
        nested = {part: nested}
    return dict(nested)


def resolve_settings(pipeline: str | None = None, *overrides: Mapping[str, Any]) -> Settings:
    """Defaults, recipe, pipeline file and overrides as one `Settings`.

    `pipeline`: a shipped name or a path; `None` uses defaults only.

    Raises:
        SettingsError: unknown pipeline, unreadable file, unknown key or a value out of range; names every problem.
    """
    given, what = read_pipeline(pipeline, *overrides)
    refuse_foreign(given, what, Settings, Pretraining, "pet pretrain")
    recipe = given.get("recipe", "fixed")
    if not isinstance(recipe, str) or recipe not in RECIPES:
        raise SettingsError(f"unknown recipe {recipe!r}; expected one of {', '.join(RECIPES)}")
    return parse_model(Settings, merge(RECIPES[recipe], given), what, SettingsError)


def resolve_pretraining(pipeline: str | None = None, *overrides: Mapping[str, Any]) -> Pretraining:
    """Defaults, pipeline file and overrides as one `Pretraining`; as `resolve_settings`."""
    given, what = read_pipeline(pipeline, *overrides)
    refuse_foreign(given, what, Pretraining, Settings, "pet run")
    settings = parse_model(Pretraining, given, what, SettingsError)
    if not settings.corpus.files and settings.corpus.task is None:
        raise SettingsError(f"{what}: nothing to train on; give --corpus FILE, one document a line, or --task NAME")
    if settings.corpus.data and settings.corpus.task is None:
        raise SettingsError(f"{what}: corpus.data {settings.corpus.data!r} is of no task; give --task NAME too")
    return settings


def resolve_tasks(pipeline: str, *overrides: Mapping[str, Any]) -> dict[str, Settings]:
    """The settings of each task of a table, the sections that `table.tasks` has for it laid over the pipeline's.

    Raises:
        SettingsError: as `resolve_settings`.
    """
    common = resolve_settings(pipeline, *overrides)
    if not common.table.tasks:
        return {common.task.name: common}
    refuse_trust({"table": {"tasks": common.table.tasks}}, "table.tasks")
    return {
        name: resolve_settings(pipeline, sections, nest("task.name", name), *overrides)
        for name, sections in common.table.tasks.items()
    }


def refuse_foreign(
    given: Mapping[str, Any], what: str, own: type[BaseModel], other: type[BaseModel], command: str
) -> None:
    """Refuse sections of the other command's settings with its name.

    Raises:
        SettingsError: names the first of them.
    """
    found = [name for name in given if name in other.model_fields and name not in own.model_fields]
    if found:
        raise SettingsError(f"{what}: `{found[0]}` is a setting of another command; use {command}, or leave it out")


def read_pipeline(pipeline: str | None, *overrides: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Pipeline file and overrides laid over each other, and what to call them in messages."""
    source = find_file("pipelines", pipeline) if pipeline is not None else None
    file = read_extended(source, "pipelines", lay_sections, SettingsError) if source else {}
    typed = merge(*overrides).get("model")
    if not (isinstance(typed, dict) and TRUST in typed):
        refuse_trust(file, f"pipeline {source}")
    return lay_sections(file, *overrides), f"pipeline {source}" if source and not any(overrides) else "settings"


TRUST = "trust_remote_code"


def refuse_trust(values: Mapping[str, Any], what: str) -> None:
    """A file that people pass on cannot say that code of a model is run; whoever types the command can.

    Raises:
        SettingsError: it does, for its model or for that of a task of its table.
    """
    table = values.get("table")
    tasks = table.get("tasks") if isinstance(table, dict) else None
    for one in (values, *(tasks.values() if isinstance(tasks, dict) else ())):
        model = one.get("model") if isinstance(one, Mapping) else None
        if isinstance(model, dict) and model.get(TRUST, False) is not False:
            raise SettingsError(
                f"{what} has model.{TRUST}, which runs code that a model brings along; leave it out of the file, and "
                "give --trust-remote-code if you trust whoever wrote that code"
            )


def settings_yaml(settings: BaseModel) -> str:
    """The resolved settings as a YAML file that can be handed back as a pipeline."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)
