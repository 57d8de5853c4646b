"""The dht room: finding nodes and small signed records by key, with no server.

What it is for: four nodes that share one bootstrap address find a run by its name, and the same code serves
ten thousand. A lookup is a *hint*: every record is signed by the key it names and is verified by its reader,
every contact is proved by the handshake of the connection to it. Safety never rests on what a lookup returns.
What protects it, and what was measured: `docs/dht.md`.

Cores (no input or output, time and chance are arguments):
* who is known: `key` (XOR metric), `contact` (where a node may be reached), `diversity` (address groups), `bucket`, `table`;
* searching: `lookup` (iterative, on disjoint paths), `density` (how far a key's region reaches), `reading` (what is believed), `upkeep`;
* records: `record` (signed values), `provider` (who has what), `publish` (our own), `store` (held for others), `tokens` and
  `allowance` (who may write, how often);
* together: `messages` (the wire), `responder` (answers), `operation` (what is under way), `node` (all of it), `settings`, `saved` (the
  table as a file's contents).

Drivers: `service` (`open_dht`), `bootstrap`, `warm` and `table_file` (the table between runs), `seam` (what they need of the transport).
Errors: `errors`, rooted in `DhtError`.
"""
