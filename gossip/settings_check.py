"""What the settings of any protocol must hold: the one check that both conformance kits have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from gossip.errors import InvalidSettings
from gossip.protocol import Plugin
from gossip.rehearsal import Nonconforming, require

UNKNOWN_KEY: Final = "no_such_setting"

Parse = Callable[[Mapping[str, Any]], object]


def check_settings(protocol: type[Plugin], settings: Mapping[str, Any], *others: Parse) -> None:
    """Settings survive the manifest, and what is not one of them is refused by its name.

    Args:
        protocol: whose `parse_settings` is tried.
        settings: raw, that it accepts.
        others: what else is given raw settings, and has to refuse unknown ones, too.

    Raises:
        Nonconforming: with the setting and what became of it.
    """
    parse = protocol.parse_settings
    parsed = parse(dict(settings))
    plain = msgspec.to_builtins(parsed)
    again = parse(msgspec.json.decode(msgspec.json.encode(plain)))
    require(parsed == again, f"settings change on their way through a manifest: {plain}")
    for each in (parse, *others):
        _refused(each, {**settings, UNKNOWN_KEY: 1}, UNKNOWN_KEY)
    for key, value in sorted(plain.items()):
        wrong = [["wrong"]] if not isinstance(value, list) else "wrong"
        _refused(parse, {**settings, key: wrong}, key)
        if isinstance(value, float):
            _refused(parse, {**settings, key: float("nan")}, key)


def _refused(parse: Parse, raw: dict[str, Any], key: str) -> None:
    try:
        parse(raw)
    except InvalidSettings as error:
        require(key in str(error), f"the refusal of the setting {key!r} does not name it: {error}")
    except Exception as error:
        raise Nonconforming(
            f"the setting {key} = {raw[key]!r} has to raise InvalidSettings, not {error!r}"
        ) from error
    else:
        raise Nonconforming(f"the setting {key} = {raw[key]!r} is accepted")
