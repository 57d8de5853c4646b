"""The log of statements stays within its bound while one process runs, and never goes on behind what it cannot read."""

from node.trust import log as log_module
from node.trust.log import TrustLog


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
