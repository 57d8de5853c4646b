"""How a daemon's messages look: for a person, for a machine, or for the journal.

Problem: the same message is read on a terminal, by a log collector, and by journald (which stamps its
own time and wants a priority). And much of what a peer-to-peer program logs was chosen by a stranger:
a name with an escape sequence must not repaint the operator's terminal, a newline must not forge a
second message, and a thousand bad connections must not become a thousand lines.

Idea: modules use the standard library's logging and nothing else (`logging.getLogger(__name__)`, facts
as `extra={...}`); only this module knows the three formats. Escaping happens in the formatter, on the
finished text, so no call site can forget it. A filter lets a burst of each message through and then
counts, so the text says what was left out.

Invariants: one message is one line (tracebacks excepted, and those are escaped line by line); nothing
here blocks for longer than a write to standard error; the standard library only.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Final, TextIO

from node.cli.render import MAX_TEXT_CHARS, printable

__all__ = [
    "HumanFormatter",
    "JournalFormatter",
    "JsonFormatter",
    "RateLimit",
    "configure",
    "pick_format",
    "printable",
]

# Attributes that every record has; whatever else a record carries came in as `extra`.
_STANDARD: Final = frozenset(logging.makeLogRecord({}).__dict__) | {
    "message",
    "asctime",
    "taskName",
    "suppressed",
}

# syslog(3): 3 error, 4 warning, 6 informational, 7 debug; 2 critical.
_PRIORITY: Final = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6}

_COLOURS: Final = {logging.CRITICAL: "31;1", logging.ERROR: "31", logging.WARNING: "33"}

_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}


class HumanFormatter(logging.Formatter):
    """`12:03:44 warning  transport.connect.listener  refused a connection  peer=nd-7kq2 reason=garbage`."""

    def __init__(self, *, colour: bool = False) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """One line, and the traceback below it if there is one."""
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        level = record.levelname.lower()
        if self._colour and (code := _COLOURS.get(record.levelno)):
            level = f"\x1b[{code}m{level}\x1b[0m" + " " * (8 - len(level))
        return f"{clock} {level:<8} {_body(record)}"


class JournalFormatter(logging.Formatter):
    """`<4>transport.connect.listener  refused ...`: systemd strips the prefix and adds its own time."""

    def format(self, record: logging.LogRecord) -> str:
        """Each line carries the priority: journald takes every line for a message of its own."""
        priority = _PRIORITY.get(record.levelno, 7)
        return "\n".join(f"<{priority}>{line}" for line in _body(record).split("\n"))


class JsonFormatter(logging.Formatter):
    """One object a line: `time` (Unix seconds), `level`, `logger`, `message`, and the extra facts."""

    def format(self, record: logging.LogRecord) -> str:
        """ASCII only, so nothing in it can disturb a terminal."""
        entry: dict[str, Any] = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record)[:MAX_TEXT_CHARS],
        }
        for name, value in _extras(record):
            entry.setdefault(name, value)
        if record.exc_info:
            entry["traceback"] = _traceback(record)
        return json.dumps(entry, default=_plain, ensure_ascii=True)


class RateLimit(logging.Filter):
    """Lets `burst` messages of a kind through in each `window_s`, and says how many it left out.

    The kind is the logger, the level and the *unformatted* text, so `"refused %s", peer` is one kind
    whoever the peer is. At most `kinds` are remembered; the one unseen for longest is forgotten.
    """

    def __init__(
        self,
        *,
        burst: int = 5,
        window_s: float = 10.0,
        kinds: int = 512,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._burst = burst
        self._window_s = window_s
        self._kinds = kinds
        self._clock = clock
        self._seen: OrderedDict[tuple[str, int, str], tuple[float, int]] = OrderedDict()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to show `record`; marks it with the number of those left out before it."""
        now = self._clock()
        kind = (record.name, record.levelno, str(record.msg))
        since, count = self._seen.pop(kind, (now, 0))
        if now - since >= self._window_s:
            if count > self._burst:
                record.suppressed = count - self._burst
            since, count = now, 0
        count += 1
        self._seen[kind] = (since, count)
        while len(self._seen) > self._kinds:
            self._seen.popitem(last=False)
        return count <= self._burst


def pick_format(
    wanted: str, stream: TextIO, environ: Mapping[str, str] | None = None
) -> logging.Formatter:
    """The formatter for `log.format`; "auto" looks at where `stream` leads."""
    environ = os.environ if environ is None else environ
    if wanted == "auto":
        wanted = "journal" if _is_journal(stream, environ) else "human"
    if wanted == "json":
        return JsonFormatter()
    if wanted == "journal":
        return JournalFormatter()
    return HumanFormatter(colour=stream.isatty() and not environ.get("NO_COLOR"))


def configure(
    level: str = "info",
    format: str = "auto",  # noqa: A002 (the configuration's word)
    *,
    stream: TextIO | None = None,
    environ: Mapping[str, str] | None = None,
) -> None:
    """Send every message of this process to `stream` (standard error). Calling again replaces.

    Args:
        level: "debug", "info", "warning" or "error".
        format: "auto", "human", "json" or "journal".
        stream: where to; None is standard error.
        environ: the environment; None takes this process's.
    """
    stream = sys.stderr if stream is None else stream
    handler = _QuietHandler(stream)
    handler.setFormatter(pick_format(format, stream, environ))
    if level != "debug":  # who asks for everything gets everything
        handler.addFilter(RateLimit())
    root = logging.getLogger()
    for old in list(root.handlers):
        if isinstance(old, _QuietHandler):
            root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(_LEVELS[level])
    logging.captureWarnings(True)


class _QuietHandler(logging.StreamHandler[TextIO]):
    """A full disk or a closed terminal behind standard error must not take the daemon down."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (the base class's name)
        """Drop the message: there is nowhere left to complain to."""

    def flush(self) -> None:
        """As above."""
        with contextlib.suppress(OSError, ValueError):
            super().flush()


def _is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether `stream` is the very socket that systemd named (systemd.exec(5), JOURNAL_STREAM)."""
    named = environ.get("JOURNAL_STREAM", "")
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return named == f"{status.st_dev}:{status.st_ino}"


def _body(record: logging.LogRecord) -> str:
    parts = [record.name, printable(_message(record))]
    parts += [f"{name}={_field(value)}" for name, value in _extras(record)]
    if left_out := getattr(record, "suppressed", 0):
        parts.append(f"({left_out} more like this were not shown)")
    text = "  ".join(parts[:2]) + ("  " + " ".join(parts[2:]) if parts[2:] else "")
    if record.exc_info:
        lines = _traceback(record).rstrip("\n").split("\n")
        text += "\n" + "\n".join("    " + printable(line) for line in lines)
    return text


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001 (a wrong format string must not lose the message)
        return f"{record.msg} {record.args!r}"


def _extras(record: logging.LogRecord) -> list[tuple[str, Any]]:
    fields = [(name, value) for name, value in record.__dict__.items() if name not in _STANDARD]
    if left_out := getattr(record, "suppressed", 0):
        fields.append(("suppressed", left_out))
    return fields


def _field(value: object) -> str:
    text = printable(str(_plain(value)), 200)
    return json.dumps(text, ensure_ascii=False) if not text or " " in text else text


def _plain(value: object) -> object:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)[:64].hex()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def _traceback(record: logging.LogRecord) -> str:
    assert record.exc_info is not None
    return "".join(traceback.format_exception(*record.exc_info)) if record.exc_info[0] else ""
