"""Sets, maps, counters and run documents against the plainest model of what happened.

The model keeps every edit for ever, each with the set of edits its author had seen. It knows no
dots, contexts or deltas; what should be visible follows from the edits alone.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt import log
from crdt.clock import Timestamp
from crdt.counter import PNCounter
from crdt.log import BoundedLog
from crdt.map import AWMap
from crdt.mvregister import MVRegister
from crdt.orset import ORSet
from crdt.owned import OwnedMap
from crdt.record import MemberInfo, Progress
from crdt.wire import canonical
from tests.crdt.authors import new_state

REPLICAS = 3
STEPS = st.lists(
    st.tuples(
        st.integers(0, REPLICAS - 1),
        st.integers(0, REPLICAS - 1),  # equal to the first: an edit; otherwise: merge from it
        st.booleans(),
        st.sampled_from(["k", "l"]),
        st.integers(0, 3),
    ),
    max_size=25,
)


class Edit:
    def __init__(self, seen, keep, key, value, stamp):
        self.past, self.keep, self.key, self.value, self.stamp = (
            frozenset(seen),
            keep,
            key,
            value,
            stamp,
        )


def standing(seen):
    """Edits that put something and that no seen edit of the same key knew of."""
    return [
        edit
        for edit in seen
        if edit.keep and not any(edit in other.past and other.key == edit.key for other in seen)
    ]


@given(STEPS)
def test_a_set_holds_what_was_added_and_not_knowingly_removed(steps):
    sets, seen = [ORSet()] * REPLICAS, [set() for _ in range(REPLICAS)]
    for here, there, add, element, _ in steps:
        if here != there:
            sets[here] = sets[here].join(sets[there])
            seen[here] |= seen[there]
        else:
            edit = Edit(seen[here], add, element, None, None)
            seen[here].add(edit)
            sets[here], _ = (
                sets[here].add(b"%d" % here, element) if add else sets[here].remove(element)
            )
        assert sets[here].elements() == sorted({edit.key for edit in standing(seen[here])})
        assert all((e in sets[here]) == (e in sets[here].elements()) for e in "kl")
        # Removed elements leave nothing behind but their numbers.
        assert len(sets[here].store.entries) == len(standing(seen[here]))


@given(STEPS)
def test_a_map_shows_the_latest_of_the_settings_that_stand(steps):
    maps, seen = [AWMap()] * REPLICAS, [set() for _ in range(REPLICAS)]
    counter = 0
    for here, there, add, key, wall in steps:
        if here != there:
            maps[here] = maps[here].join(maps[there])
            seen[here] |= seen[there]
        else:
            counter += 1
            stamp = Timestamp(wall, counter, b"%d" % here)
            seen[here].add(Edit(seen[here], add, key, counter, stamp))
            maps[here], _ = (
                maps[here].set(b"%d" % here, key, counter, stamp) if add else maps[here].remove(key)
            )
        expected = {}
        for edit in sorted(standing(seen[here]), key=lambda edit: edit.stamp):
            expected[edit.key] = edit.value
        assert maps[here].items() == expected
        assert list(maps[here].items()) == sorted(expected)
        assert [maps[here].get(k) for k in "kl"] == [expected.get(k) for k in "kl"]
        assert [k in maps[here] for k in "kl"] == [k in expected for k in "kl"]


@given(STEPS)
def test_a_counter_is_the_sum_of_all_seen_changes(steps):
    counters, seen = [PNCounter()] * REPLICAS, [set() for _ in range(REPLICAS)]
    for number, (here, there, up, _, amount) in enumerate(steps):
        if here != there:
            counters[here] = counters[here].join(counters[there])
            seen[here] |= seen[there]
        else:
            change = amount if up else -amount
            seen[here].add((number, change))
            counters[here], _ = counters[here].add(b"%d" % here, change)
        assert counters[here].value == sum(change for _, change in seen[here])


@given(STEPS)
def test_a_multi_value_register_shows_all_writes_that_no_seen_one_knew(steps):
    registers, seen = [MVRegister()] * REPLICAS, [set() for _ in range(REPLICAS)]
    for here, there, keep, _, value in steps:
        if here != there:
            registers[here] = registers[here].join(registers[there])
            seen[here] |= seen[there]
        else:
            seen[here].add(Edit(seen[here], keep, "k", value, None))
            registers[here], _ = (
                registers[here].set(b"%d" % here, value) if keep else registers[here].clear()
            )
        assert registers[here].values() == sorted({edit.value for edit in standing(seen[here])})


@given(STEPS)
def test_an_owned_map_shows_each_owners_last_seen_word(steps):
    maps, seen = [OwnedMap()] * REPLICAS, [{} for _ in range(REPLICAS)]
    for number, (here, there, keep, key, value) in enumerate(steps):
        if here != there:
            maps[here] = maps[here].join(maps[there])
            for name, word in seen[there].items():
                seen[here][name] = max(word, seen[here].get(name, (-1, 0)), key=lambda w: w[0])
        else:
            owner = b"%d" % here
            seen[here][owner, key] = (number, value if keep else None)
            maps[here], _ = maps[here].set(owner, key, value if keep else None)
        words = {name: value for name, (_, value) in seen[here].items() if value is not None}
        assert maps[here].items() == words
        assert all(maps[here].get(*name) == word for name, (_, word) in seen[here].items())


@given(STEPS)
def test_a_log_holds_the_latest_lines_within_quota_and_capacity(steps):
    logs, seen = [BoundedLog()] * REPLICAS, [set() for _ in range(REPLICAS)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log, "QUOTA", 2)
        patch.setattr(log, "CAPACITY", 4)
        for number, (here, there, _, text, wall) in enumerate(steps):
            if here != there:
                logs[here] = logs[here].join(logs[there])
                seen[here] |= seen[there]
            else:
                stamp = Timestamp(wall, number, b"%d" % here)
                seen[here].add((stamp, text))
                logs[here], _ = logs[here].append(text, stamp)
            mine = sorted(seen[here], reverse=True)
            within = [
                line
                for line in mine
                if [other[0].node for other in mine if other >= line].count(line[0].node) <= 2
            ]
            assert list(logs[here].lines) == sorted(within[:4])


@given(STEPS)
def test_a_run_document_shows_each_members_last_seen_word(steps):
    states = [new_state(index) for index in range(REPLICAS)]
    names = [state.node for state in states]
    said = [0] * REPLICAS  # how often each has spoken
    heard = [[0] * REPLICAS for _ in range(REPLICAS)]
    words = [[(None, None)] for _ in range(REPLICAS)]
    for here, there, member, key, number in steps:
        if here != there:
            states[here].merge(states[there].to_wire())
            heard[here] = [max(pair) for pair in zip(heard[here], heard[there], strict=True)]
        else:
            old_member, old_progress = words[here][-1]
            if member:
                word = (MemberInfo(key, ()), old_progress)
                states[here].set_member(word[0])
            else:
                word = (old_member, Progress(number, number, None, 0, 0.0))
                states[here].set_progress(word[1])
            words[here].append(word)
            said[here] += 1
            heard[here][here] = said[here]
        known = {name: words[i][heard[here][i]] for i, name in enumerate(names)}
        assert states[here].members() == {n: m for n, (m, _) in known.items() if m is not None}
        assert states[here].progress() == {n: p for n, (_, p) in known.items() if p is not None}


def test_values_that_python_calls_equal_stay_apart():
    values = ORSet()
    for element in (1, True, 1.0, "1", b"1", None):
        values, _ = values.add(b"w", element)
    assert len(values.elements()) == 6
    values, _ = values.remove(True)
    assert [canonical(element) for element in values.elements()] == sorted(
        canonical(element) for element in (1, 1.0, "1", b"1", None)
    )


def test_of_two_concurrent_settings_the_later_is_shown_in_either_order():
    early, _ = AWMap().set(b"a", "k", "early", Timestamp(1, 0, b"a"))
    late, _ = AWMap().set(b"b", "k", "late", Timestamp(2, 0, b"b"))
    assert early.join(late).items() == late.join(early).items() == {"k": "late"}
    # Entries may come in any order from a wire; the shown value does not depend on it.
    later_dot, _ = AWMap().set(b"c", "k", "early", Timestamp(1, 0, b"c"))
    assert late.join(later_dot).items() == later_dot.join(late).items() == {"k": "late"}
