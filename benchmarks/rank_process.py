"""A rank of a benchmark as a process of its own, seen from the run: commands and answers are lines of JSON."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any


class RankFailed(Exception):
    """A rank could not do what it was told to; the message says why."""


class RankProcess:
    """A program that reads commands from its standard input and answers on its standard output (`say`).

    Args:
        name: for messages.
        program: the file to run.
        spec: its one argument.
        prefix: the words before the command, such as those that enter a network namespace.
        environment: beside what this process has.
    """

    def __init__(
        self,
        name: str,
        program: str,
        spec: Mapping[str, Any],
        *,
        prefix: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [*prefix, sys.executable, program, json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
            text=True,
        )

    def tell(self, **command: Any) -> None:
        stdin = self.process.stdin
        assert stdin is not None
        stdin.write(json.dumps(command) + "\n")
        stdin.flush()

    def hear(self, word: str) -> Any:
        """What it says under that word in its next line."""
        stdout = self.process.stdout
        assert stdout is not None
        line = stdout.readline()
        if not line:
            raise RankFailed(f"{self.name} ended: exit code {self.process.wait()}")
        said = json.loads(line)
        if word not in said:
            raise RankFailed(f"{self.name}: {line.strip()}")
        return said[word]

    def close(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        self.process.kill()  # SIGKILL ends a stopped process as well
        self.process.wait()


def say(**words: Any) -> None:
    """Of the rank: one line, written at once: who says it may be dead the next moment."""
    os.write(1, (json.dumps(words) + "\n").encode())
