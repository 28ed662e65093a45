"""What ends a command, and with which exit code."""

from __future__ import annotations

import enum


class Exit(enum.IntEnum):
    """Exit codes of `ftj`. 2 is the command line's own (an unknown option)."""

    DONE = 0
    UNREACHABLE = 1  # the cluster refused or did not answer; nothing is known to be wrong with the job
    FAILED = 3  # the job failed, or its manifest is wrong
    BUDGET = 5  # stopped with a checkpoint because the budget is spent
    INTERRUPTED = 130


class CliError(Exception):
    """Ends the command. `lines` are sentences for people, the last one the most important."""

    def __init__(self, *lines: str, exit_code: Exit = Exit.FAILED) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines
        self.exit_code = exit_code
