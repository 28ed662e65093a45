"""Looks at data and model without a job: what prepare would find, decide and plan, by the same code.

`python -m finetune_trainer survey` reads a SurveyRequest from standard input and writes a SurveyAnswer to standard output;
lines of Progress go to standard error. Nothing is left behind but downloads in the cache, and mended files if asked for.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
from typing import TextIO

from finetune_api.contract import Progress, SurveyAnswer, SurveyRequest
from pydantic import ValidationError

TELL_EVERY_SECONDS = 0.2


def main() -> int:
    """0 whenever there is an answer, which says itself what is wrong with the data; 2 for a request that is none."""
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]  # transformers would import it, which takes seconds
    logging.disable(logging.INFO)
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as behind nohup
            signal.signal(number, _end)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries that print must not write into the answer
    try:
        request = SurveyRequest.model_validate_json(sys.stdin.buffer.read())
    except ValidationError as error:
        print(f"not a SurveyRequest: {error.errors()[0]['msg']}", file=sys.stderr)
        return 2
    from finetune_trainer.survey.look import look

    with contextlib.closing(out):
        answer: SurveyAnswer = look(request, Teller(sys.stderr))
        out.write(answer.model_dump_json(by_alias=True, exclude_none=True))
    return 0


def _end(number: int, _: object) -> None:
    """By way of what cleans up, which a second signal does not disturb."""
    for other in (signal.SIGINT, signal.SIGTERM):
        signal.signal(other, signal.SIG_IGN)
    sys.exit(128 + number)


class Teller:
    """Writes how far it is, now and then."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._told = 0.0

    def __call__(self, rows: int, percent: float) -> None:
        now = time.monotonic()
        if now - self._told < TELL_EVERY_SECONDS:
            return
        self._told = now
        progress = Progress(stage="prepare", step=rows, percent=round(percent, 1))
        self._out.write(progress.model_dump_json(by_alias=True, exclude_none=True) + "\n")
        self._out.flush()
