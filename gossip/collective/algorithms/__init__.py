"""How an operation's values travel and where they are added (pure cores, no input or output).

`range_owner` is the all-reduce of few hops, for which low-bit wire formats are made; `ring_order` says in which order members stand in
a ring so that its slowest link is as fast as can be. No driver uses them yet: the ring of `gossip.collective.ring` does the work of today.
"""
