"""What `noded join` does: from a pasted code to a node that is a member and starts.

Problem: anything may stop in between: the network, a full disk, Ctrl-C, the machine; and the code may work only once. Idea: the
identity is on the disk before the request leaves, so a second attempt is the same subject and gets the same certificate. What was
given is written in the order in which it is of use: the swarm's key, the certificate (from then on the node is a member), whom to ask
first, the configuration.

Invariants: a node is in one swarm: nothing of another swarm's is overwritten; a configuration that is there is kept; the code is in no
message.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import attrs
import trio

from node import keys
from node.config import parse_config
from node.errors import Refused, TimedOut, first_error
from node.initialise import prepare, write_config
from node.joining.asking import Ask, redeem
from node.joining.code import InviteCode
from node.joining.facts import SwarmFacts, store_facts
from node.joining.redeemer import Joined, Redeemer
from node.paths import NodePaths, ensure_private_dir, node_paths
from transport.address import Address
from transport.connect.dialer import dial
from transport.connect.door import ask_at_door
from transport.errors import ConnectFailed, PeerUnreachable
from transport.identity import Identity
from transport.network import RawStream
from transport.swarm import Swarm
from transport.tcp import TcpNetwork

__all__ = ["Entered", "enter"]

PATIENCE_S: Final = 60.0
MAX_CONFIG_BYTES: Final = 1 << 20


@attrs.frozen(kw_only=True)
class Entered:
    """What came of it, for the report."""

    config: Path
    config_kept: bool
    node_id: str
    swarm_id: str
    swarm_name: str
    role: str
    inviter: str
    expires_ms: int
    """When the certificate ends, milliseconds since 1970."""


def enter(
    config_path: Path,
    code_text: str,
    *,
    values: Mapping[str, Any],
    preset: str = "lan",
    patience_s: float | None = None,
    ask: Ask | None = None,
) -> Entered:
    """Become a member; blocks until it is decided.

    Args:
        config_path: where the configuration is or goes; its folder becomes the data directory.
        code_text: what was pasted.
        values: settings of a new configuration.
        preset: "local", "lan" or "wan", of a new configuration.
        patience_s: seconds for asking; None for a minute.
        ask: how to ask a member; over TCP by default.

    Raises:
        InvalidCode: the text is none; nothing was written.
        JoinRefused: the issuer said no; see its reason.
        PeerNotReachable: nobody at the code's addresses helps.
        TimedOut: it took longer than `patience_s`.
        Refused: this node is in another swarm.
        NodedError: a setting or a file is wrong.
    """
    code = InviteCode.parse(code_text)
    config_path = Path(os.path.abspath(config_path))  # noqa: PTH100 (keeps symbolic links)
    text = ""
    if config_kept := os.path.lexists(config_path):
        with config_path.open("rb") as file:
            config = parse_config(file.read(MAX_CONFIG_BYTES), path=config_path).config
    else:
        config, text = prepare(config_path, values=values, preset=preset)
    paths = node_paths(config.data_dir)
    _check_free(paths, code)
    ensure_private_dir(paths.data_dir)
    identity = keys.load_or_create_identity(paths.node_key)
    joined = _ask(code, identity, patience_s or PATIENCE_S, ask)
    _keep(paths, joined)
    if not config_kept:
        if joined.is_open:
            _, text = prepare(config_path, values={**values, "swarm.open": True}, preset=preset)
        write_config(config_path, text)
    leaf = joined.chain.leaf
    return Entered(
        config=config_path,
        config_kept=config_kept,
        node_id=str(identity.node_id),
        swarm_id=leaf.swarm_id.hex(),
        swarm_name=joined.grant.swarm_name if joined.grant.swarm_name.isprintable() else "",
        role=leaf.role,
        inviter=str(leaf.inviter),
        expires_ms=leaf.expires_at_ms,
    )


def _check_free(paths: NodePaths, code: InviteCode) -> None:
    if not os.path.lexists(paths.certificate):
        if os.path.lexists(paths.swarm_root):
            raise Refused(
                f"there is the root key of another swarm in {paths.data_dir}",
                hint="a node is in one swarm: use another --config folder",
            )
        return
    if keys.load_chain(paths.certificate).leaf.swarm_id != code.swarm_id:
        raise Refused(
            "this node is a member of another swarm",
            hint="leave that one first:  noded leave      or use another --config folder",
        )


def _ask(code: InviteCode, identity: Identity, patience_s: float, ask: Ask | None) -> Joined:
    async def main() -> Joined:
        redeemer = Redeemer(code, identity, os.urandom)
        how = ask or over_tcp(code.swarm_id, identity)
        with trio.move_on_after(patience_s):
            return await redeem(redeemer, code.addresses, how)
        tried = "; ".join(f"{address}: {why}" for address, why in redeemer.failures.items())
        raise TimedOut(
            f"no answer within {patience_s:g} s" + (f" ({tried})" if tried else ""),
            hint="the code stays good: try again, with a longer --timeout",
        )

    try:
        return trio.run(main)
    except BaseExceptionGroup as group:
        raise first_error(group) from None


def _keep(paths: NodePaths, joined: Joined) -> None:
    """Write what was given; each file whole, so that a repetition mends whatever was cut short."""
    root = joined.chain.issuers[0]
    swarm = Swarm.open_to_all(root) if joined.is_open else Swarm(joined.grant.swarm_secret, root)
    keys.replace_swarm(paths.swarm_key, swarm)
    keys.store_chain(paths.certificate, joined.chain)
    name = joined.grant.swarm_name if joined.grant.swarm_name.isprintable() else ""
    store_facts(paths.swarm_facts, SwarmFacts(name=name, bootstrap=joined.grant.bootstrap))


def over_tcp(swarm_id: bytes, identity: Identity) -> Ask:
    """How a newcomer asks a member over the network: at its door."""
    network = TcpNetwork()

    async def ask(address: Address, request: bytes) -> bytes:
        async def establish(raw: RawStream, _address: Address, _commit: object) -> bytes:
            return await ask_at_door(raw, swarm_id, identity, request, random_bytes=os.urandom)

        try:
            return await dial(network, [address], establish, lambda _answer: None)
        except PeerUnreachable as error:
            raise ConnectFailed("; ".join(why for _, why in error.attempts) or str(error)) from None

    return ask
