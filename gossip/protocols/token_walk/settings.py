"""Options of the token walk, with what each one buys and costs."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from gossip.decentralized.topology import Kind

Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]
Exponent = Annotated[float, msgspec.Meta(gt=0.5, le=1)]


class TokenWalkSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of the self-repellent random walk."""

    graph: Kind = "small-world"
    """Along whose edges the token goes. All nodes derive it from the run's id and the list of its members."""
    degree: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 4
    """Neighbours of each node ("random-regular", there at least 2; "small-world"), or links that a new node brings ("barabasi-albert")."""
    alpha: Annotated[float, msgspec.Meta(ge=0, le=100)] = 5.0
    """How strongly the token shuns nodes that it has visited much; 0 is a plain Metropolis-Hastings walk. More helps on graphs that mix slowly, and does little on expanders."""
    visit_exponent: Exponent = 0.8
    """a: visit n counts (n + 1)^-a. Below step_exponent the variance falls with 1/alpha^2, at it with 1/alpha."""
    step_exponent: Exponent = 0.9
    """b: step n goes learning_rate (n + 1)^-b down the gradient."""
    learning_rate: Annotated[float, msgspec.Meta(gt=0, le=1000)] = 1.0
    """Factor of all steps."""
    local: Literal["gradient", "task"] = "gradient"
    """What a visit does: one gradient step (what the theory is about), or a leg with the task's own optimizer, of which the share learning_rate (n + 1)^-b (at most 1) is taken over. Its moments stay at the node."""
    clip: Annotated[float, msgspec.Meta(ge=1, le=1e100)] = 1e6
    """The most by which a node that was hardly visited may be preferred."""
    visit_timeout: Seconds = 2.0
    """Seconds for the neighbours' answers before a hop; who has not answered is not gone to."""
    ack_timeout: Seconds = 3.0
    """Seconds for the receipt of the token; it is sent three times before its sender asks everybody where it is."""
    lease: Seconds = 15.0
    """Seconds without a sign of life of the token's holder after which the one before it asks everybody. Less finds a lost token sooner, and takes a slow holder for a dead one."""
    silence: Seconds = 60.0
    """Seconds without any news of the token after which other nodes ask, one after the other. For when holder and predecessor are lost together."""
    ask_timeout: Seconds = 2.0
    """Seconds for everybody's answers to that question."""
