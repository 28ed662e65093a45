"""Why a stage stops before its end. Each carries the exit code and the cause that the operator shows."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from finetune_api.contract import Cause, ExitCode


class StageError(Exception):
    """Ends the stage with `exit_code` and `cause` in the termination message."""

    exit_code: int = 1

    def __init__(self, message: str, *, code: str = "Unknown", remedy: str | None = None) -> None:
        self.cause = Cause(code=code, message=message, remedy=remedy)
        super().__init__(self.cause.message)


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


FULL = (errno.ENOSPC, errno.EDQUOT)
_USERS_TO_FIX = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


@contextlib.contextmanager
def accessing(field: str, uri: str) -> Iterator[None]:
    """Around reads and writes of a user's location: what only the user can fix becomes BadInput (NotFound, StorageFull).

    Other OSErrors, such as those of a network volume, are raised as they are and retried.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise BadInput(
                f"{field}: {uri} is full",
                code="StorageFull",
                remedy="name a larger volume, or delete what is no longer needed on it",
            ) from error
        if error.errno not in _USERS_TO_FIX:
            raise
        raise BadInput(
            f"{field}: {uri} cannot be read and written by user {os.geteuid()}: {error.strerror}",
            code="NotFound",
            remedy="give that user or its group read and write permission on the folder and those above it, or set spec.pods.common.securityContext.fsGroup",
        ) from error
