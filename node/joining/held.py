"""Statements in memory: what this node has said or was told about membership since it started, and what its files say."""

from __future__ import annotations

from collections.abc import Iterable

from transport.trust.chain import Chain
from transport.trust.refusal import CertificateRefused
from transport.trust.revocation import Revocation
from transport.trust.statement import Statement
from transport.trust.trust import Trust

__all__ = ["HeldStatements"]


class HeldStatements:
    """The statements of one node; sans-IO.

    Args:
        trust: verifies what is said, and learns revocations.
    """

    def __init__(self, trust: Trust) -> None:
        self._trust = trust
        self._held: dict[bytes, Statement] = {}

    def all(self) -> Iterable[Statement]:
        """Those that are known, in the order in which they came."""
        return tuple(self._held.values())

    def say(self, statement: Statement) -> None:
        """Add one, and what it rests on; those that do not verify, and those that are known, are ignored."""
        if statement.id in self._held:
            return
        above = statement.above if isinstance(statement, Chain) else statement.chain
        if above is not None:
            self.say(above)
        try:
            self._trust.verify(statement)
            if isinstance(statement, Revocation):
                self._trust.learn(statement)
        except CertificateRefused:
            return
        self._held[statement.id] = statement
