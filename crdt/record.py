"""What the fields of a run's document say, as frozen values, and their form on the wire.

Wire, strict (lists of plain builtins, the value of an entry; see `entry`):

    member       [name, [address, ...], role, status, model, reason]
    progress     [round, step, loss or None, tokens, tokens_per_s, state_sha256]
    metrics      [[name, value], ...] ascending by name
    site         text: nodes with one name are near each other
    links        [[destination, microseconds per MiB, transfers], ...] ascending by destination
    checkpoints  [[step, round, sha256], ...] falling by step: what its writer holds itself
    run          [name, manifest hash, task, protocol, [[setting, value], ...] ascending]
    revoked      [[writer, since_ms, reason], ...] ascending by writer
"""

import math
from typing import Literal, TypeAlias, cast

import attrs

from crdt.errors import StateTooLarge
from crdt.register import MaxRegister
from crdt.wire import (
    Scalar,
    Wire,
    as_choice,
    as_float,
    as_hash,
    as_int,
    as_list,
    as_row,
    as_scalar,
    as_text,
    as_writer,
    check_ascending,
)

MAX_NAME_CHARS = 64
MAX_ADDRESSES = 16
MAX_ADDRESS_CHARS = 264
"""The longest host name (253), brackets, colon and port."""
MAX_REASON_CHARS = 256
MAX_METRICS = 16
MAX_LINKS = 48
"""Measured by one member; what fits into an entry."""
MAX_CHECKPOINTS = 4
"""Of one holder: the newest ones, which is what anybody fetches."""
MAX_SETTINGS = 48
MAX_SETTING_CHARS = 64
MAX_REVOKED = 48
"""In one writer's list; what fits into an entry. The list in force is the union of all."""

Role: TypeAlias = Literal["trainer", "observer", "relay"]
Status: TypeAlias = Literal["active", "left"]
ROLES = ("trainer", "observer", "relay")
STATUSES = ("active", "left")


def _name(value: Wire) -> str:
    return as_text(value, "member name", most=MAX_NAME_CHARS)


def _addresses(value: Wire) -> tuple[str, ...]:
    return tuple(
        as_text(address, "member address", least=1, most=MAX_ADDRESS_CHARS)
        for address in as_list(value, "member addresses", most=MAX_ADDRESSES)
    )


def _role(value: Wire) -> Role:
    return cast("Role", as_choice(value, "member role", ROLES))


def _status(value: Wire) -> Status:
    return cast("Status", as_choice(value, "member status", STATUSES))


def _model(value: Wire) -> bytes:
    return as_hash(value, "member model")


def _reason(value: Wire) -> str:
    return as_text(value, "reason", most=MAX_REASON_CHARS)


def _count(value: Wire) -> int:
    return as_int(value, "count")


def _loss(value: Wire) -> float | None:
    # A diverged run must still be able to report its progress.
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return as_float(float(value) if type(value) is int else value, "loss")


def _rate(value: Wire) -> float:
    loss = _loss(value)
    return 0.0 if loss is None else loss


def _state_hash(value: Wire) -> bytes:
    return as_hash(value, "state hash")


def _file_hash(value: Wire) -> bytes:
    return as_hash(value, "checkpoint hash", optional=False)


def _holder(value: Wire) -> bytes:
    return as_writer(value, "checkpoint holder")


def _manifest_hash(value: Wire) -> bytes:
    return as_hash(value, "manifest hash", optional=False)


def _setting_text(value: Wire) -> str:
    return as_text(value, "setting", least=1, most=128)


def _metrics(value: Wire) -> tuple[tuple[str, float], ...]:
    pairs = {
        as_text(name, "metric name", least=1, most=MAX_NAME_CHARS): float(number)
        for name, number in value
    }
    finite = {name: number for name, number in pairs.items() if math.isfinite(number)}
    if len(finite) > MAX_METRICS:
        raise StateTooLarge(f"metrics: at most {MAX_METRICS} are allowed")
    return tuple(sorted(finite.items()))


def _settings(value: Wire) -> tuple[tuple[str, Scalar], ...]:
    pairs = {
        _setting_text(name): as_scalar(scalar, "setting", most=4 * MAX_SETTING_CHARS)
        for name, scalar in value
    }
    if len(pairs) > MAX_SETTINGS:
        raise StateTooLarge(f"settings: at most {MAX_SETTINGS} are allowed")
    return tuple(sorted(pairs.items(), key=lambda pair: pair[0]))


@attrs.frozen
class MemberInfo:
    """A member of the run's roster. Construction raises CrdtError beyond the bounds above."""

    name: str = attrs.field(converter=_name)
    addresses: tuple[str, ...] = attrs.field(converter=_addresses)
    role: Role = attrs.field(converter=_role, default="trainer")
    status: Status = attrs.field(converter=_status, default="active")
    model: bytes = attrs.field(converter=_model, default=b"")
    """Hash of the model's parameter names and shapes; empty while no trainer is attached."""
    reason: str = attrs.field(converter=_reason, default="")
    """Why it left."""

    def to_wire(self) -> Wire:
        """Plain builtins; `from_wire` takes them back."""
        addresses = list(self.addresses)
        return [self.name, addresses, self.role, self.status, self.model, self.reason]

    @classmethod
    def from_wire(cls, untrusted: Wire) -> "MemberInfo":
        """Raises: CrdtError."""
        return cls(*as_row(untrusted, "member", length=6))


@attrs.frozen
class Progress:
    """How far a member has come. Construction raises CrdtError for values that are not counts."""

    round: int = attrs.field(converter=_count)
    """Rounds completed."""
    step: int = attrs.field(converter=_count)
    """Local steps done in the run."""
    loss: float | None = attrs.field(converter=_loss)
    """None where there is none, and where it is not a finite number."""
    tokens: int = attrs.field(converter=_count)
    """Tokens this member has trained on, in total."""
    tokens_per_s: float = attrs.field(converter=_rate)
    state_sha256: bytes = attrs.field(converter=_state_hash, default=b"")
    """Hash of the consensus state after `round`; empty where unknown."""

    def to_wire(self) -> Wire:
        """Plain builtins; `from_wire` takes them back."""
        return [
            self.round,
            self.step,
            self.loss,
            self.tokens,
            self.tokens_per_s,
            self.state_sha256,
        ]

    @classmethod
    def from_wire(cls, untrusted: Wire) -> "Progress":
        """Raises: CrdtError."""
        row = as_row(untrusted, "progress", length=6)
        if row[2] is not None:
            as_float(row[2], "loss")
        as_float(row[4], "tokens per second")
        return cls(*row)


@attrs.frozen
class Metrics:
    """Named figures of a member's training, beyond its progress."""

    values: tuple[tuple[str, float], ...] = attrs.field(converter=_metrics)

    def to_wire(self) -> Wire:
        """Plain builtins; `from_wire` takes them back."""
        return [list(pair) for pair in self.values]

    @classmethod
    def from_wire(cls, untrusted: Wire) -> "Metrics":
        """Raises: CrdtError."""
        rows = [as_row(row, "metric", length=2) for row in as_list(untrusted, "metrics", most=16)]
        for row in rows:
            as_float(row[1], "metric")
        check_ascending(
            (as_text(row[0], "metric name", most=MAX_NAME_CHARS) for row in rows), "metrics"
        )
        return cls(tuple((row[0], row[1]) for row in rows))


@attrs.frozen
class LinkTime:
    """What a member measured of the link from itself to `destination`."""

    destination: bytes = attrs.field(converter=_holder)
    us_per_mib: int = attrs.field(converter=_count)
    """Microseconds that the latest MiB took, while there was something to send."""
    transfers: int = attrs.field(converter=_count)
    """How many transfers were measured so far: tells a new measurement from an old one."""

    def to_wire(self) -> Wire:
        """Plain builtins; `from_wire` takes them back."""
        return [self.destination, self.us_per_mib, self.transfers]


def site_from_wire(untrusted: Wire) -> str:
    """Read the name of a site. Raises: CrdtError."""
    return as_text(untrusted, "site", least=1, most=MAX_NAME_CHARS)


def links_from_wire(untrusted: Wire) -> tuple[LinkTime, ...]:
    """Read one member's list. Raises: CrdtError."""
    rows = as_list(untrusted, "links", most=MAX_LINKS)
    found = tuple(LinkTime(*as_row(row, "link", length=3)) for row in rows)
    check_ascending((each.destination for each in found), "links")
    return found


@attrs.frozen
class CheckpointInfo:
    """A verified checkpoint that some member holds."""

    step: int = attrs.field(converter=_count)
    round: int = attrs.field(converter=_count)
    sha256: bytes = attrs.field(converter=_file_hash)
    holder: bytes = attrs.field(converter=_holder)
    """Node id of the member that has the file and says so."""

    def to_wire(self) -> Wire:
        """Plain builtins, without the holder: that is who signed it."""
        return [self.step, self.round, self.sha256]

    @property
    def register(self) -> MaxRegister:
        """As an entry of a max register, ranked by step."""
        return MaxRegister(self.step, (self.round, self.sha256, self.holder))

    @classmethod
    def of_register(cls, register: MaxRegister) -> "CheckpointInfo | None":
        """The checkpoint that a join of such entries stands for."""
        if register.rank < 0:
            return None
        round_, sha256, holder = register.fields
        return cls(register.rank, round_, sha256, holder)


def checkpoints_from_wire(untrusted: Wire, holder: bytes) -> tuple[CheckpointInfo, ...]:
    """Read the list of one holder. Raises: CrdtError."""
    rows = as_list(untrusted, "checkpoints", most=MAX_CHECKPOINTS)
    found = []
    for row in rows:
        step, round_, sha256 = as_row(row, "checkpoint", length=3)
        found.append(CheckpointInfo(step, round_, sha256, holder))
    check_ascending((-each.step for each in found), "checkpoints")
    return tuple(found)


@attrs.frozen
class RunInfo:
    """A run as its creator registered it, pinned by the hash of its manifest."""

    name: str = attrs.field(converter=_name)
    manifest: bytes = attrs.field(converter=_manifest_hash)
    """SHA-256 of the manifest: the run's id."""
    task: str = attrs.field(converter=_setting_text)
    protocol: str = attrs.field(converter=_setting_text)
    settings: tuple[tuple[str, Scalar], ...] = attrs.field(converter=_settings, default=())
    """What a reader wants to see; the manifest itself has all of it."""

    def to_wire(self) -> Wire:
        """Plain builtins; `from_wire` takes them back."""
        settings = [list(pair) for pair in self.settings]
        return [self.name, self.manifest, self.task, self.protocol, settings]

    @classmethod
    def from_wire(cls, untrusted: Wire) -> "RunInfo":
        """Raises: CrdtError."""
        name, manifest, task, protocol, settings = as_row(untrusted, "run", length=5)
        rows = as_list(settings, "run settings", most=MAX_SETTINGS)
        pairs = tuple(tuple(as_row(row, "run setting", length=2)) for row in rows)
        check_ascending((_setting_text(pair[0]) for pair in pairs), "run settings")
        return cls(name, manifest, task, protocol, pairs)


@attrs.frozen
class Revocation:
    """A member that shall not take part any more."""

    writer: bytes = attrs.field(converter=_holder)
    since_ms: int = attrs.field(converter=_count)
    """Wall clock of the one who revoked, ms since the epoch."""
    reason: str = attrs.field(converter=_reason, default="")

    def to_wire(self) -> Wire:
        """Plain builtins; `from_wire` takes them back."""
        return [self.writer, self.since_ms, self.reason]


def revocations_from_wire(untrusted: Wire) -> tuple[Revocation, ...]:
    """Read one writer's list. Raises: CrdtError."""
    rows = as_list(untrusted, "revocations", most=MAX_REVOKED)
    found = tuple(Revocation(*as_row(row, "revocation", length=3)) for row in rows)
    check_ascending((each.writer for each in found), "revocations")
    return found
