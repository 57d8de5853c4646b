"""Collectives on tensors, in the manner of `torch.distributed`, between the nodes of a run.

::

    with node.collectives("demo") as run:
        run.all_reduce(gradient, op="mean")                     # in place, certified
        work = run.all_reduce(delta, op="mean", tag=2, async_op=True)
        ...                                                     # the daemon reduces meanwhile
        work.wait()

A node is a site: under `torchrun` local rank 0 alone connects, and what happens inside the site stays with `torch.distributed`.
Tensors of any device and layout are copied into memory shared with the daemon; the caller's own is written when the operation
has a certificate and not before, so after any error the values are what they were.

Operations of one tag are carried out in the order of the calls, which has to be the same at all members; those of different
tags (1 to 15, which is also that of `sync_state`) run at once. While one is waited for, no other is called, if not said otherwise (`one_thread`). Members agree on kind, type, length, format, algorithm and `label`, or all get `DescriptorMismatch`.
Errors are those of `gossip.errors`, and `DaemonLost`.
"""

from __future__ import annotations

import functools
import hashlib
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

import attrs
import torch
import torch.distributed as dist

from gossip.errors import InvalidOperation
from node.collective_messages import SOCKET_NAME, Done, Operate, Synchronise, Tensor
from node.errors import NodedError
from node.training.collective_link import Arena, CollectiveLink, Pending
from node.training.session import trainer_socket

__all__ = ["Collectives", "Outcome", "Work", "collectives", "ddp_hook"]

Bucket = Any
"""`torch.distributed.GradBucket`, which builds without distributed support do not have."""

ALIGN: Final = 64
GATHER_ROOM: Final = 256
"""Members that the result of an all-gather has room for; memory that nobody writes to costs nothing."""
FIRST_BUCKET_TAG, BUCKET_TAGS = 8, 7
"""Tags that the hook spreads gradient buckets over."""


@attrs.frozen
class Outcome:
    """How an operation went."""

    epoch: bytes
    """Id of the epoch; operations that rest on each other's members are called `within` it."""
    rank: int
    """This node's index among the members, in whose order an all-gather comes."""
    members: tuple[bytes, ...]
    weight: float
    """Sum of the members' weights."""
    seconds: float
    algorithm: str
    fetched_blocks: int = 0
    """Of a synchronisation: what this node lacked, in MiB."""

    @property
    def world(self) -> int:
        """How many took part."""
        return len(self.members)


class Work:
    """An operation under way: `wait` for it, once or more, from any thread.

    One that nobody waits for goes on; its result is dropped with the last reference to this object, and its memory is free again.
    """

    def __init__(
        self,
        pending: Pending,
        finish: Callable[[Done], Outcome],
        abandon: Callable[[], None],
    ) -> None:
        self._pending = pending
        self._finish: Callable[[Done], Outcome] | None = finish
        self._lock = threading.Lock()
        self._outcome: Outcome | None = None
        self._error: BaseException | None = None
        self._abandon = weakref.finalize(self, abandon)
        self._abandon.atexit = False

    def is_completed(self) -> bool:
        """Whether `wait` returns or raises at once."""
        return self._pending.ended

    def wait(self, timeout_s: float | None = None) -> Outcome:
        """Wait for the end, and write the result into the caller's tensor.

        Raises:
            GossipError: it has no certificate; the tensor is as it was.
            InvalidOperation: it has, but its result does not fit into the caller's tensor. The others hold theirs.
            DaemonLost: the daemon is gone.
            TimeoutError: it is still under way; it goes on.
        """
        done = self._pending.result(timeout_s)
        with self._lock:
            if self._finish is not None:
                finish, self._finish = self._finish, None
                self._abandon.detach()
                try:
                    self._outcome = finish(done)
                except BaseException as error:  # noqa: BLE001 - raised below, each time
                    self._error = error
        if self._error is not None:
            raise self._error
        assert self._outcome is not None
        return self._outcome

    def when_ended(self, tell: Callable[[], None]) -> None:
        """Call `tell` once it has ended, from another thread."""
        self._pending.when_ended(tell)


class Collectives:
    """Collectives with the other nodes of a run; made by `collectives`."""

    def __init__(self, link: CollectiveLink, *, one_thread: bool = True) -> None:
        self._link = link
        self._one_thread = one_thread

    @property
    def node(self) -> bytes:
        """This node's id, as a broadcast's root is named."""
        return self._link.node

    def close(self) -> None:
        """End the connection; what is under way fails."""
        self._link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    # ---- operations ----------------------------------------------------------------------------

    def all_reduce(
        self,
        tensor: torch.Tensor,
        op: str = "sum",
        *,
        weight: float = 1.0,
        tag: int = 1,
        wire: str = "exact",
        algorithm: str = "auto",
        label: str = "",
        timeout_s: float | None = None,
        within: bytes | None = None,
        async_op: bool = False,
    ) -> Work:
        """Reduce `tensor` over all members, in place.

        Args:
            tensor: of the same length and type everywhere.
            op: "sum", "mean" (by weight), "min" or "max".
            weight: factor of this node's values, 0 or from 1e-9 to 1e15.
            tag: which line of operations, 1 to 15.
            wire: "exact", or a format for float32 values: "bf16", "int8", "int4"...
            algorithm: "auto", "ring", "butterfly", "star", "double-star", "doubling"... (docs/collectives.md)
            label: what members must agree on besides.
            timeout_s: by then it has ended, one way or another; None: when it has.
            within: id of the only epoch in which it may be done.
            async_op: return at once; `Work.wait` writes the result.
        """

        def write(arena: Arena, _done: Done) -> None:
            _put(tensor, arena, tensor.numel())

        return self._operate(
            "all_reduce",
            tensor,
            write,
            op=op,
            weight=weight,
            tag=tag,
            wire=wire,
            algorithm=algorithm,
            label=label,
            timeout_s=timeout_s,
            within=within,
            wait=not async_op,
        )

    def reduce_scatter(
        self,
        out: torch.Tensor,
        tensor: torch.Tensor,
        op: str = "sum",
        *,
        weight: float = 1.0,
        tag: int = 1,
        wire: str = "exact",
        label: str = "",
        timeout_s: float | None = None,
        async_op: bool = False,
    ) -> Work:
        """This member's part of the reduction of `tensor`, at the start of the flat `out`.

        Part r of N is from value `numel * r // N` to `numel * (r + 1) // N`; `Outcome.rank` and `.world` say which. How many
        members there are is known afterwards: `out` as long as `tensor` has room for any part; if it turns out too
        short, this member gets `InvalidOperation` though the others have their parts.
        """
        if out.dtype != tensor.dtype or not out.is_contiguous():
            raise InvalidOperation(f"out must be contiguous and of type {tensor.dtype}")

        def write(arena: Arena, done: Done) -> None:
            part = _values(arena, tensor.dtype, done.length)
            if out.numel() < done.length:
                raise InvalidOperation(f"the part has {done.length} values, out {out.numel()}")
            out.view(-1)[: done.length].copy_(part)

        return self._operate(
            "reduce_scatter",
            tensor,
            write,
            op=op,
            weight=weight,
            tag=tag,
            wire=wire,
            label=label,
            timeout_s=timeout_s,
            wait=not async_op,
        )

    def all_gather(
        self,
        outs: list[torch.Tensor],
        tensor: torch.Tensor,
        *,
        tag: int = 1,
        label: str = "",
        timeout_s: float | None = None,
        async_op: bool = False,
    ) -> Work:
        """Everybody's `tensor` in `outs`, in member order; the list is filled with new tensors."""

        def write(arena: Arena, done: Done) -> None:
            values = _values(arena, tensor.dtype, done.length)
            parts = values.view(len(done.members), *tensor.shape)
            outs[:] = [part.clone() for part in parts]

        return self._operate(
            "all_gather",
            tensor,
            write,
            tag=tag,
            label=label,
            timeout_s=timeout_s,
            wait=not async_op,
            room=GATHER_ROOM,
        )

    def broadcast(
        self,
        tensor: torch.Tensor,
        root: bytes,
        *,
        tag: int = 1,
        label: str = "",
        timeout_s: float | None = None,
        async_op: bool = False,
    ) -> Work:
        """The values of the member with id `root` in everybody's `tensor`."""

        def write(arena: Arena, _done: Done) -> None:
            _put(tensor, arena, tensor.numel())

        return self._operate(
            "broadcast",
            tensor,
            write,
            tag=tag,
            label=label,
            timeout_s=timeout_s,
            wait=not async_op,
            root=root,
        )

    def barrier(self, *, tag: int = 1, label: str = "", timeout_s: float | None = None) -> Outcome:
        """Return when all members have come."""
        work = self._operate(
            "barrier",
            torch.empty(0),
            lambda _arena, _done: None,
            tag=tag,
            label=label,
            timeout_s=timeout_s,
            wait=True,
        )
        return work.wait()

    def _operate(
        self,
        kind: str,
        tensor: torch.Tensor,
        write: Callable[[Arena, Done], None],
        *,
        op: str = "sum",
        weight: float = 1.0,
        tag: int,
        wire: str = "exact",
        algorithm: str = "auto",
        label: str,
        timeout_s: float | None,
        within: bytes | None = None,
        wait: bool,
        room: int = 1,
        root: bytes | None = None,
    ) -> Work:
        if not isinstance(tag, int) or not 1 <= tag <= 15:
            raise InvalidOperation(f"a tag is a number from 1 to 15, not {tag!r}")
        link, number = self._link, self._link.number()
        size = tensor.numel() * tensor.element_size()
        arena = link.borrow(size * room)
        try:
            raw = torch.from_numpy(arena.source)[:size]
            if size:
                raw.view(tensor.dtype).copy_(tensor.detach().reshape(-1))
            dtype = str(tensor.dtype).removeprefix("torch.")
            pending = link.request(
                Operate(
                    id=number,
                    arena=arena.number,
                    kind=kind,
                    dtype=dtype,
                    count=tensor.numel(),
                    reduce=op,
                    weight=float(weight),
                    wire=wire,
                    algorithm=algorithm,
                    tag=tag,
                    label=label,
                    root=root,
                    timeout_s=timeout_s,
                    within=within,
                    sole=wait and self._one_thread,
                )
            )
        except BaseException:
            link.give_back(arena)
            raise

        def finish(done: Done) -> Outcome:
            try:
                with torch.no_grad():
                    write(arena, done)
            finally:
                link.give_back(arena)
            return _outcome(done, self.node)

        work = Work(pending, finish, functools.partial(link.abandon, pending, arena))
        self._give_back_if_failed(pending, arena)
        if wait:
            try:
                work.wait()
            except BaseException:
                link.cancel(number)  # interrupted: nobody waits any more, here or elsewhere
                raise
        return work

    def _give_back_if_failed(self, pending: Pending, arena: Arena) -> None:
        def ended() -> None:
            if pending.failed:
                self._link.give_back(arena)

        pending.when_ended(ended)

    def sync_state(
        self,
        tensors: Mapping[str, torch.Tensor],
        *,
        revision: int = 0,
        label: str = "state",
        timeout_s: float | None = None,
    ) -> Outcome:
        """Make `tensors` the same, to the bit, at all members of the present epoch.

        All members call it at the same point. Whose values count: those that most of the members hold that were
        here before; a newcomer, or one that diverged, fetches the blocks that differ from all who have them.

        Args:
            tensors: by name, the same names, types and shapes everywhere; full ones, not the shards of one
                process, so that sites may be sharded differently.
            revision: grows with the work in them (steps done); breaks ties.
            label: which state, if there are several.
            timeout_s: by then it has ended, one way or another.
        """
        layout, size = _lay_out(tensors)
        link, number = self._link, self._link.number()
        arena = link.borrow(size)
        try:
            views = {tensor.name: _view(arena, tensor) for tensor in layout}
            with torch.no_grad():
                for name, view in views.items():
                    view.copy_(tensors[name])
            request = Synchronise(
                number, arena.number, layout, revision, label, timeout_s, self._one_thread
            )
            pending = link.request(request)
        except BaseException:
            link.give_back(arena)
            raise
        self._give_back_if_failed(pending, arena)
        try:
            done = pending.result()
        except BaseException:
            if not pending.failed:  # interrupted, and the daemon still uses the memory
                link.abandon(pending, arena)
                link.cancel(number)
            raise
        try:
            if done.fetched_blocks:
                with torch.no_grad():
                    for name, view in views.items():
                        tensors[name].copy_(view)
        finally:
            link.give_back(arena)
        return _outcome(done, self.node)


def _outcome(done: Done, node: bytes) -> Outcome:
    return Outcome(
        done.epoch,
        done.members.index(node),
        done.members,
        done.weight,
        done.seconds,
        done.algorithm,
        done.fetched_blocks,
    )


def _values(arena: Arena, dtype: torch.dtype, count: int) -> torch.Tensor:
    """`count` values of the result."""
    size = count * torch.empty((), dtype=dtype).element_size()
    return torch.from_numpy(arena.out)[:size].view(dtype)


def _put(tensor: torch.Tensor, arena: Arena, count: int) -> None:
    if count:
        tensor.copy_(_values(arena, tensor.dtype, count).view(tensor.shape))


def _lay_out(tensors: Mapping[str, torch.Tensor]) -> tuple[tuple[Tensor, ...], int]:
    """Where each tensor lies, and how many bytes they take."""
    layout, at = [], 0
    for name in sorted(tensors):
        tensor = tensors[name]
        dtype = str(tensor.dtype).removeprefix("torch.")
        layout.append(Tensor(name, dtype, tuple(tensor.shape), at))
        at += -(-tensor.numel() * tensor.element_size() // ALIGN) * ALIGN
    return tuple(layout), at


def _view(arena: Arena, tensor: Tensor) -> torch.Tensor:
    dtype: torch.dtype = getattr(torch, tensor.dtype)
    empty = torch.empty(tensor.shape, dtype=dtype, device="meta")
    size = empty.numel() * empty.element_size()
    raw = torch.from_numpy(arena.source)[tensor.at : tensor.at + size]
    return raw.view(dtype).view(tensor.shape)


def ddp_hook(
    run: Collectives | None, group: dist.ProcessGroup | None = None, *, wire: str = "exact"
) -> Callable[[Any, Bucket], torch.futures.Future[torch.Tensor]]:
    """A communication hook for DistributedDataParallel that averages gradients over all nodes of the run.

    ``model.register_comm_hook(None, ddp_hook(run))``. With one process in `group` buckets travel while the backward
    pass goes on. With several, the site adds up first, local rank 0 (whose `run` is set; the others pass None)
    exchanges the sum with the other nodes, weighted with its number of processes, and hands the mean on inside the site.

    Args:
        run: of local rank 0.
        group: of this site's processes; default: all of `torch.distributed`.
        wire: format between nodes.
    """
    world = dist.get_world_size(group)
    first = dist.get_global_rank(group or dist.group.WORLD, 0)  # type: ignore[arg-type]

    def exchange(bucket: Bucket) -> Work:
        assert run is not None
        return run.all_reduce(
            bucket.buffer(),
            "mean",
            weight=float(world),
            tag=FIRST_BUCKET_TAG + bucket.index() % BUCKET_TAGS,
            wire=wire,
            label=f"bucket {bucket.index()}",
            async_op=True,
        )

    def alone(_state: object, bucket: Bucket) -> torch.futures.Future[torch.Tensor]:
        future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        work = exchange(bucket)

        def ended() -> None:
            try:
                work.wait()
                future.set_result(bucket.buffer())
            except Exception as error:  # noqa: BLE001 - it is raised again where DDP waits
                future.set_exception(error)  # type: ignore[arg-type]

        work.when_ended(ended)
        return future

    def site(_state: object, bucket: Bucket) -> torch.futures.Future[torch.Tensor]:
        buffer = bucket.buffer()
        dist.all_reduce(buffer, group=group)
        buffer.div_(world)
        if run is not None:
            exchange(bucket).wait()
        dist.broadcast(buffer, first, group=group)
        future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        future.set_result(buffer)
        return future

    hook = alone if world == 1 else site
    hook.__annotations__.clear()  # DDP compares them with its types, and these are text
    return hook


@contextmanager
def collectives(
    run: str,
    *,
    alone: bool = True,
    model: torch.nn.Module | Sequence[tuple[int, ...]] | None = None,
    socket: str | Path | None = None,
    one_thread: bool = True,
) -> Iterator[Collectives]:
    """Collectives with the other nodes of `run`, through this machine's daemon.

    Args:
        run: name of the run, as the daemon's configuration has it.
        alone: this process is all that the node takes part for (`trainer.auto = false`). False: beside a trainer that
            is attached with `node.join`, between whose rounds these operations run.
        model: what members must have alike to be in one epoch (names and shapes of parameters); of a process that is alone.
        socket: path of the *trainer* socket; default `$NODED_TRAINER_SOCKET`, then the usual place.
        one_thread: while a call waits (one without `async_op`, and `sync_state`), no other is made. So members that call different tags are told
            at once, and not at their deadlines. False: several threads make calls that wait.

    Raises:
        DaemonNotRunning: nothing answers.
        DaemonLost: the daemon does not serve this process.
    """
    path = trainer_socket(socket).with_name(SOCKET_NAME)
    try:
        link = CollectiveLink.connect(path, run=run, alone=alone, model=_model_digest(model))
    except NodedError as error:
        if error.hint:
            error.add_note(error.hint)  # a script shows it below its traceback
        raise
    with Collectives(link, one_thread=one_thread) as made:
        yield made


def _model_digest(model: torch.nn.Module | Sequence[tuple[int, ...]] | None) -> bytes:
    if isinstance(model, torch.nn.Module):
        words = [f"{name} {tuple(p.shape)}" for name, p in sorted(model.named_parameters())]
    else:
        words = [] if model is None else [str(tuple(shape)) for shape in model]
    return hashlib.sha256("\n".join(["noded model", *words]).encode()).digest()
