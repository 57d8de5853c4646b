"""Warnings: each code can be raised, is silent without its facts, and names the next step."""

import pytest

from node.health import CODES, Facts, HealthWarning, Severity, assess, verdict

RUN = {"run": "demo", "uptime_s": 100.0, "peers_connected": 1}

CASES = {
    "bootstrap-silent": Facts(uptime_s=100, bootstrap_configured=2, bootstrap_reached=0),
    "no-peers": Facts(uptime_s=100),
    "peer-lost": Facts(peers_lost=[("barn", "reset")]),
    "quorum-missing": Facts(**RUN, quorum_missing=True, peers_lost=[("barn", "reset")]),
    "wrong-swarm": Facts(refused_wrong_swarm=3),
    "run-not-found": Facts(run="demo", run_joined=False, uptime_s=100, peers_connected=1),
    "run-failed": Facts(**RUN, run_failure="made with other settings", trainer="exited"),
    "other-run": Facts(**RUN, other_runs=["barn"], rounds_alone=9),
    "other-model": Facts(**RUN, other_models=(2, 3), rounds_alone=9),
    "trainer-gone": Facts(**RUN, trainer="exited"),
    "trainer-restarting": Facts(**RUN, trainer="running", trainer_restarts=3),
    "loss-not-finite": Facts(**RUN, loss=float("nan")),
    "round-stalled": Facts(**RUN, round_age_s=100, round_usual_s=3),
    "training-alone": Facts(**RUN, rounds_alone=3),
    "slow-member": Facts(**RUN, slow=[("member", "barn begins operations 4.0 times later", 4.0)]),
    "slow-link": Facts(**RUN, slow=[("link", "the link from attic to barn is slow", 1.5)]),
    "identity-twice": Facts(**RUN, convicted_itself=True),
    "member-convicted": Facts(**RUN, convicted=["barn"]),
    "checkpoint-failed": Facts(checkpoint_error="No space left on device"),
    "checkpoint-damaged": Facts(checkpoint_damaged="step-00000024 cannot be used"),
    "disk-low": Facts(disk_free_bytes=1 << 20, checkpoint_bytes=1 << 20),
    "fds-low": Facts(fds=900, fd_limit=1024),
    "loop-lag": Facts(loop_lag_max_ms=300.0),
    "clock-skew": Facts(clock_skew_s={"barn": -4.2}),
    "certificate-refused": Facts(certificate_refusal="the node was revoked"),
    "certificate-ending": Facts(certificate_days_left=20.4),
    "listen-failed": Facts(address_warning="cannot listen on 0.0.0.0:7447: in use"),
}


@pytest.mark.parametrize("code", sorted(CODES))
def test_each_code_is_raised_by_its_facts_alone(code):
    warnings = assess(CASES[code])
    assert [warning.code for warning in warnings] == [code]
    assert warnings[0].text
    assert warnings[0].hint
    assert warnings[0].to_json()["severity"] in {"info", "warning", "failing"}


def test_a_quiet_node_and_a_young_one_have_no_warnings():
    assert assess(Facts()) == []
    assert assess(Facts(uptime_s=5, bootstrap_configured=1, bootstrap_reached=0)) == []
    assert assess(Facts(uptime_s=5, run="demo", run_joined=False)) == []
    assert assess(Facts(**RUN, trainer="running", loss=2.0, round_age_s=50, round_usual_s=3)) == []


def test_who_learns_alone_is_told_why_where_that_is_known():
    (warning,) = assess(
        Facts(**RUN, rounds_alone=7, alone_reason="12 came too late", alone_hint="be patient")
    )
    assert warning.text == "the last 7 rounds ended with this node alone: 12 came too late"
    assert warning.hint == "be patient"


def test_who_has_the_model_of_most_is_not_blamed():
    assert assess(Facts(**RUN, other_models=(1, 3))) == []
    assert assess(Facts(**RUN, other_models=(0, 0))) == []


def test_a_stall_that_the_trainers_death_explains_is_not_reported_as_well():
    facts = Facts(**RUN, trainer="exited", round_age_s=1000, round_usual_s=3)
    assert [warning.code for warning in assess(facts)] == ["trainer-gone"]


def test_a_finished_run_needs_no_trainer_and_no_rounds():
    facts = Facts(**RUN, run_finished=True, trainer="exited", round_age_s=9e9, round_usual_s=3)
    assert assess(facts) == []


def test_the_worst_comes_first_and_is_the_verdict():
    facts = Facts(**RUN, refused_wrong_swarm=1, loss=float("inf"), loop_lag_max_ms=300.0)
    warnings = assess(facts)
    assert [warning.code for warning in warnings] == ["loss-not-finite", "wrong-swarm", "loop-lag"]
    assert verdict(warnings) == "failing"
    assert verdict(warnings[1:]) == "warning"
    assert verdict([HealthWarning("no-peers", Severity.INFO, "x", "y")]) == "ok"
    assert verdict([]) == "ok"


def test_a_run_that_waits_for_its_members_is_not_said_to_go_on_nor_to_be_stalled():
    facts = Facts(
        **{**RUN, "peers_connected": 0},
        quorum_missing=True,
        peers_lost=[("barn", "reset")],
        round_age_s=1000,
        round_usual_s=3,
    )
    (warning,) = assess(facts)
    assert warning.code == "quorum-missing"
    assert "lost barn (reset)" in warning.text
    assert "goes on by itself" in warning.hint


def test_many_lost_peers_are_one_warning():
    facts = Facts(peers_lost=[(f"p{n}", "reset") for n in range(10)])
    (warning,) = assess(facts)
    assert warning.text.endswith("and 7 more")


def test_a_refused_node_is_told_that_and_not_what_follows_from_it():
    facts = Facts(
        uptime_s=100.0,
        certificate_refusal="the node was revoked",
        bootstrap_configured=1,
        bootstrap_reached=0,
        peers_lost=[("one", "refused")],
        run="demo",
        quorum_missing=True,
    )
    assert [warning.code for warning in assess(facts)] == ["certificate-refused"]


def test_a_bootstrap_address_says_why_it_is_silent():
    silent = Facts(
        uptime_s=100,
        bootstrap_configured=1,
        bootstrap_reached=0,
        bootstrap_reasons=["10.0.0.1:7447 does not answer: it belongs to another swarm"],
    )
    (warning,) = [w for w in assess(silent) if w.code == "bootstrap-silent"]
    assert "10.0.0.1:7447" in warning.text
    assert "noded join" in warning.hint


def test_a_finished_run_waits_for_nobody():
    assert not [
        w
        for w in assess(Facts(uptime_s=100, run="r", run_finished=True, quorum_missing=True))
        if w.code == "quorum-missing"
    ]


def test_two_stories_of_one_identity_are_told_with_what_to_do():
    (warning,) = assess(Facts(**RUN, convicted=["barn", "loft", "shed", "mill"]))
    assert warning.severity is Severity.WARNING
    assert warning.text.startswith("barn, loft, shed and 1 more signed two stories")
    (warning,) = assess(Facts(**RUN, convicted_itself=True))
    assert warning.severity is Severity.FAILING
    assert "copy of this data folder" in warning.hint
    assert assess(Facts(convicted_itself=True)) == []  # without a run there is nothing to say it in
