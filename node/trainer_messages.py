"""What daemon and trainer say to each other over the trainer socket.

A Unix stream socket in the node's own directory (mode 0600) carries frames::

    | length: uint32 big-endian | msgpack map with a "type" key |      length <= 64 KiB

The daemon's first frame, `Attached`, carries the descriptor of the shared vectors (SCM_RIGHTS, see
`shared_buffer`); tensors never travel in frames.

A trainer's life::

    trainer                                   daemon
    Attach                                ->
                                          <-  Attached (+ descriptor)       or Stop(reason): refused
    Ready (state initialised or loaded)   ->
                                          <-  Start
    Report, Evaluated, Saved ...          ->  (at any time; at most 2 reports per second)
    Contribute ("delta" is filled)        ->
                                          <-  Outcome ("reduced" is filled), or Resync
    Applied                               ->
    ...                                   <-  Hurry, SaveNow, Resync, Stop  (at any time)
    Sample, Finished                      ->

In a run whose protocol needs no agreement (`gossip.decentralized`) the daemon says when to train::

    Layout ..., Ready                     ->      where each tensor lies; "params" is initialised or loaded
                                          <-  Leg ("params" is where it begins)
    LegDone ("params", "gradient")        ->
    ...                                   <-  CancelLeg  (its LegDone is answered all the same)
                                          <-  Look ("model" is filled: evaluate it, save it)
    Evaluated, Saved, Sample, Looked      ->
                                          <-  Conclude
    Finished                              ->

There "params" is the daemon's between `LegDone` and the next `Leg`, and before the first; "model" is until it has sent a
`Look`, and again from the `Looked` that answers it.

Who may write the shared vectors: the trainer, except between `Contribute` and the `Outcome` or
`Resync` that answers it, and except before `Start`. A `Resync` at another time arrives after the
daemon has overwritten the consensus vectors, which the trainer reads only when it handles a message
or contributes.

Invariants: a frame that is too long, no msgpack, of unknown type or with a field out of range
raises `TrainerProtocolError` and nothing else; unknown fields are ignored, so that either side can
be the newer one within a version.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from gossip.decentralized.protocol import RuleKind
from node.errors import NodedError
from node.run.manifest import RunManifest

__all__ = [
    "MAX_MESSAGE_BYTES",
    "MAX_SAMPLE_CHARACTERS",
    "VERSION",
    "Applied",
    "Attach",
    "Attached",
    "CancelLeg",
    "Conclude",
    "Contribute",
    "DaemonMessage",
    "Evaluated",
    "Failed",
    "Finished",
    "FrameReader",
    "Hurry",
    "Layout",
    "Leg",
    "LegDone",
    "Look",
    "Looked",
    "Outcome",
    "Ready",
    "Report",
    "Resync",
    "Sample",
    "SaveFailed",
    "SaveNow",
    "Saved",
    "Start",
    "Stop",
    "TensorPlace",
    "TrainerMessage",
    "TrainerProtocolError",
    "decode_daemon_message",
    "decode_trainer_message",
    "encode",
]

VERSION: Final = 1
"""Raised when a message changes its meaning; the daemon refuses other versions."""
MAX_MESSAGE_BYTES: Final = 64 * 1024
"""Largest msgpack body. Messages are small; the bound keeps a confused peer from eating memory."""
MAX_SAMPLE_CHARACTERS: Final = 8192
"""Longest text in `Sample` and `Failed`; senders cut theirs to it."""
HEADER_BYTES: Final = 4
TENSORS_PER_LAYOUT: Final = 128
"""Of one `Layout`: fits a frame, whatever the names are."""
MAX_TENSORS: Final = 65536
"""Of a model."""

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]
Name = Annotated[str, Meta(max_length=128)]
Path = Annotated[str, Meta(max_length=4096)]
Text = Annotated[str, Meta(max_length=MAX_SAMPLE_CHARACTERS)]
Rate = Annotated[float, Meta(ge=0)]


class TrainerProtocolError(NodedError):
    """The other side of the trainer socket sent something that is no message."""


def _tag(class_name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", class_name).lower()


class _Message(msgspec.Struct, frozen=True, tag_field="type", tag=_tag):
    """Base of all messages: a frozen value with its type in the map."""


# ---- trainer -> daemon ----


class Attach(_Message, frozen=True):
    """First frame: what this trainer is about to train."""

    version: int
    run: Name
    """Name of the run to take part in."""
    pid: Count
    numel: Annotated[int, Meta(ge=1, lt=2**40)]
    """Length of the flat parameter vector, padding included."""
    model: Digest
    """SHA-256 over names, shapes and layout of the parameters: equal on all members."""
    every: Annotated[int, Meta(ge=1, le=1_000_000)]
    """Local steps per round that the trainer would like; the manifest's value rules."""
    supervised: bool
    """True if the daemon started this process and may start it again."""
    protocol: Name | None = None
    """Protocol that the script asked for, None for whatever the run uses."""


class Ready(_Message, frozen=True):
    """The consensus vectors hold an initial or loaded state."""

    round: Count
    step: Count
    """Local steps per node that this state stands for."""
    state_sha256: Digest


class Report(_Message, frozen=True):
    """Local progress, at most twice a second."""

    step: Count
    loss: float | None
    """Training loss of this node (nats where the task says so); None if the script logs none."""
    tokens: Count
    """Processed by this node in this run, in total."""
    tokens_per_s: Rate


class Contribute(_Message, frozen=True):
    """The contribution for a round is in the shared vectors; the trainer waits now."""

    round: Count
    """Rounds completed before this one."""
    steps: Count
    """Local steps since the last round."""
    weight: Rate
    """Share in the mean, in tokens; 0 takes part without moving it."""
    loss: float | None
    """Mean training loss since the last round."""
    state_sha256: Digest
    """Of the consensus state that the contribution starts from."""


class Applied(_Message, frozen=True):
    """An outcome was applied."""

    round: Count
    """The new number of completed rounds."""
    step: Count
    state_sha256: Digest


class Evaluated(_Message, frozen=True):
    """Validation loss of the consensus parameters on the task's fixed held-out set."""

    round: Count
    step: Count
    loss: float
    tokens: Count
    """Tokens that the loss is the mean of."""
    accuracy: Annotated[float, Meta(ge=0, le=1)] | None = None
    """Share of right answers, where the task has any."""


class Saved(_Message, frozen=True):
    """A tensors file is complete and fsynced; the daemon signs and publishes it."""

    file: Path
    """Absolute path, inside `Attached.data_dir`."""
    round: Count
    step: Count
    size: Count
    sha256: Digest
    """Of the whole file."""
    state_sha256: Digest
    """Of the consensus state in it."""


class SaveFailed(_Message, frozen=True):
    """A checkpoint could not be written (disk full, input/output error); training goes on."""

    step: Count
    error: Text


class TensorPlace(msgspec.Struct, frozen=True, array_like=True):
    """Where one trainable tensor lies in the flat vector."""

    name: Annotated[str, Meta(max_length=256)]
    offset: Count
    shape: Annotated[tuple[Count, ...], Meta(max_length=16)]


class Layout(_Message, frozen=True):
    """The next tensors of the model, ascending; all of them have been told before `Ready`."""

    tensors: Annotated[tuple[TensorPlace, ...], Meta(max_length=TENSORS_PER_LAYOUT)]


class LegDone(_Message, frozen=True):
    """A leg is over, or was given up; "params" holds where it ended."""

    number: Count
    """Of the `Leg`."""
    steps: Count
    """Local steps that were done."""
    samples: Rate
    """Tokens (or samples) that they saw."""
    loss: float | None
    """Mean over the leg."""
    step: Count
    """Local steps of this node in this run, this leg included."""
    finite: bool
    """False: the parameters (or the gradient) are not, and are not to be used."""


class Looked(_Message, frozen=True):
    """All that a `Look` asked for is done; the daemon may write "model" again."""

    number: Count


class Sample(_Message, frozen=True):
    """A specimen of what the trained model does, for people."""

    text: Text


class Finished(_Message, frozen=True):
    """All steps of the run are done; the process ends with exit code 0."""

    round: Count
    step: Count


class Failed(_Message, frozen=True):
    """The trainer cannot go on; it ends after this."""

    error: Text


# ---- daemon -> trainer ----


class Attached(_Message, frozen=True):
    """The trainer is accepted; the shared vectors' descriptor rides on this frame."""

    numel: Annotated[int, Meta(ge=1, lt=2**40)]
    vectors: tuple[Name, ...]
    """Names of the shared vectors in the order of their layout."""
    manifest: RunManifest
    data_dir: Path
    """Where checkpoint files go under a temporary name; same file system as their final place."""
    checkpoint: Path | None = None
    """Checkpoint directory (or the tensors file in it) to resume from, verified by the daemon."""
    node: Annotated[str, Meta(max_length=128)] = ""
    """Printed node id."""


class Start(_Message, frozen=True):
    """Begin with local steps."""

    round: Count
    step: Count
    source: Annotated[str, Meta(pattern="^(own|synced)$")]
    """"own": the trainer's state; "synced": the consensus vectors now hold a peer's state."""


class Outcome(_Message, frozen=True):
    """The round is certified and "reduced" holds the weighted mean of all contributions."""

    round: Count
    """The round that was contributed to."""
    members: Annotated[int, Meta(ge=1, lt=2**31)]
    weight: Rate
    """Sum of all members' weights."""
    alone: bool
    """No other member took part: the local work is kept as it is."""


class Resync(_Message, frozen=True):
    """The consensus vectors were overwritten with a peer's state; go on from there.

    The trainer echoes it with an `Applied` of that round; a `Contribute` that crossed it is void.
    """

    round: Count
    step: Count


class Hurry(_Message, frozen=True):
    """Others wait: contribute to `round` at the next step boundary."""

    round: Count


class SaveNow(_Message, frozen=True):
    """Write a checkpoint at the next step boundary."""


class Leg(_Message, frozen=True):
    """Train from "params"; answered with `LegDone`."""

    number: Count
    round: Count
    """Rounds that this node's protocol has completed, for people."""
    steps: Annotated[int, Meta(ge=1, le=1_000_000)]
    kind: RuleKind = "task"
    """As `gossip.decentralized.protocol.LocalRule` has it; a script's own loop knows "task" alone."""
    rho: Rate = 0.0
    peers: Count = 0
    """Other nodes whose work went into that round."""


class CancelLeg(_Message, frozen=True):
    """Give the leg up at the next step boundary; no effect on one that is over."""

    number: Count


class Look(_Message, frozen=True):
    """Vector "model" holds this node's model after a round."""

    number: Count
    round: Count
    evaluate: bool = False
    save: bool = False
    sample: bool = False


class Conclude(_Message, frozen=True):
    """All rounds are done: end with `Finished`. If no leg runs, "params" holds this node's model."""

    round: Count
    peers: Count = 0


class Stop(_Message, frozen=True):
    """End; before `Attached` it means that the trainer is refused."""

    reason: Annotated[str, Meta(max_length=1024)]


TrainerMessage = (
    Attach
    | Ready
    | Report
    | Contribute
    | Applied
    | Evaluated
    | Saved
    | SaveFailed
    | Layout
    | LegDone
    | Looked
    | Sample
    | Finished
    | Failed
)
DaemonMessage = (
    Attached | Start | Outcome | Resync | Hurry | SaveNow | Leg | CancelLeg | Look | Conclude | Stop
)

_encoder: Final = msgspec.msgpack.Encoder()
_trainer_decoder: Final[Any] = msgspec.msgpack.Decoder(TrainerMessage)
_daemon_decoder: Final[Any] = msgspec.msgpack.Decoder(DaemonMessage)


def frame(message: msgspec.Struct) -> bytes:
    """The whole frame of a message, length first; raises `TrainerProtocolError` if too long."""
    body = _encoder.encode(message)
    if len(body) > MAX_MESSAGE_BYTES:
        raise TrainerProtocolError(f"a {type(message).__name__} of {len(body)} bytes is too long")
    return len(body).to_bytes(HEADER_BYTES, "big") + body


def encode(message: TrainerMessage | DaemonMessage) -> bytes:
    """The whole frame of `message`, length first; raises `TrainerProtocolError` if too long."""
    return frame(message)


def decode_trainer_message(body: bytes) -> TrainerMessage:
    """Decode a frame's body on the daemon's side; raises `TrainerProtocolError` only."""
    message: TrainerMessage = decode_body(_trainer_decoder, body)
    return message


def decode_daemon_message(body: bytes) -> DaemonMessage:
    """Decode a frame's body on the trainer's side; raises `TrainerProtocolError` only."""
    message: DaemonMessage = decode_body(_daemon_decoder, body)
    return message


def decode_body(decoder: Any, body: bytes) -> Any:
    """What a `msgspec` decoder makes of a frame's body; raises `TrainerProtocolError` only."""
    if len(body) > MAX_MESSAGE_BYTES:
        raise TrainerProtocolError(f"a frame of {len(body)} bytes is too long")
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, OverflowError) as error:
        raise TrainerProtocolError(f"not a message: {error}") from None


class FrameReader:
    """Cuts a byte stream into frame bodies; holds at most one frame and what `feed` was given."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Append received bytes."""
        self._buffer += data

    def next_body(self) -> bytes | None:
        """The next complete body, None if more bytes are needed.

        Raises:
            TrainerProtocolError: the announced length is over the limit; the stream is unusable.
        """
        if len(self._buffer) < HEADER_BYTES:
            return None
        length = int.from_bytes(self._buffer[:HEADER_BYTES], "big")
        if length > MAX_MESSAGE_BYTES:
            raise TrainerProtocolError(f"a frame announces {length} bytes, over the limit")
        if len(self._buffer) < HEADER_BYTES + length:
            return None
        body = bytes(self._buffer[HEADER_BYTES : HEADER_BYTES + length])
        del self._buffer[: HEADER_BYTES + length]
        return body

    @property
    def pending_bytes(self) -> int:
        """Bytes received that are no complete frame yet."""
        return len(self._buffer)
