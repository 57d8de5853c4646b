"""The log of statements stays within its bound while one process runs, and never goes on behind what it cannot read."""

from types import SimpleNamespace

from node.trust import log as log_module
from node.trust.log import TrustLog
from node.trust.membership import _Writer


def test_it_is_written_anew_when_it_grows_beyond_its_bound_in_one_life(tmp_path, monkeypatch):
    monkeypatch.setattr(log_module, "MAX_LOG_BYTES", 1000)
    path = tmp_path / "log"
    log = TrustLog(path)
    log.read()
    for number in range(200):
        piece = b"%04d" % number * 10
        log.append([piece], [b"counts", piece])
        assert path.stat().st_size <= 1000
    found = TrustLog(path).read()
    assert found[0] == b"counts"
    assert found[-1] == b"0199" * 10


def test_bytes_of_something_else_are_replaced_and_not_added_to(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"x" * 14)  # as many as the log's own first ones
    log = TrustLog(path)
    assert log.read() == []
    log.append([b"one"], [b"one"])
    assert TrustLog(path).read() == [b"one"]


async def test_a_disk_that_takes_nothing_makes_no_list_grow_and_loses_nothing(tmp_path):
    """Who may invite can say new things for ever, each in place of an older one."""
    path = tmp_path / "missing" / "log"
    held: dict[int, bytes] = {}
    document = SimpleNamespace(
        statements=SimpleNamespace(statements=held), on_taken=lambda _raw: None
    )
    standing = SimpleNamespace(document=document, log=TrustLog(path), unwritten=list)
    writer = _Writer(standing)
    for number in range(50):
        held[number % 4] = b"%d" % number
        document.on_taken(held[number % 4])
        await writer.flush()
        assert len(writer._news) <= 2
    path.parent.mkdir()
    await writer.flush()
    assert not writer._news
    assert sorted(TrustLog(path).read()) == sorted(held.values())


def test_a_flipped_bit_costs_one_piece_and_no_revocation_behind_it(tmp_path):
    path = tmp_path / "log"
    log = TrustLog(path)
    log.read()
    said = [bytes([1, number]) * 40 for number in range(5)]
    log.append(said, said)
    whole = bytearray(path.read_bytes())
    for place in range(len(whole) // 3, len(whole) // 3 + 90, 7):
        flipped = bytearray(whole)
        flipped[place] ^= 1
        path.write_bytes(flipped)
        again = TrustLog(path)
        left = again.read()
        assert len(left) >= 4
        assert [each for each in said if each in left] == left
        again.append([b"new"], [*left, b"new"])
        assert TrustLog(path).read() == [*left, b"new"]
