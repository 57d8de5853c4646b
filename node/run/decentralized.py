"""This node as a member of a run with a decentralized protocol.

No epochs, no group, no hand-over: the protocol's core lives in this process, `gossip.decentralized.network.driver` runs it, and the
trainer does its legs. The core is made when the first trainer has said what the model is, and outlives trainers: when one dies, the
next one is given the leg anew.

    trainer attaches  ->  core starts with its parameters (initial, or of the newest checkpoint)  ->  legs, messages, rounds
                                                                   every so many rounds: evaluate, save

Invariant: `Figures.state` is the digest of the core's model after its last round, and a checkpoint holds the model of a round.
"""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import attrs
import trio

from gossip.decentralized.arithmetic import model_digest
from gossip.decentralized.network.driver import Driver, Progressed, Trainer, open_driver
from gossip.decentralized.protocol import Context, DecentralizedProtocol, LocalWork, Train, Vector
from gossip.errors import UnknownProtocol
from gossip.protocol import load_plugin
from gossip.rounds import TrainerGone
from node.run.journal import Journal
from node.run.leg_link import VECTORS, LegLink, Opened
from node.run.manifest import RunManifest
from node.run.presence import Presence
from node.run.taking_part import (
    Surroundings,
    TakingPart,
    open_journal,
    open_running,
    worker_options,
)
from node.run.trainer import Trainers, open_trainers

__all__ = ["Decentralized", "decentralized_protocol", "is_decentralized", "open_decentralized"]

LAST_SAVE_S: Final = 2.0
"""For the trainer to write the last checkpoint when this node leaves; it does so at a step boundary."""

_log = logging.getLogger(__name__)


def is_decentralized(manifest: RunManifest) -> bool:
    """Whether the run's protocol needs no agreement; raises `UnknownProtocol`."""
    return issubclass(load_plugin(manifest.protocol), DecentralizedProtocol)


def decentralized_protocol(manifest: RunManifest) -> type[DecentralizedProtocol]:
    """The run's protocol; raises `UnknownProtocol` if it is of another kind."""
    loaded = load_plugin(manifest.protocol)
    if not issubclass(loaded, DecentralizedProtocol):
        raise UnknownProtocol(f"the protocol {manifest.protocol!r} is not a decentralized one")
    return loaded


class _Legs(Trainer):
    """Does legs with whichever trainer is attached."""

    def __init__(self, on_phase: Callable[[str], None]) -> None:
        self.round = self.peers = 0
        self.over = False
        """Whether the run is finished here: no leg begins any more."""
        self._on_phase = on_phase
        self._link: LegLink | None = None
        self._attached = trio.Event()

    def use(self, link: LegLink) -> None:
        self._link = link
        self._attached.set()
        self._attached = trio.Event()

    async def train(self, leg: Train) -> LocalWork:
        while True:
            link = self._link
            if self.over:
                await trio.sleep_forever()
            if link is not None and not link.gone.is_set():
                try:
                    self._on_phase("training")
                    work = await link.train(leg, self.round, self.peers)
                except TrainerGone:
                    continue
                self._on_phase("waiting")
                return work
            await self._attached.wait()


@attrs.define
class _Wanted:
    """What is to be done with the newest model, once the trainer has done it with the one before."""

    evaluate: bool = False
    save: bool = False
    sample: bool = False


class Decentralized(TakingPart[LegLink]):
    """A node taking part without agreement; made by `open_decentralized`."""

    def __init__(
        self,
        around: Surroundings,
        presence: Presence,
        journal: Journal,
        trainers: Trainers[LegLink],
    ) -> None:
        super().__init__(around, presence, journal, trainers)
        self.nursery: trio.Nursery
        """Set when it is open: the driver lives in it, and goes on to answer others when this node has finished."""
        self._legs = _Legs(journal.on_phase)
        self._link: LegLink | None = None
        self._latest: tuple[int, Vector] | None = None
        self._evaluated_round = self._saved_round = -1
        """The rounds whose model was evaluated and saved last."""
        self._said_alone = False
        self._wanted = _Wanted()
        self._wake = trio.Event()
        self._idle = trio.Event()
        self._idle.set()

    async def train(self, nonce: Callable[[], bytes]) -> None:
        """See `TakingPart.train`."""
        del nonce
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.watch_useless)
            while True:
                link = await self.trainers.next_link()
                try:
                    opened = await link.wait_opened()
                    await self._attached(link, opened)
                except TrainerGone as error:
                    link.detach(str(error))
                await link.gone.wait()
                if link.finished:
                    break
                _log.warning("no trainer now: %s", link.error or "it closed the connection")
                self._journal.on_phase("joining")
            nursery.cancel_scope.cancel()

    async def _attached(self, link: LegLink, opened: Opened) -> None:
        """Have a trainer work until it is gone."""
        if self.driver is None:
            self._latest = (opened.round, opened.params)
            self._saved_round = opened.round
            self.presence.announce(link.attach.model)
            self.driver = await self.nursery.start(self._drive, link, opened)
            self._want(evaluate=True)
        elif link.attach.model != self.presence.model:
            raise TrainerGone(
                "its model has other parameters than the one this node takes part with"
            )
        self._link = link
        self._legs.use(link)
        self._wake.set()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._look, link)
            nursery.start_soon(self._conclude, link, self.driver)
            await link.gone.wait()
            if link.finished:
                # At once: a status in between would show a trainer that has ended before its run.
                self._journal.on_phase("finished")
            nursery.cancel_scope.cancel()

    async def _drive(
        self,
        link: LegLink,
        opened: Opened,
        task_status: trio.TaskStatus[Driver] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Run the core for as long as this node takes part."""
        manifest, endpoint = self.manifest, self._around.endpoint
        protocol = decentralized_protocol(manifest)
        core = protocol(
            protocol.parse_settings(manifest.protocol_settings),
            Context(
                me=endpoint.node_id,
                run=manifest.hash,
                tensors=opened.tensors,
                numel=link.attach.numel,
                rng=random.Random(self._around.rng.getrandbits(64)),
                every=manifest.every,
                rounds=manifest.rounds,
            ),
        )
        async with open_driver(
            endpoint,
            core,
            self._legs,
            model=link.attach.model,
            on_progress=self._on_progress,
        ) as driver:
            task_status.started(driver)
            await driver.wait_members(manifest.min_members - 1)
            driver.start(opened.params, opened.round)
            self._journal.on_phase("waiting")
            await trio.sleep_forever()

    # ---- looks at the model ----

    def _on_progress(self, progress: Progressed) -> None:
        self._latest = (progress.round, progress.model)
        self._legs.round, self._legs.peers = progress.round, progress.members - 1
        self._journal.on_progress(progress)
        self._say_if_alone()
        trainer = self._around.config.trainer
        evaluate, save = trainer.evaluate_every, trainer.checkpoint_every
        if evaluate and progress.round - max(self._evaluated_round, 0) >= evaluate:
            self._want(evaluate=True)
        if save and progress.round - self._saved_round >= save:
            self._want(save=True)

    def _say_if_alone(self) -> None:
        """Once in the log; the status goes on to say so for as long as it lasts."""
        told = self.solitude
        if told is not None and not self._said_alone:
            self._said_alone = True
            reason = f": {told.reason}; {told.hint}" if told.reason else ""
            _log.warning(
                "no other node's model came into this one's in the last %d rounds%s",
                told.rounds,
                reason,
            )

    def _want(self, *, evaluate: bool = False, save: bool = False, sample: bool = False) -> None:
        wanted = self._wanted
        wanted.evaluate |= evaluate
        wanted.save |= save
        wanted.sample |= sample
        if self._idle.is_set():
            self._idle = trio.Event()
        self._wake.set()

    async def _look(self, link: LegLink) -> None:
        """Have the newest model evaluated and saved, one after the other, until the trainer is gone."""
        while True:
            self._wake = trio.Event()
            wanted, latest = self._wanted, self._latest
            if latest is not None and (wanted.evaluate or wanted.save or wanted.sample):
                self._wanted = _Wanted()
                round_, model = latest
                # A model is evaluated and saved once.
                evaluate = wanted.evaluate and self._evaluated_round != round_
                save = wanted.save and self._saved_round != round_
                try:
                    await link.look(
                        model, round_, evaluate=evaluate, save=save, sample=wanted.sample
                    )
                except TrainerGone:
                    self._want(evaluate=evaluate, save=save, sample=wanted.sample)
                    return
                self._evaluated_round = round_ if evaluate else self._evaluated_round
                self._saved_round = round_ if save else self._saved_round
                continue
            self._idle.set()
            await self._wake.wait()

    async def _conclude(self, link: LegLink, driver: Driver) -> None:
        """When all rounds are done: a last look, and the trainer may end."""
        await driver.finished.wait()
        self._legs.over = True
        assert self._latest is not None, "a driver was started with a model"
        round_, model = self._latest
        self._want(evaluate=True, save=round_ > 0, sample=True)
        await self._idle.wait()
        try:
            await link.conclude(model, round_, self._legs.peers)
        except TrainerGone:
            return

    # ---- leaving ----

    async def say_goodbye(self) -> None:
        """See `TakingPart.say_goodbye`."""
        if self.driver is not None:
            await self.driver.leave()

    async def save_last(self) -> None:
        """See `TakingPart.save_last`: the model of the last round, unless that is saved already."""
        latest, link, newest = self._latest, self._link, self._around.saves.newest
        if latest is None or link is None or link.gone.is_set() or not latest[0]:
            return
        if newest is not None and newest.manifest.state_sha256 == model_digest(latest[1]).hex():
            return
        with trio.move_on_after(LAST_SAVE_S):
            self._want(save=True)
            await self._idle.wait()


@asynccontextmanager
async def open_decentralized(around: Surroundings) -> AsyncIterator[Decentralized]:
    """Join a run whose manifest is here, and be in it for as long as the context is open.

    Raises:
        GossipError: the manifest's protocol or its settings cannot be used here.
        NodedError: another daemon serves the trainer socket.
    """
    manifest = around.manifest
    decentralized_protocol(manifest).parse_settings(manifest.protocol_settings)
    async with (
        open_journal(around) as (presence, journal),
        open_trainers(
            manifest,
            around.config.paths.trainer_socket,
            vectors=VECTORS,
            link=LegLink,
            node=str(around.endpoint.node_id),
            checkpoints=around.saves.folder,
            newest_checkpoint=lambda: around.saves.newest_path,
            on_note=journal.on_note,
            supervised=worker_options(around),
            log_file=around.log_file,
        ) as trainers,
    ):
        part = Decentralized(around, presence, journal, trainers)
        async with open_running(around, part, journal) as part.nursery:
            yield part
