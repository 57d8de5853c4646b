"""Writes docs/limits.md from the code: `python -m tests.limits_page > docs/limits.md`.

The keys, defaults and reasons of `[limits]` are read from the struct itself. The fixed limits are the constants named here, so that
a renamed one fails the test, and their values come from the modules.
"""

import importlib

from node.knobs import knobs

HEAD = """\
# Limits

Whatever a remote party can make a node hold, wait for or compute has a number. The first table holds the sections `[limits]` and
`[relay]` of the configuration: every key can be set in the file, by `NODED_LIMITS_...` or `NODED_RELAY_...` in the environment or by `--set`;
`noded config explain` prints the same. The second table is fixed: both sides of a connection rely on most of these figures, so they change with a release only.

This page is written by `python -m tests.limits_page > docs/limits.md`, and a test fails when it differs from the code.

## Settings

| key | default | what it bounds, and why it is that much |
|---|---|---|
"""

FIXED_HEAD = """
## Fixed

| limit | value | why |
|---|---|---|
"""

FIXED = {
    "transport.secure.handshake:MAX_HANDSHAKE_BYTES": "Bytes that a handshake reads from the other side, whatever they are; a full introduction and the longest chain of certificates fit.",
    "transport.trust.chain:MAX_CHAIN_BYTES": "A chain of certificates, as a handshake shows it.",
    "transport.trust.trust:MAX_VERIFIED": "Certificates whose signature was good and is not verified again.",
    "transport.trust.trust:MAX_REVOKED": "Revocations remembered for good.",
    "transport.trust.trust:MAX_REVOKED_SHARE": "Of those, what one member directly below the root may say; and as many again all below it.",
    "transport.trust.trust:MAX_KEYS": "Refused keys remembered for status.",
    "transport.connect.door:MAX_AT_THE_DOOR": "Requests to join that are answered at once, all sources.",
    "transport.connect.door:MAX_OF_ONE_SOURCE": "The same of one IPv4 address or IPv6 /56.",
    "transport.connect.door:DOOR_RATE": "Handshakes of those who want to join, per second, all sources; no signature is verified for them.",
    "transport.connect.door:DOOR_BURST": "The same at once.",
    "transport.connect.door:MAX_REQUEST_BYTES": "A request to join.",
    "transport.connect.registry:STRANGERS_SHARE": "In an open swarm: of peers, memory and descriptors, strangers have one part in so many.",
    "crdt.statements:MAX_STATEMENTS": "Statements (certificates and revocations) that are held of the swarm.",
    "crdt.statements:MAX_PER_AUTHOR": "Of those, what one member and all it has invited may take.",
    "transport.budget.admission:PROBATION": "Handshakes under way from a members' source that has used up its tokens: its own oldest give way.",
    "transport.budget.admission:MEMBER_MEMORY_S": "How long a source is treated as a members' source after a member came from it (seconds).",
    "transport.connect.inbound:MAX_EARLY": "Bulk connections that have come before their peer and wait for it, one of each node.",
    "transport.secure.first_flights:MAX_SEEN": "First flights of handshakes that are known again when somebody repeats them.",
    "transport.limits:HANDSHAKE_BYTES": "Memory reserved for one handshake; four times what was measured.",
    "transport.limits:MIN_RATE_BYTES_PER_S": "Least rate cap: below it, heartbeats and control messages would not get through in time.",
    "transport.tcp:BACKLOG": "Connections that the kernel completes before we look at them.",
    "transport.secure.record:MAX_RECORD_BYTES": "Plaintext of one sealed record; a larger announcement ends the connection before anything is allocated for it.",
    "transport.streams.frames:MAX_FRAME_PAYLOAD_BYTES": "Payload of one frame.",
    "transport.streams.frames:WINDOW_BYTES": "Bytes that a new stream may have under way and unread.",
    "transport.streams.frames:WIDEST_BYTES": "The same for an urgent and for a normal stream whose reader keeps up; the budget of its class bounds all together.",
    "transport.streams.frames:WIDEST_CLASS_BYTES": "Bytes that all streams of a class may have under way and unread, once their readers have kept up.",
    "transport.streams.mux:MAX_CONTROL_FRAMES": "Answers (resets, credits) that a peer may make us owe it; more end the connection.",
    "transport.streams.mux:MAX_PINGS": "Unanswered pings in each direction; older ones are forgotten.",
    "transport.codec:MAX_MESSAGE_BYTES": "One control message; 64 KiB of the worst msgpack needs about 5 MiB while it is decoded.",
    "transport.codec:MAX_CONTAINER_ITEMS": "Items of one array or map in a message.",
    "transport.codec:MAX_DEPTH": "Containers inside containers in a message.",
    "transport.bulk.link:MAX_PAYLOAD_BYTES": "One bulk transfer, written straight into memory that the receiver chose for it.",
    "transport.bulk.link:MAX_HEADER_BYTES": "Header of a bulk transfer.",
    "transport.bulk.rendezvous:MAX_WAITING_PER_PEER": "Bulk connections of one peer that nobody has asked for yet, and tasks that wait for one.",
    "transport.bulk.rendezvous:ARRIVAL_WAIT_S": "How long such a connection is kept (seconds).",
    "transport.connect.dialer:MAX_CANDIDATES": "Addresses tried in one attempt to reach a node.",
    "transport.connect.dialer:CONNECT_TIMEOUT_S": "Longest wait for one of them to answer (seconds).",
    "transport.secure.intro:MAX_LISTEN": "Addresses that a node may say it listens on.",
    "transport.reporter:LOG_INTERVAL_S": "Least time between two log lines about the same kind of event (seconds); all are counted.",
    "transport.reporter:MAX_KINDS": "Kinds of events that are counted.",
    "transport.connect.migration:MAX_PENDING": "Connections with one peer that wait to take over from a relayed one.",
    "transport.punch.messages:MAX_ADDRESSES": "Addresses that are dialed in a punch.",
    "transport.punch.targets:MAX_PUBLIC_HOSTS": "Public hosts among them, in all rounds of a punch: one of each family.",
    "transport.punch.targets:MAX_PUBLIC_PLACES": "Ports on those hosts, likewise.",
    "transport.punch.puncher:FOLLOW_ALL_BURST": "Punches that peers may begin in a burst, all peers together; one a second in the long run.",
    "transport.punch.puncher:MAX_FOLLOWED": "Punches that peers coordinate at a time.",
    "transport.relay.client:MAX_INCOMING": "Circuits that relays may open to us at once.",
    "dht.messages:MAX_HINTS": "Contacts in one answer of the DHT.",
    "dht.messages:MAX_RECORDS": "Records in one answer of the DHT.",
    "dht.record:MAX_VALUE_BYTES": "Value of a record in the DHT (BEP 44).",
    "dht.record:MAX_TTL_S": "Longest life of a record (seconds).",
    "dht.lookup:MAX_PATHS": "Disjoint paths of one search.",
    "dht.lookup:MAX_CANDIDATES": "Nodes that one search keeps in mind.",
    "dht.reading:MAX_SIGNERS": "Signers of records under one key that a reader collects.",
    "dht.saved:MAX_SAVED": "Contacts in the table that is kept for the next start.",
    "dht.tokens:PERIOD_S": "Life of a write token's secret; the one before is still accepted (seconds).",
    "crdt.ledger:MAX_WRITERS": "Writers whose entries are held for a run.",
    "crdt.ledger:MAX_BYTES": "All entries of a run's document together.",
    "crdt.entry:MAX_ENTRY_BYTES": "One signed entry.",
    "crdt.entry:MAX_LEASE_S": "Longest life of an entry that is not renewed (seconds).",
    "gossip.collective.messages:MAX_MEMBERS": "Members of one collective.",
    "gossip.decentralized.protocol:MAX_MESSAGE_BYTES": "Message of a decentralized protocol, beside its vectors.",
    "gossip.decentralized.protocol:MAX_VECTORS": "Vectors of one such message, each at most as long as the model.",
    "gossip.decentralized.network.room:LEAST_PER_NODE_BYTES": "Of one node's messages that wait for the protocol, or four models (float32) if that is more, or one message.",
    "gossip.decentralized.network.room:LEAST_BYTES": "Of all nodes' messages together, or eight models.",
    "gossip.decentralized.network.delivery:QUEUE_MESSAGES": "Messages that wait to be sent to one neighbour, of those with and of those without vectors.",
    "gossip.decentralized.network.delivery:SLOWEST_BYTES_PER_S": "A message that comes or goes slower on the whole is given up, after 30 s.",
    "gossip.decentralized.network.neighbours:OUT_S": "For how long a node is not listened to that sent what is no message (seconds).",
    "node.control:MAX_CONNECTIONS": "Connections to the local control socket.",
    "node.control:MAX_HEADER_BYTES": "Head of one request on the control socket.",
    "node.control:MAX_BODY_BYTES": "Body of one request on the control socket.",
    "node.control:REQUEST_TIMEOUT_S": "Time for a request on the control socket to arrive (seconds).",
}


def settings() -> list[str]:
    return [
        f"| `{knob.key}` | {knob.default} | {' '.join(knob.text.split())} |"
        for knob in knobs()
        if knob.key.startswith(("limits.", "relay."))
    ]


def fixed() -> list[str]:
    rows = []
    for where, why in FIXED.items():
        module, name = where.split(":")
        value = getattr(importlib.import_module(module), name)
        rows.append(
            f"| `{module}.{name}` | {value:g} | {why} |"
            if isinstance(value, float)
            else f"| `{module}.{name}` | {value} | {why} |"
        )
    return rows


def page() -> str:
    return HEAD + "\n".join(settings()) + "\n" + FIXED_HEAD + "\n".join(fixed()) + "\n"


if __name__ == "__main__":
    print(page(), end="")
