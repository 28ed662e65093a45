"""What a local run remembers: its status beside its checkpoints, so that the same command goes on where it stopped.

A run is known by the manifest's path, the job's name and the parts of its spec that a checkpoint depends on. Changing the
rest (compute, checkpoint, pods) goes on with the same run, as it does on a cluster.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from finetune_api.contract import JobRef, Layout
from finetune_api.finetunejob import FineTuneJob
from finetune_api.planner.ladder import Notch
from finetune_api.status import FineTuneJobStatus
from pydantic import ValidationError

from finetune_cli.errors import CliError
from finetune_cli.manifest import Manifest

NAMESPACE = "local"
_FIXED = ("model", "method", "data", "training", "evaluation", "workspace", "output")


@dataclass(frozen=True)
class Run:
    """One local run: who it is and where it lies."""

    ref: JobRef
    layout: Layout

    @property
    def status_file(self) -> Path:
        return self.layout.root / "status.json"

    def load(self) -> FineTuneJobStatus:
        """The status as it was saved last; an empty one for a new run."""
        try:
            return FineTuneJobStatus.model_validate_json(self.status_file.read_bytes())
        except FileNotFoundError:
            return FineTuneJobStatus()
        except (OSError, ValidationError):
            raise CliError(
                f"{self.status_file} cannot be read, so nobody knows how far this run is; --fresh starts anew"
            ) from None

    def save(self, status: FineTuneJobStatus) -> None:
        """Whole or not at all."""
        temporary = self.status_file.with_suffix(".tmp")
        temporary.write_text(json.dumps(status.wire(), indent=1))
        temporary.replace(self.status_file)

    @property
    def approved(self) -> str | None:
        """Digest of the plan that was approved with --approve."""
        try:
            return self._approved_file.read_text()
        except FileNotFoundError:
            return None

    def approve(self, digest: str) -> None:
        """So that the same command may go on without asking again."""
        self._approved_file.write_text(digest)

    @property
    def _approved_file(self) -> Path:
        return self.layout.root / "approved-plan"

    @property
    def notches(self) -> list[Notch]:
        """Notches down the memory ladder that this run has taken."""
        try:
            return [Notch.model_validate(notch) for notch in json.loads(self._notches_file.read_bytes())]
        except FileNotFoundError:
            return []

    def add_notch(self, notch: Notch) -> None:
        self._notches_file.write_text(json.dumps([one.wire() for one in (*self.notches, notch)], indent=1))

    @property
    def _notches_file(self) -> Path:
        return self.layout.root / "notches.json"

    def forget(self) -> None:
        """Delete everything that the run has written to the workspace."""
        shutil.rmtree(self.layout.root, ignore_errors=True)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Refuses a second `ftj run --local` of the same run. The lock goes with the process."""
        path = self.layout.root.with_name(f".{self.layout.root.name}.lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise CliError(f"this run is already under way in process {file.read().strip() or '?'}") from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield


def run_of(given: Manifest, job: FineTuneJob, workspace: Path) -> Run:
    """The run that this manifest means."""
    spec = job.spec.wire()
    origin = str(Path(given.source).absolute())
    fixed = json.dumps({name: spec.get(name) for name in _FIXED}, sort_keys=True)
    uid = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{origin}\n{job.metadata.name}\n{fixed}"))
    run = hashlib.sha256(f"{uid}\n{job.spec.run_token or ''}".encode()).hexdigest()[:5]
    return Run(
        ref=JobRef(name=job.metadata.name, namespace=NAMESPACE, uid=uid, run=run),
        layout=Layout(workspace / uid / run),
    )
