"""How close to a key a node must be to answer for it: the region.

Problem: Kademlia puts a record on the k nodes nearest to its key. Ids come from keys that anybody can make, so an attacker grinds k
ids nearer to a key than any honest node's (a second of work for 200 nodes) and owns it. Idea (arXiv 2505.01139, after SR-DHT-Store):
write to, and read from, every node within a distance of the key in which k nodes are to be expected. Ground ids then come on top of
the honest nodes, not in their place.

The distance is how far the k-th nearest was from *random* targets (refreshes of bucket ranges, our own id), the median of the last
searches. Keys that somebody chose are left out, since their surroundings are what an attacker shapes; a median of nine stands if four
are. Before the first, our own neighbourhood in the table has to do.
"""

from __future__ import annotations

import statistics
from collections import deque

from dht.key import KEY_BITS

_SAMPLES = 9


class Density:
    """An estimate of the radius around any target that holds k nodes."""

    def __init__(self) -> None:
        self._radii: deque[int] = deque(maxlen=_SAMPLES)

    def saw(self, radius: int) -> None:
        """Note that the k-th nearest node to a random target is `radius` away from it."""
        self._radii.append(radius)

    def region(self, neighbourhood: int) -> int:
        """Return the radius; `neighbourhood` (that around our own id, 0 if unknown) when nothing else is known."""
        return int(statistics.median_low(self._radii)) if self._radii else neighbourhood

    def nodes(self, k: int, neighbourhood: int) -> int:
        """Return how many nodes the swarm seems to have, 0 if unknown."""
        region = self.region(neighbourhood)
        return (k << KEY_BITS) // region if region else 0
