"""Which tests run beside each other when the suite runs on several workers (`pytest -n`, pytest-xdist).

A file is one piece of work, so what its tests share is made once. All files with tests marked `real` together are one piece
as well: daemons, namespaces and links of two such tests would take the processor from each other, and a real node that does
not get to run looks to its peers like a dead one. For the same reason whatever else runs beside them is polite.
"""

import functools
import os
from pathlib import Path

from xdist.scheduler import LoadFileScheduling

MARK = "pytest.mark.real"
MOST = 8
NICENESS = 10


def count() -> int:
    """One for each processor and one more, as that of the real tests waits most of the time; it is all that more than eight wait for."""
    return min(len(os.sched_getaffinity(0)) + 1, MOST)


@functools.cache
def real(path: Path) -> bool:
    """Whether a file has tests on real processes or sockets. Workers tell the scheduler names only, so it reads the file."""
    return MARK in path.read_text(encoding="utf-8")


@functools.cache
def be_polite() -> None:
    """Let real nodes go first, once and for all: only root could take it back."""
    os.nice(NICENESS)


class RealAfterAnother(LoadFileScheduling):
    """By file, and everything real on one worker, one after another."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "real" if real(self.config.rootpath / file) else file
