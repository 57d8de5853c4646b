"""docs/wire.md is true: its golden values are the tested ones, and a second implementation written from it alone, with none of this
project's code, produces the same handshake and the same records."""

import hashlib
import hmac
import json
from pathlib import Path

import msgpack
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

VECTORS = Path(__file__).parent / "vectors"
DOCUMENT = (Path(__file__).parents[2] / "docs" / "wire.md").read_text()
WIRE = json.loads((VECTORS / "handshake.json").read_text())


def given_bytes(name):
    return bytes.fromhex(WIRE[name])


def test_the_document_holds_the_tested_values():
    dense = "".join(DOCUMENT.split())
    for name in (
        "swarm_id",
        "swarm_tag",
        "first_flight",
        "second_flight",
        "third_flight",
        "session_id",
        "initiator_chain",
        "responder_chain",
        "punch_initiator_hello",
        "punch_responder_hello",
        "punch_first_message",
        "punch_session_id",
    ):
        assert WIRE[name] in dense, name
    for side in ("initiator", "responder"):
        assert WIRE[f"first_record_of_{side}"] in dense


def sha(data):
    return hashlib.sha256(data).digest()


class Transcript:
    """The symmetric part of Noise, as its specification has it."""

    def __init__(self, prologue):
        self.h = self.ck = b"Noise_XX_25519_AESGCM_SHA256".ljust(32, b"\0")
        self.key, self.n = None, 0
        self.mix(prologue)

    def mix(self, data):
        self.h = sha(self.h + data)

    def expand(self, ikm):
        t = hmac.digest(self.ck, ikm, "sha256")
        one = hmac.digest(t, b"\x01", "sha256")
        return one, hmac.digest(t, one + b"\x02", "sha256")

    def dh(self, private, public):
        self.ck, self.key = self.expand(private.exchange(X25519PublicKey.from_public_bytes(public)))
        self.n = 0

    def seal(self, plaintext):
        data = AESGCM(self.key).encrypt(bytes(4) + self.n.to_bytes(8, "big"), plaintext, self.h)
        self.n += 1
        self.mix(data)
        return data


@pytest.mark.parametrize("punch", [False, True])
def test_a_second_implementation_makes_the_same_bytes(punch):
    key = given_bytes("swarm_key")
    root = Ed25519PrivateKey.from_private_bytes(given_bytes("root_seed"))
    root_public = root.public_key().public_bytes_raw()
    swarm_id = sha(b"noded swarm id v2\0" + root_public)
    tag = sha(b"noded swarm tag v2\0" + swarm_id)[:8]
    assert (swarm_id.hex(), tag.hex()) == (WIRE["swarm_id"], WIRE["swarm_tag"])
    e, s, hello, payload = {}, {}, {}, {}
    for byte, role, other in ((1, "initiator", "responder"), (2, "responder", "initiator")):
        e[role] = X25519PrivateKey.from_private_bytes(given_bytes(f"{role}_ephemeral"))
        s[role] = X25519PrivateKey.from_private_bytes(given_bytes(f"{role}_static"))
        hello_role = 3 if punch else byte
        tie_break = given_bytes(f"{other if punch else role}_tie_break")  # the higher one initiates
        hello[role] = b"\x93noded\r\n" + bytes([2, hello_role, 0, 0]) + tie_break + tag
        identity = Ed25519PrivateKey.from_private_bytes(given_bytes(f"{role}_identity_seed"))
        public = identity.public_key().public_bytes_raw()
        certificate = b"\1\3\0" + swarm_id + public + root_public + bytes(48)
        certificate += given_bytes(f"{role}_serial")
        certificate += WIRE["issued_at_ms"].to_bytes(8, "big")
        certificate += WIRE["expires_at_ms"].to_bytes(8, "big") + b"\0"
        certificate += root.sign(b"noded certificate v1".ljust(24, b"\0") + certificate)
        chain = b"\1" + len(certificate).to_bytes(2, "big") + certificate
        assert chain.hex() == WIRE[f"{role}_chain"]
        signed = (
            b"noded identity v2\0"
            + swarm_id
            + bytes([byte])
            + s[role].public_key().public_bytes_raw()
            + sha(chain)
        )
        intro = {"kind": "control", "name": role, "listen": [WIRE[f"{role}_listen"]], "label": b""}
        payload[role] = public + identity.sign(signed) + len(chain).to_bytes(2, "big") + chain
        payload[role] += msgpack.packb(intro)
    e_i, e_r = (e[role].public_key().public_bytes_raw() for role in ("initiator", "responder"))
    s_i, s_r = (s[role].public_key().public_bytes_raw() for role in ("initiator", "responder"))

    proof = hmac.digest(key, b"noded member v2\0" + hello["initiator"] + e_i, "sha256")[:16]
    if punch:
        assert hello["initiator"].hex() == WIRE["punch_initiator_hello"]
        assert hello["responder"].hex() == WIRE["punch_responder_hello"]
        assert (e_i + proof).hex() == WIRE["punch_first_message"]
    else:
        assert (hello["initiator"] + e_i + proof).hex() == WIRE["first_flight"]

    noise = Transcript(b"noded handshake v2\0" + hello["initiator"] + hello["responder"] + key)
    noise.mix(e_i)
    noise.mix(proof)
    noise.mix(e_r)
    noise.dh(e["responder"], e_i)  # ee
    second = e_r + noise.seal(s_r)
    noise.dh(s["responder"], e_i)  # es
    second += noise.seal(payload["responder"])
    if not punch:
        flight = hello["responder"] + len(second).to_bytes(2, "big") + second
        assert flight.hex() == WIRE["second_flight"]

    third = noise.seal(s_i)
    noise.dh(s["initiator"], e_r)  # se
    third += noise.seal(payload["initiator"])
    if punch:  # the session id is the hash of every byte before
        assert noise.h.hex() == WIRE["punch_session_id"]
        return
    assert (len(third).to_bytes(2, "big") + third).hex() == WIRE["third_flight"]
    assert noise.h.hex() == WIRE["session_id"]

    for role, record_key in zip(("initiator", "responder"), noise.expand(b""), strict=True):
        plaintext = given_bytes("record_payload")
        header = len(plaintext).to_bytes(4, "big") + b"\0"
        record = header + AESGCM(record_key).encrypt(bytes(12), plaintext, header)
        assert record.hex() == WIRE[f"first_record_of_{role}"]
