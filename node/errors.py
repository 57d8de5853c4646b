"""What can go wrong in a node, and the exit code each failure ends a command with.

Problem: scripts, service managers and container health checks decide by a process's exit code, so
the codes are an interface. People decide by what they read, so every error carries a sentence about
what to do next.

Idea: one root, `NodedError`, with two facts beside its message: `exit_code` (the frozen table
`ExitCode`) and `hint` (what to do next). The command line prints both and nothing else has to know.
Each room below has its own root error; `exit_code_of` maps those without importing the rooms, so a
command that never touches the network does not pay for its imports.

Invariants:
- The numbers are frozen since 0.1: adding one is fine, changing one is a breaking change.
  `docs/exit-codes.md` is the public copy; a test compares the two.
- All codes are below 126, because a shell gives the values from there up a meaning of its own, and
  below 256, because a process cannot return more.
- This module imports the standard library only.
"""

from __future__ import annotations

import sys
from enum import IntEnum
from typing import Final

__all__ = [
    "EXIT_CODE_MEANINGS",
    "AddressUnavailable",
    "ConfigError",
    "DaemonNotRunning",
    "ExitCode",
    "NodedError",
    "NotReady",
    "PeerNotReachable",
    "Refused",
    "TimedOut",
    "UsageError",
    "exit_code_of",
    "first_error",
    "hint_of",
]


class ExitCode(IntEnum):
    """The exit codes of every `noded` command; frozen, see `docs/exit-codes.md`."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_RUNNING = 3
    NOT_READY = 4
    TIMED_OUT = 5
    PEER_UNREACHABLE = 6
    BAD_CONFIG = 7
    REFUSED = 8
    INTERRUPTED = 130


EXIT_CODE_MEANINGS: Final[dict[ExitCode, str]] = {
    ExitCode.OK: "the command did what it was asked to",
    ExitCode.FAILED: "the command failed for a reason that has no code of its own",
    ExitCode.USAGE: "the command line was wrong: unknown verb, option or value",
    ExitCode.NOT_RUNNING: "the daemon is not running",
    ExitCode.NOT_READY: "the daemon is running but unhealthy or not ready",
    ExitCode.TIMED_OUT: "the answer did not come in time",
    ExitCode.PEER_UNREACHABLE: "the peer is unknown or cannot be reached",
    ExitCode.BAD_CONFIG: "the configuration is wrong",
    ExitCode.REFUSED: "refused: wrong identity, wrong key, or no permission",
    ExitCode.INTERRUPTED: "interrupted by Ctrl-C",
}
"""One line for each code, as `docs/exit-codes.md` and `noded --help` print it."""


class NodedError(Exception):
    """Root of everything a node raises on purpose.

    Attributes:
        message: one sentence about what is wrong, without a trailing full stop.
        hint: what to do next, one sentence or command per line; may be empty.
        exit_code: what a command ends with when nobody handles the error.
    """

    exit_code: ExitCode = ExitCode.FAILED

    def __init__(self, message: str, *, hint: str = "", exit_code: ExitCode | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if exit_code is not None:
            self.exit_code = exit_code


class UsageError(NodedError):
    """The command line does not make sense."""

    exit_code = ExitCode.USAGE


class DaemonNotRunning(NodedError):
    """Nothing answers on the control socket."""

    exit_code = ExitCode.NOT_RUNNING


class NotReady(NodedError):
    """The daemon answers, and says that it is unhealthy or not ready yet."""

    exit_code = ExitCode.NOT_READY


class TimedOut(NodedError):
    """No answer before the deadline that the person gave."""

    exit_code = ExitCode.TIMED_OUT


class PeerNotReachable(NodedError):
    """No such peer, or none of its addresses answers."""

    exit_code = ExitCode.PEER_UNREACHABLE


class ConfigError(NodedError):
    """A configuration value is unknown, of the wrong type, or out of range.

    Attributes:
        key: the dotted path of the wrong key (`"network.listen"`), or "" when it is the whole file.
    """

    exit_code = ExitCode.BAD_CONFIG

    def __init__(self, message: str, *, key: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.key = key


class Refused(NodedError):
    """Refused for the sake of identity or permission: a readable key file, another user, a lock."""

    exit_code = ExitCode.REFUSED


class AddressUnavailable(NodedError):
    """A listen address cannot be had: in use, or not one of this machine's."""


# Room errors by the name of their class, so that mapping one needs no import of its room: whoever
# raised it has loaded the module already. A subclass wins over its bases (the MRO is walked).
_CODES_BY_NAME: Final[dict[tuple[str, str], ExitCode]] = {
    ("transport", "PeerUnreachable"): ExitCode.PEER_UNREACHABLE,
    ("transport", "ConnectFailed"): ExitCode.PEER_UNREACHABLE,
    ("transport", "PeerLost"): ExitCode.PEER_UNREACHABLE,
    ("transport", "WrongSwarm"): ExitCode.REFUSED,
    ("transport", "WrongPeer"): ExitCode.REFUSED,
    ("transport", "InvalidNodeId"): ExitCode.USAGE,
    ("transport", "InvalidAddress"): ExitCode.USAGE,
}


def exit_code_of(error: BaseException) -> ExitCode:
    """The exit code that `error` ends a command with.

    Understands `NodedError`, the root errors of the other rooms (by name, without importing them),
    `KeyboardInterrupt`, `TimeoutError`, `PermissionError`, and exception groups, of which the most
    telling member decides (`first_error`). Everything else is `ExitCode.FAILED`.
    """
    leaf = first_error(error)
    if isinstance(leaf, NodedError):
        return leaf.exit_code
    if isinstance(leaf, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    for class_ in type(leaf).__mro__:
        code = _CODES_BY_NAME.get((class_.__module__.partition(".")[0], class_.__name__))
        if code is not None:
            return code
    if isinstance(leaf, TimeoutError) or type(leaf).__name__ == "TooSlowError":
        return ExitCode.TIMED_OUT
    if isinstance(leaf, PermissionError):
        return ExitCode.REFUSED
    return ExitCode.FAILED


def hint_of(error: BaseException) -> str:
    """What to do next about `error`, "" if it does not say."""
    hint = getattr(first_error(error), "hint", "")
    return hint if isinstance(hint, str) else ""


def first_error(error: BaseException) -> BaseException:
    """The one error to show for `error`: an exception group is unwrapped, depth first.

    A nursery wraps even a single failure in a group. Of several members one that carries a message
    for people (a `hint` attribute) wins, then the first one; cancellation never does.
    """
    leaves: list[BaseException] = []
    pending = [error]
    while pending:
        current = pending.pop(0)
        if isinstance(current, BaseExceptionGroup):
            pending[:0] = list(current.exceptions)
        else:
            leaves.append(current)
    trio = sys.modules.get("trio")  # if it is not loaded, nothing of it can have been raised
    if trio is not None:
        leaves = [leaf for leaf in leaves if not isinstance(leaf, trio.Cancelled)] or leaves
    for leaf in leaves:
        if isinstance(leaf, NodedError):
            return leaf
    for leaf in leaves:
        if hasattr(leaf, "hint"):
            return leaf
    return leaves[0]
