"""The exit codes are an interface: the page, the table and the mapping agree."""

import re
from pathlib import Path

import pytest
import trio

from node.errors import (
    EXIT_CODE_MEANINGS,
    ConfigError,
    DaemonNotRunning,
    ExitCode,
    NodedError,
    exit_code_of,
    first_error,
    hint_of,
)
from transport.errors import InvalidNodeId, PeerUnreachable, TransportError, WrongSwarm

DOCS = Path(__file__).parents[2] / "docs"


def test_the_documented_codes_are_the_real_ones():
    text = (DOCS / "exit-codes.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (\w+) \| (.+) \|$", text, re.MULTILINE)
    assert [(int(number), name, meaning) for number, name, meaning in rows] == [
        (code.value, code.name, EXIT_CODE_MEANINGS[code]) for code in ExitCode
    ]


def test_the_codes_are_frozen():
    assert {code.name: code.value for code in ExitCode} == {
        "OK": 0,
        "FAILED": 1,
        "USAGE": 2,
        "NOT_RUNNING": 3,
        "NOT_READY": 4,
        "TIMED_OUT": 5,
        "PEER_UNREACHABLE": 6,
        "BAD_CONFIG": 7,
        "REFUSED": 8,
        "INTERRUPTED": 130,
    }


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NodedError("x"), 1),
        (NodedError("x", exit_code=ExitCode.REFUSED), 8),
        (DaemonNotRunning("x"), 3),
        (ConfigError("x", key="a.b"), 7),
        (PeerUnreachable("x"), 6),
        (WrongSwarm("x"), 8),
        (InvalidNodeId("x"), 2),
        (TransportError("x"), 1),
        (TimeoutError(), 5),
        (trio.TooSlowError(), 5),
        (PermissionError(13, "x"), 8),
        (KeyboardInterrupt(), 130),
        (ExceptionGroup("g", [ValueError("x"), ExceptionGroup("h", [ConfigError("y")])]), 7),
        (ExceptionGroup("g", [ValueError("x"), PeerUnreachable("y")]), 6),
    ],
)
def test_errors_map_to_codes(error: BaseException, code: int):
    assert exit_code_of(error) == code


def test_a_group_is_shown_as_the_member_that_was_made_for_people():
    inner = NodedError("told", hint="do this")
    group = ExceptionGroup("g", [ExceptionGroup("h", [OSError(5, "raw")]), inner])
    assert first_error(group) is inner
    assert hint_of(group) == "do this"
    assert hint_of(ValueError("x")) == ""
