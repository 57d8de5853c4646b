"""The daemon: start order is indentation, shutdown is the reverse.

`run_daemon` blocks until the node has been asked to stop (SIGTERM, SIGINT, `noded stop`) and has
left its run in good order, within ten seconds whatever state it is in: the first signal starts the
orderly way, a second one, or the deadline, the short one.
"""

from __future__ import annotations

import fcntl
import functools
import gc
import logging
import os
import random
import resource
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import msgspec
import trio

from dht.service import Dht, open_dht
from gossip.membership.service import open_membership
from gossip.membership.settings import LAN, WAN
from node import __version__, keys, log
from node.blocks.routes import block_routes
from node.blocks.service import open_blocks
from node.control import Handlers, open_control
from node.errors import (
    AddressUnavailable,
    ExitCode,
    NodedError,
    NotReady,
    Refused,
    UsageError,
    first_error,
)
from node.joining.belonging import Belonging, open_belonging
from node.joining.facts import load_facts, with_known_members
from node.paths import ensure_private_dir
from node.pinging import measure, whom
from node.probe import LagProbe
from node.reach_report import daemon_netcheck, last_punch, refused_advice
from node.relay_budget import keep_spent, load_spent
from node.run.run import open_run_service
from node.run.state import state_document
from node.schema import Config
from node.status import Parts, peer_rows, status_document
from node.systemd import Notifier, run_watchdog
from node.traffic import TrafficMeter
from node.trust.membership import SwarmStanding, keep_membership, load_standing
from node.wall_clock import DAY_MS
from transport.address import Address
from transport.endpoint import Endpoint, open_endpoint
from transport.errors import AddressInUse, InvalidAddress, ListenFailed
from transport.identity import Identity, NodeId
from transport.reach.diagnosis import Standing
from transport.reach.reach import PORT_MAPPING_METHODS, Reach, ReachSettings, open_reach
from transport.tcp import TcpNetwork

LEAVE_S: Final = 8.0
"""For the orderly stop: trainer, goodbye, sockets."""
HARD_STOP_S: Final = 9.5
"""After this the process ends, come what may: the promise is ten seconds."""
MAX_NAME_CHARACTERS: Final = 64
"""As `node.name` of the configuration."""

_log = logging.getLogger(__name__)


def run_daemon(config: Config, *, reload: Callable[[], Config] | None = None) -> int:
    """Run a node until it is asked to stop; returns the process's exit code.

    Args:
        config: what `node.config.load_config` gave.
        reload: reads the configuration again on SIGHUP; None ignores the signal.

    Raises:
        NodedError: it cannot start; nothing is left behind.
    """
    config = _completed(config)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold the keys
    ensure_private_dir(config.data_dir)
    with _lock(config.paths.lock):
        try:
            trio.run(_Daemon(config, reload).main)
        except BaseExceptionGroup as group:
            raise first_error(group) from group
    return int(ExitCode.OK)


class _Daemon:
    """State that the pieces of one daemon share."""

    def __init__(self, config: Config, reload: Callable[[], Config] | None) -> None:
        self._config = config
        self._reload = reload
        self._stop = trio.Event()
        self._asked = False  # to stop, on the control socket
        self._parts: Parts | None = None
        self._belonging: Belonging | None = None
        self._notifier = Notifier.from_environ()

    async def main(self) -> None:
        """Boot, wait, shut down."""
        config = self._config
        identity = keys.load_or_create_identity(config.paths.node_key)
        standing = load_standing(config.paths, identity, config.swarm)
        rng = random.Random(os.urandom(16))
        lag = LagProbe()
        with trio.CancelScope() as everything:
            async with trio.open_nursery() as background:
                await background.start(self._watch_signals, everything)
                background.start_soon(lag.run)
                background.start_soon(run_watchdog, self._notifier)
                async with (
                    _open_network(config, identity, standing, rng) as endpoint,
                    open_reach(endpoint, _reach_settings(config, identity), rng=rng) as reach,
                    open_dht(
                        endpoint,
                        rng=rng,
                        wall_clock=time.time,
                        table_path=config.paths.data_dir / "dht-contacts",
                        reachable=functools.partial(_can_be_dialed, reach),
                    ) as dht,
                    open_membership(
                        endpoint,
                        settings=LAN if config.network.membership == "lan" else WAN,
                        rng=rng,
                        wall_clock=time.time,
                        find=functools.partial(_addresses_of, dht),
                    ) as membership,
                    keep_membership(
                        endpoint,
                        standing,
                        rng=rng,
                        lifetime_days=config.swarm.certificate_days,
                        find=functools.partial(_addresses_of, dht),
                        forget=dht.forget,
                    ) as swarm,
                ):
                    advertised = functools.partial(_advertised, endpoint)
                    traffic = TrafficMeter(endpoint)
                    await background.start(traffic.run)
                    await background.start(
                        keep_spent, config.paths.relay_budget, lambda: reach.service.spent_bytes
                    )
                    async with (
                        open_blocks(
                            endpoint,
                            dht,
                            config.paths.data_dir / "blocks",
                            quota_bytes=config.blocks.quota_bytes,
                            upload_bytes_per_s=config.blocks.upload_bytes_per_s,
                            rng=rng,
                            random_bytes=os.urandom,
                            advertised=advertised,
                        ) as blocks,
                        open_run_service(
                            config, endpoint, dht, blocks, rng=rng, advertised=advertised
                        ) as run,
                    ):
                        self._parts = Parts(
                            version=__version__,
                            config=config,
                            endpoint=endpoint,
                            reach=reach,
                            dht=dht,
                            membership=membership,
                            standing=standing,
                            swarm=swarm,
                            blocks=blocks,
                            run=run,
                            lag=lag,
                            traffic=traffic,
                            started_at=trio.current_time(),
                        )
                        async with (
                            open_belonging(
                                endpoint,
                                paths=config.paths,
                                trust=standing.trust,
                                statements=swarm,
                                facts=load_facts(config.paths.swarm_facts),
                                dht=dht,
                                stop=functools.partial(os.kill, os.getpid(), signal.SIGTERM),
                                rng=rng,
                                lan_discovery=config.network.lan_discovery,
                                lifetime_ms=config.swarm.certificate_days * DAY_MS,
                                own_name=config.node.name,
                            ) as self._belonging,
                            open_control(config.paths.control_socket, self._handlers()),
                            trio.open_nursery() as users,  # of the DHT: they end before it does
                        ):
                            users.start_soon(_bootstrap, dht, config)
                            self._settle(advertised())
                            await self._stop.wait()
                            self._notifier.stopping()
                            if run is not None:
                                await run.leave()
                            users.cancel_scope.cancel()
                background.cancel_scope.cancel()

    def _settle(self, advertised: tuple[str, ...]) -> None:
        """Everything is up."""
        # Objects made so far live as long as the daemon: the collector need not look at them again.
        gc.collect()
        gc.freeze()
        assert self._parts is not None
        node_id = self._parts.endpoint.node_id
        _log.info("ready: %s listens on %s", node_id.short, ", ".join(advertised) or "nothing")
        self._notifier.ready(f"{node_id.short} is ready")

    # ---- stopping --------------------------------------------------------------------------------

    async def _watch_signals(
        self,
        everything: trio.CancelScope,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            task_status.started()
            async for number in signals:
                if number == signal.SIGHUP:
                    self._read_config_again()
                    continue
                why = "noded stop" if self._asked else signal.Signals(number).name
                _log.info("stopping on %s", why)
                if self._stop.is_set():
                    everything.cancel()
                self._begin_stop(everything)

    def _read_config_again(self) -> None:
        """Apply what can change while running, and say what needs a restart."""
        if self._reload is None:
            return
        self._notifier.reloading()
        try:
            new, old = _completed(self._reload()), self._config
        except NodedError as error:
            _log.error("the configuration is not used: %s", error)
        else:
            sections = ("node", "network", "swarm", "limits", "relay", "run", "trainer", "blocks")
            waiting = [name for name in sections if getattr(new, name) != getattr(old, name)]
            if new.log != old.log:
                log.configure(new.log.level, new.log.format)
                _log.info("log settings applied")
            if waiting:
                _log.warning("changes in [%s] take effect at the next start", "], [".join(waiting))
            self._config = msgspec.structs.replace(old, log=new.log)
        self._notifier.ready()

    def _begin_stop(self, everything: trio.CancelScope) -> None:
        if self._stop.is_set():
            return
        self._stop.set()
        everything.deadline = trio.current_time() + LEAVE_S
        # The last resort must not need the event loop.
        timer = threading.Timer(HARD_STOP_S, self._end_now)
        timer.daemon = True
        timer.start()

    def _end_now(self) -> None:
        run = None if self._parts is None else self._parts.run
        part = None if run is None else run.part
        if part is not None and part.trainers.process_pid is not None:
            try:
                os.killpg(part.trainers.process_pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass
        os._exit(int(ExitCode.OK))

    # ---- control API -------------------------------------------------------------------------------

    def _handlers(self) -> Handlers:
        return {
            ("GET", "/v1/status"): self._answer_status,
            ("GET", "/v1/peers"): self._answer_peers,
            ("GET", "/v1/id"): self._answer_id,
            ("GET", "/v1/metrics-history"): self._answer_history,
            ("GET", "/v1/netcheck"): self._answer_netcheck,
            ("GET", "/v1/state"): self._answer_state,
            ("GET", "/healthz"): self._answer_alive,
            ("GET", "/readyz"): self._answer_ready,
            ("POST", "/v1/ping"): self._answer_ping,
            ("POST", "/v1/stop"): self._answer_stop,
            **block_routes(self._up.blocks, self._config.paths.data_dir),
            **({} if self._belonging is None else self._belonging.handlers()),
        }

    @property
    def _up(self) -> Parts:
        assert self._parts is not None, "the control socket opens after everything else"
        return self._parts

    async def _answer_status(self, _body: dict[str, Any] | None) -> tuple[int, dict[str, Any]]:
        return 200, status_document(self._up, stopping=self._stop.is_set())

    async def _answer_peers(self, _body: dict[str, Any] | None) -> tuple[int, dict[str, Any]]:
        return 200, {"schema": "noded.peers/1", "peers": peer_rows(self._up)}

    async def _answer_id(self, _body: dict[str, Any] | None) -> tuple[int, dict[str, Any]]:
        node_id = self._up.endpoint.node_id
        return 200, {
            "schema": "noded.id/1",
            "id": str(node_id),
            "short_id": node_id.short,
            "addresses": list(_advertised(self._up.endpoint)),
            "swarm": self._up.endpoint.swarm.id.hex(),
        }

    async def _answer_history(self, _body: dict[str, Any] | None) -> tuple[int, dict[str, Any]]:
        run = self._up.run
        points = [] if run is None else run.history()
        return 200, {"schema": "noded.metrics-history/1", "points": points}

    async def _answer_netcheck(self, _body: dict[str, Any] | None) -> tuple[int, dict[str, Any]]:
        refusal = self._up.standing.own_refusal(self._up.endpoint.identity)
        report = daemon_netcheck(self._up.reach, self._up.dht.bootstrap_status())
        return 200, report | refused_advice(refusal)

    async def _answer_state(self, _body: dict[str, Any] | None) -> tuple[int, dict[str, Any]]:
        run = self._up.run
        if run is None or run.part is None:
            raise NotReady(
                "this node has no shared state: it takes part in no run yet",
                hint="noded status says what it is doing",
            )
        return 200, state_document(run.part.presence.state, run.part.manifest)

    async def _answer_alive(self, _body: dict[str, Any] | None) -> tuple[int, dict[str, Any]]:
        return 200, {"schema": "noded.healthz/1", "alive": True}

    async def _answer_ready(self, _body: dict[str, Any] | None) -> tuple[int, dict[str, Any]]:
        document = status_document(self._up, stopping=self._stop.is_set())
        ready = document["verdict"] != "failing" and document["state"] not in {
            "degraded",
            "stopping",
        }
        return (200 if ready else 503), {
            "schema": "noded.readyz/1",
            "ready": ready,
            "state": document["state"],
            "verdict": document["verdict"],
        }

    async def _answer_ping(self, body: dict[str, Any] | None) -> tuple[int, dict[str, Any]]:
        wanted, count = (body or {}).get("peer"), (body or {}).get("count", 1)
        if not isinstance(wanted, str) or not isinstance(count, int) or not 1 <= count <= 100:
            raise UsageError('ping wants {"peer": TEXT, "count": 1 to 100}')
        peer = await whom(self._up, wanted, functools.partial(_addresses_of, self._up.dht))
        replies = [
            {"rtt_s": rtt_s, "path": path, **self._relay_named(relay)}
            for rtt_s, path, relay in await measure(peer, count)
        ]
        return 200, {
            "schema": "noded.ping/1",
            "peer": str(peer.node_id),
            "name": peer.name,
            "address": str(peer.address),
            "replies": replies,
            "last_punch": last_punch(self._up.reach, peer.node_id),
        }

    def _relay_named(self, relay: NodeId | None) -> dict[str, str | None]:
        known = None if relay is None else self._up.endpoint.peers.get(relay)
        return {
            "relay": None if relay is None else str(relay),
            "relay_name": None if known is None else known.name,
        }

    async def _answer_stop(self, _body: dict[str, Any] | None) -> tuple[int, dict[str, Any]]:
        self._asked = True
        os.kill(os.getpid(), signal.SIGTERM)  # one way to stop, whoever asks
        return 200, {"schema": "noded.stop/1", "stopping": True, "pid": os.getpid()}


def _completed(config: Config) -> Config:
    """The configuration with what is known beside it: the host's name, and members that this node was told of."""
    return with_known_members(_with_host_name(config))


def _with_host_name(config: Config) -> Config:
    """The configuration with the machine's host name where it gives the node no name."""
    if config.node.name:
        return config
    name = os.uname().nodename[:MAX_NAME_CHARACTERS]
    return msgspec.structs.replace(config, node=msgspec.structs.replace(config.node, name=name))


def _reach_settings(config: Config, identity: Identity) -> ReachSettings:
    network = config.network
    return ReachSettings(
        configured=tuple(Address.parse(text) for text in network.advertise),
        port_mapping=PORT_MAPPING_METHODS if network.port_mapping else (),
        punch=network.hole_punching,
        relay=config.relay,
        relays=tuple(Address.parse(text) for text in network.relays),
        knows_others=bool(network.bootstrap),
        mapping_secret=identity.seed,
        relay_spent_bytes=load_spent(config.paths.relay_budget, config.relay),
    )


def _advertised(endpoint: Endpoint) -> tuple[str, ...]:
    """Addresses that others can do something with."""
    return tuple(str(at) for at in endpoint.advertised if not at.is_wildcard)


def _can_be_dialed(reach: Reach) -> bool:
    """Whether to serve in the DHT: a node that is known to need relays or punches only asks there."""
    if any(address.relay for address in reach.endpoint.advertised):
        return False
    return reach.diagnosis.standing not in (Standing.PUNCHABLE, Standing.RELAYED)


async def _addresses_of(dht: Dht, node_id: NodeId) -> list[Address]:
    """Where the DHT says that a node may be reached; empty if nobody knows."""
    found = []
    for text in await dht.locate(bytes(node_id)):
        with suppress(InvalidAddress):  # hearsay
            found.append(Address.parse(text))
    return found


async def _bootstrap(dht: Dht, config: Config) -> None:
    reached = await dht.bootstrap([Address.parse(text) for text in config.network.bootstrap])
    if config.network.bootstrap and not reached:
        reasons = "; ".join(f"{at}: {why}" for at, why in dht.bootstrap_status().items())
        _log.warning("no bootstrap address answers yet, trying on: %s", reasons)


@asynccontextmanager
async def _open_network(
    config: Config, identity: Identity, standing: SwarmStanding, rng: random.Random
) -> AsyncIterator[Endpoint]:
    """The endpoint, with a listen address that cannot be had said in the user's words."""
    try:
        async with open_endpoint(
            identity,
            standing.swarm,
            TcpNetwork(),
            [Address.parse(text) for text in config.network.listen],
            trust=standing.trust,
            name=config.node.name,
            limits=config.limits,
            rng=rng,
        ) as endpoint:
            yield endpoint
    except AddressInUse as error:
        raise AddressUnavailable(
            str(error),
            hint="stop what uses it; a second node on this machine needs a port of its own, in "
            "network.listen or with:  noded run --set network.listen=127.0.0.1:7448",
        ) from error
    except ListenFailed as error:
        raise NodedError(str(error), hint=error.hint) from error


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One daemon per data directory; the kernel drops the lock however the process ends."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(
                f"another daemon uses {path.parent}",
                hint="stop it first:  noded stop      or give this one a data directory of its own",
            ) from None
        os.ftruncate(fd, 0)
        os.write(fd, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(fd)
