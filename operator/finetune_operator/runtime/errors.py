"""What can go wrong between us and the API server, and what each means for the job in work."""

from __future__ import annotations


class ApiError(Exception):
    """The API server answered with an error. `code` is the HTTP status, `reason` its word for it (AlreadyExists ...)."""

    def __init__(self, code: int, reason: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"{code} {reason}: {message}")
        self.code, self.reason, self.message, self.retry_after = code, reason, message, retry_after

    @property
    def passing(self) -> bool:
        """It may be gone the next time; the same request may be sent again."""
        return self.code == 429 or self.code >= 500


class Unreachable(Exception):
    """No answer: what was asked may have happened or not."""


class Conflict(Exception):
    """The object has changed since we looked. Look again."""


class Deferred(Exception):
    """The status would change in wording only, and all jobs together have written enough for now."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"reconcile again in {seconds:.1f} s")
        self.seconds = seconds
