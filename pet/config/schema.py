"""Every setting of a run, each with one default, its unit and its source; and the files that hold settings.

Defaults are the numbers of the paper (Schick & Schuetze 2021, arXiv 2001.07676, "P1"). Recipe `fixed` (the default)
uses them and follows the paper's text; recipe `paper` changes those settings back (RECIPES, below) in which the
published code differs from it. Not all that it did: docs/explanation/paper-recipe.md has what is restored and what is
not. A value is looked for in this order, the last one found wins:

    default of the field  <-  recipe  <-  pipeline file  <-  command-line flag or --set

A flag and --set of the same are refused.

Whether a setting is part of an artifact's identity is said in its annotation (`pet/config/identity.py`).

Nothing here reads a task card or knows what a stage does with a setting.
"""

import re
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from pet.config.identity import InIdentity

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


class Section(BaseModel):
    """One group of settings: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class TaskSettings(Section):
    """Which task card, and where its texts are."""

    name: Name = "bbc"
    """A shipped task card (`bbc`, `agnews`, ...) or the path of a task.yaml."""
    data: Name | None = None
    """Folder with the card's files; default: the card's own source."""


class ModelSettings(Section):
    """Which masked language model, and how much text it sees."""

    # What lies there is part of the identity of every training, as the fingerprint of its weights.
    name: Annotated[Name, InIdentity.OF_RUN] = "mini"
    """`mini`, a folder, or a hub id of a masked language model."""
    revision: Annotated[Revision | None, InIdentity.OF_RUN] = None
    """Branch, tag or commit on the hub; default: main."""
    max_length: Annotated[int, Field(ge=8, le=10**6)] = 256
    """Tokens a row may have, pattern and special tokens included (P1 Tab 5: 256)."""
    trust_remote_code: Annotated[bool, InIdentity.NEVER] = False  # that code is part of the model's fingerprint
    """Run Python code that the model's folder or hub page brings along; it may do anything that you may."""


class DataSettings(Section):
    """Sizes of the three splits and how they are drawn."""

    train_examples: Annotated[int, Field(ge=0, le=10**9)] = 10
    """Labelled texts, divided evenly over the labels (P1 section 4: 10, 50, 100, 1000); 0: none."""
    pool_per_label: Count = 10_000
    """Unlabelled pool: this many texts times the number of labels (P1 App C: 10,000)."""
    test: Count | None = None
    """Test texts, at most; default: all (P1 Tab 6)."""
    draw: Literal["seed", "first"] = "seed"
    """`seed`: labelled texts and pool are drawn by the run's seed and do not overlap; `first`: the first texts of each
    label in file order, labelled texts also in the pool (P1 App C)."""
    # The labels in them are part of the identity of `prepare`; where they lie is not.
    train_files: Annotated[tuple[Name, ...], BeforeValidator(listed), InIdentity.NEVER] = ()
    """CSV files with the columns `id` and `label`, as `pet suggest` writes them: those texts of the task are labelled
    texts too, beside the train_examples that are drawn, and never in pool or test set. Where a row has the text too,
    its label goes to that text, also if the text has another id by now."""


class Optimisation(Section):
    """What every training loop shares: AdamW, linear decay, clipping (P1 Tab 5)."""

    steps: Count = 1000
    """Optimizer steps, counted after accumulation."""
    accumulation: Count = 1
    """Micro-batches per optimizer step."""
    learning_rate: Positive = 1e-5
    """Peak learning rate of AdamW (P1 Tab 5)."""
    warmup_steps: Annotated[int, Field(ge=0, le=10**9)] = 0
    """Steps of linear warm-up before the decay to 0."""
    weight_decay: NonNegative = 0.01
    """Not applied to biases and norm weights (P1 Tab 5)."""
    adam_epsilon: Positive = 1e-8
    """Epsilon of AdamW (P1 Tab 5)."""
    max_grad_norm: Positive = 1.0
    """Gradients are clipped to this norm (P1 Tab 5)."""
    frozen_layers: Annotated[int, Field(ge=0, le=10**6)] | None = None
    """Embeddings and this many lower layers are not trained; default: none of them (P1), with finetune.method=lora the
    lower half. Cheaper, and with ten labels no worse (measured on mini, results/LOG.md)."""


ALL_LINEAR = "all-linear"
"""As peft calls it."""


class LoraSettings(Section):
    """Adapters of `finetune.method: lora`. Dropout is the model's, of hidden states only, from a member's own random
    stream: a member does not depend on which others it is trained with."""

    rank: Count = 8
    """Rank of each adapter (Hu et al. 2021, Tab 9)."""
    alpha: Positive = 16.0
    """The adapter's product is scaled by alpha / rank."""
    learning_rate: Positive = 1e-3
    """Peak learning rate of AdamW, instead of finetune.learning_rate."""
    targets: Annotated[tuple[str, ...], BeforeValidator(listed), Field(min_length=1)] | None = None
    """Names of the linear maps that get an adapter, or `all-linear`; default: query and value (Hu et al. 4.2)."""


class FinetuneSettings(Optimisation):
    """Members: one masked language model per pattern and repetition."""

    method: Literal["full", "lora"] = "full"
    """`full`: every member is a model of its own (P1); `lora`: members are adapters on one frozen model, trained
    together."""
    lora: LoraSettings = LoraSettings()
    # A member is the same whichever others there are.
    patterns: Annotated[tuple[Annotated[int, Field(ge=0)], ...] | None, InIdentity.OF_RUN] = None
    """Numbers of the card's patterns to use; default: all."""
    repetitions: Annotated[Count, InIdentity.OF_RUN] = 3
    """Members per pattern, differing in their random state (P1 section 4)."""
    labelled_batch: Count = 4
    """Labelled rows per micro-batch (P1 Tab 5: 1, accumulated 4 times)."""
    unlabelled_batch: Annotated[int, Field(ge=0, le=10**9)] = 12
    """Pool rows per micro-batch for the auxiliary MLM loss (P1 Tab 5: 3, accumulated 4 times)."""
    alpha: Annotated[float, Field(ge=0, lt=1)] = 1e-4
    """Loss = (1 - alpha) label loss + alpha MLM loss (P1 section 3.2); 0: no MLM loss."""
    mask_probability: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Share of MLM targets (P1 Tab 5)."""
    mask_targets: Literal["content", "any"] = "content"
    """`content`: never padding, special tokens or the pattern's mask (P1 section 3.2); `any`: any token but the special
    ones around the text, rows padded to max_length (published code)."""
    truncation: Literal["longest-first", "last-part"] = "longest-first"
    """`longest-first`: texts, before the pattern is applied (P1 section 4); `last-part`: from the last text of the
    longer segment (published code)."""


class LabelSettings(Section):
    """Pooling of the members' scores into soft labels."""

    weighting: Literal["accuracy", "uniform"] = "accuracy"
    """Weight of a member: accuracy of its untuned pattern on the labelled texts (P1 section 3.3), or the same for
    all."""
    shares: Literal["free", "even"] = "free"
    """Of the labels among the soft labels. `free`: whatever comes out (P1); `even`: a constant is added to each label's
    scores so that all are equally probable over the pool, for a pool in which none is commoner (distribution alignment,
    Berthelot et al. 2020; measured, results/LOG.md)."""


class IpetSettings(Section):
    """Generations of ensembles, each trained on larger sets that the one before it labelled (P1 section 3.4)."""

    generations: Annotated[Annotated[int, Field(ge=1, le=100)] | None, InIdentity.OF_RUN] = None
    """Ensembles after generation 0; default: until training sets would hold 1,000 texts, one at least (P1 section 4: 3
    for 10 labelled texts, 2 for 50 or 100, 4 for none)."""
    growth: Annotated[float, Field(ge=1.5, le=1000)] = 5.0
    """How many times as many texts a training set holds as in the generation before (P1 section 4)."""
    teachers: Annotated[float, Field(gt=0, le=1), InIdentity.OF_RUN] = 0.25  # who labels is an input of `draw`
    """Share of the other members that label a member's training set, one at least (P1 section 4); below 1, an untuned
    pattern is drawn as often as there are repetitions (published code)."""
    surest: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Of the texts that are given a label, the share with its highest probabilities that is drawn from; 1: all (P1
    section 3.4)."""
    pool_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the pool that a training set draws at most: who takes all of it takes every mistake."""
    first_examples: Count = 10
    """Texts in generation 1's training sets where none is labelled (P1 section 3.4)."""
    first_candidates: Count = 100
    """Of each label, those are drawn from so many that fit it best (P1 section 3.4)."""
    steps: Annotated[Count | None, InIdentity.OF_RUN] = None  # a member has them as its finetune.steps
    """Optimizer steps of a member after generation 0; default: finetune.steps (P1 section 4)."""


class DistillSettings(Optimisation):
    """The student: a plain classifier trained on the soft labels."""

    steps: Count = 5000
    """Optimizer steps (P1 Tab 5)."""
    model: Annotated[str | None, InIdentity.OF_RUN] = None  # the stage knows it by its fingerprint
    """The student's model, may be a smaller one; default: model.name."""
    batch: Count = 16
    """Pool texts per micro-batch (P1 Tab 5: 4, accumulated 4 times)."""
    temperature: Positive = 2.0
    """Softens student and teacher; the loss is multiplied by its square (P1 Tab 5)."""


class BaselineSettings(Optimisation):
    """Supervised baselines on the same labelled texts: a fine-tuned classifier and a linear probe."""

    steps: Count = 250
    """Optimizer steps of the fine-tuned classifier (P1 Tab 5)."""
    model: Annotated[str | None, InIdentity.OF_RUN] = None  # the stage knows it by its fingerprint
    """Model of the fine-tuned classifier; default: model.name."""
    batch: Count = 16
    """Labelled texts per micro-batch (P1 Tab 5: 4, accumulated 4 times)."""
    probe_c: Positive = 1.0
    """Inverse L2 strength of the linear probe (scikit-learn's default)."""


class CorpusSettings(Section):
    """Texts without a task, to train a masked language model on."""

    # The texts are part of a corpus' identity; where they lie is not.
    files: Annotated[tuple[Name, ...], BeforeValidator(listed), InIdentity.NEVER] = ()
    """Text files, one document a line; .gz and .xz are read too."""
    task: Annotated[Name | None, InIdentity.NEVER] = None
    """A task card whose texts are taken too, those of its test set apart."""
    data: Annotated[Name | None, InIdentity.NEVER] = None
    """Folder with that card's files; default: the card's own source."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Share of the documents that is not trained on, but measured on; chosen by their text."""


class PretrainSettings(Optimisation):
    """Masked-language-model training on a corpus."""

    method: Literal["full", "lora"] = "full"
    """`full`: all weights are trained; `lora`: adapters and the LM head, folded in at the end."""
    lora: LoraSettings = LoraSettings()
    frozen_head: bool = False
    """The LM head and the embeddings of words stay as they are: with a small corpus, little of what the model says
    untuned is lost then (measured, results/LOG.md)."""
    pack: bool = False
    """Publish the model as its difference to the start too, in 8 bits a weight, and rounded to it."""
    steps: Count = 10_000
    """Optimizer steps."""
    learning_rate: Positive = 5e-4
    """Peak learning rate of AdamW."""
    warmup_steps: Annotated[int, Field(ge=0, le=10**9)] = 100
    """Steps of linear warm-up before the decay to 0."""
    length: Annotated[int, Field(ge=8, le=10**6)] = 128
    """Tokens of a block, special tokens included."""
    blocks: Count = 128
    """Blocks per micro-batch; a large GPU with a small model wants 512 and more."""
    last_length: Annotated[int, Field(ge=8, le=10**6)] | None = None
    """Tokens of a block in the last steps, as many tokens in all; default: length."""
    last_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the steps with last_length."""
    mask_probability: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Share of MLM targets."""
    logit_adjustment: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Part of each word's frequency that is taken off the LM head's bias at the end, so that rare label words are not
    held back because they are rare (Menon et al. 2021); costs a little MLM loss."""
    decay_to: Literal["zero", "start"] = "zero"
    """What weight_decay pulls matrices to: 0, or those of the body to what they were at the start and no others (L2-SP,
    Li et al. 2018), with method `full`."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of hidden states and attention, with method `full`; with `lora` there is none."""
    held_out_blocks: Count = 2048
    """Held-out blocks that are measured on, at most."""
    minutes: Positive | None = None
    """Stop after so many minutes of training, the learning rate at 0 by then; default: all steps."""


Method = Literal["zero-shot", "supervised", "pet", "ipet"]


def require_distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The values; each may stand there once."""
    if len(set(values)) < len(values):
        raise ValueError("something is given twice; give each once")
    return values


class TableSettings(Section):
    """Which runs `pet table` compares."""

    tasks: dict[str, dict[str, Any]] = {}
    """Task card -> sections laid over the pipeline's for it; default: the pipeline's own task."""
    sizes: Annotated[tuple[Annotated[int, Field(ge=0, le=10**9)], ...], AfterValidator(require_distinct)] = Field(
        (0, 10, 50, 100, 1000), min_length=1
    )
    """Numbers of labelled texts (P1 Tab 1)."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], AfterValidator(require_distinct)] = Field(
        (0, 1, 2), min_length=1
    )
    """Of the runs; each draws its own texts (P1 section 4: three)."""
    methods: Annotated[tuple[Method, ...], AfterValidator(require_distinct)] = Field(get_args(Method), min_length=1)
    """What is compared; zero-shot has no labelled texts, supervised and PET have."""


class AdaptSettings(PretrainSettings):
    """In-domain training of the masked language model on the pool, before the members (P1 section 5, Tab 5)."""

    enabled: Annotated[bool, InIdentity.OF_RUN] = False
    """Whether a run does it."""
    steps: Count = 50_000
    """Optimizer steps (P1 Tab 5)."""
    learning_rate: Positive = 5e-5
    """Peak learning rate of AdamW (P1 Tab 5)."""
    warmup_steps: Annotated[int, Field(ge=0, le=10**9)] = 0
    """Steps of linear warm-up before the decay to 0."""
    weight_decay: NonNegative = 0.0
    """Not applied to biases and norm weights (P1 Tab 5)."""
    length: Annotated[int, Field(ge=8, le=10**6)] = 256
    """Tokens of a block (P1 Tab 5)."""
    blocks: Count = 12
    """Blocks per micro-batch (P1 Tab 5: 2 on each of 3 GPUs, accumulated twice)."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Share of the pool that is not trained on, but measured on; chosen by its text."""


class RuntimeSettings(Section):
    """Where and how fast: changes no result beyond rounding, so it is part of no identity.

    All but `precision`: the one asked for enters the identity of what is trained with it; `auto` is one value there,
    whatever it comes to on the device at hand (the manifest says).
    """

    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps`."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of matrix products; `auto`: bf16 on a GPU or CPU made for it, else fp32; weights stay fp32."""
    capture: bool = True
    """On a GPU, run each training step as one captured CUDA graph."""
    compile: bool | None = None
    """On a GPU, fuse what lies between a layer's matrix products (torch.compile: half a minute at the start); default:
    for models of 100 million parameters and more."""
    keep_members: bool = True
    """Keep the weights of members that are models of their own, which nothing after their scores needs: 1.4 GB each of
    RoBERTa-large; `pet table` keeps none."""
    executor: Literal["local", "ray"] = "local"
    """Who makes members, students and baselines: this process, or tasks of a Ray cluster."""
    task_gpus: Annotated[float, Field(ge=0, le=8)] | None = None
    """GPUs of a Ray task, parts of one allowed; default: 1 if the cluster has any, else none."""
    checkpoint_minutes: NonNegative = 5.0
    """Minutes of a training between two checkpoints, 0: after every step; more where it would take over 2 % of the time
    (docs/explanation/reliability.md)."""
    batch_tokens: Annotated[int, Field(ge=64, le=10**9)] | None = None
    """Tokens per batch when scoring, padding counted; default: 131,072 on a GPU, 2,048 on a CPU."""


class Settings(Section):
    """Everything that describes one run."""

    recipe: Literal["fixed", "paper"] = "fixed"
    """`fixed`: as the paper says; `paper`: nearer to its code."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of the draw and of every training."""
    task: TaskSettings = TaskSettings()
    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    adapt: AdaptSettings = AdaptSettings()
    finetune: FinetuneSettings = FinetuneSettings()
    label: LabelSettings = LabelSettings()
    ipet: IpetSettings = IpetSettings()
    distill: DistillSettings = DistillSettings()
    baseline: BaselineSettings = BaselineSettings()
    table: Annotated[TableSettings, InIdentity.NEVER] = TableSettings()
    runtime: Annotated[RuntimeSettings, InIdentity.NEVER] = RuntimeSettings()


class Pretraining(Section):
    """Everything that describes one masked-language-model training."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of the order of the blocks and what is masked."""
    model: ModelSettings = ModelSettings()
    corpus: CorpusSettings = CorpusSettings()
    pretrain: PretrainSettings = PretrainSettings()
    runtime: Annotated[RuntimeSettings, InIdentity.NEVER] = RuntimeSettings()
