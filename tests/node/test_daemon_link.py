from __future__ import annotations

import os
import socket
import threading

import pytest

from node.errors import DaemonNotRunning
from node.trainer_messages import Hurry, SaveNow, Stop, encode
from node.training.daemon_link import DaemonLink, DaemonLost


@pytest.fixture
def pair():
    mine, theirs = socket.socketpair()
    with DaemonLink(mine) as link, theirs:
        yield link, theirs


def test_messages_come_in_order_and_polling_does_not_wait(pair):
    link, daemon = pair
    assert link.poll() is None
    stream = b"".join(encode(message) for message in (Hurry(1), SaveNow(), Stop("x")))
    daemon.sendall(stream[:10])
    assert link.poll() is None
    daemon.sendall(stream[10:])
    assert [link.poll(), link.poll(), link.receive(60)] == [Hurry(1), SaveNow(), Stop("x")]
    assert link.poll() is None


def test_waiting_ends_when_the_daemon_goes(pair):
    link, daemon = pair
    timer = threading.Timer(0.02, daemon.shutdown, [socket.SHUT_RDWR])
    timer.start()
    with pytest.raises(DaemonLost):
        link.receive()
    timer.join()
    with pytest.raises(DaemonLost):
        link.poll()
    with pytest.raises(DaemonLost):
        link.send(Stop("never"))


def test_what_came_before_the_end_is_still_heard(pair):
    link, daemon = pair
    daemon.sendall(encode(Stop("bye")))
    daemon.close()
    assert link.receive() == Stop("bye")
    with pytest.raises(DaemonLost):
        link.receive()


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\1\xc0", b"\xff" * 8])
def test_garbage_ends_the_link_with_its_reason(pair, garbage):
    link, daemon = pair
    daemon.sendall(garbage)
    with pytest.raises(DaemonLost) as caught:
        link.receive()
    assert caught.value.hint


def test_an_interrupt_ends_every_wait(pair):
    link, _ = pair
    timer = threading.Timer(0.02, link.interrupt)
    timer.start()
    assert link.receive() is None
    timer.join()
    assert link.receive() is None


def test_descriptors_nobody_takes_are_closed():
    mine, theirs = socket.socketpair()
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with DaemonLink(mine) as link, theirs:
        for _ in range(6):
            socket.send_fds(theirs, [encode(Hurry(1))], [0])
            link.receive()
        fd = link.take_fd()
        assert fd is not None
        os.close(fd)
    assert len(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208


def test_nobody_at_the_socket_is_one_clear_error(tmp_path):
    for path in (tmp_path / "none.sock", tmp_path / ("x" * 200)):
        with pytest.raises(DaemonNotRunning) as caught:
            DaemonLink.connect(path)
        assert caught.value.hint
