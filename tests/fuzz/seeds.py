"""The seed corpus: genuine inputs of every target, written by `python -m tests.fuzz.seeds`."""

import io
import random
import tarfile
import zipfile

import msgpack
import msgspec
import numpy as np

from crdt.record import MemberInfo, Progress
from crdt.state import RunState
from dht.messages import (
    Answer,
    FindNode,
    FindRecords,
    Hint,
    Nodes,
    Ping,
    Pong,
    Query,
    Records,
    Refused,
    Store,
)
from gossip.blocks import messages as block_messages
from gossip.blocks.manifest import FileEntry, Manifest
from gossip.collective.agreement.messages import Abort, Begin
from gossip.collective.agreement.messages import encode as encode_gossip
from gossip.decentralized.network import wire as decentralized_wire
from gossip.membership import messages as membership
from node.joining.answer import hearsay, refuse
from node.joining.beacon import Beacon
from node.joining.ledger import Invite, Use, encode_invite
from node.joining.reasons import Reason
from node.joining.request import parse_request
from node.run.manifest import RunManifest
from tests.fuzz import CORPUS
from tests.fuzz.targets.dht_and_crdt import RECORD, run_state
from tests.fuzz.targets.gossip import ARTEFACT
from tests.fuzz.targets.joining import INVITE, JOIN_ANSWER, JOIN_REQUEST
from tests.fuzz.targets.kit import ALICE, BOB, KEY, NOW
from tests.fuzz.targets.secure import CHAIN, FIRST, RECORDS, REVOCATION, SECOND, THIRD
from tests.fuzz.targets.transport import NONCE
from tests.trusted import SWARM
from transport.address import Address
from transport.bulk import messages as bulk_messages
from transport.codec import pack
from transport.identity import NodeId
from transport.punch import messages as punch
from transport.relay import messages as relay
from transport.secure.intro import Intro, encode_intro
from transport.streams import frames
from transport.streams.frames import Priority
from transport.trust.statement import encode_statement

TRAINER = (
    (
        "attach",
        {
            "version": 1,
            "run": "demo",
            "pid": 7,
            "numel": 100,
            "model": KEY,
            "every": 16,
            "supervised": True,
        },
    ),
    ("ready", {"round": 1, "step": 16, "state_sha256": KEY}),
    ("report", {"step": 16, "loss": 1.5, "tokens": 1000, "tokens_per_s": 50.0}),
    ("contribute", {"round": 1, "steps": 16, "weight": 1.0, "loss": None, "state_sha256": KEY}),
    (
        "saved",
        {"file": "/x", "round": 1, "step": 16, "size": 3, "sha256": KEY, "state_sha256": KEY},
    ),
    ("layout", {"tensors": [["0.weight", 0, [3, 4]], ["scale", 16, []]]}),
    (
        "leg_done",
        {"number": 1, "steps": 4, "samples": 8.0, "loss": 1.0, "step": 4, "finite": True},
    ),
    ("attach", {"version": "x"}),
    ("unknown", {}),
)


def spoken() -> RunState:
    state = run_state(b"you")
    state.set_member(MemberInfo("you", ("192.0.2.1:7447",)))
    state.set_progress(Progress(4, 40, 1.5, 4000, 50.0, KEY))
    return state


def joining() -> dict[str, list[bytes]]:
    edits = [b"\xff\0\1\0\1", b"\xff\0\x20\x50xyz", b"\xff\0\1\x90xxxx", b"\xff\0\x30\xff"]
    request = parse_request(JOIN_REQUEST)
    alice = Beacon(ALICE, SWARM, random.Random(1), 0.0)
    invite = Invite(id=INVITE.id, key=INVITE.key, uses=2, created_ms=1, expires_ms=int(NOW) * 1000)
    used = invite.with_use(Use(BOB.public_key, b"chain", 2))
    return {
        "invite-code": [
            b"\0" + INVITE.text.encode(),
            b"\0" + INVITE.text.upper().replace("-", " \n").encode(),
            b"\0" + str(ALICE.node_id).encode(),
            b"\0ni-" + b"a" * 140,
            *edits,
        ],
        "join-request": [b"\0" + JOIN_REQUEST, b"\0" + JOIN_REQUEST[:-1], *edits],
        "join-reply": [
            b"\0" + JOIN_ANSWER,
            b"\0" + refuse(request, Reason.EXPIRED, ALICE),
            b"\0" + refuse(request, Reason.EXPIRED, BOB),
            b"\0" + hearsay(Reason.BUSY),
            b"\0\1\3\xee",
            *edits,
        ],
        "beacon": [b"\0" + alice.make(7447, int(NOW * 1000)), *edits],
        "invite-ledger": [
            encode_invite(invite),
            encode_invite(used),
            encode_invite(msgspec.structs.replace(used, used=used.used * 2)),
            encode_invite(used)[:-3],
        ],
    }


def seeds() -> dict[str, list[bytes]]:
    stream = frames.stream_id(1, Priority.NORMAL, opened_by_responder=False)
    ours = frames.stream_id(1, Priority.NORMAL, opened_by_responder=True)
    some_frames = [
        frames.encode(frames.Open(stream, "echo")),
        frames.encode(frames.Data(stream, b"hello", fin=False)),
        frames.encode(frames.Credit(ours, 70000)),
        frames.encode(frames.ClassCredit(Priority.NORMAL, 300000)),
        frames.encode(frames.Ping(7)),
        frames.encode(frames.Pong(7)),
        frames.encode(frames.Reset(stream, 1)),
        frames.encode(frames.GoAway(0, "bye")),
    ]
    state = spoken()
    node = NodeId(KEY)
    return {
        "handshake": [b"\0" + SECOND, b"\1" + FIRST, b"\2" + FIRST[:28], b"\1" + FIRST + THIRD]
        + [
            bytes([mode]) + edit
            for mode in (0x60, 0x61, 0x62)
            for edit in (b"\0\x08\0\1", b"\0\x20\x50x", b"\0\1\x90xx", b"\0\x30\xff")
        ],
        "intro": [
            encode_intro(Intro()),
            encode_intro(Intro(aegis=True)),
            encode_intro(Intro("bulk", "n", (Address("192.0.2.1", 7447),), b"label")),
        ],
        "record": [
            b"\0" + RECORDS,
            b"\xff\0\1\0\1",
            b"\xff\0\x20\x50xyz",
            b"\xff\0\1\x90xxxx",
            b"\0\xff\xff\xff\xff\0",
        ],
        "long-record": [
            b"\0\5\0\1",  # the first byte of the first
            b"\x40\5\0\x80",  # its tag
            b"\0\2\0\x40",  # its length: a short one
            b"\0\3\0\1",
            b"\x40\x15\x50" + bytes(26),  # before the second
            b"\x40\x15\x80" + bytes(26),  # without it
            b"\x60\0\xff",
        ],
        "frame": [*some_frames, b"".join(some_frames)],
        "mux": [
            b"\xff" + b"".join(some_frames[:6]),
            b"\xff" + b"".join(some_frames),
            *(b"\xff" + some_frames[0] + f for f in some_frames),
        ],
        "codec": [
            msgpack.packb(v)
            for v in (
                {"a": [1, -1, 1.5, None, True, "x", b"y"]},
                [[]] * 1000,
                {"a": {"b": {}}},
                "é",
                2**63,
            )
        ]
        + [
            b"\x91" * 40,
            b"\xdd\xff\xff\xff\xff",
            b"\xdb\xff\xff\xff\xff",
            b"\xc7\x01\x01\x00",
            b"\x82\xa1a\x01\xa1a\x02",
        ],
        "dht-message": [
            pack(Query(server=True, body=body))
            for body in (Ping(), FindNode(KEY), FindRecords(KEY), Store(RECORD))
        ]
        + [
            pack(Answer(server=False, body=body))
            for body in (
                Pong(),
                Refused("no"),
                Nodes([Hint(KEY, ["192.0.2.1:7447"])]),
                Records([], [RECORD]),
            )
        ],
        "dht-record": [b"\0" + pack(RECORD), b"\xff\0\x10\0\1", b"\xff\0\x10\x90x"],
        "gossip-message": [
            encode_gossip(Begin(KEY, 3, KEY)),
            encode_gossip(Abort(KEY, 3, "late", late=(node,))),
        ],
        "membership-message": [
            membership.encode(membership.Message(body=body, news=news))
            for body, news in (
                (membership.Gossip(), []),
                (membership.Probe(node, node, bytes(8), 3), []),
                (membership.Ack(node, node, bytes(8), bytes(64)), []),
                (membership.Nack(node, node, bytes(8), tried=True), []),
                (
                    membership.Sync(KEY, answer=True),
                    [
                        membership.Alive(ALICE.public_key, 7, "a name", bytes(64)),
                        membership.Left(ALICE.public_key, 8, "done", bytes(64)),
                        membership.Doubt(node, 9, node, lost=True, signature=bytes(64)),
                    ],
                ),
            )
        ],
        "punch-message": [
            punch.encode(m)
            for m in (
                punch.Connect(bytes(16), ("192.0.2.1:7447",)),
                punch.Sync(bytes(16)),
                punch.End("busy"),
            )
        ],
        "relay-message": [
            pack(m)
            for m in (
                relay.Reserve(release=False),
                relay.Granted(
                    expires_s=3600.0, bytes_per_s=1e6, circuit_bytes=1 << 30, circuit_s=60.0
                ),
                relay.Released(),
                relay.Refused("full", 3.0),
                relay.Ended("evicted"),
                relay.Connect(node),
                relay.Incoming(node),
                relay.Accepted(),
            )
        ],
        "bulk-message": [
            b"\0" + bulk_messages.encode(m)
            for m in (
                bulk_messages.Hello(),
                bulk_messages.Want(1, 1 << 20, 1 << 18, b"tag"),
                bulk_messages.Ack(3),
                bulk_messages.Stop(1),
                bulk_messages.Bye(),
            )
        ]
        + [b"\x05" + bulk_messages.encode(bulk_messages.ChunkHead(1, 0, 1 << 20))],
        "port-mapping": [
            bytes((2, 129, 0, 0))
            + bytes(4)
            + bytes(4)
            + bytes(12)
            + NONCE
            + b"\6\0\0\0"
            + (7447).to_bytes(2, "big") * 2
            + bytes(10)
            + b"\xff\xff\xc0\0\2\1",
            bytes((2, 129, 0, 8)) + bytes(20),
            bytes((0, 130, 0, 0)) + bytes(4) + (7447).to_bytes(2, "big") * 2 + bytes(4),
            bytes((0, 128, 0, 0)) + bytes(4) + b"\xc0\0\2\1",
        ],
        "decentralized-message": [
            b"\x40" + b"".join(decentralized_wire.parts(message, vectors))
            for message, vectors in (
                (b"\x80", ()),
                (b"\x80", (np.ones(64, np.float32),)),
                (b"\x81\xa0", (np.ones(3, np.float32), np.full(2, 0.5))),
                (b"", (np.full(1, np.nan, np.float32),)),
            )
        ],
        "trainer-message": [msgpack.packb({"type": tag, **fields}) for tag, fields in TRAINER],
        "certificate": [
            b"\0" + CHAIN.raw,
            b"\0" + CHAIN.leaf.raw,
            b"\xff\0\x03\0\x01",
            b"\xff\x01\0\x90\xff" * 2,
            b"\0" + CHAIN.raw[:100],
        ],
        "statement": [
            b"\0" + encode_statement(CHAIN),
            b"\0" + encode_statement(REVOCATION),
            b"\xfe\0\x20\0\x01",
            b"\xff\x01\x10\xc0",
            b"\0\x03",
        ],
        "address": [
            t.encode()
            for t in (
                "192.0.2.1:7447",
                "[2001:db8::1]:7447",
                "node.example:1",
                "[fe80::1%eth0]:7447",
                f"192.0.2.1:7447/via/{node}",
                ":1",
                "x" * 300 + ":1",
            )
        ],
        "identifier": [
            str(node).encode(),
            b"ns-abc",
            KEY,
            str(node).lower().replace("-", " ").encode(),
        ],
        "crdt": [
            pack(v)
            for v in (
                state.to_wire(),
                state.context(),
                state.want([state.node, KEY]),
            )
        ],
        "config": [
            b"",
            b"[limits]\nmax_peers = 3\n",
            b'[node]\nname = "x"\n[network]\nlisten = ["127.0.0.1:7447"]\n',
            b"[limits]\nmax_pears = 3",
            b"[a",
            b"x = 1e999",
        ],
        "artefact-manifest": [
            b"\0" + ARTEFACT.raw,
            b"\0" + ARTEFACT.raw + bytes(96),
            b"\x90" + bytes((0, 40, 0)) + b"\1",
            b"\xa0" + bytes((0, 120, 0x20)) + b"../",
            b"\0" + Manifest.describe("task", [FileEntry("own.py", 5)], [KEY], entry="own:Own").raw,
        ],
        "block-message": [
            pack(message)
            for message in (
                block_messages.GetManifest(KEY),
                block_messages.GetPage(KEY, 3),
                block_messages.Have(KEY),
                block_messages.Open(KEY, KEY[:16]),
                block_messages.Data(b"\xff\xf0"),
                block_messages.Opened(16),
                block_messages.Refused(block_messages.Refusal.BUSY),
            )
        ]
        + [block_messages.block_tag(5, 7), b"\xff\xe0"],
        "approvals": [
            b'{"schema":"noded.approved-tasks/1","approved":{"'
            + b"ab" * 32
            + b'":{"entry":"own:Own","files":["own.py"],"at":5}}}',
            b'{"schema":"noded.approved-tasks/1","approved":{}}',
        ],
        "manifest": [
            b"{}",
            b"[]",
            b"\xff",
            RunManifest(
                name="demo",
                task="byte-gpt",
                task_settings={"width": 64, "tags": ["a", 1]},
                every=32,
                seed=7,
            ).canonical(),
        ],
        "control": [
            b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n",
            b"POST /v1/stop HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}",
            b"POST /v1/stop HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\nOrigin: http://evil\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00",
            b"POST /v1/stop HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\nExpect: 100-continue\r\n\r\n",
        ],
        "data-set": data_sets(),
        **joining(),
    }


def data_sets() -> list[bytes]:
    """Tiny files in their formats, behind the letter that says which."""
    record = bytes([3]) + bytes(range(256)) * 12
    image = ",".join(["0.5"] * 784)
    tar, archive = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:gz") as out:
        for name in ("data_batch_1.bin", "test_batch.bin"):
            info = tarfile.TarInfo(f"cifar/{name}")
            info.size = len(record)
            out.addfile(info, io.BytesIO(record))
    lines = b"".join(b"%d\t%d\t%d\t881250949\n" % (user, user % 7, user % 5) for user in range(40))
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("ml/u.data", lines)
    return [
        b"\0\0\x08\x03" + (2).to_bytes(4) + (2).to_bytes(4) + (3).to_bytes(4) + bytes(12),
        b"\0\0\x08\x01" + (5).to_bytes(4) + bytes(5),
        b"d" + b"\n".join(b",".join([b"7.0"] * 64 + [b"%d" % (at % 10)]) for at in range(100)),
        b"c" + record * 2,
        b"t" + tar.getvalue(),
        b"z" + archive.getvalue(),
        b"u" + lines,
        b"ruserId,movieId,rating,timestamp\r\n1,2,3.5,4\r\n" + b"3,4,0.5,6\r\n" * 3,
        f'f{{"users":["a"],"num_samples":[1],"user_data":{{"a":{{"x":[[{image}]],"y":[61]}}}}}}'.encode(),
    ]


def write() -> None:
    for name, inputs in seeds().items():
        folder = CORPUS / name
        folder.mkdir(parents=True, exist_ok=True)
        for number, data in enumerate(inputs):
            (folder / f"seed-{number:02d}").write_bytes(data)


if __name__ == "__main__":
    write()
