"""Authenticated, encrypted, multiplexed connections between two node ids; knows nothing of DHT, CRDT, gossip or training.

Cores (no I/O, no clock, no global randomness):
    identity, swarm, address, text     who, which swarm, where; and their printable forms
    codec                              control messages as hostile bytes
    noise, handshake                   from raw bytes to an authenticated peer
    record                             sealed records, the hot path
    frames, mux (mux_events, mux_state)   streams, credit, priorities
    limits                             budgets, and who may start a handshake

Drivers (trio): `endpoint.open_endpoint()` is the way in; beneath it listener, dialer, link, peer, stream, bulk over a
`network.Network`, which is the kernel's TCP (`tcp`) or a seeded simulation (`memory`, `deterministic`).
`durable` is beside all that: a small file that a crash leaves whole, for every room above.

Errors: `errors.TransportError` is the root of everything raised here. The bytes on the wire: docs/wire.md.
"""
