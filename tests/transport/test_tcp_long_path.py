"""Bulk connections over long paths: what the kernel is told, and what is made of what it says."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

import pytest

from tests.transport.pool_links import ignore, result
from transport import tcp
from transport.address import Address
from transport.bulk.link import BulkLink
from transport.network import PathState
from transport.tcp import TcpStream

HERE, THERE = Address("10.0.0.1", 1), Address("10.0.0.2", 2)
PACE = 47
BUFFER = 4 << 20


class Kernel(socket.socket):
    """A socket of a path of our choice."""

    def __init__(self, *, rtt_us: int, least_us: int) -> None:
        super().__init__(socket.AF_INET, socket.SOCK_STREAM)
        self.rtt_us, self.least_us = rtt_us, least_us
        self.paces: list[int] = []
        self.says = tcp.TCP_INFO_BYTES

    def getsockopt(self, level: int, option: int, size: int = 0) -> bytes:  # type: ignore[override]
        assert (level, option) == (socket.IPPROTO_TCP, socket.TCP_INFO)
        info = bytearray(tcp.TCP_INFO_BYTES)
        struct.pack_into("=I", info, tcp.TCPI_RTT, self.rtt_us)
        struct.pack_into("=Q", info, tcp.TCPI_BYTES_ACKED, 1 << 20)
        struct.pack_into("=I", info, tcp.TCPI_MIN_RTT, self.least_us)
        struct.pack_into("=Q", info, tcp.TCPI_BUSY_TIME, 2_000_000)
        return bytes(info[: min(size, self.says)])

    def setsockopt(self, level: int, option: int, value: int) -> None:  # type: ignore[override]
        if (level, option) == (socket.SOL_SOCKET, PACE):
            self.paces.append(value)


@pytest.fixture(autouse=True)
def usual_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "_largest_send_buffer", lambda: BUFFER)


async def test_a_long_path_is_sent_to_no_faster_than_the_buffer_lasts() -> None:
    with Kernel(rtt_us=130_000, least_us=100_000) as kernel:
        stream = TcpStream(kernel, HERE, THERE)
        assert stream.path_state() is None  # nobody has said that it is for bulk
        assert not kernel.paces
        stream.expect_bulk()
        pace = BUFFER * 5 / 6 / 0.1
        assert kernel.paces == [int(pace)]
        assert stream.path_state() == pytest.approx(PathState(pace, 1.3))
        assert stream.sending_measure() == (2.0, 1 << 20)
        assert BulkLink(stream, result("x", "initiator"), ignore).path_state() is not None


async def test_the_least_round_trip_counts_also_when_it_is_seen_later() -> None:
    """A connection that was opened over a full line has seen a longer one."""
    with Kernel(rtt_us=200_000, least_us=200_000) as kernel:
        stream = TcpStream(kernel, HERE, THERE)
        stream.expect_bulk()
        kernel.least_us = 100_000
        stream.sending_measure()
        kernel.least_us = 150_000
        stream.sending_measure()
        assert kernel.paces == [int(BUFFER * 5 / 6 / 0.2), int(BUFFER * 5 / 6 / 0.1)]


@pytest.mark.parametrize("least_us", [0, 50, tcp.LONG_PATH_US - 1])
async def test_a_short_path_is_left_to_the_kernel(least_us: int) -> None:
    with Kernel(rtt_us=least_us, least_us=least_us) as kernel:
        stream = TcpStream(kernel, HERE, THERE)
        stream.expect_bulk()
        assert stream.path_state() is None
        assert not kernel.paces


async def test_a_kernel_that_says_less_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with Kernel(rtt_us=100_000, least_us=100_000) as kernel:
        kernel.says = 100
        stream = TcpStream(kernel, HERE, THERE)
        stream.expect_bulk()
        assert stream.path_state() is None
        assert stream.sending_measure() is None
        kernel.says = tcp.TCP_INFO_BYTES
        monkeypatch.setattr(tcp, "_largest_send_buffer", lambda: 0)
        assert stream.path_state() is None
        assert not kernel.paces


def test_the_largest_send_buffer_is_what_the_system_has_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.undo()
    for text, size in (("4096\t16384\t4194304\n", 4194304), ("4096", 0), ("a b c", 0)):
        file = tmp_path / "tcp_wmem"
        file.write_text(text)
        monkeypatch.setattr(tcp, "SEND_BUFFERS", str(file))
        tcp._largest_send_buffer.cache_clear()
        assert tcp._largest_send_buffer() == size
    monkeypatch.setattr(tcp, "SEND_BUFFERS", str(tmp_path / "none"))
    tcp._largest_send_buffer.cache_clear()
    assert tcp._largest_send_buffer() == 0
    tcp._largest_send_buffer.cache_clear()
