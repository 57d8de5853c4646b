"""Making a run findable by its name, and finding it (driver over the DHT and peers).

Two kinds of DHT records, both only hints:

* under (swarm, "run", name): the run's id, signed by whoever created the run or takes part in it;
* a provider record of the run's id (`dht.provider`): one per member, with its addresses.

The manifest itself is fetched from a peer and believed because it hashes to the run's id. When a
name stands for several runs, the one that most signers name wins, then the lowest id: every node
chooses the same, whatever order the answers came in.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import trio

from dht.contact import sane_address
from dht.errors import NoUsableAddress
from dht.key import record_key
from dht.provider import MAX_PROVIDED_ADDRESSES, Kind
from dht.service import Dht
from node.errors import NodedError
from node.run.manifest import MAX_MANIFEST_BYTES, InvalidManifest, RunManifest
from transport.address import Address
from transport.durable import replace_file
from transport.endpoint import Endpoint
from transport.errors import InvalidAddress, TransportError
from transport.identity import NodeId
from transport.peer import Peer

SEARCH_S: Final = 1.0
"""Pause between two searches for a run that is not there yet."""
ASK_S: Final = 3.0
MANIFEST_PROTOCOL: Final = "run-manifest"
RECORD_TTL_S: Final = 1800.0
MAX_CANDIDATES: Final = 8
DIALS_AT_ONCE: Final = 8
DIALS_PER_LOOK: Final = 32

_log = logging.getLogger(__name__)


class RunFinder:
    """Publishes and finds runs for one node."""

    def __init__(self, endpoint: Endpoint, dht: Dht) -> None:
        self._endpoint = endpoint
        self._dht = dht
        self._known: dict[bytes, RunManifest] = {}
        endpoint.serve_calls(MANIFEST_PROTOCOL, self._answer)

    async def _answer(self, peer: Peer, request: bytes) -> bytes:
        del peer
        manifest = self._known.get(request)
        return b"" if manifest is None else manifest.canonical()

    async def announce(self, manifest: RunManifest, addresses: Sequence[Address]) -> None:
        """Publish the run and this node's part in it; republished by the DHT until it ends."""
        self._known[manifest.hash] = manifest
        key = record_key(self._endpoint.swarm.id, "run", manifest.name)
        await self._dht.put(key, manifest.hash, ttl_s=RECORD_TTL_S)
        where = [str(address) for address in _spread(addresses, MAX_PROVIDED_ADDRESSES)]
        try:
            await self._dht.provide(Kind.RUN, manifest.hash, where, ttl_s=RECORD_TTL_S)
        except NoUsableAddress:
            # Nobody can dial this node. It dials the others, and they know it from then on.
            self._dht.withdraw_provided(Kind.RUN, manifest.hash)

    async def find(self, name: str) -> RunManifest:
        """Search until a run of that name is found and its manifest is here."""
        while True:
            for run_id in await self._candidates(name):
                manifest = await self._fetch(run_id)
                if manifest is not None and manifest.name == name:
                    return manifest
            await trio.sleep(SEARCH_S)

    async def namesakes(self, manifest: RunManifest) -> list[NodeId]:
        """Connected peers that take part in another run of the same name; ascending."""
        found = set()
        for record in await self._dht.get(
            record_key(self._endpoint.swarm.id, "run", manifest.name)
        ):
            node = NodeId.of_public_key(record.public_key)
            if record.value != manifest.hash and node in self._endpoint.peers:
                found.add(node)
        return sorted(found)

    async def _candidates(self, name: str) -> list[bytes]:
        records = await self._dht.get(record_key(self._endpoint.swarm.id, "run", name))
        named = Counter(record.value for record in records if len(record.value) == 32)
        return sorted(named, key=lambda run_id: (-named[run_id], run_id))[:MAX_CANDIDATES]

    async def _fetch(self, run_id: bytes) -> RunManifest | None:
        await self.connect_members(run_id)
        for peer in list(self._endpoint.peers.values()):
            with trio.move_on_after(ASK_S):
                try:
                    answer = await peer.call(MANIFEST_PROTOCOL, run_id)
                    manifest = RunManifest.from_json(answer) if answer else None
                except (TransportError, InvalidManifest):
                    continue
                if manifest is not None and manifest.hash == run_id:
                    return manifest
        return None

    async def connect_members(self, run_id: bytes) -> None:
        """Connect to the members that the DHT names and that are not connected yet."""
        members = await self._dht.providers(Kind.RUN, run_id)
        await self.connect_all([(NodeId(each.node_id), each.addresses) for each in members])

    async def connect_all(self, nodes: Sequence[tuple[NodeId, Sequence[str]]]) -> None:
        """Connect to those that are not connected, a few at a time and not too many in one go.

        What others say about a roster is a hint: it must not become thousands of dials.
        """
        missing = [
            (node, addresses)
            for node, addresses in nodes
            if node != self._endpoint.node_id and node not in self._endpoint.peers
        ]
        limiter = trio.CapacityLimiter(DIALS_AT_ONCE)
        async with trio.open_nursery() as nursery:
            for node, addresses in missing[:DIALS_PER_LOOK]:
                nursery.start_soon(self._connect_within, limiter, node, addresses)

    async def _connect_within(
        self, limiter: trio.CapacityLimiter, node: NodeId, addresses: Sequence[str]
    ) -> None:
        async with limiter:
            await self.connect(node, addresses)

    async def connect(self, node: NodeId, addresses: Sequence[str]) -> None:
        """Connect to one node unless that is done; a failure is only logged."""
        if node == self._endpoint.node_id or node in self._endpoint.peers:
            return
        # Anybody may have written these: no name to resolve, and our own services for neighbours only.
        loopback = any(own.is_loopback for own in self._endpoint.addresses)
        parsed = []
        for text in addresses:
            try:
                if sane_address(text, loopback=loopback):
                    parsed.append(Address.parse(text))
            except InvalidAddress:
                continue
        if not parsed:
            return
        with trio.move_on_after(ASK_S):
            try:
                await self._endpoint.connect(parsed, expected=node)
            except TransportError as error:
                _log.debug("member %s not reached: %s", node.short, error)


def _spread(addresses: Sequence[Address], count: int) -> list[Address]:
    """At most `count` of them: the first ones, but two places for relayed ones if there are any."""
    relayed = [address for address in addresses if address.relay][:2]
    direct = [address for address in addresses if not address.relay]
    return direct[: count - len(relayed)] + relayed


def load_manifest(path: Path) -> RunManifest | None:
    """The manifest stored in a run's folder, or None when there is none.

    Raises:
        NodedError: there is one, and it cannot be read. Making a new one in its place would orphan
            the checkpoints beside it.
    """
    hint = f"restore {path.name}, or move the run's folder away to begin anew"
    try:
        data = path.read_bytes()[: MAX_MANIFEST_BYTES + 1]
    except FileNotFoundError:
        return None
    except OSError as error:
        raise NodedError(f"cannot read {path}: {error.strerror}", hint=hint) from error
    try:
        return RunManifest.from_json(data)
    except InvalidManifest as error:
        raise NodedError(f"{path} is damaged: {error}", hint=hint) from error


def store_manifest(path: Path, manifest: RunManifest) -> None:
    """Write the manifest so that it is there whole or not at all."""
    replace_file(path, manifest.canonical())
