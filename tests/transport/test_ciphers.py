"""Which connections have AEGIS for long records: what the processor can, what was asked for, and what both ends said."""

import subprocess
import sys

import pytest

from tests.transport.nodes import address, echo, identity, node
from transport.address import Address
from transport.connect.context import Context
from transport.secure import processor
from transport.secure.handshake import Handshake
from transport.secure.intro import Intro, decode_intro, encode_intro
from transport.secure.processor import can_use_aegis, flags_of
from transport.simulated.memory import MemoryNetwork
from transport.tcp import TcpNetwork

WESTMERE = "processor\t: 0\nmodel name\t: Westmere\nflags\t\t: fpu sse2 ssse3 sse4_1 aes\n"
ZEN_2 = "processor\t: 0\nflags\t\t: fpu sse2 aes avx avx2\n"
ZEN_3 = "processor\t: 0\nflags\t\t: fpu sse2 aes avx avx2 vaes\nvmx flags\t: vnmi\n"
NEOVERSE = "processor\t: 0\nFeatures\t: fp asimd aes pmull\n"


def test_flags_are_those_that_all_processors_have():
    assert flags_of(ZEN_3) == {"fpu", "sse2", "aes", "avx", "avx2", "vaes"}
    assert flags_of(ZEN_3 + "\n" + WESTMERE) == {"fpu", "sse2", "aes"}
    assert flags_of(NEOVERSE) == flags_of("") == set()


ASKED = """
import pathlib, sys
if sys.argv[2]: sys.modules[sys.argv[2]] = None
from transport.secure import processor, record
processor.CPUINFO = pathlib.Path(sys.argv[1])
record.Sealer(bytes(32))
print(processor.can_use_aegis(), "aeg" in sys.modules)
"""


def asked(cpuinfo, hidden=""):
    """What a process says, and whether it has loaded the library."""
    done = subprocess.run(
        [sys.executable, "-c", ASKED, str(cpuinfo), hidden],
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.split()


@pytest.mark.parametrize("text", [WESTMERE, ZEN_2, NEOVERSE, ZEN_3 + "\n" + ZEN_2, ""])
def test_the_library_is_not_even_loaded_on_other_processors(tmp_path, text):
    (tmp_path / "cpuinfo").write_text(text)
    assert asked(tmp_path / "cpuinfo") == ["False", "False"]
    assert asked(tmp_path / "none") == ["False", "False"]


@pytest.mark.skipif(not can_use_aegis(), reason="no aeg here, or a processor without VAES")
def test_a_processor_that_has_it_and_one_whose_library_is_missing(tmp_path):
    (tmp_path / "cpuinfo").write_text(ZEN_3)
    assert asked(tmp_path / "cpuinfo") == ["True", "True"]
    assert asked(tmp_path / "cpuinfo", "aeg")[0] == "False"
    assert asked(tmp_path / "cpuinfo", "aeg.aegis256x4")[0] == "False"
    assert asked(processor.CPUINFO) == ["True", "True"]


def test_an_intro_says_it_only_if_there_is_something_to_say():
    assert b"aegis" not in encode_intro(Intro())
    assert decode_intro(encode_intro(Intro(aegis=True))) == Intro(aegis=True)


async def said(network, at, aegis):
    """Whether an endpoint offers it, in any handshake."""
    async with node(network, 1, listen=[at], aegis=aegis) as endpoint:
        context = endpoint._context
        assert isinstance(context, Context)
        sides = [
            context.handshake(role, Intro(kind), identity(2).node_id)
            for role in ("initiator", "responder")
            for kind in ("control", "bulk", "probe")
        ]
        assert all(isinstance(side, Handshake) for side in sides)
        (offers,) = {side._aegis for side in sides}
        return offers


async def test_a_simulation_does_not_depend_on_the_machine():
    host = MemoryNetwork(1).host("10.0.0.1")
    assert not await said(host, address(1), None)
    assert await said(host, address(1), True)


async def test_real_connections_have_it_where_it_is():
    here = Address("127.0.0.1", 0)
    assert await said(TcpNetwork(), here, None) == can_use_aegis()
    assert not await said(TcpNetwork(), here, False)


@pytest.mark.skipif(not can_use_aegis(), reason="no aeg here, or a processor without VAES")
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("second", [False, True])
async def test_nodes_with_and_without_it_understand_each_other(autojump_clock, first, second):
    world = MemoryNetwork(1)
    message = bytes(range(256)) * 200
    async with (
        node(world.host("10.0.0.1"), 1, aegis=first) as one,
        node(world.host("10.0.0.2"), 2, aegis=second) as other,
    ):
        other.serve_calls("echo", echo)
        peer = await one.connect([address(2)])
        assert await peer.call("echo", message) == message
        link = await peer.open_bulk(b"x")
        arrives = await other.accept_bulk(one.node_id, b"x")
        await link.send(b"head", message)
        got = bytearray(len(message))
        assert await arrives.receive(lambda _head, _size: memoryview(got)) == b"head"
        assert got == message
