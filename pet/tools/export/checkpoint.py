"""A run's student as a folder for programs that have no pet: a transformers checkpoint, or an ONNX model; each with
tokenizer and model card. What is written is asked before it is published. Trains nothing; the card is `model_card`'s.

Shapes: B rows, T tokens (padded), L labels.
"""

import importlib.util
import inspect
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax

from pet.config.schema import ModelSettings
from pet.errors import ModelError, NotFinite, StoreError
from pet.modeling import loading, quiet
from pet.pipeline import drawn_texts
from pet.pipeline.runs import Run
from pet.pipeline.score_files import read_scores
from pet.store.files import write_folder
from pet.tasks.texts import Texts, concatenate, read_texts
from pet.tools.export.model_card import model_card

Format = Literal["hf", "onnx"]
Inputs = Mapping[str, torch.Tensor]
Ask = Callable[[Inputs], NDArray[np.float32]]
"""Inputs [B, T] by name -> logits [B, L]."""

CHECKED = 32
"""Test texts, from the shortest to the longest, that what is written is asked about; and texts of the larger batch."""

MOST = 1e-4
"""How far a probability of onnxruntime may be from torch's. Measured: at most 2e-6, over the families of
tests/support/tiny.py."""

TIMED, SECONDS = 11, 10.0
"""Runs of one timing, and the time after which no further one begins."""

ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")


def export(run: Run, out: Path, form: Format) -> list[str]:
    """Write the student of `run` into the new or empty folder `out`; returns what was found out about it, in sentences.

    Raises:
        StoreError: `out` has something in it, lies in the store or cannot be written; or the store is damaged.
        ModelError: the student cannot be loaded; of ONNX: packages are missing, its family cannot be exported, or
            onnxruntime gives other probabilities than torch.
        NotFinite: a logit is NaN or infinite.
    """
    if form == "onnx":
        need_packages()
    if out.resolve().is_relative_to(run.store.root.resolve()):
        raise StoreError(f"{out} lies in the store {run.store.root}, which pet alone writes; name a folder elsewhere")
    checkpoint = run.student.file("student")
    texts, scores = sample(run)
    with write_folder(out) as draft, quiet.quiet_transformers(), quiet.os_errors():
        student = load(run, checkpoint)
        tokenizer = prepare_tokenizer(run)
        tokenizer.save_pretrained(draft)
        inputs = encode(tokenizer, texts, student)
        temperature = run.temperature_of("student") or 1.0
        fold_temperature(student, temperature, inputs)
        scores = scores / temperature
        if form == "hf":
            student.save_pretrained(draft)
            found = [compare_to_run(run, answers(load(run, draft), inputs), scores)]
        else:
            student.config.save_pretrained(draft)
            many = fill_up(run, texts)
            ask = write_onnx(student, encode(tokenizer, many.take(spread(len(many), 3)), student), draft / "model.onnx")
            found = [
                compare_to_run(run, ask(inputs), scores),
                compare_to_torch(student, tokenizer, many, ask),
                *timings(student, tokenizer, many, ask),
            ]
        card = model_card(run, form, list(texts.fields), list(inputs), "\n\n".join(found))
        (draft / "README.md").write_text(card, encoding="utf-8")
    problem = run.problem_of("student")
    return [*found, *([f"The probabilities are raw (temperature 1): {problem}."] if problem else [])]


# ---- the student and the texts it is asked about -------------------------------------------------------------------


def settings_of(run: Run, folder: Path) -> ModelSettings:
    """What a folder with the run's student is loaded by."""
    return ModelSettings(name=str(folder), max_length=run.student.manifest["settings"]["model"]["max_length"])


def load(run: Run, folder: Path) -> Any:
    """The student in a folder, in fp32, as transformers itself computes it.

    Raises:
        ModelError: it is missing or damaged.
    """
    return loading.load_classifier(settings_of(run, folder), run.labels).eval()


def prepare_tokenizer(run: Run) -> Any:
    """The student's tokenizer, told to read as pet does: not more than the run's max_length, and what looks like a
    special token in a text as characters."""
    settings = settings_of(run, run.student.file("student"))
    tokenizer = loading.load_tokenizer(settings)
    tokenizer.model_max_length = settings.max_length
    tokenizer.split_special_tokens = True
    tokenizer.init_kwargs |= {"model_max_length": settings.max_length, "split_special_tokens": True}
    tokenizer.init_kwargs.pop("max_length", None)  # of whoever saved the base model; nothing reads it
    return tokenizer


def spread(total: int, count: int) -> list[int]:
    """`count` numbers from 0 to `total` - 1, evenly spread; some twice if there are fewer."""
    return [int(one) for one in np.linspace(0, total - 1, count).round()]


def sample(run: Run) -> tuple[Texts, NDArray[np.float32]]:
    """At most CHECKED test texts, from the shortest to the longest, and the student's scores of them [B, L]."""
    texts, scores = read_texts(run.prepared.file("test.parquet")), read_scores(run.student)["test"]
    order = sorted(range(len(texts)), key=lambda row: len(texts.joined(row)))
    rows = [order[place] for place in spread(len(order), min(CHECKED, len(order)))]
    return texts.take(rows), scores[rows]


def fill_up(run: Run, texts: Texts) -> Texts:
    """CHECKED texts where the test set has fewer: those of the pool after them."""
    pool = drawn_texts.load(run.prepared).pool
    more = spread(len(pool), min(len(pool), CHECKED - len(texts))) if len(texts) < CHECKED else []
    return concatenate([texts, pool.take(more)]) if more else texts


def encode(tokenizer: Any, texts: Texts, model: Any) -> dict[str, torch.Tensor]:
    """Texts as the model card says they are to be given; only what the model takes."""
    first, *rest = [[text.strip() for text in column] for column in texts.fields.values()]
    pair = [[" ".join([head, *filter(None, tail)]) for head, *tail in zip(*rest, strict=True)]] if rest else []
    found = tokenizer(first, *pair, truncation=True, padding=True, return_tensors="pt")
    known = inspect.signature(model.forward).parameters
    return {name: found[name] for name in tokenizer.model_input_names if name in found and name in known}


def fold_temperature(model: Any, temperature: float, inputs: Inputs) -> None:
    """Divide the last linear map by the temperature of the run's calibration, so that the softmax of the logits is what
    `pet predict` says; `inputs`: some, to see that it did.

    Raises:
        ModelError: the model's logits do not come from a last linear map of its own.
    """
    before = answers(model, inputs)
    labels = model.config.num_labels
    heads = [one for one in model.modules() if isinstance(one, torch.nn.Linear) and one.out_features == labels]
    with torch.no_grad():
        for weights in heads[-1].parameters() if heads else ():
            weights.div_(temperature)
    if not np.allclose(temperature * answers(model, inputs), before, rtol=1e-4, atol=1e-4):
        raise ModelError(
            f"the temperature {temperature:g} cannot be put into a {model.config.model_type} classifier, whose logits "
            "do not come from a last linear map; use `pet predict`"
        )


def answers(model: Any, inputs: Inputs) -> NDArray[np.float32]:
    """Logits [B, L] of torch.

    Raises:
        NotFinite: one is NaN or infinite.
    """
    with torch.inference_mode():
        return check_logits("torch", np.asarray(model(**inputs).logits.numpy()))


def check_logits(who: str, found: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits [B, L] that are numbers; `who` computed them.

    Raises:
        NotFinite: one is NaN or infinite.
    """
    wrong = ~np.isfinite(found)
    if wrong.any():
        raise NotFinite(
            f"a logit that {who} computes of the student is {found[wrong][0]}; nothing was written, export another run"
        )
    return found


def distance(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """The largest difference between probabilities of two sets of logits [B, L]; infinite where one is no number."""
    worst = float(np.abs(softmax(found, axis=-1) - softmax(expected, axis=-1)).max())
    return worst if np.isfinite(worst) else float("inf")


def compare_to_run(run: Run, found: NDArray[np.float32], expected: NDArray[np.float32]) -> str:
    """How these logits [B, L] come out beside the run's own of the same texts. No bound: a run may have computed in
    bf16, or have been made by a pet that cut long pairs elsewhere; the numbers say so."""
    same = int((found.argmax(-1) == expected.argmax(-1)).sum())
    precision = run.student.manifest.get("precision", "unknown precision")
    return (
        f"Checked on {len(found)} test texts from the shortest to the longest, on a CPU in fp32: {same} get the label "
        f"that they got in the run, and a probability differs by {distance(found, expected):.0e} at most (the run "
        f"computed in {precision})."
    )


# ---- ONNX ----------------------------------------------------------------------------------------------------------


def need_packages() -> None:
    """Refuse to begin without the packages that ONNX needs.

    Raises:
        ModelError: names those that are not installed.
    """
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelError(
            f"an export to ONNX needs {', '.join(missing)}, not installed here; run: pip install "
            f"{' '.join(missing)}, or use --format hf"
        )


def write_onnx(model: Any, inputs: Inputs, path: Path) -> Ask:
    """Write the model as ONNX, batch and sequence of any size, and open it with onnxruntime on as many threads as torch
    has. `inputs`: of three rows, to follow it with.

    Raises:
        ModelError: torch cannot export this family.
    """
    import onnxruntime

    batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence")
    with quiet.silenced("torch.onnx"):  # it names packages that it could have used
        try:
            program = torch.onnx.export(
                model,
                kwargs=dict(inputs),
                input_names=list(inputs),
                output_names=["logits"],
                dynamic_shapes={name: {0: batch, 1: sequence} for name in inputs},
                dynamo=True,
                verbose=False,
            )
        except Exception as problem:  # whatever torch, onnxscript or the model's own code raises on the way
            reason = " ".join(str(problem.__cause__ or problem).split())[:200]
            raise ModelError(
                f"torch {torch.__version__} cannot export a {model.config.model_type} classifier to ONNX ({reason}); "
                "use --format hf"
            ) from None
        assert program is not None, "of dynamo=True"
        program.save(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def ask(given: Inputs) -> NDArray[np.float32]:
        found = session.run(["logits"], {name: one.numpy() for name, one in given.items()})[0]
        return check_logits("onnxruntime", np.asarray(found))

    return ask


def compare_to_torch(model: Any, tokenizer: Any, texts: Texts, ask: Ask) -> str:
    """Ask both about batches of one text, of a few of very different lengths, and of all.

    Raises:
        ModelError: a probability differs by MOST or more.
    """
    count, worst = len(texts), 0.0
    for rows in ([0], [count // 2], [count - 1], range(0, count, 8), range(0, count, 5), range(count)):
        inputs = encode(tokenizer, texts.take(rows), model)
        worst = max(worst, distance(ask(inputs), answers(model, inputs)))
    if worst >= MOST:
        raise ModelError(
            f"onnxruntime gives a probability that is {worst:.0e} away from torch's, {MOST:.0e} is allowed; nothing "
            "was written, use --format hf"
        )
    return (
        f"Onnxruntime beside torch, on batches of 1 to {count} test and pool texts: a probability differs by "
        f"{worst:.0e} at most."
    )


def timings(model: Any, tokenizer: Any, texts: Texts, ask: Ask) -> list[str]:
    """How long both take for one text of middling length, and for CHECKED ones from the shortest to the longest."""
    found = []
    for rows in ([len(texts) // 2], spread(len(texts), CHECKED)):
        inputs = encode(tokenizer, texts.take(rows), model)
        shape = tuple(inputs["input_ids"].shape)
        torch_ms, onnx_ms = (1000 * time_one(one, inputs) for one in (lambda given: answers(model, given), ask))
        found.append(
            f"Batch of {shape[0]}, {shape[1]} tokens wide: torch {torch_ms:.1f} ms, onnxruntime {onnx_ms:.1f} ms "
            f"(CPU, {torch.get_num_threads()} thread(s); median of {TIMED} runs, fewer if they take {SECONDS:.0f} s)."
        )
    return found


def time_one(ask: Ask, inputs: Inputs) -> float:
    """Seconds of one answer: the median, the first one left out."""
    ask(inputs)
    seconds: list[float] = []
    while len(seconds) < TIMED and sum(seconds) < SECONDS:
        start = time.perf_counter()
        ask(inputs)
        seconds.append(time.perf_counter() - start)
    return median(seconds)
