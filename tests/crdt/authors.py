"""Authors for tests: real Ed25519 ones, and ones whose signatures cost nothing."""

import functools
import hashlib

from crdt.clock import HybridClock
from crdt.entry import Author
from crdt.state import RunState
from transport.identity import Identity, verify

NOW_MS = 1_700_000_000_000
DOCUMENT = b"d" * 32
HASH = bytes(range(32))


def quick_sign(public_key, data):
    return hashlib.sha512(public_key + data).digest()


def quick_verify(public_key, signature, data):
    return signature == quick_sign(public_key, data)


@functools.cache
def author(index):
    """Signed by a hash: no protection, and all that laws and simulations need."""
    public_key = hashlib.sha256(b"%d" % index).digest()
    return Author(public_key, functools.partial(quick_sign, public_key))


@functools.cache
def real_author(index):
    identity = Identity.from_seed(hashlib.sha256(b"%d" % index).digest())
    return Author(identity.public_key, identity.sign)


def new_state(index=0, wall_ms=lambda: NOW_MS, *, real=False, **options):
    """A replica of one document; `index` names its author."""
    who = real_author(index) if real else author(index)
    clock = HybridClock(who.writer, wall_ms)
    return RunState(who, clock, DOCUMENT, verify if real else quick_verify, **options)
