"""Authenticated, encrypted, multiplexed connections between two node ids; knows nothing of DHT, CRDT, gossip or training.

`endpoint.open_endpoint()` is the way in, `peer.Peer` what one gets from it. Folders, from the bytes up; each says which of its files are cores:
    secure       from a raw connection to a sealed link between two proven identities
    trust        who may be a member: certificates, chains, revocations
    streams      many streams over one link, with credit and priorities
    connect      how a connection becomes a peer, stays one, and moves to a better path; the door for newcomers
    bulk         large regions of bytes, over connections of their own
    budget       what anybody may cost us
    relay, punch, nat, reach    being reachable: circuits, hole punching, port mapping, and what is known of all that
    simulated    the network in memory

Beside them: `network` is the seam below (raw streams), `tcp` the kernel behind it; `identity`, `swarm`, `address` (with `address_kinds`) and `text` are
who, which swarm, where, and their printable forms; `codec` reads control messages as hostile bytes; `limits` has the figures; `reporter` and `watch`
tell what happened, `wakeup` sleeps, `stretch` tells when to let others run, `buffer` is a type; `durable` is a small file that a crash leaves whole, for every room above.

Errors: `errors.TransportError` is the root of everything raised here. The bytes on the wire: docs/wire.md.
"""
