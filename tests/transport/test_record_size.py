"""How large a record may be follows how long writes take."""

from transport.secure.record_size import LEAST_BYTES, MOST_BYTES, RecordSize


def write(size: RecordSize, bytes_per_s: float, records: int) -> None:
    for _ in range(records):
        size.written(size.bytes, size.bytes / bytes_per_s)


def test_a_path_has_to_prove_that_it_is_fast() -> None:
    size = RecordSize()
    write(size, 2e9, 31)  # 2 MiB: that much a kernel may take at once, on any path
    assert size.bytes == LEAST_BYTES
    write(size, 2e9, 20)
    assert size.bytes == MOST_BYTES


def test_slow_writes_make_records_small_again_and_one_hiccup_does_not() -> None:
    size = RecordSize()
    write(size, 2e9, 60)
    size.written(MOST_BYTES, 0.005)
    assert size.bytes > MOST_BYTES // 2
    write(size, 2e9, 5)
    size.written(100, 10.0)  # says nothing about the path
    assert size.bytes == MOST_BYTES
    write(size, 25e6, 4)
    assert size.bytes == LEAST_BYTES
    write(size, 25e6, 100)
    assert size.bytes == LEAST_BYTES


def test_a_clock_that_stands_still_means_a_fast_path() -> None:
    size = RecordSize()
    write(size, float("inf"), 60)
    assert size.bytes == MOST_BYTES
