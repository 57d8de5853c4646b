from __future__ import annotations

import os
import socket
from pathlib import Path

import numpy as np
import pytest

from node.shared_buffer import BufferMismatch, SharedBuffer, recv_with_fd, send_with_fd

NAMES = ("params", "theta", "delta")


def test_both_sides_see_the_same_numbers():
    left, right = socket.socketpair()
    with left, right, SharedBuffer.create(1001, NAMES) as mine:
        send_with_fd(left, b"attached" * 1000, mine.fd)
        data, fds = b"", []
        while len(data) < 8000:
            part, got = recv_with_fd(right, 65536)
            data, fds = data + part, fds + got
        assert data == b"attached" * 1000
        assert len(fds) == 1
        assert not os.get_inheritable(fds[0])
        with SharedBuffer.attach(fds[0], 1001, NAMES) as theirs:
            mine.view("theta")[:] = np.arange(1001)
            theirs.view("delta")[3] = 7
            assert theirs.view("theta").sum() == 500500
            assert mine.view("delta")[3] == 7
            assert mine.view("params").sum() == 0


def test_vectors_start_on_pages_and_are_writable():
    with SharedBuffer.create(5, NAMES) as buffer:
        for view in buffer.views.values():
            assert view.ctypes.data % 4096 == 0
            assert view.flags.writeable
            assert view.dtype == np.float32


def test_the_size_is_sealed():
    with SharedBuffer.create(5, NAMES) as buffer:
        for size in (0, 1 << 20):
            with pytest.raises(PermissionError):
                os.ftruncate(buffer.fd, size)


@pytest.mark.parametrize("size", [0, 4096, 4 * 4096, 3 * 4096 - 1])
def test_a_file_of_another_size_is_refused_and_closed(size):
    fd = os.memfd_create("other")
    os.ftruncate(fd, size)
    with pytest.raises(BufferMismatch):
        SharedBuffer.attach(fd, 5, NAMES)
    with pytest.raises(OSError):
        os.fstat(fd)


@pytest.mark.parametrize(("numel", "names"), [(0, NAMES), (-1, NAMES), (5, ()), (5, ("a", "a"))])
def test_impossible_layouts_are_refused(numel, names):
    with pytest.raises(BufferMismatch):
        SharedBuffer.create(numel, names)


def test_views_outlive_the_buffer():
    buffer = SharedBuffer.create(1000, NAMES)
    view = buffer.view("theta")
    view[:] = 2
    buffer.close()
    buffer.close()
    assert view.sum() == 2000
    with pytest.raises(BufferMismatch):
        buffer.view("theta")


def open_descriptors():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_closing_gives_the_descriptor_back():
    before = open_descriptors()
    for _ in range(20):
        SharedBuffer.create(1000, NAMES).close()
    assert open_descriptors() == before


def test_end_of_stream_is_empty():
    left, right = socket.socketpair()
    left.close()
    with right:
        assert recv_with_fd(right, 10) == (b"", [])
