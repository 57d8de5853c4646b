"""The wire: golden bytes, limits, and hostile input."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.contact import MAX_ADDRESS_CHARS
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
    Stored,
    fits,
    from_hints,
)
from dht.record import SignedRecord
from transport.codec import MAX_MESSAGE_BYTES, decode_untrusted, pack
from transport.errors import MalformedMessage
from transport.identity import NodeId

RECORD = SignedRecord(
    key=b"k" * 32,
    value=b"v",
    public_key=b"p" * 32,
    sequence=2**62,
    expires_at=1_800_000_000,
    signature=b"s" * 64,
)
QUERIES = [
    Query(server=True, body=Ping()),
    Query(server=False, body=FindNode(b"t" * 32)),
    Query(server=True, body=FindRecords(b"k" * 32)),
    Query(server=True, body=Store(RECORD, b"t" * 16)),
]
HINT = Hint(b"n" * 32, ("10.0.0.1:7447",))
ANSWERS = [
    Answer(server=True, body=Pong()),
    Answer(server=True, body=Nodes([HINT])),
    Answer(server=True, body=Records([HINT], [RECORD])),
    Answer(server=True, body=Stored()),
    Answer(server=False, body=Refused("full")),
]
GOLDEN = {
    "Ping": ("83a776657273696f6e01a6736572766572c3a4626f647981a474797065a470696e67"),
    "FindNode": (
        "83a776657273696f6e01a6736572766572c2a4626f647982a474797065a966696e645f6e6f6465a674617267"
        "6574c4207474747474747474747474747474747474747474747474747474747474747474"
    ),
    "FindRecords": (
        "83a776657273696f6e01a6736572766572c3a4626f647982a474797065ac66696e645f7265636f726473a36b"
        "6579c4206b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b"
    ),
    "Store": (
        "83a776657273696f6e01a6736572766572c3a4626f647983a474797065a573746f7265a67265636f726486a3"
        "6b6579c4206b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6ba576616c7565c4"
        "0176aa7075626c69635f6b6579c4207070707070707070707070707070707070707070707070707070707070"
        "707070a873657175656e6365cf4000000000000000aa657870697265735f6174ce6b49d200a97369676e6174"
        "757265c440737373737373737373737373737373737373737373737373737373737373737373737373737373"
        "73737373737373737373737373737373737373737373737373a5746f6b656ec4107474747474747474747474"
        "7474747474"
    ),
    "Pong": ("83a776657273696f6e01a6736572766572c3a4626f647981a474797065a4706f6e67"),
    "Nodes": (
        "83a776657273696f6e01a6736572766572c3a4626f647982a474797065a56e6f646573a8636f6e7461637473"
        "9182a76e6f64655f6964c4206e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e"
        "a961646472657373657391ad31302e302e302e313a37343437"
    ),
    "Records": (
        "83a776657273696f6e01a6736572766572c3a4626f647984a474797065a77265636f726473a8636f6e746163"
        "74739182a76e6f64655f6964c4206e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e"
        "6e6ea961646472657373657391ad31302e302e302e313a37343437a77265636f7264739186a36b6579c4206b"
        "6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6ba576616c7565c40176aa707562"
        "6c69635f6b6579c4207070707070707070707070707070707070707070707070707070707070707070a87365"
        "7175656e6365cf4000000000000000aa657870697265735f6174ce6b49d200a97369676e6174757265c44073"
        "7373737373737373737373737373737373737373737373737373737373737373737373737373737373737373"
        "73737373737373737373737373737373737373a5746f6b656ec400"
    ),
    "Stored": ("83a776657273696f6e01a6736572766572c3a4626f647981a474797065a673746f726564"),
    "Refused": (
        "83a776657273696f6e01a6736572766572c2a4626f647982a474797065a772656675736564a6726561736f6e"
        "a466756c6c"
    ),
}


@pytest.mark.parametrize("message", QUERIES + ANSWERS, ids=lambda m: type(m.body).__name__)
def test_round_trip_and_golden_bytes(message: Query | Answer) -> None:
    data = pack(message)
    assert data.hex() == GOLDEN[type(message.body).__name__]
    assert decode_untrusted(data, type(message)) == message


def test_unknown_fields_are_ignored() -> None:
    data = {"version": 1, "server": True, "body": {"type": "ping", "new": 1}, "later": [1, {}]}
    assert decode_untrusted(pack(data), Query) == QUERIES[0]


@pytest.mark.parametrize(
    "bad",
    [
        {},
        [],
        None,
        {"version": 1, "server": True},
        {"version": 1, "server": 1, "body": {"type": "ping"}},
        {"version": -1, "server": True, "body": {"type": "ping"}},
        {"version": "1", "server": True, "body": {"type": "ping"}},
        {"version": 1, "server": True, "body": {"type": "run"}},
        {"version": 1, "server": True, "body": {"type": "pong"}},
        {"version": 1, "server": True, "body": {"type": "find_node", "target": bytes(31)}},
        {"version": 1, "server": True, "body": {"type": "find_node", "target": "x" * 32}},
        {"version": 1, "server": True, "body": {"type": "find_records"}},
    ],
)
def test_malformed_queries(bad: object) -> None:
    with pytest.raises(MalformedMessage):
        decode_untrusted(pack(bad), Query)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("key", bytes(31)),
        ("value", bytes(1001)),
        ("value", "text"),
        ("public_key", bytes(33)),
        ("sequence", -1),
        ("sequence", 2**63),
        ("sequence", 1.0),
        ("expires_at", True),
        ("signature", bytes(63)),
    ],
)
def test_malformed_records(field: str, value: object) -> None:
    fields = {**msgspec.structs.asdict(RECORD), field: value}
    body = {"type": "store", "record": fields}
    with pytest.raises(MalformedMessage):
        decode_untrusted(pack({"version": 1, "server": True, "body": body}), Query)


def test_too_many_or_too_long() -> None:
    for body in (
        Nodes([HINT] * 21),
        Nodes([Hint(b"n" * 32, ("10.0.0.1:1",) * 5)]),
        Nodes([Hint(b"n" * 32, ("1" * 122,))]),
        Records([], [RECORD] * 33),
        Refused("x" * 65),
    ):
        with pytest.raises(MalformedMessage):
            decode_untrusted(pack(Answer(server=True, body=body)), Answer)


LONGEST = f"[2001:0db8:0000:0000:0000:0000:0000:0001]:65535/via/{NodeId(bytes(32))}"


def test_largest_answer_fits_one_message() -> None:
    hint = Hint(b"n" * 32, (LONGEST,) * 4)
    record = msgspec.structs.replace(RECORD, value=bytes(1000))
    assert len(LONGEST) == MAX_ADDRESS_CHARS
    assert len(pack(Answer(server=True, body=Nodes([hint] * 20)))) < 12 * 1024
    data = pack(Answer(server=True, body=Records([hint] * 20, [record] * 32)))
    assert len(data) < MAX_MESSAGE_BYTES
    assert decode_untrusted(data, Answer).server


@given(st.binary(max_size=300))
def test_random_bytes_raise_one_error_only(data: bytes) -> None:
    for type_ in (Query, Answer):
        with pytest.raises(MalformedMessage):
            decode_untrusted(data, type_)


@given(st.sampled_from(QUERIES + ANSWERS), st.integers(0, 10**6), st.integers(0, 255))
def test_one_changed_byte_is_decoded_or_refused(
    message: Query | Answer, place: int, byte: int
) -> None:
    data = bytearray(pack(message))
    data[place % len(data)] = byte
    try:
        decode_untrusted(data, type(message))
    except MalformedMessage:
        return


def test_which_answer_fits_which_query() -> None:
    pairs = [(q, a) for q in QUERIES for a in ANSWERS if fits(q.body, a.body)]
    assert [(type(q.body), type(a.body)) for q, a in pairs] == [
        (Ping, Pong),
        (FindNode, Nodes),
        (FindRecords, Records),
        (Store, Stored),
    ]


def test_hints_are_cleaned() -> None:
    own = b"o" * 32
    hints = [
        Hint(
            b"a" * 32,
            (
                "10.0.0.1:1",
                "10.0.0.1:1",
                "0.0.0.0:1",
                "name.example:1",
            ),
        ),
        Hint(own, ("10.0.0.1:1",)),
        Hint(b"b" * 32, ("127.0.0.1:1",)),
        Hint(b"a" * 32, ("10.6.6.6:1",)),
        Hint(b"c" * 32, ()),
    ]
    (only,) = from_hints(hints, own_id=own, loopback=False)
    assert (only.node_id, only.addresses) == (b"a" * 32, ("10.0.0.1:1",))
    assert [c.node_id for c in from_hints(hints, own_id=own, loopback=True)] == [
        b"a" * 32,
        b"b" * 32,
    ]
