"""Asking the members that a code names, until one of them brings the issuer's word.

Problem: some of the addresses are out of date, some members slow, and one may withhold the answer on purpose. Idea: the same request
goes to all of them, each a little later than the one before (as RFC 8305 does for addresses); the first answer that counts ends it.
That is sound because the issuer answers the same subject the same way however often it is asked.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias

import trio

from node.errors import NodedError
from node.joining.reasons import JoinRefused
from node.joining.redeemer import Joined, Redeemer
from node.wall_clock import wall_ms
from transport.address import Address
from transport.errors import TransportError

__all__ = ["Ask", "redeem"]

STAGGER_S: Final = 1.0
"""Between two members: one that is well has answered by then."""
PATIENCE_S: Final = 20.0
"""For one member: it may have to reach the issuer through a relay first."""

Ask: TypeAlias = Callable[[Address, bytes], Awaitable[bytes]]
"""(address, request) to the answer of the member there, proven to be one; raises TransportError."""


async def redeem(
    redeemer: Redeemer,
    addresses: Sequence[Address],
    ask: Ask,
    *,
    wall_ms: Callable[[], int] = wall_ms,
) -> Joined:
    """Ask until somebody brings a grant or the issuer's own refusal; takes at most about 25 s.

    Cancelling forgets the attempt; if the issuer has granted it already, the same key gets the same certificate the next time.

    Args:
        redeemer: the attempt.
        addresses: of the code.
        ask: how to ask a member.
        wall_ms: milliseconds since 1970.

    Raises:
        JoinRefused: the issuer said no, or (by hearsay) cannot be reached.
        PeerNotReachable: no member answers.
    """
    outcome: list[Joined | JoinRefused] = []

    async def one(address: Address, scope: trio.CancelScope, done: trio.Event) -> None:
        name = str(address)
        try:
            with trio.fail_after(PATIENCE_S):
                answer = await ask(address, redeemer.request)
        except trio.TooSlowError:
            redeemer.failed(name, f"no answer within {PATIENCE_S:.0f} s")
        except (TransportError, NodedError) as error:
            redeemer.failed(name, str(error))
        else:
            verdict = redeemer.receive(name, answer, wall_ms())
            if verdict is not None:
                outcome.append(verdict)
                scope.cancel()
        finally:
            done.set()

    async with trio.open_nursery() as nursery:
        for address in addresses:
            done = trio.Event()
            nursery.start_soon(one, address, nursery.cancel_scope, done)
            with trio.move_on_after(STAGGER_S):
                await done.wait()
    if not outcome:
        raise redeemer.given_up(wall_ms())
    if isinstance(outcome[0], JoinRefused):
        raise outcome[0]
    return outcome[0]
