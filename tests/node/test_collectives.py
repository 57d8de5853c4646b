"""Collectives on tensors through the daemon's socket: two nodes in memory, their processes as threads here."""

from __future__ import annotations

import gc
import os
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import torch
import trio

from gossip.collective.agreement.epoch_events import EpochSettings
from gossip.errors import CollectiveAborted, DescriptorMismatch, InvalidOperation, NotFinite
from node.collective_messages import (
    MAX_ARENAS,
    MAX_REQUESTS,
    SOCKET_NAME,
    Borrow,
    CollectiveAnswer,
    Done,
    Hello,
    Operate,
    decode_answer,
    encode,
)
from node.errors import DaemonNotRunning
from node.run.collectives import open_collectives
from node.shared_buffer import SharedBuffer, recv_with_fd
from node.trainer_messages import FrameReader
from node.training.collectives import Collectives, Work, collectives, ddp_hook
from node.training.daemon_link import DaemonLost
from tests.gossip.swarm import Node, open_swarm

PATIENCE_S = 30


@asynccontextmanager
async def served(count: int, folder: Path) -> AsyncIterator[tuple[list[Node], list[Path]]]:
    """Nodes whose daemons serve processes; the trainer sockets they would have."""
    async with (
        open_swarm(count, settings=EpochSettings(min_members=count)) as (_, nodes),
        AsyncExitStack() as stack,
    ):
        paths = [folder / str(index) / "trainer.sock" for index in range(count)]
        for node, path in zip(nodes, paths, strict=True):
            await stack.enter_async_context(
                open_collectives(
                    node.endpoint,
                    node.group,
                    run="demo",
                    trainer_socket=path,
                    random_bytes=os.urandom,
                    trainer_attached=lambda: False,
                )
            )
        yield nodes, paths


def run_and_show_leaves(main: Callable[[], Awaitable[None]]) -> None:
    """What went wrong, without the nurseries around it."""
    try:
        trio.run(main)
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None


def together(
    count: int, folder: Path, member: Callable[[Collectives, int], object]
) -> list[object]:
    """What `member` returns at each of `count` processes."""
    results: dict[int, object] = {}

    def process(path: Path, index: int) -> None:
        with collectives("demo", socket=path) as run:
            results[index] = member(run, index)

    async def main() -> None:
        async with served(count, folder) as (_, paths):
            with trio.fail_after(PATIENCE_S):
                async with trio.open_nursery() as nursery:
                    for index, path in enumerate(paths):
                        nursery.start_soon(trio.to_thread.run_sync, process, path, index)

    run_and_show_leaves(main)
    return [results[index] for index in range(count)]


def values(index: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.arange(12).reshape(3, 4).mul(index + 1).to(dtype)


def test_operations_on_tensors(tmp_path: Path) -> None:
    def member(run: Collectives, index: int) -> list[torch.Tensor]:
        summed, mean, least = values(index), values(index), values(index)
        strided = values(index).t()
        half = values(index, torch.bfloat16)
        run.all_reduce(summed)
        outcome = run.all_reduce(mean, "mean", weight=index + 1.0).wait()
        assert (outcome.weight, outcome.world) == (6.0, 3)
        run.all_reduce(least, "min", tag=3)
        run.all_reduce(strided)
        run.all_reduce(half)
        gathered: list[torch.Tensor] = []
        ranks = run.all_gather(gathered, values(index)).wait()
        assert torch.equal(gathered[ranks.rank], values(index))
        sent = values(index)
        run.broadcast(sent, ranks.members[1])
        assert torch.equal(sent, gathered[1])
        part = torch.zeros(12)
        where = run.reduce_scatter(part, values(index)).wait()
        first, last = (12 * n // 3 for n in (where.rank, where.rank + 1))
        assert torch.equal(part[: last - first], values(5).view(-1)[first:last])
        assert run.barrier(label="so").world == 3
        return [summed, mean, least, strided, half]

    for summed, mean, least, strided, half in together(3, tmp_path, member):
        assert torch.equal(summed, values(5))
        assert torch.allclose(mean, values(0) * (1 + 4 + 9) / 6)
        assert torch.equal(least, values(0))
        assert torch.equal(strided, values(5).t())
        assert torch.equal(half, values(5, torch.bfloat16))


def test_handles_run_while_the_caller_computes_and_in_any_order(tmp_path: Path) -> None:
    def member(run: Collectives, index: int) -> list[torch.Tensor]:
        tensors = [values(index) + tag for tag in range(1, 16)]
        order = list(range(15)) if index else list(reversed(range(15)))
        works = {
            tag: run.all_reduce(tensors[tag], tag=tag + 1, async_op=True, timeout_s=PATIENCE_S)
            for tag in order
        }
        for tag in order:
            works[tag].wait()
            works[tag].wait()  # again is nothing new
            assert works[tag].is_completed()
        return tensors

    for tensors in together(2, tmp_path, member):
        for tag, tensor in enumerate(tensors):
            assert torch.equal(tensor, values(2) + 2 * (tag + 1))


def test_after_an_error_the_tensor_is_what_it_was(tmp_path: Path) -> None:
    met = threading.Barrier(2)

    def member(run: Collectives, index: int) -> None:
        tensor = values(index)
        with pytest.raises(DescriptorMismatch):
            run.all_reduce(tensor, label=f"mine {index}", timeout_s=10)
        met.wait(PATIENCE_S)
        if index == 0:
            with pytest.raises(CollectiveAborted) as raised:
                run.all_reduce(tensor, timeout_s=0.5)
            assert "call it again" in raised.value.hint
            assert raised.value.__notes__ == [raised.value.hint]
        met.wait(PATIENCE_S)
        with pytest.raises(InvalidOperation):
            run.all_reduce(tensor, tag=0)
        with pytest.raises(InvalidOperation):
            run.all_reduce(tensor, wire="nothing-like-it", timeout_s=5)
        with pytest.raises(InvalidOperation):
            run.all_reduce(tensor.to(torch.complex64), timeout_s=5)
        with pytest.raises(InvalidOperation, match="too long"):
            run.sync_state({f"{'x' * 90}{number}": tensor for number in range(2000)})
        assert torch.equal(tensor, values(index))
        run.all_reduce(tensor, timeout_s=PATIENCE_S)
        assert torch.equal(tensor, values(2))

    together(2, tmp_path, member)


def test_processes_that_wait_under_different_tags_are_told_so(tmp_path: Path) -> None:
    """By their types these errors are not those of a deadline."""
    met = threading.Barrier(2)

    def member(run: Collectives, index: int) -> None:
        tensor = values(index)
        with pytest.raises(DescriptorMismatch, match="different tags"):
            run.all_reduce(tensor, tag=1 + index, timeout_s=PATIENCE_S)
        met.wait(PATIENCE_S)
        calls = (
            lambda: run.barrier(tag=3, timeout_s=PATIENCE_S),
            lambda: run.sync_state({"x": tensor}, timeout_s=PATIENCE_S),
        )
        with pytest.raises(DescriptorMismatch, match="different tags"):
            calls[index]()
        assert torch.equal(tensor, values(index))
        met.wait(PATIENCE_S)
        work = run.all_reduce(tensor, tag=5, async_op=True, timeout_s=PATIENCE_S)
        run.barrier(tag=6, timeout_s=PATIENCE_S)  # the other one may have called it first
        work.wait()
        assert torch.equal(tensor, values(2))

    together(2, tmp_path, member)


def test_declared_state_comes_into_parity(tmp_path: Path) -> None:
    def member(run: Collectives, index: int) -> dict[str, torch.Tensor]:
        state = {
            "weight": torch.full((700_000,), 1.0 if index < 2 else 3.0),
            "half": torch.full((5, 7), float(index == 2), dtype=torch.bfloat16),
            "steps": torch.tensor(5 if index < 2 else 9),
        }
        fetched = run.sync_state(state, timeout_s=PATIENCE_S).fetched_blocks
        assert fetched == (3 if index == 2 else 0)
        assert run.sync_state(state, timeout_s=PATIENCE_S).fetched_blocks == 0
        return state

    for state in together(3, tmp_path, member):
        assert torch.equal(state["weight"], torch.ones(700_000))
        assert torch.equal(state["half"], torch.zeros(5, 7, dtype=torch.bfloat16))
        assert state["steps"] == 5


def test_beside_a_trainer_readiness_is_the_rounds_affair(tmp_path: Path) -> None:
    sums: list[torch.Tensor] = []

    def process(path: Path, index: int) -> None:
        with collectives("demo", alone=False, socket=path) as run:
            tensor = values(index)
            run.all_reduce(tensor, timeout_s=PATIENCE_S)
            sums.append(tensor)

    async def main() -> None:
        async with served(2, tmp_path) as (nodes, paths), trio.open_nursery() as nursery:
            for index, path in enumerate(paths):
                nursery.start_soon(trio.to_thread.run_sync, process, path, index)
            await trio.sleep(0.2)
            assert all(node.group.epoch is None for node in nodes), (
                "nobody has said that it is ready"
            )
            for node in nodes:
                node.group.set_position(7, bytes(32))

    run_and_show_leaves(main)
    assert [torch.equal(tensor, values(2)) for tensor in sums] == [True, True]


def test_one_process_at_a_time_and_of_the_right_run(tmp_path: Path) -> None:
    def member(run: Collectives, _index: int) -> None:
        path = tmp_path / "0" / "trainer.sock"
        with pytest.raises(DaemonLost, match="another process"), collectives("demo", socket=path):
            pass
        with pytest.raises(DaemonLost, match="takes part in run"), collectives("x", socket=path):
            pass
        run.all_reduce(values(0))

    together(1, tmp_path, member)
    with pytest.raises(DaemonNotRunning), collectives("demo", socket=tmp_path / "trainer.sock"):
        pass


def test_what_breaks_the_rules_is_cut_off_and_the_next_is_served(tmp_path: Path) -> None:
    hello = encode(Hello(1, "demo", True, bytes(32), 1))
    operate = Operate(
        7, 3, "all_reduce", "float32", 1, "sum", 1.0, "exact", "auto", 1, "", None, None, None
    )  # fmt: skip
    bad = [
        b"\xff" * 50,
        encode(Borrow(1, 100)),
        hello + hello,
        hello + encode(operate),
        hello + b"".join(encode(Borrow(number, 10)) for number in range(65)),
        hello + (1 << 31).to_bytes(4, "big"),
        hello[:10],
    ]

    def member(path: Path) -> None:
        for data in bad:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(path.with_name(SOCKET_NAME)))
                sock.settimeout(PATIENCE_S)
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(65536):
                    pass
        with collectives("demo", socket=path) as run:
            works = [run.all_reduce(values(0), tag=1, async_op=True) for _ in range(MAX_REQUESTS)]
            for work in works:
                work.wait()

    async def main() -> None:
        async with served(1, tmp_path) as (_, paths):
            with trio.fail_after(PATIENCE_S):
                await trio.to_thread.run_sync(member, paths[0])

    run_and_show_leaves(main)


def test_a_lost_daemon_ends_what_is_under_way_and_nothing_leaks(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    caught: list[Exception] = []

    async def main() -> None:
        async with served(2, tmp_path) as (_, paths):
            stopped = threading.Event()

            def member() -> None:
                with collectives("demo", socket=paths[0]) as run:
                    work = run.all_reduce(values(0), async_op=True)
                    stopped.set()
                    try:
                        work.wait(PATIENCE_S)
                    except DaemonLost as error:
                        caught.append(error)
                    with pytest.raises(DaemonLost):
                        run.all_reduce(values(0))

            thread = threading.Thread(target=member)
            thread.start()
            await trio.to_thread.run_sync(stopped.wait)
        await trio.to_thread.run_sync(thread.join)

    run_and_show_leaves(main)
    gc.collect()
    assert len(caught) == 1
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_the_hook_averages_gradients_over_nodes(tmp_path: Path) -> None:
    """One process per site: what DDP calls, without DDP (two default groups do not fit into one interpreter)."""

    class Bucket:
        def __init__(self, index: int, tensor: torch.Tensor) -> None:
            self._index, self._tensor = index, tensor

        def index(self) -> int:
            return self._index

        def buffer(self) -> torch.Tensor:
            return self._tensor

    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:

        def member(run: Collectives, index: int) -> list[torch.Tensor]:
            hook = ddp_hook(run)
            futures = [hook(None, Bucket(number, values(index) + number)) for number in range(20)]
            return [future.wait() for future in futures]

        for means in together(2, tmp_path, member):
            for number, mean in enumerate(means):
                assert torch.equal(mean, (values(0) + values(1)) / 2 + number)
    finally:
        torch.distributed.destroy_process_group()


def test_values_that_are_not_finite_end_the_call_for_good(tmp_path: Path) -> None:
    def member(run: Collectives, _index: int) -> None:
        with pytest.raises(NotFinite, match="finite") as raised:
            run.all_reduce(torch.full((5,), float("nan")), timeout_s=10)
        assert "weight 0" in raised.value.hint
        run.all_reduce(values(0), timeout_s=PATIENCE_S)

    together(1, tmp_path, member)


def test_wrong_arguments_are_told_and_the_connection_goes_on(tmp_path: Path) -> None:
    tensor = values(0)
    wrong: list[Callable[[Collectives], object]] = [
        lambda run: run.all_reduce(tensor, timeout_s=0),
        lambda run: run.all_reduce(tensor, timeout_s=float("nan")),
        lambda run: run.all_reduce(tensor, label="x" * 300),
        lambda run: run.all_reduce(tensor, label="\ud800"),
        lambda run: run.all_reduce(tensor, op=""),
        lambda run: run.all_reduce(tensor, wire=""),
        lambda run: run.all_reduce(tensor, within=b"short"),
        lambda run: run.all_reduce(tensor, tag=1.5),  # type: ignore[arg-type]
        lambda run: run.all_reduce(tensor, weight=float("inf")),
        lambda run: run.broadcast(tensor, 0),  # type: ignore[arg-type]
        lambda run: run.sync_state({"a": tensor}, revision=-1),
        lambda run: run.sync_state({"a": tensor}, label="x" * 65),
        lambda run: run.sync_state({"a" * 300: tensor}),
        lambda run: run.sync_state({"a": tensor}, timeout_s=-1),
        lambda run: run.sync_state({str(number): torch.ones(1) for number in range(2100)}),
        lambda run: run.sync_state({"a": torch.ones((1,) * 17)}),
        lambda run: run.sync_state({"a": torch.empty((2**40, 0, 2**40))}),
        lambda run: run.all_gather([], torch.empty(1).expand(2**40)),
    ]

    def member(run: Collectives, _index: int) -> None:
        for call in wrong:
            with pytest.raises(InvalidOperation):
                call(run)
        for _ in range(MAX_ARENAS + 1):
            with pytest.raises(InvalidOperation, match=r"^wrong argument: .*timeout_s"):
                run.all_reduce(tensor, timeout_s=0)
        run.all_reduce(tensor, timeout_s=PATIENCE_S, weight=torch.ones(()))  # type: ignore[arg-type]

    together(1, tmp_path, member)
    assert torch.equal(tensor, values(0))


def test_memory_comes_back_when_a_result_cannot_be_written_or_nobody_waits(tmp_path: Path) -> None:
    def member(run: Collectives, _index: int) -> None:
        for out in (torch.zeros(12, dtype=torch.int32), torch.zeros(4, 12).t()):
            with pytest.raises(InvalidOperation):
                run.reduce_scatter(out, values(0))
        for _ in range(MAX_ARENAS + 1):
            work = run.reduce_scatter(torch.zeros(3), values(0), async_op=True)
            for _ in range(2):
                with pytest.raises(InvalidOperation, match="out 3"):
                    work.wait(PATIENCE_S)
        del work
        for _ in range(MAX_ARENAS + 1):
            run.all_reduce(values(0), async_op=True)
            run.barrier()
        gc.collect()
        run.all_reduce(values(0), timeout_s=PATIENCE_S)

    together(1, tmp_path, member)


def test_operations_of_one_tag_are_carried_out_in_the_order_in_which_they_were_asked_for(
    tmp_path: Path,
) -> None:
    """Many requests in one read: nothing but their order on the socket may count."""
    count, rounds = 8, 12

    def member(path: Path) -> None:
        reader = FrameReader()
        with socket.socket(socket.AF_UNIX) as sock:

            def answers(wanted: int) -> list[CollectiveAnswer]:
                found: list[CollectiveAnswer] = []
                while len(found) < wanted:
                    while (body := reader.next_body()) is None:
                        data, fds = recv_with_fd(sock, 65536)
                        assert data, "cut off"
                        for fd in fds:
                            os.close(fd)
                        reader.feed(data)
                    found.append(decode_answer(body))
                return found

            sock.settimeout(PATIENCE_S)
            sock.connect(str(path.with_name(SOCKET_NAME)))
            hello = Hello(1, "demo", True, bytes(32), 1)
            borrows = [Borrow(number, 10) for number in range(count)]
            sock.sendall(b"".join(map(encode, [hello, *borrows])))
            answers(count + 1)
            for turn in range(rounds):
                numbers = [count * turn + number for number in range(count)]
                burst = [
                    Operate(
                        number, at, "all_reduce", "float32", 1, "sum", 1.0, "exact", "auto", 1, ""
                    )
                    for at, number in enumerate(numbers)
                ]
                sock.sendall(b"".join(map(encode, burst)))
                done = answers(count)
                assert [one.id for one in done if isinstance(one, Done)] == numbers

    async def main() -> None:
        async with served(1, tmp_path) as (_, paths):
            with trio.fail_after(PATIENCE_S):
                await trio.to_thread.run_sync(member, paths[0])

    run_and_show_leaves(main)


def test_memory_that_cannot_be_taken_is_an_error_and_not_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attach = SharedBuffer.attach

    def full(fd: int, *_: object) -> SharedBuffer:
        os.close(fd)
        raise OSError(12, "Cannot allocate memory")

    def member(run: Collectives, _index: int) -> None:
        monkeypatch.setattr(SharedBuffer, "attach", full)
        for _ in range(MAX_ARENAS + 1):
            with pytest.raises(InvalidOperation, match="allocate"):
                run.all_reduce(values(0))
        monkeypatch.setattr(SharedBuffer, "attach", attach)
        run.all_reduce(values(0), timeout_s=PATIENCE_S)

    together(1, tmp_path, member)


def test_a_call_that_was_interrupted_does_not_stand_in_the_way_of_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    met = threading.Barrier(2)
    interrupted = threading.local()
    usual = Work.wait

    def wait(self: Work, timeout_s: float | None = None) -> None:
        if getattr(interrupted, "now", False):
            raise KeyboardInterrupt
        usual(self, timeout_s)

    monkeypatch.setattr(Work, "wait", wait)

    def member(run: Collectives, index: int) -> None:
        tensor = values(index)
        interrupted.now = index == 0
        for _ in range(20 if index == 0 else 0):
            with pytest.raises(KeyboardInterrupt):
                run.all_reduce(tensor, tag=1)
        interrupted.now = False
        met.wait(PATIENCE_S)
        run.barrier(tag=2, timeout_s=PATIENCE_S)

    together(2, tmp_path, member)
