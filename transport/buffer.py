"""The byte containers this room takes: collections.abc.Buffer exists from Python 3.12 on only."""

from __future__ import annotations

from typing import TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview
"""Contiguous bytes; for an array pass `memoryview(array).cast("B")`."""
