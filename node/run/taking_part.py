"""A node taking part in a run, whatever the kind of its protocol: what `participation` and `decentralized` have in common.

It is found and stays connected to the members, says what it does in the shared document, has a trainer, and offers its
checkpoints.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Generic

import attrs
import trio

from gossip.collective.group import Group
from gossip.decentralized.network.driver import Driver
from gossip.decentralized.protocol import Solitude
from gossip.replication import open_replication
from node.blocks.gate import Permission
from node.blocks.service import NodeBlocks
from node.errors import NodedError
from node.run.figures import Figures, MetricsFile
from node.run.finder import RunFinder
from node.run.journal import Journal
from node.run.launch import WorkerOptions
from node.run.manifest import RunManifest
from node.run.presence import Presence
from node.run.saves import Saves
from node.run.state import open_state
from node.run.trainer import Link, Trainers
from node.schema import Config, RunSection
from transport.address import Address
from transport.endpoint import Endpoint
from transport.identity import NodeId

__all__ = ["Surroundings", "TakingPart", "open_journal", "open_running", "worker_options"]

CONNECT_S: Final = 5.0
"""Between two looks at the roster for members that are not connected."""
OFFER_S: Final = 2.0
"""Between two looks for a new checkpoint to offer."""
NAMESAKE_S: Final = 30.0
"""Between two looks for another run of the same name."""
GOODBYE_S: Final = 1.5
"""For the members to hear that this node leaves."""
PUBLISH_S: Final = 1.0
"""For signing the last checkpoint, once the trainer has written it."""


@attrs.frozen(kw_only=True)
class Surroundings:
    """What a node has to take part with."""

    config: Config
    section: RunSection
    manifest: RunManifest
    endpoint: Endpoint
    finder: RunFinder
    saves: Saves
    figures: Figures
    metrics: MetricsFile
    rng: random.Random
    advertised: Callable[[], tuple[str, ...]]
    permission: Permission
    blocks: NodeBlocks

    @property
    def directory(self) -> Path:
        """The run's folder."""
        return self.config.paths.run_dir(self.section.name)

    @property
    def log_file(self) -> Path:
        """Where the trainer writes."""
        return self.directory / "trainer.log"


class TakingPart(ABC, Generic[Link]):
    """A node taking part in a run.

    Args:
        around: what it has.
        presence: in the shared document.
        journal: of what happens.
        trainers: of this node.
    """

    group: Group | None = None
    """Of the collectives, where the protocol has any."""
    driver: Driver | None = None
    """Of a decentralized protocol, once a trainer has said what the model is."""

    def __init__(
        self, around: Surroundings, presence: Presence, journal: Journal, trainers: Trainers[Link]
    ) -> None:
        self.manifest = around.manifest
        self.presence = presence
        self.trainers = trainers
        self.namesakes: list[NodeId] = []
        """Connected peers that take part in another run of this name."""
        self._around = around
        self._journal = journal

    @property
    def solitude(self) -> Solitude | None:
        """Whether this node learns alone though others do, too; of a decentralized protocol."""
        told = None if self.driver is None else self.driver.solitude
        return told if told is not None and self._others_train() else None

    def _others_train(self) -> bool:
        """Not all neighbours have done the run's rounds."""
        if self.driver is None or not self.manifest.rounds:
            return True
        done, rounds = self.presence.state.progress(), self.manifest.rounds
        near = [done.get(bytes(node)) for node in self.driver.neighbours.nodes]
        return not near or any(one is None or one.round < rounds for one in near)

    @abstractmethod
    async def train(self, nonce: Callable[[], bytes]) -> None:
        """Work with one trainer after the other, until the run is finished at this node.

        Raises:
            NodedError: the trainer cannot work with this configuration.
        """

    @abstractmethod
    async def say_goodbye(self) -> None:
        """Tell the members that this node leaves; bounded by a deadline of the caller's."""

    async def save_last(self) -> None:
        """Have saved what only a trainer that goes on would save; bounded by itself."""

    async def leave(self) -> None:
        """Leave in good order: tell the members and write it into the shared state.

        Peers hear it within `GOODBYE_S`, then the trainer gets its time to save and what it saved
        becomes a checkpoint. Cancellation leaves peers to find this node lost.
        """
        with trio.move_on_after(GOODBYE_S):
            self.presence.leave("stopped by its operator")
            await self.say_goodbye()
            await self.presence.flush()
        await self.save_last()
        await self.trainers.stop("the daemon stops")
        with trio.move_on_after(PUBLISH_S):
            await self._around.saves.settled()

    async def stay_connected(self) -> None:
        """Be found, and connect to the members, until cancelled."""
        finder = self._around.finder
        announced: tuple[str, ...] | None = None
        look_for_namesakes_at = trio.current_time()
        while True:
            addresses = self.presence.advertised
            if addresses != announced:
                where = [Address.parse(text) for text in addresses]
                await finder.announce(self.manifest, where)
                announced = addresses
            await finder.connect_members(self.manifest.hash)
            self.tend()
            await finder.connect_all(self.presence.roster())
            if trio.current_time() >= look_for_namesakes_at:
                self.namesakes = await finder.namesakes(self.manifest)
                look_for_namesakes_at = trio.current_time() + NAMESAKE_S
            await trio.sleep(CONNECT_S)

    def tend(self) -> None:
        """Renew what this node states about itself; called every few seconds."""
        self.presence.tend()

    async def watch_useless(self) -> None:
        """Wait for a trainer that cannot be helped by starting it again; raises `NodedError`."""
        await self.trainers.useless.wait()
        raise NodedError(
            f"the trainer cannot work with this configuration: {self.trainers.status.error}",
            hint=f"see {self._around.log_file}",
        )


@asynccontextmanager
async def open_journal(around: Surroundings) -> AsyncIterator[tuple[Presence, Journal]]:
    """The run's shared document, kept equal with the members', and this node's part in it."""
    endpoint, manifest = around.endpoint, around.manifest
    state = open_state(endpoint.identity, manifest, around.directory)
    name = manifest.hash.hex()[:32]
    async with open_replication(endpoint, state, name, rng=around.rng) as replication:
        presence = Presence(
            state,
            replication,
            name=around.config.node.name,
            site=around.config.node.site,
            advertised=around.advertised,
        )
        presence.announce(b"")
        yield (
            presence,
            Journal(
                manifest,
                figures=around.figures,
                metrics=around.metrics,
                presence=presence,
                saves=around.saves,
                sample_file=around.directory / "sample.txt",
            ),
        )


@asynccontextmanager
async def open_running(
    around: Surroundings, part: TakingPart[Link], journal: Journal
) -> AsyncIterator[trio.Nursery]:
    """What goes on while a node takes part, beside its training; yields the nursery, which ends with the block."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(part.stay_connected)
        nursery.start_soon(around.saves.publish, around.manifest, journal.on_checkpoint)
        nursery.start_soon(_offer_checkpoints, around.saves, around.blocks)
        yield nursery
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


def worker_options(around: Surroundings) -> WorkerOptions | None:
    """How this node's daemon starts a trainer of its own; None if it starts none."""
    trainer, section, permission = around.config.trainer, around.section, around.permission
    if not trainer.auto:
        return None
    return WorkerOptions(
        socket=around.config.paths.trainer_socket,
        manifest=around.directory / "run.json",
        threads=trainer.threads,
        device=trainer.device,
        data=section.data,
        part=section.part,
        task=permission.task,
        user_path=permission.user_path,
        approved=permission.approved,
        checkpoint_every=trainer.checkpoint_every,
        evaluate_every=trainer.evaluate_every,
    )
