"""What `noded local` shows: progress that only grows, traffic over lives, pictures and lines."""

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from node.cli.render import Style
from node.local.chart import draw_losses
from node.local.layout import PeerFiles
from node.local.summary import losses_of, perplexity, read_metrics, summarise
from node.local.view import JsonView, LiveView, PlainView, Progress
from node.local.watch import PeerView
from node.paths import node_paths


def daemon(tmp_path: Path, number: int = 1) -> SimpleNamespace:
    peer = PeerFiles(number, f"peer-{number}", node_paths(tmp_path / f"peer-{number}", {}))
    return SimpleNamespace(peer=peer, lives=1, running=True, given_up="", pid=7, exit_code=None)


def status(state: str = "training", *, step: int = 10, sent: int = 100, **more) -> dict:
    run = {"step": step, "round": 1, "loss": 2.5, "tokens": 512, "tokens_per_s": 99.0}
    return {
        "state": state,
        "node": {"id": "nd-x", "addresses": ["127.0.0.1:5"]},
        "run": {**run, "state_sha256": "aa"},
        "traffic": {"bytes_sent": sent, "bytes_received": sent},
        "peers": [{"state": "active", "path": "direct"}] * 2 + [{"state": "lost", "path": "x"}],
        **more,
    }


def test_a_peers_life_in_words(tmp_path):
    process = daemon(tmp_path)
    view = PeerView(process)
    assert (view.state, view.ready) == ("starting", False)
    view.take(status())
    assert (view.state, view.ready, view.path) == ("training", True, "2 direct")
    process.running = False
    view.take(None)
    assert view.state == "down"
    process.running, process.lives = True, 2
    view.take(None)
    assert (view.state, view.ready) == ("coming back", False)
    view.take(status("finished", sent=30))
    assert view.finished
    assert (view.bytes_sent, view.bytes_received) == (130, 130)
    process.running, process.given_up = False, "stopped"
    assert view.state == "stopped"


def test_a_peer_that_does_not_answer_keeps_its_numbers(tmp_path):
    view = PeerView(daemon(tmp_path))
    view.take(status(step=7))
    view.take(None)
    assert (view.step, view.state, view.bytes_sent) == (7, "training", 100)
    assert view.warnings == []


def test_a_trainer_that_is_gone_for_good_is_told_unless_the_run_is_over(tmp_path):
    view = PeerView(daemon(tmp_path))
    gone = {"trainer": {"state": "exited", "error": "no task named 'x'"}}
    view.take(status())
    assert view.trainer_gone is None
    view.take(status("degraded", **gone))
    assert view.trainer_gone == "no task named 'x'"
    view.take(status("finished", **gone))
    assert view.trainer_gone is None


def test_nonsense_from_a_daemon_is_shown_as_unknown(tmp_path):
    view = PeerView(daemon(tmp_path))
    for nonsense in ({}, {"run": 3, "traffic": [], "peers": 7, "node": None, "health": {}}):
        view.take(nonsense)
        assert (view.step, view.bytes_sent, view.path, view.addresses) == (0, 0, "none", [])


def test_progress_never_runs_backwards_and_knows_its_pace(tmp_path):
    one, two = (PeerView(daemon(tmp_path, number)) for number in (1, 2))
    progress = Progress(100)
    progress.update([one, two], 0.0)
    assert (progress.step, progress.eta_s) == (0, None)
    one.take(status(step=20))
    two.take(status(step=10))
    progress.update([one, two], 1000.0)
    two.take(status(step=30))
    progress.update([one, two], 1010.0)
    assert progress.step == 20
    assert progress.eta_s == pytest.approx(80.0)  # 10 steps in 10 s; the start-up does not count
    two.take(status(step=5))
    progress.update([one, two], 1011.0)
    assert progress.step == 20


def test_every_view_shows_every_state_and_escapes_what_daemons_say(tmp_path):
    view = PeerView(daemon(tmp_path))
    view.take(status("evil\x1b[2J", peers=[{"state": "active", "path": "\x1b[2J"}]))
    progress = Progress(100)
    progress.update([view], 0.0)
    for kind in (PlainView, JsonView, LiveView):
        stream = io.StringIO()
        shown = kind(stream)
        shown.event("warning", "text\x1b[2J", peer="peer-1")
        shown.update([view], progress, 0.0)
        shown.close()
        shown.close()
        assert "\x1b[2J" not in stream.getvalue()
        assert "2.5" in stream.getvalue()


def test_the_plain_view_writes_a_line_every_few_seconds(tmp_path):
    stream = io.StringIO()
    shown = PlainView(stream)
    progress = Progress(100)
    progress.update([], 0.0)
    for now in (0.0, 1.0, 4.9, 5.0, 6.0):
        shown.update([], progress, now)
    assert len(stream.getvalue().splitlines()) == 2


def test_the_json_view_is_one_object_a_line(tmp_path):
    stream = io.StringIO()
    shown = JsonView(stream)
    shown.event("peer-lost", "a\nb", peer="peer-1")
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line) == {
        "schema": "noded.local/1",
        "event": "peer-lost",
        "text": "a\nb",
        "peer": "peer-1",
    }


def test_metrics_survive_torn_lines_and_repeated_steps(tmp_path):
    peer = daemon(tmp_path).peer
    assert losses_of(peer, "eval") == []
    peer.run_dir.mkdir(parents=True)
    lines = [
        '{"kind": "eval", "step": 20, "loss": 3.0}',
        '{"kind": "eval", "step": 0, "loss": 5.0}',
        '{"kind": "report", "step": 5, "loss": 1.0}',
        '{"kind": "eval", "step": 20, "loss": 2.5}',
        '{"kind": "eval", "step": 30, "loss": NaN}',
        '{"kind": "eval", "step": "x", "loss": 1}',
        "[1]",
        "\x00\x00",
        '{"kind": "eval", "st',
    ]
    (peer.run_dir / "metrics.jsonl").write_text("\n".join(lines))
    assert losses_of(peer, "eval") == [(0, 5.0), (20, 2.5)]
    assert len(list(read_metrics(peer.run_dir / "metrics.jsonl"))) == 6


def test_a_summary_without_anything_is_honest(tmp_path):
    view = PeerView(daemon(tmp_path))
    summary = summarise([view], out=tmp_path, seconds=1.0, chart=None, reason="interrupted")
    assert (summary.ok, summary.finished, summary.agree) == (False, False, None)
    text = summary.text(Style())
    assert "not finished after 1.0 s: interrupted" in text
    assert "n/a -> n/a" in text
    assert json.loads(json.dumps(summary.to_json()))["validation_perplexity"]["before"] is None


def test_one_peer_that_did_not_finish_is_named(tmp_path):
    views = [PeerView(daemon(tmp_path, number)) for number in (1, 2)]
    views[0].take(status("finished"))
    views[1].take(status("training"))
    summary = summarise(views, out=tmp_path, seconds=1.0, chart=None, reason="")
    assert summary.reason == "peer-2 did not finish"
    assert not summary.ok


def test_perplexity():
    assert perplexity(0.0) == 1.0
    assert perplexity(None) is None
    assert perplexity(1e9) is None


def test_a_chart_is_a_png_or_nothing(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "loss.png"
    assert not draw_losses(path, {"a": []}, {}, title="t")
    assert not path.exists()
    curve = [(step, 5.0 / (step + 1)) for step in range(50)] + [(50, float("nan"))]
    assert draw_losses(path, {"a": curve, "b": []}, {"a": curve[::10], "b": []}, title="t")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_peers_with_models_of_their_own_are_not_asked_to_agree(tmp_path):
    """A decentralized protocol: how far apart they are is said instead, and progress is in rounds."""
    views = []
    for number, accuracy in ((1, 0.9), (2, 0.8)):
        view = PeerView(daemon(tmp_path, number))
        told = status("finished", step=25)
        told["run"] |= {
            "gossip": {"neighbours": []},
            "round": 5,
            "rounds_total": 10,
            "steps_total": 100,
            "state_sha256": f"{number}" * 8,
        }
        view.take(told)
        view.daemon.peer.run_dir.mkdir(parents=True)
        lines = [
            json.dumps({"kind": "eval", "step": 0, "round": 0, "loss": 2.0, "accuracy": 0.1}),
            json.dumps(
                {
                    "kind": "eval",
                    "step": 50 * number,
                    "round": 5,
                    "loss": 1.0 / number,
                    "accuracy": accuracy,
                }
            ),
        ]
        (view.daemon.peer.run_dir / "metrics.jsonl").write_text("\n".join(lines))
        views.append(view)
    assert views[0].progress_step == 50
    assert losses_of(views[1].daemon.peer, "eval", of="accuracy", by="round") == [
        (0, 0.1),
        (5, 0.8),
    ]
    progress = Progress(100)
    progress.update(views, 0.0)
    assert progress.step == 50
    summary = summarise(views, out=tmp_path, seconds=1.0, chart=None, reason="", per_byte=False)
    assert summary.ok
    assert summary.agree is False
    assert summary.loss_before == 2.0
    assert summary.loss_after == pytest.approx(0.75)
    assert summary.accuracy_after == pytest.approx(0.85)
    assert summary.spread == {"validation_loss": (0.5, 1.0), "accuracy": (0.8, 0.9)}
    text = summary.text(Style())
    assert "80.0 % to 90.0 %" in text
    assert "each peer has its own" in text
    assert "perplexity" not in text
    assert json.loads(json.dumps(summary.to_json()))["spread"]["accuracy"] == [0.8, 0.9]
