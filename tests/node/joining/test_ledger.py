"""The ledger over crashes, full disks and damage: never granted twice, nothing granted is lost."""

import errno
import os
import random
import stat

import pytest

from node.joining.issuer import Again, New, No
from node.joining.ledger import LedgerDamaged, Use, decode_invite, encode_invite
from node.joining.ledger_file import CannotRecord, LedgerFile
from node.joining.reasons import Reason
from node.joining.request import parse_request
from tests.node.joining.people import (
    ADDRESS,
    BOB,
    CAROL,
    HOUR_MS,
    NOW_MS,
    alice_with,
    invited,
    newcomer,
    redeemer,
)

CALLS = ("open", "fsync", "replace", "unlink", "close")
"""Of the os module: every step at which a write to the ledger can stop."""


class Crash(BaseException):
    """SIGKILL, as far as a test can have one in its own process."""


class Faults:
    """Counts the ledger's system calls, and fails or crashes at one of them, before or after its effect."""

    def __init__(self, monkeypatch, folder) -> None:
        self.folder = str(folder)
        self.at: int | None = None
        self.after = False
        self.error: BaseException = Crash()
        self.seen: list[str] = []
        self.descriptors: set[int] = set()
        for name in CALLS:
            monkeypatch.setattr(os, name, self._wrapped(name, getattr(os, name)))

    def _wrapped(self, name, real):
        def call(*arguments, **keywords):
            target = arguments[0]
            ours = target in self.descriptors or str(target).startswith(self.folder)
            if not ours:
                return real(*arguments, **keywords)
            number = len(self.seen)
            self.seen.append(name)
            if number == self.at and not self.after:
                raise self.error
            result = real(*arguments, **keywords)
            if name == "open":
                self.descriptors.add(result)
            elif name == "close":
                self.descriptors.discard(target)
            if number == self.at:
                raise self.error
            return result

        return call


class Issuer:
    """An issuer with its ledger, that can be started again from the disk."""

    def __init__(self, folder) -> None:
        self.file = LedgerFile(folder)
        invites, damaged = self.file.load()
        assert not damaged
        self.core = alice_with(*invites)

    def invite(self, **more):
        code, invite = self.core.create(
            random.Random(1).randbytes(16), [ADDRESS], now_ms=NOW_MS, life_ms=HOUR_MS, **more
        )
        self.file.store(invite)
        self.core.commit(invite)
        return code

    def ask(self, code, who) -> bytes | Reason:
        """The chain that leaves, or why none does."""
        request = parse_request(redeemer(code, who).request)
        decision = self.core.decide(request, "x", now=0.0, now_ms=NOW_MS)
        if isinstance(decision, No):
            return decision.reason
        if isinstance(decision, New):
            self.file.store(decision.invite)
            self.core.commit(decision.invite)
        return decision.use.chain


def steps(monkeypatch, folder) -> list[str]:
    """The system calls of one grant."""
    with monkeypatch.context() as patch:
        issuer = Issuer(folder)
        code = issuer.invite()
        faults = Faults(patch, folder)
        issuer.ask(code, BOB)
        return faults.seen


def test_the_grant_is_synced_before_it_is_named_and_the_name_before_it_leaves(
    tmp_path, monkeypatch
):
    seen = [
        name for name in steps(monkeypatch, tmp_path / "invites") if name in {"fsync", "replace"}
    ]
    assert seen == ["fsync", "replace", "fsync"]


@pytest.mark.parametrize("after", [False, True])
def test_a_crash_at_every_step_grants_once_and_loses_nothing(tmp_path, monkeypatch, after):
    count = len(steps(monkeypatch, tmp_path / "count"))
    assert count >= 5
    outcomes = set()
    for at in range(count):
        folder = tmp_path / f"{after}-{at}"
        issuer = Issuer(folder)
        code = issuer.invite()
        left: list[bytes] = []
        with monkeypatch.context() as patch:
            faults = Faults(patch, folder)
            faults.at, faults.after = at, after
            try:
                left.append(issuer.ask(code, BOB))
            except Crash:
                pass
        again = Issuer(folder)  # what the disk says is all there is
        carols = again.ask(code, CAROL)
        bobs = again.ask(code, BOB)
        winners = [chain for chain in (carols, bobs) if isinstance(chain, bytes)]
        assert len(winners) == 1, (at, carols, bobs)
        if left:
            assert bobs == left[0], "what had left was forgotten"
        outcomes.add(type(bobs))
        twice = Issuer(folder)
        assert [twice.ask(code, who) for who in (CAROL, BOB)] == [carols, bobs]
    assert outcomes == {bytes, Reason}, "no crash lay on each side of the decision"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_grants_nothing_and_works_again_later(tmp_path, monkeypatch, number):
    count = len(steps(monkeypatch, tmp_path / "count"))
    failures = 0
    for at in range(count):
        folder = tmp_path / str(at)
        issuer = Issuer(folder)
        code = issuer.invite()
        with monkeypatch.context() as patch:
            faults = Faults(patch, folder)
            faults.at, faults.error = at, OSError(number, os.strerror(number))
            try:
                issuer.ask(code, BOB)
            except CannotRecord:
                failures += 1
                assert issuer.core.invites[code.id].used == (), "memory is ahead of the disk"
        chain = issuer.ask(code, BOB)
        assert isinstance(chain, bytes)
        assert Issuer(folder).ask(code, BOB) == chain
    assert failures >= 4


def test_invites_survive_restarts_and_one_of_hundred_wins_over_them(tmp_path):
    folder = tmp_path / "invites"
    code = Issuer(folder).invite(uses=1)
    won = []
    for start in range(0, 100, 10):
        issuer = Issuer(folder)
        for number in range(start, start + 10):
            got = issuer.ask(code, newcomer(1000 + number))
            won += [got] if isinstance(got, bytes) else []
            assert isinstance(got, bytes) or got is Reason.USED_UP
    assert len(won) == 1


def test_files_are_for_the_owner_alone_and_hold_no_secret(tmp_path):
    folder = tmp_path / "invites"
    mask = os.umask(0)
    try:
        code = Issuer(folder).invite()
    finally:
        os.umask(mask)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (path,) = folder.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert code.secret not in path.read_bytes()
    assert code.secret not in bytes.fromhex(path.name)


def test_a_damaged_file_is_reported_and_grants_nothing(tmp_path):
    folder = tmp_path / "invites"
    code = Issuer(folder).invite()
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        bad = bytearray(whole)
        bad[place] ^= 1
        path.write_bytes(bytes(bad))
        invites, damaged = LedgerFile(folder).load()
        assert (invites, len(damaged)) == ([], 1)
    for size in (0, 10, 32, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert LedgerFile(folder).load()[0] == []
    path.write_bytes(whole)
    path.rename(folder / ("0" * 32))
    assert "another invite" in str(LedgerFile(folder).load()[1][0])
    assert (
        alice_with()
        .decide(parse_request(redeemer(code).request), "x", now=0.0, now_ms=NOW_MS)
        .reason
        is Reason.UNKNOWN
    )


def test_a_link_in_place_of_a_file_is_not_followed(tmp_path):
    folder = tmp_path / "invites"
    folder.mkdir()
    (folder / ("a" * 32)).symlink_to("/etc/hostname")
    with pytest.raises(Exception, match="cannot read the invites"):
        LedgerFile(folder).load()


def test_removing_forgets_on_disk_too(tmp_path):
    folder = tmp_path / "invites"
    issuer = Issuer(folder)
    code = issuer.invite()
    issuer.file.remove(code.id)
    issuer.file.remove(code.id)
    assert LedgerFile(folder).load() == ([], [])


def test_a_value_that_breaks_the_rules_is_no_invite():
    alice = alice_with()
    code = invited(alice)
    invite = alice.invites[code.id].with_use(Use(BOB.public_key, b"x", NOW_MS))
    with pytest.raises(ValueError, match="no more than its uses"):
        invite.with_use(Use(CAROL.public_key, b"x", NOW_MS))
    import msgspec

    twice = msgspec.structs.replace(invite, used=invite.used * 2)
    with pytest.raises(LedgerDamaged):
        decode_invite(encode_invite(twice))
    with pytest.raises(LedgerDamaged):
        decode_invite(b"\xc0")
    assert decode_invite(encode_invite(invite)) == invite
    assert isinstance(Again(invite, invite.used[0]).use.chain, bytes)
