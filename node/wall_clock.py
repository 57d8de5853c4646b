"""The wall clock of a node's drivers, in the unit of certificates and statements."""

import time
from typing import Final

DAY_MS: Final = 24 * 3600 * 1000


def wall_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000
