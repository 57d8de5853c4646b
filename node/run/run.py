"""One run at one node: found or created, joined, trained, checkpointed (trio driver).

Order of life: manifest -> shared state -> group and hand-over -> trainer socket -> rounds. A
trainer that goes away takes this node out of the epoch, not out of the run: the next one to attach
resumes from the newest checkpoint and is brought up to date by the others.
"""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import attrs
import trio

from crdt.record import CheckpointInfo, MemberInfo, Metrics, Progress
from crdt.state import RunState
from dht.errors import DhtError
from dht.service import Dht
from gossip.collective.epoch_events import EpochSettings
from gossip.collective.group import Group, open_group
from gossip.collective.handover import HeldState, open_handover
from gossip.errors import GossipError
from gossip.protocol import load_protocol
from gossip.replication import Replication, open_replication
from gossip.rounds import Position, RunReport, TrainerGone, run_rounds
from node.errors import NodedError, first_error, hint_of
from node.run import checkpoint
from node.run.checkpoint import Checkpoint, CheckpointError, Trust
from node.run.finder import RunFinder, load_manifest, store_manifest
from node.run.launch import WorkerOptions
from node.run.manifest import RunManifest
from node.run.state import open_state
from node.run.trainer import Trainers, open_trainers
from node.run.trainer_link import Note, TrainerLink
from node.schema import Config, RunSection
from node.trainer_messages import Evaluated, Failed, Ready, Report, Sample, Saved, SaveFailed
from transport.address import Address
from transport.endpoint import Endpoint
from transport.errors import TransportError
from transport.identity import Identity, NodeId

CONNECT_S: Final = 5.0
"""Between two looks at the roster for members that are not connected."""
GOODBYE_S: Final = 1.5
PUBLISH_S: Final = 1.0
"""For signing the last checkpoint, once the trainer has written it."""
HISTORY_POINTS: Final = 600
STUCK_S: Final = 45.0
"""From hurrying the trainer to letting the others go on without this node."""
HURRY_AFTER_S: Final = 3.0
"""Grace for this node's trainer once most members wait; stragglers do fewer steps then."""

_log = logging.getLogger(__name__)


@attrs.define
class Figures:
    """Latest numbers of this node's training."""

    round: int = 0
    step: int = 0
    loss: float | None = None
    val_loss: float | None = None
    tokens: int = 0
    tokens_per_s: float = 0.0
    members_last_round: int | None = None
    round_seconds: float | None = None
    round_ended_at: float | None = None
    usual_round_s: float | None = None
    rounds_alone: int = 0
    state: bytes = b""
    phase: str = "joining"


class RunService:
    """What the daemon and its status see of the run; made by `open_run_service`."""

    def __init__(self, config: Config, section: RunSection, identity: Identity) -> None:
        self.section = section
        self.advertised: Callable[[], tuple[str, ...]] = tuple
        self._told: tuple[str, ...] = ()  # the addresses in the roster
        self._member: tuple[str, bytes] | None = None  # status and model there
        self.manifest: RunManifest | None = None
        self.figures = Figures()
        self.group: Group | None = None
        self.trainers: Trainers | None = None
        self.state: RunState | None = None
        self.checkpoint: Checkpoint | None = None
        self.checkpoint_error = ""
        self.checkpoint_damaged = ""
        """What is wrong with the newest one, if it could not be used; until the next is made."""
        self.failure = ""
        """Why the run cannot go on at this node; empty while it can."""
        self.failure_hint = ""
        self.finished = trio.Event()
        self.directory = config.paths.run_dir(section.name)
        self._config = config
        self._identity = identity
        self._metrics = _MetricsFile(self.directory / "metrics.jsonl")
        self._saves, self._to_publish = trio.open_memory_channel[Saved](2)
        self._unpublished = 0
        self._all_published = trio.Event()
        self._all_published.set()
        self._hurry_at: float | None = None
        self._hurried_at: float | None = None
        self._link: TrainerLink | None = None
        self._consensus: tuple[str, ...] = ()
        self._replication: Replication | None = None

    @property
    def checkpoints(self) -> Path:
        """Where this node's checkpoints of the run lie."""
        return self.directory / "checkpoints"

    # ---- life --------------------------------------------------------------------------------

    async def live(
        self, endpoint: Endpoint, dht: Dht, rng: random.Random, random_bytes: Callable[[int], bytes]
    ) -> None:
        """Take part until cancelled or until the run has finished at this node."""
        try:
            finder = RunFinder(endpoint, dht)
            self.manifest = manifest = await self._find_manifest(finder)
            protocol = load_protocol(manifest.protocol)
            averager = protocol.averager(manifest.protocol_settings)
            self._consensus = averager.consensus
            self._load_checkpoint(manifest)
            self.state = state = open_state(self._identity, manifest, self.directory)
            async with AsyncExitStack() as stack:
                enter = stack.enter_async_context
                self._replication = await enter(
                    open_replication(endpoint, state, manifest.hash.hex()[:32], rng=rng)
                )
                self._set_member("active", b"")
                self.group = group = await enter(
                    open_group(
                        endpoint,
                        manifest.hash,
                        settings=EpochSettings(
                            quorum=manifest.quorum, min_members=manifest.min_members
                        ),
                        rng=rng,
                    )
                )
                handover = await enter(open_handover(endpoint, manifest.hash, self._held))
                self.trainers = trainers = await enter(self._open_trainers(manifest))
                nursery = await enter(trio.open_nursery())
                nursery.start_soon(self._stay_connected, finder, manifest)
                nursery.start_soon(self._publish_checkpoints, manifest)
                nursery.start_soon(self._watch_hurry)
                nursery.start_soon(self._watch_useless, trainers)
                group.on_waiting = self._members_wait
                while True:
                    self._link = link = await trainers.next_link()
                    group.machine.model = link.attach.model
                    self._set_member("active", link.attach.model)
                    attached = trio.CancelScope()
                    nursery.start_soon(_cancel_when_gone, link, attached)
                    try:
                        with attached:
                            await run_rounds(
                                group,
                                handover,
                                protocol(protocol.parse_settings(manifest.protocol_settings)),
                                averager,
                                link,
                                nonce=lambda: random_bytes(16),
                                on_phase=self._on_phase,
                                on_round=self._on_round,
                                on_synced=self._on_synced,
                            )
                    except TrainerGone as error:
                        link.detach(str(error))
                    await link.gone.wait()
                    if link.finished and not attached.cancelled_caught:
                        break
                    _log.warning(
                        "the trainer is gone: %s", link.error or "it closed the connection"
                    )
                    self._set_phase("joining")
                _log.info("run %s: finished at round %d", manifest.name, self.figures.round)
                self._set_phase("finished")
                self.finished.set()
                await trio.sleep_forever()
        except* (NodedError, GossipError, DhtError, TransportError, OSError) as group_error:
            leaf = first_error(group_error)
            self.failure, self.failure_hint = str(leaf), hint_of(leaf)
            _log.error("the run cannot go on at this node: %s", self.failure)
            self._set_phase("failed")
        finally:
            self._metrics.close()

    async def _find_manifest(self, finder: RunFinder) -> RunManifest:
        stored_at = self.directory / "run.json"
        self.checkpoints.mkdir(mode=0o700, parents=True, exist_ok=True)
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
            manifest = (
                manifest_of(self.section, str(self._identity.node_id), int(time.time()))
                if self.section.create
                else await finder.find(self.section.name)
            )
            store_manifest(stored_at, manifest)
        return manifest

    def _load_checkpoint(self, manifest: RunManifest) -> None:
        checkpoint.sweep(self.checkpoints)
        found = checkpoint.newest(self.checkpoints, Trust(run_id=manifest.hash))
        for skipped in found.skipped:
            _log.warning("checkpoint not used: %s", skipped)
            self.checkpoint_damaged = self.checkpoint_damaged or str(skipped)
        self.checkpoint = found.checkpoint

    def _open_trainers(self, manifest: RunManifest) -> Any:
        config, trainer = self._config, self._config.trainer
        supervised = WorkerOptions(
            socket=config.paths.trainer_socket,
            manifest=self.directory / "run.json",
            threads=trainer.threads,
            device=trainer.device,
            data=self.section.data,
            task=self.section.task if trainer.user_path else "",
            user_path=trainer.user_path,
            checkpoint_every=trainer.checkpoint_every,
            evaluate_every=trainer.evaluate_every,
        )
        return open_trainers(
            manifest,
            config.paths.trainer_socket,
            node=str(self._identity.node_id),
            checkpoints=self.checkpoints,
            newest_checkpoint=lambda: (
                None if self.checkpoint is None else str(self.checkpoint.path)
            ),
            on_note=self._on_note,
            supervised=supervised if trainer.auto else None,
            log_file=self.directory / "trainer.log",
        )

    def _held(self) -> HeldState | None:
        """The consensus state that can be handed over now."""
        link = self._link
        if link is None or link.position is None:
            return None
        vectors = [link.views[name] for name in self._consensus]
        return HeldState(link.position.round, link.position.state, vectors)

    async def _stay_connected(self, finder: RunFinder, manifest: RunManifest) -> None:
        announced: tuple[str, ...] | None = None
        while True:
            addresses = self.advertised()
            if addresses != announced:
                await finder.announce(manifest, [Address.parse(text) for text in addresses])
                announced = addresses
            if addresses != self._told and self._member is not None:
                self._set_member(*self._member)
            await finder.connect_members(manifest.hash)
            if self.state is not None:
                self.state.tend()
                if self._replication is not None:
                    self._replication.notify()
                revoked = self.state.revoked()
                roster = [
                    (NodeId(node), member.addresses)
                    for node, member in self.state.members().items()
                    if member.status == "active" and node not in revoked
                ]
                await finder.connect_all(roster)
            await trio.sleep(CONNECT_S)

    async def leave(self) -> None:
        """Leave in good order: tell the members and write it into the shared state.

        Peers hear it within `GOODBYE_S`, then the trainer gets its time to save and what it saved
        becomes a checkpoint. Cancellation leaves peers to find this node lost.
        """
        with trio.move_on_after(GOODBYE_S):
            if self.state is not None and self._replication is not None:
                self.state.leave("stopped by its operator")
                self._replication.notify()
            if self.group is not None:
                await self.group.leave()
            if self._replication is not None:
                await self._replication.flush()
        if self.trainers is not None:
            await self.trainers.stop("the daemon stops")
            with trio.move_on_after(PUBLISH_S):
                await self._all_published.wait()

    def history(self) -> list[dict[str, Any]]:
        """Latest points of this node's training, oldest first."""
        return list(self._metrics.latest)

    # ---- what the trainer and the rounds tell --------------------------------------------------

    def _on_phase(self, phase: str) -> None:
        if phase == "waiting":
            self._hurry_at = None
        self._set_phase(phase)

    def _set_phase(self, phase: str) -> None:
        self.figures.phase = phase

    def _on_round(self, report: RunReport) -> None:
        figures, now = self.figures, trio.current_time()
        if figures.round_ended_at is not None:
            took = now - figures.round_ended_at
            usual = figures.usual_round_s
            figures.usual_round_s = took if usual is None else 0.8 * usual + 0.2 * took
        figures.round, figures.state = report.round, report.state
        figures.members_last_round, figures.round_seconds = report.members, report.seconds
        figures.round_ended_at = now
        figures.rounds_alone = figures.rounds_alone + 1 if report.members == 1 else 0
        self._metrics.write(
            "round",
            round=report.round,
            step=figures.step,
            members=report.members,
            seconds=report.seconds,
            weight=report.weight,
            state_sha256=report.state.hex(),
        )
        self._publish_progress()

    def _on_synced(self, position: Position) -> None:
        assert self.manifest is not None
        figures = self.figures
        figures.round, figures.state = position.round, position.state
        figures.step = self.manifest.step_after(position.round)
        self._metrics.write("synced", round=position.round, step=figures.step)
        self._publish_progress()

    def _on_note(self, note: Note) -> None:
        figures = self.figures
        match note:
            case Ready(round=round_, step=step, state_sha256=state):
                # A checkpoint was loaded, or weights were made: that is where this node stands now.
                figures.round, figures.step, figures.state = round_, step, state
                self._publish_progress()
            case Report(step=step, loss=loss, tokens=tokens, tokens_per_s=rate):
                figures.step, figures.loss = step, loss
                figures.tokens, figures.tokens_per_s = tokens, rate
                self._metrics.write(
                    "report",
                    step=step,
                    loss=loss,
                    tokens=tokens,
                    tokens_per_s=rate,
                    round=figures.round,
                )
                self._publish_progress()
            case Evaluated(round=round_, step=step, loss=loss, tokens=tokens):
                figures.val_loss = loss
                self._metrics.write("eval", round=round_, step=step, loss=loss, tokens=tokens)
            case Sample(text=text):
                self._write_sample(text)
            case Saved():
                try:
                    self._saves.send_nowait(note)
                    self._unpublished += 1
                    self._all_published = trio.Event()
                except trio.WouldBlock:
                    self.checkpoint_error = "the disk is slower than the checkpoints come"
                    Path(note.file).unlink(missing_ok=True)
            case SaveFailed(step=step, error=error):
                self.checkpoint_error = f"step {step}: {error}"
                _log.warning("the checkpoint of step %d was not written: %s", step, error)
            case Failed(error=error):
                _log.error("the trainer failed: %s", error)

    def _write_sample(self, text: str) -> None:
        try:
            (self.directory / "sample.txt").write_text(text, encoding="utf-8")
        except OSError as error:
            _log.warning("sample not written: %s", error.strerror)

    def _publish_progress(self) -> None:
        if self.state is None or self._replication is None:
            return
        figures = self.figures
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
        further = ("val_loss", "round_seconds")
        known = [(n, v) for n in further if (v := getattr(figures, n)) is not None]
        self.state.set_metrics(Metrics(known))
        self._replication.notify()

    def _set_member(self, status: str, model: bytes) -> None:
        if self.state is None or self._replication is None:
            return
        config = self._config
        self._member, self._told = (status, model), self.advertised()
        self.state.set_member(
            MemberInfo(
                name=config.node.name,
                addresses=self._told[:16],
                status=status,
                model=model,
            )
        )
        self._replication.notify()

    # ---- checkpoints -----------------------------------------------------------------------------

    async def _publish_checkpoints(self, manifest: RunManifest) -> None:
        limiter = trio.CapacityLimiter(1)
        async for saved in self._to_publish:
            try:
                self.checkpoint = await trio.to_thread.run_sync(
                    self._publish, manifest, saved, limiter=limiter
                )
                self.checkpoint_error = self.checkpoint_damaged = ""
            except CheckpointError as error:
                self.checkpoint_error = str(error)
                _log.warning("%s", error)
                continue
            finally:
                self._unpublished -= 1
                if not self._unpublished:
                    self._all_published.set()
            if self.state is not None and self._replication is not None:
                self.state.set_checkpoint(
                    CheckpointInfo(
                        step=saved.step,
                        round=saved.round,
                        sha256=self.checkpoint.sha256,
                        holder=bytes(self._identity.node_id),
                    )
                )
                self._replication.notify()

    def _publish(self, manifest: RunManifest, saved: Saved) -> Checkpoint:
        return checkpoint.publish(
            self.checkpoints,
            Path(saved.file),
            run_id=manifest.hash,
            round=saved.round,
            step=saved.step,
            state_sha256=saved.state_sha256,
            sign=self._identity.sign,
            public_key=self._identity.public_key,
            sha256=saved.sha256,
            name=manifest.name,
            created_at=int(time.time()),
            keep=self._config.trainer.keep_checkpoints,
        )

    # ---- stragglers ------------------------------------------------------------------------------

    def _members_wait(self, count: int, of: int) -> None:
        if 2 * count >= of and self.figures.phase == "training" and self._hurry_at is None:
            self._hurry_at = trio.current_time() + HURRY_AFTER_S

    async def _watch_hurry(self) -> None:
        while True:
            await trio.sleep(0.5)
            link: TrainerLink | None = None if self.trainers is None else self.trainers.current
            now = trio.current_time()
            if self.figures.phase != "training":
                self._hurried_at = None
            elif self._hurried_at is not None and now > self._hurried_at + STUCK_S:
                # Doubt oneself first: the others can go on, and this node catches up.
                self._hurried_at = None
                _log.warning("the trainer has not answered for %.0f s; the others go on", STUCK_S)
                if self.group is not None:
                    self.group.set_not_ready("its trainer does not answer")
            if self._hurry_at is None or link is None or now < self._hurry_at:
                continue
            self._hurry_at = None
            if self.figures.phase == "training":
                self._hurried_at = now
                link.hurry(self.figures.round)

    async def _watch_useless(self, trainers: Trainers) -> None:
        await trainers.useless.wait()
        raise NodedError(
            f"the trainer cannot work with this configuration: {trainers.status.error}",
            hint=f"see {self.directory / 'trainer.log'}",
        )


async def _cancel_when_gone(link: TrainerLink, attached: trio.CancelScope) -> None:
    """Nothing waits for others on behalf of a trainer that is not there any more."""
    await link.gone.wait()
    if not link.finished:
        attached.cancel()


class _MetricsFile:
    """Appends JSON lines; a full disk costs lines, whole ones, and never the run."""

    def __init__(self, path: Path) -> None:
        self.latest: deque[dict[str, Any]] = deque(maxlen=HISTORY_POINTS)
        self._path = path
        self._file: io.FileIO | None = None
        self._size = 0
        self._complained = False

    def write(self, kind: str, **fields: object) -> None:
        point = {"kind": kind, "t": round(time.time(), 3), **fields}
        self.latest.append(point)
        line = json.dumps(point).encode() + b"\n"
        try:
            if self._file is None:
                # Unbuffered: what a buffer holds back on a full disk comes out as half a line later.
                self._file = io.FileIO(self._path, "a")
                self._size = self._file.seek(0, os.SEEK_END)
            if self._file.write(line) != len(line):
                self._file.truncate(self._size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            if not self._complained:
                _log.warning("metrics not written, lines will be missing: %s", error.strerror)
            self._complained = True
        else:
            self._size += len(line)
            self._complained = False

    def close(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None


def manifest_of(section: RunSection, created_by: str, created_at: int) -> RunManifest:
    """The manifest that a node with `run.create = true` makes of its configuration."""
    return RunManifest(
        name=section.name,
        task=section.task,
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
    return manifest == manifest_of(section, manifest.created_by, manifest.created_at)


@asynccontextmanager
async def open_run_service(
    config: Config,
    endpoint: Endpoint,
    dht: Dht,
    *,
    rng: random.Random,
    random_bytes: Callable[[int], bytes] = os.urandom,
    advertised: Callable[[], tuple[str, ...]] = tuple,
) -> AsyncIterator[RunService | None]:
    """Take part in the configured run, if there is one, for as long as the context is open."""
    if config.run is None:
        yield None
        return
    service = RunService(config, config.run, endpoint.identity)
    service.advertised = advertised
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.live, endpoint, dht, rng, random_bytes)
        try:
            yield service
        finally:
            nursery.cancel_scope.cancel()
