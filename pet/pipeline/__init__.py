"""Runs: the stages, the order in which they are made, where they are made, and what is logged about them."""

STEPS = ("prepare", "adapt", "finetune", "label", "distill", "evaluate")
"""What --stage can name, in order: the steps of `pet run`'s graph. They are here because --help must not load it."""
