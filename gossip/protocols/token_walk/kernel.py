"""Where the token goes: a Metropolis-Hastings walk that shuns nodes which it has visited much (pure functions and one value).

Base chain on a graph with degrees d, towards the uniform distribution mu = 1/N::

    P_ij = min(1, d_i / d_j) / d_i = 1 / max(d_i, d_j)         P_ii = the rest

Self-repellent walk (V. Doshi, J. Hu, D. Y. Eun, "Self-Repellent Random Walks on General Graphs", 2023): with x the weighted
measure of past visits, sum x = 1, the next node is drawn from `w_j = P_ij (x_j / mu_j)^-alpha`, normalised. alpha = 0 is the base
chain; x = mu, where x ends up, is the base chain as well. Step n decays the measure and adds to the visited node::

    x <- x + gamma_n (delta_j - x),    gamma_n = (n + 1)^-a,    n = 1, 2, ...

**No global vector travels.** Everything but the visited entry is multiplied by the same factors, so a node keeps its value
as of its last visit, and brings it up to step n by `exp(G(n) - G(n_last))`, with `G(n) = sum_k log(1 - gamma_k)`. G is summed
directly for the first steps; from there on by its series in the powers of gamma, each summed by Euler and Maclaurin, so that
any n costs the same and no table grows.

Invariants: sum x = 1 to 1e-9 while nodes neither come nor go and no term ends early; a node that does not answer gets no
weight, and its share of P goes to staying, which keeps mu stationary among the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import attrs

from transport.identity import NodeId

HEAD: Final = 256
"""Steps summed directly. Behind it gamma < 0.063 for every a > 0.5, and the series is exact to rounding."""
TINY: Final = 1e-18
"""A term of the series below it does not change the sum any more."""


def gamma(n: int, a: float) -> float:
    """Weight of visit number n >= 1."""
    return float((n + 1) ** -a)


@lru_cache(maxsize=16)
def _head(a: float) -> tuple[float, ...]:
    sums = [0.0]
    for n in range(1, HEAD + 1):
        sums.append(sums[-1] + math.log1p(-gamma(n, a)))
    return tuple(sums)


@lru_cache(maxsize=4096)
def log_decay(n: int, a: float) -> float:
    """`G(n)`: the logarithm of what is left at step n of a weight of step 0; 1/2 < a <= 1."""
    if n <= HEAD:
        return _head(a)[n]
    first, last = HEAD + 2.0, n + 1.0
    total, m, power = 0.0, 1, 1.0
    while power / m > TINY:
        total += _power_sum(a * m, first, last) / m
        m += 1
        power *= first**-a
    return _head(a)[HEAD] - total


def _power_sum(s: float, p: float, q: float) -> float:
    """`sum_{u=p}^{q} u^-s` by Euler and Maclaurin up to the fifth derivative; p > 200."""
    span = math.log(q / p)
    integral = span if abs(1 - s) < 1e-12 else p ** (1 - s) * math.expm1((1 - s) * span) / (1 - s)
    total: float = integral + (p**-s + q**-s) / 2
    rising = s
    for order, weight in ((1, 1 / 12), (3, -1 / 720), (5, 1 / 30240)):
        total += weight * rising * (p ** (-s - order) - q ** (-s - order))
        rising *= (s + order) * (s + order + 1)
    return total


class Visits:
    """One node's entry of the visit measure, brought up to date when somebody asks.

    Args:
        start: its value at step 0, 1/N.
        a: exponent of gamma.
    """

    def __init__(self, start: float, a: float) -> None:
        self._value, self._a = start, a
        self._step = 0
        self._decay = 0.0

    def at(self, n: int) -> float:
        """x_j(n). For a step before the last visit (a token that was lost had been further): as of that visit."""
        if n <= self._step:
            return self._value
        return self._value * math.exp(log_decay(n, self._a) - self._decay)

    def visit(self, n: int) -> None:
        """The token makes step n here."""
        step = max(n, self._step)
        decay = log_decay(step, self._a)
        kept = self._value * math.exp(decay - self._decay) if step > self._step else self._value
        self._value = kept + gamma(max(n, 1), self._a)
        self._step, self._decay = step, decay


@attrs.frozen
class Place:
    """A node that the token may go to."""

    node: NodeId
    visits: float
    """x_j at the token's step."""
    degree: int
    """d_j in the graph."""


def weights(
    here: Place, neighbours: Sequence[Place], *, mu: float, alpha: float, clip: float
) -> list[tuple[NodeId, float]]:
    """Unnormalised w_j of the neighbours that have answered and of staying, ascending by node.

    Args:
        here: where the token is; `degree` counts all its neighbours, also those that have not answered.
        neighbours: those that have.
        mu: the target, 1/N.
        alpha: how strongly the walk is repelled; 0 not at all.
        clip: the most that `(x/mu)^-alpha` may be, for nodes that were hardly ever visited.
    """
    base = {place.node: 1.0 / max(here.degree, place.degree, 1) for place in neighbours}
    base[here.node] = max(0.0, 1.0 - math.fsum(base.values()))
    visits = {place.node: place.visits for place in (*neighbours, here)}
    return [(node, base[node] * repulsion(visits[node] / mu, alpha, clip)) for node in sorted(base)]


def repulsion(ratio: float, alpha: float, clip: float) -> float:
    """`(x/mu)^-alpha`, at most `clip`; exactly 1 for alpha = 0."""
    if alpha == 0:
        return 1.0
    if ratio <= 0 or -alpha * math.log(ratio) >= math.log(clip):
        return clip
    return float(ratio**-alpha)


def draw(weighted: Sequence[tuple[NodeId, float]], u: float) -> NodeId:
    """The node in whose part of the total the share u, uniform in [0, 1), falls."""
    left = u * math.fsum(weight for _, weight in weighted)
    for node, weight in weighted:
        left -= weight
        if left < 0:
            return node
    return max(weighted, key=lambda pair: pair[1])[0]  # rounding, or no weight at all
