"""Members of a run are dialed where they say they are, as far as that can be turned against nobody; runs of one name are told apart."""

import os
from types import SimpleNamespace

import pytest

from dht.provider import Kind, Provider, provider_value
from node.run.finder import RunFinder
from node.run.manifest import RunManifest
from tests.trusted import SWARM
from transport.address import Address
from transport.identity import Identity

MEMBER = Identity.generate(os.urandom).node_id
RELAYED = f"11.1.1.2:7447/via/{MEMBER}"
WRITTEN = (
    "11.1.1.1:7447",
    "192.168.1.1:7447",
    RELAYED,
    "127.0.0.1:6379",
    "[::ffff:127.0.0.1]:22",
    "169.254.169.254:80",
    "0.0.0.0:22",
    "224.0.0.1:80",
    "metadata.google.internal:80",
    f"attacker.example:80/via/{MEMBER}",
    "11.1.1.1:0",
    "rubbish",
)


class FakeEndpoint:
    """Notes whom it should dial."""

    swarm = SWARM
    node_id = Identity.generate(os.urandom).node_id

    def __init__(self, listening: str) -> None:
        self.addresses = (Address.parse(listening),)
        self.peers: dict[object, object] = {}
        self.dialed: list[str] = []

    def serve_calls(self, protocol: str, handler: object) -> None:
        del protocol, handler

    async def connect(self, addresses, expected=None) -> None:
        assert expected == MEMBER
        self.dialed += map(str, addresses)


@pytest.mark.parametrize(
    ("listening", "loopback"), [("0.0.0.0:7447", False), ("127.0.0.1:7447", True)]
)
async def test_only_addresses_that_lead_to_a_node_are_dialed(listening, loopback):
    endpoint = FakeEndpoint(listening)
    finder = RunFinder(endpoint, None)
    await finder.connect_all([(MEMBER, WRITTEN)])
    own = ["127.0.0.1:6379"] if loopback else []
    assert endpoint.dialed == ["11.1.1.1:7447", "192.168.1.1:7447", RELAYED, *own]
    await finder.connect_all([(MEMBER, WRITTEN[5:])])
    assert len(endpoint.dialed) == 3 + loopback  # nothing left: nothing dialed


class FakeDht:
    """Has records under the one name that is asked for."""

    def __init__(self, *records: tuple[Identity, bytes]) -> None:
        self.records = [
            SimpleNamespace(public_key=signer.public_key, value=value) for signer, value in records
        ]

    async def get(self, _key: bytes) -> list[SimpleNamespace]:
        return self.records


async def test_connected_peers_in_another_run_of_this_name_are_found():
    barn, loft, gone = (Identity.from_seed(bytes([n]) * 32) for n in (1, 2, 3))
    manifest = RunManifest(name="demo", task="t")
    other = bytes(32)
    endpoint = FakeEndpoint("127.0.0.1:7447")
    endpoint.peers = {barn.node_id: None, loft.node_id: None}
    finder = RunFinder(endpoint, FakeDht((barn, other), (loft, manifest.hash), (gone, other)))
    assert await finder.namesakes(manifest) == [barn.node_id]


class PublishingDht(FakeDht):
    """Takes what is published; provides as the real one does, which refuses addresses of no use."""

    def __init__(self) -> None:
        super().__init__()
        self.published: dict[str, object] = {}

    async def put(self, _key: bytes, value: bytes, *, ttl_s: float) -> int:
        assert ttl_s > 0
        self.published["run"] = value
        return 0

    async def provide(self, kind: Kind, name: bytes, addresses: list[str], *, ttl_s: float) -> int:
        provider_value(addresses)
        self.published["member"] = (kind, name, tuple(addresses))
        return 0

    def withdraw_provided(self, kind: Kind, name: bytes) -> bool:
        return self.published.pop("member", (None, None))[:2] == (kind, name)

    async def providers(self, kind: Kind, name: bytes) -> list[Provider]:
        assert (kind, name) == self.published["member"][:2]
        return [Provider(bytes(MEMBER), b"", self.published["member"][2], 0)]


async def test_a_member_is_published_as_a_provider_of_its_run_and_dialed_as_one():
    manifest, dht = RunManifest(name="demo", task="t"), PublishingDht()
    endpoint = FakeEndpoint("0.0.0.0:7447")
    finder = RunFinder(endpoint, dht)
    many = [Address.parse(f"11.1.1.{n}:7447") for n in range(1, 9)]
    await finder.announce(manifest, [*many, Address.parse(RELAYED)])
    assert dht.published["run"] == manifest.hash
    assert dht.published["member"][2] == (*map(str, many[:5]), RELAYED)
    await finder.connect_members(manifest.hash)
    assert endpoint.dialed == [*map(str, many[:5]), RELAYED]


async def test_a_member_that_nobody_can_dial_any_more_says_so_by_its_silence():
    manifest, dht = RunManifest(name="demo", task="t"), PublishingDht()
    finder = RunFinder(FakeEndpoint("0.0.0.0:7447"), dht)
    await finder.announce(manifest, [Address.parse("11.1.1.1:7447")])
    await finder.announce(manifest, [])
    assert dht.published == {"run": manifest.hash}
