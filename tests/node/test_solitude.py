"""Learning alone is a warning while others learn, too, and said once."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from gossip.decentralized.protocol import Solitude
from node.run.decentralized import Decentralized
from node.run.manifest import RunManifest
from transport.identity import Identity

BARN, SHED = (Identity.from_seed(bytes([number]) * 32).node_id for number in (1, 2))
ALONE = Solitude(7, "12 models came too late", "more patience")


def part(rounds: int, reached: dict[Any, int], told: Solitude | None = ALONE) -> Decentralized:
    """One that knows so much of barn and shed; its neighbours are both."""
    around: Any = SimpleNamespace(
        manifest=RunManifest(name="r", task="digits", every=1, steps=rounds),
        config=SimpleNamespace(trainer=SimpleNamespace(evaluate_every=0, checkpoint_every=0)),
    )
    progress = {bytes(node): SimpleNamespace(round=round_) for node, round_ in reached.items()}
    presence: Any = SimpleNamespace(state=SimpleNamespace(progress=lambda: progress))
    journal: Any = SimpleNamespace(on_phase=None, on_progress=lambda _progress: None)
    made = Decentralized(around, presence, journal, SimpleNamespace())  # type: ignore[arg-type]
    driver: Any = SimpleNamespace(solitude=told, neighbours=SimpleNamespace(nodes=[BARN, SHED]))
    made.driver = driver
    return made


def test_it_counts_while_anybody_else_has_rounds_to_do():
    assert part(100, {BARN: 100, SHED: 99}).solitude is ALONE
    assert part(100, {BARN: 100}).solitude is ALONE, "nothing is known of shed"
    assert part(100, {BARN: 100, SHED: 100}).solitude is None, "who is left over is alone"
    assert part(0, {BARN: 100, SHED: 100}).solitude is ALONE, "a run without an end"
    assert part(100, {}, told=None).solitude is None


def test_it_is_said_once(caplog: pytest.LogCaptureFixture):
    made = part(100, {})
    round_: Any = SimpleNamespace(round=9, model=None, members=1)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            made._on_progress(round_)
    assert caplog.messages == [
        "no other node's model came into this one's in the last 7 rounds: 12 models came too late; more patience"
    ]
