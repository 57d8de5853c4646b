"""Counting everything, saying little."""

import logging
from collections import Counter

import pytest
import trio

from transport.reporter import MAX_KINDS, Reporter, innermost


@pytest.fixture
def reporter() -> Reporter:
    return Reporter(logging.getLogger("test-reporter"), Counter())


def test_at_most_one_line_a_second_per_kind(
    reporter: Reporter, caplog: pytest.LogCaptureFixture
) -> None:
    for step in range(25):
        reporter.report("a", step / 10, "first kind")
    reporter.report("b", 2.4, "second kind")
    assert reporter.counters == {"a": 25, "b": 1}
    assert [record.getMessage() for record in caplog.records] == [
        "first kind",
        "first kind (and 9 more since the last line)",
        "first kind (and 9 more since the last line)",
        "second kind",
    ]


def test_the_tables_are_bounded(reporter: Reporter) -> None:
    for number in range(2 * MAX_KINDS):
        reporter.report(f"kind-{number}", 0.0, "text")
    assert len(reporter.counters) == MAX_KINDS
    assert len(reporter._spoke_at) == MAX_KINDS


async def test_groups_are_split_and_cancellation_comes_back(
    reporter: Reporter, caplog: pytest.LogCaptureFixture
) -> None:
    assert reporter.report_errors("x", 0.0, "it failed", KeyError("k")) is None
    assert "KeyError('k')" in caplog.records[0].getMessage()
    group = ExceptionGroup("g", [ValueError("v")])
    assert reporter.report_errors("x", 0.0, "it failed", group) is None
    assert innermost(group).args == ("v",)
    with trio.CancelScope() as scope:
        scope.cancel()
        with pytest.raises(trio.Cancelled) as caught:
            await trio.lowlevel.checkpoint()
    cancelled = caught.value
    assert reporter.report_errors("x", 0.0, "it failed", cancelled) is cancelled
    mixed = BaseExceptionGroup("m", [ValueError("v"), cancelled])
    rest = reporter.report_errors("x", 0.0, "it failed", mixed)
    assert isinstance(rest, BaseExceptionGroup)
    assert rest.exceptions == (cancelled,)
    assert reporter.counters["x"] == 3
