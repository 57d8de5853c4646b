"""How a newcomer gets in: codes that are pasted, requests and answers, beacons, the ledger of invites."""

import random

from node.joining import answer as join_answer
from node.joining.beacon import Beacon
from node.joining.code import InvalidCode, InviteCode
from node.joining.ledger import LedgerDamaged, decode_invite, encode_invite
from node.joining.redeemer import Redeemer
from node.joining.request import MalformedRequest, parse_request
from tests.fuzz.targets.kit import ALICE, BOB, KEY, NOW, edited, target, text_of
from tests.trusted import SWARM
from transport.address import Address

INVITE = InviteCode(
    swarm_id=SWARM.id,
    issuer=bytes(ALICE.node_id[:16]),
    secret=bytes(range(16)),
    expires_s=int(NOW) + 3600,
    addresses=(Address("192.0.2.1", 7447), Address("2001:db8::1", 7447), Address("a.example", 1)),
)


def newcomer() -> Redeemer:
    return Redeemer(INVITE, BOB, random.Random("newcomer").randbytes)


JOIN_REQUEST = newcomer().request
JOIN_GRANT = join_answer.Grant(chain=b"chain", swarm_secret=KEY, root_key=KEY, bootstrap=("a:1",))
JOIN_ANSWER = join_answer.seal_grant(
    parse_request(JOIN_REQUEST), INVITE.key, JOIN_GRANT, random.Random("issuer").randbytes
)


@target
def invite_code(data: bytes) -> None:
    """A pasted line: one value, one text; any edit of a genuine one is noticed."""
    text = text_of(data[1:] if data[:1] < b"\x20" else edited(INVITE.text.encode(), data[1:]))
    try:
        code = InviteCode.parse(text)
    except InvalidCode:
        return
    assert InviteCode.parse(code.text) == code
    assert data[:1] < b"\x20" or code == INVITE


@target
def join_request(data: bytes) -> None:
    """What a member is asked to pass on; only the request that was made is proven and signed."""
    source = data[1:] if data[:1] < b"\x20" else edited(JOIN_REQUEST, data[1:])
    try:
        request = parse_request(source)
    except MalformedRequest:
        return
    assert request.data == source
    if request.proven_by(INVITE.key) and request.signed:
        assert source == JOIN_REQUEST


@target
def join_reply(data: bytes) -> None:
    """What comes back: only the answer that was sealed opens, and a no without the issuer's signature is hearsay."""
    asked = newcomer()
    source = data[1:] if data[:1] < b"\x20" else edited(JOIN_ANSWER, data[1:])
    try:
        answer = join_answer.read_answer(
            source, parse_request(asked.request), INVITE, random.Random("newcomer").randbytes(32)
        )
    except join_answer.MalformedAnswer:
        assert asked.receive("a", source, int(NOW * 1000)) is None
        return
    assert answer == JOIN_GRANT or not getattr(answer, "signed", True) or source[1] == 2


@target
def beacon(data: bytes) -> None:
    """A datagram from anybody on the network: nothing but a genuine one gives a hint."""
    speaker = Beacon(ALICE, SWARM, random.Random(1), 0.0)
    listener = Beacon(BOB, SWARM, random.Random(1), 0.0)
    genuine = speaker.make(7447, int(NOW * 1000))
    source = data[1:] if data[:1] < b"\x20" else edited(genuine, data[1:])
    hint = listener.receive(source, "192.0.2.1", 0.0, int(NOW * 1000))
    assert hint is None or source == genuine


@target
def invite_ledger(data: bytes) -> None:
    """A file of the ledger, once its checksum is right: one more use than it may have is refused."""
    try:
        invite = decode_invite(data)
    except LedgerDamaged:
        return
    assert len(invite.used) <= invite.uses
    assert decode_invite(encode_invite(invite)) == invite
