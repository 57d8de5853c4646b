"""Parameter averaging (local SGD): after every round all members continue from the mean.

Stich 2019 (arXiv 1805.09767). It is DiLoCo with outer learning rate 1 and no momentum, computed
through the same pseudo-gradient: members receive the mean *change*, which loses less precision
than a mean of parameters, and the all-reduce, its certificate and its tests are shared.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec
import numpy as np

from gossip.protocol import Averager, Views
from gossip.protocols.diloco import MeanOncePerRound, Wire


class MeanOfParameters(Averager):
    """Trainer side: move the consensus parameters by the mean change."""

    vectors: ClassVar[tuple[str, ...]] = ("params", "theta", "delta", "reduced")
    consensus: ClassVar[tuple[str, ...]] = ("theta",)

    def start(self, views: Views) -> None:
        """Consensus parameters are the initial ones."""
        np.copyto(views["theta"], views["params"])

    def resume(self, views: Views) -> None:
        """Continue from loaded consensus parameters."""
        np.copyto(views["params"], views["theta"])

    def contribute(self, views: Views) -> None:
        """Write `theta - params` into `delta`."""
        np.subtract(views["theta"], views["params"], out=views["delta"])

    def apply(self, views: Views, *, members: int, weight: float, alone: bool) -> None:
        """Subtract the mean change, or keep the local parameters when alone."""
        del members, weight
        if alone:
            np.copyto(views["theta"], views["params"])
            return
        np.subtract(views["theta"], views["reduced"], out=views["theta"])
        np.copyto(views["params"], views["theta"])


class ParameterAveraging(MeanOncePerRound):
    """Plain averaging of parameters once per round."""

    name = "averaging"

    class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """`[run.protocol_settings]` of parameter averaging."""

        wire: Wire = "exact"
        """How changes travel, as for diloco: bf16, fp16, int8, int4 or e3m0 instead of the values as they are."""

    @classmethod
    def averager(cls, settings: Mapping[str, Any]) -> Averager:
        """The averager, for which there is nothing to set."""
        cls.parse_settings(settings)
        return MeanOfParameters()
