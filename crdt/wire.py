"""Checks on builtins that strangers sent, and one canonical encoding of those that passed.

Problem: state arrives as plain builtins (dict, list, str, bytes, int, float, bool, None), decoded
from bytes of unknown intent. Every `from_wire` must end in a value or in `CrdtError`, never in
another exception, and two nodes holding the same content must compute the same digest.

Idea: small checkers named after what they return, exact about types (`True` is not an int here,
non-finite floats are refused since NaN is not equal to itself), and `canonical`, an injective
encoding with explicit lengths. Digests, tie-breaks and size limits all use `canonical`, so they
depend on neither the process's hash seed nor the codec of the transport.

Canonical form (decimal digits `#`, lengths in bytes or items):

    None n      True t      False f      int i#;      float d + 8 bytes big-endian
    str s#:utf-8      bytes b#:raw      list or tuple l#:items      dict m#:keys and values, sorted

Its length is never below that of the msgpack encoding of the same value, so it also bounds what a
message will weigh.
"""

import math
import struct
from collections.abc import Iterable
from typing import Any, TypeAlias

from crdt.errors import MalformedState, StateTooLarge

Scalar: TypeAlias = bool | int | float | str | bytes | None
"""What registers, sets and maps may hold."""

Wire: TypeAlias = Any
"""Plain builtins, as a codec takes and gives them."""

MAX_INT = 2**63 - 1
"""Largest integer on the wire: what every codec and language can hold."""

MAX_WRITER_BYTES = 64
"""A writer is a node id (32 bytes), with room for an incarnation suffix."""

MAX_SCALAR_BYTES = 4096
"""Largest single value; shared state describes things, it does not carry them."""


def canonical(value: Wire) -> bytes:
    """Encode checked builtins injectively, the same on every machine."""
    parts: list[bytes] = []
    _encode(value, parts)
    return b"".join(parts)


def _encode(value: Wire, parts: list[bytes]) -> None:
    if value is None:
        parts.append(b"n")
    elif value is True:
        parts.append(b"t")
    elif value is False:
        parts.append(b"f")
    elif isinstance(value, int):
        parts.append(b"i%d;" % value)
    elif isinstance(value, float):
        parts.append(b"d" + struct.pack(">d", value))
    elif isinstance(value, str):
        raw = value.encode()
        parts.append(b"s%d:" % len(raw))
        parts.append(raw)
    elif isinstance(value, bytes):
        parts.append(b"b%d:" % len(value))
        parts.append(value)
    elif isinstance(value, list | tuple):
        parts.append(b"l%d:" % len(value))
        for item in value:
            _encode(item, parts)
    else:
        assert isinstance(value, dict), f"not a wire value: {type(value).__name__}"
        parts.append(b"m%d:" % len(value))
        for key in sorted(value):
            _encode(key, parts)
            _encode(value[key], parts)


def as_list(untrusted: Wire, what: str, *, most: int) -> list[Wire]:
    """Check for a list of at most `most` items (tuples, which some codecs give, pass too)."""
    if not isinstance(untrusted, list | tuple):
        raise MalformedState(f"{what}: expected a list, got {type(untrusted).__name__}")
    if len(untrusted) > most:
        raise StateTooLarge(f"{what}: {len(untrusted)} items, at most {most} are allowed")
    return list(untrusted)


def as_row(untrusted: Wire, what: str, *, length: int) -> list[Wire]:
    """Check for a list of exactly `length` items."""
    row = as_list(untrusted, what, most=length)
    if len(row) != length:
        raise MalformedState(f"{what}: expected {length} items, got {len(row)}")
    return row


def as_fields(untrusted: Wire, what: str, names: Iterable[str], *, version: int) -> list[Wire]:
    """Check for a dict whose "v" is `version`; return the named fields in order.

    Fields that are not named are ignored: a later version may add some.
    """
    if not isinstance(untrusted, dict):
        raise MalformedState(f"{what}: expected a map, got {type(untrusted).__name__}")
    if as_int(untrusted.get("v"), f"{what} version") != version:
        raise MalformedState(
            f"{what}: version {untrusted['v']} is not known here",
            hint="the nodes run different releases; upgrade the older one",
        )
    fields = []
    for name in names:
        if name not in untrusted:
            raise MalformedState(f"{what}: field {name!r} is missing")
        fields.append(untrusted[name])
    return fields


def as_int(untrusted: Wire, what: str, *, low: int = 0, high: int = MAX_INT) -> int:
    """Check for an integer within [low, high]; a bool is not one."""
    if type(untrusted) is not int:
        raise MalformedState(f"{what}: expected an integer, got {type(untrusted).__name__}")
    if not low <= untrusted <= high:
        raise MalformedState(f"{what}: the integer is outside [{low}, {high}]")
    return untrusted


def as_float(untrusted: Wire, what: str) -> float:
    """Check for a finite float; an int is not one, so that equal values have one encoding."""
    if type(untrusted) is not float:
        raise MalformedState(f"{what}: expected a float, got {type(untrusted).__name__}")
    if not math.isfinite(untrusted):
        raise MalformedState(f"{what}: the number is not finite")
    return untrusted


def as_bytes(untrusted: Wire, what: str, *, least: int = 0, most: int) -> bytes:
    """Check for bytes of a length within [least, most]. Returns plain bytes."""
    if not isinstance(untrusted, bytes):
        raise MalformedState(f"{what}: expected bytes, got {type(untrusted).__name__}")
    if len(untrusted) > most:
        raise StateTooLarge(f"{what}: {len(untrusted)} bytes, at most {most} are allowed")
    if len(untrusted) < least:
        raise MalformedState(f"{what}: {len(untrusted)} bytes, at least {least} are needed")
    # A subclass (a node id) prints and hashes its own way; inside this room bytes are bytes.
    return untrusted if type(untrusted) is bytes else bytes(untrusted)


def as_hash(untrusted: Wire, what: str, *, optional: bool = True) -> bytes:
    """Check for 32 bytes (or none, where `optional`)."""
    raw = as_bytes(untrusted, what, most=32)
    if len(raw) != 32 and not (optional and not raw):
        raise MalformedState(f"{what}: expected 32 bytes, got {len(raw)}")
    return raw


def as_writer(untrusted: Wire, what: str = "writer") -> bytes:
    """Check for a writer's identity."""
    return as_bytes(untrusted, what, least=1, most=MAX_WRITER_BYTES)


def as_text(untrusted: Wire, what: str, *, most: int, least: int = 0) -> str:
    """Check for printable text of a length (in characters) within [least, most].

    Control characters are refused: these texts end up in operators' terminals and logs.
    """
    if not isinstance(untrusted, str):
        raise MalformedState(f"{what}: expected text, got {type(untrusted).__name__}")
    if len(untrusted) > most:
        raise StateTooLarge(f"{what}: {len(untrusted)} characters, at most {most} are allowed")
    if len(untrusted) < least:
        raise MalformedState(f"{what}: {len(untrusted)} characters, at least {least} are needed")
    if not untrusted.isprintable():  # false for control characters and lone surrogates alike
        raise MalformedState(f"{what}: contains characters that cannot be printed")
    return str(untrusted)


def as_choice(untrusted: Wire, what: str, choices: Iterable[str]) -> str:
    """Check for one of a few words."""
    for choice in choices:
        if isinstance(untrusted, str) and untrusted == choice:
            return choice
    raise MalformedState(f"{what}: not one of {', '.join(choices)}")


def as_scalar(untrusted: Wire, what: str, *, most: int = MAX_SCALAR_BYTES) -> Scalar:
    """Check for a single value of bounded size; any valid text is allowed here."""
    if untrusted is None or type(untrusted) is bool:
        return untrusted
    if type(untrusted) is int:
        return as_int(untrusted, what, low=-MAX_INT)
    if type(untrusted) is float:
        return as_float(untrusted, what)
    if isinstance(untrusted, bytes):
        return as_bytes(untrusted, what, most=most)
    if not isinstance(untrusted, str):
        raise MalformedState(f"{what}: a {type(untrusted).__name__} is not a single value")
    try:
        size_bytes = len(untrusted.encode())
    except UnicodeEncodeError as error:
        raise MalformedState(f"{what}: the text is not valid Unicode") from error
    if size_bytes > most:
        raise StateTooLarge(f"{what}: {size_bytes} bytes, at most {most} are allowed")
    return str(untrusted)


def check_ascending(keys: Iterable[Any], what: str) -> None:
    """Refuse an order other than strictly ascending, hence duplicates too.

    One content, one encoding: what was decoded encodes again to the same wire.
    """
    previous = None
    for key in keys:
        if previous is not None and not previous < key:
            raise MalformedState(f"{what}: not in strictly ascending order")
        previous = key
