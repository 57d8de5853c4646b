"""Members that wait for each other in different lanes: which operations can never end (sans-IO).

Problem: members that call different operations of one lane are told at once, since their descriptors differ. Members
that call different *lanes* need not be wrong: each may still call the other's, from another task or a moment later, and
in any order. What a member has begun therefore proves nothing; what proves something is that it will begin nothing more.

Only the caller knows that. It says so for a call (`Job.sole`): *until this has ended, nothing else is called here*, as is true of a
program that calls from one place and waits there. The node then tells the others (in `Begin`) what it waits for and how
many operations of each lane have been called there, waiting for their turn or begun: its `Wait`.

Rule: a member whose `Wait` does not count an operation cannot begin it before its own wait has ended. So there is an arrow
from each waiting member to every one that has not called what it waits for, and members on a circle of arrows wait for ever
(Holt, "Some deadlock properties of computer systems", 1972: every operation needs all members). What they wait for is
*dead*, and so is what those wait for who wait for them. All who called a dead operation get the error of members that call different ones.

No false alarm, however old a `Wait` is when it arrives: had one of the operations on the circle ended with a certificate, let it be the one
that did first. The next member on the circle had begun it, so after the `Wait` that did not count it, so after its own wait
had ended, which is on the circle as well and ended later. Epochs end operations without a certificate, and with them all waits.
Lane 0 is left out: rounds are called by another part of the node, which promises nothing.

A member that lies about what it has called ends operations of others with an error, as it can by beginning another one than they; it cannot make them
take a wrong result.

Found at once: two or more members that wait, each for the last thing it called, with no one left to come. Found only at the deadline: wrong
calls of a program that has not said `sole`, or has other calls under way from which it may go on (handles that nobody waits for yet), and
a member that calls nothing at all, since it may do so in an hour.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import attrs

from transport.identity import NodeId


@attrs.frozen
class Wait:
    """Nothing more is called at a member before one operation has ended there."""

    lane: int
    sequence: int
    called: tuple[int, ...]
    """Operations of each lane that were called in this epoch so far; of lanes beyond the end none."""

    def counts(self, lane: int, sequence: int) -> bool:
        """True when that operation may begin, or has begun, without the end of this wait."""
        return lane < len(self.called) and self.called[lane] > sequence


def circle_through(member: NodeId, waits: Mapping[NodeId, Wait]) -> list[NodeId]:
    """The shortest circle of members, this one first, of whom each waits for the next; empty if there is none."""
    if member not in waits:
        return []
    came_from: dict[NodeId, NodeId] = {}
    queue = deque([member])
    while queue:
        here = queue.popleft()
        wait = waits[here]
        for other, its in sorted(waits.items()):
            if other in came_from or its.counts(wait.lane, wait.sequence):
                continue
            came_from[other] = here
            if other == member:
                path = [here]
                while path[-1] != member:
                    path.append(came_from[path[-1]])
                return path[::-1]
            queue.append(other)
    return []


def dead_operations(
    circle: list[NodeId], waits: Mapping[NodeId, Wait]
) -> frozenset[tuple[int, int]]:
    """(lane, sequence) of what the members on a circle wait for, and those who wait for one of them."""
    stuck = set(circle)
    grown = True
    while grown:
        more = {
            member
            for member, wait in waits.items()
            if member not in stuck
            and any(not waits[other].counts(wait.lane, wait.sequence) for other in stuck)
        }
        stuck |= more
        grown = bool(more)
    return frozenset((waits[member].lane, waits[member].sequence) for member in stuck)


def in_words(circle: list[NodeId], waits: Mapping[NodeId, Wait]) -> str:
    """Who waits where for whom, for people."""
    parts = [
        f"{member.short} waits in tag {waits[member].lane} for {other.short}"
        for member, other in zip(circle, [*circle[1:], circle[0]], strict=True)
    ]
    return "members call different tags: " + ", ".join(parts)
