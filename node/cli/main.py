"""The `noded` command: verbs, global options, and one place where errors become exit codes.

Problem: health checks run `noded status` every few seconds on every node, people run it by hand, scripts
read its JSON. It has to start fast, say what to do when something is wrong, and end with the right code.

Idea: this module imports click and the standard library, and each verb imports what it needs when it
runs: asking the daemon needs no more than an HTTP client, only `noded run` loads the event loop. Global
options stand before or after the verb. Verbs raise `NodedError`; `main` prints and maps.

Invariants: data goes to standard output, messages to standard error; with `--json` exactly one object is
printed, on one line (streams: one after the other), also for an error; exit codes are `node.errors.ExitCode`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from node import __version__
from node.cli.base import Settings, Verbs, current_settings
from node.cli.blocks import add_block_verbs
from node.cli.joining import add_joining_verbs
from node.cli.network import add_network_verbs
from node.cli.plot import add_plot_verb
from node.cli.simulate import add_simulate_verb
from node.cli.state import add_state_verb
from node.cli.top import add_top_verb
from node.cli.trust import add_trust_verb
from node.errors import (
    ExitCode,
    NodedError,
    NotReady,
    exit_code_of,
    first_error,
    hint_of,
)

if TYPE_CHECKING:
    from node.cli.client import Client

__all__ = ["cli", "main"]

STOP_TIMEOUT_S: Final = 15.0
"""The daemon promises to be gone 10 s after it was asked."""

_EPILOG: Final = """\b
Examples:
  noded local                       four nodes on this machine train a small model
  noded init && noded run           make a swarm with this node in it, and start it
  noded invite                      a code with which another machine joins: noded join CODE
  noded status --watch              how it is doing
  noded peers --json                the same for a script
  noded simulate --nodes 100        a swarm in one process, on a virtual clock

Exit codes: 0 ok, 1 failed, 2 usage, 3 daemon not running, 4 not healthy or not ready,
5 timed out, 6 peer unreachable, 7 bad configuration, 8 refused, 130 interrupted."""


def _print_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(f"noded {__version__}")
        ctx.exit()


@click.group(cls=Verbs, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version.",
)
def cli() -> None:
    """Turn any set of machines into one training swarm, with no server anywhere."""


@cli.command()
@click.option("--watch", is_flag=True, help="Print it again every second until Ctrl-C.")
@click.option("--check", is_flag=True, help="Print nothing; 0 is ready, 4 is not, 3 is off.")
def status(watch: bool, check: bool) -> None:
    """How the node is: verdict, run, traffic, health.

    Ready (--check) is a node that does what it can: waiting for other nodes or for a script to attach
    is a warning at most, because restarting this node would not help.
    """
    settings = current_settings()
    client = settings.client(default_timeout_s=5.0)
    if check:
        answer = client.call("GET", "/readyz", accept=frozenset({503}))
        if not answer.get("ready"):
            raise NotReady(
                f"not ready: {answer.get('state', 'n/a')}, {answer.get('verdict', 'n/a')}",
                hint="noded status says more",
            )
        return
    if watch:
        _watch(client, settings)
        return
    answer = client.get("/v1/status")
    if settings.json:
        settings.print_json(answer)
    else:
        click.echo(_status_text(answer, settings))


def _status_text(answer: dict[str, Any], settings: Settings) -> str:
    from node.cli.render import status_text
    from node.paths import default_data_dir, node_paths

    usual = node_paths(default_data_dir()).trainer_socket
    return status_text(answer, settings.style(), aim=settings.aim, usual_socket=str(usual))


def _watch(client: Client, settings: Settings) -> None:
    import time

    from node.cli.render import peers_text

    live = sys.stdout.isatty()
    while True:
        answer = client.get("/v1/status")
        if settings.json:
            settings.print_json(answer)
            sys.stdout.flush()
        else:
            text = _status_text(answer, settings)
            if answer.get("peers"):
                text += "\n\n" + peers_text(answer["peers"], settings.style())
            # Home, the text with each line's rest erased, then everything below: no flicker.
            screen = "\x1b[H" + text.replace("\n", "\x1b[K\n") + "\x1b[K\n\x1b[J"
            sys.stdout.write(screen if live else text + "\n\n")
            sys.stdout.flush()
        time.sleep(1)


@cli.command()
@click.option("--all", "everything", is_flag=True, help="Also those that left.")
@click.option("--sort", type=click.Choice(["rtt", "name", "seen"]), help="Order of the rows.")
def peers(everything: bool, sort: str | None) -> None:
    """The other nodes: state, path, round-trip time, traffic."""
    settings = current_settings()
    answer = settings.client().get("/v1/peers")
    if settings.json:
        settings.print_json(answer)
        return
    from node.cli.render import peers_text

    rows = answer.get("peers") or []
    click.echo(peers_text(rows, settings.style(), sort=sort or "", everything=everything))
    left = sum(isinstance(row, dict) and row.get("state") == "left" for row in rows)
    if not rows:
        hint = settings.aim("noded invite prints a code with which another machine joins")
        click.echo(f"no other node is known yet; {hint}", err=True)
    elif left == len(rows) and not everything:
        click.echo(settings.aim(f"{left} left in good order: noded peers --all"), err=True)


add_joining_verbs(cli)
add_block_verbs(cli)
add_network_verbs(cli)
add_simulate_verb(cli)
add_plot_verb(cli)
add_state_verb(cli)
add_top_verb(cli)
add_trust_verb(cli)


@cli.command()
@click.option("--no-wait", is_flag=True, help="Do not wait until it is gone.")
def stop(no_wait: bool) -> None:
    """Ask the daemon to leave the swarm and end."""
    import time

    from node.errors import DaemonNotRunning, TimedOut

    settings = current_settings()
    client = settings.client(default_timeout_s=STOP_TIMEOUT_S)
    deadline = time.monotonic() + client.timeout_s
    answer = client.post("/v1/stop")
    while not no_wait:
        if time.monotonic() >= deadline:
            raise TimedOut(
                f"the daemon is still there after {client.timeout_s:g} s",
                hint="look at its log; it ends at once on a second SIGTERM",
            )
        time.sleep(0.05)
        client.timeout_s = max(0.05, min(1.0, deadline - time.monotonic()))
        try:
            client.get("/healthz")
        except DaemonNotRunning:
            break
        except NodedError:
            continue  # still winding down
    if settings.json:
        settings.print_json(
            {"schema": "noded.stop/1", "stopped": not no_wait, **_without_schema(answer)}
        )
    else:
        click.echo("stopping" if no_wait else "stopped")


@cli.command("id")
def show_id() -> None:
    """This node's id; with --json its swarm's, too. Needs no daemon."""
    from node import keys
    from node.cli.client import data_dir_of
    from node.paths import node_paths

    settings = current_settings()
    paths = node_paths(data_dir_of(settings.config))
    identity = keys.load_identity(paths.node_key)
    swarm_id = None
    if os.path.lexists(paths.certificate):
        swarm_id = keys.load_chain(paths.certificate).leaf.swarm_id.hex()
    if settings.json:
        settings.print_json(
            {
                "schema": "noded.id/1",
                "id": str(identity.node_id),
                "short": identity.node_id.short,
                "swarm": swarm_id,
                "data_dir": str(paths.data_dir),
            }
        )
    else:
        click.echo(str(identity.node_id))


_set_option = click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Set a key, as run.every=16."
)


def _overrides(assignments: Sequence[str]) -> dict[str, str]:
    overrides = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise click.UsageError(f"--set wants KEY=VALUE, as in run.every=16, not {assignment!r}")
        overrides[key.strip()] = value
    return overrides


@cli.command(short_help="Run the daemon in the foreground.")
@_set_option
@click.option("--parent-pid", type=int, hidden=True, help="End when this process ends.")
def run(assignments: tuple[str, ...], parent_pid: int | None) -> None:
    """Run the daemon in the foreground (what systemd and compose start)."""
    settings = current_settings()
    if parent_pid is not None:
        from node.local.parent import die_with_parent

        die_with_parent(parent_pid)
    from node import log
    from node.config import load_config
    from node.config_checks import check_environment

    overrides = _overrides(assignments)
    if settings.verbosity and "log.level" not in overrides:
        overrides["log.level"] = "debug" if settings.verbosity > 0 else "warning"
    loaded = load_config(settings.config, overrides=overrides)
    check_environment(loaded.config)
    log.configure(loaded.config.log.level, loaded.config.log.format)
    from node.daemon import run_daemon

    code = run_daemon(
        loaded.config, reload=lambda: load_config(settings.config, overrides=overrides).config
    )
    if code:
        raise SystemExit(code)


@cli.command(
    context_settings={"show_default": True},
    short_help="Several nodes on this machine train one model.",
)
@click.option("--peers", type=click.IntRange(1, 64), default=4, help="Nodes to start.")
@click.option("--steps", type=click.IntRange(min=1), default=8000, help="Local steps of each node.")
@click.option("--every", type=click.IntRange(min=1), default=32, help="Local steps in a round.")
@click.option("--protocol", default="diloco", help="How the nodes combine their work.")
@click.option("--task", default="byte-gpt", help="What to train.")
@click.option("--data", type=click.Path(path_type=Path), help="A file or folder to train on.")
@click.option("--seed", type=click.IntRange(0, 2**53 - 1), default=0, help="Random seed.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for everything it writes.")
@_set_option
@click.option("--plain", is_flag=True, help="Lines instead of the live view.")
def local(
    *,
    peers: int,
    steps: int,
    every: int,
    protocol: str,
    task: str,
    data: Path | None,
    seed: int,
    out: Path | None,
    assignments: tuple[str, ...],
    plain: bool,
) -> None:
    """Start several nodes on this machine and train one model with them."""
    from node.local import LocalOptions, run_local

    settings = current_settings()
    code = run_local(
        LocalOptions(
            peers=peers,
            steps=steps,
            every=every,
            protocol=protocol,
            task=task,
            data=data,
            seed=seed,
            out=out,
            overrides=_overrides(assignments),
            json=settings.json,
            plain=plain,
            no_color=settings.no_color,
            verbosity=settings.verbosity,
        )
    )
    if code:
        raise SystemExit(code)


@cli.group("config", cls=Verbs)
def config_() -> None:
    """Look at the configuration: show, check, explain."""


@config_.command("show")
@_set_option
def config_show(assignments: tuple[str, ...]) -> None:
    """Every key with its effective value and where that came from."""
    from node.cli.text import effective
    from node.config import load_config

    settings = current_settings()
    loaded = load_config(settings.config, overrides=_overrides(assignments))
    rows = effective(loaded)
    if settings.json:
        keys = {key: {"value": value, "source": source} for key, value, _, source in rows}
        settings.print_json(
            {"schema": "noded.config-show/1", "path": str(loaded.path), "keys": keys}
        )
        return
    from node.cli.render import table

    cells = [[key, text, source] for key, _, text, source in rows]
    click.echo(table(["KEY", "VALUE", "FROM"], cells, settings.style()))


@config_.command("check")
@_set_option
def config_check(assignments: tuple[str, ...]) -> None:
    """Whether the configuration is valid; 7 if it is not."""
    from node.config import load_config
    from node.config_checks import check_environment

    settings = current_settings()
    loaded = load_config(settings.config, overrides=_overrides(assignments))
    check_environment(loaded.config)
    if settings.json:
        settings.print_json(
            {"schema": "noded.config-check/1", "path": str(loaded.path), "valid": True}
        )
    else:
        click.echo(f"{loaded.path} is valid")


@config_.command("explain")
@click.argument("key", required=False)
def config_explain(key: str | None) -> None:
    """What KEY does, its type, default and variable; KEY may be a protocol or task, or a setting of protocols.

    Without KEY, everything but the tasks.
    """
    from node.cli.text import knob_json
    from node.config_text import explain
    from node.knobs import knob, knobs
    from node.plugin_text import (
        all_protocols,
        all_tasks,
        protocol_text,
        task_text,
        with_setting,
    )

    settings = current_settings()
    chosen = [entry for entry in knobs() if key is None or entry.key.partition(".")[0] == key]
    protocols = [protocol_text(name) for name in all_protocols() if key in {None, name}]
    tasks = [task_text(name) for name in all_tasks() if key == name]
    if key is not None and not (chosen or protocols or tasks):
        protocols = with_setting(key)
        if not protocols:
            chosen = [knob(key)]
    if settings.json:
        entries = [knob_json(entry) for entry in chosen]
        settings.print_json(
            {
                "schema": "noded.config-explain/1",
                "keys": entries,
                "protocols": [text.to_json() for text in protocols],
                "tasks": [text.to_json() for text in tasks],
            }
        )
    else:
        click.echo("\n\n".join([*map(explain, chosen), *map(str, [*protocols, *tasks])]))


@cli.command(short_help="Print a completion script for SHELL.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that makes SHELL complete verbs, options and peer names.

    \b
    bash:  noded completion bash > ~/.local/share/bash-completion/completions/noded
    zsh:   noded completion zsh  > "${fpath[1]}/_noded"
    fish:  noded completion fish > ~/.config/fish/completions/noded.fish
    """  # noqa: D301 (click reads a real backspace as "leave these lines alone")
    from click.shell_completion import get_completion_class

    class_ = get_completion_class(shell)
    assert class_ is not None
    click.echo(class_(cli, {}, "noded", "_NODED_COMPLETE").source())


def _without_schema(answer: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in answer.items() if key != "schema"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the process's exit code.

    Errors are printed on standard error as `noded: what is wrong` and the hint below it; with `--json`
    also as a `noded.error/1` object on standard output.
    """
    settings = Settings()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        cli.main(args=arguments, prog_name="noded", standalone_mode=False, obj=settings)
        sys.stdout.flush()
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        error.show()
        if settings.json or "--json" in arguments:  # it may stand behind what click did not take
            _print_error(settings, error.format_message(), "", ExitCode.USAGE)
        return int(ExitCode.USAGE)
    except (KeyboardInterrupt, click.Abort):
        return int(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        # `noded peers | head`: the reader has seen enough. Python would complain at its own exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.FAILED)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(bool(error.code))
    except Exception as error:
        leaf = first_error(error)
        if not hasattr(leaf, "hint") and not isinstance(leaf, OSError | TimeoutError):
            raise  # a bug: the traceback is the report
        return _report(error, settings)
    return int(ExitCode.OK)


def _report(error: BaseException, settings: Settings) -> int:
    from node.cli.render import printable

    code = exit_code_of(error)
    message = str(first_error(error)) or type(first_error(error)).__name__
    hint = settings.aim(hint_of(error))
    lines = [f"noded: {printable(message)}"]
    lines += [f"  {printable(line)}" for line in hint.splitlines()]
    click.echo("\n".join(lines), err=True)
    if settings.json:
        _print_error(settings, message, hint, code)
    return int(code)


def _print_error(settings: Settings, message: str, hint: str, code: ExitCode) -> None:
    settings.print_json(
        {"schema": "noded.error/1", "error": message, "hint": hint, "exit_code": int(code)}
    )
