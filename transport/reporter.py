"""Count every failure by reason, and say at most one line per second about each kind.

Problem: under attack or overload a server that logs each failure fills the disk and starves the
work it protects; one that logs nothing cannot be understood. Idea: counters hear everything, the
log hears the first of a kind and then, once per second at most, the latest with the number of
those kept back.

Sans-IO: the time is an argument. Invariant: the table of kinds is bounded, because kinds are our
own constants and exception type names, never text from a peer.
"""

import logging
from collections import Counter
from typing import Final

LOG_INTERVAL_S: Final = 1.0
MAX_KINDS: Final = 256


class Reporter:
    """Counters by reason and a rate-limited log.

    Attributes:
        counters: reason -> how often, since the start.
    """

    def __init__(self, logger: logging.Logger, counters: Counter[str]) -> None:
        self.counters = counters
        self._logger = logger
        self._spoke_at: dict[str, float] = {}  # at most MAX_KINDS
        self._kept_back: Counter[str] = Counter()

    def count(self, kind: str) -> None:
        """Count one event of which the log need not know."""
        if kind in self.counters or len(self.counters) < MAX_KINDS:
            self.counters[kind] += 1

    def report(
        self, kind: str, now: float, text: str, *, error: BaseException | None = None
    ) -> None:
        """Count one event and log it, unless its kind was logged less than a second ago.

        Args:
            kind: a constant of ours, for example "accept-emfile".
            now: monotonic seconds.
            text: a sentence without unescaped bytes from a peer.
            error: logged with its traceback.
        """
        self.count(kind)
        spoke_at = self._spoke_at.get(kind)
        if spoke_at is not None and now - spoke_at < LOG_INTERVAL_S:
            self._kept_back[kind] += 1
            return
        if spoke_at is None and len(self._spoke_at) >= MAX_KINDS:
            return
        self._spoke_at[kind] = now
        kept_back = self._kept_back.pop(kind, 0)
        more = f" (and {kept_back} more since the last line)" if kept_back else ""
        self._logger.warning("%s%s", text, more, exc_info=error)

    def report_errors(
        self, kind: str, now: float, text: str, error: BaseException
    ) -> BaseException | None:
        """Report the `Exception`s in `error`, a group or not; return what must be re-raised.

        Cancellation and other `BaseException`s are never ours to keep.
        """
        ours: BaseException | None
        rest: BaseException | None
        if isinstance(error, BaseExceptionGroup):
            ours, rest = error.split(Exception)
        elif isinstance(error, Exception):
            ours, rest = error, None
        else:
            ours, rest = None, error
        if ours is not None:
            self.report(kind, now, f"{text}: {innermost(ours)!r}", error=ours)
        return rest


def innermost(error: BaseException) -> BaseException:
    """Return the first real exception inside nested groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
