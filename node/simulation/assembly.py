"""From a scenario to a world: ids, protocol, engine, machines and links, found, checked and put together."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import attrs
import msgspec

from gossip.decentralized.protocol import Context, DecentralizedProtocol, Vector
from gossip.errors import InvalidSettings, UnknownProtocol
from gossip.protocol import Plugin, Protocol, load_plugin
from node.errors import ConfigError
from node.simulation.chance import stream
from node.simulation.collective import CertifiedRounds, Circle
from node.simulation.disruption import struck
from node.simulation.engine import Engine, open_engine
from node.simulation.links import Network
from node.simulation.scenario import Scenario
from node.simulation.speeds import Speeds
from node.simulation.trace import Trace
from node.simulation.world import World
from transport.errors import InvalidNodeId
from transport.identity import NodeId

__all__ = ["Assembly", "assemble", "identities", "run_id_of"]


def identities(scenario: Scenario) -> list[NodeId]:
    """The nodes' ids, by index (`ConfigError` for one that is none)."""
    if not scenario.ids:
        return [
            NodeId(hashlib.sha256(f"noded simulate/{scenario.seed}/{i}".encode()).digest())
            for i in range(scenario.nodes)
        ]
    try:
        return [NodeId.parse(text) for text in scenario.ids]
    except InvalidNodeId as error:
        raise ConfigError(f"ids: {error}", key="ids") from None


def run_id_of(scenario: Scenario) -> bytes:
    """The run's id, 32 bytes."""
    if scenario.run_id:
        return bytes.fromhex(scenario.run_id)
    return hashlib.sha256(f"noded simulate/{scenario.seed}/run".encode()).digest()


def assemble(
    scenario: Scenario,
    *,
    engine: Engine | None = None,
    protocol: type[DecentralizedProtocol] | None = None,
    user_path: str = "",
) -> Assembly:
    """What a scenario names, ready to be simulated.

    Args:
        scenario: what to simulate.
        engine: trains instead of the one that the scenario names.
        protocol: its class instead of the one that the scenario names.
        user_path: folder that a task `module:Class` is imported from.

    Raises:
        ConfigError, TaskError, EngineError: the scenario cannot be run; the message says why.
    """
    ids, run_id = identities(scenario), run_id_of(scenario)
    try:
        plugin = protocol or load_plugin(scenario.protocol)
        settings = plugin.parse_settings(scenario.protocol_settings)
    except (UnknownProtocol, InvalidSettings) as error:
        raise ConfigError(str(error), key="protocol", hint=error.hint) from None
    chosen = struck(scenario.disruption, ids, run_id, settings, scenario.seed)
    relays = chosen if scenario.disruption.case == "hub-relay" else []
    if len(relays) == scenario.nodes:
        raise ConfigError("disruption.share: nobody is left to hold data", key="disruption.share")
    return Assembly(
        scenario=scenario,
        ids=ids,
        run_id=run_id,
        plugin=plugin,
        settings=settings,
        struck=chosen,
        engine=engine or _open_engine(scenario, ids, relays, user_path),
    )


def _open_engine(
    scenario: Scenario, ids: list[NodeId], relays: list[int], user_path: str
) -> Engine:
    holders = [index for index in range(scenario.nodes) if index not in set(relays)]
    place = {index: number for number, index in enumerate(holders)}
    return open_engine(
        scenario.engine,
        task=scenario.task,
        settings=scenario.task_settings,
        nodes=[str(id_) for id_ in ids],
        data=scenario.data,
        seed=scenario.seed,
        steps=scenario.rounds * scenario.every,
        parts=[(place.get(index, 0), len(holders)) for index in range(scenario.nodes)],
        without_data=relays,
        user_path=user_path,
    )


@attrs.frozen(kw_only=True)
class Assembly:
    """All that a simulation is made of."""

    scenario: Scenario
    ids: list[NodeId]
    """Of the nodes, by index."""
    run_id: bytes
    plugin: type[Plugin]
    settings: msgspec.Struct
    """Of the protocol."""
    struck: list[int]
    """Nodes that the disruption strikes."""
    engine: Engine

    def world(self, trace: Trace) -> World:
        """A new world, in which nobody has started."""
        scenario, plugin, settings = self.scenario, self.plugin, self.settings
        if issubclass(plugin, Protocol):
            circle = Circle(plugin, scenario.protocol_settings, self.ids)
            world = self._world(
                lambda index: CertifiedRounds(settings, self._context(index), circle, index),
                trace,
                common=True,
                fetch=True,
            )
            circle.bind(world)
            return world
        if not issubclass(plugin, DecentralizedProtocol):
            raise ConfigError(
                f"protocol: {scenario.protocol!r} cannot be simulated", key="protocol"
            )
        return self._world(
            lambda index: plugin(settings, self._context(index)),
            trace,
            common=scenario.common_start or plugin.needs_common_start,
            fetch=scenario.newcomers == "fetch" or plugin.needs_common_start,
        )

    def _context(self, index: int) -> Context:
        scenario = self.scenario
        return Context(
            me=self.ids[index],
            run=self.run_id,
            tensors=self.engine.tensors,
            numel=self.engine.numel,
            rng=stream(scenario.seed, "core", index),
            every=scenario.every,
            rounds=scenario.rounds,
        )

    def _world(
        self,
        make_core: Callable[[int], DecentralizedProtocol],
        trace: Trace,
        *,
        common: bool,
        fetch: bool,
    ) -> World:
        scenario = self.scenario

        def initial(index: int) -> Vector:
            return self.engine.initial(index, common=common)

        return World(
            self.ids,
            make_core=make_core,
            initial=initial,
            engine=self.engine,
            network=Network(scenario.links, scenario.nodes, scenario.seed),
            speeds=Speeds(scenario.speed, scenario.nodes, scenario.seed),
            discovery=scenario.discovery,
            seed=scenario.seed,
            fetch=fetch,
            trace=trace,
        )
