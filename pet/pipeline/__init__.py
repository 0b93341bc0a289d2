"""Runs: the stages, the order in which they are made, where they are made, and what is logged about them."""
