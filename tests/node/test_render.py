"""What people see: aligned, honest about what is unknown, and safe to print."""

import io
import json
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from node.cli.render import (
    Style,
    duration,
    human_bytes,
    number,
    peers_text,
    printable,
    rtt,
    short_id,
    status_text,
    style_for,
    table,
)

STATUS = {
    "schema": "noded.status/1",
    "version": "0.1.0",
    "state": "training",
    "verdict": "warning",
    "node": {
        "id": "nd-7kq2-m4xf-aaaa-bbbb",
        "name": "attic",
        "addresses": ["192.0.2.7:7447"],
        "uptime_s": 273600,
    },
    "run": {
        "name": "demo",
        "epoch": {"number": 3, "id": "ab", "members": ["a", "b", "c"]},
        "round": 418,
        "rounds_total": 500,
        "step": 41812,
        "loss": 0.4312,
        "tokens_per_s": 1234.5,
        "members_last_round": 2,
        "round_seconds": 2.13,
    },
    "trainer": {"state": "running", "pid": 77, "restarts": 1},
    "peers": [
        {
            "id": "nd-b2cd-91aa-xxxx",
            "name": "barn",
            "state": "active",
            "path": "direct",
            "address": "198.51.100.4:7447",
            "rtt_s": 0.021,
            "round": 418,
            "bytes_sent": 1181116006,
            "bytes_received": 0,
            "last_seen_s": 0.3,
        },
        {
            "id": "nd-44pd-8h3c-xxxx",
            "name": "",
            "state": "lost",
            "path": "direct",
            "rtt_s": None,
            "reason": "no reply for 41 s",
            "last_seen_s": 41,
        },
    ],
    "checkpoint": {"step": 41600, "round": 416, "path": "/x/step-00041600"},
    "traffic": {"bytes_sent": 3250586, "bytes_received": 12},
    "health": [
        {"code": "clock-skew", "severity": "warning", "text": "barn is 4.2 s ahead", "hint": "NTP"}
    ],
}


def test_the_status_leads_with_the_verdict_and_ends_with_health():
    lines = status_text(STATUS).splitlines()
    assert lines[0] == 'warning  noded 0.1.0  id nd-7kq2-m4xf ("attic")  training  up 3d 4h'
    assert lines[1] == "network  listening on 192.0.2.7:7447   peers 1 active, 1 lost"
    assert "round 418 of 500  2 of 3 joined last round (2.1 s)  step 41812  loss 0.431" in lines[2]
    assert lines[-2:] == ["# Health", "#   warning clock-skew  barn is 4.2 s ahead; NTP"]


def test_a_node_that_waits_for_a_script_says_how_to_start_it():
    trainer = {"state": "none", "auto": False, "socket": "/a/trainer.sock"}
    waiting = {**STATUS, "state": "joining", "trainer": trainer}
    lines = status_text(waiting, usual_socket="/a/trainer.sock").splitlines()
    assert lines[3] == ('trainer  waiting for a script on this machine with node.join("demo", ...)')
    assert "NODED_TRAINER_SOCKET" not in lines[4]
    lines = status_text(waiting, usual_socket="/b/trainer.sock").splitlines()
    assert lines[4] == "         started with  NODED_TRAINER_SOCKET=/a/trainer.sock"
    for other in ({**waiting, "state": "finished"}, {**waiting, "trainer": {"state": "none"}}):
        assert "node.join" not in status_text(other)


def test_a_node_that_may_only_look_on_is_not_said_to_wait_for_a_script():
    trainer = {"state": "none", "auto": False, "socket": "/a/trainer.sock"}
    looking_on = {
        **STATUS,
        "state": "joining",
        "trainer": trainer,
        "swarm": {"certificate": {"role": "observer"}},
    }
    assert (
        status_text(looking_on).splitlines()[3]
        == "trainer  none: this node's certificate makes it observer"
    )
    assert "node.join" not in status_text({**looking_on, "run": None, "swarm": {}})


def test_peers_are_aligned_columns_and_lost_ones_keep_their_reason():
    lines = peers_text(STATUS["peers"]).splitlines()
    assert lines[0].split() == [
        "ID",
        "NAME",
        "STATE",
        "PATH",
        "RTT",
        "ROUND",
        "LOSS",
        "TOK/S",
        "UP",
        "DOWN",
        "SEEN",
    ]
    assert "direct 198.51.100.4:7447" in lines[1]
    assert "21 ms" in lines[1]
    assert "1.1 GiB" in lines[1]
    assert "0 B" in lines[1]
    assert lines[1].endswith("now")
    assert "(no reply for 41 s)" in lines[2]
    assert lines[2].endswith("41 s ago")
    assert lines[2].count("n/a") >= 3
    starts = {
        line.index(cell) for line, cell in zip(lines, ("STATE", "active", "lost"), strict=True)
    }
    assert len(starts) == 1


def test_sorting_and_leaving_out():
    peers = [
        {"name": "c", "rtt_s": None, "state": "active"},
        {"name": "b", "rtt_s": 0.5, "state": "left"},
        {"name": "a", "rtt_s": 0.9, "state": "active"},
    ]

    def order(**options):
        return [line.split()[1] for line in peers_text(peers, **options).splitlines()[1:]]

    assert order() == ["c", "b", "a"]
    assert order(sort="rtt") == ["b", "a", "c"]
    assert order(sort="name") == ["a", "b", "c"]
    assert order(everything=False) == ["c", "a"]


def test_unknown_is_never_a_number():
    for render in (human_bytes, duration, rtt, number):
        for unknown in (None, "x", float("nan"), True):
            assert render(unknown) == "n/a"
    assert short_id(None) == "n/a"
    assert human_bytes(0) == "0 B"
    assert rtt(0.00031) == "0.3 ms"


def test_units():
    cases = [(999, "999 B"), (1024, "1.0 KiB"), (150 * 1024, "150 KiB"), (2**50, "1024 TiB")]
    assert [human_bytes(size) for size, _ in cases] == [text for _, text in cases]
    cases = [
        (4.25, "4.2 s"),
        (41, "41 s"),
        (60, "1m"),
        (61, "1m 1s"),
        (86400 * 3 + 3600 * 4, "3d 4h"),
    ]
    assert [duration(size) for size, _ in cases] == [text for _, text in cases]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colour_only_where_somebody_sees_it_and_nobody_said_no():
    assert style_for(Terminal(), environ={}).colour
    assert not style_for(io.StringIO(), environ={}).colour
    assert not style_for(Terminal(), environ={"NO_COLOR": "1"}).colour
    assert not style_for(Terminal(), environ={"TERM": "dumb"}).colour
    assert not style_for(Terminal(), no_color=True, environ={}).colour
    assert style_for(Terminal(), environ={"NO_COLOR": ""}).colour  # no-color.org: empty is unset


def test_colour_does_not_disturb_the_columns():
    plain = peers_text(STATUS["peers"])
    painted = peers_text(STATUS["peers"], Style(colour=True))
    assert "\x1b[32mactive\x1b[0m" in painted
    import re

    assert re.sub(r"\x1b\[[0-9;]*m", "", painted) == plain


def test_what_a_peer_chose_cannot_reach_the_terminal():
    evil = "x\x1b[2J\r\n\u202egnp.exe\x9b0m\ud800"
    status = json.loads(json.dumps(STATUS))
    status["node"]["name"] = evil
    status["run"]["name"] = evil
    status["health"][0]["text"] = evil
    for peer in status["peers"]:
        peer.update(name=evil, reason=evil, path=evil, state=evil, id=evil)
    for text in (status_text(status), peers_text(status["peers"])):
        assert all(line.isprintable() for line in text.splitlines())
        assert "\\x1b[2J" in text


@given(st.text())
def test_printable_is_printable(text):
    shown = printable(text, 50)
    assert shown.isprintable()
    assert not any(unicodedata.category(character) in {"Cc", "Cf", "Cs"} for character in shown)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(sorted(STATUS)), _json), st.lists(_json, max_size=3))
def test_no_answer_however_odd_makes_it_raise(status, peers):
    assert status_text(status)
    assert peers_text(peers)
    assert peers_text(
        [{**peer, "rtt_s": 1} for peer in peers if isinstance(peer, dict)], sort="rtt"
    )


def test_a_table_without_rows_is_its_header():
    assert table(["A", "B"], []) == "A  B"


def test_relays_are_shown_by_name_and_short_and_what_is_given_as_one():
    hub, lost = "nd-hubx-aaaa-bbbb", "nd-lost-cccc-dddd"
    peers = [
        {"id": hub, "name": "hub", "state": "active", "path": "direct", "address": "11.1.0.1:7447"},
        {"id": "nd-x", "name": "far", "state": "active", "path": "relayed", "relay": hub},
        {"id": "nd-y", "name": "out", "state": "active", "path": "relayed", "relay": lost},
    ]
    status = {
        **STATUS,
        "node": {
            **STATUS["node"],
            "addresses": ["192.168.1.2:7447", f"11.1.0.1:7447/via/{hub}", f"[::1]:7/via/{lost}"],
        },
        "peers": peers,
        "relay": {
            "serving": True,
            "circuits": 3,
            "reservations": 4,
            "carried_bytes": 3 << 20,
            "budget_bytes": 8 << 30,
            "budget_left_bytes": 4 << 30,
            "refused": {"full": 2, "rate": 1},
        },
    }
    lines = status_text(status).splitlines()
    assert lines[1] == (
        "network  listening on 192.168.1.2:7447, relayed by hub, nd-lost-cccc"
        "   peers 3 active (2 over a relay)"
    )
    assert (
        "relay    3 circuits  for 4 nodes  carried 3.0 MiB  budget 4.0 GiB of 8.0 GiB left"
        "  refused 3 (full, rate)"
    ) in lines
    table_lines = peers_text(peers).splitlines()
    assert "relayed by hub " in table_lines[2]
    assert "relayed by nd-lost-cccc " in table_lines[3]
    status["relay"]["serving"] = False
    assert "relay    not serving now  carried 3.0 MiB" in status_text(status)


def test_a_round_of_more_members_than_the_epoch_has_now():
    run = {**STATUS["run"], "members_last_round": 4}
    assert "  4 joined last round (2.1 s)" in status_text({**STATUS, "run": run})
