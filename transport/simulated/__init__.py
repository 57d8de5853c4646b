"""A seeded network in memory with virtual time, for the simulator and for tests; part of the product.

`memory` is the network, `host` a machine, `stream` one end of a connection, `link_model` the arithmetic of delay and loss, `nat_model` and
`nat_topology` the NATs between hosts. `deterministic` runs a whole trio program so that one seed gives one execution.
"""
