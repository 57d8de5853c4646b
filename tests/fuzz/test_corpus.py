"""Every input of the corpus again, without the fuzzer: no crash, and ceilings on memory and time for each input.

The ceilings are far above what any of them needs (a few MiB, a few milliseconds), so that a busy machine does not matter and an
input that blows up does.
"""

import time
import tracemalloc

import pytest

from tests.fuzz import CORPUS
from tests.fuzz.targets import TARGETS

PEAK_BYTES = 16 << 20
"""Decoding 64 KiB of the worst msgpack needs 5 MiB."""
SECONDS = 2.0


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_the_corpus_of(name):
    function = TARGETS[name]
    inputs = sorted((CORPUS / name).iterdir())
    assert inputs, "no corpus: python -m tests.fuzz.seeds"
    function(b"")
    for path in inputs:
        data = path.read_bytes()
        tracemalloc.start()
        start = time.process_time()
        try:
            function(data)
            _, peak = tracemalloc.get_traced_memory()
        except Exception as error:
            raise AssertionError(f"{path.name} broke the target: {error!r}") from error
        finally:
            tracemalloc.stop()
        assert time.process_time() - start < SECONDS, path.name
        assert peak < PEAK_BYTES, f"{path.name} needed {peak} bytes"


def test_every_folder_has_its_target():
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)


def test_the_seeds_are_those_that_the_code_writes_today():
    from tests.fuzz.seeds import seeds

    assert set(seeds()) == set(TARGETS)
