"""Who sends what to whom in an operation, and where it is added.

`butterfly` reduces in two hops, by owners of parts (with one owner it is the star), and gathers and broadcasts by the second of them; `doubling` is for small
vectors; `chain` broadcasts large ones; `hierarchical` goes by sites. The ring is `gossip.collective.ring`.

`ring_order` says in which order members stand in a ring so that its slowest link is as fast as can be.
"""
