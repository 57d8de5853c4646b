"""Control messages: msgpack maps with string keys, parsed as hostile bytes.

Problem: a decoder must stay boring whatever it is fed: no code, no recursion, no amplification, one error type. Idea: msgpack's
C decoder with every limit set, extension types refused, duplicate and non-string keys refused, depth checked, and then msgspec
for the types of the message, so that nothing untyped travels inward.

Invariants: `unpack_untrusted` and `decode_untrusted` raise `MalformedMessage` only; an input of `limit` bytes needs at most
about 80 times its size while it is decoded (64 KiB of empty maps: some 5 MiB).
"""

from __future__ import annotations

from functools import lru_cache
from types import UnionType
from typing import Any, NoReturn, TypeVar, get_args

import msgpack
import msgspec

from transport.buffer import Buffer
from transport.errors import MalformedMessage, MessageTooLarge, TransportError
from transport.identity import NodeId

T = TypeVar("T")

MAX_MESSAGE_BYTES = 65536
"""Bytes of one control message: the usual cap of the field, and what keeps decoding below 5 MiB."""
MAX_CONTAINER_ITEMS = 1024
"""Items of one array or map."""
MAX_DEPTH = 16
"""Containers inside containers, the outermost included."""


def _encode_known(value: object) -> object:
    if isinstance(value, bytes):  # NodeId and its like
        return bytes(value)
    raise NotImplementedError(f"cannot encode {type(value).__name__}")


def _decode_known(type_: type[Any], value: Any) -> Any:
    if isinstance(type_, type) and issubclass(type_, NodeId):
        return type_(value)  # InvalidNodeId for anything but 32 bytes
    raise NotImplementedError(
        f"cannot decode {type_.__name__}"
    )  # a wrong annotation: our own mistake


def pack(obj: object, *, limit: int = MAX_MESSAGE_BYTES) -> bytes:
    """Encode builtins, msgspec Structs, attrs values and NodeId.

    Raises:
        MessageTooLarge: the result exceeds `limit` bytes, so the other side would refuse it.
        TypeError: a value that has no encoding (a bug in the caller).
    """
    plain = msgspec.to_builtins(obj, builtin_types=(bytes,), enc_hook=_encode_known, str_keys=False)
    data: bytes = msgpack.packb(plain, use_bin_type=True)
    if len(data) > limit:
        raise MessageTooLarge(f"message of {len(data)} bytes, limit {limit}")
    return data


def _refuse_extension(_code: int, _data: bytes) -> NoReturn:
    raise ValueError("extension types are forbidden")


def _build_map(pairs: list[tuple[object, object]]) -> dict[str, object]:
    result: dict[str, object] = {}
    for key, value in pairs:
        if type(key) is not str:
            raise ValueError("a map key is not a string")
        result[key] = value
    if len(result) != len(pairs):
        raise ValueError("a map key occurs twice")
    return result


def _check_depth(root: object) -> None:
    level = [root] if isinstance(root, list | dict) else []
    depth = 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH}")
        level = [
            item
            for container in level
            for item in (container.values() if isinstance(container, dict) else container)
            if isinstance(item, list | dict)
        ]


def unpack_untrusted(data: Buffer, *, limit: int = MAX_MESSAGE_BYTES) -> object:
    """Decode one msgpack value into None, bool, int, float, str, bytes, list or dict with str keys.

    Raises:
        MalformedMessage: whatever is wrong with the bytes.
    """
    size = memoryview(data).nbytes
    if size > limit:
        raise MalformedMessage(f"message of {size} bytes, limit {limit}")
    try:
        value: object = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            ext_hook=_refuse_extension,
            object_pairs_hook=_build_map,
            max_ext_len=0,
            max_array_len=MAX_CONTAINER_ITEMS,
            max_map_len=MAX_CONTAINER_ITEMS,
            max_str_len=limit,
            max_bin_len=limit,
        )
        _check_depth(value)
    except (
        ValueError,
        TypeError,
        OverflowError,
        RecursionError,
        msgpack.exceptions.UnpackException,
    ):
        # The library's own words may quote the bytes; they are not passed on.
        raise MalformedMessage("the bytes are not an acceptable msgpack value") from None
    return value


@lru_cache(maxsize=64)
def _tagged(type_: Any) -> tuple[str, dict[str, Any]] | None:
    """Of a union of Structs, the field that tells them apart and who is meant by its values."""
    members = get_args(type_)
    configs: list[Any] = [getattr(member, "__struct_config__", None) for member in members]
    fields = {None if config is None else config.tag_field for config in configs}
    if len(fields) != 1 or not (field := fields.pop()):
        return None
    return field, {config.tag: member for config, member in zip(configs, members, strict=True)}


def _meant(value: object, type_: Any) -> Any:
    """The one type of a union that a value names: `convert` looks at all of them anew in each call (11 us for 13 types instead of 1)."""
    tagged = _tagged(type_) if isinstance(type_, UnionType) else None
    if tagged is None or not isinstance(value, dict):
        return type_
    field, types = tagged
    tag = value.get(field)
    return types.get(tag, type_) if isinstance(tag, str) else type_


def decode_untrusted(data: Buffer, type_: type[T], *, limit: int = MAX_MESSAGE_BYTES) -> T:
    """Decode and validate into `type_` (a frozen Struct, usually); unknown fields are ignored, nothing is coerced.

    Raises:
        MalformedMessage: bytes, shape or values are wrong; the text gives the path of the first wrong field.
    """
    value = unpack_untrusted(data, limit=limit)
    try:
        message: T = msgspec.convert(
            value, _meant(value, type_), strict=True, builtin_types=(bytes,), dec_hook=_decode_known
        )
    except (msgspec.MsgspecError, TransportError, ValueError, TypeError, OverflowError) as error:
        # The text may quote values of the peer: one printable line of bounded length.
        text = "".join(c if c.isprintable() else "?" for c in str(error)[:200])
        raise MalformedMessage(f"not a {getattr(type_, '__name__', 'value')}: {text}") from None
    return message
