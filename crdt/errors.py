"""What can go wrong with shared state: bad input, too much input, a clock far off."""


class CrdtError(Exception):
    """Root of this room's errors. The value it was raised about is unchanged.

    Attributes:
        hint: what to do next, for people; may be empty.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class MalformedState(CrdtError):
    """A wire or an edit does not have the form that the types demand."""


class StateTooLarge(CrdtError):
    """A wire, an edit or a join would exceed a documented bound."""


class ClockSkew(CrdtError):
    """A timestamp lies too far in our future.

    Attributes:
        ahead_ms: how far, in milliseconds, measured with the local wall clock.
    """

    def __init__(self, ahead_ms: int) -> None:
        super().__init__(
            f"a timestamp is {ahead_ms / 1000:.1f} s ahead of the local clock",
            hint="compare the clocks of both machines (is a time service running?)",
        )
        self.ahead_ms = ahead_ms


class Forged(CrdtError):
    """An entry was not signed by the writer it names: whoever passed it on did not check it."""


class NotTheAuthor(CrdtError):
    """A writer set a field that is not its to set."""
