"""Errors that a person reads: one clear sentence with what to do, and an exit code that says whose turn it is."""

from __future__ import annotations


class ClusterError(Exception):
    """Something failed while it ran; the message names the log to read."""

    exit_code = 3


class NotReadyToStart(ClusterError):
    """This machine or this command line lacks something, and nothing has been started or changed."""

    exit_code = 2

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
