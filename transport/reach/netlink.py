"""The kernel's list of addresses as bytes: rtnetlink requests and answers (rtnetlink(7)); sans-IO.

Problem: the addresses of this machine, with what the kernel knows about them (temporary, deprecated, not yet checked), and word
when they change. The package `ifaddr` gives the first without the flags and not the second, and its last release is of 2022;
the second needs a netlink socket anyway. Idea: the few structures of one dump, read here.

Fields are in the machine's own byte order. The kernel is trusted to be the kernel; lengths are checked all the same, and
what does not parse raises `MalformedMessage`.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterator
from typing import Final

import attrs

from transport.errors import MalformedMessage

NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3
RTM_NEWLINK: Final = 16
RTM_GETLINK: Final = 18
RTM_NEWADDR: Final = 20
RTM_GETADDR: Final = 22
_REQUEST_DUMP: Final = 0x301  # NLM_F_REQUEST | NLM_F_DUMP

GROUPS: Final = 0x1 | 0x10 | 0x40 | 0x100 | 0x400
"""RTMGRP_LINK, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE (linux/rtnetlink.h)."""

IFF_UP: Final = 0x1
IFA_F_TEMPORARY: Final = 0x01
IFA_F_DADFAILED: Final = 0x08
IFA_F_DEPRECATED: Final = 0x20
IFA_F_TENTATIVE: Final = 0x40

_HEADER = struct.Struct("=IHHII")
_IFADDR = struct.Struct("=BBBBI")
_IFINFO = struct.Struct("=BxHiII")
_ATTRIBUTE = struct.Struct("=HH")
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_IFA_FLAGS: Final = 8
_IFLA_IFNAME: Final = 3
_AF_INET: Final = 2
_AF_INET6: Final = 10


@attrs.frozen
class Link:
    """An interface."""

    index: int
    name: str
    up: bool


@attrs.frozen
class InterfaceAddress:
    """An address of an interface."""

    index: int
    host: str
    prefix_length: int
    flags: int
    """IFA_F_*."""


def dump_request(kind: int, sequence: int) -> bytes:
    """Ask for all links (RTM_GETLINK) or all addresses (RTM_GETADDR)."""
    body = _IFINFO.pack(0, 0, 0, 0, 0) if kind == RTM_GETLINK else _IFADDR.pack(0, 0, 0, 0, 0)
    return _HEADER.pack(_HEADER.size + len(body), kind, _REQUEST_DUMP, sequence, 0) + body


def messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(type, sequence, body) of every message in one datagram.

    Raises:
        MalformedMessage: a length that makes no sense.
    """
    offset = 0
    while offset < len(data):
        if len(data) - offset < _HEADER.size:
            raise MalformedMessage("a netlink message is cut short")
        length, kind, _, sequence, _ = _HEADER.unpack_from(data, offset)
        if not _HEADER.size <= length <= len(data) - offset:
            raise MalformedMessage("a netlink message has an impossible length")
        yield kind, sequence, data[offset + _HEADER.size : offset + length]
        offset += _aligned(length)


def parse_link(body: bytes) -> Link:
    """The body of RTM_NEWLINK.

    Raises:
        MalformedMessage: it is none.
    """
    if len(body) < _IFINFO.size:
        raise MalformedMessage("a netlink link is cut short")
    _, _, index, flags, _ = _IFINFO.unpack_from(body)
    found = _attributes(body[_IFINFO.size :])
    name = found.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode("utf-8", "replace")
    return Link(index, name, bool(flags & IFF_UP))


def parse_address(body: bytes) -> InterfaceAddress | None:
    """The body of RTM_NEWADDR; None for families other than IP.

    Raises:
        MalformedMessage: it is none.
    """
    if len(body) < _IFADDR.size:
        raise MalformedMessage("a netlink address is cut short")
    family, prefix_length, flags, _, index = _IFADDR.unpack_from(body)
    size = {_AF_INET: 4, _AF_INET6: 16}.get(family)
    if size is None:
        return None
    found = _attributes(body[_IFADDR.size :])
    # On a point-to-point link IFA_ADDRESS is the other end; IFA_LOCAL, where there is one, is always ours.
    packed = found.get(_IFA_LOCAL, found.get(_IFA_ADDRESS, b""))
    if len(packed) != size:
        raise MalformedMessage("a netlink address has the wrong size")
    wide = found.get(_IFA_FLAGS, b"")
    if len(wide) == 4:
        (flags,) = struct.unpack("=I", wide)
    host = str(ipaddress.IPv4Address(packed) if size == 4 else ipaddress.IPv6Address(packed))
    return InterfaceAddress(index, host, prefix_length, flags)


def _attributes(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    offset = 0
    while len(data) - offset >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if not _ATTRIBUTE.size <= length <= len(data) - offset:
            raise MalformedMessage("a netlink attribute has an impossible length")
        found[kind & 0x3FFF] = data[offset + _ATTRIBUTE.size : offset + length]
        offset += _aligned(length)
    return found


def _aligned(length: int) -> int:
    return (length + 3) & ~3
