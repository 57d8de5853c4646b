"""A noded endpoint in a namespace, told what to do by JSON lines on stdin.

    python -m tests.lab.node_process '{"seed": 1, "name": "a", "listen": ["0.0.0.0:7447"]}'

It says {"event": "ready", ...} when it listens, answers each command {"op": ..., "tag": n} with
{"tag": n, ...} (with "error" if it failed), and tells of every change of a peer. The end of stdin
is its end.
"""

import json
import os
import random
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import trio

from node.reach_report import reach_report
from tests.trusted import SWARM, trust_of
from transport.address import Address
from transport.endpoint import Endpoint, open_endpoint
from transport.errors import TransportError
from transport.identity import Identity, NodeId
from transport.network import Path
from transport.peer import Peer
from transport.reach.reach import Reach, ReachSettings, open_reach
from transport.relay.settings import RelaySettings
from transport.tcp import TcpNetwork
from transport.watch import PeerDown, PeerPathChanged, PeerUp

ECHO = "lab/echo"
POLL_S = 0.05
LOOK_S = 10.0

Json = dict[str, Any]


def identity_of(seed: int) -> Identity:
    return Identity.from_seed(seed.to_bytes(32, "big"))


def reaching(endpoint: Endpoint, options: Json) -> AbstractAsyncContextManager[Reach]:
    """What makes this endpoint reachable: the one place that knows how that is set up.

    Args:
        endpoint: listens already.
        options: "relays" (addresses with /via/), "serve" ("on", "auto", "off"), "port_mapping"
            (methods to ask the router by), "punch", "seed".
    """
    settings = ReachSettings(
        port_mapping=tuple(options.get("port_mapping", ("pcp", "natpmp", "upnp"))),
        punch=options.get("punch", True),
        relays=tuple(Address.parse(text) for text in options.get("relays", ())),
        relay=RelaySettings(serve=options.get("serve", "auto")),
    )
    return open_reach(endpoint, settings, rng=random.Random(options["seed"]))


class Program:
    """The commands; each method `do_<op>` returns what to answer."""

    def __init__(self, endpoint: Endpoint, reach: Reach) -> None:
        self.endpoint = endpoint
        self.reach = reach
        endpoint.serve_calls(ECHO, self._echo)

    async def _echo(self, _peer: Peer, body: bytes) -> bytes:
        return body

    def say(self, message: Json) -> None:
        print(json.dumps(message), flush=True)

    async def do_connect(self, *, addresses: list[str], node: str = "") -> Json:
        """Connect, then have a small message echoed; times from the start of it."""
        start = trio.current_time()
        expected = NodeId.parse(node) if node else None
        targets = [Address.parse(text) for text in addresses]
        peer = await self.endpoint.connect(targets, expected=expected)
        connected_s, path = trio.current_time() - start, str(peer.path)
        await peer.call(ECHO, b"hello")
        return {
            "node": str(peer.node_id),
            "path": path,
            "connected_s": connected_s,
            "first_byte_s": trio.current_time() - start,
        }

    async def do_try(self, *, addresses: list[str], node: str, patience_s: float) -> Json:
        """Try to connect and give it up after a while; the peer's path, None without a peer."""
        targets, expected = [Address.parse(text) for text in addresses], NodeId.parse(node)
        reason = "given up"
        with trio.move_on_after(patience_s):
            try:
                await self.endpoint.connect(targets, expected=expected)
            except TransportError as error:
                reason = str(error)
        path = self._path(expected)
        return {"path": None if path is None else str(path), "reason": reason}

    async def do_direct(self, *, node: str, patience_s: float) -> Json:
        """Wait until a connected peer is no longer relayed; "path" is what it is in the end."""
        start = trio.current_time()
        node_id = NodeId.parse(node)
        with trio.move_on_after(patience_s), self.endpoint.watch() as events:
            if self._path(node_id) in (None, Path.RELAYED):
                async for event in events:
                    if isinstance(event, PeerPathChanged | PeerUp) and (
                        self._path(node_id) not in (None, Path.RELAYED)
                    ):
                        break
        peer = self.endpoint.peers.get(node_id)
        if peer is not None:
            await peer.call(ECHO, b"still here")
        return {
            "path": None if peer is None else str(peer.path),
            "waited_s": trio.current_time() - start,
        }

    def _path(self, node_id: NodeId) -> Path | None:
        peer = self.endpoint.peers.get(node_id)
        return None if peer is None else peer.path

    async def do_reachable(self) -> Json:
        """Wait until others have a way to this node: relays hold a reservation, or they can dial it."""
        while not self._reachable():
            await trio.sleep(POLL_S)
        return {"addresses": self.addresses(), "verdict": str(self.reach.diagnosis.standing)}

    def _reachable(self) -> bool:
        return str(self.reach.diagnosis.standing) == "direct" or any(
            address.relay for address in self.endpoint.advertised
        )

    def addresses(self) -> list[str]:
        return [str(address) for address in self.endpoint.advertised]

    async def do_report(self) -> Json:
        await trio.lowlevel.checkpoint()
        return {"report": reach_report(self.reach)}

    async def run(self, lines: AsyncIterator[bytes]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell_events)
            async for line in lines:
                nursery.start_soon(self._serve, json.loads(line))
            nursery.cancel_scope.cancel()

    async def _serve(self, command: Json) -> None:
        tag, op = command.pop("tag"), command.pop("op")
        try:
            answer: Json = await getattr(self, f"do_{op}")(**command)
        except TransportError as error:
            answer = {"error": str(error), "kind": type(error).__name__}
        self.say({"tag": tag, **answer})

    async def _tell_events(self) -> None:
        with self.endpoint.watch() as events:
            async for event in events:
                if isinstance(event, PeerUp | PeerDown | PeerPathChanged):
                    self.say(
                        {
                            "event": type(event).__name__,
                            "node": str(event.peer.node_id),
                            "path": str(event.peer.path),
                            "at_s": trio.current_time(),
                        }
                    )


async def lines_of(fd: int) -> AsyncIterator[bytes]:
    rest = b""
    async with trio.lowlevel.FdStream(os.dup(fd)) as stream:
        async for data in stream:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                yield line


async def main(options: Json) -> None:
    listen = [Address.parse(text) for text in options["listen"]]
    async with (
        open_endpoint(
            identity_of(options["seed"]),
            SWARM,
            TcpNetwork(),
            listen,
            trust=trust_of(identity_of(options["seed"])),
            name=options["name"],
            rng=random.Random(options["seed"]),
        ) as endpoint,
        reaching(endpoint, options) as reach,
    ):
        program = Program(endpoint, reach)
        ready = [str(address) for address in endpoint.addresses]
        program.say({"event": "ready", "node": str(endpoint.node_id), "listening": ready})
        await program.run(lines_of(sys.stdin.fileno()))


if __name__ == "__main__":
    if os.environ.get("NODED_LAB_LOG"):
        import logging

        logging.basicConfig(
            level=os.environ["NODED_LAB_LOG"], format="%(asctime)s %(name)s: %(message)s"
        )
    trio.run(main, json.loads(sys.argv[1]))
