"""Exact collectives with no master: epochs, certificates, and the ring that moves the bytes.

Sans-IO: `epoch` (with `epoch_events`, `formation`, `former`, `scrutiny`, `lineage`, `standing`, `lanes`, `deadlock`, `operation`, `settlement`, `certificate`, `messages`) agrees on who takes part and on the outcome of each
operation, of which one may run in each lane; `rhythm` tells from their timing who has become slow, and `arranging` makes a `layout` of the members of it, which is part of the epoch; `probing` measures links that nobody has used. The values: a `call` says what is wanted, `choice` by which algorithm; `elements` adds values of a type, a `carriage` packs them, a
`segment` of them has a head. Drivers: `dataplane` carries out a call over the links of a `mesh`, each algorithm by an `exchange` of transfers with an `outbox` for each receiver (`ring` alone sends in an order of its own), `handover` brings a member up to date with the rounds, `state_sync` keeps other tensors the same (`declaration`, a core, says whose count), `group` ties them to the run's members: `calls` are what is to be done there,
`talk` what members say to each other, each through an `outgoing` stream. `first_error` says why several tasks of one operation failed, `buffers` shows vectors as bytes.

The folder `formats` holds the wire formats: how values become bytes; `algorithms` who sends what to whom, and where it is added.
"""
