"""`noded simulate` and `noded plot` as a person and a script meet them."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from node.simulation.progress import line
from node.simulation.records import Writer
from node.simulation.run import Progress, Simulation
from node.simulation.scenario import parse_scenario
from tests.node.fake_control import run

ROOT = Path(__file__).parents[3]
SMALL = ("simulate", "--nodes", "6", "--rounds", "4")

pytestmark = pytest.mark.usefixtures("home")


def records(path):
    return [json.loads(text) for text in path.read_text().splitlines()]


def test_a_run_leaves_its_records_and_says_what_came_of_it(capsys, tmp_path):
    out_path = tmp_path / "a.jsonl"
    code, out, err = run(
        capsys, *SMALL, "--set", "graph=ring", "--seed", "3", "--out", str(out_path)
    )
    assert code == 0
    assert out.startswith("dpsgd, 6 nodes, digits, seed 3: all rounds are done\nround 4 after 2.")
    assert "6 of 6 nodes there, in 1 part," in out
    assert err == f"records in {out_path}: noded plot {out_path} --out {tmp_path / 'a.png'}\n"
    found = records(out_path)
    assert [record["kind"] for record in found] == ["header", *["point"] * 5, "end"]
    assert found[0]["scenario"]["protocol_settings"]["graph"] == "ring"
    assert found[-1]["digest"] in out


def test_json_is_the_records(capsys, tmp_path):
    code, out, err = run(capsys, *SMALL, "--json", "--hashes")
    assert (code, err) == (0, "")
    lines = [json.loads(text) for text in out.splitlines()]
    assert (lines[0]["schema"], lines[-1]["reason"]) == ("noded.simulation/1", "rounds")
    hashes = [one for one in lines if one["kind"] == "completed"]
    assert len(hashes) == 24
    assert lines[-1]["models"]["0"] == [one for one in hashes if one["node"] == 0][-1]["sha256"]


def test_a_scenario_file_and_options_that_win_over_it(capsys, tmp_path):
    path = tmp_path / "s.toml"
    path.write_text('protocol = "dpsgd"\nnodes = 50\nrounds = 3\n[links]\nloss = 0.2\n')
    code, out, _ = run(
        capsys,
        "simulate",
        "--scenario",
        str(path),
        "--nodes",
        "5",
        "--set",
        "links.loss=0",
        "--json",
    )
    scenario = json.loads(out.splitlines()[0])["scenario"]
    assert code == 0
    assert (scenario["nodes"], scenario["rounds"], scenario["links"]["loss"]) == (5, 3, 0)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ((), "neither disruption.at_round nor disruption.at_s says when"),
        (("--set", "disruption.at_round=9"), "there are 4 rounds"),
        (("--set", "disruption.at_round=2"), ""),
    ],
)
def test_a_disruption_that_will_not_come_is_pointed_out(capsys, more, says):
    arguments = (*SMALL, "--set", "disruption.case=random", *more)
    code, _, err = run(capsys, *arguments)
    assert code == 0
    assert says in err
    assert bool(says) == bool(err)
    assert run(capsys, *arguments, "--quiet")[2] == ""


def test_one_scenario_for_several_protocols(capsys, tmp_path):
    path = tmp_path / "s.toml"
    path.write_text(
        'protocol = "dpsgd"\nnodes = 4\nrounds = 2\n[protocol_settings]\ngraph = "ring"\n'
    )
    other = ("simulate", "--scenario", str(path), "--protocol", "modest")
    code, _, err = run(capsys, *other)
    assert code == 7
    assert "there is no setting 'graph'" in err
    assert "--set scenario.protocol_settings={}" in err
    more = ("--set", "scenario.protocol_settings={}", "--set", "sample_size=2", "--json")
    code, out, _ = run(capsys, *other, *more)
    assert code == 0
    settings = json.loads(out.splitlines()[0])["scenario"]["protocol_settings"]
    assert (settings["sample_size"], "graph" in settings) == (2, False)


def test_ids_and_run_of_a_real_run(capsys, tmp_path):
    _, out, _ = run(capsys, *SMALL, "--json")
    header = json.loads(out.splitlines()[0])
    path = tmp_path / "ids"
    path.write_text("\n".join(header["ids"][:3]) + "\n")
    arguments = ("simulate", "--rounds", "1", "--ids", str(path), "--run-id", "ab" * 32, "--json")
    code, out, _ = run(capsys, *arguments)
    again = json.loads(out.splitlines()[0])
    assert code == 0
    assert (again["ids"], again["run"]) == (header["ids"][:3], "ab" * 32)
    assert again["scenario"]["nodes"] == 3


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--nodes", "0"), 2, "not in the range"),
        (("--set", "degree"), 2, "--set wants KEY=VALUE"),
        (("--set", "link.loss=1"), 2, "there are the tables"),
        (("--set", "links.los=1"), 7, "did you mean links.loss?"),
        (("--set", "=1"), 2, "--set wants KEY=VALUE"),
        (("--set", "split=iid"), 7, "did you mean --set task_settings.split=...?"),
        (("--set", "loss=0.1"), 7, "did you mean --set links.loss=...?"),
        (("--set", "nodes=3"), 7, "did you mean --nodes?"),
        (("--set", "hidden=3", "--task", "images"), 7, "task_settings.hidden=..."),
        (("--set", "evaluate_every=3"), 7, "did you mean --set scenario.evaluate_every=...?"),
        (("--set", "churn=exponential"), 7, "a key of the table churn (--set churn.kind=...)"),
        (("--set", "sample_size=3"), 7, "did you mean --protocol modest?"),
        (("--task", "images"), 7, "or --set task_settings.model=mlp"),
        (("--set", "degree=none"), 7, "degree: expected a whole number"),
        (("--protocol", "nonsense"), 7, "no protocol named 'nonsense'"),
        (("--task", "nonsense"), 7, "nonsense"),
        (("--ids", "/nowhere"), 7, "/nowhere cannot be read"),
        (("--scenario", "/nowhere"), 7, "/nowhere cannot be read"),
        (("--out", "/nowhere/x"), 1, "/nowhere/x cannot be written"),
        (("--out", "/dev/full"), 1, "/dev/full cannot be written"),
    ],
)
def test_what_is_wrong_is_said_with_its_code(capsys, arguments, code, says):
    found, out, err = run(capsys, "simulate", "--rounds", "1", *arguments)
    assert (found, out) == (code, "")
    assert says in err


def test_a_scenario_that_is_refused_costs_no_old_file(capsys, tmp_path):
    path = tmp_path / "a"
    path.write_text("of yesterday")
    assert run(capsys, *SMALL, "--set", "degree=none", "--out", str(path))[0] == 7
    assert path.read_text() == "of yesterday"


def test_ctrl_c_keeps_what_was_written(capsys, tmp_path, monkeypatch):
    take = Simulation._report

    def report(self):
        if self.world.now > 2:
            signal.raise_signal(signal.SIGINT)
        take(self)

    monkeypatch.setattr(Simulation, "_report", report)
    before = signal.getsignal(signal.SIGINT)
    path = tmp_path / "a"
    code, out, _ = run(capsys, "simulate", "--nodes", "4", "--rounds", "500", "--out", str(path))
    assert code == 130
    assert ": interrupted\n" in out
    assert records(path)[-1]["reason"] == "interrupted"
    assert records(path)[-2]["kind"] == "point"
    assert signal.getsignal(signal.SIGINT) is before


def test_a_progress_line_has_both_times():
    now = Progress(time_s=1234.5, round=50, rounds=200, share=0.25, alive=99, steps=10_000)
    text = line(now, 20.0)
    assert text == (
        "[===>        ]  25%  round 50/200  1,234.5 s virtual, 20.0 s real, 60 s left"
        "  99 nodes  500 steps/s"
    )
    nothing = Progress(time_s=0, round=0, rounds=0, share=0, alive=0, steps=0)
    assert "0%  round 0  0.0 s virtual, 0.0 s real  0 nodes" in line(nothing, 0.0)


def test_simulating_loads_neither_trio_nor_torch():
    program = (
        "import sys; from node.cli.main import main; main(['simulate', '--nodes', '3', '--rounds', '1'])\n"
        "print(sorted({'trio', 'torch', 'matplotlib', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


# ---- noded plot ----------------------------------------------------------------------------------


def simulated(path: Path, graph: str, seed: int = 0) -> str:
    scenario = {"nodes": 6, "rounds": 4, "seed": seed, "protocol_settings": {"graph": graph}}
    with path.open("wb") as file:
        Simulation(parse_scenario(scenario), write=Writer([file]).write).run()
    return str(path)


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [simulated(folder / f"{graph}.jsonl", graph) for graph in ("ring", "full")]


@pytest.mark.parametrize(
    ("x", "y"),
    [("rounds", "accuracy"), ("bytes", "loss"), ("time", "consensus"), ("steps", "accuracy")],
)
def test_a_picture_of_several_runs(capsys, two_runs, tmp_path, x, y):
    picture = tmp_path / "a.png"
    code, out, err = run(capsys, "plot", *two_runs, "--x", x, "--y", y, "--out", str(picture))
    assert (code, out, err) == (0, f"{picture}\n", "")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_curves_as_json(capsys, two_runs):
    code, out, _ = run(capsys, "plot", *two_runs, "--x", "steps", "--y", "loss", "--json")
    answer = json.loads(out)
    assert code == 0
    assert (answer["schema"], answer["out"]) == ("noded.plot/1", None)
    assert [one["label"] for one in answer["series"]] == ["graph=ring", "graph=full"]
    ring = answer["series"][0]
    points = [record for record in records(Path(two_runs[0])) if record["kind"] == "point"]
    assert ring["x"] == [0, 30, 60, 90, 120]
    assert ring["mean"] == [point["loss"]["mean"] for point in points]
    assert ring["worst"] == [point["loss"]["worst"] for point in points]
    assert all(low <= high for low, high in zip(ring["low"], ring["high"], strict=True))


def test_runs_that_differ_in_the_seed_alone_have_one_label(capsys, two_runs, tmp_path):
    other = simulated(tmp_path / "seed.jsonl", "ring", seed=9)
    _, out, _ = run(capsys, "plot", *two_runs, other, "--json")
    labels = [(one["label"], one["seed"]) for one in json.loads(out)["series"]]
    assert labels == [("graph=ring", 0), ("graph=full", 0), ("graph=ring", 9)]
    assert run(capsys, "plot", *two_runs, other, "--newest", "--log", "xy", "--out", str(tmp_path / "p.svg"))[0] == 0  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ((), 2, "name the picture with --out"),
        (("--label", "one", "--json"), 2, "1 labels for 2 files"),
        (("--newest", "--y", "consensus", "--json"), 2, "--newest is about one model"),
        (("--out", "/nowhere/x.png"), 1, "/nowhere/x.png cannot be written"),
        (("--out", "x.nonsense"), 1, "name a .png, .svg, .pdf file"),
        (("--out", "x"), 1, "x is no picture"),  # matplotlib would write x.png
        (("--out", "/dev/full"), 1, "/dev/full is no picture"),
    ],
)
def test_what_cannot_be_drawn_is_said(capsys, two_runs, arguments, code, says):
    found, _, err = run(capsys, "plot", *two_runs, *arguments)
    assert found == code
    assert says in err


def test_what_is_no_simulation_cannot_be_drawn(capsys, two_runs, tmp_path):
    header = Path(two_runs[0]).read_text().splitlines()[0]
    (tmp_path / "bare").write_text(header + "\n")
    for path, says in ((ROOT / "README.md", "line 1"), (tmp_path / "bare", "holds no points")):
        code, _, err = run(capsys, "plot", two_runs[0], str(path), "--json")
        assert code == 1
        assert says in err
