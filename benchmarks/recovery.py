"""How long a collective takes to recover: from the loss of a member to a certified result of the others.

    python benchmarks/recovery.py [--parts kill stop silence join] [--kills 20] [--large-kills 8]

Four members are processes on this machine, new ones for every trial. In the middle of an all-reduce one of
them (each in its turn, and after another share of the operation each time) is killed (`kill`: SIGKILL, with
64 MiB and with 256 MiB), frozen (`stop`: SIGSTOP) or cut off without a word (`silence`: between two network
namespaces every packet is dropped; needs root). Measured is the time from that moment until the last survivor's
all-reduce returns with a certificate. Every trial checks that the survivors agree on the members and hold the same
bits, and that these are the float64 sum of exactly those members' inputs, up to rounding. A result that the
victim had signed before it died counts as certified by four; such a trial is reported and not timed.

`join`: while three reduce in rounds, a fourth comes with nothing and fetches 256 MiB of state; the others' longest
round says how long they waited for it.

One JSON line per trial on stdout, progress and a table on stderr. The steps: until the first and the last survivor
left the epoch, entered the next one, had its links, and had the result; milliseconds after the loss.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import netpath
from collective_rank import Rank, members, reduce_all
from rank_process import RankFailed

MIB = 1 << 20
WORLD = 4
PARTS = ("kill", "stop", "silence", "join")
STATE_BYTES = 256 * MIB
SHARES = (0.5, 0.2, 0.8, 0.35, 0.65)
"""Of the victim's segments that have arrived: the number has no divisor in common with WORLD."""
KILLS = {"kill 64 MiB": 64 * MIB, "kill 256 MiB": 256 * MIB}
GOALS_S = {"kill 64 MiB": 0.45, "stop": 5.0, "silence": 5.0}
"""Until the result for a kill; until the last survivor is in an epoch without it for a silent member."""
STEPS = ("left", "entered", "links")
PORTS = (21740, 21990)
WARM_UP = 2
"""Operations before the one in which a member is lost: the first touches new memory."""
TRIES = 3
"""Of one trial: on a busy machine a member may be silent for longer than the others bear before anything was done to it."""

_ports = itertools.cycle(range(*PORTS))


def ports(count: int) -> list[int]:
    """Others for each trial, and below those that the system gives to a dial."""
    return list(itertools.islice(_ports, count))


def loads() -> list[float]:
    return [round(load, 1) for load in os.getloadavg()]


# ---- the loss of a member ------------------------------------------------------------------------


@contextlib.contextmanager
def on_one_machine(_victim: int) -> Iterator[tuple[list[Rank], Callable[[], None]]]:
    with members([("127.0.0.1", port) for port in ports(WORLD)]) as ranks:
        yield ranks, lambda: None


@contextlib.contextmanager
def victim_elsewhere(victim: int) -> Iterator[tuple[list[Rank], Callable[[], None]]]:
    """The victim in a network namespace of its own; the callable drops everything it receives or sends."""
    with netpath.wire():
        places = [int(rank == victim) for rank in range(WORLD)]
        addresses = [
            (netpath.ADDRESSES[place], port)
            for place, port in zip(places, ports(WORLD), strict=True)
        ]
        prefixes = [netpath.inside(netpath.NAMES[place]) for place in places]
        with members(addresses, prefixes=prefixes) as ranks:
            # Started before it is needed: all that is left to do then is to read the rules.
            nft = subprocess.Popen(
                [*netpath.inside(netpath.NAMES[1]), "nft", "-f", "-"],
                stdin=subprocess.PIPE,
                text=True,
            )

            def cut() -> None:
                hooks = "\n".join(
                    f"chain {hook} {{ type filter hook {hook} priority 0; policy drop; }}"
                    for hook in ("input", "output")
                )
                nft.communicate(f"table inet silence {{\n{hooks}\n}}\n")
                if nft.returncode:
                    raise SystemExit("nft could not cut the victim off")

            try:
                yield ranks, cut
            finally:
                nft.kill()
                nft.wait()


def trial(number: int, part: str, how: str, size: int) -> dict[str, Any] | None:
    """One member lost in one operation; None if the others were disturbed before that."""
    victim, share = number % WORLD, SHARES[number % len(SHARES)]
    place = victim_elsewhere if part == "silence" else on_one_machine
    with place(victim) as (ranks, cut):
        survivors = [each for each in ranks if each.rank != victim]
        try:
            for operation in range(WARM_UP):
                reduce_all(ranks, operation, size)
                whole = [each.hear("answer") for each in ranks]
            if any(answer["steps"] for answer in whole):
                raise RankFailed("an epoch ended before the loss")
        except RankFailed as error:
            print(f"a trial is repeated: {error}", file=sys.stderr, flush=True)
            return None
        reduce_all(ranks, WARM_UP, size, victim=victim, harm={"share": share, "how": how})
        lost = ranks[victim].hear("harmed")
        cut()
        answers = [each.hear("answer") for each in survivors]
        for each in survivors:
            each.tell(do="check", numbers=each is survivors[0])
        checks = [each.hear("answer") for each in survivors]
    late = answers[0]["epoch"] == whole[0]["epoch"]
    expected = list(range(WORLD)) if late else [each.rank for each in survivors]
    agreed = (
        all(answer["members"] == expected for answer in answers)
        and len({answer["root"] for answer in answers}) == 1
    )
    if not agreed or len({check["digest"] for check in checks}) != 1:
        raise SystemExit(f"the survivors disagree: {answers}, {checks}")
    if not checks[0]["error"] <= 1.0:
        raise SystemExit(f"not the sum of {expected}: off by {checks[0]['error']} times rounding")
    row: dict[str, Any] = {
        "benchmark": "recovery",
        "part": part,
        "bytes": size,
        "victim": victim,
        "victim_proposes_next": victim == whole[0]["next_proposer"],
        "share": share,
        "undisturbed_ms": ms(max(a["ended"] for a in whole) - max(a["began"] for a in whole)),
        "certified_before": late,
        "attempts": 1 + max(answer["attempt"] for answer in answers),
        "rounding_error": round(checks[0]["error"], 3),
        "load": loads(),
    }
    if not late:
        row["recovered_ms"] = ms(max(answer["ended"] for answer in answers) - lost)
        for step in STEPS:
            # An epoch that could not be kept may lie between: the first time it was left, the last it was entered.
            pick: Callable[..., float] = min if step == "left" else max
            times = [
                pick((at for at, what in answer["steps"] if is_step(step, what)), default=lost)
                for answer in answers
            ]
            row[f"{step}_ms"] = [ms(min(times) - lost), ms(max(times) - lost)]
        row["why"] = sorted({what for a in answers for _, what in a["steps"] if "left the" in what})
    return row


def is_step(step: str, what: str) -> bool:
    return what.startswith({"left": "left the", "entered": "epoch ", "links": "links"}[step])


def ms(seconds: float) -> float:
    return round(seconds * 1e3, 1)


def losses(part: str, how: str, size: int, count: int) -> list[dict[str, Any]]:
    rows = []
    for number in range(count):
        for _ in range(TRIES):
            row = trial(number, part, how, size)
            if row is not None:
                break
        else:
            raise SystemExit("the machine is too busy for a trial")
        print(json.dumps(row), flush=True)
        rows.append(row)
        took = row.get("recovered_ms", "the victim had signed")
        print(
            f"{part} {size // MIB} MiB {number + 1}/{count}: {took} ms, load {row['load'][0]}",
            file=sys.stderr,
            flush=True,
        )
    return rows


def summary(name: str, rows: list[dict[str, Any]]) -> str:
    timed = [row for row in rows if not row["certified_before"]]
    if not timed:
        return f"{name:<17} no trial in which the victim had not signed"

    def column(key: Callable[[dict[str, Any]], float]) -> str:
        return f"{statistics.median(key(row) for row in timed):.0f}"

    times = [row["recovered_ms"] for row in timed]
    excluded = [row["entered_ms"][1] for row in timed]
    proposer = [row["recovered_ms"] for row in timed if row["victim_proposes_next"]]
    goal = GOALS_S.get(name)
    steps = " ".join(f"{column(lambda row, s=s: row[f'{s}_ms'][1]):>8}" for s in STEPS)
    verdict = (
        ""
        if goal is None
        else f"  goal {goal * 1e3:.0f}: {met(times if name in KILLS else excluded, goal)}"
    )
    return (
        f"{name:<17} {len(timed):>3}/{len(rows):<3} {statistics.median(times):>7.0f} {max(times):>7.0f}"
        f" {max(proposer, default=float('nan')):>9.0f} {column(lambda row: row['undisturbed_ms']):>11}"
        f" {steps}{verdict}"
    )


def met(times: list[float], goal_s: float) -> str:
    within = sum(time <= goal_s * 1e3 for time in times)
    return f"{within} of {len(times)} within"


# ---- a newcomer ----------------------------------------------------------------------------------


def late_join() -> dict[str, Any]:
    addresses = [("127.0.0.1", port) for port in ports(WORLD)]
    with members(addresses, first=WORLD - 1, state_bytes=STATE_BYTES) as ranks:
        for each in ranks[:-1]:
            each.tell(do="rounds", until=WORLD)
        time.sleep(1.0)  # rounds without it
        ranks[-1].tell(do="join")
        *others, joined = [each.hear("answer") for each in ranks]
    row = {
        "benchmark": "recovery",
        "part": "join",
        "state_bytes": STATE_BYTES,
        "fetched_s": round(joined["fetched_s"], 3),
        "mib_per_s": round(STATE_BYTES / MIB / joined["fetched_s"], 1),
        "fetches": joined["fetches"],
        "first_result_s": round(joined["ended"] - joined["began"], 3),
        "others_longest_round_s": round(max(other["longest_s"] for other in others), 3),
        "load": loads(),
    }
    print(json.dumps(row), flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--kills", type=int, default=20, help="with 64 MiB")
    parser.add_argument("--large-kills", type=int, default=8, help="with 256 MiB")
    parser.add_argument("--silences", type=int, default=4, help="of each kind")
    parser.add_argument("--joins", type=int, default=3)
    options = parser.parse_args()
    kinds = [
        *(
            ("kill", name, "SIGKILL", KILLS[name], count)
            for name, count in zip(KILLS, (options.kills, options.large_kills), strict=True)
        ),
        ("stop", "stop", "SIGSTOP", 64 * MIB, options.silences),
        ("silence", "silence", "silence", 64 * MIB, options.silences),
    ]
    head = (
        f"{'ms after the loss':<17} {'timed':>7} {'median':>7} {'max':>7} {'proposer':>9}"
        f" {'undisturbed':>11} {'left':>8} {'entered':>8} {'links':>8}"
    )
    lines = [head]
    for part, name, how, size, count in kinds:
        if part in options.parts and count:
            lines.append(summary(name, losses(part, how, size, count)))
    if "join" in options.parts:
        rows = [late_join() for _ in range(options.joins)]
        speed = statistics.median(row["mib_per_s"] for row in rows)
        whole = statistics.median(row["first_result_s"] for row in rows)
        waited = statistics.median(row["others_longest_round_s"] for row in rows)
        lines.append(
            f"join with {STATE_BYTES // MIB} MiB: {speed:.0f} MiB/s, first result after {whole:.2f} s;"
            f" the others' longest round {waited:.2f} s"
        )
    print("\n".join(lines), file=sys.stderr)


if __name__ == "__main__":
    main()
