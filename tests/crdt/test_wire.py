import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt.errors import MalformedState, StateTooLarge
from crdt.wire import as_choice, as_fields, as_hash, as_text, as_writer, canonical

VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(allow_nan=False),
        st.text(st.characters(codec="utf-8")),
        st.binary(max_size=300),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=40), st.dictionaries(st.text(max_size=3), inner, max_size=20)
    ),
)


def by_type(value):
    """Python calls 1, 1.0 and True equal, and 0.0 and -0.0; the encoding must not."""
    if isinstance(value, list):
        return [by_type(item) for item in value]
    if isinstance(value, dict):
        return {key: by_type(item) for key, item in value.items()}
    return (type(value).__name__, repr(value))


@given(VALUES, VALUES)
def test_the_encoding_tells_apart_what_differs(a, b):
    assert (canonical(a) == canonical(b)) == (by_type(a) == by_type(b))


@given(VALUES)
def test_its_length_bounds_that_of_msgpack(value):
    assert len(msgpack.packb(value)) <= len(canonical(value))


def test_golden():
    value = {"b": [None, True, False, -7, b"\x00"], "a": ("é", 1.5)}
    assert canonical(value) == (
        b"m2:s1:al2:s2:\xc3\xa9d\x3f\xf8\x00\x00\x00\x00\x00\x00s1:bl5:ntfi-7;b1:\x00"
    )


class Name(bytes):
    __slots__ = ()


def test_checked_bytes_are_plain():
    assert type(as_writer(Name(b"n"))) is bytes


@pytest.mark.parametrize("text", ["\x1b[31m", "a\nb", "\u202e", "\ud800", "\x00"])
def test_text_that_could_play_with_a_terminal_is_refused(text):
    with pytest.raises(MalformedState):
        as_text(text, "name", most=64)


def test_checks():
    assert as_text("größe", "name", most=5) == "größe"
    for call, error in [
        (lambda: as_text("x" * 65, "name", most=64), StateTooLarge),
        (lambda: as_text("", "name", most=64, least=1), MalformedState),
        (lambda: as_text(b"x", "name", most=64), MalformedState),
        (lambda: as_hash(b"", "hash", optional=False), MalformedState),
        (lambda: as_hash(b"x" * 31, "hash"), MalformedState),
        (lambda: as_hash(b"x" * 33, "hash"), StateTooLarge),
        (lambda: as_choice("c", "letter", "ab"), MalformedState),
        (lambda: as_choice(["a"], "letter", "ab"), MalformedState),
        (lambda: as_fields([], "thing", (), version=1), MalformedState),
        (lambda: as_fields({"v": 1}, "thing", ("x",), version=1), MalformedState),
        (lambda: as_fields({}, "thing", (), version=1), MalformedState),
    ]:
        with pytest.raises(error):
            call()
    with pytest.raises(MalformedState) as caught:
        as_fields({"v": 2}, "thing", (), version=1)
    assert "upgrade" in caught.value.hint
    assert as_fields({"v": 1, "x": 5, "new": 6}, "thing", ("x",), version=1) == [5]
