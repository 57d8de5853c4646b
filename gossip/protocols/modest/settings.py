"""Options of MoDeST, with what each one buys and costs."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

OneLineMixing = Literal["mean", "median", "trimmed-mean"]
"""Of `gossip.decentralized.mixing.rules.Mixing`, what makes sense where there is one line of models."""
Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]


class MoDeSTSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of MoDeST."""

    sample_size: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 10
    """Trainers of a round (s). More learn from more data in each round, and cost two models each."""
    aggregators: Annotated[int, msgspec.Meta(ge=1, le=33)] = 1
    """Aggregators of a round (a). 2 survive the loss of one without a pause; from 3 on trainers take the median of what they send, so that (a - 1) // 2 may lie. Each costs 2 s models a round."""
    success_fraction: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.8
    """Share of a round's trainers whose models have to be there before they are averaged. 1 makes all aggregators' models equal, and waits for the slowest."""
    ping_timeout: Seconds = 5.0
    """Seconds for the answer to a ping; then the next candidate is asked. More than the slowest round trip."""
    ping_resend: Seconds = 1.0
    """Seconds after which a ping is repeated once."""
    inactivity_window: Annotated[int, msgspec.Meta(ge=2, le=1_000_000)] = 50
    """Rounds after which a node that was not heard of is no candidate any more. Less forgets the dead sooner; more bears longer silence."""
    readvertise: bool = True
    """Nodes that no round has drawn for half of that window say that they are there. Without it they are forgotten for good, unless the window is 10 n / s rounds or more."""
    aggregation_timeout: Seconds = 60.0
    """Seconds from a round's first trained model until those that are there are averaged. More than the time between the fastest and the slowest trainer."""
    aggregation_floor: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 3
    """No fewer models than this are averaged at that time, if so many nodes are reachable."""
    mixing: OneLineMixing = "mean"
    """How an aggregator combines its round's models: "mean", or "median" or "trimmed-mean", which bear trainers that lie."""
    trim: Annotated[int, msgspec.Meta(ge=1, le=500)] | None = None
    """With "trimmed-mean": how many liars among a round's trainers are to be borne; 1 unless given."""
    vote_timeout: Seconds = 5.0
    """Seconds that a trainer waits for all aggregators, where a majority of them has answered with unequal models ("aggregators" >= 3)."""
    stall_timeout: Seconds = 30.0
    """Seconds without any news after which a round is offered again, by those who hold its models; doubled each time. What it takes to go on when all aggregators of a round were lost."""
