"""A daemon never loads torch, and a relay or bootstrap node runs where torch is not installed at all.

Both are checked in fresh interpreters, because this one may have imported anything already.
"""

import json
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("node", "transport", "gossip", "dht", "crdt")

# The trainer's side, which is never imported by a daemon.
TRAINER_SIDE = (
    "node.simulation.engine_torch",
    "node.training.attachment",
    "node.training.binding",
    "node.training.collectives",
    "node.training.leg",
    "node.training.legs",
    "node.training.meter",
    "node.training.rounds",
    "node.training.session",
    "node.training.snapshot",
    "node.training.solo",
    "node.training.task_loop",
    "node.training.work",
    "node.tasks.*",
    "node.training.worker",
)

# Packages of the extras; a node installed without extras has none of them.
EXTRAS = ("torch", "safetensors", "aeg", "rich", "matplotlib", "psutil")

IMPORT_EACH = """
import importlib, json, sys
guilty = {}
for name in json.loads(sys.argv[1]):
    before = set(sys.modules)
    importlib.import_module(name)
    heavy = {"torch", "safetensors"} & (set(sys.modules) - before)
    if heavy:
        guilty[name] = sorted(heavy)
print(json.dumps(guilty))
"""

IMPORT_WITHOUT_EXTRAS = """
import importlib, json, sys
modules, extras = json.loads(sys.argv[1])
for name in extras:
    sys.modules[name] = None  # importing it raises ImportError, as on a machine without it
for name in modules:
    importlib.import_module(name)
print(json.dumps(sorted(name for name in ("trio", "numpy", "cryptography") if name in sys.modules)))
"""


def modules() -> list[str]:
    paths = (path.relative_to(ROOT) for room in ROOMS for path in (ROOT / room).rglob("*.py"))
    names = (".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in paths)
    return sorted(
        name
        for name in names
        # Importing __main__ runs the program.
        if not name.endswith("__main__") and not any(fnmatch(name, p) for p in TRAINER_SIDE)
    )


def fresh_interpreter(code: str, argument: object) -> object:
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(argument)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_no_module_of_the_daemon_loads_torch():
    names = modules()
    assert {"node.daemon", "node.cli.main", "transport.endpoint", "dht.service"} <= set(names)
    assert fresh_interpreter(IMPORT_EACH, names) == {}


CHECK_SETTINGS = """
import json, sys
from node.task import InvalidTaskSettings, check_settings, installed_tasks
refused = []
for name in json.loads(sys.argv[1]):
    try:
        check_settings(name, {"no_such_setting": 1})
    except InvalidTaskSettings:
        refused.append(name)
print(json.dumps([refused, "torch" in sys.modules]))
"""


def test_settings_of_tasks_are_checked_without_torch():
    tasks = ["byte-gpt", "digits", "images", "ratings"]
    assert fresh_interpreter(CHECK_SETTINGS, tasks) == [tasks, False]


def test_the_check_would_notice():
    pytest.importorskip("safetensors")
    assert fresh_interpreter(IMPORT_EACH, ["json", "safetensors"]) == {
        "safetensors": ["safetensors"]
    }


def test_a_node_without_extras_has_everything_it_imports():
    fresh_interpreter(IMPORT_WITHOUT_EXTRAS, [["node", "node.cli.main", "node.daemon"], EXTRAS])


def test_the_command_line_starts_without_the_event_loop():
    # A health check runs `noded status --check` every few seconds on every node: it must not pay for a daemon's imports.
    assert fresh_interpreter(IMPORT_WITHOUT_EXTRAS, [["node.cli.main"], EXTRAS]) == []
