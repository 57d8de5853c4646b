"""Whether a program says the same whatever the order of Python's sets and dicts of strings: one law, many subjects."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def start(hash_seed: str, arguments: tuple[str, ...]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def outputs(
    *arguments: str, hash_seeds: tuple[str, ...] = ("0", "1"), timeout_s: float = 400
) -> list[str]:
    """What `python ARGUMENTS` prints from the repository's root in fresh interpreters, one for each hash seed, side by side.

    An AssertionError carries the end of what a failed one wrote to standard error.
    """
    processes = [start(hash_seed, arguments) for hash_seed in hash_seeds]
    found = []
    try:
        for process in processes:
            output, messages = process.communicate(timeout=timeout_s)
            assert process.returncode == 0, messages[-2000:]
            assert output, "a program that prints nothing shows nothing"
            found.append(output)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return found


def same_under_two_hash_seeds(*arguments: str) -> str:
    """What `python ARGUMENTS` prints, having checked that another hash seed changes nothing of it."""
    first, second = outputs(*arguments)
    assert first == second, "the order of a set or a dict of strings shows in the result"
    return first
