"""Errors of the gossip room.

`CollectiveAborted` and `Indeterminate` are the two honest ends of a collective that did not
succeed: the first says that nobody on this side can hold a certificate for it, the second that
this node signed a result and could not learn whether everybody else did.
"""

from __future__ import annotations


class GossipError(Exception):
    """Root of everything this room raises; `hint` says what to do next (may be empty)."""

    hint: str = ""

    def __init__(self, message: str = "", *, hint: str = "") -> None:
        super().__init__(message or (self.__doc__ or "").strip().splitlines()[0])
        if hint:
            self.hint = hint


class UnknownProtocol(GossipError):
    """No protocol of that name is installed."""


class InvalidSettings(GossipError):
    """The protocol's settings are wrong; the message names the key."""


class CollectiveAborted(GossipError):
    """The collective did not complete; inputs are untouched and it may be tried again."""

    hint = "the survivors form the next epoch and try again by themselves"


class EpochChanged(CollectiveAborted):
    """The members are others than those that the operation was for; nothing was done."""

    hint = "synchronise with the members of the new epoch, then call it again"


class DescriptorMismatch(CollectiveAborted):
    """Members called the same operation with different type, length, kind or state, or wait for each other in different tags."""

    hint = "all members call the same operations under the same tags, those of a tag in the same order, with the same kind, type, length, format and label; in rounds: the same task, settings and model"


class Indeterminate(GossipError):
    """This node signed a result but could not learn by the deadline whether all others did."""

    hint = "local state is untouched; the next epoch tells which result counts"


class StateUnavailable(GossipError):
    """No reachable member could hand over the state that this node lacks."""

    hint = "it is tried again with the next epoch"


class InvalidOperation(GossipError):
    """The arguments of a collective, or its values, cannot be reduced; no retry can help."""


class NotFinite(InvalidOperation):
    """A value of this node is not a number, infinite, or beyond what the wire format can carry."""

    hint = "leave this contribution out (weight 0), or choose a format with a wider range: bf16 has that of fp32"


class UnknownFormat(InvalidOperation):
    """There is no wire format of that name."""


class ProtocolFailed(GossipError):
    """A protocol's code failed or broke its contract."""

    hint = "this is a fault in the protocol, not in the network: the log has its traceback"
