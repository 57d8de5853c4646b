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
from pathlib import Path

from tests.fuzz import CORPUS

MAX_BYTES = 4096


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__.splitlines()[0]
    )
    parser.add_argument("target", help="a name from tests/fuzz/targets.py, or `all`")
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


def keep(name: str, found: Path, work: Path, most: int) -> None:
    merged = work / f"{name}-merged"
    merged.mkdir(exist_ok=True)
    start(
        name,
        work,
        ["-merge=1", f"-max_len={MAX_BYTES}", str(merged), str(CORPUS / name), str(found)],
    )
    known = {path.read_bytes() for path in (CORPUS / name).iterdir()}
    fresh = sorted(
        {path.read_bytes() for path in merged.iterdir()} - known, key=lambda data: (len(data), data)
    )
    for data in fresh[:most]:
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
            keep(name, found, work, args.keep)
    return status


if __name__ == "__main__":
    sys.exit(main())
