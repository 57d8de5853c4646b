"""This node as a member of a run with a protocol of certified collectives.

Order of opening: shared document, group of the collective, trainer socket, hand-over; then rounds. A trainer
that goes away takes this node out of the epoch, not out of the run: the next one to attach resumes from the
newest checkpoint and is brought up to date by the others.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from gossip.collective.agreement.epoch_events import EpochSettings
from gossip.collective.group import Group, open_group
from gossip.collective.state.handover import Handover, HeldState, open_handover
from gossip.protocol import load_protocol
from gossip.rounds import TrainerGone, run_rounds
from node.run.collectives import open_collectives
from node.run.epoch_file import EpochFile
from node.run.journal import Journal
from node.run.measured import Measured
from node.run.presence import Presence
from node.run.stragglers import Stragglers
from node.run.taking_part import (
    Surroundings,
    TakingPart,
    open_journal,
    open_running,
    worker_options,
)
from node.run.trainer import Trainers, open_trainers
from node.run.trainer_link import TrainerLink

__all__ = ["Participation", "open_participation"]

_log = logging.getLogger(__name__)


class Participation(TakingPart[TrainerLink]):
    """A node taking part in rounds; made by `open_participation`."""

    def __init__(
        self,
        around: Surroundings,
        presence: Presence,
        journal: Journal,
        trainers: Trainers[TrainerLink],
        group: Group,
    ) -> None:
        super().__init__(around, presence, journal, trainers)
        self.group: Group = group
        self.handover: Handover
        """Set when it is open; it asks this object for what it hands over."""
        self._stragglers = Stragglers(group, trainers, journal.figures)
        self._protocol = load_protocol(self.manifest.protocol)
        self._averager = self._protocol.averager(self.manifest.protocol_settings)
        self._link: TrainerLink | None = None  # the one that attached last
        self._measured = Measured(group.rhythm, presence.state, presence.notify)
        group.on_waiting = self._stragglers.members_wait
        group.on_measured = self._measured.measured

    def held(self) -> HeldState | None:
        """The consensus state that can be handed over now; that of a trainer that has finished, too."""
        link = self._link
        if link is None or link.position is None:
            return None
        vectors = [link.views[name] for name in self._averager.consensus]
        return HeldState(link.position.round, link.position.state, vectors)

    async def train(self, nonce: Callable[[], bytes]) -> None:
        """See `TakingPart.train`."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._stragglers.watch)
            nursery.start_soon(self.watch_useless)
            while True:
                self._link = link = await self.trainers.next_link()
                self.group.machine.model = link.attach.model
                self.presence.announce(link.attach.model)
                attached = trio.CancelScope()
                nursery.start_soon(_cancel_when_gone, link, attached)
                with attached:
                    await self._rounds(link, nonce)
                await link.gone.wait()
                if link.finished and not attached.cancelled_caught:
                    break
                _log.warning("no trainer now: %s", link.error or "it closed the connection")
                self._on_phase("joining")
            nursery.cancel_scope.cancel()

    async def _rounds(self, link: TrainerLink, nonce: Callable[[], bytes]) -> None:
        settings = self._protocol.parse_settings(self.manifest.protocol_settings)
        try:
            await run_rounds(
                self.group,
                self.handover,
                self._protocol(settings),
                self._averager,
                link,
                nonce=nonce,
                on_phase=self._on_phase,
                on_round=self._journal.on_round,
                on_synced=self._journal.on_synced,
            )
        except TrainerGone as error:
            link.detach(str(error))

    def _on_phase(self, phase: str) -> None:
        if phase == "waiting":
            self._stragglers.done()
        self._journal.on_phase(phase)

    def tend(self) -> None:
        """See `TakingPart.tend`."""
        super().tend()
        self._measured.exchange(trio.current_time())
        self.group.rearrange()

    async def say_goodbye(self) -> None:
        """See `TakingPart.say_goodbye`."""
        await self.group.leave()


async def _cancel_when_gone(link: TrainerLink, attached: trio.CancelScope) -> None:
    """Nothing waits for others on behalf of a trainer that is not there any more."""
    await link.gone.wait()
    if not link.finished:
        attached.cancel()


@asynccontextmanager
async def open_participation(around: Surroundings) -> AsyncIterator[Participation]:
    """Join a run whose manifest is here, and be in it for as long as the context is open.

    Raises:
        GossipError: the manifest's protocol or its settings cannot be used here.
        NodedError: another daemon serves the trainer socket.
    """
    endpoint, manifest = around.endpoint, around.manifest
    epochs = EpochFile(around.directory / "epochs")
    averager = load_protocol(manifest.protocol).averager(manifest.protocol_settings)
    async with (
        open_journal(around) as (presence, journal),
        open_group(
            endpoint,
            manifest.hash,
            settings=EpochSettings(quorum=manifest.quorum, min_members=manifest.min_members),
            rng=around.rng,
            memory=epochs.load(),
            remember=epochs.store,
            site=presence.site_of,
            probing=True,
        ) as group,
        open_trainers(
            manifest,
            around.config.paths.trainer_socket,
            vectors=averager.vectors,
            link=TrainerLink,
            node=str(endpoint.node_id),
            checkpoints=around.saves.folder,
            newest_checkpoint=lambda: around.saves.newest_path,
            on_note=journal.on_note,
            supervised=worker_options(around),
            log_file=around.log_file,
        ) as trainers,
    ):
        part = Participation(around, presence, journal, trainers, group)
        async with (
            open_handover(endpoint, manifest.hash, part.held) as part.handover,
            open_collectives(
                endpoint,
                group,
                run=manifest.name,
                trainer_socket=around.config.paths.trainer_socket,
                random_bytes=os.urandom,
                trainer_attached=lambda: trainers.current is not None,
            ),
            open_running(around, part, journal),
        ):
            yield part
