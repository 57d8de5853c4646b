"""What a node says in the run's document, and what it reads there about the others."""

from crdt.record import MemberInfo
from node.run.figures import Figures
from node.run.manifest import RunManifest
from node.run.presence import Presence
from node.run.state import open_state
from transport.identity import Identity

MANIFEST = RunManifest(name="demo", task="t")
OURS, OTHER = b"o" * 32, b"x" * 32


class Told:
    """In place of the replication: counts."""

    def __init__(self) -> None:
        self.count = 0

    def notify(self) -> None:
        self.count += 1


def states(folder, count):
    found = []
    for number in range(1, count + 1):
        place = folder / str(number)
        place.mkdir()
        found.append(open_state(Identity.from_seed(bytes([number]) * 32), MANIFEST, place))
    return found


def test_addresses_are_stated_anew_when_they_change(tmp_path):
    (state,) = states(tmp_path, 1)
    addresses, told = ["192.0.2.1:7447"], Told()
    presence = Presence(state, told, name="attic", advertised=lambda: tuple(addresses))
    presence.announce(OURS)
    version = state.version
    presence.tend()
    assert state.version == version
    addresses.append("192.0.2.2:7447")
    presence.tend()
    (member,) = state.members().values()
    assert member.addresses == ("192.0.2.1:7447", "192.0.2.2:7447")
    assert member.model == OURS
    presence.progress(Figures(round=3, step=96, val_loss=1.5))
    assert next(iter(state.progress().values())).step == 96
    assert told.count == 5, "announced twice, tended twice, progressed once"


def test_members_that_train_another_model_are_counted_among_the_connected(tmp_path):
    mine, *others = states(tmp_path, 5)
    presence = Presence(mine, Told(), name="attic", advertised=tuple)
    for other, model in zip(others, (OURS, OTHER, OTHER, b""), strict=True):
        other.set_member(MemberInfo("x", (), model=model))
        mine.merge(other.to_wire())
    connected = [node for node, _ in presence.roster()]
    assert len(connected) == 4
    assert presence.other_models(connected) == (0, 3)  # no trainer here yet: nothing to compare
    presence.announce(OURS)
    assert presence.other_models(connected) == (2, 3)
    assert presence.other_models([]) == (0, 0)
