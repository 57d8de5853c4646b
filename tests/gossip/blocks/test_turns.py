"""Fair turns between fetchers, and the upload cap."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from gossip.blocks.turns import BURST_S, Turns


def serve(turns: Turns[str, int], count: int, now: float = 0.0) -> list[str]:
    order = []
    for _ in range(count):
        turn = turns.next(now)
        if turn is None:
            break
        order.append(turn[0])
        turns.done(turn[0])
    return order


def test_equal_shares_whatever_was_asked_first() -> None:
    turns: Turns[str, int] = Turns(places=4, queue=100)
    for number in range(50):
        assert turns.put("greedy", number, 100)
    turns.put("modest", 0, 100)
    assert turns.next(0.0) == ("greedy", 0)
    turns.put("later", 0, 100)
    order = serve(turns, 6)
    assert {"modest", "later"} <= set(order[:4])


def test_large_ones_wait_longer() -> None:
    turns: Turns[str, int] = Turns(places=1, queue=100)
    for number in range(20):
        turns.put("large", number, 400)
        turns.put("small", number, 100)
    counts = Counter(serve(turns, 20))
    assert 3 * counts["large"] <= counts["small"] <= 5 * counts["large"]


def test_slow_peers_do_not_take_all_places() -> None:
    turns: Turns[str, int] = Turns(places=4, queue=100)
    for number in range(10):
        turns.put("slow", number, 1)
        turns.put("quick", number, 1)
    taken = [turn[0] for _ in range(8) if (turn := turns.next(0.0)) is not None]
    assert Counter(taken) == {"slow": 2, "quick": 2}
    turns.done("quick")
    assert turns.next(0.0) == ("quick", 2)  # its place, not the slow one's
    assert turns.next(0.0) is None


def test_a_full_queue_refuses() -> None:
    turns: Turns[str, int] = Turns(places=1, queue=2)
    assert [turns.put("a", number, 1) for number in range(3)] == [True, True, False]
    assert turns.put("b", 0, 1)
    assert turns.waiting == 3
    assert turns.drop("a") == [0, 1]
    assert turns.drop("nobody") == []
    assert turns.waiting == 1


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 500)), max_size=60))
def test_the_cap_holds_over_any_span(items: list[tuple[str, int]]) -> None:
    rate = 1000
    turns: Turns[str, int] = Turns(places=3, queue=100, bytes_per_s=rate)
    for name, size in items:
        turns.put(name, size, size)
    now, given_out = 0.0, []
    while turns.waiting:
        turn = turns.next(now)
        if turn is None:
            at = turns.next_at(now)
            assert at is not None
            assert at >= now
            now = max(at, now) + 1e-9
            continue
        turns.done(turn[0])
        given_out.append((now, turn[1]))
    for start, _ in given_out:
        for end, _ in given_out:
            inside = [size for at, size in given_out if start <= at <= end]
            if inside:
                assert sum(inside) <= rate * (end - start + BURST_S) + max(inside) + 1
