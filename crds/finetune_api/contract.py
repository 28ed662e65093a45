"""What the operator and the trainer hand each other: run config in; exit code, messages, files and endpoints out.

Files of a run, below the workspace location (`Layout`):

    <uid>/<run>/fence.json              the attempt that may seal checkpoints, and which older ones count
    <uid>/<run>/data-report.{json,html} what was found in the data, also when it was refused
    <uid>/<run>/prepared/manifest.json  shards and step plan; written last, so without it there is nothing
    <uid>/<run>/checkpoints/step-N/     sealed by its manifest.json
    <uid>/<run>/attempt-N/              history.jsonl, logs of the ranks
    <uid>/<run>/trained/manifest.json   best weights, evaluation and samples; written last
"""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from finetune_api.base import ApiModel
from finetune_api.data import DataSpec
from finetune_api.errors import with_spec_paths
from finetune_api.findings import DataReport
from finetune_api.location import CLAIMS_ROOT, Place
from finetune_api.planner.facts import ModelShape, PlanFacts
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import ArtifactsStatus, CheckpointStatus, DataStatus, EvaluationStatus, PlanStatus, Stage

RUN_CONFIG_KEY = "run.json"
RUN_CONFIG_DIR = "/etc/finetune"
RUN_CONFIG_PATH = f"{RUN_CONFIG_DIR}/{RUN_CONFIG_KEY}"
TERMINATION_LOG = "/dev/termination-log"
TERMINATION_BYTES = 4096

PROGRESS_PORT = 8471
PROGRESS_PATH = "/progress"
METRICS_PATH = "/metrics"
PROGRESS_MAX_BYTES = 64 * 1024

DATA_REPORT = "data-report.json"
DATA_PAGE = "data-report.html"
"""In the run's folder, and sealed beside the shards: finetune_api.findings.DataReport, and the same for people."""

RENDEZVOUS_PORT = 29500
CONTAINER = "trainer"
"""Name of the one container in every stage's pod."""

ENV_NODE_RANK = "JOB_COMPLETION_INDEX"  # set by Kubernetes in an Indexed Job
ENV_MASTER_ADDR = "FINETUNE_MASTER_ADDR"  # pod 0's name in the gang's headless Service
ENV_NODE_NAME = "FINETUNE_NODE_NAME"
ENV_POD_NAME = "FINETUNE_POD_NAME"
ENV_TERMINATION_LOG = "FINETUNE_TERMINATION_LOG"  # local runs put it elsewhere
ENV_MASTER_PORT = "FINETUNE_MASTER_PORT"  # instead of RENDEZVOUS_PORT, for gangs side by side on one machine
ENV_PROGRESS_PORT = "FINETUNE_PROGRESS_PORT"  # instead of PROGRESS_PORT, likewise
ENV_SCRATCH = "FINETUNE_SCRATCH"  # a writable folder for HOME, caches and rank files; an emptyDir at SCRATCH in pods
SCRATCH = "/scratch"

SECRET_PREFIX = "FTSECRET_"
CA_BUNDLES = "/etc/finetune/ca"
"""Where the key of a location's caBundleRef lies in the pod that downloads: CA_BUNDLES/NAME/KEY."""

LABEL_JOB = "finetune.dev/job"
LABEL_UID = "finetune.dev/job-uid"
LABEL_RUN = "finetune.dev/run"
LABEL_STAGE = "finetune.dev/stage"
LABEL_ATTEMPT = "finetune.dev/attempt"
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
MANAGED_BY = "finetune-operator"


def secret_prefix(secret: str) -> str:
    """What stands before the keys of a location's Secret among the environment variables of prepare, so that two Secrets with
    the same keys do not meet. In local runs the keys stand alone."""
    return f"{SECRET_PREFIX}{hashlib.sha256(secret.encode()).hexdigest()[:8].upper()}_"


class ExitCode(enum.IntEnum):
    """Why a rank stopped. Anything else is unknown. Launchers mask their children's codes, so `TerminationMessage` has the last word."""

    DONE = 0
    BAD_INPUT = 3  # configuration, data, model or credential: never retried
    OUT_OF_MEMORY = 4
    STOPPED = 5  # with a complete checkpoint: preempted or suspended
    DIVERGED = 6
    PEER_LOST = 7  # or a hang


class JobRef(ApiModel):
    """Which run of which job."""

    name: str
    namespace: str
    uid: str
    run: str = Field(description="Five characters: a hash of uid, runToken and how often that came back.")


class RunConfig(ApiModel):
    """Everything that a stage is told, as JSON. Holds no secret: credentials come as environment variables."""

    contract: Literal[1] = 1
    job: JobRef
    stage: Stage
    attempt: int = Field(ge=1, description="Number of this Job among those of its stage in this run.")
    spec: FineTuneJobSpec = Field(description="Resolved: see finetune_api.effective.")
    claims_root: str = Field(default=CLAIMS_ROOT, description="pvc://NAME/PATH is claims_root/NAME/PATH.")
    plan: PlanStatus | None = Field(
        default=None, description="As it was accepted, with each choice and its reason: for train and publish."
    )

    @property
    def layout(self) -> Layout:
        return Layout(self.path(self.spec.workspace) / self.job.uid / self.job.run)

    @property
    def attempt_uri(self) -> str:
        """The attempt's folder on the workspace, as people name it."""
        return f"{self.spec.workspace.uri.rstrip('/')}/{self.job.uid}/{self.job.run}/attempt-{self.attempt}"

    def path(self, location: Place) -> Path:
        """Where a pvc or file location lies on this machine."""
        return location.parsed.on_disk(self.claims_root)

    def encode(self) -> str:
        """Without what is as by default, so that a trainer image of an earlier version can read it."""
        wire = self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
        return json.dumps(wire | {"contract": self.contract}, sort_keys=True, separators=(",", ":"))

    @classmethod
    def read(cls, path: str | Path) -> RunConfig:
        return cls.model_validate_json(Path(path).read_bytes())


class Layout:
    """Paths below a run's folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.prepared = root / "prepared"
        self.checkpoints = root / "checkpoints"
        self.trained = root / "trained"
        self.fence = root / "fence.json"

    def attempt(self, number: int) -> Path:
        return self.root / f"attempt-{number}"


class Cause(ApiModel):
    """Why a stage ended other than well: what is wrong and where, and what to do."""

    code: str = Field(
        description="CamelCase and stable: InvalidData, InvalidModel, InvalidSpec, MissingCredential, OutOfMemory, Diverged, PeerLost, StorageFull, Unknown ..."
    )
    message: str = Field(description="One sentence that names the field, or the file and line.")
    remedy: str | None = None

    @field_validator("message", "remedy")
    @classmethod
    def _as_in_a_manifest(cls, text: str | None) -> str | None:
        return text and with_spec_paths(text)


class SurveyRequest(ApiModel):
    """What `python -m finetune_trainer survey` reads from standard input: look at data and model without a job.

    The answer is a SurveyAnswer on standard output; progress comes as lines of Progress on standard error.
    """

    spec: FineTuneJobSpec | None = Field(default=None, description="Absent: only `data` is read.")
    data: DataSpec | None = Field(default=None, description="Used where there is no spec.")
    claims_root: str | None = Field(default=None, description="Absent: claims cannot be reached here.")
    cache: str = Field(description="Folder for what is downloaded.")
    write_fixed: bool = Field(default=False, description="Write fixed copies next to local originals.")
    rows: bool = Field(default=True, description="False: only the model is read.")


class SurveyAnswer(ApiModel):
    """`report` None: the data could not be reached. `problem` says in one sentence what could not be looked at, and why."""

    report: DataReport | None = None
    facts: PlanFacts | None = None
    model: ModelShape | None = Field(default=None, description="Of the model alone, where no rows were asked for.")
    task: str | None = Field(default=None, description="What it will be tuned for.")
    decided: dict[str, Any] = Field(default_factory=dict)
    plan: PlanStatus | None = Field(default=None, description="Steps, epochs and tokens, as prepare would say.")
    problem: Cause | None = None


class Progress(ApiModel):
    """What rank 0 serves at PROGRESS_PATH. The operator treats it as untrusted: bounded in size, validated, clamped."""

    model_config = ApiModel.model_config | {"extra": "ignore"}

    contract: Literal[1] = 1
    stage: Literal["prepare", "train", "evaluate", "publish"]
    attempt: int = Field(default=1, ge=1)
    step: int = Field(
        default=0, ge=0, description="Optimizer steps done; rows read (prepare), rows measured (evaluate)."
    )
    total_steps: int = Field(default=0, ge=0, description="0 means not known yet.")
    percent: float = Field(default=0, ge=0, le=100, description="Of this stage as a whole.")
    epoch: float | None = None
    loss: float | None = None
    eval_loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    tokens_per_second: float | None = None
    eta_seconds: float | None = None
    world_size: int = 1
    resumed_from_step: int | None = None
    last_checkpoint: CheckpointStatus | None = None
    step_seconds: float | None = Field(
        default=None, ge=0, description="Duration of a step, over the last log interval."
    )
    checkpoint_seconds: float | None = Field(default=None, ge=0, description="As in TerminationMessage.")
    slowest_rank: int | None = Field(
        default=None, ge=0, description="The rank whose forward passes took longest over the last 20 steps or more."
    )
    step_time_skew: float | None = Field(
        default=None, ge=1, description="Its time over the median rank's (of two ranks: over the other's)."
    )
    updated: float = Field(default=0, description="Unix time in seconds at which the trainer wrote this.")


class TerminationMessage(ApiModel):
    """The last word of a rank, in its pod's termination message. `encode` keeps it within TERMINATION_BYTES."""

    model_config = ApiModel.model_config | {"extra": "ignore"}

    contract: Literal[1] = 1
    stage: Stage
    outcome: Literal["succeeded", "stopped", "failed"]
    exit_code: int
    rank: int = 0
    time: float = Field(
        default=0, description="Unix time in seconds: the earliest failing rank is the one that counts."
    )
    cause: Cause | None = None
    step: int | None = Field(
        default=None, description="The last step that was done. Steps lost: this minus last_checkpoint.step."
    )
    resumed_from_step: int | None = None
    last_checkpoint: CheckpointStatus | None = None
    step_seconds: float | None = Field(default=None, description="Duration of a step, over the last log interval.")
    checkpoint_seconds: float | None = Field(
        default=None,
        description="From taking the last checkpoint to its seal. A stop needs the rest of a step and this, twice if one is being written.",
    )
    stacks: str | None = Field(
        default=None, description="Folder on the workspace with the stack dumps of a hang or a lost peer, as a URI."
    )
    metrics: dict[str, float] = Field(default_factory=dict, description="Final loss, eval_loss, tokens_per_second ...")
    data: DataStatus | None = None
    plan: PlanStatus | None = None
    facts: PlanFacts | None = None
    decided: dict[str, Any] | None = Field(
        default=None, description="From prepare: absent fields of the spec that the data decided, as a part of a spec."
    )
    evaluation: EvaluationStatus | None = None
    artifacts: ArtifactsStatus | None = None

    def encode(self) -> bytes:
        """JSON of at most TERMINATION_BYTES: details are left out and texts shortened, never the verdict."""
        for message in self._shorter_and_shorter():
            data = json.dumps(message.wire(), separators=(",", ":")).encode()
            if len(data) <= TERMINATION_BYTES:
                break
        return data

    def _shorter_and_shorter(self) -> Iterator[TerminationMessage]:
        """What people miss least goes first: all of it stands in files too."""
        message = self
        yield message
        for findings, where, sources in ((12, 200, 4), (12, 0, 1), (4, 0, 0), (0, 0, 0)):
            if message.data is not None:
                message = message.model_copy(update={"data": _trimmed(message.data, findings, where, sources)})
                yield message
        for limit in (3000, 1500, 700, 200):
            if message.cause is not None:
                message = message.model_copy(update={"cause": _shortened(message.cause, limit)})
                yield message
        yield message.model_copy(update={"metrics": {}, "evaluation": None, "data": None, "plan": None})

    @classmethod
    def decode(cls, text: str) -> TerminationMessage | None:
        """None when the text is not a termination message of ours (a crash's traceback, an empty string)."""
        try:
            return cls.model_validate_json(text)
        except ValueError:
            return None


def _trimmed(data: DataStatus, findings: int, where: int, sources: int) -> DataStatus:
    kept = [
        finding.model_copy(update={"where": finding.where if where and len(finding.where or "") <= where else None})
        for finding in (data.findings or [])[:findings]
    ]
    return data.model_copy(update={"findings": kept or None, "sources": (data.sources or [])[:sources] or None})


def _shortened(cause: Cause, limit: int) -> Cause:
    remedy = cause.remedy and _shorten(cause.remedy, limit // 2)
    return cause.model_copy(update={"message": _shorten(cause.message, limit), "remedy": remedy})


def _shorten(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
