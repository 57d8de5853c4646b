"""The plug-in point of protocols that need no agreement: gossip, sampling, random walks.

A collective protocol (`gossip.protocol`) moves all members together from one certified round to the
next. The protocols here have no common round: each node trains, sends models to some others and mixes
what arrives, and goes on whatever becomes of the rest. Such a protocol is one sans-IO core per node::

            start, resume, members, trained, receive, undelivered, tick
    driver  ----------------------------------------------------------->  core
            <-----------------------------------------------------------
                     next_event: Train, Send, Completed, Finished; next_deadline

The same core runs under two drivers: `gossip.decentralized.network.driver` on real peers with a torch process
behind it, and `node.simulation` on a virtual clock with thousands of them. So a core

* reads no clock and draws no randomness but from `Context.rng`, iterates over no set and no dict keyed by
  node in other than sorted order, and gives the same events for the same inputs;
* does its arithmetic itself, on flat vectors (`gossip.decentralized.arithmetic`). The driver calls it from
  one place at a time, in a worker thread if the model is large, so the core needs no locks;
* owns every vector it makes. What it was given (`params`, `LocalWork.params`, received vectors) is only lent
  for the call: copy what is to be kept. What it hands out in an event is read-only from then on.

Delivery is that of a datagram with an error report: a message arrives once or not at all; two to the same
peer may arrive in either order; `undelivered` tells about losses that the driver noticed, not about all of
them, and a message it reports may have arrived all the same.

Whoever sends is known (`sender` is the authenticated node); what is sent is not trusted: `receive` is given
vectors that are finite and of an announced size, and a `message` that the protocol decodes itself with
`transport.codec.decode_untrusted`, letting `MalformedMessage` escape. The driver then drops the peer.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, Literal, TypeGuard, TypeVar

import attrs
import msgspec
import numpy as np
import numpy.typing as npt

from gossip.protocol import Plugin
from transport.identity import NodeId

MAX_MESSAGE_BYTES: Final = 64 * 1024
"""Of `Send.message`; a control message, the vectors travel beside it."""
MAX_VECTORS: Final = 8
"""Of one `Send`; together they take no more than four models in float32 do, or 4 MiB."""

ALONE_AFTER: Final = 20
"""Rounds: where meetings are drawn, a node that has one in each on average misses so many in a row once in 10**8 times."""

Vector = npt.NDArray[np.float32]
Wide = npt.NDArray[np.float64]
AnyVector = npt.NDArray[np.float32] | npt.NDArray[np.float64]
SameVector = TypeVar("SameVector", Vector, Wide, AnyVector)


@attrs.frozen
class TensorSpec:
    """Where one trainable tensor lies in the flat parameter vector."""

    name: str
    offset: int
    """Of its first value; there may be padding between tensors, which is zero and stays zero."""
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Values in it."""
        size = 1
        for extent in self.shape:
            size *= extent
        return size


@attrs.frozen(kw_only=True)
class Context:
    """What a core is made for; constant for its life."""

    me: NodeId
    run: bytes
    """Id of the run, 32 bytes: the seed of everything that all nodes have to derive alike."""
    tensors: tuple[TensorSpec, ...]
    numel: int
    """Length of the flat parameter vector, padding included."""
    rng: random.Random
    """This node's own randomness."""
    every: int = 1
    """Local steps of one leg of training, as the run's manifest has it."""
    rounds: int = 0
    """Legs of training (for protocols with rounds: rounds) after which this node has finished; 0: no end."""


RuleKind = Literal["task", "gradient", "sam"]


@attrs.frozen
class LocalRule:
    """How the trainer turns batches into a change of the parameters.

    `kind` is "task" (the task's own optimizer), "gradient" (no step at all: `LocalWork.gradient` is the mean gradient
    over the leg's batches at `Train.params`), or "sam" (the task's optimizer with sharpness-aware gradients, radius `rho`:
    two passes over each batch, the gradient of the second one taken at params + rho * g / |g|).
    """

    kind: RuleKind = "task"
    rho: float = 0.0


TASK_RULE: Final = LocalRule()


@attrs.frozen(eq=False)
class Train:
    """Event: begin a leg of local training from `params`; `trained` is called when it is over.

    At most one leg runs at a time; another `Train` before `trained` is an error of the core's, unless
    `Cancel` was emitted between them.
    """

    params: Vector
    steps: int
    rule: LocalRule = TASK_RULE


@attrs.frozen
class Cancel:
    """Event: give up the running leg, whose `trained` is then never called."""


@attrs.frozen(eq=False)
class Send:
    """Event: send a message with vectors beside it; `key` is what `undelivered` will name it by."""

    to: NodeId
    message: bytes
    """At most MAX_MESSAGE_BYTES, a packed `msgspec.Struct`."""
    vectors: tuple[AnyVector, ...] = ()
    """1-D, contiguous, finite; read-only from now on (the driver does not copy)."""
    key: int = 0


@attrs.frozen(eq=False)
class Completed:
    """Event: this node's model has reached a new round; `model` is what is evaluated, saved and shown.

    Emitted whenever the protocol regards a round (or a leg, a hop) as done, rounds ascending. `members`
    counts the nodes whose work went into it, this one included.
    """

    round: int
    model: Vector
    members: int = 1


@attrs.frozen
class Finished:
    """Event: `Context.rounds` are done; the core goes on to answer others, but trains no more."""


@attrs.frozen
class Solitude:
    """A node learns alone that should not: nothing of others has come into its model for some rounds."""

    rounds: int
    """In a row."""
    reason: str = ""
    """As far as this node can tell; "" if it cannot."""
    hint: str = ""
    """What to do about that reason."""


Event = Train | Cancel | Send | Completed | Finished


@attrs.frozen(eq=False)
class LocalWork:
    """What a leg of training gave."""

    params: Vector
    """The parameters after it (equal to those before for the rule "gradient")."""
    steps: int
    samples: float
    """Tokens or samples used: the node's natural weight."""
    loss: float | None = None
    """Mean over the leg's batches."""
    gradient: Vector | None = None
    """For the rule "gradient" only."""


class DecentralizedProtocol(Plugin):
    """One node's core of a protocol without agreement.

    `Settings` documents and bounds every option. Which mixing rules may be combined with a protocol is looked
    up in `gossip.decentralized.mixing.composition` when the settings are read, and refused with the reason.
    """

    conserves_mean: ClassVar[bool] = False
    """The network's mean of the parameters is unchanged by mixing, with default settings and while all messages arrive."""
    depends_on_mean: ClassVar[bool] = False
    """It is not merely that the mean is conserved: without that, the result is wrong."""
    needs_common_start: ClassVar[bool] = False
    """There is one model line (or one token): all nodes have to start from the run's seeded model."""

    @classmethod
    def parse_settings(cls, raw: Mapping[str, Any]) -> msgspec.Struct:
        """As `Plugin`; combinations that do not work are refused with the reason (`mixing.composition`)."""
        from gossip.decentralized.mixing import composition

        composition.check(
            cls.name, raw, cls.Settings.__struct_fields__, depends_on_mean=cls.depends_on_mean
        )
        return super().parse_settings(raw)

    @classmethod
    def keeps_mean(cls, settings: msgspec.Struct) -> bool:
        """Whether `conserves_mean` holds with these settings; another mixing rule ends it."""
        return cls.conserves_mean and getattr(settings, "mixing", "mean") == "mean"

    def __init__(self, settings: msgspec.Struct, context: Context) -> None:
        super().__init__(settings)
        self.context = context
        self._events: deque[Event] = deque()
        self._alone = 0
        """Rounds in a row that should have had the work of others in them, and had none."""

    # ---- inputs ------------------------------------------------------------------------------

    @abstractmethod
    def start(self, params: Vector, now: float, *, round_: int = 0) -> None:
        """The trainer is ready with `params`: initial ones, or those of a checkpoint of `round_`.

        `members` has been called at least once before.
        """

    @abstractmethod
    def members(self, others: Sequence[NodeId], now: float) -> None:
        """The run's other nodes that are reachable now, ascending; called again at every change."""

    @abstractmethod
    def trained(self, work: LocalWork, now: float) -> None:
        """The leg asked for with `Train` is over."""

    @abstractmethod
    def receive(
        self, sender: NodeId, message: bytes, vectors: Sequence[AnyVector], now: float
    ) -> None:
        """A peer's message; raises `transport.errors.MalformedMessage` for what no honest peer sends."""

    def undelivered(self, to: NodeId, key: int, now: float) -> None:
        """A message did not leave this node, or its connection broke on the way."""

    def tick(self, now: float) -> None:
        """A deadline given by `next_deadline` has passed."""

    def leave(self, now: float) -> None:
        """This node leaves in good order: what is emitted now is sent before the driver ends."""

    # ---- outputs -----------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """When `tick` wants to be called, in the driver's monotonic seconds."""
        return None

    def next_event(self) -> Event | None:
        """The next thing the driver has to do, or None."""
        return self._events.popleft() if self._events else None

    @property
    @abstractmethod
    def model(self) -> Vector:
        """This node's model as it is now: for evaluation, and for a newcomer that asks. Lent, not given."""

    def describe(self) -> Mapping[str, Any]:
        """A few plain values for status output (JSON), for example {"round": 12, "neighbours": 4}."""
        return {}

    @property
    def alone_after(self) -> int:
        """So many rounds in a row with nothing of others in them are worth telling people; 0: none are."""
        return ALONE_AFTER

    def expects_others(self) -> bool:
        """Whether the round that is completed now should have had the work of others in it."""
        return True

    def why_alone(self) -> tuple[str, str]:
        """Why nothing of others comes into the model, and what to do about it, as far as this node can tell."""
        return "", ""

    def solitude(self) -> Solitude | None:
        """Whether this node learns alone though it should not; what people are told, once."""
        if not 0 < self.alone_after <= self._alone:
            return None
        return Solitude(self._alone, *self.why_alone())

    def is_model(self, vector: AnyVector) -> TypeGuard[Vector]:
        """Whether a received vector is as long as the run's parameters, in float32."""
        return vector.dtype == np.float32 and vector.size == self.context.numel

    def _emit(self, event: Event) -> None:
        if isinstance(event, Completed):
            alone = event.members == 1 and self.expects_others()
            self._alone = self._alone + 1 if alone else 0
        self._events.append(event)


def frozen(vector: SameVector) -> SameVector:
    """A copy that may be handed out in an event: nobody can write to it any more."""
    copy = vector.copy()
    copy.flags.writeable = False
    return copy
