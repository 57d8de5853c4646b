"""Contacts: who a node is and where it may be reached.

Problem: addresses come from three sources of very different worth. The address we dialed ourselves is proved;
the addresses a peer advertises in its handshake are its own claim (often "0.0.0.0:port", meaningless to
others); the addresses a third node returns are hearsay. Idea: one rule of sanity for all (`sane_address`),
one merge for a connected peer (`peer_addresses`), and loopback addresses believed only from a neighbour that
is on loopback itself.

Rules: an address is a literal IP address and a port. Names are refused, since resolving a name chosen by a
stranger lets him aim our resolver; unspecified, multicast, reserved and link-local addresses never lead to a
node. Private ranges are allowed: swarms on one local network are ordinary. A relayed address, "host:port/via/<node
id>", names a relay and where it listens; host and port obey the same rules, and the id must be one.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Iterable, Sequence
from typing import Protocol

import attrs

# Enough for IPv4 and IPv6, or one of them and two relays; the bound keeps 20 contacts below 12 KiB on the wire.
MAX_ADDRESSES = 4
# "[" + 39 + "]:65535", the longest literal address, then "/via/" and a node id of 69.
MAX_ADDRESS_CHARS = 121
_VIA = "/via/"
# A node id as text; its check character is looked at by whoever dials.
_NODE_ID = re.compile(r"nd-([a-z2-7]{4}-){13}[a-z2-7]\Z")


class Place(Protocol):
    """An address as the transport has it; its text is "host:port", with "/via/<relay>" if there is one."""

    @property
    def host(self) -> str: ...  # noqa: D102
    @property
    def port(self) -> int: ...  # noqa: D102
    @property
    def relay(self) -> str: ...  # noqa: D102


@attrs.frozen
class Contact:
    """A node and the addresses at which it may be reached, best first."""

    node_id: bytes
    """32 bytes; proved only by a handshake, whatever the source of this contact."""
    addresses: tuple[str, ...] = ()
    """Texts "host:port" or "[v6]:port", with "/via/<relay>" or without."""
    host: str = attrs.field(default="", eq=False)
    """The IP address its connection showed us, proved by it; "" for hearsay and over a relay."""


def split_address(text: str) -> tuple[str, int] | None:
    """Return (host, port) of a literal IP address with a port, the relay's if there is one, or None; never raises."""
    if len(text) > MAX_ADDRESS_CHARS or not text.isascii():
        return None
    text, via, relay = text.partition(_VIA)
    if via and _NODE_ID.match(relay) is None:
        return None
    host, colon, port_text = text.rpartition(":")
    if not colon or not port_text.isdigit() or len(port_text) > 5:
        return None
    port = int(port_text)
    if not 0 < port < 65536:
        return None
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        return None
    return host, port


# Searches meet the same few texts over and over; the bound is what makes a cache of hearsay harmless.
@functools.lru_cache(maxsize=16384)
def sane_address(text: str, *, loopback: bool) -> bool:
    """Return whether a node could be reached at `text`; never raises.

    Args:
        text: "host:port" from an untrusted source.
        loopback: whether 127.0.0.0/8 and ::1 make sense, i.e. the source is on this machine.
    """
    parts = split_address(text)
    if parts is None or "%" in parts[0]:
        return False
    try:
        ip = ipaddress.ip_address(parts[0])
    except ValueError:
        return False
    if ip.is_loopback:
        return loopback
    return not (ip.is_unspecified or ip.is_multicast or ip.is_reserved or ip.is_link_local)


def is_loopback(host: str) -> bool:
    """Return whether `host` is a loopback address; names are not."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def on_loopback(contact: Contact) -> bool:
    """Return whether any address of `contact` is a loopback address."""
    parts = (split_address(text) for text in contact.addresses)
    return any(part is not None and is_loopback(part[0]) for part in parts)


def join_address(host: str, port: int) -> str:
    """Return "host:port", with brackets around an IPv6 host."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def merge_addresses(*sources: Iterable[str], limit: int = MAX_ADDRESSES) -> tuple[str, ...]:
    """Return the distinct addresses of `sources`, earlier ones first, at most `limit`."""
    return tuple(dict.fromkeys(text for source in sources for text in source))[:limit]


def peer_addresses(advertised: Sequence[Place], remote: Place, *, dialed: bool) -> tuple[str, ...]:
    """Return where a connected peer may be reached by others, best first.

    Args:
        advertised: the listening addresses the peer states; an unspecified host means "any of mine" and is
            read as the host we see it at. Over a relay we see none, and such an address is left out.
        remote: the other end of the live connection. Its port is a listening port only if we dialed it.
        dialed: whether we dialed `remote`, which proves that the peer can be reached there.
    """
    if not advertised:
        return ()  # it accepts no connections: a client
    proved = [str(remote)] if dialed else []
    stated = [
        join_address(remote.host, place.port) if _is_unspecified(place.host) else str(place)
        for place in advertised
        if not (_is_unspecified(place.host) and (remote.relay or place.relay))
    ]
    loopback = is_loopback(remote.host)
    return merge_addresses(
        text for text in (*proved, *stated) if sane_address(text, loopback=loopback)
    )


def _is_unspecified(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
