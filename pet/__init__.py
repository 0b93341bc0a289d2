"""Pattern-Exploiting Training. `pet.load` opens a finished run from Python; the rest is the command line's.

Importing this imports nothing else: torch and its like come with the first call.
"""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pathlib import Path

    from pet.tools.inference.predictor import Predictor


def load(
    run: "str | Path",
    store: "str | Path" = "runs",
    *,
    classifier: Literal["student", "ensemble"] = "student",
    device: str = "auto",
) -> "Predictor":
    """Load the classifier of a finished run.

    Args:
        run: The run's folder, its name, the beginning of its identity, or `last` for the newest.
        store: Where to look for a run that is not given by its folder.
        classifier: The student, or the ensemble whose soft labels it was trained on.
        device: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`.

    Returns:
        A classifier whose `predict` labels texts, as in `pet.load("last").predict(["Shares fall"])[0].label`.

    Raises:
        PetError: There is no such run, classifier or device, or an artifact or a model is missing or damaged.
    """
    from pet.tools.inference.predictor import load as load_run

    return load_run(run, store, classifier, device)
