"""Nodes in the lab, from outside: processes of `tests.lab.node_process`, and an internet that has some."""

import json
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from tests.lab.namespaces import LabError
from tests.lab.node_process import identity_of, lines_of
from tests.lab.topology import Host, Lab, stop

PORT = 7447
LISTEN = (f"0.0.0.0:{PORT}", f"[::]:{PORT}")
START_S = 60.0
ANSWER_S = 120.0

Json = dict[str, Any]


class Node:
    """One of them; made by `open_node`."""

    def __init__(self, host: Host, name: str, seed: int, stdin: int) -> None:
        self.host = host
        self.name = name
        self.node_id = identity_of(seed).node_id
        self.events: list[Json] = []
        self._stdin = stdin
        self._answers: dict[int, Json] = {}
        self._ended = False
        self._news = trio.Event()
        self._count = 0

    async def ask(self, op: str, **arguments: object) -> Json:
        """Have a command done.

        Raises:
            LabError: it failed, or the process ended.
        """
        self._count += 1
        tag = self._count
        os.write(self._stdin, json.dumps({"op": op, "tag": tag, **arguments}).encode() + b"\n")
        await self._until(lambda: tag in self._answers, op, ANSWER_S)
        answer = self._answers.pop(tag)
        if "error" in answer:
            raise LabError(f"{self.name}: {op}: {answer['error']}")
        return answer

    async def ready(self) -> None:
        await self._until(
            lambda: any(event["event"] == "ready" for event in self.events), "start", START_S
        )

    async def _until(self, wanted: Any, what: str, patience_s: float) -> None:
        with trio.move_on_after(patience_s):
            while not wanted() and not self._ended:
                await self._news.wait()
        if not wanted():
            why = "the process ended" if self._ended else f"nothing within {patience_s:.0f} s"
            raise LabError(f"{self.name}: {what}: {why}")

    async def listen_to(self, fd: int) -> None:
        """Take what the process says until it ends."""
        async for line in lines_of(fd):
            message = json.loads(line)
            if "tag" in message:
                self._answers[message["tag"]] = message
            else:
                self.events.append(message)
            self._tell()
        self._ended = True
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()


@asynccontextmanager
async def open_node(
    host: Host, name: str, seed: int, *, listen: Sequence[str] = LISTEN, **options: Any
) -> AsyncIterator[Node]:
    """Run a node for the length of the block; it listens once `Node.ready` returns."""
    settings = {"name": name, "seed": seed, "listen": list(listen), **options}
    process = host.namespace.popen(
        *(sys.executable, "-P", "-m", "tests.lab.node_process", json.dumps(settings)),
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        node = Node(host, name, seed, process.stdin.fileno())
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.listen_to, process.stdout.fileno())
            try:
                yield node
            except Exception as error:  # noqa: BLE001 - it goes on below, not in a group
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
    finally:
        stop(process)


class World:
    """A lab with public nodes that relay for everybody and see everybody's address."""

    def __init__(self, lab: Lab, public: Sequence[Node]) -> None:
        self.lab = lab
        self.public = public
        self._seed = 1000

    @property
    def relays(self) -> list[str]:
        return [f"{node.host.ip}:{PORT}/via/{node.node_id}" for node in self.public]

    @asynccontextmanager
    async def node(self, host: Host, name: str, **options: Any) -> AsyncIterator[Node]:
        """A node that knows the public ones, is connected to all of them, and can be reached."""
        self._seed += 1
        chosen = {"relays": self.relays, "serve": "off", **options}
        async with open_node(host, name, self._seed, **chosen) as node:
            await node.ready()
            failures: list[LabError] = []
            async with trio.open_nursery() as nursery:
                for other in self.public:
                    nursery.start_soon(self._introduce, node, other, failures)
            if len(failures) == len(self.public):
                raise failures[0]
            yield node

    async def _introduce(self, node: Node, other: Node, failures: list[LabError]) -> None:
        addresses = [f"{other.host.ip}:{PORT}"]
        if node.host.ip6:
            addresses.insert(0, f"[{other.host.ip6}]:{PORT}")  # in the order that it tells
        try:
            await node.ask("connect", addresses=addresses, node=str(other.node_id))
        except LabError as error:  # others will do
            failures.append(error)


@asynccontextmanager
async def open_world(lab: Lab, *, public: int = 4) -> AsyncIterator[World]:
    """Start the public nodes."""
    async with AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(
                open_node(lab.public(), f"public-{number}", number, serve="on", port_mapping=[])
            )
            for number in range(1, public + 1)
        ]
        for number, node in enumerate(nodes):
            await node.ready()
            for other in nodes[:number]:
                target = f"{other.host.ip}:{PORT}"
                await node.ask("connect", addresses=[target], node=str(other.node_id))
        yield World(lab, nodes)
