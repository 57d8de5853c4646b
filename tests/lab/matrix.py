"""The matrix: real nodes behind every kind of NAT against every kind, and how they reach each other.

    python -m tests.lab.matrix                               all of it, as `make natlab` does
    python -m tests.lab.matrix --only symmetric,upnp         these kinds against all
    python -m tests.lab.matrix --loss 0.05 --delay-ms 40 --json

For each pair, in homes of its own, a node of the row's home connects to one of the column's home
by what that one advertises. A cell says how they are connected in the end and when that was reached, in
seconds from the start of connecting; the lines below the table are for two hosts of one home: in one
network, or kept apart inside.

Exit status: 0 if every pair was connected, directly where that was possible; else 1. 2 for usage,
77 where no lab can be had.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

import attrs
import trio

from tests.lab.namespaces import LabError, why_not
from tests.lab.nat_types import NatType, direct_possible
from tests.lab.nodes import World, open_world
from tests.lab.switch import LinkProfile
from tests.lab.topology import Home, Host, Lab, has_upnp_daemon

SETTLE_S = 30.0
"""How long a node may take until it can be reached at all."""

TOGETHER = "one home"
APART = "one home, apart"
SKIPPED_STATUS = 77


@attrs.frozen
class Pair:
    """Who connects to whom; `b` is a kind, or says that both are in one home of kind `a`."""

    a: NatType
    b: NatType | str

    @property
    def direct(self) -> bool:
        """Whether they can be connected directly."""
        if isinstance(self.b, NatType):
            return direct_possible(self.a, self.b)
        return self.b == TOGETHER or self.a in {NatType.HAIRPIN, NatType.IPV6}

    def build(self, lab: Lab) -> tuple[list[Home], list[Host]]:
        """The homes, and the two hosts."""
        if isinstance(self.b, NatType):
            homes = [lab.home(self.a), lab.home(self.b)]
            return homes, [home.host for home in homes]
        home = lab.home(self.a, hosts=2, isolated=self.b == APART)
        return [home], home.hosts


@attrs.frozen
class Cell:
    """What came of one pair; times in seconds from the start of connecting, None if it never came."""

    a: str
    b: str
    expected: str
    path: str | None = None
    first_path: str | None = None
    connected_s: float | None = None
    first_byte_s: float | None = None
    direct_s: float | None = None
    verdicts: tuple[str, str] = ("", "")
    error: str = ""

    @property
    def ok(self) -> bool:
        """Connected, and directly where that is possible."""
        return self.path is not None and (self.expected == "relayed" or self.path != "relayed")

    def text(self) -> str:
        """Path, seconds to the first byte, seconds to direct."""
        if self.path is None:
            return "UNREACHABLE"
        mark = "" if self.ok else "!"
        times = [self.first_byte_s, *([] if self.direct_s is None else [self.direct_s])]
        return f"{mark}{self.path} {'/'.join(f'{seconds:.2f}' for seconds in times if seconds)}"


async def run_pair(world: World, pair: Pair, patience_s: float) -> Cell:
    """Build two homes, start a node in each, connect them, and wait until they are connected directly."""
    cell = Cell(str(pair.a), str(pair.b), "direct" if pair.direct else "relayed")
    async with AsyncExitStack() as stack:
        try:
            homes, hosts = pair.build(world.lab)
            for home in homes:
                stack.callback(home.close)
            a, b = [
                await stack.enter_async_context(world.node(host, name))
                for host, name in zip(hosts, ("a", "b"), strict=True)
            ]
            with trio.fail_after(SETTLE_S):
                there = await b.ask("reachable")
                here = await a.ask("reachable")
            cell = attrs.evolve(cell, verdicts=(here["verdict"], there["verdict"]))
            node = str(b.node_id)
            first = await a.ask("connect", addresses=there["addresses"], node=node)
            cell = attrs.evolve(
                cell,
                path=first["path"],
                first_path=first["path"],
                connected_s=first["connected_s"],
                first_byte_s=first["first_byte_s"],
            )
            if first["path"] != "relayed":
                return attrs.evolve(cell, direct_s=first["connected_s"])
            last = await a.ask("direct", node=node, patience_s=patience_s)
            cell = attrs.evolve(cell, path=last["path"])
            if last["path"] not in {None, "relayed"}:
                cell = attrs.evolve(cell, direct_s=first["first_byte_s"] + last["waited_s"])
        except LabError as error:
            return attrs.evolve(cell, path=None, error=str(error))
        except trio.TooSlowError:
            return attrs.evolve(cell, path=None, error=f"no way to it within {SETTLE_S:.0f} s")
    return cell


def pairs_of(only: Sequence[NatType], *, extra: bool = True) -> list[Pair]:
    """All pairs with at least one of these kinds; all pairs of the usual kinds if there are none."""
    usual = [
        kind
        for kind in NatType
        if kind != NatType.HAIRPIN and (kind != NatType.UPNP or has_upnp_daemon())
    ]
    kinds = [kind for kind in NatType if kind in usual or kind in only]
    found = [Pair(a, b) for a in kinds for b in kinds if not only or a in only or b in only]
    for kind in (NatType.PORT, NatType.SYMMETRIC, NatType.HAIRPIN) if extra else ():
        if not only or kind in only:
            found += [Pair(kind, TOGETHER), Pair(kind, APART)]
    return found


async def run_pairs(
    world: World,
    pairs: Sequence[Pair],
    *,
    jobs: int = 3,
    patience_s: float = 20.0,
    hopeless_s: float | None = None,
    told: Callable[[Cell], None] = lambda _cell: None,
) -> list[Cell]:
    """Run all pairs, `jobs` at a time.

    Args:
        world: where.
        pairs: what to run.
        jobs: more are faster, until the processor's time shows in the figures.
        patience_s: how long to wait for a direct connection.
        hopeless_s: the same for those who cannot have one; also `patience_s` when None.
        told: called with each cell when it is done.
    """
    cells: dict[int, Cell] = {}
    todo = list(enumerate(pairs))[::-1]

    async def work() -> None:
        while todo:
            index, pair = todo.pop()
            wait_s = hopeless_s if hopeless_s is not None and not pair.direct else patience_s
            cells[index] = await run_pair(world, pair, wait_s)
            told(cells[index])

    async with trio.open_nursery() as nursery:
        for _ in range(jobs):
            nursery.start_soon(work)
    return [cells[index] for index in sorted(cells)]


LETTERS = {"direct": "D", "reversed": "R", "punched": "P", "relayed": "V"}
LEGEND = """\
Rows connect, columns are connected to. How, and seconds from the start of connecting until it was so:
D direct, R reversed and P punched (both begin over a relay), V via a relay to the end (seconds to the first byte).
! marks a pair that should have met directly, --- one that did not meet. --json has both times of each pair."""


def table(cells: Sequence[Cell]) -> str:
    """The legend, then a column for each kind by its row's number, then pairs in one home."""
    rows = list(dict.fromkeys(cell.a for cell in cells))
    kinds = [name for name in dict.fromkeys(cell.b for cell in cells) if name in set(NatType)]
    names = list(dict.fromkeys([*rows, *kinds]))
    found = {(cell.a, cell.b): _short(cell) for cell in cells}
    lines = [["", *(str(names.index(kind) + 1) for kind in kinds)]]
    lines += [
        [f"{names.index(row) + 1:2} {row}", *(found.get((row, kind), "") for kind in kinds)]
        for row in names
        if any((row, kind) in found for kind in kinds) or row not in rows
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    homes = [f"{cell.a}, {cell.b}: {_short(cell)}" for cell in cells if cell.b not in kinds]
    return "\n".join([LEGEND, "", *text, *([""] if homes else []), *homes])


def _short(cell: Cell) -> str:
    if cell.path is None:
        return "---"
    seconds = cell.first_byte_s if cell.direct_s is None else cell.direct_s
    mark = "" if cell.ok else "!"
    return (
        f"{mark}{LETTERS.get(cell.path, cell.path)} {math.nan if seconds is None else seconds:.2f}"
    )


def summary(cells: Sequence[Cell]) -> str:
    """One line per path, one per failure."""
    lines = []
    for path in ("direct", "reversed", "punched", "relayed"):
        times = sorted(c.direct_s or c.first_byte_s or math.nan for c in cells if c.path == path)
        if times:
            what = "to first byte" if path == "relayed" else "to direct"
            middle = times[len(times) // 2]
            lines.append(
                f"{path}: {len(times)}, {what} {middle:.2f} s median, {times[-1]:.2f} s max"
            )
    lines += [
        f"FAILED: {c.a} -> {c.b}: {c.error or f'{c.path}, expected {c.expected}'}"
        for c in cells
        if not c.ok
    ]
    return "\n".join(lines)


def _progress(total: int) -> Callable[[Cell], None]:
    done = 0
    start = time.monotonic()

    def told(cell: Cell) -> None:
        nonlocal done
        done += 1
        at = time.monotonic() - start
        print(
            f"[{done}/{total} {at:4.0f} s] {cell.a} -> {cell.b}: {cell.text()} {cell.error}".rstrip(),
            file=sys.stderr,
            flush=True,
        )

    return told


def _kinds(text: str) -> list[NatType]:
    try:
        return [NatType(name) for name in text.split(",") if name]
    except ValueError:
        raise argparse.ArgumentTypeError(f"kinds are: {', '.join(NatType)}") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.lab.matrix", description=__doc__.partition("\n")[0]
    )
    parser.add_argument(
        "--only", type=_kinds, default=[], metavar="KIND,KIND", help=", ".join(NatType)
    )
    parser.add_argument(
        "--delay-ms", type=float, default=20, help="one way (default 20: round trip 40)"
    )
    parser.add_argument("--jitter-ms", type=float, default=0)
    parser.add_argument("--loss", type=float, default=0, help="probability per packet, each way")
    parser.add_argument("--rate-mbit", type=float, default=0, help="of every uplink; 0: no limit")
    parser.add_argument("--jobs", type=int, default=3, help="pairs at a time (default 3)")
    parser.add_argument("--patience-s", type=float, default=20, help="wait so long for direct")
    parser.add_argument(
        "--json", action="store_true", help="one JSON document instead of the table"
    )
    options = parser.parse_args(arguments)
    if reason := why_not():
        print(f"noded: no NAT lab here: {reason}", file=sys.stderr)
        return SKIPPED_STATUS
    profile = LinkProfile(
        delay_ms=options.delay_ms,
        jitter_ms=options.jitter_ms,
        loss=options.loss,
        rate_mbit=options.rate_mbit,
    )
    pairs = pairs_of(options.only)
    told = _progress(len(pairs))

    async def run() -> list[Cell]:
        with Lab(profile) as lab:
            async with open_world(lab) as world:
                return await run_pairs(
                    world, pairs, jobs=options.jobs, patience_s=options.patience_s, told=told
                )

    cells = trio.run(run)
    if options.json:
        found = [{**attrs.asdict(cell), "ok": cell.ok} for cell in cells]
        print(
            json.dumps({"schema": "noded.natlab/1", "link": attrs.asdict(profile), "cells": found})
        )
    else:
        print(f"{table(cells)}\n\n{summary(cells)}")
    return 0 if all(cell.ok for cell in cells) else 1


def _interrupted(error: BaseException) -> bool:
    """Whether Ctrl-C is all there is, as a nursery may have wrapped it."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(_interrupted, error.exceptions))
    return isinstance(error, KeyboardInterrupt)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (KeyboardInterrupt, BaseExceptionGroup) as error:
        if not _interrupted(error):
            raise
        sys.exit(130)
