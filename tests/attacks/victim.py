"""The node under attack, in a process of its own: `python -m tests.attacks.victim '{"limits": {...}, "nofile": 128}'`.

Prints its address as the first line, then one JSON line about itself for each line it is sent.
"""

import json
import os
import resource
import sys
from typing import Any

import msgspec
import trio

from dht.messages import Answer, Query
from tests.transport.nodes import SWARM, identity
from tests.trusted import trust_of
from transport.address import Address
from transport.codec import decode_untrusted, unpack_untrusted
from transport.endpoint import Endpoint, open_endpoint
from transport.errors import MalformedMessage, RemoteCallFailed
from transport.limits import Limits
from transport.peer import Peer
from transport.streams.stream import Stream
from transport.tcp import TcpNetwork

NUMBER = 99
"""Its identity among those of `tests.transport.nodes`."""


# Opened beforehand: looking at oneself must work without a descriptor to spare.
_STATM = os.open("/proc/self/statm", os.O_RDONLY)
MOST_DESCRIPTORS = 4096


def resident_bytes() -> int:
    return int(os.pread(_STATM, 100, 0).split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_descriptors() -> int:
    found = 0
    for number in range(MOST_DESCRIPTORS):
        try:
            os.fstat(number)
        except OSError:
            continue
        found += 1
    return found


class Services:
    """What it serves; `counted` keeps what `count` calls said, in order."""

    def __init__(self) -> None:
        self.counted: list[int] = []
        self.sunk = 0

    async def echo(self, _peer: Peer, request: bytes) -> bytes:
        return request

    async def count(self, _peer: Peer, request: bytes) -> bytes:
        self.counted.append(int.from_bytes(request, "big"))
        return b"noted"

    async def decode(self, _peer: Peer, request: bytes) -> bytes:
        try:
            unpack_untrusted(request)
            decode_untrusted(request, Query)
            decode_untrusted(request, Answer)
        except MalformedMessage as error:
            raise RemoteCallFailed(str(error)) from None
        return b"fine"

    async def flow(self, stream: Stream) -> None:
        """Sends as long as the other side lets it."""
        while True:
            await stream.send_all(bytes(65536))

    async def sink(self, stream: Stream) -> None:
        async for chunk in stream:
            self.sunk += len(chunk)

    async def deaf(self, _stream: Stream) -> None:
        await trio.sleep_forever()


def about(endpoint: Endpoint, services: Services) -> dict[str, Any]:
    return {
        "rss": resident_bytes(),
        "descriptors": open_descriptors(),
        "tasks": trio.lowlevel.current_statistics().tasks_living,
        "counters": dict(endpoint.counters),
        "peers": len(endpoint.peers),
        "counted": services.counted,
    }


async def main(options: dict[str, Any]) -> None:
    services = Services()
    async with open_endpoint(
        identity(NUMBER),
        SWARM,
        TcpNetwork(),
        [Address("127.0.0.1", 0)],
        trust=trust_of(identity(NUMBER)),
        limits=msgspec.convert(options.get("limits", {}), Limits),
    ) as endpoint:
        endpoint.serve_calls("echo", services.echo)
        endpoint.serve_calls("count", services.count)
        endpoint.serve_calls("decode", services.decode)
        endpoint.serve("flow", services.flow)
        endpoint.serve("sink", services.sink)
        endpoint.serve("deaf", services.deaf)
        questions = trio.lowlevel.FdStream(os.dup(0))
        answers = trio.lowlevel.FdStream(os.dup(1))
        if "nofile" in options:
            resource.setrlimit(resource.RLIMIT_NOFILE, (options["nofile"], options["nofile"]))
        await answers.send_all(f"{endpoint.addresses[0]}\n".encode())
        async for questions_read in questions:
            for _ in range(questions_read.count(b"\n")):
                await answers.send_all(json.dumps(about(endpoint, services)).encode() + b"\n")


if __name__ == "__main__":
    trio.run(main, json.loads(sys.argv[1]))
