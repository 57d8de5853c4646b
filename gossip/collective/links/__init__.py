"""How values get from member to member: links of an epoch, and transfers on them (trio drivers).

A `mesh` has the links of an epoch in lanes. An algorithm sends and receives by an `exchange`, with an `outbox` for each receiver; a `carriage` packs values into transfers, each with the
head of a `segment` that says where it belongs. `buffers` shows vectors as bytes.
"""
