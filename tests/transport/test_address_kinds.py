"""What a peer says of itself is dialed only where that cannot be turned against us."""

import pytest

from transport.address_kinds import is_credible


@pytest.mark.parametrize(
    ("host", "seen", "credible"),
    [
        ("11.1.1.1", "11.2.2.2", True),
        ("192.168.1.7", "11.2.2.2", True),  # a neighbour behind the same router, perhaps
        ("2001:470::1", "", True),
        ("127.0.0.1", "127.0.0.2", True),
        ("127.0.0.1", "11.2.2.2", False),
        ("127.0.0.1", "", False),
        ("::1", "11.2.2.2", False),
        ("::ffff:127.0.0.1", "11.2.2.2", False),
        ("169.254.169.254", "11.2.2.2", False),
        ("fe80::1%eth0", "fe80::1%eth0", True),
        ("fe80::2%eth0", "fe80::1%eth0", False),
        ("0.0.0.0", "11.2.2.2", False),
        ("224.0.0.1", "11.2.2.2", False),
        ("metadata.google.internal", "11.2.2.2", False),
        ("localhost", "127.0.0.1", False),
    ],
)
def test_what_a_peer_may_send_us_to(host: str, seen: str, credible: bool) -> None:
    assert is_credible(host, seen) is credible
