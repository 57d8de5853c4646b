"""Whom one blow strikes: the best connected nodes, the worst connected, or any.

The cases are those of "Disrupted peer-to-peer communication" (arXiv 2310.02986): hubs that hold data, hubs that hold
none and only pass models on (relays), and leaves; random nodes are what they are compared with. Which node is a hub
follows from the graph that the run's protocol derives, so it is known before the run begins, and a scenario without the
blow gives the relays no data either: the two runs differ in the blow alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from gossip.decentralized.topology import KINDS, graph
from node.errors import ConfigError
from node.simulation.chance import stream
from node.simulation.scenario import Disruption
from transport.identity import NodeId

__all__ = ["struck"]


def struck(
    blow: Disruption, ids: Sequence[NodeId], run: bytes, protocol: msgspec.Struct, seed: int
) -> list[int]:
    """Indices of the nodes that the blow is meant for, ascending; [] if there is none.

    Args:
        blow: what is to happen.
        ids: of all nodes.
        run: the run's id.
        protocol: the settings of its protocol; hubs and leaves are those of its `graph` and `degree`.
        seed: of the random choice, and of that among equals.

    Raises:
        ConfigError: hubs or leaves of a protocol that has no graph of its own.
    """
    if blow.case == "none":
        return []
    count = max(1, round(blow.share * len(ids)))
    order = list(range(len(ids)))
    stream(seed, "disruption").shuffle(order)
    if blow.case == "random":
        return sorted(order[:count])
    kind = getattr(protocol, "graph", None)
    if kind not in KINDS:
        raise ConfigError(
            f'disruption.case: this protocol has no lasting graph in which "{blow.case}" could be found',
            key="disruption.case",
            hint='use "random", or a protocol that has a graph, such as dpsgd',
        )
    edges = graph(kind, ids, run, degree=getattr(protocol, "degree", 4))
    order.sort(key=lambda index: len(edges[ids[index]]), reverse=blow.case != "leaf")
    return sorted(order[:count])
