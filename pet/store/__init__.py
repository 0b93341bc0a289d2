"""Artifacts on disk: keys, locks, drafts, manifests. Knows no task and no model."""
