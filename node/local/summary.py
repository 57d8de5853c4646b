"""What came of a local swarm: losses before and after, traffic, agreement, and where everything lies.

Idea: the numbers come from the daemons' own files (`metrics.jsonl`) and last answers, read when they have
ended, so the summary says what happened and not what was seen. The same object is printed, written to
`summary.json`, and given to scripts.

Invariants: a missing or torn file makes a number unknown, never an error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeGuard

from node.cli.render import Style, duration, human_bytes, number, printable, table
from node.local.layout import PeerFiles
from node.local.watch import PeerView

__all__ = ["Summary", "losses_of", "read_metrics", "summarise"]

MAX_METRICS_BYTES: Final = 64 * 1024 * 1024
MAX_SAMPLE_CHARS: Final = 2000


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The end of a run."""

    finished: bool
    """Whether every peer reached the end of the run."""
    agree: bool | None
    """Whether all peers that finished hold the same parameters; None if nobody told."""
    reason: str
    """Why not, if not; else empty."""
    seconds: float
    loss_before: float | None
    loss_after: float | None
    """On the held-out data: the mean over the peers that were evaluated last."""
    accuracy_after: float | None = None
    """The same, for tasks with right answers."""
    decentralized: bool = False
    """Whether the peers' models differ by design: then what counts is how each one does, and not that they agree."""
    per_byte: bool = True
    """Whether the loss is in nats per byte."""
    tokens: int
    peers: Sequence[Mapping[str, Any]]
    sample: str
    out: str
    chart: str
    checkpoint: str

    @property
    def ok(self) -> bool:
        """Whether this is what was promised."""
        return self.finished and (self.decentralized or self.agree is True)

    @property
    def spread(self) -> dict[str, tuple[float, float]]:
        """(lowest, highest) over the peers of what was measured on the held-out data at the end."""
        found = {}
        for name in ("validation_loss", "accuracy"):
            known = [peer[name] for peer in self.peers if _is_real(peer.get(name))]
            if known:
                found[name] = (min(known), max(known))
        return found

    def to_json(self) -> dict[str, Any]:
        """The `summary` event of `noded.local/1`."""
        return {
            "schema": "noded.local/1",
            "event": "summary",
            "ok": self.ok,
            "finished": self.finished,
            "agree": self.agree,
            "reason": self.reason,
            "seconds": round(self.seconds, 3),
            "validation_loss": {"before": self.loss_before, "after": self.loss_after},
            "validation_perplexity": {
                "before": perplexity(self.loss_before),
                "after": perplexity(self.loss_after),
            },
            "accuracy": self.accuracy_after,
            "spread": {name: list(ends) for name, ends in self.spread.items()},
            "decentralized": self.decentralized,
            "tokens": self.tokens,
            "peers": [dict(peer) for peer in self.peers],
            "sample": self.sample,
            "out": self.out,
            "chart": self.chart or None,
            "checkpoint": self.checkpoint or None,
        }

    def text(self, style: Style) -> str:
        """For people."""
        lines = ["", self._headline(style), "", *self._measured()]
        lines += [
            f"{'tokens' if self.per_byte else 'samples':<22} {self.tokens:,}",
            f"parameters             {self._agreement()}",
            "",
        ]
        rows = [
            [
                str(peer["name"]),
                number(peer["step"]),
                number(peer["round"]),
                number(peer["validation_loss"], 3),
                *([_percent(peer["accuracy"])] if self.accuracy_after is not None else []),
                human_bytes(peer["bytes_sent"]),
                human_bytes(peer["bytes_received"]),
                number(peer["lives"]),
                str(peer["state_sha256"] or "n/a")[:12],
            ]
            for peer in self.peers
        ]
        right = ["ACCURACY"] if self.accuracy_after is not None else []
        header = ["PEER", "STEP", "ROUND", "VAL LOSS", *right]
        header += ["SENT", "RECEIVED", "LIVES", "PARAMETERS"]
        lines += [table(header, rows), ""]
        if self.sample:
            shown = "\n".join("  | " + printable(line, 100) for line in self.sample.split("\n"))
            lines += ["a sample of what it writes:", shown, ""]
        if self.chart:
            lines.append(f"loss curve  {self.chart}")
        if self.checkpoint:
            lines.append(f"checkpoint  {self.checkpoint}")
        lines.append(f"everything  {self.out}")
        return "\n".join(lines)

    def _headline(self, style: Style) -> str:
        if self.ok:
            return f"{style.word('finished', 'ok')} in {duration(self.seconds)}"
        what = f"not finished after {duration(self.seconds)}"
        return style.word(what, "failing") + f": {self.reason}"

    def _measured(self) -> list[str]:
        before, after = self.loss_before, self.loss_after
        unit = " nats per byte" if self.per_byte else ""
        lines = [f"validation loss        {number(before, 3)} -> {number(after, 3)}{unit}"]
        if self.per_byte:
            first, last = perplexity(before), perplexity(after)
            lines.append(f"validation perplexity  {number(first, 1)} -> {number(last, 2)}")
        if self.accuracy_after is not None:
            lines.append(f"validation accuracy    {_percent(self.accuracy_after)}")
        if self.decentralized and "accuracy" in self.spread:
            worst, best = self.spread["accuracy"]
            lines.append(f"peers                  {_percent(worst)} to {_percent(best)}")
        elif self.decentralized and "validation_loss" in self.spread:
            best, worst = self.spread["validation_loss"]
            lines.append(f"peers                  {number(best, 3)} to {number(worst, 3)}")
        return lines

    def _agreement(self) -> str:
        if self.decentralized:
            return "each peer has its own" if not self.agree else "the same on all peers"
        if self.agree is None:
            return "n/a"
        return "the same on all peers" if self.agree else "DIFFERENT between peers"


def _percent(share: object) -> str:
    return f"{100 * share:.1f} %" if _is_real(share) else "n/a"


def perplexity(loss: float | None) -> float | None:
    """exp(loss), None if unknown or beyond a float."""
    if loss is None or not loss < 700:
        return None
    return math.exp(loss)


def read_metrics(path: Path) -> Iterator[Mapping[str, Any]]:
    """The objects of a JSON-lines file; a torn line (the writer was killed) is left out."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_METRICS_BYTES)
    except OSError:
        return
    for line in data.split(b"\n"):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            yield entry


def losses_of(
    peer: PeerFiles, kind: str, *, of: str = "loss", by: str = "step"
) -> list[tuple[int, float]]:
    """(step, loss) of one kind of line, by step; a step that was done again counts once.

    `of` may name another figure, "accuracy", and `by` another measure of progress, "round".
    """
    found: dict[int, float] = {}
    for entry in read_metrics(peer.run_dir / "metrics.jsonl"):
        place, value = entry.get(by), entry.get(of)
        if entry.get("kind") == kind and isinstance(place, int) and _is_real(value):
            found[place] = value
    return sorted(found.items())


def summarise(
    views: Sequence[PeerView],
    *,
    out: Path,
    seconds: float,
    chart: Path | None,
    reason: str,
    per_byte: bool = True,
) -> Summary:
    """Put the ends together.

    Args:
        views: what was last known of each peer.
        out: the swarm's folder.
        seconds: how long it took.
        chart: the loss curve, None if there is none.
        reason: why it ended early; empty if it did not.
        per_byte: whether the loss is in nats per byte.
    """
    decentralized = any(view.decentralized for view in views)
    right: list[tuple[int, float]] = []
    peers = []
    before: list[tuple[int, float]] = []
    after: list[tuple[int, float]] = []
    tokens = 0
    for view in views:
        evaluations = losses_of(view.daemon.peer, "eval")
        before += evaluations[:1]
        after += evaluations[1:][-1:]  # the first one is of the untrained model
        accuracies = losses_of(view.daemon.peer, "eval", of="accuracy")
        right += accuracies[-1:]
        told = view.run.get("tokens")
        tokens += told if isinstance(told, int) else 0
        peers.append(
            {
                "name": view.name,
                "id": _get(view.status, "node", "id"),
                "state": str(view.status.get("state") or "n/a"),
                "step": view.step,
                "round": view.run.get("round"),
                "tokens": told,
                "validation_loss": evaluations[-1][1] if evaluations else None,
                "accuracy": accuracies[-1][1] if accuracies else None,
                "bytes_sent": view.bytes_sent,
                "bytes_received": view.bytes_received,
                "lives": view.daemon.lives,
                "state_sha256": view.run.get("state_sha256"),
                "checkpoint": _get(view.status, "checkpoint", "path"),
            }
        )
    finished = bool(peers) and all(peer["state"] == "finished" for peer in peers)
    hashes = [peer["state_sha256"] for peer in peers if peer["state"] == "finished"]
    agree = len(set(hashes)) == 1 and None not in hashes if hashes else None
    if not reason and not finished:
        late = ", ".join(str(peer["name"]) for peer in peers if peer["state"] != "finished")
        reason = f"{late} did not finish"
    elif not reason and agree is False and not decentralized:
        reason = "the peers ended with different parameters"
    return Summary(
        finished=finished,
        agree=agree,
        reason=reason,
        seconds=seconds,
        loss_before=_at(before, min),
        loss_after=_mean(after) if decentralized else _at(after, max),
        accuracy_after=_mean(right) if decentralized else _at(right, max),
        decentralized=decentralized,
        per_byte=per_byte,
        tokens=tokens,
        peers=peers,
        sample=_first_text([view.daemon.peer.run_dir / "sample.txt" for view in views]),
        out=str(out),
        chart=str(chart) if chart else "",
        checkpoint=_newest_checkpoint(views),
    )


def _at(points: Sequence[tuple[int, float]], which: Any) -> float | None:
    """The mean loss at the first or the last of the steps."""
    if not points:
        return None
    wanted = which(step for step, _ in points)
    losses = [loss for step, loss in points if step == wanted]
    return sum(losses) / len(losses)


def _mean(points: Sequence[tuple[int, float]]) -> float | None:
    """Over all peers, whatever step each one is at."""
    return sum(value for _, value in points) / len(points) if points else None


def _newest_checkpoint(views: Sequence[PeerView]) -> str:
    found = sorted(
        path for view in views for path in view.daemon.peer.run_dir.glob("checkpoints/step-*")
    )
    # Names are padded with zeros, so the highest step is the last name.
    return str(max(found, key=lambda path: path.name)) if found else ""


def _first_text(paths: Sequence[Path]) -> str:
    for path in paths:
        try:
            with path.open("rb") as file:
                text = file.read(4 * MAX_SAMPLE_CHARS).decode("utf-8", "replace")
        except OSError:
            continue
        if text.strip():
            return text[:MAX_SAMPLE_CHARS].rstrip()
    return ""


def _get(value: Mapping[str, Any], *keys: str) -> Any:
    current: Any = value
    for key in keys:
        current = current.get(key) if isinstance(current, Mapping) else None
    return current


def _is_real(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
