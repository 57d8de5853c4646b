"""What the trainer and the rounds report, told on: to this node's status, to the members, to a file, to the checkpoints."""

from __future__ import annotations

import logging
from pathlib import Path

import trio

from gossip.decentralized.network.driver import Progressed
from gossip.rounds import Position, RunReport
from node.run.checkpoint import Checkpoint
from node.run.figures import Figures, MetricsFile
from node.run.manifest import RunManifest
from node.run.presence import Presence
from node.run.saves import Saves
from node.run.trainer_connection import Note
from node.trainer_messages import Evaluated, Failed, Ready, Report, Sample, Saved, SaveFailed

__all__ = ["Journal"]

_log = logging.getLogger(__name__)


class Journal:
    """Takes every report of one run at this node; nothing here waits.

    Args:
        manifest: of the run.
        figures: brought up to date.
        metrics: gets a line for each report.
        presence: tells the members.
        saves: takes the files that the trainer wrote.
        sample_file: where the latest specimen of what the model does goes.
    """

    def __init__(
        self,
        manifest: RunManifest,
        *,
        figures: Figures,
        metrics: MetricsFile,
        presence: Presence,
        saves: Saves,
        sample_file: Path,
    ) -> None:
        self.figures = figures
        self._manifest = manifest
        self._metrics = metrics
        self._presence = presence
        self._saves = saves
        self._sample_file = sample_file

    def on_phase(self, phase: str) -> None:
        """See `gossip.rounds.run_rounds`."""
        self.figures.phase = phase

    def on_round(self, report: RunReport) -> None:
        """A round has ended with a certificate."""
        figures = self.figures
        figures.round_ended(report.members, report.seconds, trio.current_time())
        figures.round, figures.state = report.round, report.state
        self._metrics.write(
            "round",
            round=report.round,
            step=figures.step,
            members=report.members,
            seconds=report.seconds,
            weight=report.weight,
            state_sha256=report.state.hex(),
        )
        self._presence.progress(figures)

    def on_progress(self, progress: Progressed) -> None:
        """This node's model has reached a new round of a decentralized protocol."""
        figures = self.figures
        figures.round_ended(progress.members, None, trio.current_time())
        figures.round, figures.state = progress.round, progress.digest
        self._metrics.write(
            "round",
            round=progress.round,
            step=figures.step,
            members=progress.members,
            state_sha256=progress.digest.hex(),
        )
        self._presence.progress(figures)

    def on_synced(self, position: Position) -> None:
        """This node has taken the state of others."""
        figures = self.figures
        figures.round, figures.state = position.round, position.state
        figures.step = self._manifest.step_after(position.round)
        self._metrics.write("synced", round=position.round, step=figures.step)
        self._presence.progress(figures)

    def on_checkpoint(self, saved: Saved, made: Checkpoint) -> None:
        """A checkpoint is in its place."""
        self._presence.checkpoint(step=saved.step, round_=saved.round, sha256=made.sha256)

    def on_note(self, note: Note) -> None:
        """What the trainer says beside the rounds."""
        figures = self.figures
        match note:
            case Ready(round=round_, step=step, state_sha256=state):
                # A checkpoint was loaded, or weights were made: that is where this node stands now.
                figures.round, figures.step, figures.state = round_, step, state
                self._presence.progress(figures)
            case Report(step=step, loss=loss, tokens=tokens, tokens_per_s=rate):
                figures.step, figures.loss = step, loss
                figures.tokens, figures.tokens_per_s = tokens, rate
                self._metrics.write(
                    "report",
                    step=step,
                    loss=loss,
                    tokens=tokens,
                    tokens_per_s=rate,
                    round=figures.round,
                )
                self._presence.progress(figures)
            case Evaluated(round=round_, step=step, loss=loss, tokens=tokens, accuracy=accuracy):
                figures.val_loss, figures.accuracy = loss, accuracy
                known = {} if accuracy is None else {"accuracy": accuracy}
                self._metrics.write(
                    "eval", round=round_, step=step, loss=loss, tokens=tokens, **known
                )
            case Sample(text=text):
                self._write_sample(text)
            case Saved():
                self._saves.take(note)
            case SaveFailed(step=step, error=error):
                self._saves.failed(step, error)
            case Failed(error=error):
                _log.error("the trainer failed: %s", error)

    def _write_sample(self, text: str) -> None:
        try:
            self._sample_file.write_text(text, encoding="utf-8")
        except OSError as error:
            _log.warning("sample not written: %s", error.strerror)
