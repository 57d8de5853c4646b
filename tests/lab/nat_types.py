"""The kinds of NAT as rules of the Linux packet filter, one nft file per router.

What each kind does is said in RFC 4787 and RFC 5382, and in `transport.simulated.nat_model`, whose names for
the kinds are used here; `tests/lab/test_model_agrees.py` holds the two against each other.

* Mapping. MASQUERADE keeps the inside port, so every far side sees the same one (endpoint-
  independent); `fully-random` takes another for every connection (symmetric).
* Filter. Linux lets in what belongs to a known connection: port-restricted. For the open kinds a
  map remembers which inside host last used which port on the way out, and DNAT by that map lets
  strangers in: all of them (full cone), or those whose address is in the set of hosts that were
  sent something (address-restricted).
* What strangers get. Dropped before the router itself sees it; or not dropped, and then the
  router's own stack answers with RST. Such a SYN of a stranger also takes up the pair of addresses
  for its session, as it does in a router out of the shop.
"""

from enum import StrEnum

WAN = "wan"
LAN = "lan"

MAPPING_S = 300


class NatType(StrEnum):
    """How a home is connected."""

    OPEN = "open"
    """A public address of its own, no filter."""
    FULL = "full-cone"
    ADDRESS = "address-restricted"
    PORT = "port-restricted"
    PORT_RST = "port-restricted-rst"
    SYMMETRIC = "symmetric"
    DOUBLE = "double"
    """Two port-restricted ones, one behind the other: a home router behind a carrier's."""
    HAIRPIN = "hairpin"
    """Full cone, and hosts behind it reach each other at its public address."""
    IPV6 = "ipv6-firewall"
    """Symmetric for IPv4; IPv6 addresses of its own behind a firewall that lets answers in."""
    UPNP = "upnp"
    """Port-restricted, with a miniupnpd that opens ports by UPnP, NAT-PMP and PCP."""


INVITING = frozenset({NatType.OPEN, NatType.FULL, NatType.HAIRPIN, NatType.UPNP})
"""Where a stranger gets in (with UPnP: once the node has asked for it)."""

PUNCHABLE = frozenset({NatType.ADDRESS, NatType.PORT, NatType.PORT_RST, NatType.DOUBLE})
"""Where both sides have to dial, and the port is known beforehand."""

UNPREDICTABLE = frozenset({NatType.SYMMETRIC, NatType.IPV6})
"""Where nobody knows the port of the next connection (of IPv4)."""


def direct_possible(a: NatType, b: NatType) -> bool:
    """Whether two nodes in different homes can have a direct connection: what was measured."""
    if {a, b} == {NatType.IPV6}:
        return True
    if a in INVITING or b in INVITING:
        return True
    if a in UNPREDICTABLE or b in UNPREDICTABLE:
        # An address-restricted NAT does not mind the port: the other side dials in (reversal).
        return NatType.ADDRESS in (a, b)
    return True


def rules(kind: NatType, public_ip: str, *, isolated: bool = False) -> str:
    """The nft file of a router between `lan` (any interface with that prefix) and `wan`.

    Args:
        kind: one that is a single router; `DOUBLE` is made of two.
        public_ip: its IPv4 address at `wan`.
        isolated: whether hosts on different interfaces of the LAN are kept apart.
    """
    cone = kind in (NatType.FULL, NatType.HAIRPIN, NatType.ADDRESS)
    symmetric = kind in (NatType.SYMMETRIC, NatType.IPV6)
    inside = f'iifname "{LAN}*"'
    forward = [f'{inside} oifname "{WAN}" accept']
    early, prerouting, postrouting, entry = [], [], [], []
    if not isolated:
        forward.append(f'{inside} oifname "{LAN}*" accept')
    if cone:
        early = [
            (
                f'oifname "{WAN}" meta nfproto ipv4 meta l4proto tcp '
                "update @owners { tcp sport : ip saddr }"
            ),
            f'oifname "{WAN}" meta nfproto ipv4 update @seen {{ ip daddr }}',
        ]
        known = f'iifname "{WAN}" ip daddr {public_ip}'
        if kind == NatType.ADDRESS:
            known += " ip saddr @seen"
        prerouting.append(f"{known} meta l4proto tcp dnat ip to tcp dport map @owners")
        forward.append("ct status dnat accept")
    if kind == NatType.HAIRPIN:
        prerouting.append(
            f"{inside} ip daddr {public_ip} meta l4proto tcp dnat ip to tcp dport map @owners"
        )
        postrouting.append(f'{inside} oifname "{LAN}*" ct status dnat snat ip to {public_ip}')
    if kind == NatType.UPNP:
        forward.append("jump miniupnpd")
        forward.append(f'iifname "{WAN}" ct status dnat accept')
        prerouting.append("jump prerouting_miniupnpd")
        postrouting.append("jump postrouting_miniupnpd")
    forward.append("ct state established,related accept")
    postrouting.append(
        f'oifname "{WAN}" meta nfproto ipv4 masquerade{" fully-random" if symmetric else ""}'
    )
    if kind != NatType.PORT_RST:
        entry = [
            "ct state established,related accept",
            # Neighbour discovery is how anybody finds the router at all.
            f'iifname "{WAN}" meta l4proto != ipv6-icmp drop',
        ]
    return _file(early, prerouting, forward, entry, postrouting)


def _file(
    early: list[str],
    prerouting: list[str],
    forward: list[str],
    entry: list[str],
    postrouting: list[str],
) -> str:
    chains = {
        # Before conntrack has translated the source, so the inside address is still to be seen.
        "early": ("filter hook forward priority -10; policy accept;", early),
        "prerouting": ("nat hook prerouting priority -100; policy accept;", prerouting),
        "forward": ("filter hook forward priority 0; policy drop;", forward),
        "entry": ("filter hook input priority 0; policy accept;", entry),
        "postrouting": ("nat hook postrouting priority 100; policy accept;", postrouting),
    }
    own = ("miniupnpd", "prerouting_miniupnpd", "postrouting_miniupnpd")
    lines = [
        "table inet filter {",
        *(
            (
                f"map owners {{ type inet_service : ipv4_addr; size 65535; "
                f"flags dynamic,timeout; timeout {MAPPING_S}s; }}"
            ),
            (
                f"set seen {{ type ipv4_addr; size 65535; "
                f"flags dynamic,timeout; timeout {MAPPING_S}s; }}"
            ),
        ),
        *(f"chain {name} {{ }}" for name in own),
    ]
    for name, (hook, body) in chains.items():
        lines += [f"chain {name} {{", f"type {hook}", *body, "}"]
    return "\n".join([*lines, "}", ""])


NOTHING_PASSES = """\
table inet power {
chain forward {
type filter hook forward priority -200; policy drop;
}
}
"""
"""Beside the rules: what was forwarded is dropped, and the hosts do not learn why."""

ALL_PASSES = "table inet power { }\ndelete table inet power\n"

UPNP_CONFIG = """\
ext_ifname={wan}
listening_ip={lan}
enable_natpmp=yes
enable_upnp=yes
secure_mode=yes
system_uptime=yes
min_lifetime=1
notify_interval=60
uuid=5da9dd08-8b86-4fc3-a778-6accc1ff5667
lease_file={folder}/leases
minissdpdsocket={folder}/no-such-socket
allow 1024-65535 0.0.0.0/0 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
"""
