"""DADAO's arithmetic: six vectors that flow between events and jump at them.

A. Nabli and E. Oyallon, "DADAO: Decoupled Accelerated Decentralized Asynchronous Optimization" (2023, arXiv 2208.00779), section 4
and algorithm 1. Every f_i is L-smooth and mu-strongly convex; nu = mu/2. A node has x (its model), y and z (duals: of its own
function, and of agreement with others), and a momentum twin of each. Between events, in units of time::

    x'  = eta (xt - x)       y'  = al (yt - y)                   z'  = al (zt - z)
    xt' = eta (x - xt)       yt' = -theta (y + z + nu xt)        zt' = alt (z - zt)

a linear system, so that the time h is `exp(M h)`: a 6x6 matrix, computed once for an event however long the vectors are. At a
gradient g of f_i at x0, and at a meeting of i and j::

    v = g - nu x0 - yt;   x -= v / 4L;   xt -= v / (4 sqrt(L nu));   yt += (sqrt(nu/L)/4 + 1) v
    m = (y_i + z_i) - (y_j + z_j);   z_i -= m/2, z_j += m/2;   zt_i -= c m, zt_j += c m

Invariants: `sum_i (alt z_i + al zt_i) = 0` over all nodes, whatever their clocks, because m is the same on both sides and the
flow of one node keeps `alt z + al zt`; with one clock for all and no delay `sum z = sum zt = 0` each. What was exchanged with
a peer is kept in an *account* that flows like z: taking it back leaves the sums of the others as if that peer had never been
there, so that a crash costs no bias.
"""

from __future__ import annotations

import math
from typing import Final

import attrs
import numpy as np

from gossip.decentralized.protocol import AnyVector, Wide

X, XT, Y, YT, Z, ZT = range(6)
"""Rows of the state."""
LARGEST: Final = 1e30
"""Values beyond mean that the run diverges; far enough from float32's end that the flow between two events stays inside."""
TERMS: Final = 18
"""Of the exponential's series at a norm of 1/2: the rest is below 1e-20."""


@attrs.frozen
class Coefficients:
    """What L and mu make of the equations."""

    smoothness: float
    convexity: float

    @property
    def nu(self) -> float:
        """Mu / 2."""
        return self.convexity / 2

    @property
    def root(self) -> float:
        """sqrt(nu / L), the speed of everything."""
        return math.sqrt(self.nu / self.smoothness)

    @property
    def alpha(self) -> float:
        """Of y and z."""
        return self.root / 4

    @property
    def twin(self) -> float:
        """Alt and eta: of zt, and of x and xt."""
        return self.root / 8

    @property
    def theta(self) -> float:
        """Of yt."""
        return 0.5 / self.root

    def generator(self) -> Wide:
        """M of `state' = M state`, shape (6, 6), rows and columns x, xt, y, yt, z, zt."""
        out = np.zeros((6, 6))
        for row, other, rate in (
            (X, XT, self.twin),
            (XT, X, self.twin),
            (Y, YT, self.alpha),
            (Z, ZT, self.alpha),
            (ZT, Z, self.twin),
        ):
            out[row, other], out[row, row] = rate, -rate
        out[YT, Y] = out[YT, Z] = -self.theta
        out[YT, XT] = -self.theta * self.nu
        return out

    def flow_of_z(self, elapsed: float) -> Wide:
        """Exp of the block of z and zt, shape (2, 2): their difference fades, `alt z + al zt` stays."""
        a, t = self.alpha, self.twin
        kept = np.array([[t, a], [t, a]])
        fading = np.array([[a, -a], [-t, t]])
        out: Wide = (kept + fading * math.exp(-(a + t) * elapsed)) / (a + t)
        return out


def exponential(matrix: Wide) -> Wide:
    """Exp of a small square matrix: Taylor's series after scaling, squared back."""
    norm = float(np.abs(matrix).sum(axis=1).max())
    squarings = max(0, math.ceil(math.log2(norm)) + 1) if norm > 0 else 0
    scaled = matrix / 2**squarings
    term = out = np.eye(len(matrix))
    for order in range(1, TERMS + 1):
        term = term @ scaled / order
        out = out + term
    for _ in range(squarings):
        out = out @ out
    return out


class State:
    """One node's six vectors and its accounts, each at a time of its own until it is needed."""

    def __init__(self, coefficients: Coefficients, x: AnyVector) -> None:
        """Begin at x; its twin, too, so that a start from a good x stays there."""
        self.coefficients = coefficients
        self.vectors: Wide = np.zeros((6, x.size))
        """Shape (6, numel), float64."""
        self.vectors[X] = self.vectors[XT] = x
        self.accounts: dict[bytes, Wide] = {}
        """By peer, shape (2, numel): what meetings with it have added to z and zt, as it is at `_account_at`."""
        self._account_at: dict[bytes, float] = {}
        self._generator = coefficients.generator()
        self._at = 0.0

    def advance(self, at: float) -> None:
        """Flow to that moment, in units of time; an earlier one changes nothing."""
        if at > self._at:
            flow = exponential(self._generator * (at - self._at))
            self.vectors = flow @ self.vectors
            self._at = at

    def gradient(self, gradient: AnyVector, taken_at: AnyVector) -> bool:
        """A gradient of the node's function at `taken_at`; False, and nothing changed, if that leads out of all bounds."""
        c, old = self.coefficients, self.vectors
        v = gradient.astype(np.float64) - c.nu * taken_at - old[YT]
        new = old.copy()
        new[X] -= v / (4 * c.smoothness)
        new[XT] -= v / (4 * math.sqrt(c.smoothness * c.nu))
        new[YT] += (c.root / 4 + 1) * v
        return self._become(new)

    @property
    def shown(self) -> Wide:
        """Y + z, what meetings compare."""
        total: Wide = self.vectors[Y] + self.vectors[Z]
        return total

    def meet(self, peer: bytes, difference: Wide, gain: float) -> bool:
        """Both have seen this difference (mine minus theirs); False, and nothing changed, if that leads out of all bounds."""
        jump = np.stack([difference / 2, gain * difference])
        new = self.vectors.copy()
        new[Z:] -= jump
        if not self._become(new):
            return False
        self.accounts[peer] = self._account(peer) - jump
        self._account_at[peer] = self._at
        return True

    def take_back(self, peer: bytes) -> None:
        """As if there had never been a meeting with this peer."""
        if peer in self.accounts:
            self.vectors[Z:] -= self._account(peer)
            self.keep(peer)

    def keep(self, peer: bytes) -> None:
        """Close the account: what is in it stays."""
        self.accounts.pop(peer, None)
        self._account_at.pop(peer, None)

    def _account(self, peer: bytes) -> Wide:
        """As it is now: z and zt flow by themselves, whatever the other four do."""
        account = self.accounts.get(peer)
        if account is None:
            return np.zeros((2, self.vectors.shape[1]))
        elapsed = self._at - self._account_at[peer]
        flowed: Wide = self.coefficients.flow_of_z(elapsed) @ account
        return flowed

    def _become(self, new: Wide) -> bool:
        if not float(np.abs(new).max(initial=0.0)) <= LARGEST:  # also where it is not a number
            return False
        self.vectors = new
        return True
