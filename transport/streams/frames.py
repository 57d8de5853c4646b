"""Frames of the multiplexed connection: layout, encoder, decoder.

Problem: many streams share one sealed connection. Idea: small frames with a fixed 8-byte header; a DATA record holds whole frames
only, so the decoder needs no state. Records are already authenticated: what is checked here is a peer's honesty, not the line.

    offset  size  field
    0       1     type
    1       1     flags (bit 0 of DATA: FIN; all others zero when sent, ignored when received)
    2       2     length of the payload, unsigned big-endian, at most 65535
    4       4     stream id, unsigned big-endian; 0 for frames about the connection
    8       n     payload

    type  name          stream  payload
    1     OPEN          yes     protocol name, 1 to 64 bytes of printable ASCII
    2     DATA          yes     bytes; at least one unless FIN is set
    3     RESET         yes     u32 reason; both directions of the stream end at once, except that what came before a FIN of the
                                same sender stays readable
    4     CREDIT        yes     u32 > 0: so many more bytes may be sent on the stream
    5     CLASS_CREDIT  0       u8 priority class, u32 > 0: so many more bytes may be sent on all streams of the class
    6     PING          0       8 bytes, to be returned
    7     PONG          0       the 8 bytes of a PING
    8     GOAWAY        0       u32 code, then 0 to 256 bytes of UTF-8 text; the connection ends here
    >= 128 (extension)  any     ignored by who does not know it; every other unknown type ends the connection

Stream id = number * 4 + priority * 2 + opener, with opener 0 for streams opened by the handshake's initiator and 1 for the
responder's, priority 0 URGENT and 1 NORMAL, number from 1 up in each of the four series and never used twice. The id alone thus
tells which budget a late frame of a forgotten stream belongs to.

Credit at the start: WINDOW_BYTES per stream and direction, CLASS_WINDOW_BYTES per priority class and direction. A receiver may give
more than was used, and so widen a window (this side does for readers that keep up, to WIDEST_BYTES and WIDEST_CLASS_BYTES).

Invariants: encode and decode are inverse; `decode` raises ProtocolViolation only.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import TypeAlias

import attrs

from transport.buffer import Buffer
from transport.errors import ProtocolViolation

FRAME_HEADER_BYTES = 8
FRAME_PAYLOAD_BYTES = 16384
"""Payload of the DATA frames this side sends when several streams of a class have something: the turn of each."""
MAX_FRAME_PAYLOAD_BYTES = 65535
"""Payload accepted; what the length field can say."""
WINDOW_BYTES = 262144
"""Credit of a new stream in each direction (bytes)."""
WIDEST_BYTES = (262144, 2097152)
"""How far the window of a stream may be widened (bytes), indexed by Priority: a quarter of its class, so that no stream that is not read
holds up more than a quarter of the others' credit."""
WIDEST_CLASS_BYTES = (1048576, 8388608)
"""How far the window of a class may be widened (bytes), indexed by Priority: what a peer may make us hold."""
CLASS_WINDOW_BYTES = (1048576, 4194304)
"""Credit of all streams of a class together, in each direction (bytes), indexed by Priority. Separate, so that bulk nobody reads
cannot hold back what is urgent."""
MAX_CREDIT_BYTES = 2**30
"""No credit may grow beyond this (bytes): an overflow is an attack or a bug."""
MAX_PROTOCOL_CHARS = 64
MAX_GOAWAY_TEXT_BYTES = 256
LARGEST_CONTROL_FRAME_BYTES = FRAME_HEADER_BYTES + 4 + MAX_GOAWAY_TEXT_BYTES
FIRST_IGNORABLE_TYPE = 128


class Priority(IntEnum):
    """Class of a stream: everything URGENT leaves before anything NORMAL."""

    URGENT = 0
    NORMAL = 1


class FrameType(IntEnum):
    """First byte of a frame."""

    OPEN = 1
    DATA = 2
    RESET = 3
    CREDIT = 4
    CLASS_CREDIT = 5
    PING = 6
    PONG = 7
    GOAWAY = 8


class ResetCode(IntEnum):
    """Reasons in RESET; unknown numbers are passed on as they are."""

    CANCELLED = 1
    """The other side no longer wants the stream."""
    REFUSED = 2
    """Too many streams; the protocol handler never saw this one."""
    NO_SUCH_PROTOCOL = 3
    """Nobody serves the protocol named in OPEN."""
    HANDLER_FAILED = 4
    """The handler raised."""
    MESSAGE_TOO_LARGE = 5
    """A message over the limit of its protocol."""
    NOT_PERMITTED = 6
    """The opener's certificate does not let it use the protocol."""


class CloseCode(IntEnum):
    """Reasons in GOAWAY; unknown numbers are passed on as they are."""

    NORMAL = 0
    """Done, for the reason in the text."""
    VIOLATION = 1
    """The receiver of this GOAWAY broke the rules of the protocol."""
    DUPLICATE = 2
    """Another connection between the same two nodes stays."""
    LIMIT = 3
    """No room for this peer."""
    LEAVING = 4
    """The sender stops; nothing is wrong."""
    IDLE = 5
    """Nobody used the connection; nothing is wrong."""
    REFUSED = 6
    """Not a member, or not any more; the text says why."""


FIN = 1

_HEADER = struct.Struct(">BBHI")
_U32 = struct.Struct(">I")
_CLASS_CREDIT = struct.Struct(">BI")


def stream_id(number: int, priority: Priority, *, opened_by_responder: bool) -> int:
    """The id of the `number`th stream of its series."""
    return number * 4 + int(priority) * 2 + int(opened_by_responder)


def priority_of(stream_id: int) -> Priority:
    """The class a stream id belongs to."""
    return Priority(stream_id >> 1 & 1)


def opened_by_responder(stream_id: int) -> bool:
    """Which side's series a stream id belongs to."""
    return bool(stream_id & 1)


@attrs.frozen
class Open:
    """A new stream."""

    stream_id: int
    protocol: str


@attrs.frozen
class Data:
    """Bytes of a stream; a view into the record, to be copied before the record's buffer is used again."""

    stream_id: int
    data: memoryview
    fin: bool = False


@attrs.frozen
class Reset:
    """A stream is cancelled."""

    stream_id: int
    code: int


@attrs.frozen
class Credit:
    """More bytes may be sent on a stream."""

    stream_id: int
    amount: int


@attrs.frozen
class ClassCredit:
    """More bytes may be sent on a priority class."""

    priority: Priority
    amount: int


@attrs.frozen
class Ping:
    """To be answered with the same token."""

    token: int


@attrs.frozen
class Pong:
    """Answer to a Ping."""

    token: int


@attrs.frozen
class GoAway:
    """The connection ends."""

    code: int
    text: str


Frame: TypeAlias = Open | Data | Reset | Credit | ClassCredit | Ping | Pong | GoAway


def is_protocol_name(name: str) -> bool:
    """1 to 64 characters of printable ASCII without spaces."""
    return 1 <= len(name) <= MAX_PROTOCOL_CHARS and all(
        "!" <= character <= "~" for character in name
    )


def data_header(stream_id: int, length: int, *, fin: bool) -> bytes:
    """The 8 bytes before `length` bytes of stream data."""
    return _HEADER.pack(FrameType.DATA, FIN if fin else 0, length, stream_id)


def encode(frame: Frame) -> bytes:
    """The wire bytes of one frame."""
    match frame:
        case Data(id_, data, fin):
            return data_header(id_, len(data), fin=fin) + bytes(data)
        case Open(id_, protocol):
            return _frame(FrameType.OPEN, id_, protocol.encode("ascii"))
        case Reset(id_, code):
            return _frame(FrameType.RESET, id_, _U32.pack(code))
        case Credit(id_, amount):
            return _frame(FrameType.CREDIT, id_, _U32.pack(amount))
        case ClassCredit(priority, amount):
            return _frame(FrameType.CLASS_CREDIT, 0, _CLASS_CREDIT.pack(priority, amount))
        case Ping(token):
            return _frame(FrameType.PING, 0, token.to_bytes(8, "big"))
        case Pong(token):
            return _frame(FrameType.PONG, 0, token.to_bytes(8, "big"))
        case GoAway(code, text):
            # Cut by bytes; a character cut in two is dropped.
            raw = text.encode("utf-8", "replace")[:MAX_GOAWAY_TEXT_BYTES]
            raw = raw.decode("utf-8", "ignore").encode("utf-8")
            return _frame(FrameType.GOAWAY, 0, _U32.pack(code) + raw)


def _frame(type_: FrameType, id_: int, payload: bytes) -> bytes:
    return _HEADER.pack(type_, 0, len(payload), id_) + payload


def decode(data_untrusted: Buffer) -> Iterator[Frame]:
    """The frames of one DATA record, one by one; unknown extension frames are skipped.

    Raises:
        ProtocolViolation: a frame is cut off, unknown, or breaks the table above. Frames before it have been yielded.
    """
    view = memoryview(data_untrusted)
    offset, end = 0, len(view)
    while offset < end:
        if end - offset < FRAME_HEADER_BYTES:
            raise ProtocolViolation("a frame header is cut off by the end of the record")
        type_, flags, length, id_ = _HEADER.unpack_from(view, offset)
        offset += FRAME_HEADER_BYTES
        if end - offset < length:
            raise ProtocolViolation("a frame is cut off by the end of the record")
        payload = view[offset : offset + length]
        offset += length
        if type_ == FrameType.DATA:
            if id_ < 4:
                raise ProtocolViolation("a data frame names no stream")
            fin = bool(flags & FIN)
            if length == 0 and not fin:
                raise ProtocolViolation("an empty data frame")
            yield Data(id_, payload, fin)
        elif type_ < FIRST_IGNORABLE_TYPE:
            yield _decode_control(type_, id_, bytes(payload))


def _decode_control(type_: int, id_: int, payload: bytes) -> Frame:
    about_stream = type_ in (FrameType.OPEN, FrameType.RESET, FrameType.CREDIT)
    if about_stream and id_ < 4:
        raise ProtocolViolation("a stream frame names no stream")
    if not about_stream and id_ != 0:
        raise ProtocolViolation("a connection frame names a stream, or its type is unknown")
    size = len(payload)
    if type_ == FrameType.OPEN:
        name = payload.decode("latin-1")
        if not is_protocol_name(name):
            raise ProtocolViolation("a protocol name is not 1 to 64 printable ASCII characters")
        return Open(id_, name)
    if type_ == FrameType.RESET and size == 4:
        return Reset(id_, _U32.unpack(payload)[0])
    if type_ == FrameType.CREDIT and size == 4:
        amount = _U32.unpack(payload)[0]
        if amount == 0:
            raise ProtocolViolation("a credit of zero bytes")
        return Credit(id_, amount)
    if type_ == FrameType.CLASS_CREDIT and size == 5:
        class_, amount = _CLASS_CREDIT.unpack(payload)
        if amount == 0 or class_ >= len(CLASS_WINDOW_BYTES):
            raise ProtocolViolation("a class credit of zero bytes or for an unknown class")
        return ClassCredit(Priority(class_), amount)
    if type_ == FrameType.PING and size == 8:
        return Ping(int.from_bytes(payload, "big"))
    if type_ == FrameType.PONG and size == 8:
        return Pong(int.from_bytes(payload, "big"))
    if type_ == FrameType.GOAWAY and 4 <= size <= 4 + MAX_GOAWAY_TEXT_BYTES:
        try:
            return GoAway(_U32.unpack_from(payload)[0], payload[4:].decode("utf-8"))
        except UnicodeDecodeError:
            raise ProtocolViolation("the text of a goaway is not UTF-8") from None
    raise ProtocolViolation(f"frame type {type_} with {size} bytes is not acceptable")
