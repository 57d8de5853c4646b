"""Whether this process can seal with AEGIS: the library is there, and the processor is one that it was built for.

Problem: the wheels of `aeg` hold no path for processors without AES or AVX instructions, and some of these die of SIGILL while the library is
loaded, before anybody could catch it. Idea: ask Linux for the processor's flags first, and load it only where AEGIS is worth having anyway:
with AES for whole vectors (VAES: AMD from Zen 3, Intel from Ice Lake on) it is three times as fast as AES-GCM.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Final

CPUINFO = Path("/proc/cpuinfo")
NEEDED: Final = frozenset({"aes", "avx", "avx2", "vaes"})


def flags_of(cpuinfo: str) -> frozenset[str]:
    """The flags that all processors of a /proc/cpuinfo have (proc(5)); none if it names none, as on other architectures."""
    each = [
        frozenset(line.partition(":")[2].split())
        for line in cpuinfo.splitlines()
        if line.partition(":")[0].rstrip() == "flags"
    ]
    return frozenset.intersection(*each) if each else frozenset()


@cache
def can_use_aegis() -> bool:
    """Whether `transport.secure.aegis.Aegis` works here; looked up once, and loads the library."""
    try:
        flags = flags_of(CPUINFO.read_text())
    except OSError:
        return False
    if not flags >= NEEDED:
        return False
    try:
        from aeg import aegis256x4  # noqa: F401 - never before the flags are known
    except ImportError:
        return False
    return True
