"""What an artifact is, as one digest. Knows no files."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pet.store.files import digest_json

IDENTITY_LENGTH = 16
"""Hex digits of an identity: 64 bits, so even a million artifacts of one stage collide with probability 3e-8."""


@dataclass(frozen=True)
class Key:
    """What an artifact is: enough to compute its identity.

    `version`: raised by hand in the stage's file when its code changes the meaning of its output.
    `settings`: JSON values that change the result, and only those. `inputs`: name -> identity of an artifact.
    """

    stage: str
    version: int
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]

    @property
    def identity(self) -> str:
        """Digest of the canonical JSON of all four."""
        content = {"stage": self.stage, "version": self.version, "settings": self.settings, "inputs": dict(self.inputs)}
        return digest_json(content)[:IDENTITY_LENGTH]
