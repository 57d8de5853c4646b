"""The kit for decentralized protocols passes what is installed, and finds every fault that is planted."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest

from gossip.decentralized.kit.conformance import (
    CHECKS,
    Nonconforming,
    Subject,
    check,
    fingerprint,
    main,
    templates,
)
from gossip.decentralized.kit.rehearsal import World, node_id
from gossip.decentralized.mixing import composition
from gossip.decentralized.protocol import Completed, DecentralizedProtocol, Finished, Train
from gossip.decentralized.topology import KINDS
from gossip.errors import GossipError, InvalidSettings
from gossip.protocol import installed_protocols, load_plugin
from gossip.protocols.dpsgd import DPSGD, DPSGDSettings
from gossip.protocols.epidemic import EpidemicLearning
from tests.hash_seeds import outputs, same_under_two_hash_seeds

ROOT = Path(__file__).parents[3]
INSTALLED = sorted(
    name for name in installed_protocols() if issubclass(load_plugin(name), DecentralizedProtocol)
)


@pytest.mark.parametrize("name", INSTALLED)
@pytest.mark.parametrize("rule", sorted(CHECKS))
def test_installed_protocol_keeps(name, rule):
    CHECKS[rule](Subject(load_plugin(name)))


ROUNDS = {"model", "skip", "taken", "waiting"}
PAIRS = {"offer", "accept", "refuse", "query", "done", "check", "bye"}
MESSAGES = {
    "a2cid2": PAIRS,
    "ad-psgd": PAIRS,
    "dadao": PAIRS,
    "dfedsam": ROUNDS,
    "dpsgd": ROUNDS,
    "epidemic": ROUNDS,
    "modest": {"membership", "behind", "ping", "pong", "trained", "aggregated", "ack"},
    "noloco": ROUNDS,
    "partitioned": {"part"},
    "push-sum": {"push", "ack", "reset"},
    "token-walk": {
        *("token", "receipt", "hold", "release", "visit-q", "visit-a", "ask", "answer", "begin"),
        *("last", "fenced"),
    },
}


@pytest.mark.parametrize("name", INSTALLED)
def test_garbage_and_floods_are_made_of_every_message_that_a_protocol_has(name):
    words = {word for _, tags, _ in templates(Subject(load_plugin(name))) for _, word in tags}
    assert words == MESSAGES[name]


@pytest.mark.parametrize(
    ("protocol", "settings"),
    [
        *((DPSGD, {"graph": kind, "degree": 2}) for kind in sorted(KINDS)[::2]),
        (DPSGD, {"mixing": "variance-corrected", "variance_target": "median"}),
        (DPSGD, {"mixing": "trimmed-mean", "graph": "small-world"}),
        (DPSGD, {"mixing": "median", "graph": "full"}),
        (DPSGD, {"self_weight": 0.5}),
        (EpidemicLearning, {"sampling": "local"}),
    ],
)
def test_other_settings_keep_all_rules(protocol, settings):
    check(protocol, settings)


def test_the_same_run_in_every_process(capsys):
    output = same_under_two_hash_seeds(
        "-m", "gossip.decentralized.kit.conformance", "--fingerprint", *INSTALLED
    )
    assert [line.split()[0] for line in output.splitlines()] == INSTALLED
    assert main([INSTALLED[0]]) == 0
    assert capsys.readouterr().out == output.splitlines(keepends=True)[0], "and in this one"


def test_a_protocol_of_collectives_is_sent_to_its_own_kit(capsys):
    assert main(["diloco"]) == 2
    assert "python -m gossip.conformance diloco" in capsys.readouterr().err


@pytest.mark.parametrize("name", INSTALLED)
def test_what_is_sent_in_float32_is_refused_in_float64(name):
    """Values that float32 does not have would become infinite on their way into a model."""
    subject = Subject(load_plugin(name))
    world = subject.world(4, 6)
    world.start()
    for _, send in sorted(templates(subject).items()):
        if any(vector.dtype == np.float32 for vector in send.vectors):
            wide = [np.full(vector.size, 1e300) for vector in send.vectors]
            assert not world.inject(0, node_id(1), send.message, wide)


# ---- the page ------------------------------------------------------------------------------------

PAGE = (ROOT / "docs" / "protocols.md").read_text().partition("## Without agreement")[2]


def test_the_example_of_the_page_keeps_all_rules(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 2
    path = tmp_path / "push_one.py"
    path.write_text("\n".join(blocks))
    spec = importlib.util.spec_from_file_location("push_one", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)  # the second block calls the kit
    world = World(module.PushOne, 8, rounds=60, initial=Subject(module.PushOne, numel=8).apart)
    world.start()
    world.run_rounds(60)
    assert np.ptp(world.models(), axis=0).max() < 1e-2, "they come to agree"


def test_the_page_has_the_table_of_what_composes():
    for name, row in composition.TABLE.items():
        cells = [row.conserves_mean, *("no" if no else "yes" for no in (row.corrected, row.robust))]
        cells.append("yes" if row.asynchronous else "no")
        assert f"| `{name}` | {' | '.join(cells)} |" in PAGE
    names = re.findall(r"^\| `([a-z0-9-]+)` \|", PAGE, re.MULTILINE)
    assert set(INSTALLED) <= set(names)


# ---- planted faults: each is D-PSGD with one thing wrong -----------------------------------------


class Lenient(DPSGDSettings, frozen=True, forbid_unknown_fields=False):
    pass


class Unbounded(DPSGDSettings, frozen=True, forbid_unknown_fields=True):
    share: float = 0.5


class IgnoresUnknown(DPSGD):
    Settings = Lenient


class AcceptsNaN(DPSGD):
    Settings = Unbounded


class NamesNoKey(DPSGD):
    @classmethod
    def parse_settings(cls, raw):
        try:
            return super().parse_settings(raw)
        except InvalidSettings:
            raise InvalidSettings("something is wrong") from None


class SpeaksBeforeStart(DPSGD):
    def members(self, others, now):
        super().members(others, now)
        for other in others:
            self._skip(other, 0)


class ForgetsWhatItWasGiven(DPSGD):
    def start(self, params, now, *, round_=0):
        super().start(params if not round_ else params * 0, now, round_=round_)


class WaitsForOthers(DPSGD):
    def _close_if_complete(self, now):
        if self.others:
            super()._close_if_complete(now)

    def next_deadline(self):
        return super().next_deadline() if self.others else None


class SaysTooMuch(DPSGD):
    def describe(self):
        return {"heard": [str(other) for other in self.others] * 100}


class ShowsBytes(DPSGD):
    def describe(self):
        return {"me": object()}


class NeverFinishes(DPSGD):
    def _emit(self, event):
        if not isinstance(event, Finished):
            super()._emit(event)


class FinishesAndTrains(DPSGD):
    def _emit(self, event):
        super()._emit(event)
        if isinstance(event, Finished):
            super()._emit(Train(self.model, 1))


class KeepsToItself(DPSGD):
    def plan(self, stamp):
        from gossip.decentralized.rounds.base import Plan

        return Plan((), ())


class LearnsNothing(DPSGD):
    def after_leg(self, work):
        return self._x


class CountsAcrossRuns(DPSGD):
    calls = 0

    def mix(self, own, degree, received):
        CountsAcrossRuns.calls += 1
        return super().mix(own, degree, received) + np.float32(1e-3 * CountsAcrossRuns.calls)


class TakesAnyTick(DPSGD):
    def tick(self, now):
        if self._deadline is not None:
            self._close(now)


class MovesTheMean(DPSGD):
    def weights(self, degree, received):
        share = 1 / (1 + len(received))
        return {self.context.me: share, **{one.sender: share for one in received}}


class TrustsItsTrainer(DPSGD):
    def trained(self, work, now):
        self._training = False
        self._x = work.params.copy()
        self._open(now)


class WaitsForever(DPSGD):
    def next_deadline(self):
        return None


class ForgetsToSayHowFarItIs(DPSGD):
    def start(self, params, now, *, round_=0):
        super().start(params, now, round_=0)


class CrashesOnGarbage(DPSGD):
    def check_payload(self, vectors):
        if any(vector.size != self.context.numel for vector in vectors):
            raise ValueError("not the model")


class BelievesGarbage(DPSGD):
    def receive(self, sender, message, vectors, now):
        if vectors:
            self._x = np.resize(vectors[0], self.context.numel).astype(np.float32)
        super().receive(sender, message, vectors, now)


class KeepsEverything(DPSGD):
    def receive(self, sender, message, vectors, now):
        super().receive(sender, message, vectors, now)
        self.log = [*getattr(self, "log", []), *(vector.copy() for vector in vectors)]


class RemembersEveryStamp(DPSGD):
    def receive(self, sender, message, vectors, now):
        self.log = {**getattr(self, "log", {}), message: now}
        super().receive(sender, message, vectors, now)


class CrashesOnOddWaiting(DPSGD):
    def receive(self, sender, message, vectors, now):
        super().receive(sender, message, vectors, now)
        said = msgspec.msgpack.decode(message)
        if said["type"] == "waiting" and said["stamp"] > self.stamp + 1000:
            raise ValueError("so far ahead")


class KeepsSkips(DPSGD):
    def receive(self, sender, message, vectors, now):
        super().receive(sender, message, vectors, now)
        if msgspec.msgpack.decode(message)["type"] == "skip":
            self.log = [*getattr(self, "log", []), message]


class TrustsLosses(DPSGD):
    def undelivered(self, to, key, now):
        self._inbox.peers[to].resends += 1


class TrainsAgainWhenNamed(DPSGD):
    def members(self, others, now):
        super().members(others, now)
        if self._training:
            self._emit(Train(self.model, 1))


class SendsWhatItMixes(DPSGD):
    def mix(self, own, degree, received):
        mixed = super().mix(own, degree, received)
        for one in received:
            one.vectors[0].flags.writeable = True
            one.vectors[0][:] = 0
        own.flags.writeable = True
        own[0] += 1
        return mixed


class RepeatsRounds(DPSGD):
    def _emit(self, event):
        super()._emit(event)
        if isinstance(event, Completed):
            super()._emit(event)


FAULTS = {
    "unknown settings are ignored": (IgnoresUnknown, "settings_round_trip"),
    "settings may be not-a-number": (AcceptsNaN, "settings_round_trip"),
    "refusals name no key": (NamesNoKey, "settings_round_trip"),
    "speaks before it is started": (SpeaksBeforeStart, "quiet_before_start"),
    "forgets its parameters": (ForgetsWhatItWasGiven, "start_takes_the_parameters"),
    "alone, it waits for ever": (WaitsForOthers, "alone_trains_to_the_end"),
    "a long status": (SaysTooMuch, "status_is_plain"),
    "a status that is no JSON": (ShowsBytes, "status_is_plain"),
    "never finishes": (NeverFinishes, "finite_rounds_finish"),
    "trains after the end": (FinishesAndTrains, "finite_rounds_finish"),
    "sends nothing": (KeepsToItself, "finite_rounds_finish"),
    "learns nothing": (LearnsNothing, "finite_rounds_finish"),
    "rounds twice": (RepeatsRounds, "finite_rounds_finish"),
    "writes to what it has sent": (SendsWhatItMixes, "finite_rounds_finish"),
    "state outside the core": (CountsAcrossRuns, "same_inputs_same_run"),
    "any tick is a deadline": (TakesAnyTick, "early_ticks_change_nothing"),
    "rows that sum to 1, columns that do not": (MovesTheMean, "mean_is_conserved"),
    "divergence is passed on": (TrustsItsTrainer, "non_finite_work_is_contained"),
    "trains twice when somebody comes": (TrainsAgainWhenNamed, "nodes_come_and_go"),
    "no deadline": (WaitsForever, "losses_stop_nobody"),
    "begins from the first round again": (ForgetsToSayHowFarItIs, "restart_goes_on"),
    "another error for garbage": (CrashesOnGarbage, "garbage_is_refused"),
    "garbage changes the model": (BelievesGarbage, "garbage_is_refused"),
    "keeps all models": (KeepsEverything, "memory_is_bounded"),
    "keeps all messages": (RemembersEveryStamp, "memory_is_bounded"),
    "garbage of a rare kind": (CrashesOnOddWaiting, "garbage_is_refused"),
    "keeps messages of a rare kind": (KeepsSkips, "memory_is_bounded"),
    "losses of strangers": (TrustsLosses, "any_loss_may_be_reported"),
}


ESCAPES = {
    "a status that is no JSON": (TypeError, "type object is unsupported"),
    "another error for garbage": (ValueError, "^not the model$"),
    "garbage of a rare kind": (ValueError, "^so far ahead$"),
    "losses of strangers": (KeyError, "NodeId"),
}
"""Faults whose own error is what is seen; all the others the kit has to put into words."""


def on_hubs(fault):
    """The mean is moved on a graph whose degrees differ."""
    return {"graph": "barabasi-albert", "degree": 1} if fault is MovesTheMean else {}


@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault_is_found_by_its_rule(name):
    fault, rule = FAULTS[name]
    error, said = ESCAPES.get(name, (Nonconforming, "."))
    with pytest.raises(error, match=said):
        CHECKS[rule](Subject(fault, on_hubs(fault)))


@pytest.mark.parametrize("name", sorted(FAULTS)[::5])
def test_planted_fault_fails_the_kit_with_a_name(name):
    fault, _ = FAULTS[name]
    with pytest.raises(Nonconforming, match=f"^{fault.__name__}: [a-z_]+: .") as raised:
        check(fault, on_hubs(fault))
    assert isinstance(raised.value, GossipError)
    assert isinstance(raised.value, AssertionError), "any runner shows it as a failure"


def test_every_rule_has_a_planted_fault():
    assert {rule for _, rule in FAULTS.values()} == set(CHECKS)


class AddsByHash(DPSGD):
    """Correct in one process; another one adds in another order."""

    def mix(self, own, degree, received):
        mixed = super().mix(own, degree, received).astype(np.float32)
        words = {"alpha", "beta", "gamma", "delta", "epsilon"}
        for word in words:
            mixed = np.float32(1.0001) * mixed + np.float32(1e-4 * len(word))
        return mixed


def test_the_fingerprint_shows_an_order_by_hash():
    program = (
        "from gossip.decentralized.kit.conformance import Subject, fingerprint\n"
        "from tests.gossip.decentralized.test_conformance import AddsByHash\n"
        "print(fingerprint(Subject(AddsByHash)))"
    )
    assert fingerprint(Subject(AddsByHash)) == fingerprint(Subject(AddsByHash))
    first, second = outputs("-c", program)
    assert first != second
