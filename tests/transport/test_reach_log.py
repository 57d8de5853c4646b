"""The log about being reached: what changed, in few lines."""

import logging

import pytest

from tests.transport.nodes import identity
from transport.address import Address
from transport.reach.diagnosis import Diagnosis, Standing
from transport.reach.log import BURST, PAUSE_S, ReachLog

LAN = Address("192.168.1.2", 7447)
RELAYS = [Address(f"11.1.0.{number}", 7447, str(identity(number).node_id)) for number in (1, 2)]
SHORT = [identity(number).node_id.short for number in (1, 2)]
RELAYED = Diagnosis(Standing.RELAYED, "most peers need a relay", "")


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO)
    return ReachLog(logging.getLogger("lines"), 0.0)


def test_addresses_are_told_in_short_and_not_for_another_order(log, caplog):
    log.addresses([], 0)
    assert caplog.messages == []
    log.addresses([LAN], 0)
    log.addresses([LAN, *RELAYS], 1)
    log.addresses([LAN, *reversed(RELAYS)], 2)
    log.addresses([LAN, RELAYS[0]], 3)
    log.addresses([], 4)
    told = "others are told to reach this node at"
    assert caplog.messages == [
        f"{told} 192.168.1.2:7447",
        f"{told} 192.168.1.2:7447; over relays {SHORT[0]}, {SHORT[1]}",
        f"{told} 192.168.1.2:7447; over relay {SHORT[0]}",
        f"{told} nowhere",
    ]


def test_a_verdict_is_told_once_and_a_start_is_no_news(log, caplog):
    for standing in (Standing.ISOLATED, Standing.UNKNOWN, Standing.LOCAL):
        log.diagnosis(Diagnosis(standing, "nothing", ""), 0)
    log.diagnosis(RELAYED, 0)
    log.diagnosis(RELAYED, 1)
    log.diagnosis(Diagnosis(Standing.ISOLATED, "no peer is connected", ""), 2)
    assert caplog.messages == [
        "reachability: relayed: most peers need a relay",
        "reachability: isolated: no peer is connected",
    ]


def test_however_often_it_changes_lines_are_few_and_the_last_state_is_told(log, caplog):
    states = [[LAN], [LAN, *RELAYS]]
    for second in range(600):
        log.addresses(states[second % 2], second)
    assert len(caplog.messages) <= BURST + 600 / PAUSE_S
    assert "changes before were not logged" in caplog.messages[-1]
    log.addresses(states[0], 2000)
    log.addresses(states[1], 2001)
    assert SHORT[0] in caplog.messages[-1]
