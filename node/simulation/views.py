"""Who knows of whom: what discovery has told each node, with the delay that telling takes.

On real machines membership gossip and the shared roster do this; here it is a delay for each kind of news, and on top
of it one for each hearer if the scenario wants the views to differ for a while. News that was overtaken by newer news
about the same node is dropped.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence

from node.simulation.chance import stream
from node.simulation.heap import EventHeap
from node.simulation.scenario import Discovery
from transport.identity import NodeId

__all__ = ["Views"]


class Views:
    """What each node believes about the membership.

    Args:
        ids: of all nodes, by index.
        settings: the delays.
        heap: the clock.
        tell: called with a node's index when its view has changed.
        seed: of the extra delays.
    """

    def __init__(
        self,
        ids: Sequence[NodeId],
        settings: Discovery,
        heap: EventHeap,
        tell: Callable[[int], None],
        seed: int,
    ) -> None:
        self._ids = ids
        self._settings = settings
        self._heap = heap
        self._tell = tell
        self._rng = stream(seed, "discovery")
        self._public: list[NodeId] = []
        """What a newcomer is told."""
        self._known: dict[int, list[NodeId]] = {}
        """By observer, for the nodes that are there."""
        self._life = [0] * len(ids)
        """How often each node came or went: older news about it is dropped."""

    def others(self, node: int) -> tuple[NodeId, ...]:
        """Whom this node knows besides itself, ascending."""
        known = self._known[node]
        place = bisect_left(known, self._ids[node])
        itself = place < len(known) and known[place] == self._ids[node]
        return (*known[:place], *known[place + itself :])

    def begin(self, nodes: Sequence[int]) -> None:
        """These are there from the beginning, and all know of one another."""
        self._public = sorted(self._ids[node] for node in nodes)
        for node in nodes:
            self._known[node] = list(self._public)

    def came(self, node: int) -> None:
        """A node is there now: it knows the others at once, they will hear of it."""
        self._known[node] = list(self._public)
        self._spread((node,), self._settings.join_s, present=True)

    def went(self, nodes: Sequence[int], after_s: float) -> None:
        """Nodes are gone; the others hear of it after so long, or never without re-wiring."""
        for node in nodes:
            del self._known[node]
        if self._settings.rewire:
            self._spread(tuple(nodes), after_s, present=False)
        else:
            for node in nodes:
                self._life[node] += 1

    def _spread(self, nodes: tuple[int, ...], after_s: float, *, present: bool) -> None:
        lives = []
        for node in nodes:
            self._life[node] += 1
            lives.append(self._life[node])
        news = tuple(zip(nodes, lives, strict=True))
        self._heap.at(self._heap.now + after_s, self._publish, news, present)

    def _publish(self, news: tuple[tuple[int, int], ...], present: bool) -> None:
        # Who comes from now on is told by the list itself; who is there hears at once, or in its own time.
        self._change(self._public, self._fresh(news), present=present)
        spread = self._settings.spread_s
        for observer in sorted(self._known):
            if spread:
                when = self._heap.now + self._rng.uniform(0, spread)
                self._heap.at(when, self._hears, observer, news, present)
            else:
                self._hears(observer, news, present)

    def _fresh(self, news: tuple[tuple[int, int], ...]) -> list[int]:
        return [node for node, life in news if self._life[node] == life]

    def _hears(self, observer: int, news: tuple[tuple[int, int], ...], present: bool) -> None:
        known = self._known.get(observer)
        subjects = [node for node in self._fresh(news) if node != observer]
        if known is not None and self._change(known, subjects, present=present):
            self._tell(observer)

    def _change(self, known: list[NodeId], nodes: Sequence[int], *, present: bool) -> bool:
        changed = False
        for node in nodes:
            id_ = self._ids[node]
            place = bisect_left(known, id_)
            there = place < len(known) and known[place] == id_
            if present and not there:
                insort(known, id_)
            elif there and not present:
                del known[place]
            changed |= present != there
        return changed
