"""What every decentralized protocol must hold, as checks that any test runner can call.

Problem: a core is called by two drivers it knows nothing of, among peers that fail and lie, and a fault shows among many
nodes and late. Idea: rehearse it (`gossip.decentralized.kit.rehearsal`, which by itself refuses what the contract forbids), with a
model that trains in a microsecond, through all that may happen to a run: silence, losses, garbage, floods, nodes that
come, go and begin again, training that diverges.

A check takes a `Subject` and returns, or raises `Nonconforming` with what was seen. `check` runs all of them. `fingerprint` digests
a whole eventful run: printed by two interpreters with different PYTHONHASHSEED
(``python -m gossip.decentralized.kit.conformance NAME``) it must be the same line.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import attrs
import msgspec
import numpy as np

from gossip.decentralized.kit.hostile import EXTREMES, footprint, mutations
from gossip.decentralized.kit.rehearsal import Links, Quadratic, Trainer, World, idle, node_id
from gossip.decentralized.protocol import (
    DecentralizedProtocol,
    LocalWork,
    Send,
    Train,
    Vector,
)
from gossip.protocol import load_plugin
from gossip.rehearsal import Nonconforming, require
from gossip.settings_check import check_settings
from transport.identity import NodeId

__all__ = ["CHECKS", "Nonconforming", "Subject", "check", "fingerprint"]

LIMIT_S: Final = 100_000.0
"""Virtual seconds in which a run of a few rounds has to end, whatever is lost: many times the longest patience."""
FLOOD: Final = 150
"""Messages of the first half of a flood; what a node holds after the second half must be no more."""
MAX_STATUS_BYTES: Final = 4096
MAX_KINDS: Final = 64
"""Kinds of messages that are looked at; free text in a message would make one of each."""
RECORDED: Final = 4
"""Eventful runs that messages are taken from."""
STRETCHED: Final = 400.0
"""By so much every second one of them is longer, so that others ask what has become of who trains or is cut off."""


@attrs.frozen
class Subject:
    """A protocol with the settings to check it with."""

    protocol: type[DecentralizedProtocol]
    settings: Mapping[str, Any] = attrs.field(factory=dict)
    numel: int = 33
    seed: int = 0

    def world(
        self, count: int, rounds: int, trainer: Trainer | None = None, **options: Any
    ) -> World:
        """Nodes with different data, all beginning with one model."""
        return World(
            self.protocol,
            count,
            trainer or self.trainer(count),
            settings=self.settings,
            seed=self.seed,
            numel=self.numel,
            rounds=rounds,
            **options,
        )

    def trainer(self, count: int) -> Quadratic:
        """Each node is drawn elsewhere."""
        centres = np.random.default_rng((self.seed, 7)).standard_normal((count, self.numel))
        return Quadratic(centres, 0.1)

    def apart(self, index: int) -> Vector:
        """Other initial parameters for each node."""
        rng = np.random.default_rng((self.seed, 8, index))
        return rng.standard_normal(self.numel).astype(np.float32)


def finish(world: World, nodes: Sequence[int] | None = None) -> None:
    """Let time pass until all (or these) nodes have finished, and what is under way has arrived."""
    wanted = [world.nodes[index] for index in nodes or [node.index for node in world.alive]]
    world.run(world.now + LIMIT_S, stop=lambda: all(node.finished for node in wanted))
    waiting = [node.index for node in wanted if not node.finished]
    require(not waiting, f"nodes {waiting} have not finished after {LIMIT_S:g} virtual seconds")
    world.run(world.now + 10 * world.links.delay_s[1])


# ---- settings --------------------------------------------------------------------------------


def settings_round_trip(subject: Subject) -> None:
    """Settings survive the manifest, and what is not one of them is refused by its name."""
    check_settings(subject.protocol, subject.settings)


# ---- one node ------------------------------------------------------------------------------------


def quiet_before_start(subject: Subject) -> None:
    """A core whose trainer is not ready asks for nothing, whatever it hears."""
    heard = templates(subject)
    world = subject.world(3, 2)
    core = subject.protocol(world.settings, world.context(0))
    core.members(sorted(node_id(index) for index in (1, 2)), 0.0)
    for _, send in sorted(heard.items()):
        core.receive(node_id(1), send.message, [vector.copy() for vector in send.vectors], 0.0)
    core.undelivered(node_id(2), 0, 0.0)
    event = core.next_event()
    require(event is None, f"before it is started, the core asks for {event!r}")


def alone_trains_to_the_end(subject: Subject) -> None:
    """A swarm of one trains, and finishes."""
    world = subject.world(1, 4)
    centre = np.asarray(subject.trainer(1).centres[0], np.float64)
    far = float(np.linalg.norm(world.initial(0) - centre))
    world.start()
    finish(world)
    near = float(np.linalg.norm(world.models()[0] - centre))
    require(near < far, "alone, the model has learnt nothing")


def start_takes_the_parameters(subject: Subject) -> None:
    """Right after `start` the model is what was given, also that of a checkpoint."""
    for round_ in (0, 3):
        world = subject.world(2, 9)
        params = subject.apart(5)
        core = subject.protocol(world.settings, world.context(0))
        core.members([node_id(1)], 1.0)
        core.start(params.copy(), 1.0, round_=round_)
        require(
            core.model.tobytes() == params.tobytes(), f"start in round {round_} changes the model"
        )


def status_is_plain(subject: Subject) -> None:
    """`describe` is a small JSON object at any time."""
    world = subject.world(3, 3)
    sizes: list[int] = []

    def look(index: int, _event: object, _now: float) -> None:
        core = world.nodes[index].core
        if core is not None and world.nodes[index].started:
            sizes.append(len(msgspec.json.encode(dict(core.describe()))))

    world.on_event = look
    world.start()
    finish(world)
    require(sizes and max(sizes) <= MAX_STATUS_BYTES, f"a status of {max(sizes, default=0)} bytes")


# ---- a run ---------------------------------------------------------------------------------------


def finite_rounds_finish(subject: Subject) -> None:
    """With rounds given, every node finishes; models are passed on meanwhile, and get better."""
    world = subject.world(
        5, 6, initial=None if subject.protocol.needs_common_start else subject.apart
    )
    world.start()
    far = _distance(world)
    finish(world)
    require(world.models_sent > 0, "no model was ever sent")
    require(_distance(world) < far, "after the run the models are no better than before it")


def _distance(world: World) -> float:
    """Of the nodes' mean model from the common optimum."""
    assert isinstance(world.trainer, Quadratic), "only of quadratics the optimum is known"
    optimum = np.mean(np.asarray(world.trainer.centres, np.float64), axis=0)
    return float(np.linalg.norm(np.mean(world.models(), axis=0, dtype=np.float64) - optimum))


def same_inputs_same_run(subject: Subject) -> None:
    """The same seed gives the same run to the last bit."""
    require(fingerprint(subject) == fingerprint(subject), "two equal runs end differently")


def early_ticks_change_nothing(subject: Subject) -> None:
    """A `tick` before the deadline is none."""
    results = []
    for impatient in (False, True):
        world = subject.world(4, 4)
        world.impatient = impatient
        world.start()
        finish(world)
        results.append([model.tobytes() for model in world.models()])
    require(results[0] == results[1], "ticks before the deadline change the run")


def mean_is_conserved(subject: Subject) -> None:
    """Where it is promised: mixing alone moves the mean of all models no further than what they still differ by."""
    if not subject.protocol.keeps_mean(subject.protocol.parse_settings(dict(subject.settings))):
        return
    world = subject.world(8, 30, idle, initial=subject.apart)
    before = np.mean([subject.apart(index) for index in range(8)], axis=0, dtype=np.float64)
    world.start()
    finish(world)
    models = np.array(world.models(), np.float64)
    spread = float(np.abs(models - models.mean(axis=0)).max())
    moved = float(np.abs(models.mean(axis=0) - before).max())
    require(
        moved <= spread + 1e-5, f"the mean moved by {moved:.2g}, with a spread of {spread:.2g} left"
    )


def non_finite_work_is_contained(subject: Subject) -> None:
    """Training that diverges at one node reaches no other, and not its own model either."""
    good = subject.trainer(4)

    def diverging(node: int, leg: Train) -> LocalWork:
        work = good(node, leg)
        if node != 1:
            return work
        bad = np.full_like(work.params, np.nan)
        bad[::2] = np.inf
        gradient = None if work.gradient is None else bad.copy()
        return attrs.evolve(work, params=bad, gradient=gradient, loss=None)

    world = subject.world(4, 5, diverging)
    world.start()
    finish(world)
    require(all(np.isfinite(model).all() for model in world.models()), "a model is not finite")


def nodes_come_and_go(subject: Subject) -> None:
    """Whoever crashes, leaves, joins or begins again: all that are there in the end finish."""
    world = _eventful(subject)
    finish(world)
    require(all(np.isfinite(model).all() for model in world.models()), "a model is not finite")


def _eventful(
    subject: Subject,
    links: Links | None = None,
    on_event: Callable[[int, object, float], None] | None = None,
    stretch: float = 1.0,
) -> World:
    """Legs of training and the events between them take `stretch` times as long; patience and delays do not."""
    world = subject.world(8, 12, links=links or Links(), step_s=lambda _node: 0.1 * stretch)
    if on_event is not None:
        world.on_event = on_event
    world.start(range(6))
    for time, event in (
        (0.31, lambda: world.crash(1)),
        (0.45, lambda: world.join(6)),
        (0.52, lambda: world.leave(2)),
        (0.77, lambda: world.part([0, 3], [4, 5, 6])),
        (0.95, lambda: world.restart(1)),
        (1.10, lambda: world.restart(2)),  # who had said goodbye
        (1.30, lambda: world.crash(4)),
        (1.33, lambda: world.restart(4)),  # perhaps before anybody has noticed
        (1.60, world.heal),
        (2.05, lambda: world.join(7)),
    ):
        world.at(time * stretch, event)
    world.run(2.05 * stretch)
    return world


def losses_stop_nobody(subject: Subject) -> None:
    """With a third of the messages lost, noticed or not, everybody finishes all the same."""
    for noticed in (0.0, 1.0):
        world = subject.world(5, 4, links=Links(loss=0.33, noticed=noticed))
        world.start()
        finish(world)


def restart_goes_on(subject: Subject) -> None:
    """Whoever begins again from a checkpoint counts on from there, also if all do; and who had finished has finished."""
    world = subject.world(4, 8)
    world.start()
    for again in ([1], [0, 1, 2, 3]):
        world.run(world.now + LIMIT_S, stop=lambda: all(node.round >= 2 for node in world.nodes))
        counts = {index: len(world.nodes[index].completed) for index in again}
        for index in again:
            world.crash(index)
        for index in again:
            world.restart(index)
        world.run(world.now + 1)
        for index, count in counts.items():
            rounds = [round_ for _, round_, _ in world.nodes[index].completed]
            later = rounds[count:]
            require(
                not later or later[0] > rounds[count - 1],
                f"a node that was restarted in round {rounds[count - 1]} goes on with {later[:3]}",
            )
    finish(world)
    world.crash(2)
    legs: list[Train] = []
    world.on_event = lambda index, event, _now: (
        legs.append(event) if index == 2 and isinstance(event, Train) else None
    )
    world.restart(2)
    finish(world, [2])
    left = max(8 - world.nodes[2].round, 0)
    require(len(legs) <= left + 1, f"with {left} rounds to go, a node trains {len(legs)} legs")


# ---- peers that lie ------------------------------------------------------------------------------


Kind = tuple[tuple[str, ...], tuple[tuple[str, str], ...], int]
"""Of a message: names of its fields, those with their values that are words (tags), and the number of vectors beside it."""


def kind_of(send: Send) -> Kind:
    """What tells messages that a core treats differently from each other."""
    decoded = msgspec.msgpack.decode(send.message)
    require(isinstance(decoded, dict), f"a message is a packed Struct, not {decoded!r}")
    words = tuple((key, value) for key, value in sorted(decoded.items()) if isinstance(value, str))
    return tuple(sorted(decoded)), words, len(send.vectors)


def templates(subject: Subject) -> dict[Kind, Send]:
    """A message of each kind that was sent in runs with events and losses; of a quiet one, if it occurs there.

    The rarer ones, about what was lost or is overdue, are sent under such circumstances only.
    """
    found: dict[Kind, Send] = {}

    def record(_index: int, event: object, _now: float) -> None:
        if isinstance(event, Send) and len(found) < MAX_KINDS:
            found.setdefault(kind_of(event), event)

    quiet = subject.world(4, 3)
    quiet.on_event = record
    quiet.start()
    finish(quiet)
    for seed in range(RECORDED):
        another = attrs.evolve(subject, seed=subject.seed + seed)
        lossy = Links(loss=0.1 + 0.05 * seed, noticed=0.5)
        finish(_eventful(another, lossy, record, STRETCHED if seed % 2 else 1.0))
    return found


def garbage_is_refused(subject: Subject) -> None:
    """Whatever a peer sends, the core raises `MalformedMessage` or nothing, and goes on; the model stays finite."""
    rng = random.Random(subject.seed)
    recorded = templates(subject)
    world = subject.world(4, 6)
    now: dict[Kind, tuple[NodeId, Send]] = {}
    """What was sent to the victim in this very run, whose sessions, rounds and numbers fit."""

    def record(index: int, event: object, _now: float) -> None:
        if isinstance(event, Send) and event.to == node_id(0) and len(now) < MAX_KINDS:
            now[kind_of(event)] = (node_id(index), event)

    world.on_event = record
    world.start()
    for kind, send in sorted(recorded.items()):
        for _ in range(3):
            world.run(world.now + 0.07)
            sender, live = now.get(kind, (node_id(1), send))
            for message, vectors in mutations(live, rng):
                others = (node_id(1), node_id(2), node_id(3), node_id(99))
                world.inject(0, rng.choice((sender, *others)), message, vectors)
    world.run(world.now + 5)
    model = world.models()[0]
    require(np.isfinite(model).all(), "after garbage, the model is not finite")


def memory_is_bounded(subject: Subject) -> None:
    """What one peer can make a node hold does not grow with what it sends."""
    subject = attrs.evolve(subject, numel=2048)
    recorded = sorted(templates(subject).items())
    for own_step_s in (1e6, 0.01):  # while it trains, and while it waits for the others
        for kind, send in recorded:
            _flood(subject, own_step_s, " ".join(word for _, word in kind[1]), send)


def _flood(subject: Subject, own_step_s: float, kind: str, send: Send) -> None:
    world = subject.world(4, 1000, step_s=lambda node: 1e6 if node else own_step_s)
    world.start()
    world.run(0.2)
    held = []
    decoded = msgspec.msgpack.decode(send.message)
    for half in (1, 2):
        for count in range(FLOOD * (half - 1), FLOOD * half):
            fields = {
                key: value + count
                if isinstance(value, int) and not isinstance(value, bool)
                else value
                for key, value in decoded.items()
            }
            world.inject(0, node_id(1), msgspec.msgpack.encode(fields), send.vectors)
        held.append(footprint(world.nodes[0].core))
    require(
        held[1] <= held[0] * 1.2 + 4096,
        f"after {FLOOD} messages {kind!r} of one peer a node holds {held[0]} bytes,"
        f" after {2 * FLOOD} it holds {held[1]}",
    )


def any_loss_may_be_reported(subject: Subject) -> None:
    """`undelivered` may come for anything, any time: for what arrived, for what is long over, for one that is gone."""
    world = subject.world(4, 6)
    world.start()
    rng = random.Random(subject.seed)
    for _ in range(30):
        world.run(world.now + 0.03)
        for index in (0, 1):
            core = world.nodes[index].core
            if core is not None:
                to, key = node_id(rng.randrange(6)), rng.choice((*EXTREMES, *range(20)))
                world.report_loss(index, to, key)
    finish(world)


Check = Callable[[Subject], None]

CHECKS: Final[Mapping[str, Check]] = MappingProxyType(
    {
        run.__name__: run
        for run in (
            settings_round_trip,
            quiet_before_start,
            start_takes_the_parameters,
            alone_trains_to_the_end,
            status_is_plain,
            finite_rounds_finish,
            same_inputs_same_run,
            early_ticks_change_nothing,
            mean_is_conserved,
            non_finite_work_is_contained,
            nodes_come_and_go,
            losses_stop_nobody,
            restart_goes_on,
            garbage_is_refused,
            memory_is_bounded,
            any_loss_may_be_reported,
        )
    }
)
"""All checks by name, in the order in which faults are best looked for."""


def fingerprint(subject: Subject) -> str:
    """Digest of an eventful run, with losses: every event of every core, and the models it ends with."""
    world = _eventful(subject, Links(loss=0.05, noticed=0.5))
    world.run(30.0)
    return world.fingerprint()


def check(protocol: type[DecentralizedProtocol], settings: Mapping[str, Any] | None = None) -> None:
    """Run all checks.

    Raises:
        Nonconforming: with the protocol's and the check's name.
    """
    subject = Subject(protocol, settings or {})
    for name, run in CHECKS.items():
        try:
            run(subject)
        except Nonconforming as error:
            raise Nonconforming(f"{protocol.__name__}: {name}: {error}") from None
        except Exception as error:
            raise Nonconforming(f"{protocol.__name__}: {name}: it raised {error!r}") from error


def main(names: Sequence[str]) -> int:
    """Check installed protocols by name; one line each, with the fingerprint of a run (only that with --fingerprint)."""
    checked = "--fingerprint" not in names
    for name in (name for name in names if name != "--fingerprint"):
        protocol = load_plugin(name)
        if not issubclass(protocol, DecentralizedProtocol):
            sys.stderr.write(f"{name} makes collectives: python -m gossip.conformance {name}\n")
            return 2
        if checked:
            check(protocol)
        sys.stdout.write(f"{name} {fingerprint(Subject(protocol))}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
