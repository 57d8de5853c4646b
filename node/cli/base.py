"""What all verbs of the command line share: the global options and the guessing of misspelt verbs.

Problem: `noded --json status` and `noded status --json` are both natural, and should be the same.

Idea: every verb gets the global options as parameters of its own, which all write into one `Settings`
object that hangs from click's context. It also gives commands in hints the options that this one had, so
that a printed command works when it is pasted.

Invariants: this module imports click and the standard library, like `node.cli.main`, which it serves.
"""

from __future__ import annotations

import difflib
import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from node.cli.client import Client
    from node.cli.render import Style

__all__ = ["Settings", "Verb", "Verbs", "current_settings"]


_COMMAND: Final = re.compile(
    r"\bnoded(?= (?:init|join|run|status|top|peers|ping|netcheck|state|stop|config|invite|members|revoke|leave|put|get|trust)\b)"
)
"""A command that is about a node, in a sentence."""


class Settings:
    """The global options, wherever on the line they stood."""

    def __init__(self) -> None:
        self.json = False
        self.config: Path | None = None
        self.socket: Path | None = None
        self.verbosity = 0
        self.no_color = False
        self.timeout_s: float | None = None

    def client(self, default_timeout_s: float = 10.0) -> Client:
        """A client of the daemon that the options name."""
        from node.cli.client import Client, find_socket, how_to_start

        timeout_s = self.timeout_s if self.timeout_s is not None else default_timeout_s
        return Client(
            find_socket(self.socket, self.config),
            timeout_s=timeout_s,
            off_hint=how_to_start(self.socket, self.config),
        )

    def aim(self, hint: str) -> str:
        """`hint` with every `noded VERB` in it aimed at the node that this command was about."""
        flags = ""
        if self.config is not None:
            flags += f" --config {shlex.quote(str(self.config))}"
        if self.socket is not None:
            flags += f" --socket {shlex.quote(str(self.socket))}"
        return _COMMAND.sub(f"noded{flags}".replace("\\", r"\\"), hint) if flags else hint

    def print_json(self, value: object) -> None:
        """One JSON document on one line, as every verb prints it."""
        click.echo(json.dumps(value))

    def style(self) -> Style:
        """Colours for standard output."""
        from node.cli.render import style_for

        return style_for(sys.stdout, no_color=self.no_color)


def current_settings() -> Settings:
    """The global options of the command that runs."""
    return click.get_current_context().ensure_object(Settings)


def _global_option(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def store(ctx: click.Context, _param: click.Parameter, value: Any) -> None:
        settings = ctx.ensure_object(Settings)
        if name in {"verbose", "quiet"}:
            settings.verbosity += value if name == "verbose" else -value
        elif value is not None and value is not False:
            setattr(settings, name, value)

    return store


def _global_options() -> list[click.Parameter]:
    path = click.Path(path_type=Path)

    def option(*names: str, dest: str, **attributes: Any) -> click.Option:
        return click.Option(
            [*names, dest], expose_value=False, callback=_global_option(dest), **attributes
        )

    return [
        option("--json", dest="json", is_flag=True, help="Print JSON."),
        option("--config", dest="config", type=path, help="Configuration file.", metavar="PATH"),
        option("--socket", dest="socket", type=path, help="Control socket.", metavar="PATH"),
        option("-q", "--quiet", dest="quiet", count=True, show_default=False, help="Say less."),
        option("-v", "--verbose", dest="verbose", count=True, show_default=False, help="Say more."),
        option("--no-color", dest="no_color", is_flag=True, help="No colours (also: NO_COLOR)."),
        option(
            "--timeout",
            dest="timeout_s",
            type=click.FloatRange(min=0, min_open=True),
            help="Seconds to wait for an answer.",
            metavar="S",
        ),
    ]


class Verb(click.Command):
    """A verb that takes the global options as well."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += _global_options()


class Verbs(click.Group):
    """A group that takes the global options and guesses what a misspelt verb meant."""

    command_class = Verb

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += _global_options()

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with a suggestion in the error."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            if not near or "Did you mean" in error.message:
                raise
            raise click.UsageError(f"{error.message} Did you mean {near[0]!r}?", ctx) from None
