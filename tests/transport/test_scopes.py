"""Resource scopes: never above a limit anywhere, all or nothing, and everything comes back."""

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from transport.budget.scopes import (
    Reservation,
    Resource,
    ResourceScopes,
    Scope,
    ScopeExceeded,
    ScopeLimits,
)
from transport.errors import UsageError
from transport.limits import HANDSHAKE_BYTES, Limits

NOTHING = (0, 0, 0, 0)


def tree() -> tuple[Scope, Scope, Scope]:
    system = Scope("system", ScopeLimits(bytes=1000, connections=4))
    peer = system.child("peer a", ScopeLimits(bytes=600, streams=2))
    return system, peer, peer.child("stream x", ScopeLimits(bytes=100))


def test_a_reservation_counts_all_the_way_up_and_comes_back():
    system, peer, stream = tree()
    with stream.reserve(bytes=100, streams=1) as held:
        assert system.used == peer.used == stream.used == held.held == (100, 1, 0, 0)
    assert system.used == peer.used == stream.used == held.held == NOTHING
    held.release()
    assert system.used == NOTHING


@pytest.mark.parametrize(
    ("where", "amount", "scope", "resource"),
    [
        (2, {"bytes": 101}, "stream x", Resource.BYTES),
        (1, {"bytes": 601}, "peer a", Resource.BYTES),
        (1, {"streams": 3}, "peer a", Resource.STREAMS),
        (2, {"connections": 5}, "system", Resource.CONNECTIONS),
        (0, {"bytes": 1001}, "system", Resource.BYTES),
    ],
)
def test_a_refusal_names_the_scope_and_the_limit_and_changes_nothing(
    where, amount, scope, resource
):
    scopes = tree()
    with pytest.raises(ScopeExceeded, match=scope) as caught:
        scopes[where].reserve(**amount)
    assert (caught.value.scope, caught.value.resource) == (scope, resource)
    assert caught.value.limit < caught.value.asked
    assert all(each.used == NOTHING for each in scopes)


def test_growing_and_shrinking():
    system, peer, _ = tree()
    held = peer.reserve(bytes=500)
    with pytest.raises(ScopeExceeded):
        held.grow(bytes=101)
    held.grow(bytes=100, streams=1)
    held.shrink(bytes=600)
    with pytest.raises(UsageError):
        held.shrink(bytes=1)
    assert system.used == (0, 1, 0, 0)
    held.release()
    for change in (held.grow, held.shrink, lambda: held.move(system)):
        with pytest.raises(UsageError):
            change()


def test_what_is_moved_is_never_counted_twice_nor_not_at_all():
    system, peer, _ = tree()
    strangers = system.child("unauthenticated", ScopeLimits(bytes=900))
    held = strangers.reserve(bytes=600, connections=4)  # the system has no fifth connection
    held.move(peer)
    assert strangers.used == NOTHING
    assert peer.used == system.used == (600, 0, 4, 0)
    more = strangers.reserve(bytes=400)
    with pytest.raises(ScopeExceeded):
        more.move(peer)
    assert strangers.used == more.held == (400, 0, 0, 0)
    held.move(system)
    assert peer.used == NOTHING
    held.move(peer)
    with pytest.raises(UsageError):
        held.move(tree()[0])
    strangers.close()
    assert more.held == NOTHING
    with pytest.raises(UsageError):
        held.move(strangers)
    assert system.used == held.held == (600, 0, 4, 0)


def test_closing_gives_everything_back_and_ends_the_scope():
    system, peer, stream = tree()
    held = [peer.reserve(bytes=10), stream.reserve(bytes=20)]
    peer.close()
    peer.close()
    assert system.used == NOTHING
    assert stream.closed
    for each in held:
        each.release()
    assert system.used == NOTHING
    with pytest.raises(UsageError):
        peer.reserve(bytes=1)
    with pytest.raises(UsageError):
        peer.child("stream y", ScopeLimits())


def test_negative_amounts_are_refused():
    with pytest.raises(UsageError):
        tree()[0].reserve(bytes=-1)


def test_the_tree_of_a_node_has_room_for_what_its_limits_promise():
    limits = Limits()
    scopes = ResourceScopes(limits)
    handshakes = [
        scopes.unauthenticated.reserve(bytes=HANDSHAKE_BYTES, connections=1, descriptors=1)
        for _ in range(limits.pending_handshakes)
    ]
    peers = [scopes.peer(f"{number}") for number in range(limits.max_peers)]
    for peer in peers:
        peer.reserve(bytes=limits.memory_per_peer_bytes // 3, connections=1, descriptors=1)
    assert "ulimit" in str(_refused(scopes.system, descriptors=10**6).hint)
    assert _refused(peers[0], connections=100).hint
    assert _refused(scopes.unauthenticated, descriptors=limits.descriptors).limit < 500
    assert "2 descriptors" in str(
        _refused(ResourceScopes(limits, descriptors=1).system, descriptors=2)
    )
    for handshake in handshakes:
        handshake.release()
    for peer in peers:
        peer.close()
    assert scopes.system.used == NOTHING


def _refused(scope: Scope, **amount: int) -> ScopeExceeded:
    with pytest.raises(ScopeExceeded) as caught:
        scope.reserve(**amount)
    return caught.value


amounts = st.fixed_dictionaries(
    {"bytes": st.integers(0, 60)},
    optional={name: st.integers(0, 3) for name in ("streams", "connections", "descriptors")},
)


class Scopes(RuleBasedStateMachine):
    """Any order of calls, against a plain list of who holds what."""

    scopes = Bundle("scopes")
    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.root = Scope("system", ScopeLimits(bytes=200, streams=6, connections=5, descriptors=4))
        self.all = [self.root]
        self.model: dict[Reservation, tuple[Scope, tuple[int, ...]]] = {}

    @rule(target=scopes)
    def the_root(self) -> Scope:
        return self.root

    @rule(target=scopes, parent=scopes, limit=st.integers(0, 150), streams=st.integers(0, 4))
    def add(self, parent: Scope, limit: int, streams: int) -> Scope:
        if parent.closed:
            return self.root
        scope = parent.child("peer", ScopeLimits(bytes=limit, streams=streams))
        self.all.append(scope)
        return scope

    @rule(target=held, scope=scopes, amount=amounts)
    def reserve(self, scope: Scope, amount: dict[str, int]) -> Reservation | None:
        before = [each.used for each in self.all]
        try:
            reservation = scope.reserve(**amount)
        except (ScopeExceeded, UsageError):
            assert [each.used for each in self.all] == before
            return None
        self.model[reservation] = (scope, reservation.held)
        return reservation

    @rule(reservation=held, size=st.integers(0, 60), grow=st.booleans())
    def resize(self, reservation: Reservation | None, size: int, grow: bool) -> None:
        if reservation is None:
            return
        try:
            (reservation.grow if grow else reservation.shrink)(bytes=size)
        except (ScopeExceeded, UsageError):
            assert reservation.held == self.model.get(reservation, (None, NOTHING))[1]
        else:
            self.model[reservation] = (self.model[reservation][0], reservation.held)

    @rule(reservation=held, scope=scopes)
    def move(self, reservation: Reservation | None, scope: Scope) -> None:
        if reservation is None:
            return
        try:
            reservation.move(scope)
        except (ScopeExceeded, UsageError):
            return
        self.model[reservation] = (scope, reservation.held)

    @rule(reservation=held)
    def release(self, reservation: Reservation | None) -> None:
        if reservation is not None:
            reservation.release()
            self.model.pop(reservation, None)

    @rule(scope=consumes(scopes))
    def close(self, scope: Scope) -> None:
        if scope is not self.root:
            scope.close()
            self.model = {r: (s, a) for r, (s, a) in self.model.items() if not s.closed}

    @invariant()
    def every_scope_holds_what_the_model_says(self) -> None:
        for scope in self.all:
            below = [a for s, a in self.model.values() if scope in s.lineage()]
            assert scope.used == tuple(map(sum, zip(*below, NOTHING, strict=True)))
            assert all(
                0 <= used <= most for used, most in zip(scope.used, scope.limits, strict=True)
            )

    def teardown(self) -> None:
        for reservation in list(self.model):
            reservation.release()
        assert all(scope.used == NOTHING for scope in self.all)


TestScopes = Scopes.TestCase
