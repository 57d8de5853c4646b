"""The kit passes what is installed, and finds every fault that is planted."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
import pytest

from gossip.conformance import CHECKS, Nonconforming, Subject, check, fingerprint, main
from gossip.errors import GossipError
from gossip.protocol import Apply, Protocol, installed_protocols, load_plugin, load_protocol
from gossip.protocols.averaging import ParameterAveraging
from gossip.protocols.diloco import DiLoCo, MeanOncePerRound, OuterNesterov, Wire
from tests.hash_seeds import outputs, same_under_two_hash_seeds

ROOT = Path(__file__).parents[2]
COLLECTIVE = sorted(
    name for name in installed_protocols() if issubclass(load_plugin(name), Protocol)
)


@pytest.mark.parametrize("name", COLLECTIVE)
@pytest.mark.parametrize("rule", sorted(CHECKS))
@pytest.mark.parametrize("numel", [1, 2, 4097])
def test_installed_protocol_keeps(name: str, rule: str, numel: int) -> None:
    CHECKS[rule](Subject(load_protocol(name), numel=numel, seed=numel))


@pytest.mark.parametrize(
    "settings",
    [
        {"outer_momentum": 0.0, "outer_learning_rate": 1.0},
        {"outer_momentum": 0.9, "outer_learning_rate": 0.7},
        {"outer_momentum": 0.999, "outer_learning_rate": 10},
    ],
)
def test_diloco_keeps_all_rules_with_other_settings(settings: dict[str, float]) -> None:
    check(DiLoCo, settings)


@pytest.mark.parametrize("protocol", [DiLoCo, ParameterAveraging])
@pytest.mark.parametrize("wire", get_args(Wire))
def test_built_in_protocols_keep_all_rules_in_every_wire_format(
    protocol: type[Protocol], wire: str
) -> None:
    check(protocol, {"wire": wire})


def test_both_built_in_protocols_are_installed() -> None:
    assert {"diloco", "averaging"} <= set(COLLECTIVE)


def test_the_same_run_in_every_process(capsys: pytest.CaptureFixture[str]) -> None:
    names = COLLECTIVE
    output = same_under_two_hash_seeds("-m", "gossip.conformance", *names)
    assert [line.split()[0] for line in output.splitlines()] == names
    assert main(names) == 0
    assert capsys.readouterr().out == output, "and in this one"


# ---- planted faults: each is DiLoCo with one thing wrong -----------------------------------------


class Averager(OuterNesterov):
    """The fault's base: learning rate 0.7, momentum 0.5."""

    def __init__(self) -> None:
        super().__init__(0.7, 0.5)


def planted(trainer_side: type[OuterNesterov] = Averager, /, **overrides: Any) -> type[DiLoCo]:
    """A protocol with another averager, or other methods of the coordinator."""

    def make(cls: type[DiLoCo], settings: Mapping[str, Any]) -> Averager:
        cls.parse_settings(settings)
        return trainer_side()

    return type("Planted", (DiLoCo,), {"averager": classmethod(make), **overrides})


class Lenient(msgspec.Struct, frozen=True):
    outer_learning_rate: float = 0.7


class AcceptsNaN(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    outer_learning_rate: float = 0.7


class Lossy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    rounds: int = 0

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "rounds", self.rounds + 1)


def unnamed(cls: type, raw: Mapping[str, Any]) -> msgspec.Struct:
    try:
        return msgspec.convert(dict(raw), cls.Settings)
    except msgspec.ValidationError:
        from gossip.errors import InvalidSettings

        raise InvalidSettings("something is wrong with the settings") from None


def leaking(cls: type, raw: Mapping[str, Any]) -> msgspec.Struct:
    return msgspec.convert(dict(raw), cls.Settings)


class AloneTakesStep(Averager):
    def apply(self, views, *, members, weight, alone):
        super().apply(views, members=members, weight=weight, alone=False)


class AloneRounds(Averager):
    def apply(self, views, *, members, weight, alone):
        if not alone:
            super().apply(views, members=members, weight=weight, alone=False)
            return
        views["theta"][:] -= views["delta"]  # theta - (theta - x) is not x in floating point
        np.copyto(views["params"], views["theta"])


class AloneForgets(Averager):
    def apply(self, views, *, members, weight, alone):
        if not alone:
            super().apply(views, members=members, weight=weight, alone=False)
        np.copyto(views["params"], views["theta"])


class AppliesOwnPart(Averager):
    def apply(self, views, *, members, weight, alone):
        if not alone:  # the mean as average minus own part: equal on paper only
            views["reduced"][:] = (views["reduced"] - views["delta"]) + views["delta"]
        super().apply(views, members=members, weight=weight, alone=alone)


class ContributeMovesTheta(Averager):
    def contribute(self, views):
        super().contribute(views)
        views["theta"][:] -= views["delta"]


class ContributeResets(Averager):
    def contribute(self, views):
        super().contribute(views)
        np.copyto(views["params"], views["theta"])


class ContributeAccumulates(Averager):
    def contribute(self, views):
        views["delta"][:] += views["theta"] - views["params"]


class ContributeReadsOut(Averager):
    def contribute(self, views):
        super().contribute(views)
        views["delta"][:] += np.where(np.isfinite(views["reduced"]), 0, 1)


class ResumeForgetsParams(Averager):
    def resume(self, views):
        pass


class PrivateMomentum(Averager):
    consensus = ("theta",)


class KeepsItsOwnState(Averager):
    memory: float = 0.0

    def apply(self, views, *, members, weight, alone):
        self.memory += 1.0
        type(self).memory += 0.001
        super().apply(views, members=members, weight=weight, alone=alone)
        if not alone:
            views["theta"][:] += np.float32(self.memory)
            np.copyto(views["params"], views["theta"])


class RollsDice(Averager):
    def apply(self, views, *, members, weight, alone):
        super().apply(views, members=members, weight=weight, alone=alone)
        if not alone:
            views["theta"][0] += np.random.default_rng().standard_normal()


class Rebinds(Averager):
    def apply(self, views, *, members, weight, alone):
        if alone:
            super().apply(views, members=members, weight=weight, alone=alone)
        else:
            views["theta"] = views["theta"] - views["reduced"]


class DigestOfThetaOnly(Averager):
    def state_digest(self, views):
        import hashlib

        return hashlib.sha256(views["theta"].tobytes()).digest()


class DigestOfEverything(Averager):
    def state_digest(self, views):
        import hashlib

        return hashlib.sha256(b"".join(views[name].tobytes() for name in self.vectors)).digest()


class ParamsInConsensus(Averager):
    consensus = ("theta", "momentum", "params")


class MomentumFirst(Averager):
    consensus = ("momentum", "theta")


class ReducesInPlace(DiLoCo):
    def contributed(self, contribution, now):
        super().contributed(contribution, now)
        ask = self._events.pop()
        self._events.append(type(ask)(ask.round, "delta", "delta", ask.weight))


class RefusesNaN(Averager):
    def apply(self, views, *, members, weight, alone):
        if not np.isfinite(views["reduced"]).all():
            raise FloatingPointError("not finite")
        super().apply(views, members=members, weight=weight, alone=alone)


class HidesNaN(Averager):
    """Falls back to its own delta where the mean is not finite."""

    def apply(self, views, *, members, weight, alone):
        mean = views["reduced"]
        np.copyto(mean, np.where(np.isfinite(mean), mean, views["delta"]))
        super().apply(views, members=members, weight=weight, alone=alone)


def eager(self, contribution, now):
    MeanOncePerRound.contributed(self, contribution, now)
    self._events.append(Apply(contribution.round, 2, 2.0, alone=False))


def credulous(self, outcome, now):
    self._events.append(Apply(outcome.round, outcome.members, outcome.weight, outcome.members == 1))


def twice(self, outcome, now):
    if self._waiting is not None and outcome.round == self._waiting.round:
        credulous(self, outcome, now)  # and goes on waiting


def never_alone(self, outcome, now):
    if self._waiting is not None and outcome.round == self._waiting.round:
        self._waiting = None
        self._events.append(Apply(outcome.round, outcome.members, outcome.weight, alone=False))


def asks_twice(self, contribution, now):
    MeanOncePerRound.contributed(self, contribution, now)
    self._events.append(self._events[0])


def lifts_zero(self, contribution, now):
    MeanOncePerRound.contributed(self, contribution, now)
    ask = self._events.pop()
    self._events.append(type(ask)(ask.round, ask.source, ask.out, max(ask.weight, 1.0)))


def keeps_old_requests(self, contribution, now):
    pending = list(self._events)
    MeanOncePerRound.contributed(self, contribution, now)
    self._events.extendleft(reversed(pending))


FAULTS: dict[str, tuple[type[DiLoCo], str]] = {
    "unknown settings are ignored": (planted(Settings=Lenient), "settings_round_trip"),
    "settings may be not-a-number": (planted(Settings=AcceptsNaN), "settings_round_trip"),
    "settings change when stored": (planted(Settings=Lossy), "settings_round_trip"),
    "refusals name no key": (
        planted(parse_settings=classmethod(unnamed)),
        "settings_round_trip",
    ),
    "a foreign error for a wrong setting": (
        planted(parse_settings=classmethod(leaking)),
        "settings_round_trip",
    ),
    "the averager does not look at its settings": (
        planted(averager=classmethod(lambda _cls, _settings: Averager())),
        "settings_round_trip",
    ),
    "an outer step when alone": (planted(AloneTakesStep), "alone_keeps_local_work"),
    "alone, but rounded": (planted(AloneRounds), "alone_keeps_local_work"),
    "alone, the work is lost": (planted(AloneForgets), "alone_keeps_local_work"),
    "members apply different bytes": (planted(AppliesOwnPart), "members_stay_equal"),
    "contribute moves theta": (planted(ContributeMovesTheta), "contribute_leaves_state_alone"),
    "contribute resets params": (planted(ContributeResets), "contribute_leaves_state_alone"),
    "contribute adds up": (planted(ContributeAccumulates), "contribute_leaves_state_alone"),
    "contribute reads out": (planted(ContributeReadsOut), "aborted_collective_changes_nothing"),
    "resume forgets params": (planted(ResumeForgetsParams), "late_joiner_catches_up"),
    "momentum is private": (planted(PrivateMomentum), "late_joiner_catches_up"),
    "state outside the vectors": (planted(KeepsItsOwnState), "members_stay_equal"),
    "chance": (planted(RollsDice), "members_stay_equal"),
    "other memory than the shared one": (planted(Rebinds), "members_stay_equal"),
    "a digest of a part": (planted(DigestOfThetaOnly), "digest_covers_consensus"),
    "a digest of too much": (planted(DigestOfEverything), "digest_covers_consensus"),
    "params in the consensus": (planted(ParamsInConsensus), "vectors_are_declared"),
    "the model is not the first": (planted(MomentumFirst), "vectors_are_declared"),
    "reduced over its own source": (ReducesInPlace, "vectors_are_declared"),
    "fails on not-a-number": (planted(RefusesNaN), "non_finite_is_contained"),
    "hides not-a-number": (planted(HidesNaN), "non_finite_is_contained"),
    "applies at once": (planted(contributed=eager), "applies_only_certified_outcomes"),
    "applies anything": (planted(collective_done=credulous), "applies_only_certified_outcomes"),
    "applies twice": (planted(collective_done=twice), "applies_only_certified_outcomes"),
    "does not see it is alone": (
        planted(collective_done=never_alone),
        "applies_only_certified_outcomes",
    ),
    "two collectives": (planted(contributed=asks_twice), "applies_only_certified_outcomes"),
    "old requests stay": (planted(contributed=keeps_old_requests), "one_collective_at_a_time"),
    "weight 0 counts": (planted(contributed=lifts_zero), "zero_weight_moves_nothing"),
}


ESCAPES: dict[str, tuple[type[Exception], str]] = {
    "other memory than the shared one": (TypeError, "does not support item assignment"),
    "fails on not-a-number": (FloatingPointError, "^not finite$"),
}
"""Faults whose own error is what is seen; all the others the kit has to put into words."""


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_found_by_its_rule(fault: str) -> None:
    protocol, rule = FAULTS[fault]
    error, said = ESCAPES.get(fault, (Nonconforming, "."))
    with pytest.raises(error, match=said):
        CHECKS[rule](Subject(protocol))


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_fails_the_kit_with_a_name(fault: str) -> None:
    protocol, _ = FAULTS[fault]
    with pytest.raises(Nonconforming, match=f"^{protocol.__name__}: [a-z_]+: .") as raised:
        check(protocol)
    assert isinstance(raised.value, GossipError)
    assert isinstance(raised.value, AssertionError), "any runner shows it as a failure"


def test_every_rule_but_the_last_has_a_planted_fault() -> None:
    assert {rule for _, rule in FAULTS.values()} == set(CHECKS) - {"same_inputs_same_run"}


class HashOrdered(Averager):
    """Correct in one process; another process has another order of additions."""

    def contribute(self, views):
        super().contribute(views)
        words = {"alpha", "beta", "gamma", "delta", "epsilon"}
        for word in words:
            views["delta"][:] = np.float32(1.5) * views["delta"] + np.float32(len(word))


HASH_ORDERED = planted(HashOrdered)


class FollowsCalls(Averager):
    """Equal on all members, other next time: state kept outside the vectors."""

    calls = 0

    def contribute(self, views):
        FollowsCalls.calls += 1
        super().contribute(views)
        views["delta"][:] += np.float32(FollowsCalls.calls)


def test_a_run_that_differs_next_time_is_found() -> None:
    with pytest.raises(Nonconforming):
        CHECKS["same_inputs_same_run"](Subject(planted(FollowsCalls)))


def test_the_fingerprint_shows_an_order_by_hash() -> None:
    check(HASH_ORDERED)
    assert fingerprint(Subject(HASH_ORDERED)) == fingerprint(Subject(HASH_ORDERED))
    program = (
        "from gossip.conformance import Subject, fingerprint\n"
        "from tests.gossip.test_conformance import HASH_ORDERED\n"
        "print(fingerprint(Subject(HASH_ORDERED)))"
    )
    first, second = outputs("-c", program)
    assert first != second


def test_the_unbroken_base_of_the_faults_passes() -> None:
    check(planted())


# ---- the page ------------------------------------------------------------------------------------

PAGE = (ROOT / "docs" / "protocols.md").read_text()


def test_the_example_of_the_page_keeps_all_rules(tmp_path: Path) -> None:
    page = PAGE.partition("## Without agreement")[0]
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 2
    path = tmp_path / "bounded.py"
    path.write_text("\n".join(blocks))
    spec = importlib.util.spec_from_file_location("bounded", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)  # the second block calls the kit
    views = {name: np.zeros(4, np.float32) for name in module.BoundedMean.vectors}
    averager = module.BoundedAveraging.averager({"limit": 2.0})
    averager.start(views)
    views["params"][:] = [3.0, 0.0, 0.0, 4.0]
    averager.contribute(views)
    np.testing.assert_allclose(views["delta"], [-1.2, 0, 0, -1.6], rtol=1e-6)
    for numel in (1, 5, 1000):
        for rule in CHECKS.values():
            rule(Subject(module.BoundedAveraging, {"limit": 0.01}, numel=numel))
    (entry,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    (points,) = tomllib.loads(entry)["project"]["entry-points"].values()
    assert list(points) == [module.BoundedAveraging.name]


def test_the_page_names_what_there_is() -> None:
    import gossip.conformance
    import gossip.protocol
    import gossip.protocols.diloco

    modules = (gossip.conformance, gossip.protocols.diloco, gossip.protocol)
    for name in ("MeanOncePerRound", "ReduceMean", "Apply", "CHECKS", "Nonconforming"):
        assert f"`{name}" in PAGE
        assert any(hasattr(module, name) for module in modules)
    for method in ("start", "resume", "contribute", "apply"):
        assert f"| `{method}` |" in PAGE
        assert hasattr(gossip.protocol.Averager, method)
