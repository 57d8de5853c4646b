"""Messages: one line each, escaped, limited, and in the form that their reader wants."""

import io
import json
import logging
import os
import warnings

import pytest

from node.log import (
    HumanFormatter,
    JournalFormatter,
    JsonFormatter,
    RateLimit,
    configure,
    pick_format,
)


def record(message: str, *args: object, level: int = logging.INFO, **extra: object):
    made = logging.LogRecord("transport.connect.listener", level, "file.py", 1, message, args, None)
    made.__dict__.update(extra)
    return made


@pytest.fixture
def root():
    """The root logger as it was before."""
    logger = logging.getLogger()
    handlers, level = list(logger.handlers), logger.level
    yield logger
    logger.handlers[:] = handlers
    logger.setLevel(level)
    logging.captureWarnings(False)


def test_a_persons_line():
    line = HumanFormatter().format(record("refused %s", "x", peer="nd-1", why="two words"))
    assert line[8:] == ' info     transport.connect.listener  refused x  peer=nd-1 why="two words"'
    painted = HumanFormatter(colour=True).format(record("x", level=logging.ERROR))
    assert "\x1b[31merror\x1b[0m" in painted


def test_a_strangers_text_stays_on_its_line_and_off_the_terminal():
    evil = "x\x1b[2J\nforged line\r\u202e\udc80"
    for formatter in (HumanFormatter(), JournalFormatter(), JsonFormatter()):
        text = formatter.format(record("name %s", evil, name_untrusted=evil))
        assert text.isprintable(), text
    assert json.loads(JsonFormatter().format(record("name %s", evil)))["message"] == f"name {evil}"


def test_the_journals_lines_carry_a_priority_and_no_time():
    assert (
        JournalFormatter().format(record("x", level=logging.WARNING))
        == "<4>transport.connect.listener  x"
    )
    assert JournalFormatter().format(record("x", level=logging.DEBUG)).startswith("<7>")


def raised() -> logging.LogRecord:
    try:
        raise ValueError("a\x1b[2J\nb")
    except ValueError as error:
        made = record("failed", level=logging.ERROR)
        made.exc_info = (type(error), error, error.__traceback__)
        return made


def test_tracebacks_are_escaped_line_by_line():
    human = HumanFormatter().format(raised()).splitlines()
    assert len(human) > 3
    assert all(line.isprintable() for line in human)
    journal = JournalFormatter().format(raised()).splitlines()
    assert all(line.startswith("<3>") for line in journal)
    assert "ValueError" in json.loads(JsonFormatter().format(raised()))["traceback"]


def test_json_carries_the_facts():
    made = record("m", peer=b"\x01\x02", count=3, odd=object)
    entry = json.loads(JsonFormatter().format(made))
    assert entry["level"] == "info"
    assert entry["logger"] == "transport.connect.listener"
    assert (entry["peer"], entry["count"]) == ("0102", 3)
    assert isinstance(entry["odd"], str)


def test_a_wrong_format_string_does_not_lose_the_message():
    assert "%d" in HumanFormatter().format(record("count %d", "x"))


def test_a_burst_is_shown_and_the_rest_counted():
    now = [0.0]
    limit = RateLimit(burst=3, window_s=10, clock=lambda: now[0])
    assert [limit.filter(record("refused %s", n)) for n in range(5)] == [True] * 3 + [False] * 2
    assert limit.filter(record("something else"))
    now[0] = 10.0
    after = record("refused %s", "y")
    assert limit.filter(after)
    assert "(2 more like this were not shown)" in HumanFormatter().format(after)
    assert json.loads(JsonFormatter().format(after))["suppressed"] == 2
    now[0] = 20.0
    quiet = record("refused %s", "z")
    assert limit.filter(quiet)
    assert not hasattr(quiet, "suppressed")


def test_the_kinds_that_are_remembered_are_bounded():
    limit = RateLimit(burst=1, kinds=10, clock=lambda: 0.0)
    for number in range(100):
        assert limit.filter(record(f"kind {number}"))
    assert len(limit._seen) == 10


def test_auto_is_the_journal_only_where_the_journal_is(tmp_path):
    with (tmp_path / "log").open("w") as stream:
        status = os.fstat(stream.fileno())
        journal = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        assert isinstance(pick_format("auto", stream, journal), JournalFormatter)
        assert isinstance(pick_format("auto", stream, {"JOURNAL_STREAM": "1:2"}), HumanFormatter)
        assert isinstance(pick_format("json", stream, journal), JsonFormatter)
    assert isinstance(pick_format("auto", io.StringIO(), journal), HumanFormatter)


def test_configure_replaces_itself_and_captures_warnings(root):
    first, second = io.StringIO(), io.StringIO()
    configure("info", "human", stream=first, environ={})
    configure("warning", "json", stream=second, environ={})
    logging.getLogger("node.x").info("too small")
    logging.getLogger("node.x").warning("big enough")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("careful", stacklevel=1)
    assert first.getvalue() == ""
    lines = [json.loads(line) for line in second.getvalue().splitlines()]
    assert lines[0]["message"] == "big enough"
    assert "careful" in lines[1]["message"]


def test_a_closed_stream_does_not_take_the_daemon_down(root):
    stream = io.StringIO()
    configure("info", "human", stream=stream, environ={})
    stream.close()
    logging.getLogger("node.x").error("into the void")
