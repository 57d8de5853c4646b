"""Another format's bytes through zstd (RFC 8878), when that makes them fewer.

::

    byte 0      0: the inner format's bytes follow as they are; 1: one zstd frame of them follows
    from 1 on   the bytes

Of normal values it takes 22 % off bf16 (their exponents are much alike), 17 % off int4, 7 % off int8 and 8 %
off fp32, whose mantissas are noise. A frame names the size of its content, which must be the inner format's; nothing is decompressed
before that was compared, so a small frame cannot fill the memory.
"""

from __future__ import annotations

import numpy as np
import zstandard

from gossip.collective.formats.wire_format import Bytes, InvalidBytes, Values, WireFormat

LEVEL = 1
"""Fastest: higher levels win one or two per cent for several times the time."""

_STORED, _FRAME = 0, 1


class Packed(WireFormat):
    """`inner`, compressed."""

    def __init__(self, inner: WireFormat) -> None:
        self.inner = inner
        self.name = inner.name + "+zstd"
        self.bytes_per_value = inner.bytes_per_value
        """At most."""

    def encoded_bytes(self, count: int) -> int:
        """One more than the inner format, at most."""
        return 1 + self.inner.encoded_bytes(count)

    def encode_into(self, values: Values, out: Bytes) -> int:
        """See `WireFormat`."""
        size = self.inner.encode_into(values, out[1:])
        compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=False)
        frame = compressor.compress(out[1 : 1 + size].data)
        if len(frame) >= size:
            out[0] = _STORED
            return 1 + size
        out[0] = _FRAME
        out[1 : 1 + len(frame)] = np.frombuffer(frame, np.uint8)
        return 1 + len(frame)

    def _decode(self, data: Bytes, out: Values) -> None:
        if data.size == 0:
            raise InvalidBytes("nothing")
        kind, body = int(data[0]), data[1:]
        if kind == _STORED:
            self.inner._decode(body, out)  # noqa: SLF001 - a format around a format
            return
        if kind != _FRAME:
            raise InvalidBytes(f"bytes of an unknown kind ({kind})")
        size = self.inner.encoded_bytes(out.size)
        if body.size >= size:
            raise InvalidBytes("a frame that is no shorter than its content")
        try:
            # Of a frame the first 18 bytes say all this; memory is taken only for what matches.
            announced = zstandard.get_frame_parameters(body[:18].tobytes())
            if announced.content_size != size or announced.dict_id:
                raise InvalidBytes(f"a frame of {announced.content_size} bytes, expected {size}")
            content = zstandard.ZstdDecompressor().decompress(
                body.tobytes(), max_output_size=size, allow_extra_data=False
            )
        except zstandard.ZstdError as error:
            raise InvalidBytes(f"a frame that does not decompress ({error})") from None
        self.inner._decode(np.frombuffer(content, np.uint8), out)  # noqa: SLF001
