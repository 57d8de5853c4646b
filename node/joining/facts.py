"""What a node was told when it joined: what people call the swarm, and whom to ask first.

Problem: the addresses that a newcomer is given belong into no configuration that a person writes, and the daemon needs them before it
knows anybody. Idea: a small file of its own, `swarm.json`. It holds no secret, nothing in it is believed, and without it the node still
works; the addresses of the configuration come first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import msgspec

from node.errors import NodedError
from node.schema import Config
from transport.address import Address
from transport.durable import replace_file
from transport.errors import TransportError

__all__ = ["SwarmFacts", "load_facts", "store_facts", "with_known_members"]

MAX_FILE_BYTES: Final = 65536
MAX_BOOTSTRAP: Final = 16


class SwarmFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The file's content."""

    name: Annotated[str, msgspec.Meta(max_length=64)] = ""
    """What people call the swarm."""
    bootstrap: tuple[str, ...] = ()
    """Members' addresses."""


def load_facts(path: Path) -> SwarmFacts:
    """What is in the file; nothing if it is not there or makes no sense."""
    try:
        with path.open("rb") as file:
            facts = msgspec.json.decode(file.read(MAX_FILE_BYTES), type=SwarmFacts)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return SwarmFacts()
    return msgspec.structs.replace(
        facts,
        name=facts.name if facts.name.isprintable() else "",
        bootstrap=tuple(text for text in facts.bootstrap if _usable(text))[:MAX_BOOTSTRAP],
    )


def with_known_members(config: Config) -> Config:
    """The configuration with the members of the node's facts behind its own bootstrap addresses."""
    known = load_facts(config.paths.swarm_facts).bootstrap
    merged = tuple(dict.fromkeys([*config.network.bootstrap, *known]))
    network = msgspec.structs.replace(config.network, bootstrap=merged)
    return msgspec.structs.replace(config, network=network)


def store_facts(path: Path, facts: SwarmFacts) -> None:
    """Write the file whole.

    Raises:
        NodedError: the disk is full, or the like.
    """
    try:
        replace_file(path, msgspec.json.format(msgspec.json.encode(facts)) + b"\n")
    except OSError as error:
        raise NodedError(
            f"cannot write {path}: {error.strerror or error}",
            hint="check the permissions and the free space of its directory",
        ) from error


def _usable(text: str) -> bool:
    try:
        address = Address.parse(text)
    except TransportError:
        return False
    return bool(address.port) and not address.is_wildcard
