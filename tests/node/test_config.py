"""Configuration: four layers, one error at the path of the wrong key."""

import contextlib
import re
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.config import find_config, load_config, parse_config
from node.config_checks import check_environment
from node.config_text import explain, render_config, toml_value
from node.errors import ConfigError, ExitCode
from node.knobs import knob, knobs
from node.schema import PRESETS


def refused(text: str, **layers) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse_config(text.encode(), **layers)
    assert caught.value.exit_code is ExitCode.BAD_CONFIG
    return caught.value


def test_defaults_are_a_node_without_a_run():
    loaded = parse_config(b"")
    assert loaded.config.run is None
    assert loaded.config.network.listen == ("0.0.0.0:7447",)
    assert loaded.config.limits.silence_s == 4.0
    assert loaded.source("network.listen") == "default"


def test_flag_beats_variable_beats_file_beats_default(tmp_path):
    path = tmp_path / "noded.toml"
    path.write_text('[run]\nname = "r"\nevery = 2\nsteps = 2\nseed = 2\n')
    environ = {"NODED_RUN_EVERY": "3", "NODED_RUN_STEPS": "3"}
    loaded = load_config(path, environ=environ, overrides={"run.every": "4"})
    run = loaded.config.run
    assert run is not None
    assert (run.every, run.steps, run.seed, run.task) == (4, 3, 2, "byte-gpt")
    sources = [loaded.source(f"run.{key}") for key in ("every", "steps", "seed", "task")]
    assert sources == ["--set", "NODED_RUN_STEPS", str(path), "default"]


@pytest.mark.parametrize(
    ("text", "key", "hint"),
    [
        ('[run]\nname = "x"\nevrey = 3', "run.evrey", "did you mean run.every?"),
        ("[netwrok]\n", "netwrok", "did you mean network?"),
        ('listen = ["a:1"]', "listen", "did you mean network.listen?"),
        ('[node]\nlisten = ["a:1"]', "node.listen", "did you mean network.listen?"),
        ("[limits]\nmax_pears = 3", "limits.max_pears", "did you mean limits.max_peers?"),
        ("[zzz]\n", "zzz", "config explain"),
    ],
)
def test_an_unknown_key_is_refused_with_its_path_and_the_nearest_one(text, key, hint):
    error = refused(text)
    assert error.key == key
    assert key in str(error)
    assert hint in error.hint


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('[run]\nname = "x"\nevery = "3"', "run.every"),
        ('[run]\nname = "x"\nevery = 0', "run.every"),
        ('[run]\nname = "x"\nevery = 1.5', "run.every"),
        ('[run]\nname = "../x"', "run.name"),
        ("[run]\n", "run.name"),
        ('[network]\nlisten = "0.0.0.0:1"', "network.listen"),
        ('[network]\nlisten = ["nonsense"]', "network.listen"),
        ('[network]\nlisten = ["a:1", 3]', "network.listen"),
        ('[network]\nlisten = ["a:99999"]', "network.listen"),
        ('[network]\nbootstrap = ["0.0.0.0:7447"]', "network.bootstrap"),
        ('[network]\nadvertise = ["203.0.113.7:0"]', "network.advertise"),
        ('[log]\nlevel = "loud"', "log.level"),
        ('[node]\nname = "a\\u001b[2J"', "node.name"),
        ("node = 3", "node"),
        ("[trainer]\nauto = 1", "trainer.auto"),
        ("[limits]\nmax_peers = 0", "limits"),
        ("[relay]\nwanted = 9", "relay"),
        ('[network]\nrelays = ["1.2.3.4:5"]', "network.relays"),
        ('[network]\nbootstrap = ["1.2.3.4:5/via/nd-x"]', "network.bootstrap"),
        ("[limits]\nmax_peers = 'x'", "limits.max_peers"),
        ("[limits]\nsilence_s = 0.1", "limits"),
    ],
)
def test_a_wrong_value_is_refused_at_its_path(text, key):
    assert refused(text).key == key


def test_the_choices_of_a_word_are_listed():
    assert "debug, info, warning, error" in str(refused('[log]\nlevel = "loud"'))


@pytest.mark.parametrize("data", [b"\xff\xfe", b"a = ", b"[[[", b"\x00", b"a = " + b"[" * 5000])
def test_what_is_not_toml_is_one_config_error(data):
    with pytest.raises(ConfigError):
        parse_config(data)


@given(st.binary(max_size=200))
def test_any_bytes_give_a_config_or_a_config_error(data):
    with contextlib.suppress(ConfigError):
        parse_config(data)


@given(st.text(max_size=40))
def test_any_text_as_a_value_gives_a_config_or_a_config_error(text):
    for key in ("run.every", "network.listen", "run.task_settings", "trainer.auto", "log.level"):
        error = None
        try:
            parse_config(b'[run]\nname = "r"', overrides={key: text})
        except ConfigError as caught:
            error = caught
        assert error is None or error.key.startswith(key.split(".")[0])


def test_variables_of_every_type():
    environ = {
        "NODED_NETWORK_LISTEN": "1.2.3.4:5, [::1]:6",
        "NODED_LIMITS_SILENCE_S": "9",
        "NODED_RUN_NAME": "r",
        "NODED_RUN_CREATE": "TRUE",
        "NODED_RUN_TASK_SETTINGS": '{"width": 64}',
        "NODED_TRAINER_THREADS": "3",
    }
    config = parse_config(b"", environ=environ).config
    assert config.network.listen == ("1.2.3.4:5", "[::1]:6")
    assert config.limits.silence_s == 9.0
    assert config.run is not None
    assert config.run.create is True
    assert config.run.task_settings == {"width": 64}
    assert config.trainer.threads == 3


def test_a_misspelt_variable_is_refused_and_a_strangers_is_not():
    error = refused("", environ={"NODED_NETWORK_LISTN": "a:1"})
    assert error.key == "NODED_NETWORK_LISTN"
    assert "NODED_NETWORK_LISTEN" in error.hint
    strangers = {
        "NODED_SOCKET": "/x",
        "NODED_RUN": "r",
        "NODED_SERVICE_HOST": "10.0.0.1",
        "NODED_PORT_7447_TCP": "tcp://10.0.0.1:7447",
        "NODED_NODE_SERVICE_PORT": "1",
    }
    assert parse_config(b"", environ=strangers).sources == {}


def test_a_wrong_variable_names_itself():
    assert "NODED_RUN_EVERY" in str(refused("", environ={"NODED_RUN_EVERY": "x"}))


def test_relative_paths_start_at_the_file(tmp_path):
    path = tmp_path / "noded.toml"
    path.write_text('[node]\ndata_dir = "../state"\n[run]\nname = "r"\ndata = "corpus"\n')
    config = load_config(path, environ={}).config
    assert config.data_dir == tmp_path.parent / "state"
    assert config.run is not None
    assert config.run.data == str(tmp_path / "corpus")
    assert config.paths.node_key == tmp_path.parent / "state" / "node.key"


def test_without_data_dir_the_files_folder_is_it(tmp_path):
    path = tmp_path / "noded.toml"
    path.write_text("")
    assert load_config(path, environ={}).config.data_dir == tmp_path


def test_a_missing_corpus_is_found_before_anything_starts(tmp_path):
    config = parse_config(b'[run]\nname = "r"\ndata = "/nowhere/at/all"').config
    with pytest.raises(ConfigError, match="/nowhere/at/all") as caught:
        check_environment(config)
    assert caught.value.key == "run.data"
    check_environment(parse_config(b"").config)


@pytest.mark.parametrize(
    ("task", "settings", "word"),
    [
        ("byte-gpt", "{ heads = 3 }", "no multiple of 3 heads"),
        ("digits", '{ hidden = "x" }', "hidden"),
        ("images", '{ format = "cipher" }', "idx, cifar, femnist"),
        ("ratings", "{ hidden = 3 }", "no setting 'hidden'"),
    ],
)
def test_a_wrong_task_setting_is_found_before_a_trainer_is_started(task, settings, word):
    text = f'[run]\nname = "r"\ncreate = true\ntask = "{task}"\ntask_settings = {settings}\n'
    config = parse_config(text.encode()).config
    with pytest.raises(ConfigError, match=word) as caught:
        check_environment(config)
    assert caught.value.key == "run.task_settings"
    assert caught.value.hint
    # A run of others has its own settings, and a script's task is its own.
    check_environment(parse_config(text.replace("create = true", "").encode()).config)
    check_environment(parse_config(f"{text}[trainer]\nauto = false\n".encode()).config)


def test_a_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "noded.toml", environ={})
    assert "noded init" in caught.value.hint
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path, environ={})


def test_which_file_is_read(tmp_path):
    environ = {"HOME": "/h", "NODED_CONFIG": "/e/x.toml"}
    assert str(find_config(tmp_path, environ)) == str(tmp_path)
    assert str(find_config(None, environ)) == "/e/x.toml"
    assert str(find_config(None, {"HOME": "/h"})) == "/h/.local/state/noded/noded.toml"
    assert str(find_config(None, {"NODED_NODE_DATA_DIR": "/d"})) == "/d/noded.toml"


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_the_rendered_file_of_each_preset_parses_to_exactly_it(preset):
    loaded = parse_config(render_config(PRESETS[preset]).encode())
    assert set(loaded.sources) == set(PRESETS[preset])
    for key, value in PRESETS[preset].items():
        section, _, name = key.partition(".")
        assert getattr(getattr(loaded.config, section), name) == value


def test_the_rendered_file_names_every_key_and_its_default():
    text = render_config({})
    for entry in knobs():
        assert f"\n# {entry.key.partition('.')[2]} = " in text
    sections = re.findall(r"^(?:# )?\[(\w+)\]$", text, re.MULTILINE)
    assert sections == [
        "node",
        "network",
        "swarm",
        "limits",
        "relay",
        "run",
        "trainer",
        "blocks",
        "log",
    ]
    assert parse_config(text.encode()).sources == {}


def test_every_key_is_explained():
    for entry in knobs():
        assert len(entry.text) > 20, entry.key
        assert entry.key in explain(entry)
        assert entry.env in explain(entry)
    with pytest.raises(ConfigError, match="unknown key"):
        knob("run.evry")


_values = st.recursive(
    st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=("Cs",)), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(st.characters(exclude_categories=("Cs",)), max_size=5), inner, max_size=3
        )
    ),
    max_leaves=8,
)


@given(_values)
def test_values_survive_toml(value):
    assert tomllib.loads(f"x = {toml_value(value)}") == {"x": value}


@pytest.mark.parametrize(
    ("part", "good"), [("1/1", True), ("3/8", True), ("9/8", False), ("0/8", False), ("x", False)]
)
def test_the_part_of_the_data_is_one_that_there_is(part, good):
    text = f'[run]\nname = "r"\npart = "{part}"\n'.encode()
    if good:
        assert parse_config(text).config.run.part == part
        return
    with pytest.raises(ConfigError) as caught:
        parse_config(text)
    assert caught.value.key == "run.part"


def test_a_flag_sets_one_entry_of_a_table_and_leaves_the_others():
    text = b'[run]\nname = "r"\nprotocol = "dpsgd"\n[run.protocol_settings]\ndegree = 3\n'
    overrides = {
        "run.protocol_settings.graph": "ring",
        "run.protocol_settings.patience": "2.5",
        "run.task_settings.split": '"iid"',
    }
    loaded = parse_config(text, overrides=overrides)
    assert loaded.config.run is not None
    assert loaded.config.run.protocol_settings == {"degree": 3, "graph": "ring", "patience": 2.5}
    assert loaded.config.run.task_settings == {"split": "iid"}
    assert loaded.source("run.protocol_settings") == "--set"
    with pytest.raises(ConfigError, match=r"unknown key run\.name\.x"):
        parse_config(text, overrides={"run.name.x": "1"})
    with pytest.raises(ConfigError, match="unknown key graph") as raised:
        parse_config(text, overrides={"graph": "ring"})
    assert "run.protocol_settings.graph" in raised.value.hint
    with pytest.raises(ConfigError, match="expected a table, got a number"):
        parse_config(
            b'[run]\nname = "r"\ntask_settings = 3\n', overrides={"run.task_settings.a": "1"}
        )
