"""The configured run at this node: found or created, taken part in, and over or failed (trio driver).

`RunService` is there from the daemon's start to its end; what exists only while this node takes part is its
`part`.
"""

from __future__ import annotations

import functools
import logging
import os
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import trio

from dht.errors import DhtError
from dht.service import Dht
from gossip.errors import GossipError
from node.blocks.gate import TaskGate
from node.blocks.service import NodeBlocks
from node.errors import NodedError, Refused, first_error, hint_of
from node.run.decentralized import is_decentralized, open_decentralized
from node.run.figures import Figures, MetricsFile
from node.run.finder import RunFinder, load_manifest, store_manifest
from node.run.manifest import RunManifest
from node.run.participation import open_participation
from node.run.saves import Saves
from node.run.taking_part import Surroundings, TakingPart
from node.schema import Config, RunSection
from transport.endpoint import Endpoint
from transport.errors import TransportError

__all__ = ["RunService", "open_run_service"]

_log = logging.getLogger(__name__)


class RunService:
    """What the daemon and its status see of the run; made by `open_run_service`."""

    def __init__(
        self, config: Config, section: RunSection, endpoint: Endpoint, blocks: NodeBlocks
    ) -> None:
        self.section = section
        self.directory = config.paths.run_dir(section.name)
        self.manifest: RunManifest | None = None
        """None while nobody who has it is found."""
        self.part: TakingPart[Any] | None = None
        """None before this node takes part; after a failure that which it was."""
        self.figures = Figures()
        self.saves = Saves(
            self.directory / "checkpoints",
            endpoint.identity,
            keep=config.trainer.keep_checkpoints,
        )
        self.failure = ""
        """Why the run cannot go on at this node; empty while it can."""
        self.failure_hint = ""
        self._config = config
        self._endpoint = endpoint
        self._blocks = blocks
        self._metrics = MetricsFile(self.directory / "metrics.jsonl")

    def history(self) -> list[dict[str, Any]]:
        """Latest points of this node's training, oldest first."""
        return list(self._metrics.latest)

    async def live(
        self,
        dht: Dht,
        *,
        rng: random.Random,
        random_bytes: Callable[[int], bytes],
        advertised: Callable[[], tuple[str, ...]],
    ) -> None:
        """Take part until cancelled; a run that has finished is still served to those that come late."""
        finder = RunFinder(self._endpoint, dht)
        gate = TaskGate(self._config, self.section, self._blocks)
        try:
            self.manifest = manifest = await self._find_manifest(finder, gate)
            self.saves.load(manifest)
            self._check_role()
            permission = await gate.wait(manifest, self._refuse)
            self.failure = self.failure_hint = ""
            self.figures.phase = "joining"
            around = Surroundings(
                config=self._config,
                section=self.section,
                manifest=manifest,
                endpoint=self._endpoint,
                finder=finder,
                saves=self.saves,
                figures=self.figures,
                metrics=self._metrics,
                rng=rng,
                advertised=advertised,
                permission=permission,
                blocks=self._blocks,
            )
            async with _open(around) as part:
                self.part = part
                await part.train(nonce=lambda: random_bytes(16))
                _log.info("run %s: finished at round %d", manifest.name, self.figures.round)
                self.figures.phase = "finished"
                await trio.sleep_forever()
        except* (NodedError, GossipError, DhtError, TransportError, OSError) as group_error:
            leaf = first_error(group_error)
            self.failure, self.failure_hint = str(leaf), hint_of(leaf)
            _log.error("the run cannot go on at this node: %s", self.failure)
            self.figures.phase = "failed"
        finally:
            self._metrics.close()

    async def leave(self) -> None:
        """Leave in good order; see `TakingPart.leave`. After a failure there is nothing left to leave."""
        if self.part is not None and not self.failure:
            await self.part.leave()

    def _check_role(self) -> None:
        own = self._endpoint.trust.own
        role = "observer" if own is None else own.leaf.role
        if role == "trainer" or not self._config.trainer.auto:
            return
        if self._endpoint.swarm.is_open and own is None:
            return  # what strangers may do is for each of the others to say
        raise Refused(
            f"this node's certificate is for a {role}: it may not train",
            hint="look on with  trainer.auto = false  , or join again with an invite for a trainer",
        )

    def _refuse(self, error: NodedError) -> None:
        """The run has to wait for this node's operator."""
        self.failure, self.failure_hint = str(error), error.hint
        _log.warning("%s (%s)", error, error.hint)
        self.figures.phase = "failed"

    async def _find_manifest(self, finder: RunFinder, gate: TaskGate) -> RunManifest:
        stored_at = self.directory / "run.json"
        self.saves.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        manifest = load_manifest(stored_at)
        if (
            manifest is not None
            and self.section.create
            and not _same_choices(manifest, self.section)
        ):
            raise NodedError(
                f"the run {manifest.name!r} in {self.directory} was made with other settings",
                hint="give the new run another name, or move that folder away",
            )
        if manifest is None:
            node_id = str(self._endpoint.node_id)
            manifest = (
                manifest_of(
                    self.section,
                    node_id,
                    int(time.time()),
                    await trio.to_thread.run_sync(gate.own_hash),
                )
                if self.section.create
                else await finder.find(self.section.name)
            )
            store_manifest(stored_at, manifest)
        return manifest


def _open(around: Surroundings) -> AbstractAsyncContextManager[TakingPart[Any]]:
    """Take part in the way of the run's protocol; raises `UnknownProtocol`."""
    if is_decentralized(around.manifest):
        return open_decentralized(around)
    return open_participation(around)


def manifest_of(
    section: RunSection, created_by: str, created_at: int, task_hash: str = ""
) -> RunManifest:
    """The manifest that a node with `run.create = true` makes of its configuration."""
    return RunManifest(
        name=section.name,
        task=section.task,
        task_hash=task_hash,
        task_settings=section.task_settings,
        protocol=section.protocol,
        protocol_settings=section.protocol_settings,
        every=section.every,
        steps=section.steps,
        min_members=section.min_members,
        quorum=section.quorum,
        seed=section.seed,
        created_by=created_by,
        created_at=created_at,
    )


def _same_choices(manifest: RunManifest, section: RunSection) -> bool:
    # Other code than the run was made with is told apart later, with what to do about it.
    return manifest == manifest_of(
        section, manifest.created_by, manifest.created_at, manifest.task_hash
    )


@asynccontextmanager
async def open_run_service(
    config: Config,
    endpoint: Endpoint,
    dht: Dht,
    blocks: NodeBlocks,
    *,
    rng: random.Random,
    random_bytes: Callable[[int], bytes] = os.urandom,
    advertised: Callable[[], tuple[str, ...]] = tuple,
) -> AsyncIterator[RunService | None]:
    """Take part in the configured run, if there is one, for as long as the context is open."""
    if config.run is None:
        yield None
        return
    service = RunService(config, config.run, endpoint, blocks)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            functools.partial(
                service.live, dht, rng=rng, random_bytes=random_bytes, advertised=advertised
            )
        )
        try:
            yield service
        finally:
            nursery.cancel_scope.cancel()
