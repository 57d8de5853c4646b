"""`noded ping --until-direct` and `noded netcheck`, from a daemon's answers and without a daemon."""

import json

import pytest

from node.cli.render_network import netcheck_text
from node.config import parse_config
from node.netcheck import check_alone
from tests.node.fake_control import PEER, FakeDaemon, run

RELAY = "nd-rela-yyyy-aaaa"
REPORT = {
    "schema": "noded.netcheck/1",
    "verdict": "punchable",
    "sentence": "behind a NAT that can be punched",
    "advice": "",
    "advertised": ["192.168.1.7:7447", f"11.1.1.1:7447/via/{RELAY}"],
    "tested": [{"address": "11.2.2.2:7447", "reached": False}],
    "mapping": {"ipv4": "independent", "ipv6": "unknown", "observers": 3},
    "port_mapping": [
        {"port": 7447, "method": None, "external": None, "failures": {"pcp": "port closed"}}
    ],
    "relays": [{"node": RELAY, "name": "hub", "rtt_s": 0.031}, {"node": RELAY, "rtt_s": None}],
    "relay_service": False,
    "punches": {"succeeded": 1, "tried": 2, "last": []},
}


pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def daemon(home):
    fake = FakeDaemon(home / ".local" / "state" / "noded" / "control.sock")
    fake.answers["GET", "/v1/netcheck"] = REPORT
    with fake.serve():
        yield fake


def pong(path: str, **fields: object) -> dict[str, object]:
    return {
        "schema": "noded.ping/1",
        "peer": PEER["id"],
        "name": "barn",
        "address": "11.2.0.1:7447",
        "replies": [{"rtt_s": 0.084, "path": path, "relay": RELAY if path == "relayed" else None}],
        **fields,
    }


def test_netcheck_asks_the_daemon(capsys, daemon):
    code, out, err = run(capsys, "netcheck")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "verdict      punchable: behind a NAT that can be punched",
        "addresses    192.168.1.7:7447  (local network)",
        "             11.1.1.1:7447 via nd-rela-yyyy  (through a relay)",
        "             11.2.2.2:7447  (closed, not advertised)",
        "nat          one outside port for all destinations (can be punched)",
        "port 7447    not mapped: pcp: port closed",
        "hole punch   1 of 2 succeeded",
        "relays       hub nd-rela-yyyy 31 ms, nd-rela-yyyy n/a",
    ]
    code, out, err = run(capsys, "netcheck", "--json")
    assert (code, json.loads(out), err) == (0, REPORT, "")


def test_the_moment_of_the_upgrade_is_shown(capsys, daemon):
    answers = iter([pong("relayed"), pong("relayed"), pong("punched")])

    class Turns(dict):
        def __getitem__(self, route):
            return next(answers) if route[1] == "/v1/ping" else super().__getitem__(route)

    daemon.answers = Turns(daemon.answers)
    code, out, _ = run(capsys, "ping", "barn", "--until-direct", "--interval", "0")
    assert code == 0
    assert out.splitlines() == [
        "pong from barn (nd-b2cd-91aa) via relay nd-rela-yyyy in 84 ms",
        "pong from barn (nd-b2cd-91aa) via relay nd-rela-yyyy in 84 ms",
        (
            "pong from barn (nd-b2cd-91aa) via punched 11.2.0.1:7447 in 84 ms"
            "   path changed from relayed"
        ),
    ]


def test_a_path_that_stays_relayed_ends_the_waiting_with_the_reason(capsys, daemon):
    daemon.answers["POST", "/v1/ping"] = pong(
        "relayed",
        last_punch={
            "reason": "no dial of either side got through",
            "attempts": [{"address": "11.2.0.1:7447", "reason": "connection timed out"}] * 4,
        },
    )
    arguments = ("ping", "barn", "--until-direct", "--interval", "0.05", "--timeout", "0.2")
    code, _, err = run(capsys, *arguments, "-v")
    assert code == 5
    assert "still reached over a relay" in err
    assert "no dial of either side got through" in err
    assert "11.2.0.1:7447: connection timed out (4 times)" in err
    code, out, _ = run(capsys, *arguments, "--json")
    assert (code, json.loads(out)["schema"]) == (5, "noded.error/1")  # one document, not two


def test_a_trial_is_shown_with_its_reason():
    def line(**trial: object) -> str:
        lines = netcheck_text({"punch_trial": {"node": RELAY, **trial}}).splitlines()
        return next(line for line in lines if line.startswith("punch trial"))

    assert line(ok=True, path="punched", reason="", took_s=1.24) == (
        "punch trial  punched with nd-rela-yyyy in 1.2 s"
    )
    assert line(ok=False, reason="no dial got through").endswith(
        "failed with nd-rela-yyyy: no dial got through"
    )
    assert line(ok=None, reason="not needed").endswith("none: not needed")


def test_what_a_newcomer_needs_to_see():
    text = netcheck_text(
        {
            "advertised": ["127.0.0.1:7447", "[::1]:7447", "192.168.1.7:7447", "11.1.1.1:7447"],
            "bootstrap_failures": {"a.example:1": "no such host", "b.example:2": "refused"},
        }
    )
    assert "127.0.0.1:7447  (this machine only)" in text
    assert "[::1]:7447  (this machine only)" in text
    assert "192.168.1.7:7447  (local network)" in text
    assert "11.1.1.1:7447\n" in text
    assert "bootstrap    a.example:1: no such host\n             b.example:2: refused" in text


def test_an_empty_report_shows_what_is_unknown():
    text = netcheck_text({})
    assert "unknown" in text
    assert "none that others could dial" in text


def test_without_a_daemon_it_looks_for_itself(home):
    data = f'[node]\ndata_dir = "{home}"\n[network]\nlisten = ["127.0.0.1:0"]\n'
    config = parse_config(data.encode()).config
    report = check_alone(config, patience_s=5.0)
    assert report["verdict"] == "isolated"
    assert "nobody to connect to" in report["sentence"]  # it has no bootstrap address to check
    assert report["punch_trial"]["ok"] is None
    assert report["daemon"] is False
    assert report["port_mapping"] == []
    assert report["advertised"][0].startswith("127.0.0.1:")
    json.dumps(report)
