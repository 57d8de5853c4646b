"""The live view: `noded top`.

On a terminal it takes the screen, refreshes it until `q` or Ctrl-C, and gives the screen back as it was. Elsewhere it prints
one view after the other, and with `--json` one object a line.

Invariant: like `node.cli.main`, this module imports click and the standard library.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import click

from node.cli.base import Verb, Verbs, current_settings

__all__ = ["add_top_verb"]

_ENTER: Final = "\x1b[?1049h\x1b[?25l"
"""The alternate screen, without a cursor."""
_LEAVE: Final = "\x1b[?25h\x1b[?1049l"


def add_top_verb(group: Verbs) -> None:
    """Put the verb into the command line."""
    group.add_command(top)


@click.command("top", cls=Verb, short_help="Live view: traffic, lateness, slow links.")
@click.option(
    "--every",
    "every_s",
    type=click.FloatRange(0.1, 60),
    default=1.0,
    show_default=True,
    help="Seconds between refreshes.",
)
@click.option("--once", is_flag=True, help="Two looks, one view, and the end.")
def top(every_s: float, once: bool) -> None:
    """Who sends what to whom, how late each member begins its operations, and which link has become slow.

    LATE is how long after the first a member usually begins an operation; the others wait for it. LINK IN and
    LINK OUT are what the operations themselves got over the link to this node and from it; links within one
    machine, where values pass through shared memory, are not measured.

    With a protocol without agreement nobody waits in operations, so there is the age of each neighbour's LAST MODEL
    instead, and how many models came and went, with their bytes.
    """
    from node.cli.render_top import figures, top_text

    settings = current_settings()
    client = settings.client(default_timeout_s=5.0)
    live = sys.stdout.isatty() and not settings.json and not once
    style = settings.style()
    before: dict[str, Any] | None = None
    before_at = 0.0
    with _screen(live) as pause:
        while True:
            status, at = client.get("/v1/status"), time.monotonic()
            shown = figures(status, before, at - before_at)
            first, before, before_at = before is None, status, at
            if not (once and first):  # rates need two looks
                if settings.json:
                    settings.print_json(shown)
                elif live:
                    height = shutil.get_terminal_size().lines
                    text = top_text(shown, style, height=height)
                    sys.stdout.write("\x1b[H" + text.replace("\n", "\x1b[K\n") + "\x1b[K\n\x1b[J")
                else:
                    click.echo(top_text(shown, style) + ("" if once else "\n"))
                sys.stdout.flush()
                if once:
                    return
            if pause(every_s):
                return


@contextmanager
def _screen(live: bool) -> Iterator[Any]:
    """A way to pause that returns True when the person has had enough; the terminal is given back as it was."""
    if not live:
        yield _sleep
        return
    import select
    import termios
    import tty

    keyboard = sys.stdin.fileno() if sys.stdin.isatty() else None
    usual = termios.tcgetattr(keyboard) if keyboard is not None else None

    def pause(seconds: float) -> bool:
        if keyboard is None:
            return _sleep(seconds)
        ready, _, _ = select.select([keyboard], [], [], seconds)
        return bool(ready) and os.read(keyboard, 64) in {b"q", b"Q", b"\x1b", b""}

    sys.stdout.write(_ENTER)
    try:
        if keyboard is not None:
            tty.setcbreak(keyboard)
        yield pause
    finally:
        if keyboard is not None and usual is not None:
            termios.tcsetattr(keyboard, termios.TCSADRAIN, usual)
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False
