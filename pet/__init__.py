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
    """A finished run's classifier, to be asked with `predict`:

        pet.load("last").predict(["Shares fall as oil prices rise"])[0].label

    `run`: its folder, its name, the beginning of its identity, or `last`; `store`: where runs given otherwise than by
    folder lie; `device`: auto, cpu, cuda, cuda:1, mps.

    Raises:
        PetError: no such run, classifier or device; an artifact or a model is missing or damaged.
    """
    from pet.tools.inference.predictor import load as load_run

    return load_run(run, store, classifier, device)
