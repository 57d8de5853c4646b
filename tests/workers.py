"""Which tests run beside each other when the suite runs on several workers (`pytest -n`, pytest-xdist).

A file is one piece of work, so what its tests share is made once. All files with tests marked `real` together are two such
pieces, those of the lab and the others: daemons of two tests would take the processor from each other, and a real node that
does not get to run looks to its peers like a dead one. Only the lab may run beside them, in network namespaces of its own:
both wait most of the time, for the delays of its links and for other processes. Both begin at once, being the longest, and
whatever else runs beside them is polite.
"""

import functools
import os
from pathlib import Path

from xdist.scheduler import LoadFileScheduling

MARK = "pytest.mark.real"
LAB = "tests/lab/"
MOST = 8
NICENESS = 10


def count() -> int:
    """One for each processor and one more, as those of real tests mostly wait; more than eight would wait for these two."""
    return min(len(os.sched_getaffinity(0)) + 1, MOST)


@functools.cache
def real(path: Path) -> bool:
    """Whether a file has tests on real processes or sockets. Workers tell the scheduler names only, so it reads the file."""
    return MARK in path.read_text(encoding="utf-8")


@functools.cache
def be_polite() -> None:
    """Let real nodes go first, once and for all: only root could take it back."""
    os.nice(NICENESS)


class RealOneByOne(LoadFileScheduling):
    """By file, in the order of collection; everything real one after another, and so the lab."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        if not real(self.config.rootpath / file):
            return file
        return "lab" if file.startswith(LAB) else "real"
