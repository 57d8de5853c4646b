"""How many parallel connections a bulk transfer should use: as many as pay; sans-IO.

Problem: over a long or lossy path several connections move more than one (measured with Reno, 50 ms
and 0.05 % loss: 1.4, 6.7 and 12.4 MB/s with 1, 4 and 8); on a local path every further one only
costs. Neither can be known beforehand. Idea: try, and look at the goodput. Double the number while
that raises the goodput by more than 10 %; otherwise go back and leave it for a while. Now and then
try one less, and keep that when it costs next to nothing.

The start is rough and quick: every two round trips, or as soon as a megabyte has come through, the number doubles, as
long as that raises the goodput. That is wrong where one connection's own slow start raised it, which costs a few handshakes, and right
on every path that loses packets, where a transfer would else be over before enough links are there. That more links bring
nothing is believed only ten round trips after they were there: until then they are in their slow start (a rule of two
round trips stopped at 2 links on 100 ms and 1 Gbit/s, where 5 carry four times as much). A long path begins with several (`links_for`): one
connection carries its window in a round trip, and the kernel's is 4 MiB, of which about two thirds are used.

Where the kernel says what a connection's window carries, the bandwidth-delay product decides: another link for as
long as those there carry what their windows allow, and no trial where data stands in queues, since the line is full then and
windows beyond its product only lengthen the queue until it overflows (measured on 1 Gbit/s and 100 ms: five links carry 0.92 of
the line and lose nothing; eight lose some hundred packets in a second and carry 0.86).

After it, a trial has two parts: settling, in which new connections find their speed and nothing is measured,
and measuring. Both last at least ten round trips (slow start). Hysteresis: a link is added for a
gain of over 10 %, and dropped only when that loses under 3 %; after a trial that did not pay, the
next waits twice as long, from 5 s to 5 min. A goodput that has fallen or risen by half is another
path: the waiting is over.

Invariants: 1 <= target <= most while busy, 0 after `idle_s` without work; time only moves on.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import Final

from transport.network import PathState

GAIN: Final = 0.10
LOSS: Final = 0.03
ROUND_TRIPS: Final = 10
MIN_SETTLE_S: Final = 0.25
MIN_MEASURE_S: Final = 0.5
START_ROUND_TRIPS: Final = 2
MIN_START_S: Final = 0.2
START_BYTES: Final = 1 << 20
"""So much must be acknowledged before the start is judged: a chunk or two would be chance."""
FAST_BYTES_PER_S: Final = 1.25e8
"""The line of which the first links should be able to make full use: 1 Gbit/s."""
WINDOW_BYTES: Final = 2_900_000
"""What one connection has on its way with the kernel's usual 4 MiB of send buffer (measured over 100 ms)."""
MIN_HOLD_S: Final = 5.0
MAX_HOLD_S: Final = 300.0
IDLE_S: Final = 30.0
OTHER_PATH: Final = 2.0
FILLED: Final = 0.75
"""Of what its buffer allows: a connection that carries so much is held up by that (alone it reaches `CARRIED`)."""
CARRIED: Final = 0.83
"""What it reaches alone."""
QUEUED: Final = 1.08
"""Round trip, in units of the least, from which the line is full: 8 ms of queue over 100 ms."""
WINDOW_ROUND_TRIPS: Final = 4
"""For a look at whether windows are filled."""


class _Phase(Enum):
    START = "doubling while it raises the goodput"
    BASE = "measuring the number in use"
    UP = "measuring more"
    DOWN = "measuring one less"
    HOLD = "nothing to try"


def links_for(rtt_s: float | None, most: int = 8) -> int:
    """How many connections a line of 1 Gbit/s needs at that round trip: its bandwidth-delay product in windows.

    Not more: what exceeds it stands in the line's queue or, where there is no room, is lost.
    """
    if rtt_s is None:
        return 1
    return max(1, min(most, math.ceil(rtt_s * FAST_BYTES_PER_S / WINDOW_BYTES)))


class LinkCount:
    """Says how many links to use; ask it every tenth of a second or so.

    Args:
        most: never more than this (1 to 8).
        idle_s: seconds without work after which the target is 0.
    """

    def __init__(self, *, most: int = 8, idle_s: float = IDLE_S) -> None:
        self.most = most
        self.target = 0
        self.goodput = 0.0
        """Bytes per second with the number in use, as last measured; 0.0 before."""
        self._idle_s = idle_s
        self._chosen = 0  # the number that has proven itself; 0 before the first look
        self._start_ends = 0.0
        self._phase = _Phase.START
        self._settled_at = 0.0
        self._measuring_since: float | None = None
        self._bytes_before = 0
        self._hold_s = MIN_HOLD_S
        self._hold_until = 0.0
        self._down_next = False
        self._worked_at: float | None = None
        self._path: PathState | None = None

    def idle(self, now: float) -> int:
        """There is nothing to send at `now` (seconds); return the target."""
        self._measuring_since = None  # a measurement with a gap in it is none
        if self.target and self._worked_at is not None and now - self._worked_at >= self._idle_s:
            self.target = 0
            self._phase = _Phase.BASE
        return self.target

    def waiting(self, now: float) -> int:
        """There is work, but nothing more to hand out; return the target, at least 1."""
        if self.target == 0:
            self.target = max(1, min(self._chosen, self.most))
        self._worked_at = now
        self._measuring_since = None
        return self.target

    def busy(
        self,
        now: float,
        acknowledged: int,
        links: int,
        rtt_s: float,
        path: PathState | None = None,
    ) -> int:
        """There is more to send than is under way; return the target.

        Args:
            now: seconds.
            acknowledged: bytes the peer has acknowledged, ever.
            links: open now; a trial begins to settle when they are as many as it wants.
            rtt_s: round trip, seconds.
            path: what one link meets, on average, where the kernel says that.
        """
        self._worked_at = now
        self._path = path
        if self._chosen == 0:
            self._chosen = links_for(rtt_s, self.most)
            self.target = max(self.target, self._chosen)
        if self.target == 0:
            self.target = self._chosen = min(self._chosen, self.most)
            if self._phase is not _Phase.START:
                self._settle(now, rtt_s)
        if links != self.target:
            self._settle(now, rtt_s)
            return self.target
        if self._phase is _Phase.START:
            if path is not None:
                return self._fill(now, acknowledged, rtt_s, path)
            return self._start(now, acknowledged, rtt_s)
        if self._measuring_since is None:
            if now >= self._settled_at:
                self._measuring_since, self._bytes_before = now, acknowledged
            return self.target
        measure_s = max(MIN_MEASURE_S, ROUND_TRIPS * rtt_s)
        took = now - self._measuring_since
        if took < measure_s:
            return self.target
        goodput = (acknowledged - self._bytes_before) / took
        self._measuring_since, self._bytes_before = now, acknowledged
        before = self.target
        self._judge(now, goodput)
        if self.target != before:
            self._settle(now, rtt_s)
        return self.target

    def _start(self, now: float, acknowledged: int, rtt_s: float) -> int:
        """Look at the quick doubling of the beginning; return the target."""
        if self._measuring_since is None or acknowledged == self._bytes_before:
            if self._measuring_since is None:
                self._start_ends = now + max(MIN_SETTLE_S, ROUND_TRIPS * rtt_s)
            self._measuring_since, self._bytes_before = now, acknowledged
            return self.target
        took, came = now - self._measuring_since, acknowledged - self._bytes_before
        if took < max(MIN_START_S, START_ROUND_TRIPS * rtt_s):
            return self.target
        if came < START_BYTES and took < max(MIN_MEASURE_S, ROUND_TRIPS * rtt_s):
            return self.target
        goodput = came / took
        if goodput <= (1 + GAIN) * self.goodput and now < self._start_ends:
            self._measuring_since, self._bytes_before = now, acknowledged
            return self.target
        self._measuring_since = None
        if goodput > (1 + GAIN) * self.goodput:
            self._chosen, self.goodput = self.target, goodput
            self.target = min(2 * self.target, self.most)
            if self.target != self._chosen:
                return self.target
        else:
            self.target = self._chosen  # the last doubling was for nothing
        self._phase = _Phase.BASE
        self._hold_until = now + MIN_HOLD_S
        self._down_next = self._chosen > 1  # the start may have gone too far
        self._settle(now, rtt_s)
        return self.target

    def _fill(self, now: float, acknowledged: int, rtt_s: float, path: PathState) -> int:
        """The beginning where windows are known: add links until they carry less than their windows allow; return the target."""
        if self._measuring_since is None:
            if now >= self._settled_at:
                self._measuring_since, self._bytes_before = now, acknowledged
                self._start_ends = max(self._start_ends, now + ROUND_TRIPS * rtt_s)
            return self.target
        took = now - self._measuring_since
        if took < max(MIN_START_S, WINDOW_ROUND_TRIPS * rtt_s):
            return self.target
        goodput = (acknowledged - self._bytes_before) / took
        self._measuring_since, self._bytes_before = now, acknowledged
        if goodput > (1 + GAIN) * self.goodput:  # slow start, perhaps
            self._start_ends = now + ROUND_TRIPS * rtt_s
        self.goodput = max(goodput, self.goodput)
        if goodput >= FILLED * self.target * path.most and self.target < self.most:
            self._chosen = self.target = min(self.target + max(1, self.target // 4), self.most)
            self._settle(now, rtt_s)
        elif now >= self._start_ends:
            self._phase = _Phase.BASE
            self._hold_until = now if path.queueing < QUEUED else now + MIN_HOLD_S
        return self.target

    def _line_is_full(self) -> bool:
        return self._path is not None and self._path.queueing >= QUEUED

    def _windows_are_needed(self) -> bool:
        """Whether one link less could not carry what there is now, by its windows."""
        path = self._path
        return path is not None and self.goodput > CARRIED * (self._chosen - 1) * path.most

    def cannot_open(self, now: float, links: int) -> int:
        """No more than `links` can be had; return the new target."""
        self.target = self._chosen = max(1, min(links, self.most))
        self._measuring_since = None
        self._hold(now)
        self._phase = _Phase.BASE  # the goodput of so many is not known yet
        return self.target

    def _settle(self, now: float, rtt_s: float) -> None:
        self._settled_at = now + max(MIN_SETTLE_S, ROUND_TRIPS * rtt_s)
        self._measuring_since = None

    def _judge(self, now: float, goodput: float) -> None:
        """One measurement of `target` links is done."""
        match self._phase:
            case _Phase.UP:
                if goodput > (1 + GAIN) * self.goodput:
                    self._keep(goodput)
                    self._try_more(now)
                else:
                    self._give_up(now)
            case _Phase.DOWN:
                if goodput >= (1 - LOSS) * self.goodput:
                    self._keep(goodput)
                    self._try_less(now)
                else:
                    self._give_up(now)
            case _Phase.BASE:
                self.goodput = goodput
                if now >= self._hold_until:
                    self._try_more(now)
                else:
                    self._phase = _Phase.HOLD
            case _Phase.HOLD:
                low, high = sorted((goodput, self.goodput))
                if 0 < OTHER_PATH * low < high:
                    self._hold_s, self._hold_until = MIN_HOLD_S, now
                self.goodput = goodput
                if now >= self._hold_until:
                    if self._down_next and self._chosen > 1:
                        self._try_less(now)
                    else:
                        self._try_more(now)

    def _keep(self, goodput: float) -> None:
        self._chosen, self.goodput = self.target, goodput
        self._hold_s = MIN_HOLD_S

    def _try_more(self, now: float) -> None:
        self.target = self._chosen if self._line_is_full() else min(2 * self._chosen, self.most)
        self._down_next = True
        if self.target == self._chosen:
            self._hold(now)
        else:
            self._phase = _Phase.UP

    def _try_less(self, now: float) -> None:
        self.target = self._chosen if self._windows_are_needed() else max(1, self._chosen - 1)
        self._down_next = False
        if self.target == self._chosen:
            self._hold(now)
        else:
            self._phase = _Phase.DOWN

    def _give_up(self, now: float) -> None:
        self.target = self._chosen
        self._hold(now)

    def _hold(self, now: float) -> None:
        self._phase = _Phase.HOLD
        self._hold_until = now + self._hold_s
        self._hold_s = min(2 * self._hold_s, MAX_HOLD_S)
