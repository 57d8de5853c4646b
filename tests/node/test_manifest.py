from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.run.manifest import InvalidManifest, RunManifest, rounds_of

MANIFEST = RunManifest(
    name="demo",
    task="byte-gpt",
    task_settings={"width": 64, "learning_rate": 0.003, "tags": ["a", 1]},
    every=32,
    steps=100,
    seed=7,
)


def test_the_hash_is_pinned():
    """Changing the canonical form changes the id of every run: do it knowingly."""
    assert (
        RunManifest(name="demo", task="byte-gpt").hash.hex()
        == "b562366c9ebe0a0ffe2e8d78cd2ec75daf9ffb400d1d852777171068330e79b0"
    )


def test_the_hash_does_not_depend_on_the_way_it_travelled():
    shuffled = dict(reversed(list(json.loads(MANIFEST.canonical()).items())))
    by_json = RunManifest.from_json(json.dumps(shuffled, indent=3).encode())
    packed = msgspec.msgpack.decode(msgspec.msgpack.encode(MANIFEST.to_map()))
    assert by_json == RunManifest.from_map(packed) == MANIFEST
    assert by_json.hash == RunManifest.from_map(packed).hash == MANIFEST.hash


@pytest.mark.parametrize(
    "change",
    [{"every": 33}, {"seed": 8}, {"name": "demo2"}, {"task_settings": {}}, {"created_at": 1},
     {"protocol_settings": {"outer_momentum": 0.9}}, {"task": "mine:Task"}],
)  # fmt: skip
def test_every_choice_makes_another_run(change):
    assert msgspec.structs.replace(MANIFEST, **change).hash != MANIFEST.hash


@pytest.mark.parametrize(
    "change",
    [
        {"name": ""}, {"name": "../up"}, {"name": "a b"}, {"name": "x" * 65},
        {"task": "os.system('x')"}, {"task": ""}, {"protocol": "a/b"},
        {"every": 0}, {"every": -1}, {"steps": -1}, {"seed": -1}, {"seed": 2**60},
        {"task_settings": {"Bad Key": 1}}, {"task_settings": {"x": float("nan")}},
        {"task_settings": {"x": float("inf")}}, {"task_settings": {"x": 2**70}},
        {"task_settings": {f"k{i}": 1 for i in range(257)}},
        {"task_settings": {"x": "y" * 20_000}}, {"created_by": "x" * 200},
    ],
    ids=str,
)  # fmt: skip
def test_values_out_of_range_are_refused(change):
    with pytest.raises(InvalidManifest):
        RunManifest(**{"name": "demo", "task": "byte-gpt", **change})


def test_nested_settings_are_refused():
    with pytest.raises(InvalidManifest):
        RunManifest.from_json(b'{"name":"a","task":"b","task_settings":{"x":{"y":1}}}')


@given(st.binary(max_size=200))
def test_any_bytes_give_a_manifest_or_one_error(data):
    try:
        RunManifest.from_json(data)
    except InvalidManifest:
        return


@given(st.recursive(st.none() | st.integers() | st.text(max_size=5),
                    lambda x: st.lists(x) | st.dictionaries(st.text(max_size=5), x)))  # fmt: skip
def test_any_map_gives_a_manifest_or_one_error(value):
    with pytest.raises(InvalidManifest):
        RunManifest.from_map(value)


def test_the_last_round_may_be_shorter():
    assert MANIFEST.rounds == 4
    assert [MANIFEST.step_after(r) for r in range(5)] == [0, 32, 64, 96, 100]
    assert rounds_of(0, 32) == 0
    assert rounds_of(1, 32) == rounds_of(32, 32) == 1


def test_the_code_is_named_by_its_hash() -> None:
    named = RunManifest(name="demo", task="byte-gpt", task_hash="ab" * 32)
    assert named.hash != RunManifest(name="demo", task="byte-gpt").hash
    assert RunManifest.from_json(named.canonical()) == named
    for wrong in ("ab", "AB" * 32, "ab" * 33, "../" * 21 + "a"):
        with pytest.raises(InvalidManifest, match="task_hash"):
            RunManifest(name="demo", task="byte-gpt", task_hash=wrong)
