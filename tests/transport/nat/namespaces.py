"""Network namespaces for tests: made, used and removed as root, touching nothing of the machine's own network."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import pytest


@cache
def missing(*programs: str) -> str:
    """Why namespaces cannot be had here, or ""."""
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    for program in ("ip", *programs):
        if shutil.which(program) is None:
            return f"needs the program {program}"
    name = f"noded-try-{os.getpid()}"
    tried = subprocess.run(
        ["ip", "netns", "add", name], check=False, capture_output=True, text=True
    )
    if tried.returncode:
        return f"network namespaces are not allowed here: {tried.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return ""


def run(*command: str, check: bool = True) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
    if check and done.returncode:
        pytest.fail(f"{' '.join(command)}: {done.stderr or done.stdout}")
    return done.stdout


class Namespace:
    """One network namespace."""

    def __init__(self, name: str) -> None:
        self.name = name

    def ip(self, line: str) -> None:
        run("ip", "-n", self.name, *line.split())

    def command(self, *words: str) -> list[str]:
        """`words`, to be run inside."""
        return ["ip", "netns", "exec", self.name, *words]

    def exec(self, *words: str, check: bool = True) -> str:
        return run(*self.command(*words), check=check)


@contextmanager
def namespaces(*names: str) -> Iterator[list[Namespace]]:
    made: list[Namespace] = []
    try:
        for name in names:
            full = f"nd{os.getpid()}-{name}"
            run("ip", "netns", "add", full)
            made.append(Namespace(full))
            made[-1].ip("link set lo up")
        yield made
    finally:
        for one in made:
            run("ip", "netns", "del", one.name, check=False)


def cable(a: Namespace, a_name: str, a_net: str, b: Namespace, b_name: str, b_net: str) -> None:
    """Join two namespaces by a pair of interfaces."""
    a.ip(f"link add {a_name} type veth peer name {b_name} netns {b.name}")
    for end, name, net in ((a, a_name, a_net), (b, b_name, b_net)):
        end.ip(f"addr add {net} dev {name}")
        end.ip(f"link set {name} up")
