"""`python -m tests.fuzz TARGET --seconds N`: search for inputs that break a parser (needs the extra `fuzz`).

New inputs go to a scratch folder, never into the repository. One that breaks the target is left there as crash-... and ends the
search; put it into tests/fuzz/corpus/TARGET under a name that says what it is, and the ordinary tests replay it from then on.
`--keep N` copies the smallest N inputs that together reach everything found into the corpus.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TypeAlias

from tests.fuzz import CORPUS

MAX_BYTES = 4096
OURS = {"transport", "nat", "relay", "dht", "crdt", "gossip", "node"}
TraceFunction: TypeAlias = Callable[[FrameType, str, object], "TraceFunction | None"]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__.splitlines()[0]
    )
    parser.add_argument("target", help="a name from tests/fuzz/corpus, or `all`")
    parser.add_argument("--seconds", type=int, default=60, help="how long, for each target")
    parser.add_argument("--work", type=Path, help="scratch folder; a new one by default")
    parser.add_argument("--keep", type=int, default=0, help="inputs to copy into the corpus")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def search(name: str, options: list[str]) -> None:
    """Runs in a process of its own: libFuzzer ends it."""
    import atheris

    with atheris.instrument_imports(include=["transport", "dht", "crdt", "gossip", "node", "h11"]):
        from tests.fuzz.targets import TARGETS
    atheris.Setup([sys.argv[0], *options], TARGETS[name])
    atheris.Fuzz()


def start(name: str, work: Path, options: list[str]) -> int:
    command = [
        sys.executable,
        "-m",
        "tests.fuzz",
        name,
        "--inside",
        "--work",
        str(work),
        "--",
        *options,
    ]
    return subprocess.run(command, check=False).returncode


def lines_of(function: Callable[[bytes], None], data: bytes) -> set[tuple[str, int]]:
    """Which lines of ours an input reaches. (libFuzzer's own merge starts a program of its own, which a Python target is not.)"""
    reached: set[tuple[str, int]] = set()

    def trace(frame: FrameType, _event: str, _argument: object) -> TraceFunction | None:
        if Path(frame.f_code.co_filename).parent.name not in OURS:
            return None
        reached.add((frame.f_code.co_filename, frame.f_lineno))
        return trace

    sys.settrace(trace)
    try:
        function(data)
    finally:
        sys.settrace(None)
    return reached


def keep(name: str, found: Path, most: int) -> None:
    """Copy the smallest inputs that reach lines which the corpus does not."""
    from tests.fuzz.targets import TARGETS

    reached: set[tuple[str, int]] = set()
    for path in (CORPUS / name).iterdir():
        reached |= lines_of(TARGETS[name], path.read_bytes())
    kept = 0
    for data in sorted((path.read_bytes() for path in found.iterdir()), key=lambda d: (len(d), d)):
        more = lines_of(TARGETS[name], data) - reached
        if more and kept < most:
            kept += 1
            reached |= more
            (CORPUS / name / f"found-{hashlib.sha256(data).hexdigest()[:12]}").write_bytes(data)


def main() -> int:
    if "--inside" in sys.argv:
        place = sys.argv.index("--")
        search(sys.argv[1], sys.argv[place + 1 :])
        return 0
    args = arguments()
    names = (
        sorted(path.name for path in CORPUS.iterdir()) if args.target == "all" else [args.target]
    )
    work = args.work or Path(tempfile.mkdtemp(prefix="fuzz-"))
    status = 0
    for name in names:
        found = work / name
        found.mkdir(parents=True, exist_ok=True)
        options = [
            f"-max_total_time={args.seconds}",
            f"-max_len={MAX_BYTES}",
            "-timeout=10",
            "-rss_limit_mb=2048",
            "-print_final_stats=1",
            f"-artifact_prefix={work}/crash-{name}-",
            str(found),
            str(CORPUS / name),
        ]
        code = start(name, work, options)
        print(
            f"{name}: {'nothing broke' if code == 0 else f'exit status {code}, see {work}'}",
            flush=True,
        )
        status = status or code
        if args.keep and code == 0:
            keep(name, found, args.keep)
    return status


if __name__ == "__main__":
    sys.exit(main())
