"""Recipes: named sets of settings laid under everything else."""

from typing import Any

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
"""What each recipe changes: batch sizes of P1 Tab 5, and three ways of the published code
(docs/explanation/paper-recipe.md)."""
