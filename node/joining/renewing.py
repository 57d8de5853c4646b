"""A certificate that the swarm's root key gave directly, made anew by that key: it has no member above it that could be asked.

Everything else about the member stays as it is: its role, whether it may invite, who invited it. Members below it keep their chains, which
hold the old certificate, until that one ends; they renew theirs by asking this node, once its daemon runs with the new one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from node import keys
from node.errors import Refused
from node.paths import NodePaths
from node.wall_clock import wall_ms
from transport.trust.chain import YEAR_MS, Chain, certify_by_root, is_root

__all__ = ["renew_by_root"]


def renew_by_root(
    paths: NodePaths,
    root_file: Path | None = None,
    *,
    is_open: bool = False,
    lifetime_ms: int = YEAR_MS,
    random_bytes: Callable[[int], bytes] = os.urandom,
    now_ms: int | None = None,
) -> Chain:
    """Replace this node's certificate by one that begins now; returns it, stored.

    Args:
        paths: of the node.
        root_file: the swarm's root key; by default the one in the node's data directory.
        is_open: whether the swarm is an open one.
        lifetime_ms: for how long from now, in milliseconds.
        random_bytes: source of the serial.
        now_ms: milliseconds since 1970; the clock's by default.

    Raises:
        Refused: that key is another swarm's root, or this node's certificate was given by a member, who renews it by itself.
        NodedError: a file is missing, damaged or cannot be written; the old certificate is still there.
    """
    root = keys.load_root(root_file or paths.swarm_root)
    known = keys.load_chain(paths.certificate)
    own = known.leaf
    if not is_root(root.public_key, own.swarm_id):
        raise Refused(
            f"{root_file or paths.swarm_root} is the root key of another swarm",
            hint="name the right one:  noded renew --root FILE",
        )
    if len(known.certificates) > 1:
        raise Refused(
            "this node's certificate was given by a member, who renews it as soon as both are connected",
            hint="let that member's node run; or ask a member for an invite:  noded join CODE",
        )
    chain = certify_by_root(
        root,
        subject=own.subject,
        role=own.role,
        serial=random_bytes(16),
        now_ms=wall_ms() if now_ms is None else now_ms,
        lifetime_ms=lifetime_ms,
        may_invite=own.may_invite,
        invite=own.invite,
        inviter=own.inviter,
        is_open=is_open,
    )
    keys.store_chain(paths.certificate, chain)
    return chain
