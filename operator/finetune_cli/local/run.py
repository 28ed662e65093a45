"""`ftj run --local FILE`: check, run stage after stage, show, end with the same words and codes as on a cluster."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import NoReturn

from finetune_api.contract import ExitCode, RunConfig, TerminationMessage
from finetune_api.effective import resolve, shown
from finetune_api.finetunejob import FineTuneJob
from finetune_api.operator_state import OperatorState
from finetune_api.planner import ladder
from finetune_api.planner.facts import PlanFacts
from finetune_api.pods import Pods
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Stage
from rich.console import Console

from finetune_cli import manifest, result, view
from finetune_cli.display import Display, display
from finetune_cli.errors import CliError, Exit
from finetune_cli.local import gate
from finetune_cli.local import status as book
from finetune_cli.local.processes import StageProcesses
from finetune_cli.local.state import NAMESPACE, Run, run_of
from finetune_cli.planned import show_plan
from finetune_cli.reach import Reach

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class LocalOptions:
    """`claims`: the folder that stands for the cluster's claims. `approve`: the plan is good, whatever it is."""

    claims: Path | None = None
    fresh: bool = False
    approve: bool = False


class _Interrupts:
    """Counts Ctrl-C and SIGTERM instead of raising: the first asks the stage to stop, the second kills it."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, number: int, _: FrameType | None) -> None:
        self.count += 1


def run_local(file: str, options: LocalOptions, output: str | None) -> NoReturn:
    """Run the job in FILE on this machine. Exits."""
    given = manifest.read(file)
    _require_trainer()
    claims_root = _claims_root(given, options)
    job = given.job.model_copy(update={"spec": resolve(given.job.spec)})
    job.metadata = job.metadata.model_copy(update={"namespace": NAMESPACE, "generation": 1})
    run = run_of(given, given.job, job.spec.workspace.parsed.on_disk(claims_root))
    job.metadata.uid = run.ref.uid
    console = Console(stderr=output is not None, highlight=False, markup=False, soft_wrap=True)
    try:
        with run.lock():
            if options.fresh:
                run.forget()
            run.layout.root.mkdir(parents=True, exist_ok=True)
            job.status = run.load()
            if _is_over(_observed(job)):
                console.print("This run had already completed; nothing was started. --fresh runs it anew.")
            else:
                _run(job, run, claims_root, console, _Given(given.job.spec, options.approve))
    except OSError as error:
        raise CliError(f"{error.filename or job.spec.workspace.uri}: {error.strerror}") from None
    _finish(job, console, output, claims_root)


@dataclass(frozen=True)
class _Given:
    """What the user said: the spec as written, and that its plan is good."""

    spec: FineTuneJobSpec
    approve: bool


def _is_over(job: FineTuneJob) -> bool:
    """A run that was only planned goes on when more is asked for."""
    return job.status.phase == "Completed" and not (view.planned(job) and job.spec.mode == "Run")


def _run(job: FineTuneJob, run: Run, claims_root: str, console: Console, given: _Given) -> None:
    """Stage after stage until one does not succeed. `job.status` and the file beside the checkpoints follow."""
    status = _observed(job).status
    status.run = run.ref.run
    status.gpus = job.spec.compute.nodes * (job.spec.compute.gpus_per_node or 0)
    _settle(job, run, given)
    screen = display(console)
    try:
        if status.attempts:
            screen.say(f"Going on with the run in {run.layout.root}")
            screen.show(job.model_copy(deep=True))
        with _interrupts() as interrupts:
            while (stage := book.next_stage(status)) and not interrupts.count:
                if stage == "train" and (held := _held(job, run, given)):
                    book.hold(status, held)
                    run.save(status)
                    break
                message = _stage(job, run, stage, claims_root, screen, interrupts)
                healed = (
                    stage == "train" and message.exit_code == ExitCode.OUT_OF_MEMORY and _take_notch(job, run, given)
                )
                if stage == "prepare" or healed:
                    _settle(job, run, given)
                run.save(status)
                if healed:
                    screen.say(f"The training ran out of memory. {healed}.", warning=True)
                    continue
                screen.show(job.model_copy(deep=True))
                if message.outcome != "succeeded":
                    break
    finally:
        screen.close()


def _take_notch(job: FineTuneJob, run: Run, given: _Given) -> str | None:
    """Choose what the next attempt changes to need less memory: its sentence, or None with the reason in status.failure."""
    status, state, notches = job.status, OperatorState.of(job.status), run.notches
    if state.facts is None or status.failure is None:
        return None
    if len(notches) >= job.spec.retry.oom:
        status.failure.message += f" (spec.retry.oom {job.spec.retry.oom} is used up)"
        return None
    spec, facts = resolve(given.spec, None, state.decided or {}), PlanFacts.model_validate(state.facts)
    step = ladder.next_gpu_notch(spec, facts, notches, given=given.spec)
    if isinstance(step, ladder.Bottom):
        status.failure.remedy = step.sentence
        return None
    run.add_notch(step)
    return step.sentence


def _settle(job: FineTuneJob, run: Run, given: _Given) -> None:
    """Resolve the spec over what prepare decided, lay the notches over it, and compute the plan, which an approval names, without them."""
    status, state = job.status, OperatorState.of(job.status)
    job.spec = ladder.apply(resolve(given.spec, None, state.decided), run.notches, given=given.spec)
    state.effective = shown(job.spec)
    status.state = state.encode()
    status.plan = gate.drawn(given.spec, status)


def _held(job: FineTuneJob, run: Run, given: _Given) -> gate.Held | None:
    digest = job.status.plan.digest if job.status.plan else None
    if given.approve and digest:
        run.approve(digest)
    return gate.held(job.spec, job.status, approved=run.approved)


def _stage(
    job: FineTuneJob, run: Run, stage: Stage, claims_root: str, screen: Display, interrupts: _Interrupts
) -> TerminationMessage:
    """One attempt at one stage, from its start to its last word."""
    status = job.status
    attempt = book.begin(status, stage)
    run.save(status)
    config = RunConfig(
        job=run.ref, stage=stage, attempt=attempt.number, spec=job.spec, claims_root=claims_root, plan=status.plan
    )
    settings = (job.spec.pods or Pods()).of(stage)
    told, meter = 0, gate.Meter(job.spec.budget, status, counts=stage == "train")
    with StageProcesses(config, settings, run.layout.root / "logs") as processes:
        while processes.running():
            if interrupts.count > told:
                told = interrupts.count
                if told > 1:
                    raise CliError(*_interrupted(job), exit_code=Exit.INTERRUPTED)
                screen.say("Stopping: the job saves a checkpoint. Ctrl-C again kills it.", warning=True)
                processes.stop()
            if progress := processes.progress():
                book.advance(status, attempt, progress)
            if limit := meter.newly_reached():
                screen.say(f"Stopping: {limit}; the job saves a checkpoint.", warning=True)
                processes.stop()
            screen.show(job.model_copy(deep=True))  # the display compares it with the one before
            time.sleep(POLL_SECONDS)
        message = processes.verdict()
        if message.outcome == "failed" and message.cause and not message.cause.remedy:
            message.cause.remedy = f"Its log is {processes.launchers[0].log_file}"
    book.conclude(status, attempt, message)
    if meter.limit and message.outcome == "stopped":
        book.hold(status, gate.exhausted(meter.limit))
    return message


def _finish(job: FineTuneJob, console: Console, output: str | None, claims_root: str) -> NoReturn:
    ended, held = view.end(job), view.awaits(job) is not None
    if held and job.status.plan:
        show_plan(console, job.status.plan)
        console.print(job.status.message, style="yellow")
    elif ended is None:
        for line in _interrupted(job):
            console.print(line)
    else:
        steps = []
        if job.status.artifacts and not job.status.artifacts.uri.startswith("file://"):
            steps.append(f"Folder     {job.spec.output.parsed.on_disk(claims_root)}")
        result.show(console, job, steps)
    if output == "json":
        print(json.dumps(job.wire()))
    sys.exit(ended.exit_code if ended else Exit.FAILED if held else Exit.INTERRUPTED)


def _interrupted(job: FineTuneJob) -> list[str]:
    kept = job.status.last_checkpoint
    where = f"its last checkpoint is of step {kept.step}" if kept else "it had no checkpoint yet"
    return [f"{job.metadata.name} was stopped; {where}. The same command goes on."]


def _observed(job: FineTuneJob) -> FineTuneJob:
    job.status.observed_generation = job.metadata.generation
    return job


@contextlib.contextmanager
def _interrupts() -> Iterator[_Interrupts]:
    handler = _Interrupts()
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield handler
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _require_trainer() -> None:
    missing = [module for module in ("finetune_trainer", "torch", "transformers") if find_spec(module) is None]
    if missing:
        raise CliError(
            f"--local needs the trainer, and this Python has no {missing[0]}: pip install 'finetune-operator[cli,trainer]'"
        )


def _claims_root(given: manifest.Manifest, options: LocalOptions) -> str:
    """The folder of claims, in which those that are written to are made. Raises CliError when another one has no folder."""
    reach = Reach(options.claims, download=True)
    for path, place in manifest.locations(given.job.spec):
        if options.claims is not None and path in (("workspace",), ("output",)) and place.parsed.claim:
            (options.claims / place.parsed.claim).mkdir(parents=True, exist_ok=True)
        if hindrance := reach.hindrance([(path, place)]):
            instead = ", or write file:///ABSOLUTE/PATH" if options.claims is None else ""
            raise CliError(f"{given.where('spec', *path, 'uri')}: {hindrance}{instead}")
    return reach.claims_root or "/nonexistent"
