"""What callers of runs may be told."""

from __future__ import annotations

from models.errors import IgenError


class ConflictError(IgenError):
    """The thing asked for does not fit the state that the run or frame is in."""

    status = 409
    code = "conflict"
    report = False
    default_message = "This does not fit the present state."


class RunActiveError(ConflictError):
    """A frame has one run at a time."""

    code = "run_active"
    default_message = "A run of this frame is under way. Wait for its end or cancel it."


class RunFinishedError(ConflictError):
    """There is nothing left to cancel."""

    code = "run_finished"
    default_message = "The run has ended already."


class NothingToRetryError(ConflictError):
    """No product of the run failed or was left out."""

    code = "nothing_to_retry"
    default_message = "The run has no failed products."


class RunSupersededError(ConflictError):
    """Only a frame's latest run may be tried again: an older one would publish an older feed over a newer."""

    code = "run_superseded"
    default_message = "A later run of this frame exists; start a new run instead."


class NoFeedError(IgenError):
    """The frame has neither a feed's address nor an uploaded feed."""

    status = 422
    code = "no_feed"
    report = False
    default_message = "The frame has no feed. Give it a feed URL or upload a feed first."


class RunFailedError(Exception):
    """A whole run cannot go on; `code` and `message` are public and go into its row."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        self.message = message
        super().__init__(f"{code}: {message}")


class LeaseLostError(Exception):
    """Another process took the work over, or the run has ended: this writer has nothing more to say about it."""
