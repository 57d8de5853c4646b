"""Relays: how two nodes reach each other that neither can dial.

A node that cannot be dialed keeps *reservations* with one or two relays and advertises their addresses with
`/via/<relay id>`. Whoever wants it dials the relay and asks for a *circuit*; the relay opens a stream to the node and copies bytes
both ways. The usual handshake then runs through the circuit, so the relay carries ciphertext it can neither read nor change
unnoticed; what it can do is stop, and then another relay is used.

`messages` is what is said, `ledger` decides who may have what within the `settings` and the `budget` of traffic (no clock, no network), `service` is
the relay, `bridge` one circuit there, `client` the node that is reached through it (with `reservations`), and also the one that dials through it;
`candidates` remembers which relays are worth asking, `trial` tries whether one carries anything.
"""
