"""Gossip: how the members of a run combine their work, with no master.

What it is for: protocols (plug-ins), agreement on who takes part and on the outcome of exact
collectives, the collectives themselves, and keeping shared state equal on all nodes.

* Plug-in point: `protocol` (a coordinator core in the daemon, arithmetic in the trainer), with
  `diloco` and `averaging` built in; `conformance` is what every protocol must pass.
* Cores: `epoch` (one node's part in a run; `former` forms epochs by the rules of `formation`,
  `operation` tracks one collective, `certificate` is what members sign, `standing` what a node
  knows), `messages` (the wire), `antientropy` (shared state), `swim` (who takes part and who is
  gone; its parts are `swim_*`, `suspicion`, `local_health`, `dissemination`).
* Drivers: `group` (epochs and streams), `ring` (the data), `handover` (state for newcomers),
  `rounds` (a run's life at one node), `replication` (shared state over connections),
  `membership` (who takes part, over connections).
* Errors: `gossip.errors.GossipError`; a collective ends with a certificate, `CollectiveAborted` or
  `Indeterminate`, and nothing else.

Imports `crdt` and `transport`; never torch.
"""
