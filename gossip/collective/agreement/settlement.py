"""How operations of tagged lanes ended that an epoch's end cut off (sans-IO).

A member that has signed a result and saw the epoch break does not know whether the others' signatures met. For lane 0 the next
epoch's start tells (`gossip.collective.agreement.former`). For the other lanes it asks: once it is in the next epoch, every member of
that which was in the broken one. They have left it for good, so an answer is final: either somebody shows the certificate,
which then is this member's, too, or none of them holds one, and all that want the result do it again from their inputs.

Who asks has computed the result before it signed, so the certificate is all that is missing; those of the last `KEPT_EPOCHS`
epochs with a result are kept, the last of each lane (a member that began the next one in a lane held the one before).
"""

from __future__ import annotations

from collections import deque
from typing import Final

from gossip.collective.agreement.certificate import Certificate, Epoch
from gossip.collective.agreement.epoch_events import OperationCertified
from gossip.collective.agreement.messages import Answer, Ask
from gossip.collective.agreement.operation import Operation
from gossip.collective.agreement.standing import Standing
from transport.identity import NodeId

KEPT_EPOCHS: Final = 2


class Settlement:
    """What this node has signed and not seen certified in lanes other than 0, and what it can tell others."""

    def __init__(self, standing: Standing) -> None:
        self._standing = standing
        self._kept: dict[tuple[bytes, int], Certificate] = {}
        self._epochs: deque[bytes] = deque(maxlen=KEPT_EPOCHS)
        self._open: dict[int, Operation] = {}
        self._awaited: dict[int, set[NodeId]] = {}

    def certificate(self, epoch: bytes, lane: int, sequence: int) -> Certificate | None:
        """That of an operation, if it was the last of its lane in one of the last epochs."""
        kept = self._kept.get((epoch, lane))
        return kept if kept is not None and kept.sequence == sequence else None

    def blocked(self, lane: int) -> bool:
        """True while the outcome of the lane's last operation is being asked for."""
        return lane in self._awaited

    def open(self, lane: int) -> Operation | None:
        """The operation of that lane whose outcome is not known."""
        return self._open.get(lane)

    def keep(self, certificate: Certificate) -> None:
        """Remember it for those that lack it."""
        if certificate.epoch not in self._epochs:
            self._epochs.append(certificate.epoch)
            self._kept = {key: one for key, one in self._kept.items() if key[0] in self._epochs}
        self._kept[certificate.epoch, certificate.lane] = certificate

    def doubt(self, operation: Operation) -> None:
        """Signed here, and cut off before it was certified."""
        self._open[operation.lane] = operation

    def forget(self, lane: int) -> None:
        """Nobody here wants to know any more."""
        self._open.pop(lane, None)
        self._awaited.pop(lane, None)

    def entered(self, epoch: Epoch) -> None:
        """Ask those members that can know."""
        standing = self._standing
        for lane, operation in sorted(self._open.items()):
            others = {*epoch.members} & {*operation.epoch.members} - {standing.me}
            if not others:
                del self._open[lane]
                continue
            self._awaited[lane] = others
            standing.send_all(others, Ask(operation.epoch_id, lane, operation.sequence))

    def left(self) -> None:
        """The epoch has ended: what was not answered is asked for again in the next one."""
        self._awaited.clear()

    def on_ask(self, sender: NodeId, ask: Ask) -> None:
        """A member wants to know how an operation ended."""
        certificate = self.certificate(ask.epoch, ask.lane, ask.sequence)
        self._standing.send(sender, Answer(ask.epoch, ask.lane, ask.sequence, certificate))

    def on_answer(self, sender: NodeId, answer: Answer, now: float) -> None:
        """What one of those that were asked knows."""
        lane, operation = answer.lane, self._open.get(answer.lane)
        awaited = self._awaited.get(lane)
        if operation is None or awaited is None or sender not in awaited:
            return
        if (operation.epoch_id, operation.sequence) != (answer.epoch, answer.sequence):
            return
        awaited.discard(sender)
        certificate = answer.certificate
        if certificate is not None and operation.settled_by(certificate):
            self.forget(lane)
            self.keep(certificate)
            self._standing.events.append(OperationCertified(operation, certificate))
        elif certificate is not None and not certificate.verify(operation.epoch.members):
            self._standing.accuse(sender, "showed a certificate that was not signed", now)
        if lane in self._awaited and not awaited:
            self.forget(lane)  # nobody holds one: it is done again
