"""What a loop and its daemon do with each other: the part of a session that depends on the run's protocol."""

from __future__ import annotations

from abc import ABC, abstractmethod

from node.trainer_messages import DaemonMessage, SaveNow, Stop
from node.training.attachment import Attachment
from node.training.daemon_link import DaemonLost

__all__ = ["Work"]


class Work(ABC):
    """Rounds of a collective protocol, or legs of a decentralized one.

    Args:
        attachment: to the daemon.
    """

    def __init__(self, attachment: Attachment) -> None:
        self.attachment = attachment
        self.round = 0
        """Completed rounds."""
        self.started = False
        """Whether the daemon has said to start."""
        self.peers = 0
        """Other members in the last round."""
        self.wait_seconds = 0.0
        """Spent in waiting for the daemon."""
        self.save_wanted = False

    @property
    @abstractmethod
    def global_step(self) -> int:
        """The local step that a learning-rate schedule follows."""

    @property
    @abstractmethod
    def finished(self) -> bool:
        """Whether all rounds of the run are done."""

    @property
    @abstractmethod
    def saved(self) -> bool:
        """Whether the state of the last completed round was saved by this process."""

    @abstractmethod
    def open(self) -> None:
        """Bind the model, load or initialise the state, and say `Ready`.

        Raises:
            JoinRefused: the daemon shares other vectors than are needed.
            CheckpointCorrupt: the checkpoint to resume from is damaged or of another model.
        """

    @abstractmethod
    def step_done(self) -> None:
        """The loop has done a local step; may wait for the daemon."""

    @abstractmethod
    def save(self) -> bool:
        """Write a checkpoint; False if that cannot be done."""

    def handle(self, message: DaemonMessage) -> None:
        """Take a message of the daemon's."""
        attachment = self.attachment
        match message:
            case SaveNow():
                self.save_wanted = True
            case Stop(reason=reason):
                attachment.stop_reason = reason or "the daemon stops"
                if not attachment.wishes.supervised:
                    if self.save_wanted:
                        self.save()  # after this there is nobody to publish it
                    attachment.lose(DaemonLost(f"the daemon ended the session: {reason}"))
            case _:
                raise DaemonLost(f"the daemon sent {type(message).__name__} out of turn")

    def drain(self) -> None:
        """Take all messages that have arrived."""
        while (link := self.attachment.link) is not None:
            message = link.poll()
            if message is None:
                return
            self.handle(message)

    def receive_until(self, deadline: float) -> bool:
        """Wait for one message and take it; False when `deadline` passed or the wait was interrupted."""
        attachment = self.attachment
        if attachment.link is None:
            return False
        with attachment.guarded():
            left_s = deadline - attachment.clock()
            message = attachment.link.receive(max(left_s, 0.0))
            if message is None:
                return False
            self.handle(message)
        return True
