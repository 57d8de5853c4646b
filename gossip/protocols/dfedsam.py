"""DFedSAM and DFedSAM-MGS: D-PSGD whose local steps look for flat minima, with several gossip steps in a round.

Local training with sharpness-aware gradients (taken at `x + rho g / |g|`, two passes over each batch) makes the models of nodes
with different data agree better when they are averaged. With `gossip_steps` = Q > 1, "multiple gossip steps", the models are
exchanged and mixed Q times in a row: a round contracts disagreement by the Q-th power of the graph's eigenvalue, and
costs Q times the bytes.

Source: Y. Shi et al., "Improving the Model Consistency of Decentralized Federated Learning" (2023, arXiv 2302.04083). Decay of
the learning rate and momentum belong to the task's optimizer; `rho` = 0 is its plain step, bit for bit.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from gossip.decentralized.protocol import TASK_RULE, Context, LocalRule
from gossip.protocols.dpsgd import DPSGD, DPSGDSettings


class DFedSAMSettings(DPSGDSettings, frozen=True, forbid_unknown_fields=True):
    """Options of DFedSAM, beside those of D-PSGD."""

    rho: Annotated[float, msgspec.Meta(ge=0, le=10)] = 0.05
    """How far a sharpness-aware gradient looks, as a distance over all parameters; 0: no second pass."""
    gossip_steps: Annotated[int, msgspec.Meta(ge=1, le=100)] = 1
    """Exchanges of models in each round; more than 1 is DFedSAM-MGS, for so many times the bytes."""


class DFedSAM(DPSGD):
    """D-PSGD with sharpness-aware local steps and Q exchanges in each round."""

    name = "dfedsam"
    Settings = DFedSAMSettings
    settings: DFedSAMSettings

    def __init__(self, settings: msgspec.Struct, context: Context) -> None:
        super().__init__(settings, context)
        self.exchanges = self.settings.gossip_steps

    def rule(self) -> LocalRule:
        """Sharpness-aware, unless rho is 0."""
        return LocalRule("sam", self.settings.rho) if self.settings.rho else TASK_RULE
