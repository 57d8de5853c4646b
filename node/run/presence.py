"""What this node says about itself in the run's shared document, and keeps saying while it takes part."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Final

from crdt.record import CheckpointInfo, MemberInfo, Metrics, Progress
from crdt.state import RunState
from gossip.replication import Replication
from node.run.figures import Figures
from transport.identity import NodeId

__all__ = ["Presence"]

MAX_ADDRESSES: Final = 16
"""In the roster."""


class Presence:
    """This node's fields of the document: member, progress, metrics, checkpoint.

    Args:
        state: the replica.
        replication: tells the others.
        name: what people call this node.
        site: at which site it is; "" for none.
        advertised: the addresses to state, as they are now.
    """

    def __init__(
        self,
        state: RunState,
        replication: Replication,
        *,
        name: str,
        site: str = "",
        advertised: Callable[[], tuple[str, ...]],
    ) -> None:
        self.state = state
        self._replication = replication
        self._name = name
        self._site = site
        self._advertised = advertised
        self._told: tuple[str, ...] = ()
        self.model = b""
        """Of the trainer that is, or was last, attached."""

    @property
    def advertised(self) -> tuple[str, ...]:
        """Where this node can be reached, as it is now."""
        return self._advertised()

    def announce(self, model: bytes) -> None:
        """State that this node takes part, at its addresses of now, with this model (b"" before there is one)."""
        self.model, self._told = model, self.advertised
        self.state.set_member(
            MemberInfo(
                name=self._name,
                addresses=self._told[:MAX_ADDRESSES],
                status="active",
                model=model,
            )
        )
        if self._site:
            self.state.set_site(self._site)
        self._replication.notify()

    def site_of(self, node: NodeId) -> str:
        """The site that a member named; "" for none."""
        return self.state.sites().get(bytes(node), "")

    def tend(self) -> None:
        """Renew leases, and state the addresses anew where they have changed."""
        if self.advertised != self._told:
            self.announce(self.model)
        self.state.tend()
        self._replication.notify()

    def progress(self, figures: Figures) -> None:
        """State where this node's training stands."""
        self.state.set_progress(
            Progress(
                round=figures.round,
                step=figures.step,
                loss=figures.loss,
                tokens=figures.tokens,
                tokens_per_s=figures.tokens_per_s,
                state_sha256=figures.state,
            )
        )
        further = ("val_loss", "accuracy", "round_seconds")
        known = [(n, v) for n in further if (v := getattr(figures, n)) is not None]
        self.state.set_metrics(Metrics(known))
        self._replication.notify()

    def checkpoint(self, *, step: int, round_: int, sha256: bytes) -> None:
        """State that this node holds a checkpoint."""
        self.state.set_checkpoint(
            CheckpointInfo(step=step, round=round_, sha256=sha256, holder=self.state.node)
        )
        self._replication.notify()

    def leave(self, reason: str) -> None:
        """State that this node has left."""
        self.state.leave(reason)
        self._replication.notify()

    def notify(self) -> None:
        """Let what was stated otherwise travel to the others."""
        self._replication.notify()

    async def flush(self) -> None:
        """Wait until the connected members have all of it; bound it with a deadline."""
        await self._replication.flush()

    def roster(self) -> list[tuple[NodeId, tuple[str, ...]]]:
        """The members that take part, with where they say they are; those the creator revoked are left out."""
        revoked = self.state.revoked()
        return [
            (NodeId(node), member.addresses)
            for node, member in self.state.members().items()
            if member.status == "active" and node not in revoked
        ]

    def other_models(self, among: Container[NodeId]) -> tuple[int, int]:
        """Of the other members `among` these: how many train another model than this node, and how many train one.

        Only equal models are averaged: in a run with two of them each part trains for itself.
        """
        models = [
            member.model
            for node, member in self.state.members().items()
            if node != self.state.node and member.model and NodeId(node) in among
        ]
        differ = sum(model != self.model for model in models) if self.model else 0
        return differ, len(models)
