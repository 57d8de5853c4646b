"""A program for the tests: listens on a port, keeps it mapped, and says so in lines of JSON until its input ends.

mapper_process.py PORT FAMILY METHOD [METHOD ...]
"""

import json
import sys

import trio

from transport.nat.portmap import Mapping, PortMapper


def say(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


async def answer(stream: trio.SocketStream) -> None:
    async with stream:
        await stream.send_all(b"reached\n")


async def main(port: int, family: int, methods: list[str]) -> None:
    def changed(mapping: Mapping | None) -> None:
        say(
            external=str(mapping.external) if mapping else "",
            method=str(mapping.method) if mapping else "",
            gateway=mapping.gateway if mapping else "",
        )

    mapper = PortMapper(port, family=family, methods=methods, on_change=changed)

    async def tell_failures() -> None:
        known: dict[str, str] = {}
        while True:
            if mapper.failures != known:
                known = mapper.failures
                say(failures=known)
            await trio.sleep(0.1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_tcp, answer, port)
        nursery.start_soon(mapper.run)
        nursery.start_soon(tell_failures)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
