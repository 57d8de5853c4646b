"""Reading and writing the saved routing table: whole or not at all, and for the owner's eyes only.

The file tells whom this node talks to, so it is 0600; `transport.durable` writes it. On reading, a file that others could have written,
a link, or anything but a plain file is refused.
"""

from __future__ import annotations

from pathlib import Path

import trio

from dht.saved import MAX_SAVED_BYTES, InvalidSaved
from transport.durable import NotPlain, read_plain, replace_file

_limiter = trio.CapacityLimiter(1)  # one small file, now and then


async def read_table(path: Path) -> bytes | None:
    """Return the file's bytes, None when there is none. Cancelling leaves the thread to end by itself.

    Raises:
        InvalidSaved: it cannot be read, or not be trusted.
    """
    return await trio.to_thread.run_sync(_read, path, limiter=_limiter, abandon_on_cancel=True)


async def write_table(path: Path, data: bytes) -> None:
    """Put `data` in the file's place. Cancelling leaves the thread to end by itself: the old file is there, or the new one.

    Raises:
        OSError: the disk is full, or the like; the old file is still there.
    """
    await trio.to_thread.run_sync(
        replace_file, path, data, limiter=_limiter, abandon_on_cancel=True
    )


def _read(path: Path) -> bytes | None:
    try:
        return read_plain(path, MAX_SAVED_BYTES, ours=True)
    except FileNotFoundError:
        return None
    except NotPlain as error:
        raise InvalidSaved(str(error.strerror)) from None
    except OSError as error:
        raise InvalidSaved(f"it cannot be read ({error.strerror})") from None
