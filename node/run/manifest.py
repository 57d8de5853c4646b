"""What a run is: the one document that every member of it must hold byte for byte.

Problem: nodes that never spoke before have to train the same model with the same settings, and have
to notice before the first exchange when they would not.

Idea: a small frozen value, `RunManifest`. Its hash is the run's id: whoever changes one setting is
in another run. It holds choices, never code and never paths: `task` and `protocol` are names that
each node looks up among what its operator installed, and `task_hash` says which code exactly, so a
manifest that came from a peer can select code but cannot bring any (`node.blocks.gate` decides).

Invariants:
- The hash is taken over canonical JSON (sorted keys, shortest floats), so it does not depend on
  which encoder the manifest travelled through.
- Every field is bounded and validated on construction; decoding untrusted bytes raises
  `InvalidManifest` and nothing else.
"""

from __future__ import annotations

import hashlib
import math
import re
from typing import Any, Final

import msgspec

from node.errors import NodedError

__all__ = ["MAX_MANIFEST_BYTES", "InvalidManifest", "RunManifest", "Setting", "rounds_of"]

MAX_MANIFEST_BYTES: Final = 16 * 1024
"""Largest canonical form; a task needs dozens of settings, not thousands."""

_DOMAIN: Final = b"noded run manifest 1\0"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TASK: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._:-]{0,127}")
_HASH: Final = re.compile(r"([0-9a-f]{64})?")
_SETTING_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")

Setting = str | int | float | bool | None | list[str | int | float | bool]
"""One value of a settings table: a scalar or a list of scalars, as TOML and JSON both have them."""


class InvalidManifest(NodedError):
    """A run manifest is malformed or out of range; the message names the field."""


class RunManifest(msgspec.Struct, frozen=True, kw_only=True):
    """The settings that all members of a run share."""

    name: str
    """For people and for finding the run: letters, digits, `.`, `_`, `-`; at most 64."""
    task: str
    """Name of an installed task, or `module:Class` of one in the operator's own folder."""
    task_hash: str = ""
    """Id of the task's code in hexadecimal (see `node.blocks.tasks`); "" if the creator's daemon starts no trainer, and so names
    no code."""
    task_settings: dict[str, Setting] = msgspec.field(default_factory=dict)
    """Passed to the task, which refuses the ones it does not know."""
    protocol: str = "diloco"
    """Name of an installed protocol."""
    protocol_settings: dict[str, Setting] = msgspec.field(default_factory=dict)
    """Passed to the protocol, which refuses the ones it does not know."""
    every: int = 32
    """Local optimizer steps per round."""
    steps: int = 0
    """Total local optimizer steps per node; 0 means no end."""
    min_members: int = 1
    """Ready members that the first round waits for; later rounds follow the quorum."""
    quorum: str = "majority"
    """"majority": a minority part of a partition pauses; "any": every part goes on."""
    seed: int = 0
    """Initial parameters and the base of every node's data order."""
    created_by: str = ""
    """Printed node id of the creator; names a person to ask, proves nothing."""
    created_at: int = 0
    """Wall clock seconds since 1970; tells runs of the same name apart."""

    def __post_init__(self) -> None:
        _require(_NAME.fullmatch(self.name), f"name {self.name[:80]!r} is not a run name")
        _require(_TASK.fullmatch(self.task), f"task {self.task[:80]!r} is not a task name")
        _require(_HASH.fullmatch(self.task_hash), "task_hash is not 64 hexadecimal digits")
        _require(_NAME.fullmatch(self.protocol), f"protocol {self.protocol[:80]!r} is no name")
        _require(1 <= self.every <= 1_000_000, f"every must be 1 to 1,000,000, not {self.every}")
        _require(0 <= self.steps < 2**53, f"steps must be 0 (no end) or more, not {self.steps}")
        _require(
            1 <= self.min_members <= 256, f"min_members must be 1 to 256, not {self.min_members}"
        )
        _require(
            self.quorum in {"majority", "any"},
            f'quorum must be "majority" or "any", not {self.quorum[:80]!r}',
        )
        _require(0 <= self.seed < 2**53, f"seed must be 0 to 2^53, not {self.seed}")
        _require(len(self.created_by) <= 128, "created_by is longer than 128 characters")
        _require(0 <= self.created_at < 2**53, "created_at is not a time")
        _check_settings("task_settings", self.task_settings)
        _check_settings("protocol_settings", self.protocol_settings)
        _require(
            len(self.canonical()) <= MAX_MANIFEST_BYTES,
            f"the manifest is larger than {MAX_MANIFEST_BYTES} bytes",
        )

    def canonical(self) -> bytes:
        """The JSON form that is hashed: keys sorted, no white space."""
        plain = self.to_map()
        if not self.task_hash:
            del plain["task_hash"]  # runs that were made before there was one keep their id
        return msgspec.json.encode(plain, order="sorted")

    @property
    def hash(self) -> bytes:
        """The run's id, 32 bytes."""
        return hashlib.sha256(_DOMAIN + self.canonical()).digest()

    @property
    def rounds(self) -> int:
        """Rounds until the end; 0 means no end."""
        return rounds_of(self.steps, self.every)

    def step_after(self, rounds: int) -> int:
        """Local steps per node that `rounds` completed rounds stand for."""
        step = rounds * self.every
        return min(step, self.steps) if self.steps else step

    @classmethod
    def from_json(cls, data: bytes) -> RunManifest:
        """Decode a manifest; raises `InvalidManifest` whatever the bytes are."""
        _require(len(data) <= MAX_MANIFEST_BYTES, "the manifest is too large")
        try:
            return msgspec.json.decode(data, type=cls)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise InvalidManifest(f"not a run manifest: {error}") from None

    @classmethod
    def from_map(cls, value: object) -> RunManifest:
        """Convert decoded builtins (a msgpack map); raises `InvalidManifest` only."""
        try:
            return msgspec.convert(value, cls)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise InvalidManifest(f"not a run manifest: {error}") from None

    def to_map(self) -> dict[str, Any]:
        """Builtins for a msgpack map."""
        built: dict[str, Any] = msgspec.to_builtins(self)
        return built


def rounds_of(steps: int, every: int) -> int:
    """Rounds that `steps` local steps take (the last one may be shorter); 0 means no end."""
    return -(-steps // every)


def _check_settings(field: str, settings: dict[str, Setting]) -> None:
    _require(len(settings) <= 256, f"{field} has more than 256 entries")
    for key, value in settings.items():
        _require(_SETTING_NAME.fullmatch(key), f"{field}: {key[:80]!r} is not a setting's name")
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, float):
                # JSON has no NaN, and a setting that differs from itself cannot be agreed on.
                _require(math.isfinite(item), f"{field}.{key} is not a finite number")
            elif isinstance(item, int):
                _require(abs(item) < 2**63, f"{field}.{key} does not fit 64 bits")


def _require(condition: object, message: str) -> None:
    if not condition:
        # msgspec turns a ValueError of __post_init__ into its ValidationError with the path.
        raise _InvalidField(message)


class _InvalidField(InvalidManifest, ValueError):
    """Is a ValueError so that msgspec recognises it while decoding."""
