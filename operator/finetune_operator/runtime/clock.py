"""The API server's clock. Times in objects are compared with it alone: the wall clock of our own node may be set at any time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

logger = logging.getLogger(__name__)

_RESOLUTION_S = 1.0
"""Of a Date header, which is rounded down."""
_TOLERANCE_S = 2.0
_SET_AFTER_S = 60.0
_SET_AFTER_ANSWERS = 3


@dataclass(slots=True)
class _Disagreement:
    offset: float
    since: float
    answers: int = 0


class ServerClock:
    """Seconds since 1970: the Date header of the first answer plus the monotonic clock.

    It is set again only when every answer of more than a minute shows the same other time: several API servers may disagree, and
    an answer may be read late. Until there was an answer it is the wall clock. For one event loop; not for threads.
    """

    def __init__(
        self, monotonic: Callable[[], float] = time.monotonic, wall: Callable[[], float] | None = None
    ) -> None:
        self._monotonic, self._wall = monotonic, wall or time.time
        self._offset: float | None = None
        self._disagreement: _Disagreement | None = None
        self._header, self._date = "", 0.0

    def now(self) -> float:
        if self._offset is None:
            return self._wall()
        return self._offset + self._monotonic()

    def observe(self, header: str | None) -> None:
        """Take in the Date header of an answer, at the moment it arrives."""
        date = self._parse(header)
        if date is None:
            return
        at = self._monotonic()
        offset = date - at
        if self._offset is None:
            self._offset = offset
        ahead = offset - self._offset
        if -_RESOLUTION_S - _TOLERANCE_S <= ahead <= _TOLERANCE_S:
            # A header is never ahead of its time: the latest one is the most exact.
            self._offset = max(self._offset, offset)
            self._disagreement = None
            return
        known = self._disagreement
        if known is None or abs(offset - known.offset) > _TOLERANCE_S:
            known = self._disagreement = _Disagreement(offset, at)
        known.answers += 1
        if known.answers >= _SET_AFTER_ANSWERS and at - known.since > _SET_AFTER_S:
            logger.warning("the API server's clock was set", extra={"seconds": round(ahead, 1)})
            self._offset, self._disagreement = offset, None

    def _parse(self, header: str | None) -> float | None:
        if not header:
            return None
        if header != self._header:  # many answers arrive in one second
            try:
                self._date = parsedate_to_datetime(header).timestamp()
            except ValueError:
                return None
            self._header = header
        return self._date
