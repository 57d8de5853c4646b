"""sd_notify against a real datagram socket, and the watchdog under virtual time."""

import os
import socket

import pytest
import trio
import trio.testing

from node.systemd import Notifier, run_watchdog


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    """(address, socket) of a service manager."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    if request.param == "path":
        address = str(tmp_path / "notify")
        sock.bind(address)
    else:
        address = f"@noded-test-{os.getpid()}-{os.urandom(4).hex()}"
        sock.bind(b"\0" + address[1:].encode())
    sock.settimeout(5)
    with sock:
        yield address, sock


def test_the_whole_life_of_a_service(manager):
    address, sock = manager
    environ = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "30000000", "HOME": "/h"}
    notifier = Notifier.from_environ(environ)
    assert environ == {"HOME": "/h"}, "a trainer must not inherit the line to systemd"
    assert notifier.enabled
    assert notifier.watchdog_s == 30.0
    notifier.ready("listening\non 1.2.3.4:5")
    assert sock.recv(4096) == b"READY=1\nSTATUS=listening on 1.2.3.4:5"
    notifier.watchdog()
    assert sock.recv(4096) == b"WATCHDOG=1"
    notifier.reloading()
    first, second = sock.recv(4096).split(b"\n")
    assert first == b"RELOADING=1"
    assert second.startswith(b"MONOTONIC_USEC=")
    notifier.status("training")
    assert sock.recv(4096) == b"STATUS=training"
    notifier.extend_timeout(1.5)
    assert sock.recv(4096) == b"EXTEND_TIMEOUT_USEC=1500000"
    notifier.stopping()
    assert sock.recv(4096) == b"STOPPING=1"


@pytest.mark.parametrize(
    "environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "relative"}, {"WATCHDOG_USEC": "5"}]
)
def test_without_a_manager_nothing_happens(environ):
    notifier = Notifier.from_environ(dict(environ))
    assert not notifier.enabled
    assert notifier.watchdog_s is None
    notifier.ready()


def test_a_watchdog_for_another_process_is_not_ours():
    both = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1000000"}
    assert Notifier.from_environ({**both, "WATCHDOG_PID": "1"}).watchdog_s is None
    assert Notifier.from_environ({**both, "WATCHDOG_PID": str(os.getpid())}).watchdog_s == 1.0
    assert Notifier.from_environ({**both, "WATCHDOG_USEC": "soon"}).watchdog_s is None


def test_a_vanished_or_full_manager_is_ignored(tmp_path):
    Notifier(str(tmp_path / "nobody")).ready()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "full"))
        notifier = Notifier(str(tmp_path / "full"))
        for _ in range(5000):  # far beyond any queue: it must neither block nor raise
            notifier.status("x")


async def test_the_watchdog_reports_twice_an_interval_while_healthy(autojump_clock):
    sent: list[float] = []
    healthy = True

    class Recorder(Notifier):
        def watchdog(self) -> None:
            sent.append(trio.current_time())

    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_watchdog, Recorder("/x", watchdog_s=10.0), lambda: healthy)
        await trio.sleep(22)
        healthy = False
        await trio.sleep(20)
        nursery.cancel_scope.cancel()
    assert [at - start for at in sent] == [0, 5, 10, 15, 20]


async def test_without_a_watchdog_the_task_just_ends(autojump_clock):
    await run_watchdog(Notifier("/x"))
