"""Traces of nodes that come and go."""

from itertools import takewhile

import pytest

from node.errors import ConfigError
from node.simulation.churn import absent_at_first, changes
from node.simulation.scenario import Churn


def first(settings: Churn, nodes: int, until_s: float, seed: int = 5):
    return list(takewhile(lambda one: one.at_s < until_s, changes(settings, nodes, seed)))


@pytest.mark.parametrize(
    "settings",
    [
        Churn(kind="exponential", session_s=60, absence_s=20, share=0.5),
        Churn(kind="diurnal", day_s=100, awake=0.6, crash=0.0),
    ],
)
def test_a_drawn_trace_is_in_order_and_each_node_comes_and_goes_in_turn(settings):
    trace = first(settings, 20, 2000)
    assert trace == sorted(trace, key=lambda one: one.at_s)
    assert trace == first(settings, 20, 2000)
    assert trace != first(settings, 20, 2000, seed=6)
    absent = absent_at_first(settings, 20, 5)
    moving = {one.node for one in trace}
    assert len(moving) == round(20 * settings.share)
    for node in moving:
        there = node not in absent
        for change in (one.change for one in trace if one.node == node):
            assert (change == "join") != there
            there = change == "join"


def share_of_time(settings: Churn, nodes: int, until_s: float) -> float:
    absent = absent_at_first(settings, nodes, 5)
    since = {node: 0.0 for node in range(nodes) if node not in absent}
    total = 0.0
    for one in first(settings, nodes, until_s):
        if one.change == "join":
            since[one.node] = one.at_s
        else:
            total += one.at_s - since.pop(one.node)
    return (total + sum(until_s - begin for begin in since.values())) / (nodes * until_s)


def test_nodes_are_there_for_the_share_of_time_that_was_asked_for():
    days = Churn(kind="diurnal", day_s=100, awake=0.6)
    assert abs(share_of_time(days, 100, 1000) - 0.6) < 0.01  # ten whole days
    assert 0.5 < 1 - len(absent_at_first(days, 400, 5)) / 400 < 0.7
    sessions = Churn(kind="exponential", session_s=60, absence_s=20)
    assert abs(share_of_time(sessions, 200, 4000) - 0.75) < 0.03


def test_a_departure_is_a_crash_as_often_as_asked():
    gone = [
        one.change
        for one in first(Churn(kind="exponential", session_s=10, absence_s=10, crash=0.3), 50, 1000)
        if one.change != "join"
    ]
    assert 0.25 < gone.count("crash") / len(gone) < 0.35


def test_nothing_changes_after_the_end_but_who_is_away_comes_back():
    settings = Churn(kind="exponential", session_s=10, absence_s=50, until_s=100)
    trace = list(changes(settings, 20, 5))
    assert all(one.at_s <= 100 for one in trace if one.change != "join")
    assert sum(one.change == "join" for one in trace) == sum(one.change != "join" for one in trace)


def test_a_trace_from_a_file(tmp_path):
    path = tmp_path / "trace"
    path.write_text(
        '{"at_s": 9, "node": 1, "change": "join"}\n\n{"at_s": 2.5, "node": 0, "change": "silence"}\n'
    )
    settings = Churn(kind="file", file=str(path))
    assert [(one.at_s, one.node) for one in changes(settings, 3, 0)] == [(2.5, 0), (9.0, 1)]
    assert absent_at_first(settings, 3, 0) == {1}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"at_s": 1, "node": 3, "change": "join"}', "line 1: node 3 of 3"),
        ('{"at_s": -1, "node": 0, "change": "join"}', "line 1: Expected"),
        ('{"at_s": 1, "node": 0, "change": "dance"}', "line 1: Invalid enum"),
        ("{", "line 1: Input data was truncated"),
    ],
)
def test_a_line_that_is_wrong_is_named(tmp_path, line, says):
    path = tmp_path / "trace"
    path.write_text(line)
    with pytest.raises(ConfigError) as caught:
        list(changes(Churn(kind="file", file=str(path)), 3, 0))
    assert says in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        list(changes(Churn(kind="file", file=str(tmp_path / "no")), 3, 0))
