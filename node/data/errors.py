"""What can be wrong with a data set."""

from __future__ import annotations

from node.errors import ExitCode, NodedError

__all__ = ["DataCorrupt", "DataError", "DataMissing", "InvalidSplit"]


class DataError(NodedError):
    """Root of what can be wrong with a data set; ends a command as bad configuration."""

    exit_code = ExitCode.BAD_CONFIG


class DataMissing(DataError):
    """A file of the data set is not there or cannot be read."""


class DataCorrupt(DataError):
    """A file is not what its format demands, or not the file everybody else has; the message names file and place."""


class InvalidSplit(DataError):
    """The data cannot be split among that many nodes in that way."""
