"""Printable forms of 32-byte values: lower-case base32 in groups of four, with one check character.

Problem: people paste and sometimes type node ids and swarm keys; one wrong character must be noticed at once, not after a
failed dial. Idea: RFC 4648 base32 (no 0, 1, 8 to confuse) and one check symbol over GF(32): the symbols are the coefficients of a
polynomial that must vanish at the generator 2. Any single wrong symbol and any swap of neighbours changes the value.
Invariant: one value has exactly one canonical text; parsing is lenient in case, hyphens, spaces and 0/1/8 look-alikes only.
"""

from __future__ import annotations

import base64

_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
_SYMBOL = {character: value for value, character in enumerate(_ALPHABET)}
_LOOK_ALIKE = str.maketrans({"0": "o", "1": "l", "8": "b", "-": None, " ": None})
_MAX_TEXT = 128


def _double(value: int) -> int:
    """Multiply by the generator in GF(2^5) modulo x^5 + x^2 + 1."""
    value <<= 1
    return value ^ 0b100101 if value & 0b100000 else value


def check_character(symbols: str) -> str:
    """The character that makes `symbols` + it evaluate to zero."""
    total = 0
    for character in symbols:
        total = _double(total ^ _SYMBOL[character])
    return _ALPHABET[total]


def encode32(prefix: str, value: bytes) -> str:
    """`prefix-xxxx-...-xxxx-c` for 32 bytes."""
    symbols = base64.b32encode(value).decode("ascii").rstrip("=").lower()
    groups = [symbols[start : start + 4] for start in range(0, len(symbols), 4)]
    return "-".join([prefix, *groups, check_character(symbols)])


def decode32(prefix: str, text_untrusted: str) -> bytes:
    """The 32 bytes of a text made by `encode32`.

    Raises:
        ValueError: with one sentence that says what is wrong; never quotes the text (it may be a secret).
    """
    if len(text_untrusted) > _MAX_TEXT:
        raise ValueError("too long")
    text = "".join(text_untrusted.split()).lower()
    if not text.startswith(prefix):
        raise ValueError(f"does not begin with {prefix}-")
    symbols = text.removeprefix(prefix).translate(_LOOK_ALIKE)
    if not all(character in _SYMBOL for character in symbols):
        raise ValueError("contains a character that is not base32")
    if len(symbols) != 53:
        raise ValueError(f"has {len(symbols)} characters after the prefix where 53 belong")
    body, check = symbols[:52], symbols[52]
    if check_character(body) != check:
        raise ValueError("the check character does not match: something was mistyped or left out")
    value = base64.b32decode(body.upper() + "====")
    if base64.b32encode(value).decode("ascii").rstrip("=").lower() != body:
        raise ValueError("the unused last bits are not zero")
    return value
