"""A scenario is what its file says, or it is refused by the name of the key."""

import re
from pathlib import Path

import msgspec
import pytest

from node.errors import ConfigError, ExitCode
from node.overrides import plain_value
from node.simulation.scenario import Scenario, parse_scenario, read_scenario

FILE = """
protocol = "shout"
nodes = 40
rounds = 7
[protocol_settings]
fan = 3
[links]
latency_s = 0.1
classes = [{ share = 3, up = 1e6 }, { latency_s = 0.3 }]
[disruption]
case = "hub-relay"
at_round = 20
[stop]
accuracy = 0.9
"""


def test_a_file_and_what_the_command_line_changes_of_it(tmp_path):
    path = tmp_path / "s.toml"
    path.write_text(FILE)
    scenario = read_scenario(path, {"nodes": 50, "links.loss": 0.1, "protocol_settings.fan": 1})
    assert (scenario.nodes, scenario.rounds, scenario.protocol_settings) == (50, 7, {"fan": 1})
    assert (scenario.links.latency_s, scenario.links.loss) == (0.1, 0.1)
    assert [one.share for one in scenario.links.classes] == [3.0, 1.0]
    assert scenario.disruption.at_round == 20
    assert msgspec.convert(msgspec.to_builtins(scenario), Scenario) == scenario


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"links.los": 1}, "there is no setting 'links.los'"),
        ({"nodess": 1}, "there is no setting 'nodess'"),
        ({"links.loss": 1.5}, "links.loss"),
        ({"churn.kind": "weekly"}, "churn.kind: 'weekly' is none of none, exponential, "),
        ({"churn.awake": 1.0}, "churn.awake"),
        ({"churn.session_s": 1e-300}, "churn.session_s"),
        ({"churn.session_s": float("inf")}, "churn.session_s"),
        ({"churn.day_s": 1e-300}, "churn.day_s"),
        ({"links.latency_s": float("inf")}, "links.latency_s"),
        ({"links.bandwidth_sigma": 1e308}, "links.bandwidth_sigma"),
        ({"speed.jitter": 1e308}, "speed.jitter"),
        ({"speed.step_s": float("nan")}, "speed.step_s"),
        ({"every": 10**21}, "every"),
        ({"nodes.x": 1}, "nodes.x: nodes is no table"),
        ({"rounds": 0}, "rounds: it would never end"),
        ({"churn.kind": "file"}, "churn.file: goes with"),
        ({"disruption.at_round": 1, "disruption.at_s": 1}, "disruption.at_s"),
        ({"run_id": "xyz"}, "run_id: is not 64 hexadecimal digits"),
        ({"ids": ["a"]}, "ids: 1 ids for 10 nodes"),
        ({"ids": ["a", "a"], "nodes": 2}, "ids: one id is there twice"),
    ],
)
def test_what_is_wrong_is_refused_by_its_key(changes, says):
    with pytest.raises(ConfigError) as caught:
        parse_scenario({"protocol": "shout", "nodes": 10}, changes)
    assert says in str(caught.value)
    assert caught.value.exit_code == ExitCode.BAD_CONFIG


def test_paths_in_a_file_begin_where_it_lies(tmp_path):
    path = tmp_path / "s.toml"
    path.write_text('data = "corpus"\n[churn]\nkind = "file"\nfile = "/trace"\n')
    scenario = read_scenario(path)
    assert (scenario.data, scenario.churn.file) == (str(tmp_path / "corpus"), "/trace")


def test_a_file_that_is_no_scenario_is_refused(tmp_path):
    for name, content in (("a", b"protocol ="), ("b", b"\xff"), ("c", b"#" * (1 << 20) + b"##")):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=str(path)):
            read_scenario(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_scenario(tmp_path / "missing")


def test_values_on_the_command_line_are_toml_where_they_can_be():
    values = [plain_value(text) for text in ("3", "0.5", "true", "[1, 2]", "ring", '"3"', "a = b")]
    assert values == [3, 0.5, True, [1, 2], "ring", "3", "a = b"]


def test_about_forty_points_unless_said_otherwise():
    assert parse_scenario({"rounds": 200}).point_every == 5
    assert parse_scenario({"rounds": 7}).point_every == 1
    assert parse_scenario({"rounds": 200, "evaluate_every": 3}).point_every == 3


def test_the_page_lists_every_key_with_its_default():
    page = (Path(__file__).parents[3] / "docs" / "simulation.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z_.]+)` \| (?:`([^|]*)`)? \|", page, re.MULTILINE))
    expected = {}
    for field in msgspec.structs.fields(Scenario):
        inner = field.default
        if isinstance(inner, msgspec.Struct):
            for one in msgspec.structs.fields(inner):
                expected[f"{field.name}.{one.name}"] = getattr(inner, one.name)
        else:
            expected[field.name] = {} if inner is msgspec.NODEFAULT else inner
    del expected["protocol"]
    assert rows.pop("protocol") == ""
    told = {key: plain_value(text) if text else None for key, text in rows.items()}
    assert told == {
        key: list(value) if isinstance(value, tuple) else value for key, value in expected.items()
    }
