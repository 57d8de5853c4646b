"""This node as a member of one run: made when everything that takes is open, so nothing in it is ever missing.

Order of opening: shared document, group of the collective, trainer socket, hand-over; then rounds. A trainer
that goes away takes this node out of the epoch, not out of the run: the next one to attach resumes from the
newest checkpoint and is brought up to date by the others.
"""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio

from gossip.collective.epoch_events import EpochSettings
from gossip.collective.group import Group, open_group
from gossip.collective.handover import Handover, HeldState, open_handover
from gossip.protocol import load_protocol
from gossip.replication import open_replication
from gossip.rounds import TrainerGone, run_rounds
from node.blocks.gate import Permission
from node.blocks.service import NodeBlocks
from node.errors import NodedError
from node.run.epoch_file import EpochFile
from node.run.figures import Figures, MetricsFile
from node.run.finder import RunFinder
from node.run.journal import Journal
from node.run.launch import WorkerOptions
from node.run.manifest import RunManifest
from node.run.presence import Presence
from node.run.saves import Saves
from node.run.state import open_state
from node.run.stragglers import Stragglers
from node.run.trainer import Trainers, open_trainers
from node.run.trainer_link import TrainerLink
from node.schema import Config, RunSection
from transport.address import Address
from transport.endpoint import Endpoint
from transport.identity import NodeId

__all__ = ["Participation", "open_participation"]

CONNECT_S: Final = 5.0
"""Between two looks at the roster for members that are not connected."""
OFFER_S: Final = 2.0
"""Between two looks for a new checkpoint to offer."""
NAMESAKE_S: Final = 30.0
"""Between two looks for another run of the same name."""
GOODBYE_S: Final = 1.5
PUBLISH_S: Final = 1.0
"""For signing the last checkpoint, once the trainer has written it."""

_log = logging.getLogger(__name__)


class Participation:
    """A node taking part in a run; made by `open_participation`."""

    def __init__(
        self,
        manifest: RunManifest,
        *,
        finder: RunFinder,
        presence: Presence,
        group: Group,
        trainers: Trainers[TrainerLink],
        journal: Journal,
        saves: Saves,
        log_file: Path,
    ) -> None:
        self.manifest = manifest
        self.presence = presence
        self.group = group
        self.trainers = trainers
        self.namesakes: list[NodeId] = []
        """Connected peers that take part in another run of this name."""
        self._finder = finder
        self._journal = journal
        self._saves = saves
        self._log_file = log_file
        self._stragglers = Stragglers(group, trainers, journal.figures)
        self._protocol = load_protocol(manifest.protocol)
        self._averager = self._protocol.averager(manifest.protocol_settings)
        self._link: TrainerLink | None = None  # the one that attached last
        group.on_waiting = self._stragglers.members_wait

    def held(self) -> HeldState | None:
        """The consensus state that can be handed over now; that of a trainer that has finished, too."""
        link = self._link
        if link is None or link.position is None:
            return None
        vectors = [link.views[name] for name in self._averager.consensus]
        return HeldState(link.position.round, link.position.state, vectors)

    async def train(self, handover: Handover, nonce: Callable[[], bytes]) -> None:
        """Run rounds with one trainer after the other, until one has finished the run.

        Raises:
            NodedError: the trainer cannot work with this configuration.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._stragglers.watch)
            nursery.start_soon(self._watch_useless)
            while True:
                self._link = link = await self.trainers.next_link()
                self.group.machine.model = link.attach.model
                self.presence.announce(link.attach.model)
                attached = trio.CancelScope()
                nursery.start_soon(_cancel_when_gone, link, attached)
                with attached:
                    await self._rounds(link, handover, nonce)
                await link.gone.wait()
                if link.finished and not attached.cancelled_caught:
                    break
                _log.warning("no trainer now: %s", link.error or "it closed the connection")
                self._on_phase("joining")
            nursery.cancel_scope.cancel()

    async def _rounds(
        self, link: TrainerLink, handover: Handover, nonce: Callable[[], bytes]
    ) -> None:
        settings = self._protocol.parse_settings(self.manifest.protocol_settings)
        try:
            await run_rounds(
                self.group,
                handover,
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

    async def stay_connected(self) -> None:
        """Be found, and connect to the members, until cancelled."""
        announced: tuple[str, ...] | None = None
        look_for_namesakes_at = trio.current_time()
        while True:
            addresses = self.presence.advertised
            if addresses != announced:
                where = [Address.parse(text) for text in addresses]
                await self._finder.announce(self.manifest, where)
                announced = addresses
            await self._finder.connect_members(self.manifest.hash)
            self.presence.tend()
            await self._finder.connect_all(self.presence.roster())
            if trio.current_time() >= look_for_namesakes_at:
                self.namesakes = await self._finder.namesakes(self.manifest)
                look_for_namesakes_at = trio.current_time() + NAMESAKE_S
            await trio.sleep(CONNECT_S)

    async def leave(self) -> None:
        """Leave in good order: tell the members and write it into the shared state.

        Peers hear it within `GOODBYE_S`, then the trainer gets its time to save and what it saved
        becomes a checkpoint. Cancellation leaves peers to find this node lost.
        """
        with trio.move_on_after(GOODBYE_S):
            self.presence.leave("stopped by its operator")
            await self.group.leave()
            await self.presence.flush()
        await self.trainers.stop("the daemon stops")
        with trio.move_on_after(PUBLISH_S):
            await self._saves.settled()

    async def _watch_useless(self) -> None:
        await self.trainers.useless.wait()
        raise NodedError(
            f"the trainer cannot work with this configuration: {self.trainers.status.error}",
            hint=f"see {self._log_file}",
        )


async def _cancel_when_gone(link: TrainerLink, attached: trio.CancelScope) -> None:
    """Nothing waits for others on behalf of a trainer that is not there any more."""
    await link.gone.wait()
    if not link.finished:
        attached.cancel()


@asynccontextmanager
async def open_participation(
    config: Config,
    section: RunSection,
    manifest: RunManifest,
    *,
    endpoint: Endpoint,
    finder: RunFinder,
    saves: Saves,
    figures: Figures,
    metrics: MetricsFile,
    rng: random.Random,
    advertised: Callable[[], tuple[str, ...]],
    permission: Permission,
    blocks: NodeBlocks,
) -> AsyncIterator[tuple[Participation, Handover]]:
    """Join a run whose manifest is here, and be in it for as long as the context is open.

    Raises:
        GossipError: the manifest's protocol or its settings cannot be used here.
        NodedError: another daemon serves the trainer socket.
    """
    identity = endpoint.identity
    directory = config.paths.run_dir(section.name)
    state = open_state(identity, manifest, directory)
    epochs = EpochFile(directory / "epochs")
    async with (
        open_replication(endpoint, state, manifest.hash.hex()[:32], rng=rng) as replication,
        open_group(
            endpoint,
            manifest.hash,
            settings=EpochSettings(quorum=manifest.quorum, min_members=manifest.min_members),
            rng=rng,
            memory=epochs.load(),
            remember=epochs.store,
        ) as group,
    ):
        presence = Presence(state, replication, name=config.node.name, advertised=advertised)
        presence.announce(b"")
        journal = Journal(
            manifest,
            figures=figures,
            metrics=metrics,
            presence=presence,
            saves=saves,
            sample_file=directory / "sample.txt",
        )
        log_file = directory / "trainer.log"
        async with open_trainers(
            manifest,
            config.paths.trainer_socket,
            vectors=load_protocol(manifest.protocol).averager(manifest.protocol_settings).vectors,
            link=TrainerLink,
            node=str(identity.node_id),
            checkpoints=saves.folder,
            newest_checkpoint=lambda: saves.newest_path,
            on_note=journal.on_note,
            supervised=_worker(config, section, directory, permission)
            if config.trainer.auto
            else None,
            log_file=log_file,
        ) as trainers:
            participation = Participation(
                manifest,
                finder=finder,
                presence=presence,
                group=group,
                trainers=trainers,
                journal=journal,
                saves=saves,
                log_file=log_file,
            )
            async with (
                open_handover(endpoint, manifest.hash, participation.held) as handover,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(participation.stay_connected)
                nursery.start_soon(saves.publish, manifest, journal.on_checkpoint)
                nursery.start_soon(_offer_checkpoints, saves, blocks)
                yield participation, handover
                nursery.cancel_scope.cancel()


async def _offer_checkpoints(saves: Saves, blocks: NodeBlocks) -> None:
    """Have the newest checkpoint fetched from here by whoever knows its id, until cancelled."""
    shown: Path | None = None
    artefact: bytes | None = None
    while True:
        newest = saves.newest
        if newest is not None and newest.path != shown:
            artefact = await blocks.show_checkpoint(newest.path, artefact)
            shown = newest.path
            saves.artefact = artefact
        await trio.sleep(OFFER_S)


def _worker(
    config: Config, section: RunSection, directory: Path, permission: Permission
) -> WorkerOptions:
    """How this node's daemon starts a trainer of its own."""
    trainer = config.trainer
    return WorkerOptions(
        socket=config.paths.trainer_socket,
        manifest=directory / "run.json",
        threads=trainer.threads,
        device=trainer.device,
        data=section.data,
        task=permission.task,
        user_path=permission.user_path,
        approved=permission.approved,
        checkpoint_every=trainer.checkpoint_every,
        evaluate_every=trainer.evaluate_every,
    )
