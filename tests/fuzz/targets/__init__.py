"""What is fuzzed: one function per parser of bytes that somebody else wrote.

A target takes any bytes and returns. It may see the error that the parser documents and nothing else; where there is more to promise
than that (a round trip, a prefix, a bounded queue), it asserts it. No target keeps state between inputs.
"""

# Each of these puts its targets on the list.
from tests.fuzz.targets import daemon, dht_and_crdt, gossip, joining, secure, transport
from tests.fuzz.targets.kit import TARGETS

__all__ = ["TARGETS", "daemon", "dht_and_crdt", "gossip", "joining", "secure", "transport"]
