"""Which tests run beside each other when the suite runs on several workers (`pytest -n`, pytest-xdist).

A file is one piece of work, so what its tests share is made once. All files with tests marked `real` together are one piece
as well: daemons of two tests would take the processor from each other, and a real node that does not get to run looks to its
peers like a dead one. A second such piece is what of the lab has no whole daemons: in network namespaces of its own, and
waiting for the delays of its links most of the time. Both begin at once, being the longest, and whatever else runs beside
them is polite.
"""

import functools
import os
from pathlib import Path

from xdist.scheduler import LoadFileScheduling

MARK = "pytest.mark.real"
LAB = "tests/lab/"
DAEMONS = "tests.lab.daemons"
MOST = 8
NICENESS = 10


def count() -> int:
    """One for each processor, two at least: the real tests' own mostly waits, and they take longest; more than eight would wait for them."""
    return max(2, min(len(os.sched_getaffinity(0)), MOST))


@functools.cache
def text(path: Path) -> str:
    """What a file says. Workers tell the scheduler nothing but names, so it has to look for itself."""
    return path.read_text(encoding="utf-8")


def real(path: Path) -> bool:
    """Whether a file has tests on real processes or sockets."""
    return MARK in text(path)


@functools.cache
def be_polite() -> None:
    """Let real nodes go first, once and for all: only root could take it back."""
    os.nice(NICENESS)


class RealOneByOne(LoadFileScheduling):
    """By file, in the order of collection; everything real one after another, and so the lab."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        path = self.config.rootpath / file
        if not real(path):
            return file
        return "lab" if file.startswith(LAB) and DAEMONS not in text(path) else "real"
