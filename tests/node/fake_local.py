"""Stand-ins for real daemons: the status schema over a real control socket, and no training.

fake_local.py run --config FILE --parent-pid PID     one daemon; FAKE_MODE chooses how it behaves
fake_local.py local OUT PEERS [--json]               `noded local` with such daemons
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socketserver
import subprocess
import sys
import threading
import time
import tomllib
from http.server import BaseHTTPRequestHandler
from pathlib import Path

STEPS = 40
SECONDS = float(os.environ.get("FAKE_SECONDS", "1.0"))


def status_of(name: str, port: int, steps: int, started: float, mode: str) -> dict:
    share = min(1.0, (time.monotonic() - started) / SECONDS)
    step = int(steps * share)
    digest = "aa" * 32 if mode != "disagree" or name == "peer-1" else "bb" * 32
    return {
        "schema": "noded.status/1",
        "version": "0.1.0",
        "state": "finished" if share >= 1 else "training",
        "verdict": "ok",
        "node": {
            "id": f"nd-fake-{name}",
            "name": name,
            "addresses": [f"127.0.0.1:{port}"],
            "uptime_s": 1.0,
            "pid": os.getpid(),
        },
        "swarm": {"id": "00"},
        "run": {
            "name": "local",
            "round": step // 10,
            "rounds_total": steps // 10,
            "step": step,
            "steps_total": steps,
            "loss": 5.5 - 3 * share,
            "tokens": step * 512,
            "tokens_per_s": 512.0,
            "state_sha256": digest,
        },
        "trainer": {"state": "running", "pid": None, "restarts": 0},
        "peers": [{"id": "nd-x", "name": "x", "state": "active", "path": "direct"}],
        "checkpoint": None,
        "traffic": {"bytes_sent": 1000 + step, "bytes_received": 900 + step},
        "health": [],
    }


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


def run(config: Path, parent_pid: int) -> int:
    from node.local.parent import die_with_parent

    die_with_parent(parent_pid)
    mode = os.environ.get("FAKE_MODE", "ok")
    settings = tomllib.loads(config.read_text())
    name = settings["node"]["name"]
    print(f"{name} starts in mode {mode}", file=sys.stderr, flush=True)
    if mode == "cannot-start" and name != "peer-1":
        print("noded: run.task: there is no task named 'nope'", file=sys.stderr)
        return 7
    if mode == "orphan":  # a trainer in a session of its own
        sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
        subprocess.Popen(sleeper, start_new_session=True)
    data = config.parent
    port = int(settings["network"]["listen"][0].rpartition(":")[2])
    port = port or 40000 + os.getpid() % 20000
    if name != "peer-1":
        assert settings["network"]["bootstrap"], "the others know the first one's address"
    run_dir = data / "runs" / "local"
    (run_dir / "checkpoints" / "step-00000040").mkdir(parents=True, exist_ok=True)
    steps = settings["run"]["steps"]
    with (run_dir / "metrics.jsonl").open("a") as file:
        for step in range(0, steps + 1, 10):
            loss = 5.5 - 3 * step / steps
            for kind in ("report", "eval"):
                entry = {"kind": kind, "t": 0, "round": step // 10, "step": step, "loss": loss}
                file.write(json.dumps(entry) + "\n")
        file.write('{"kind": "eval", "torn')
    (run_dir / "sample.txt").write_text("def f():\n    return 1\x1b[2J\n")
    started = time.monotonic()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = json.dumps(status_of(name, port, steps, started, mode)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    path = data / "control.sock"
    path.unlink(missing_ok=True)
    server = Server(str(path), Handler)

    def stop(*_: object) -> None:
        threading.Thread(target=server.shutdown, daemon=True).start()

    signal.signal(signal.SIGTERM, signal.SIG_IGN if mode == "ignore-term" else stop)
    server.serve_forever(poll_interval=0.02)
    return 0


def local(arguments: argparse.Namespace) -> int:
    from node.errors import NodedError
    from node.local import LocalOptions
    from node.local.layout import PeerFiles
    from node.local.swarm import LocalSwarm

    def command(peer: PeerFiles) -> list[str]:
        parent = ["--parent-pid", str(os.getpid())]
        return [sys.executable, __file__, "run", "--config", str(peer.config), *parent]

    options = LocalOptions(
        peers=arguments.peers, steps=STEPS, every=10, out=arguments.out, json=arguments.json
    )
    try:
        return LocalSwarm(options, command=command).run()
    except NodedError as error:
        print(f"noded: {error}\n{error.hint}", file=sys.stderr)
        return int(error.exit_code)


def main() -> int:
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("run")
    one.add_argument("--config", type=Path, required=True)
    one.add_argument("--parent-pid", type=int, required=True)
    swarm = verbs.add_parser("local")
    swarm.add_argument("out", type=Path)
    swarm.add_argument("peers", type=int)
    swarm.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.verb == "run":
        return run(arguments.config, arguments.parent_pid)
    return local(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
