"""What every target is made with: the list of them, who speaks in genuine inputs, and what a middleman does to those."""

from collections.abc import Callable

from transport.identity import Identity

ALICE, BOB = (Identity.from_seed(bytes([number]) * 32) for number in (1, 2))
KEY = bytes(range(32))
NOW = 1_700_000_000.0

Target = Callable[[bytes], None]
TARGETS: dict[str, Target] = {}


def target(function: Target) -> Target:
    TARGETS[function.__name__.replace("_", "-")] = function
    return function


def text_of(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def edited(genuine: bytes, data: bytes) -> bytes:
    """A middleman's work: `data` says where, what kind of edit, and with which bytes."""
    place = int.from_bytes(data[:2], "big") % (len(genuine) + 1)
    kind, rest = data[2:3], data[3:]
    if kind < b"\x40":  # flip
        middle = bytes(a ^ b for a, b in zip(genuine[place:], rest, strict=False))
        return genuine[:place] + middle + genuine[place + len(middle) :]
    if kind < b"\x80":  # put in
        return genuine[:place] + rest + genuine[place:]
    if kind < b"\xc0":  # take out
        return genuine[:place] + genuine[place + len(rest) :]
    return genuine[:place]  # cut
