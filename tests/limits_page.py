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

This page is written by `python -m tests.limits_page > docs/limits.md`, and a test fails when it differs from the code, or when a bound of the code is neither here nor said to concern nobody.

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
    "transport.bulk.link:MAX_PAYLOAD_BYTES": "One bulk transfer over a connection, written straight into memory that the receiver chose for it.",
    "transport.bulk.shared:MAX_SHARED_BYTES": "The same through memory that two processes of one machine share: 4 such places in each direction of a link, of which only what was used takes memory.",
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
    "transport.bulk.pool:MAX_LINKS": "Bulk connections of one pool, which are used as one.",
    "transport.bulk.transfers:MAX_TRANSFERS": "Transfers that are expected at once over one pool, in each direction.",
    "transport.bulk.transfers:MAX_CONTROL": "Short messages of a pool that wait to be sent; honest use needs a few for each transfer.",
    "transport.bulk.messages:MAX_TAG_BYTES": "Name of a transfer.",
    "transport.bulk.chunks:MAX_CHUNK_BYTES": "Chunk of a large transfer.",
    "transport.bulk.chunks:MAX_REGION_BYTES": "One large transfer; the bookkeeping is one byte for each chunk.",
    "transport.bulk.door:MAX_ANSWERED": "Ports of a peer that are tried when it asks to be dialed.",
    "transport.connect.inbound:MAX_UNNAMED": "Connections from hosts that no punch has named which are answered while somebody punches.",
    "transport.connect.registry:MAX_LOST": "Lost peers remembered for status.",
    "transport.connect.dialed:MAX_HOSTS": "Hosts remembered as dialed; far more than a NAT keeps holes open for.",
    "transport.connect.dialer:MAX_RELAYED": "Relayed addresses among those tried in one attempt.",
    "transport.connect.door:MAX_ANSWER_BYTES": "Answer to a request to join.",
    "transport.secure.intro:MAX_INTRO_BYTES": "Introduction of a node in its handshake.",
    "transport.trust.chain:MAX_CERTIFICATES": "Certificates of a chain: root, two issuers at most, member.",
    "transport.trust.certificate:MAX_CERTIFICATE_BYTES": "One certificate; 245 bytes without extensions.",
    "transport.trust.certificate:MAX_EXTENSIONS": "Extensions of a certificate.",
    "transport.trust.revocation:MAX_KEPT": "Members below a revoked inviter that one revocation keeps.",
    "transport.trust.revocation:MAX_REVOCATION_BYTES": "One revocation with its chain.",
    "transport.streams.frames:MAX_CREDIT_BYTES": "Credit that a stream may grow to; beyond it the connection ends.",
    "transport.streams.mux:MAX_NUMBER": "Streams that a side may open in one priority class of one connection, all its life.",
    "transport.punch.agreement:MAX_ROUNDS": "Rounds of one punch.",
    "transport.punch.agreement:MAX_ATTEMPTS": "Dials of one address in one round of a punch.",
    "transport.punch.agreement:MAX_FAILED_HANDSHAKES": "Connections of a punch to one address that lead to no peer, until it is dialed no more.",
    "transport.punch.messages:MAX_MESSAGE_BYTES": "Message about a punch.",
    "transport.reach.dial_back_rules:MAX_MESSAGE_BYTES": "Message about a dial-back test.",
    "transport.reach.openness:MAX_ADDRESSES": "Addresses of which it is remembered that they were reached from outside.",
    "transport.relay.messages:MAX_BYTES": "Message between a node and its relay.",
    "transport.relay.messages:MAX_RETRY_S": "Longest pause that a relay may ask for (seconds).",
    "transport.relay.budget:MAX_SOURCES": "Networks whose relayed traffic is remembered (about 300 bytes each); the least recently used goes first.",
    "transport.relay.candidates:MAX_CANDIDATES": "Relays remembered; two are used.",
    "transport.nat.gateway_socket:MAX_STRAY": "Useless answers that are read from a gateway in one try.",
    "dht.messages:MAX_HINTS": "Contacts in one answer of the DHT.",
    "dht.messages:MAX_RECORDS": "Records in one answer of the DHT.",
    "dht.record:MAX_VALUE_BYTES": "Value of a record in the DHT (BEP 44).",
    "dht.record:MAX_TTL_S": "Longest life of a record (seconds).",
    "dht.lookup:MAX_PATHS": "Disjoint paths of one search.",
    "dht.lookup:MAX_CANDIDATES": "Nodes that one search keeps in mind.",
    "dht.reading:MAX_SIGNERS": "Signers of records under one key that a reader collects.",
    "dht.saved:MAX_SAVED": "Contacts in the table that is kept for the next start.",
    "dht.tokens:PERIOD_S": "Life of a write token's secret; the one before is still accepted (seconds).",
    "dht.contact:MAX_ADDRESSES": "Addresses of one contact; 20 contacts stay below 12 KiB on the wire.",
    "dht.provider:MAX_PROVIDED_ADDRESSES": "Addresses in a record that says where something is.",
    "dht.bootstrap:MAX_ADDRESSES": "Addresses that a node starts from.",
    "dht.reading:MAX_REMEMBERED": "Newest sequence numbers of records that are remembered between searches.",
    "dht.node:MAX_OPERATIONS": "Searches at once, those in the background included.",
    "dht.node:MAX_QUEUE": "Calls of the DHT that wait for the driver beyond those of searches.",
    "dht.saved:MAX_SAVED_BYTES": "File of the table that is kept for the next start.",
    "dht.saved:MAX_AGE_S": "Age of contacts in that file (seconds); older ones are not tried.",
    "crdt.ledger:MAX_WRITERS": "Writers whose entries are held for a run.",
    "crdt.ledger:MAX_BYTES": "All entries of a run's document together.",
    "crdt.entry:MAX_ENTRY_BYTES": "One signed entry.",
    "crdt.entry:MAX_LEASE_S": "Longest life of an entry that is not renewed (seconds).",
    "crdt.ledger:MAX_FLOORS": "Expired fields whose last number is remembered, so that nothing older comes back.",
    "crdt.ledger:MAX_AHEAD": "Writers with a clock ahead that are remembered for display.",
    "crdt.clock:MAX_SKEW_MS": "How far ahead of a node's clock an entry may be (milliseconds).",
    "crdt.part:MAX_FIELDS": "Fields of one writer in one part of a document.",
    "crdt.document:MAX_PARTS": "Parts of a document.",
    "crdt.delta:MAX_RANGES": "Ranges in a set of versions that a peer states.",
    "crdt.delta:MAX_ENTRIES": "Live entries in one store.",
    "crdt.owned:MAX_ENTRIES": "Entries of a map in which each writer has its own.",
    "crdt.log:CAPACITY": "Lines of the run's log that are kept.",
    "crdt.log:QUOTA": "Of those, of one writer.",
    "crdt.map:MAX_KEY_BYTES": "Key of an entry.",
    "crdt.wire:MAX_SCALAR_BYTES": "Largest single value; shared state describes things, it does not carry them.",
    "crdt.rules:MAX_DEPTH": "Containers inside containers in a field that this release does not know.",
    "crdt.verifier:MAX_WRITERS": "Writers whose rate of signatures to verify is remembered.",
    "crdt.statements:MAX_STATEMENT_BYTES": "One statement, with its chain.",
    "crdt.statements:MAX_BYTES": "All statements together.",
    "crdt.record:MAX_ADDRESSES": "Addresses in a member's entry.",
    "crdt.record:MAX_METRICS": "Figures in a member's entry.",
    "crdt.record:MAX_LINKS": "Measured links in a member's entry.",
    "crdt.record:MAX_CHECKPOINTS": "Checkpoints that one holder names: the newest.",
    "crdt.record:MAX_SETTINGS": "Settings in the entry of a run.",
    "crdt.record:MAX_REVOKED": "Revoked keys in one writer's entry; the list in force is the union of all.",
    "gossip.collective.agreement.messages:MAX_MEMBERS": "Members of one collective.",
    "gossip.collective.agreement.certificate:LANES": "Tags: lines of operations that run at once, 0 to 15.",
    "gossip.collective.calls:MAX_CALLS": "Collectives under way or waiting for their turn at one node, all tags together; more are refused with `InvalidOperation`.",
    "gossip.collective.links.mesh:MAX_LANES": "Lanes of one epoch that have links: those of the tags, and one for measuring.",
    "gossip.collective.links.mesh:MAX_LINKS": "Links of lane 0 to one member each way, over a long path; the other lanes have one.",
    "transport.bulk.striped:AHEAD": "Transfers of at most 1 MiB of each of those links that come before their turn, or are coming.",
    "gossip.collective.agreement.former:PREPARES": "Requests of one member for a new epoch that are answered at once; then one in 15 s.",
    "gossip.collective.agreement.former:MAX_LEAP": "How far one message may raise the number of epochs.",
    "gossip.collective.agreement.former:MAX_EARLY_ACCEPTS": "Signatures kept of epochs whose proposal has not come yet.",
    "gossip.collective.agreement.former:PASS_OVER_MAX_S": "Longest time for which a member is left out that cannot reach all the others (seconds); it begins with 1 s.",
    "gossip.collective.agreement.standing:BENCH_S": "For how long a member that broke the rules is left out the first time (seconds); doubled each time.",
    "gossip.collective.agreement.standing:BENCH_MAX_S": "Longest such time (seconds).",
    "gossip.collective.agreement.lanes:MOVING_S": "An operation of which no value came in for so long is not moving (seconds).",
    "gossip.collective.agreement.lineage:MAX_LINKS": "Last epochs that a member shows to prove where the run stands, signed by all their members.",
    "gossip.collective.agreement.lineage:LINKS_BYTES": "All of them together.",
    "gossip.collective.agreement.lineage:MAX_FAREWELLS": "Members that left an epoch in good order of which the next one is told; more are as good as lost.",
    "gossip.collective.agreement.lineage:MAX_DOUBTS": "Epochs in a row that may end between a vote and its certificate; the oldest is forgotten then.",
    "gossip.collective.agreement.settlement:KEPT_EPOCHS": "Epochs with a result whose certificates are kept, the last of each tag.",
    "gossip.collective.talk:MAX_EARLY": "Messages of a member kept until both directions of its connection are there.",
    "gossip.collective.placing.rhythm:MAX_SERIES": "Members and links whose timing is followed; the least recently seen goes.",
    "gossip.collective.placing.arranging:MAX_PROBED": "Members of an epoch that measure all links between them before they begin.",
    "gossip.collective.state.handover:MAX_VECTORS": "Vectors of a state that is handed over.",
    "gossip.membership.messages:MAX_MESSAGE_BYTES": "Message of the membership.",
    "gossip.membership.messages:MAX_NEWS": "News in one such message; about 200 bytes each.",
    "gossip.membership.service:MAX_IN_FLIGHT": "Such messages to one peer whose call has not ended; more are dropped.",
    "gossip.membership.service:MAX_DIALS": "Dials at once to members that are about to be given up.",
    "gossip.membership.state:MAX_WAITING": "Messages and events of the membership that wait to be taken; the oldest are dropped and counted.",
    "gossip.antientropy:MAX_PAGES": "Pages of a document that can be asked for at once.",
    "gossip.antientropy:MAX_OWED": "Fields that may wait to be sent to a peer; what is beyond is found by a later comparison.",
    "gossip.swarm.service:MAX_GIVEN": "Renewals of certificates remembered, so that who asks again gets the same one.",
    "gossip.blocks.manifest:MAX_MANIFEST_BYTES": "Manifest of an artefact.",
    "gossip.blocks.manifest:MAX_BLOCKS": "Blocks of an artefact (1 MiB each).",
    "gossip.blocks.manifest:MAX_FILES": "Files of an artefact that is a folder.",
    "gossip.blocks.manifest:MAX_PATH_BYTES": "Path of one of them.",
    "gossip.blocks.messages:MAX_WINDOW": "Blocks asked for at once of one peer.",
    "gossip.decentralized.rounds.inbox:MAX_STRANGERS": "Peers that are no members yet of which messages of a protocol are kept.",
    "gossip.decentralized.network.neighbours:MAX_OUT": "Nodes not listened to that are remembered at once.",
    "gossip.decentralized.asynchronous.exchange:MAX_OUT": "Offers to swap models without an answer, each with a copy of the vector.",
    "gossip.decentralized.asynchronous.exchange:MAX_KEPT": "Answers to offers kept until the other side has them; further offers are refused then.",
    "gossip.decentralized.asynchronous.exchange:MAX_PEERS": "Peers whose numbers of exchanges are remembered.",
    "gossip.decentralized.hearsay:MAX_CLAIMS": "Members whose last claim of where the others are is remembered.",
    "gossip.protocols.modest.view:MAX_ENTRIES": "Nodes that MoDeST knows of; those seen longest ago are forgotten.",
    "gossip.protocols.modest.view:MAX_WIRE_ENTRIES": "Of them in one message.",
    "gossip.protocols.push_sum:MAX_IN": "Peers whose running sums push-sum keeps; pushes of further ones wait at their sender.",
    "gossip.protocols.push_sum:MAX_KNOWN": "Peers whose sessions push-sum remembers after their links were closed.",
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
    "node.collective_messages:MAX_REQUESTS": "Collectives of a training process under way at once.",
    "node.collective_messages:MAX_ARENAS": "Pieces of shared memory that it holds.",
    "node.collective_messages:MAX_TENSORS": "Tensors of one declared state.",
    "node.trainer_messages:MAX_MESSAGE_BYTES": "Message between a trainer and its daemon.",
    "node.trainer_messages:MAX_TENSORS": "Tensors of a model.",
    "node.trainer_messages:MAX_SAMPLE_CHARACTERS": "Text that a trainer may show.",
    "node.shared_buffer:MAX_VECTORS": "Vectors of one piece of shared memory.",
    "node.shared_buffer:MAX_NUMEL": "Values of one of them.",
    "node.run.trainer:MAX_CONNECTIONS": "Connections to the trainer's socket; one is served.",
    "node.run.tensor_file:MAX_TENSORS": "Tensors of a file of tensors.",
    "node.run.tensor_file:MAX_HEADER_BYTES": "Header of such a file.",
    "node.run.checkpoint:MAX_MANIFEST_BYTES": "Manifest of a checkpoint.",
    "node.run.manifest:MAX_MANIFEST_BYTES": "Manifest of a run: its task, protocol and their settings.",
    "node.run.state:MAX_SETTINGS": "Settings of a task or protocol that status shows.",
    "node.blocks.service:MAX_ANNOUNCED": "Artefacts that a node announces.",
    "node.blocks.service:MAX_BLAMED": "Nodes whose bad blocks are remembered.",
    "node.blocks.jobs:MAX_JOBS": "Artefacts fetched or shared on request at once.",
    "node.blocks.routes:MAX_WAIT_S": "How long one request may wait for a fetch (seconds).",
    "node.blocks.tasks:MAX_TASK_BYTES": "Code of a task from the swarm.",
    "node.blocks.approvals:MAX_APPROVED": "Tasks whose code was approved here.",
    "node.config:MAX_CONFIG_BYTES": "Configuration file.",
    "node.keys:MAX_SECRET_BYTES": "File of a key, or of another secret.",
    "node.joining.ledger:MAX_INVITES": "Invites that are good at the same time.",
    "node.joining.ledger:MAX_USES": "Uses of one invite.",
    "node.joining.issuer:MAX_LIFE_MS": "Longest life of an invite (milliseconds).",
    "node.joining.code:MAX_TEXT": "Characters of an invite code that are looked at.",
    "node.joining.code:MAX_ADDRESSES": "Addresses in an invite code.",
    "node.joining.answer:MAX_ANSWER_BYTES": "Answer to who joins.",
    "node.joining.forwarder:MAX_UNDER_WAY": "Requests to join that a member passes on at once.",
    "node.joining.source_budget:MAX_SOURCES": "Sources of requests to join that are remembered.",
    "node.joining.beacon:MAX_NODES": "Nodes heard of on the local network.",
    "node.trust.log:MAX_LOG_BYTES": "File of statements; beyond it, it is written anew with what counts.",
    "node.data.files:MAX_FILE_BYTES": "File of a data set, and what a compressed one expands to.",
    "node.data.files:MAX_NAMES": "Files looked at in a folder or an archive.",
    "node.data.files:MAX_ARCHIVE_BYTES": "What a compressed archive expands to while it is looked through.",
    "node.training.corpus:MAX_CORPUS_BYTES": "Text read from a folder; further files are left out and counted.",
    "node.training.corpus:MAX_FILE_BYTES": "Larger files of it are skipped.",
    "node.training.corpus:MAX_FILES": "Files of it that are looked at.",
    "node.simulation.scenario:MAX_FILE_BYTES": "File of a scenario.",
    "node.simulation.churn:MAX_TRACE_BYTES": "File of a trace of who comes and goes.",
    "node.simulation.records:MAX_FILE_BYTES": "File of records that is plotted.",
    "node.local.fleet:MAX_RESTARTS_PER_MINUTE": "Restarts of one node of `noded local` in a minute.",
}

ELSEWHERE = {
    "the end of a number's range on the wire": """
        crdt.clock:MAX_COUNTER crdt.clock:MAX_PHYSICAL_MS crdt.wire:MAX_INT dht.record:MAX_SEQUENCE gossip.collective.state.declaration:MAX_REVISION
        gossip.collective.agreement.former:MAX_ATTEMPT gossip.decentralized.rounds.messages:MAX_DEGREE gossip.decentralized.rounds.messages:MAX_STAMP
        gossip.membership.messages:MAX_INCARNATION gossip.protocols.modest.view:MAX_COUNTER gossip.protocols.modest.view:MAX_ROUND
        transport.trust.certificate:MAX_TIME_MS""",
    "the length of a field in a message, entry or file that has a bound of its own": """
        crdt.counter:MAX_WRITERS crdt.log:MAX_LINE_BYTES crdt.record:MAX_ADDRESS_CHARS crdt.record:MAX_NAME_CHARS crdt.record:MAX_REASON_CHARS
        crdt.record:MAX_SETTING_CHARS crdt.register:MAX_FIELDS crdt.wire:MAX_WRITER_BYTES dht.contact:MAX_ADDRESS_CHARS dht.provider:MAX_NAME_BYTES
        gossip.blocks.manifest:MAX_PATH_PARTS gossip.membership.messages:MAX_HOPS gossip.membership.messages:MAX_NAME_CHARS
        gossip.membership.messages:MAX_REASON_CHARS node.daemon:MAX_NAME_CHARACTERS node.initialise:MAX_SWARM_NAME node.joining.answer:MAX_ADDRESSES
        node.joining.code:MAX_HOST_BYTES node.joining.facts:MAX_BOOTSTRAP node.run.presence:MAX_ADDRESSES node.run.tensor_file:MAX_RANK
        transport.bulk.shared:MAX_PATH_BYTES transport.nat.pcp:MAX_BYTES transport.peer:MAX_REASON_BYTES transport.reach.dial_back_rules:MAX_REASON_CHARS
        transport.relay.candidates:MAX_ADDRESSES transport.secure.intro:MAX_LABEL_BYTES transport.secure.intro:MAX_NAME_CHARS
        transport.secure.noise:MAX_MESSAGE_BYTES transport.streams.frames:MAX_GOAWAY_TEXT_BYTES transport.streams.frames:MAX_PROTOCOL_CHARS
        transport.trust.revocation:MAX_REASON_BYTES transport.trust.statement:MAX_STATEMENT_BYTES""",
    "how often or how long a node does something by itself, whatever others do": """
        gossip.decentralized.rounds.base:MAX_JUMPS gossip.decentralized.rounds.base:MAX_RESENDS gossip.decentralized.topology:MAX_ATTEMPTS
        gossip.membership.relay:MAX_BACK gossip.membership.swim:MAX_OFFERED gossip.protocols.modest.stall:MAX_DOUBLINGS
        gossip.protocols.token_walk.silence:MAX_PRECEDING node.punch_trial:MAX_PARTNERS node.run.finder:MAX_CANDIDATES
        transport.budget.rates:MAX_QUANTUM_BYTES transport.bulk.parallel:MAX_HOLD_S transport.nat.natpmp:MAX_TRIES
        transport.punch.agreement:MAX_GAP_S transport.punch.agreement:MAX_REVERSE_S transport.reach.advertising:MAX_RELAYED
        transport.reach.observed:MAX_EXTERNAL transport.reach.openness:MAX_NETWORKS transport.reach.outside:MAX_ASKED
        transport.reach.reach:MAX_ASKED_TO_COME transport.reach.reach:MAX_MAPPED_PORTS""",
    "what is shown to people, or kept to be shown": """
        gossip.collective.group:MAX_NOTES gossip.collective.placing.rhythm:MAX_OPERATIONS node.cli.render:MAX_TEXT_CHARS node.health:MAX_SLOW
        node.local.summary:MAX_METRICS_BYTES node.local.summary:MAX_SAMPLE_CHARS node.local.watch:MAX_THREADS
        node.run.trainer:MAX_RECENT_RESTARTS node.trust.report:MAX_SHOWN transport.punch.report:MAX_NOTED""",
    "what a node reads of its own files, socket paths and commands": """
        node.blocks.approvals:MAX_BYTES node.cli.client:MAX_ANSWER_BYTES node.cli.joining:MAX_CODE_CHARACTERS node.cli.trust:MAX_LINE
        node.data.femnist:MAX_FILES node.data.files:MAX_HEADER_BYTES node.joining.enter:MAX_CONFIG_BYTES node.joining.facts:MAX_FILE_BYTES
        node.joining.lan:MAX_NETWORKS node.joining.ledger:MAX_FILE_BYTES node.paths:MAX_SOCKET_PATH_BYTES node.relay_budget:MAX_FILE_BYTES
        node.training.collective_link:MAX_IDLE node.trust.log:MAX_DAMAGED_BYTES""",
    "where a simulation or a trial of a protocol is stopped as a loop": """
        gossip.decentralized.kit.conformance:MAX_KINDS gossip.decentralized.kit.conformance:MAX_STATUS_BYTES
        gossip.decentralized.kit.rehearsal:MAX_CALLS_AT_ONE_INSTANT gossip.decentralized.kit.rehearsal:MAX_EVENTS_PER_CALL
        node.simulation.heap:MAX_AT_ONCE node.simulation.world:MAX_IDLE_TICKS""",
}
"""Bounds that the page leaves out, by the reason why neither a peer nor a user meets them there."""


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
            f"| `{module}.{name}` | {value:.10g} | {why} |"
            if isinstance(value, float)
            else f"| `{module}.{name}` | {value} | {why} |"
        )
    return rows


def page() -> str:
    return HEAD + "\n".join(settings()) + "\n" + FIXED_HEAD + "\n".join(fixed()) + "\n"


if __name__ == "__main__":
    print(page(), end="")
