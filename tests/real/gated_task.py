"""The byte-gpt, which trains no further than a file says: tests stop it where they want it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import ClassVar

import msgspec

from node.tasks.byte_gpt import ByteGPT
from node.tasks.settings import ByteGPTSettings


class GatedSettings(ByteGPTSettings, frozen=True, forbid_unknown_fields=True):
    gate: str = ""
    """Path of the file with the first step not to be taken."""


class Gated(ByteGPT):
    name: ClassVar[str] = "gated"
    Settings: ClassVar[type[msgspec.Struct]] = GatedSettings
    parsed: GatedSettings

    def learning_rate(self, step: int) -> float:
        while step >= int(Path(self.parsed.gate).read_text()):
            time.sleep(0.01)  # in a C call or not: a trainer that does not listen
        return super().learning_rate(step)
