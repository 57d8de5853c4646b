"""The process that carries frames between TAP interfaces: `Switch` with a real clock.

The kernel here has no netem, so delay and loss are ours to make. A process of its own, because a
busy test would otherwise add its own pauses to everybody's round trips; it gets the TAP
descriptors over a Unix socket and needs no privilege at all.

    python -m tests.lab.forwarder FD     serve the commands that come over the socket FD

Commands are JSON datagrams: {"add": number} with a descriptor, {"remove": number},
{"profile": {...}}, {"counters": true}; each is answered when it is done. The end of the socket is
the end of the process.
"""

import json
import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import attrs

from tests.lab.namespaces import PATIENCE_S, Namespace, dying_with_us
from tests.lab.switch import LinkProfile, Switch

MTU_AND_MORE = 65_600
BURST = 64
"""Frames read from one port before the others get their turn."""


class Forwarder:
    """Our end: starts the process, plugs namespaces in and out."""

    def __init__(self, profile: LinkProfile, seed: int = 0) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(PATIENCE_S)
        self._socket = ours
        self._next = 0
        self._process = subprocess.Popen(
            [
                *dying_with_us(),
                *(sys.executable, "-P", "-m", "tests.lab.forwarder", str(theirs.fileno())),
            ],
            pass_fds=(theirs.fileno(),),
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            process_group=0,
        )
        theirs.close()
        try:
            self._ask({"profile": attrs.asdict(profile), "seed": seed})
        except BaseException:
            self.close()
            raise

    def _ask(self, command: dict[str, Any], *fds: int) -> Any:
        socket.send_fds(self._socket, [json.dumps(command).encode()], fds)
        answer = self._socket.recv(1 << 16)
        if not answer:
            raise ConnectionError("the forwarder ended")
        return json.loads(answer)

    def plug(self, namespace: Namespace, name: str) -> int:
        """Give a namespace the interface `name` on this segment; returns the number to unplug."""
        tap = namespace.tap(name)
        try:
            self._next += 1
            self._ask({"add": self._next}, tap)
        finally:
            os.close(tap)
        return self._next

    def unplug(self, number: int) -> None:
        self._ask({"remove": number})

    def change(self, profile: LinkProfile) -> None:
        """From now on frames suffer this."""
        self._ask({"profile": attrs.asdict(profile)})

    def counters(self) -> dict[str, int]:
        found: dict[str, int] = self._ask({"counters": True})
        return found

    def close(self) -> None:
        self._socket.close()
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class _Server:
    """The process itself."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self.switch = Switch(LinkProfile())
        self.ports: dict[int, int] = {}
        self.epoll = select.epoll()
        self.epoll.register(control.fileno(), select.EPOLLIN)

    def serve(self) -> None:
        while True:
            due = self.switch.next_deadline()
            wait_s = -1 if due is None else max(0.0, due - time.monotonic())
            for fd, _ in self.epoll.poll(wait_s):
                if fd == self.control.fileno():
                    if not self._command():
                        return
                elif fd in self.ports.values():
                    self._read(fd)
            for fd, frame in self.switch.outgoing(time.monotonic()):
                try:
                    os.write(fd, frame)
                except OSError:  # the interface is down or its namespace is going away
                    continue

    def _read(self, fd: int) -> None:
        for _ in range(BURST):
            try:
                frame = os.read(fd, MTU_AND_MORE)
            except BlockingIOError:
                return
            except OSError:  # down (EIO) or gone (EBADFD): silent until it is removed
                self.epoll.modify(fd, 0)
                return
            self.switch.receive(fd, frame, time.monotonic())

    def _command(self) -> bool:
        message, fds, _, _ = socket.recv_fds(self.control, 1 << 16, 1)
        if not message:
            return False
        command = json.loads(message)
        answer: object = True
        if "profile" in command:
            profile = LinkProfile(**command["profile"])
            if "seed" in command:
                self.switch = Switch(profile, command["seed"])
            self.switch.profile = profile
        if "add" in command:
            self.ports[command["add"]] = fds[0]
            os.set_blocking(fds[0], False)
            self.switch.add_port(fds[0])
            self.epoll.register(fds[0], select.EPOLLIN)
        if "remove" in command:
            fd = self.ports.pop(command["remove"])
            self.switch.remove_port(fd)
            self.epoll.unregister(fd)
            os.close(fd)
        if "counters" in command:
            answer = attrs.asdict(self.switch.counters)
        self.control.send(json.dumps(answer).encode())
        return True


if __name__ == "__main__":
    _Server(socket.socket(fileno=int(sys.argv[1]))).serve()
