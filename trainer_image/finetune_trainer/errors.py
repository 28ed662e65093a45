"""Why a stage stops before its end. Each carries the exit code and the cause that the operator shows."""

from __future__ import annotations

from finetune_api.contract import Cause, ExitCode


class StageError(Exception):
    """Ends the stage with `exit_code` and `cause` in the termination message."""

    exit_code: int = 1

    def __init__(self, message: str, *, code: str = "Unknown", remedy: str | None = None) -> None:
        super().__init__(message)
        self.cause = Cause(code=code, message=message, remedy=remedy)


class BadInput(StageError):
    """The user's configuration, data, model or credential is at fault: never retried.

    The message names the field, or the file and line. Codes: InvalidSpec, InvalidData, InvalidModel, MissingCredential,
    NotFound, OutputTaken.
    """

    exit_code = ExitCode.BAD_INPUT


class OutOfMemory(StageError):
    """Device or host memory was not enough."""

    exit_code = ExitCode.OUT_OF_MEMORY


class Stopped(StageError):
    """Asked to stop, and a complete checkpoint was sealed (or there was nothing yet to save)."""

    exit_code = ExitCode.STOPPED


class Diverged(StageError):
    """Loss or gradients became non-finite."""

    exit_code = ExitCode.DIVERGED


class PeerLost(StageError):
    """Another rank is gone or does not answer."""

    exit_code = ExitCode.PEER_LOST


def first_line(error: BaseException) -> str:
    """What a library said, shortened to one line."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]
