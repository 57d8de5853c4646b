"""What `noded init` does: a data directory with a configuration, an identity and a swarm key.

Problem: the first minute decides. Afterwards there has to be a node that starts, and one line to paste
on the next machine; and a second `init` in the same place must not cost anybody their identity.

Idea: keys first, configuration last, so the configuration's existence *means* initialised. Keys that are
there already are kept: an interrupted `init` is simply repeated. The join line names an address that
others can reach, never loopback, unless the node was made for this machine alone.

Invariants: nothing is overwritten without `force`, keys never; the swarm key is printed in the join line
and nowhere else.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs

from node import keys
from node.config import PRESETS, parse_config
from node.config_text import render_config
from node.errors import ConfigError, ExitCode, NodedError, Refused
from node.paths import ensure_private_dir, node_paths
from node.schema import DEFAULT_PORT
from transport.address import Address
from transport.errors import TransportError
from transport.swarm import Swarm

__all__ = ["Initialised", "initialise", "join_line", "private_host"]

_NOT_DIALLED: Final = frozenset({"0.0.0.0", "::", ""})  # noqa: S104 (compared with, not listened on)


@attrs.frozen(kw_only=True)
class Initialised:
    """What `noded init` made, for the report to the person."""

    config: Path
    node_id: str
    swarm_id: str
    created: Sequence[str]
    """Names of the files that are new."""
    kept: Sequence[str]
    """Names of the key files that were there before."""
    join_line: str
    """What to run on another machine."""
    join_address: str
    """The address in it; "" if none is known that others could reach."""


def initialise(
    config_path: Path,
    *,
    values: Mapping[str, Any],
    preset: str = "lan",
    swarm_key: str = "",
    own_host: str = "",
    force: bool = False,
) -> Initialised:
    """Make the files of a new node.

    Args:
        config_path: where the configuration goes; its folder becomes the data directory.
        values: settings, `{"network.bootstrap": [...]}`; they win over the preset's.
        preset: "local", "lan" or "wan".
        swarm_key: the key of the swarm to join, as another node printed it; "" makes a new swarm.
        own_host: this machine's address as others see it, "" if unknown.
        force: replace the configuration (never the keys).

    Raises:
        NodedError: already initialised; cannot write.
        ConfigError: a setting is wrong; nothing was written.
        Refused: a key file is open to others, or belongs to another swarm.
    """
    config_path = Path(os.path.abspath(config_path))  # noqa: PTH100 (keeps symbolic links)
    if os.path.lexists(config_path) and not force:
        raise NodedError(
            f"this node is set up already: {config_path}",
            hint="start it with:  noded run      change it with an editor, "
            "or write a fresh configuration with --force (keys are kept)",
        )
    settings = {**PRESETS[preset], **values}
    text = render_config(settings)
    config = parse_config(text.encode(), path=config_path).config
    swarm = _parse_swarm(swarm_key) if swarm_key else None
    if swarm is not None and not config.network.bootstrap:
        raise ConfigError(
            "a node that joins a swarm needs an address to ask first",
            key="network.bootstrap",
            hint="add:  --bootstrap HOST:PORT  (the join line of the other node has it)",
        )
    paths = node_paths(config.data_dir)
    if swarm is None and config.network.bootstrap and not os.path.lexists(paths.swarm_key):
        raise ConfigError(
            "an address to ask first is given, but not the key of its swarm",
            key="network.bootstrap",
            hint="add:  --swarm KEY  (the join line of the other node has it)"
            "      or leave --bootstrap out to make a new swarm",
        )
    ensure_private_dir(paths.data_dir)
    created: list[str] = []
    kept: list[str] = []

    had_swarm = os.path.lexists(paths.swarm_key)
    if had_swarm:
        known = keys.load_swarm(paths.swarm_key)
        if swarm is not None and swarm.key != known.key:
            raise Refused(
                f"{paths.swarm_key} holds the key of another swarm",
                hint="a node is in one swarm: use another --config folder, "
                "or move that key away yourself",
            )
        swarm = known
    else:
        swarm = swarm or Swarm.generate(os.urandom)
        keys.create_swarm(paths.swarm_key, swarm)
    (kept if had_swarm else created).append(paths.swarm_key.name)

    had_identity = os.path.lexists(paths.node_key)
    identity = keys.load_or_create_identity(paths.node_key)
    (kept if had_identity else created).append(paths.node_key.name)

    _write_config(config_path, text, force=force)
    created.append(config_path.name)
    address = _join_address(config.network.advertise, config.network.listen, preset, own_host)
    return Initialised(
        config=config_path,
        node_id=str(identity.node_id),
        swarm_id=swarm.id.hex(),
        created=created,
        kept=kept,
        join_line=join_line(
            swarm.key_text,
            address or f"HOST:{_first_port(config.network.listen)}",
            "" if config.run is None else config.run.name,
            own_trainer=not config.trainer.auto,
        ),
        join_address=address,
    )


def join_line(swarm_key: str, address: str, run: str = "", *, own_trainer: bool = False) -> str:
    """The command that makes another machine's node join, and take part in the same run.

    `own_trainer`: training is left to a script, there as here.
    """
    line = f"noded init --swarm {swarm_key} --bootstrap {address}"
    if run:
        line += f" --run {run}"
    return f"{line} --set trainer.auto=false" if run and own_trainer else line


def _first_port(listen: Sequence[str]) -> int:
    """The port to put into a line whose host only a person knows."""
    ports = [port for text in listen if (port := Address.parse(text).port)]
    return ports[0] if ports else DEFAULT_PORT


def private_host(address: str) -> bool:
    """Whether an address is reachable from its own network only."""
    import ipaddress

    try:
        return ipaddress.ip_address(Address.parse(address).host.partition("%")[0]).is_private
    except (TransportError, ValueError):
        return False


def _join_address(
    advertise: Sequence[str], listen: Sequence[str], preset: str, own_host: str
) -> str:
    """The best address to tell another machine, "" if there is none.

    Loopback is an answer only for a node that was made for this machine alone: a join line with
    127.0.0.1 in it works where it is tried first, and nowhere else.
    """
    for text in (*advertise, *listen):
        address = Address.parse(text)
        if address.host in _NOT_DIALLED:
            if not own_host or address.port == 0:
                continue
            address = Address(own_host, address.port)
        if address.port and (preset == "local" or not address.is_loopback):
            return str(address)
    return ""


def _parse_swarm(text: str) -> Swarm:
    try:
        return Swarm.parse(text.strip())
    except TransportError as error:
        raise NodedError(str(error), hint=error.hint, exit_code=ExitCode.USAGE) from None


def _write_config(path: Path, text: str, *, force: bool) -> None:
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
