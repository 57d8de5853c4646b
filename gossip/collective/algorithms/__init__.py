"""Who sends what to whom in an operation, and where it is added.

The `ring` moves the fewest bytes, and sends in an order of its own. `butterfly` reduces in two hops, by owners of parts (with one owner it is the star), and gathers and broadcasts by the second of them;
`doubling` is for small vectors; `chain` broadcasts large ones; `hierarchical` goes by sites.
"""
