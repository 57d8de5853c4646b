"""The local address to dial from: of the target's family, never a loopback listener for another machine."""

import pytest

from transport.address import Address
from transport.connect.source import SourceBusy, source_for
from transport.errors import ConnectFailed


@pytest.mark.parametrize(
    ("listening", "target", "source"),
    [
        ([], "192.0.2.1:1", None),
        (["0.0.0.0:7447"], "192.0.2.1:1", "0.0.0.0:7447"),
        (["[::]:7447"], "192.0.2.1:1", None),
        (["0.0.0.0:7447", "[::]:7448"], "[2001:db8::1]:1", "[::]:7448"),
        (["127.0.0.1:7447"], "192.0.2.1:1", None),
        (["127.0.0.1:7447"], "127.0.0.2:1", "127.0.0.1:7447"),
        (["10.0.0.1:7447"], "127.0.0.2:1", None),
        (["10.0.0.1:7447"], "192.0.2.1:1", "10.0.0.1:7447"),
        (["10.0.0.1:7447", "0.0.0.0:7448"], "192.0.2.1:1", "0.0.0.0:7448"),
        (["0.0.0.0:7447"], "a-name:1", None),
        (["a-name:7447"], "192.0.2.1:1", None),
        (["0.0.0.0:0"], "192.0.2.1:1", None),
    ],
)
def test_the_source_fits_the_target(listening, target, source):
    found = source_for(map(Address.parse, listening), Address.parse(target))
    assert found == (Address.parse(source) if source else None)


def test_a_busy_source_is_a_failed_connect_with_a_hint():
    assert issubclass(SourceBusy, ConnectFailed)
    assert SourceBusy("x").hint
