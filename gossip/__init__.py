"""Gossip: how the members of a run combine their work, with no master.

What it is for: protocols (plug-ins), agreement on who takes part and on the outcome of exact
collectives, the collectives themselves, and keeping shared state equal on all nodes.

* Plug-in point: `protocol` (a coordinator core in the daemon, arithmetic in the trainer), with those of `protocols` built in;
  `conformance` is what every protocol must pass (`settings_check`: both kinds of them), `rehearsal` a run in one process to look at one with.
* `collective`: epochs, certificates, and the ring. `rounds` is the driver above it: a run's life at one node.
* `decentralized`: the other kind of protocol, which needs no agreement and exchanges models with a few.
* `membership`: who takes part and who is gone.
* Shared documents: `document` (what one has to offer), `antientropy` (the core that compares two), `replication` (the driver);
  `swarm` is the swarm's own document.
* `blocks`: large data named by its hash, from many holders at once; cores and drivers of its own.
* Settings that are refused: `invalid` says why, in words. Errors: `gossip.errors.GossipError`; a collective ends with a certificate, `CollectiveAborted` or
  `Indeterminate`, and nothing else.

Imports `crdt` and `transport`; never torch.
"""
