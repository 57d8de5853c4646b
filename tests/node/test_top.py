"""The live view: rates from two looks, the slow ones named, and no status that breaks it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.cli.render_top import figures, top_text
from tests.node.fake_control import FakeDaemon, run

ME, BARN, SHED = "nd-7kq2-m4xf-aaaa", "nd-b2cd-91aa-x", "nd-c3de-22bb-y"


def peer(node: str, name: str, sent: int, received: int, **further) -> dict:
    return {
        "id": node,
        "name": name,
        "state": "active",
        "path": "direct",
        "rtt_s": 0.02,
        "round": 7,
        "loss": 1.25,
        "tokens_per_s": 900.0,
        "bytes_sent": sent,
        "bytes_received": received,
        **further,
    }


def status(sent: int = 0, received: int = 0) -> dict:
    return {
        "schema": "noded.status/1",
        "state": "training",
        "node": {"id": ME, "name": "attic", "uptime_s": 90},
        "traffic": {"bytes_sent": 2 * sent, "bytes_received": received},
        "process": {"rss_bytes": 60 << 20, "loop_lag_max_ms": 3.2},
        "run": {
            "name": "demo",
            "protocol": "diloco",
            "round": 7,
            "rounds_total": 20,
            "loss": 1.3,
            "tokens_per_s": 1000.0,
            "round_seconds": 0.5,
            "aborted_operations": 1,
            "rhythm": {
                "members": [{"id": ME, "late_s": 0.01}, {"id": BARN, "late_s": 2.5}],
                "links": [
                    {"source": BARN, "destination": ME, "bytes_per_s": 50 << 20},
                    {"source": ME, "destination": SHED, "bytes_per_s": 10 << 20},
                ],
                "findings": [
                    {"ailment": "late", "member": BARN, "other": None, "factor": 4.0},
                    {"ailment": "link", "member": ME, "other": SHED, "factor": 3.0},
                    {"ailment": "uplink", "member": SHED, "other": None, "factor": 2.0},
                    {"ailment": "downlink", "member": "nd-unknown", "other": None, "factor": 2.0},
                ],
            },
        },
        "peers": [
            peer(BARN, "barn", sent, received),
            peer(SHED, "shed", 5, 5),
            peer("nd-gone", "gone", 1, 1, state="lost"),
        ],
        "health": [],
    }


def test_rates_come_from_two_looks_and_links_from_the_run():
    shown = figures(status(3 << 20, 1 << 20), status(1 << 20, 1 << 20), 2.0)
    assert shown["sent_per_s"] == 2 << 20
    barn, shed = shown["members"]
    assert (barn["sent_per_s"], barn["received_per_s"]) == (1 << 20, 0)
    assert (barn["late_s"], barn["link_in"], barn["link_out"]) == (2.5, 50 << 20, None)
    assert (shed["link_in"], shed["link_out"]) == (None, 10 << 20)


def test_the_first_look_has_no_rates_and_a_new_connection_counts_from_zero():
    assert figures(status(5), None, 0.0)["members"][0]["sent_per_s"] is None
    assert figures(status(5), status(9), 1.0)["members"][0]["sent_per_s"] == 0


def test_the_slow_ones_are_named_in_words():
    text = top_text(figures(status(5, 5), status(), 1.0))
    assert "barn begins operations late: 4.0x its usual delay" in text
    assert "the link from attic to shed: 3.0x slower than usual" in text
    assert "what shed sends, to most members: 2.0x" in text
    assert "what nd-unknown receives" in text
    assert "round 7 of 20" in text
    assert "gone" not in text
    row = next(line for line in text.splitlines() if line.startswith("barn"))
    assert "2.5 s" in row
    assert "50.0 MiB/s" in row


def gossiping(**alone) -> dict:
    """As `status`, of a protocol without agreement; shed is a peer that does not take part."""
    shown = status(5, 5)
    shown["run"] |= {
        "protocol": "dpsgd",
        "rhythm": None,
        "round_seconds": None,
        "members_last_round": 2,
        "gossip": {
            "peers": [
                {
                    "id": BARN,
                    "models_sent": 6,
                    "models_received": 7,
                    "bytes_sent": 3 << 20,
                    "bytes_received": 4 << 20,
                    "last_model_s": 3.0,
                },
                {"id": "nd-new", "models_received": 0, "bytes_received": 0, "last_model_s": None},
            ],
            "alone": alone or None,
        },
    }
    shown["peers"].append(peer("nd-new", "new", 1, 1))
    return shown


def test_without_agreement_it_is_models_that_count():
    shown = figures(gossiping(), gossiping(), 1.0)
    assert shown["agreement"] is False
    assert shown["members"][0]["gossip"]["models_received"] == 7
    text = top_text(shown)
    assert "2 joined last round" in text
    assert not {"LATE", "LINK"} & set(text.split())
    rows = {line.split()[0]: line for line in text.splitlines() if line}
    assert "3.0 s ago" in rows["barn"]
    assert "7 (4.0 MiB)" in rows["barn"]
    assert "6 (3.0 MiB)" in rows["barn"]
    assert "none yet" in rows["new"]
    assert "no neighbour" in rows["shed"]
    assert "n/a" not in rows["barn"] + rows["shed"] + rows["run"]
    assert "alone" not in rows


def test_a_node_that_learns_alone_is_told_so_and_why():
    told = gossiping(rounds=7, reason="12 models came too late", hint="more patience")
    text = top_text(figures(told, None, 0.0))
    assert "alone no other node's model in the last 7 rounds: 12 models came too late" in text


def test_rows_that_do_not_fit_are_counted():
    text = top_text(figures(status(), status(), 1.0), height=11)
    assert "and 1 more: noded peers" in text
    assert len(text.splitlines()) <= 11


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=12,
)
keys = st.sampled_from(sorted(status()))
parts = st.sampled_from(
    [
        "members",
        "links",
        "findings",
        "rhythm",
        "id",
        "name",
        "factor",
        "ailment",
        "gossip",
        "peers",
        "alone",
    ]
)
inner = st.dictionaries(
    parts, json_values | st.lists(st.dictionaries(parts, json_values), max_size=2)
)


@given(
    now=st.dictionaries(keys, json_values | inner | st.dictionaries(parts, inner)),
    before=st.none() | st.dictionaries(keys, json_values | inner),
    elapsed_s=st.floats(0, 10),
)
def test_no_status_breaks_it(now, before, elapsed_s):
    text = top_text(figures(now, before, elapsed_s), height=10)
    assert all(line.isprintable() for line in text.splitlines())


pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def daemon(home):
    with FakeDaemon(home / ".local" / "state" / "noded" / "control.sock").serve() as fake:
        fake.answers["GET", "/v1/status"] = status(1, 1)
        yield fake


def test_once_looks_twice_and_ends(capsys, daemon):
    code, out, err = run(capsys, "top", "--once", "--every", "0.1")
    assert (code, err) == (0, "")
    assert out.startswith("noded top  attic  training")
    assert len(daemon.asked) == 2
    code, out, _ = run(capsys, "top", "--once", "--every", "0.1", "--json")
    assert json.loads(out)["schema"] == "noded.top/1"
    assert json.loads(out)["members"][0]["sent_per_s"] == 0


def test_without_a_daemon_it_is_code_3(capsys, home):
    assert run(capsys, "top", "--once")[0] == 3
