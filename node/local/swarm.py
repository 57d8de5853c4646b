"""The order of a local swarm: set up, start, watch until the run is over, end, sum up.

Problem: anything may happen meanwhile: a daemon that cannot start, one that is killed and has to come
back, a straggler, a Ctrl-C at any moment. And whatever happened, nothing may be left running.

Idea: one loop in the main thread (which alone starts processes, see `parent`), with blocking questions
in threads. The first daemon is started alone, because the others need the address that the kernel gave
it. Signals only set a flag that the loop looks at; a second one cuts the orderly end short.

Invariants: leaving `run` by any way ends every process; the exit code says what happened.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Final

from node.cli.render import style_for
from node.errors import ExitCode, NodedError
from node.local import LocalOptions
from node.local.chart import draw_losses
from node.local.fleet import Daemon, Fleet, daemon_command
from node.local.layout import (
    PeerFiles,
    cannot_start,
    check_options,
    choose_out,
    clean_environ,
    peer_files,
    write_config,
    write_keys,
)
from node.local.summary import Summary, losses_of, summarise
from node.local.view import JsonView, Progress, View, open_view
from node.local.watch import PeerView, Watcher

__all__ = ["LocalSwarm"]

TICK_S: Final = 0.25
ASK_EVERY_S: Final = 1.0
START_TIMEOUT_S: Final = 60.0
"""A daemon is up in half a second; 2 busy cores and a cold disk may take many times that."""
STRAGGLER_S: Final = 90.0
"""How long the last peers may go without progress when the others have finished."""

_EXPECTED: Final = frozenset({"peer-lost", "quorum-missing", "trainer-gone", "loop-lag"})
"""Warnings that say nothing here: the first three end or are told in other words, and several trainers
on one machine take each other's cores."""


class LocalSwarm:
    """One `noded local`.

    Args:
        options: what was asked for.
        command: gives the argument vector that starts a peer (another one in tests).
        clock: monotonic seconds.
    """

    def __init__(
        self,
        options: LocalOptions,
        *,
        command: Callable[[PeerFiles], Sequence[str]] = daemon_command,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options = options
        self._clock = clock
        self._environ = clean_environ(os.environ)
        self._fleet = Fleet(self._environ, command=command, clock=clock)
        self._watcher = Watcher()
        self._progress = Progress(options.steps)
        self._signals: list[int] = []
        self._warned: set[tuple[str, str]] = set()
        self._started_at = clock()

    def run(self) -> int:
        """Do it all; see `node.local.run_local`."""
        from transport.identity import Identity
        from transport.swarm import Swarm

        options = self._options
        check_options(options)
        out = choose_out(options.out)
        peers = peer_files(out, options.peers, self._environ)
        root = Identity.generate(os.urandom)
        swarm = Swarm.generate(os.urandom, root.public_key)
        for peer in peers:
            write_keys(peer, swarm, root)
        write_config(peers[0], options)
        view = open_view(json_lines=options.json, plain=options.plain, no_color=options.no_color)
        try:
            with self._signals_noted(), self._fleet:
                try:
                    view.event("started", f"everything goes to {out}", out=str(out))
                    self._start(peers, view)
                    reason = self._watch(view) if not self._signals else ""
                    self._ask(view)
                finally:
                    view.close()
                    killed = self._fleet.end(hurry=lambda: len(self._signals) > 1)
                for daemon in killed:
                    name = daemon.peer.name
                    view.event("killed", f"{name} did not end by itself", peer=name)
                if self._signals:
                    reason = "interrupted"
                summary = self._sum_up(out, reason)
        finally:
            self._watcher.close()
        self._print(summary, view)
        if self._signals:
            return int(ExitCode.INTERRUPTED)
        return int(ExitCode.OK if summary.ok else ExitCode.FAILED)

    def _start(self, peers: Sequence[PeerFiles], view: View) -> None:
        first = self._watcher.add(self._fleet.start(peers[0]))
        self._wait_ready([first], view)
        if self._signals:
            return
        for peer in peers[1:]:
            # All that the others know: one address, and (in their configuration) the run's name.
            write_config(peer, self._options, bootstrap=first.addresses[:1])
            self._watcher.add(self._fleet.start(peer))
        self._wait_ready(self._watcher.views, view)

    def _wait_ready(self, wanted: Sequence[PeerView], view: View) -> None:
        """Wait until each of them answers.

        Raises:
            NodedError: one ended, or did not answer in time.
        """
        deadline = self._clock() + START_TIMEOUT_S
        while not self._signals:
            for daemon in self._fleet.poll(self._before_restart):
                if daemon.lives == 1:
                    raise _cannot_start(daemon)
            self._ask(view)
            late = [peer for peer in wanted if not peer.ready]
            if not late:
                return
            if self._clock() >= deadline:
                raise cannot_start(
                    late[0].daemon.peer, f"did not answer within {START_TIMEOUT_S:.0f} s", None
                )
            time.sleep(0.05)

    def _watch(self, view: View) -> str:
        """Until the run is over; why it ended early, or ""."""
        next_ask = self._clock()
        moved_at, moved_to = self._clock(), -1
        back: set[str] = set()
        while not self._signals:
            now = self._clock()
            for daemon in self._fleet.poll(self._before_restart):
                back.add(daemon.peer.name)
                self._report_end(daemon, view)
            if any(daemon.given_up not in {"", "stopped"} for daemon in self._fleet.daemons):
                daemon = next(d for d in self._fleet.daemons if d.given_up not in {"", "stopped"})
                raise cannot_start(daemon.peer, daemon.given_up, daemon.exit_code)
            if now >= next_ask:
                next_ask = now + ASK_EVERY_S
                self._ask(view)
                for peer in self._watcher.views:
                    if peer.name in back and peer.ready:
                        back.discard(peer.name)
                        view.event("peer-back", f"{peer.name} is back", peer=peer.name)
                    if (why := peer.trainer_gone) is not None:
                        raise _cannot_train(peer, why)
                alive = [peer for peer in self._watcher.views if not peer.daemon.given_up]
                if not alive:
                    return "every peer was stopped"
                if all(peer.finished for peer in alive):
                    return ""
                behind = [peer for peer in alive if not peer.finished]
                total = sum(peer.progress_step + peer.step for peer in behind)
                if total != moved_to or len(behind) == len(alive):
                    moved_at, moved_to = now, total
                if now - moved_at > STRAGGLER_S:
                    names = ", ".join(peer.name for peer in behind)
                    return f"{names} made no progress while the others had finished"
            time.sleep(TICK_S)
        return ""

    def _ask(self, view: View) -> None:
        self._watcher.update()
        now = self._clock()
        self._progress.update(self._watcher.views, now)
        view.update(self._watcher.views, self._progress, now)
        for peer in self._watcher.views:
            for code, text in peer.warnings:
                if code not in _EXPECTED and (peer.name, code) not in self._warned:
                    self._warned.add((peer.name, code))
                    view.event("warning", f"{peer.name}: {text}", peer=peer.name, code=code)

    def _before_restart(self, daemon: Daemon) -> None:
        """Give a peer that comes back the port it had, and the addresses of the others.

        The others know the first peer by that port; and the first one, whose configuration names
        nobody, would otherwise wait to be found.
        """
        own = next(view for view in self._watcher.views if view.daemon is daemon)
        others = [
            view.addresses[0]
            for view in self._watcher.views
            if view is not own and view.daemon.running and view.addresses
        ]
        listen = own.addresses[0] if own.addresses else "127.0.0.1:0"
        write_config(daemon.peer, self._options, listen=listen, bootstrap=others)

    def _report_end(self, daemon: Daemon, view: View) -> None:
        name, code = daemon.peer.name, daemon.exit_code or 0
        if code < 0:
            with suppress(ValueError):
                how = f"was killed by {signal.Signals(-code).name}"
        elif code == 0:
            how = "was stopped"
        else:
            how = f"ended with code {code}"
        comes_back = "; it comes back in 2 s" if daemon.restart_at is not None else ""
        view.event("peer-lost", f"{name} {how}{comes_back}", peer=name, exit_code=code)

    def _sum_up(self, out: Path, reason: str) -> Summary:
        views = self._watcher.views
        chart: Path | None = out / "loss.png"
        options = self._options
        title = (
            f"{options.task} with {options.protocol}: {options.peers} peers, "
            f"a round every {options.every} steps"
        )
        apart = any(view.decentralized for view in views)
        by, per_byte = "round" if apart else "step", options.task == "byte-gpt"
        drawn = draw_losses(
            out / "loss.png",
            {view.name: losses_of(view.daemon.peer, "report", by=by) for view in views},
            {view.name: losses_of(view.daemon.peer, "eval", by=by) for view in views},
            title=title,
            unit="nats per byte" if per_byte else "",
            shared=not apart,
            axis="rounds; dashed: held-out data" if apart else "local steps of each peer",
        )
        summary = summarise(
            views,
            out=out,
            seconds=self._clock() - self._started_at,
            chart=chart if drawn else None,
            reason=reason,
            per_byte=per_byte,
        )
        with suppress(OSError):
            text = json.dumps(summary.to_json(), indent=2) + "\n"
            (out / "summary.json").write_text(text, encoding="utf-8")
        return summary

    def _print(self, summary: Summary, view: View) -> None:
        if isinstance(view, JsonView):
            facts = summary.to_json()
            print(json.dumps(facts), flush=True)  # noqa: T201 (standard output is the result)
        else:
            style = style_for(sys.stdout, no_color=self._options.no_color)
            print(summary.text(style), flush=True)  # noqa: T201

    @contextmanager
    def _signals_noted(self) -> Iterator[None]:
        """Turn the signals that end a program into entries of `_signals`."""

        def note(number: int, _frame: FrameType | None) -> None:
            self._signals.append(number)

        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = [(number, signal.signal(number, note)) for number in numbers]
        try:
            yield
        finally:
            for number, handler in before:
                signal.signal(number, handler)


def _cannot_train(view: PeerView, why: str) -> NodedError:
    # The daemon starts a trainer again after a crash, and gives up only where that cannot help:
    # on a task, a setting or a corpus that is wrong.
    lines = [line.strip().removeprefix("noded trainer:").strip() for line in why.split(" | ")]
    return NodedError(
        f"{view.name} cannot train: {lines[0]}",
        hint="\n".join([*lines[1:], f"more in {view.daemon.peer.run_dir / 'trainer.log'}"]),
        exit_code=ExitCode.BAD_CONFIG,
    )


def _cannot_start(daemon: Daemon) -> NodedError:
    code = daemon.exit_code or 0
    how = f"was ended by signal {-code}" if code < 0 else f"could not start (exit code {code})"
    return cannot_start(daemon.peer, how, code)
