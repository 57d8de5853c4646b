"""What a person reads who wrote a wrong setting."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import pytest

from gossip.invalid import complaint


class Inner(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.5
    kind: Literal["ring", "full"] | None = None


class Outer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    inner: Inner = Inner()
    several: tuple[Inner, ...] = ()
    mixing: Literal["mean", "variance-corrected"] = "mean"


@pytest.mark.parametrize(
    ("raw", "text", "hint"),
    [
        ({"nam": "x"}, "there is no setting 'nam'", "did you mean name?"),
        ({"name": "x", "zzz": 1}, "no setting 'zzz'", "are: name, inner, several, mixing"),
        ({"name": "x", "inner": {"shar": 1}}, "'inner.shar'", "did you mean inner.share?"),
        ({"name": "x", "several": [{"zz": 1}]}, "'several[0].zz'", "its settings are: share, kind"),
        ({"name": "x", "mixing": "men"}, "mixing: 'men' is none of mean, ", "did you mean mean?"),
        ({"name": "x", "inner": {"kind": "star"}}, "inner.kind: 'star' is none of ring, full", ""),
        (
            {"name": "x", "several": [{}, {"kind": "rng"}]},
            "several[1].kind: 'rng' is none",
            "ring?",
        ),
        ({"name": "x", "inner": {"share": 2}}, "inner.share: expected a number <= 1.0", ""),
        ({"name": 3}, "name: expected text, got a whole number", ""),
        ({"name": "x", "inner": 3}, "inner: expected a table, got a whole number", ""),
        ({}, "name: has to be set", ""),
    ],
)
def test_says_which_key_what_is_wrong_and_what_would_be_right(
    raw: dict[str, object], text: str, hint: str
) -> None:
    with pytest.raises(msgspec.ValidationError) as raised:
        msgspec.convert(raw, Outer)
    said = complaint(raised.value, Outer)
    assert text in str(said)
    assert hint in said.hint
    assert bool(said.hint) == bool(hint)


def test_a_value_may_look_like_a_path() -> None:
    with pytest.raises(msgspec.ValidationError) as raised:
        msgspec.convert({"name": "x", "mixing": "a - at `$.b`"}, Outer)
    assert complaint(raised.value, Outer).key == "mixing"
