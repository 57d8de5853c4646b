"""What `noded init` does: a data directory with a configuration, an identity, and a place in a swarm.

Problem: the first minute decides. Afterwards there has to be a node that starts; and a second `init` in the same place must not
cost anybody their identity, let alone the swarm's root key.

Idea: keys first, configuration last, so the configuration's existence *means* initialised. Files that are there already are kept:
an interrupted `init` is simply repeated. A new swarm is a root key, a secret that keeps strangers out, and this node as its first
member, which may invite others. An open swarm (`swarm.open`) has no secret: who knows its name is let in as a stranger. With the root key of another node's swarm (`root_folder`) the node becomes a member of that one
directly, which is for containers and for whoever holds that key; people join with a code (`node.joining.enter`).

Invariants: nothing is overwritten without `force`, keys never.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs

from node import keys
from node.config import parse_config
from node.config_text import render_config
from node.errors import ConfigError, NodedError, Refused, UsageError
from node.joining.facts import SwarmFacts, load_facts, store_facts
from node.paths import NodePaths, ensure_private_dir, node_paths
from node.schema import PRESETS, Config
from transport.errors import TransportError
from transport.identity import Identity
from transport.swarm import Swarm

__all__ = ["Initialised", "initialise", "prepare", "write_config"]

MAX_SWARM_NAME: Final = 64


@attrs.frozen(kw_only=True)
class Initialised:
    """What `noded init` made, for the report to the person."""

    config: Path
    node_id: str
    swarm_id: str
    swarm_name: str
    created: Sequence[str]
    """Names of the files that are new."""
    kept: Sequence[str]
    """Names of the key files that were there before."""
    has_root: bool
    """Whether the swarm's root key lies here."""
    may_invite: bool
    """Whether this node may make invites."""
    open_name: str
    """What others need to enter an open swarm; "" for one that invites."""


def initialise(
    config_path: Path,
    *,
    values: Mapping[str, Any],
    preset: str = "lan",
    swarm_name: str = "",
    root_folder: Path | None = None,
    open_name: str = "",
    force: bool = False,
) -> Initialised:
    """Make the files of a new node.

    Args:
        config_path: where the configuration goes; its folder becomes the data directory.
        values: settings, `{"network.bootstrap": [...]}`; they win over the preset's.
        preset: "local", "lan" or "wan".
        swarm_name: what people call a new swarm; "" for the node's own name.
        root_folder: a folder with `swarm-root.key` and `swarm.key` of a swarm to be a member of; None makes a new one.
        open_name: the name of an open swarm to enter (`no-...`); "" makes a new one, or none.
        force: replace the configuration (never the keys).

    Raises:
        NodedError: already initialised; cannot write.
        ConfigError: a setting is wrong; nothing was written.
        Refused: a key file is open to others, or belongs to another swarm.
    """
    config_path = Path(os.path.abspath(config_path))  # noqa: PTH100 (keeps symbolic links)
    if open_name:
        values = {**values, "swarm.open": True}
    config, text = prepare(config_path, values=values, preset=preset, force=force)
    name = _checked_name(swarm_name)
    paths = node_paths(config.data_dir)
    if open_name:
        return _enter_open(config_path, config, text, _parse_open(open_name), force=force)
    if os.path.lexists(paths.certificate) and not os.path.lexists(paths.swarm_root):
        _check_joined(paths, root_folder)
    root, swarm = _given(root_folder) if root_folder is not None else (None, None)
    if root is None and config.network.bootstrap and not os.path.lexists(paths.certificate):
        raise ConfigError(
            "an address to ask first is given, but this makes a new swarm, which has nobody to ask",
            key="network.bootstrap",
            hint="to enter the swarm of that node run there:  noded invite      and here:  noded join CODE",
        )
    ensure_private_dir(paths.data_dir)
    kept = [path.name for path in _key_files(paths) if os.path.lexists(path)]

    keys.load_or_create_identity(paths.node_key)
    if os.path.lexists(paths.certificate) and root is None:
        chain = keys.load_chain(paths.certificate)  # a second init of a member, or one cut short
    else:
        may_invite = root is None
        root = root or _own_root(paths.swarm_root)
        chain = keys.certify_directly(paths, root, may_invite=may_invite, is_open=config.swarm.open)
    if swarm is None and config.swarm.open:
        swarm = Swarm.open_to_all(chain.issuers[0])
    _keep_swarm_key(paths, swarm, chain.issuers[0])
    facts = load_facts(paths.swarm_facts)
    if not facts.name:
        name = name or ("" if root_folder is not None else config.node.name or _host_name())
        facts = SwarmFacts(name=name, bootstrap=facts.bootstrap)
        store_facts(paths.swarm_facts, facts)
    write_config(config_path, text, force=force)

    created = [path.name for path in (*_key_files(paths), config_path) if os.path.lexists(path)]
    return Initialised(
        config=config_path,
        node_id=str(chain.node_id),
        swarm_id=chain.leaf.swarm_id.hex(),
        swarm_name=facts.name,
        created=[each for each in created if each not in kept],
        kept=kept,
        has_root=os.path.lexists(paths.swarm_root),
        may_invite=chain.can_extend,
        open_name=swarm.key_text if swarm is not None and swarm.is_open else "",
    )


def _enter_open(
    config_path: Path, config: Config, text: str, swarm: Swarm, *, force: bool
) -> Initialised:
    """Make the files of a stranger in an open swarm: no certificate but its own, which the daemon makes."""
    paths = node_paths(config.data_dir)
    if not config.network.bootstrap:
        raise ConfigError(
            "a node that enters a swarm needs an address to ask first",
            key="network.bootstrap",
            hint="add:  --bootstrap HOST:PORT  of any node of that swarm",
        )
    if os.path.lexists(paths.certificate):
        raise Refused(
            "this node is a member of a swarm",
            hint="leave that one first:  noded leave      or use another --config folder",
        )
    ensure_private_dir(paths.data_dir)
    kept = [path.name for path in _key_files(paths) if os.path.lexists(path)]
    identity = keys.load_or_create_identity(paths.node_key)
    _keep_swarm_key(paths, swarm, swarm.root)
    write_config(config_path, text, force=force)
    created = (paths.node_key.name, paths.swarm_key.name, config_path.name)
    return Initialised(
        config=config_path,
        node_id=str(identity.node_id),
        swarm_id=swarm.id.hex(),
        swarm_name="",
        created=[name for name in created if name not in kept],
        kept=kept,
        has_root=False,
        may_invite=False,
        open_name=swarm.key_text,
    )


def _parse_open(text: str) -> Swarm:
    try:
        swarm = Swarm.parse(text)
    except TransportError as error:
        raise UsageError(str(error), hint=error.hint) from None
    if not swarm.is_open:
        raise UsageError(
            "that is the secret of a closed swarm, which nobody enters with it",
            hint="ask a member for a code:  noded invite      and here:  noded join CODE",
        )
    return swarm


def prepare(
    config_path: Path, *, values: Mapping[str, Any], preset: str, force: bool = False
) -> tuple[Config, str]:
    """The configuration of a new node and its text; nothing is written.

    Raises:
        NodedError: there is one already.
        ConfigError: a setting is wrong.
    """
    if os.path.lexists(config_path) and not force:
        raise NodedError(
            f"this node is set up already: {config_path}",
            hint="start it with:  noded run      or, if it is in no swarm:  noded join CODE\n"
            "change it with an editor, or write a fresh configuration with --force (keys are kept)",
        )
    text = render_config({**PRESETS[preset], **values})
    return parse_config(text.encode(), path=config_path).config, text


def write_config(path: Path, text: str, *, force: bool = False) -> None:
    """Write a configuration whole; only with `force` in place of another one.

    Raises:
        NodedError: it cannot be written, or is there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.chmod(0o600)
        if force:
            temporary.replace(path)
        else:
            os.link(temporary, path)  # unlike a rename, it never replaces
            temporary.unlink()
    except FileExistsError:
        temporary.unlink(missing_ok=True)
        raise NodedError(f"{path} appeared meanwhile", hint="run the command again") from None
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise NodedError(
            f"cannot write {path}: {error.strerror or error}",
            hint="name another file with --config",
        ) from error


def _key_files(paths: NodePaths) -> tuple[Path, ...]:
    return (paths.node_key, paths.swarm_root, paths.swarm_key, paths.certificate)


def _checked_name(name: str) -> str:
    if len(name) > MAX_SWARM_NAME or not name.isprintable():
        raise UsageError(f"a swarm's name has at most {MAX_SWARM_NAME} printable characters")
    return name


def _host_name() -> str:
    name = os.uname().nodename[:MAX_SWARM_NAME]
    return name if name.isprintable() else ""


def _own_root(path: Path) -> Identity:
    return keys.load_root(path) if os.path.lexists(path) else keys.create_root(path)


def _given(folder: Path) -> tuple[Identity, Swarm]:
    """Root key and secret of a swarm that somebody else has made."""
    return keys.load_root(folder / "swarm-root.key"), keys.load_swarm(folder / "swarm.key")


def _keep_swarm_key(paths: NodePaths, swarm: Swarm | None, root_public_key: bytes) -> None:
    if not os.path.lexists(paths.swarm_key):
        keys.create_swarm(paths.swarm_key, swarm or Swarm.generate(os.urandom, root_public_key))
    elif swarm is not None and keys.load_swarm(paths.swarm_key) != swarm:
        raise Refused(
            f"{paths.swarm_key} holds the key of another swarm",
            hint="a node is in one swarm: use another --config folder, or leave that swarm first",
        )


def _check_joined(paths: NodePaths, root_folder: Path | None) -> None:
    """A member of somebody else's swarm keeps its place; `init` only writes its configuration."""
    if not os.path.lexists(paths.swarm_key) and root_folder is None:
        raise NodedError(
            f"there is a certificate in {paths.data_dir}, but not the swarm's key",
            hint="join again:  noded join CODE      or start over in another --config folder",
        )
