"""Scores and losses that are NaN or infinite: the sentence that says whose they are and what to look at. Whoever has
the numbers on the host checks them.
"""

from dataclasses import dataclass

from pet.errors import NotFinite


@dataclass(frozen=True)
class Origin:
    """Where a model's numbers come from. `model`: the name of its weights, or of those that its training began with;
    `setting`, `rate`: name and value of the learning rate that it is trained with, `None`: it is as it was loaded;
    `remedy`: what to do about a model that was loaded."""

    model: str = "the model"
    setting: str | None = None
    rate: float = 0.0
    remedy: str = "give another model"

    def bad_loss(self, name: str, value: float, step: int, steps: int, low: bool) -> NotFinite:
        """The error of a training. `name`: whose loss it is; `step`: the first one, of `steps`; `low`: computed in
        bf16."""
        stage, dot, _ = (self.setting or "").partition(".")
        whose = f"{stage} {name}" if dot and name != stage else name
        if step == 1:  # the learning rate has changed nothing yet
            return NotFinite(f"{whose}: the loss is {value} in step 1, before any training; {self._blame_weights(low)}")
        return NotFinite(f"{whose}: the loss became {value} in step {step:,} of {steps:,}; {self._blame_rate(low)}")

    def bad_score(self, name: str, what: str, value: float, low: bool) -> NotFinite:
        """The error of a scoring. `name`: whose it is; `what`: which score; `low`: computed in bf16."""
        blame = self._blame_weights(low) if self.setting is None else f"after training, {self._blame_rate(low)}"
        return NotFinite(f"{name}: {what} is {value}; {blame}")

    def _blame_rate(self, low: bool) -> str:
        return f"{self.setting} is {self.rate:g}: lower it{', or set runtime.precision to fp32' if low else ''}"

    def _blame_weights(self, low: bool) -> str:
        large, fp32 = (", or too large for bf16", ", or set runtime.precision to fp32") if low else ("", "")
        return f"the weights of {self.model!r} are damaged{large}: {self.remedy}{fp32}"
