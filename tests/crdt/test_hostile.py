"""What a liar can try with a run's document, and what comes of it. Signatures are real ones here."""

import attrs
import pytest

from crdt import entry as entries
from crdt.clock import MAX_SKEW_MS, HybridClock, Timestamp
from crdt.entry import MAX_ENTRY_BYTES, MAX_LEASE_S, START, write
from crdt.errors import ClockSkew, Forged, MalformedState, NotTheAuthor, StateTooLarge
from crdt.part import MAX_FIELDS
from crdt.record import CheckpointInfo, MemberInfo, Progress, RunInfo
from crdt.rules import LEASE_S
from crdt.verifier import NODE_BURST, WRITER_BURST, WRITER_RATE, Verifier
from tests.crdt.authors import DOCUMENT, HASH, NOW_MS, new_state, quick_verify, real_author
from transport.identity import verify

MEMBER = MemberInfo("n", ()).to_wire()


def state_of(index=0, wall_ms=lambda: NOW_MS, **options):
    return new_state(index, wall_ms, real=True, **options)


def said(
    sequence,
    value=None,
    *,
    who=1,
    previous=START,
    key="progress",
    document=DOCUMENT,
    lease_s=LEASE_S,
    at_ms=NOW_MS,
):
    """An entry that `who` signed, whatever it says."""
    author = real_author(who)
    return write(
        author,
        document,
        sequence=sequence,
        previous=previous,
        stamp=Timestamp(at_ms, 0, author.writer),
        lease_s=lease_s,
        key=key,
        value=Progress(1, sequence, None, 0, 0.0).to_wire() if value is None else value,
    )


def delta(*told, evidence=()):
    return {"v": 2, "entries": [entry.raw for entry in told], "evidence": list(evidence)}


def test_a_forged_entry_refuses_the_whole_message():
    state = state_of()
    good, forged = said(5), said(6, who=2)
    for bad in (forged.raw[:-1] + bytes([forged.raw[-1] ^ 1]), forged.raw[:-64] + good.raw[-64:]):
        with pytest.raises(Forged):
            state.merge({"v": 2, "entries": [good.raw, bad], "evidence": []})
    assert len(state) == 0
    assert state.version == 0


def test_nobody_speaks_under_another_name():
    # The name is the hash of the key in the entry: taking another key makes another writer.
    raw = said(5).raw
    stolen = raw[:1] + real_author(2).public_key + raw[33:]
    state = state_of()
    with pytest.raises(Forged):
        state.merge({"v": 2, "entries": [stolen], "evidence": []})


def test_an_entry_means_nothing_in_another_document():
    with pytest.raises(Forged):
        state_of().merge(delta(said(5, document=b"e" * 32)))


def test_a_key_of_small_order_signs_nothing():
    raw = said(5).raw
    weak = raw[:1] + (1).to_bytes(32, "little") + raw[33:]
    with pytest.raises(Forged):
        state_of().merge({"v": 2, "entries": [weak], "evidence": []})


@pytest.mark.parametrize("key", ["run", "revoked"])
def test_only_the_creator_writes_the_shared_fields(key):
    run = RunInfo("demo", DOCUMENT, "t", "p", {"lr": 0.1}.items())
    value = run.to_wire() if key == "run" else [[b"x" * 32, 5, "why"]]
    for creator in (b"", real_author(2).writer):
        with pytest.raises(NotTheAuthor):
            state_of(creator=creator).merge(delta(said(5, value, key=key, lease_s=0)))
    state = state_of(creator=real_author(1).writer)
    assert state.merge(delta(said(5, value, key=key, lease_s=0)))
    assert state.run() == run if key == "run" else list(state.revoked()) == [b"x" * 32]
    with pytest.raises(NotTheAuthor):
        state.revoke(b"y" * 32)
    with pytest.raises(NotTheAuthor):
        state.register_run(run)


def test_the_registry_pins_the_manifest_by_its_hash():
    creator = state_of(1, creator=real_author(1).writer)
    with pytest.raises(MalformedState, match="hash"):
        creator.register_run(RunInfo("demo", HASH, "t", "p"))


def test_a_checkpoint_is_announced_by_its_holder_alone():
    with pytest.raises(MalformedState):
        state_of().set_checkpoint(CheckpointInfo(1, 1, HASH, b"x" * 32))


@pytest.mark.parametrize(
    ("key", "value", "lease_s"),
    [
        ("member", ["n"], LEASE_S),
        ("member", MEMBER, 0),  # a lease is not optional
        ("progress", [1, 2, "x", 3, 4.0, b""], LEASE_S),
        ("progress", [1, 2, None, 3, float("nan"), b""], LEASE_S),
        ("checkpoints", [[1, 1, HASH], [2, 1, HASH]], LEASE_S),
        ("checkpoints", [[5 - n, 1, HASH] for n in range(5)], LEASE_S),
        ("metrics", [["b", 1.0], ["a", 1.0]], LEASE_S),
        ("unheard-of", 1, LEASE_S),
        ("x/deep", [[[[[[1]]]]]], LEASE_S),
        ("x/map", {"a": 1}, LEASE_S),
    ],
)
def test_a_field_that_makes_no_sense_is_refused(key, value, lease_s):
    state = state_of()
    with pytest.raises((MalformedState, StateTooLarge)):
        state.merge(delta(said(5, value, key=key, lease_s=lease_s)))
    assert len(state) == 0


def test_fields_of_later_releases_are_passed_on():
    state, other = state_of(), state_of(3)
    assert state.merge(delta(said(5, [1, "new"], key="x/later", lease_s=60)))
    assert other.merge(state.to_wire())
    assert other.digest() == state.digest()


def test_a_replayed_entry_changes_nothing_and_costs_no_signature():
    state = state_of()
    old, new = said(5), said(6, previous=said(5).id)
    assert state.merge(delta(old, new))
    verified = state.counters["verified"]
    for _ in range(3):
        assert not state.merge(delta(old, new))
    assert state.progress()[old.writer].step == 6
    assert state.counters["verified"] == verified


def test_a_chain_may_arrive_in_any_order():
    first, second = said(5), said(6, previous=said(5).id)
    third = said(7, MEMBER, previous=second.id, key="member")
    for order in ([third, first, second], [second, third, first]):
        state = state_of()
        for entry in order:
            state.merge(delta(entry))
        assert state.progress()[first.writer].step == 6
        assert state.members()
        assert not state.convicted()


def test_a_link_to_an_entry_that_was_never_made_convicts():
    state = state_of()
    state.merge(delta(said(5)))
    assert state.merge(delta(said(6, previous=b"z" * 32)))
    (proof,) = state.convicted().values()
    assert proof.reason == "entry 6 denies entry 5"


@pytest.mark.parametrize("together", [True, False])
def test_two_entries_with_one_sequence_convict_and_the_proof_travels(together):
    one, two = said(5), said(5, Progress(9, 9, None, 0, 0.0).to_wire())
    honest = said(9, MEMBER, who=2, key="member")
    here = state_of()
    if together:
        here.merge(delta(one, two, honest))
    else:
        here.merge(delta(one, honest))
        here.merge(delta(two))
    assert list(here.convicted()) == [one.writer]
    assert here.progress() == {}
    assert list(here.members()) == [honest.writer]
    # Later entries, however well signed, count for nothing, here and wherever the proof comes.
    there = state_of(3)
    there.merge(delta(one))
    assert there.merge(here.to_wire())
    for state in (here, there):
        assert not state.merge(delta(said(6, previous=one.id), said(99)))
        assert state.progress() == {}
    assert here.digest() == there.digest()
    # Who has other evidence against the same writer says the same thing.
    elsewhere = state_of(4)
    elsewhere.merge(delta(said(70), said(70, MEMBER, key="member"), honest))
    assert elsewhere.digest() == here.digest()


def test_the_proof_is_asked_for_and_told_by_comparison():
    knows, trusts = state_of(), state_of(3)
    one, two = said(5), said(5, MEMBER, key="member")
    knows.merge(delta(one, two))
    trusts.merge(delta(one))
    assert knows.they_lack(trusts.context()) == [(one.writer, "")]
    assert trusts.we_lack(knows.context()) == [one.writer]
    assert trusts.they_lack(knows.context()) == []
    told, _ = knows.delta(knows.they_lack(trusts.want([one.writer])))
    assert trusts.merge(told)
    assert trusts.digest() == knows.digest()


def test_evidence_is_checked_before_it_counts():
    one, two = said(5), said(5, MEMBER, key="member")
    other, later = said(5, who=2), said(8)
    forged = two.raw[:-1] + bytes([two.raw[-1] ^ 1])
    pair = sorted([one, two], key=lambda entry: entry.id)
    for first, second in ((one.raw, later.raw), (one.raw, other.raw), (one.raw, one.raw)):
        with pytest.raises(MalformedState):
            state_of().merge(delta(evidence=[[first, second]]))
    with pytest.raises(MalformedState, match="order"):
        state_of().merge(delta(evidence=[[pair[1].raw, pair[0].raw]]))
    raws = [entry.raw if entry is one else forged for entry in pair]
    with pytest.raises(Forged):
        state_of().merge(delta(evidence=[raws]))


def test_a_second_signature_over_one_entry_is_no_second_entry():
    one = said(5)
    # Ed25519 signers may choose their nonce; the entry is what was signed, not the signature.
    other = attrs.evolve(one, raw=one.raw[:-64] + bytes(64))
    assert one == other
    state = state_of()
    state.merge(delta(one))
    assert not state.merge(delta(other))
    assert not state.convicted()


def test_a_clock_far_in_the_future_blocks_nobody():
    state = state_of()
    fast = said(NOW_MS + MAX_SKEW_MS + 1, at_ms=NOW_MS)
    with pytest.raises(ClockSkew):
        state.merge(delta(fast))
    assert state.ahead == {fast.writer: MAX_SKEW_MS + 1}
    stamped = said(5, at_ms=NOW_MS + 2 * MAX_SKEW_MS + 1, who=3)
    honest = said(5, who=2)
    assert state.merge(delta(fast, stamped, honest))
    assert list(state.progress()) == [honest.writer]
    # Its owner's clock is put right: the same writer is heard again.
    assert state.merge(delta(said(NOW_MS)))
    assert fast.writer not in state.ahead


def test_an_oversized_value_is_refused_on_either_side():
    state = state_of(1)
    with pytest.raises(StateTooLarge, match="4096"):
        state.set_member(MemberInfo("n", tuple(f"{n:0>250}:1" for n in range(16))))
    assert state.edits == 0
    with pytest.raises(StateTooLarge):
        state.merge({"v": 2, "entries": [bytes(MAX_ENTRY_BYTES + 1)], "evidence": []})


def test_a_writer_has_so_many_fields_and_no_more():
    state = state_of()
    told = [said(n, n, key=f"x/{n}", lease_s=60) for n in range(1, 41)]
    for entry in told:
        state.merge(delta(entry))
    kept = state.ledger.part(told[0].writer).fields
    assert sorted(entry.sequence for entry in kept.values()) == list(range(41 - MAX_FIELDS, 41))
    assert state.ledger.size_bytes == sum(len(entry.raw) for entry in kept.values())


def test_a_node_holds_so_many_bytes_and_no_more(monkeypatch):
    monkeypatch.setattr("crdt.ledger.MAX_BYTES", 1000)
    state = state_of()
    for who in range(1, 20):
        state.merge(delta(said(who, who=who)))
    assert state.ledger.size_bytes <= 1000
    assert real_author(19).writer in state.progress()
    assert real_author(1).writer not in state.progress()


def test_a_flooding_writer_is_slowed_down_alone():
    wall = [NOW_MS]
    state = state_of(0, lambda: wall[0])
    previous = START
    for n in range(1, WRITER_BURST + 101):
        entry = said(n, previous=previous)
        previous = entry.id
        state.merge(delta(entry))
    assert state.counters["verified"] == WRITER_BURST
    assert state.counters["deferred"] == 100
    assert state.merge(delta(said(5, who=2)))  # the others notice nothing
    wall[0] += 1000
    assert state.merge(delta(entry))  # its latest word arrives with a later comparison
    assert state.progress()[entry.writer].step == n
    assert WRITER_RATE <= 20


def test_strangers_cannot_make_a_node_verify_without_end():
    verifier = Verifier(quick_verify)
    state = new_state(0)
    state.ledger.verifier = verifier
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("crdt.verifier.NODE_BURST", 50)
        for who in range(1, 80):
            other = new_state(who)
            other.set_member(MemberInfo("n", ()))
            state.merge(other.to_wire())
    assert verifier.counters["verified"] == 50
    assert verifier.counters["deferred"] == 29
    assert len(state) == 50
    assert NODE_BURST >= 3 * 4096  # what joining a full swarm takes: member, progress, checkpoints


def test_each_entry_is_verified_once():
    calls = []

    def counting(*args):
        calls.append(args)
        return verify(*args)

    state = state_of()
    state.ledger.verifier = Verifier(counting)
    told = [said(n, n, key=f"x/{n}", lease_s=60) for n in range(1, MAX_FIELDS + 5)]
    for _ in range(3):
        for entry in told:
            state.merge(delta(entry))
    assert len(calls) == len(told)


def test_a_bad_signature_does_not_speak_for_a_good_one():
    entry = said(5)
    bad = attrs.evolve(entry, raw=entry.raw[:-64] + bytes(64))
    state = state_of()
    with pytest.raises(Forged):
        state.merge(delta(bad))
    assert state.merge(delta(entry))


def test_a_lease_that_is_over_never_comes_back():
    wall = [NOW_MS]
    state = state_of(0, lambda: wall[0])
    older = said(5, lease_s=3600)
    newer = said(6, previous=older.id, lease_s=60)
    state.merge(delta(older))
    state.merge(delta(newer))
    wall[0] += 60_000
    assert state.progress() == {}  # hidden at once
    assert state.ledger.collect() == 1
    assert len(state) == 0
    # The older entry's own lease would still hold, yet it was replaced.
    assert not state.merge(delta(older))
    assert not state.merge(delta(newer))
    wall[0] += 3_600_000
    assert not state.merge(delta(older))
    # The owner itself may of course speak again.
    assert state.merge(delta(said(7, at_ms=wall[0])))
    # The floors go when nothing that old can hold a lease any more.
    state.ledger.collect()
    wall[0] += MAX_LEASE_S * 2000
    state.ledger.collect()
    state.ledger.collect()
    assert not state.ledger._floors
    assert not state.merge(delta(older, newer))


def test_a_node_that_meets_its_own_twin_falls_silent():
    one, twin = state_of(1), state_of(1)
    one.set_member(MemberInfo("one", ()))
    twin.set_member(MemberInfo("twin", ()))
    judge = state_of()
    judge.merge(one.to_wire())
    judge.merge(twin.to_wire())
    assert list(judge.convicted()) == [one.node]
    one.merge(judge.to_wire())
    edits = one.edits
    one.set_progress(Progress(1, 1, None, 0, 0.0))
    assert one.edits == edits


def test_the_layout_of_an_entry():
    entry = said(5, [1], key="x/a", lease_s=7, previous=HASH)
    author = real_author(1)
    body = (
        b"\1"
        + author.public_key
        + (5).to_bytes(8, "big")
        + HASH
        + NOW_MS.to_bytes(8, "big")
        + bytes(2)
        + (7).to_bytes(4, "big")
        + b"\3x/a"
        + b"\x91\x01"
    )
    assert entry.raw[:-64] == body
    signed = b"noded state entry v1\0\0\0\0" + DOCUMENT + body
    assert verify(author.public_key, entry.raw[-64:], signed)
    assert len({entries.parse(entry.raw, DOCUMENT), entry}) == 1
    assert HybridClock(author.writer, lambda: 0).now().node == entry.writer
