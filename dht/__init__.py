"""The dht room: finding nodes and small signed records by key, with no server.

What it is for: four nodes that share one bootstrap address find a run by its name, and the same code serves
ten thousand. A lookup is a *hint*: every record is signed by the key it names and is verified by its reader,
every contact is proved by the handshake of the connection to it. Safety never rests on what a lookup returns.

Cores (no input or output, time and chance are arguments): `key` (XOR metric), `contact` (where a node may be
reached), `bucket` and `table` (who is known), `lookup` (iterative search), `record` (signed values), `store`
(records held for others), `publish` (records of our own), `messages` (the wire), `operation` (what
is under way), `node` (all of it together), `settings`.
Driver: `service` (`open_dht`), the only file that sees the transport and trio. Errors: `errors`, rooted in
`DhtError`.
"""
