"""The attempt under way: watch it, judge it when it ends, and go on to the next."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_api.contract import ExitCode
from finetune_api.status import AttemptStatus, Phase, Stage

from finetune_operator.domain.admission import plan_admission
from finetune_operator.domain.attempts import budget, end, start
from finetune_operator.domain.attempts.completion import complete
from finetune_operator.domain.attempts.history import latest, stage_to_do
from finetune_operator.domain.builders.job import outdated
from finetune_operator.domain.diagnosis.failures import judge, node_lost, vanished
from finetune_operator.domain.diagnosis.pending_pods import diagnose
from finetune_operator.domain.names import ANNOTATION_HELD
from finetune_operator.domain.observed import JobView, PodView
from finetune_operator.domain.plan_builder import JobState, Patch, PlanBuilder
from finetune_operator.domain.reasons import Reason
from finetune_operator.domain.times import stamp

RUNNING: dict[Stage, tuple[Phase, Reason]] = {
    "prepare": ("Preparing", Reason.PREPARING),
    "train": ("Training", Reason.TRAINING),
    "publish": ("Publishing", Reason.PUBLISHING),
}
_NODE_CHECK_S = 30.0
_DELETING_LOOK_AGAIN_S = 5.0


def follow(draft: PlanBuilder) -> None:
    """Go through the stages until it is settled where the job stands."""
    while draft.situation is None:
        stage = stage_to_do(draft.attempts)
        if stage is None:
            complete(draft)
            return
        entry = latest(draft.attempts, stage)
        if entry is None or entry.outcome != "Running":
            start.enter(draft, stage, entry)
        else:
            _under_way(draft, stage, entry)


def _under_way(draft: PlanBuilder, stage: Stage, entry: AttemptStatus) -> None:
    job = draft.seen.jobs.get(entry.job)
    if job is None:
        _without_job(draft, stage, entry)
        return
    pods = draft.seen.pods.get(job.name, ())
    if entry.started is None:
        began = [t for pod in pods if (t := pod.running_since or (pod.ended and pod.ended.started))]
        entry.started = stamp(min(began)) if began else None
    waits = stage == "train" and (entry.started is None or (job.suspended and not _any_live(pods)))
    if waits and (not outdated(job.digest, draft.wanted, stage) or (job.suspended and _ours(job))):
        plan_admission.make_plan(draft)  # other settings count only where the Job is made anew before it is released
    end.read_stops(draft, entry, (*pods, *draft.seen.departed.get(job.name, ())))
    if job.complete is not None:
        end.succeed(draft, stage, entry, job, pods)
    elif job.failed is not None or (job.failing is not None and node_lost(pods, draft.now)):
        if end.all_seen(draft, stage, job, pods):
            end.record(draft, entry, judge(job, pods, stage, draft.now), pods)
    elif job.failing is not None:
        draft.situation = _failing(stage, job)
        draft.requeue_after(_NODE_CHECK_S)
    elif job.deleting:
        draft.situation = JobState(
            start.PHASES[stage], Reason.RESUMING, f"Job {job.name} was deleted; waiting until it is gone"
        )
        draft.requeue_after(_DELETING_LOOK_AGAIN_S)
    elif draft.wanted.suspend:
        _suspend(draft, stage, entry, job, pods)
    elif waits and _held_back(draft, entry):
        pass
    elif stage == "train" and (sentence := budget.exhausted(draft)) is not None:
        _suspend(draft, stage, entry, job, pods, spent=sentence)
    elif job.suspended:
        _release(draft, stage, entry, job, pods)
    elif not job.managed_elsewhere and _stopped(job, pods):
        end.preempt(draft, entry, pods)
    else:
        _run(draft, stage, entry, job, pods)


def _ours(job: JobView) -> bool:
    """A suspended Job that this operator releases, or gives back to its queue: others are left as they are."""
    return job.held or job.managed_elsewhere


def _any_live(pods: Sequence[PodView]) -> bool:
    return any(not pod.over for pod in pods)


def _stopped(job: JobView, pods: Sequence[PodView]) -> bool:
    """Every pod has ended, with 5 or well. The Job controller would make them again, but only after 10 seconds, doubled for each
    pod that ended: ten minutes for a gang of seven. A new attempt begins at once. Those that a suspension stopped do not count:
    when it is lifted they are still there, before the new ones are seen."""
    pods = _released(job, pods)
    ends = [pod.ended.exit_code if pod.ended is not None else None for pod in pods]
    return all(pod.over for pod in pods) and ExitCode.STOPPED in ends and set(ends) <= {0, ExitCode.STOPPED}


def _released(job: JobView, pods: Sequence[PodView]) -> list[PodView]:
    """The pods that were made since the Job was let run: none where it was not."""
    return [pod for pod in pods if job.released is not None and pod.created >= job.released]


def _without_job(draft: PlanBuilder, stage: Stage, entry: AttemptStatus) -> None:
    if entry.started is not None:
        end.record(draft, entry, vanished(stage, f"Job {entry.job}"))
        return
    if stage == "train":
        plan_admission.make_plan(draft)
    if draft.wanted.suspend:
        start.suspended(draft, stage, f"Suspended before stage {stage}")
    elif stage == "train" and _held_back(draft, entry):
        pass
    elif stage == "train" and (sentence := budget.exhausted(draft)) is not None:
        start.spent(draft, sentence)
    else:
        start.create(draft, stage, entry)


def _held_back(draft: PlanBuilder, entry: AttemptStatus) -> bool:
    """As long as no pod of a training ran, its budget, mode and approval are asked again; its approval while it is suspended too.
    One that may not go on is given up, and whatever it queues with is deleted."""
    plan_admission.hold(draft)
    if draft.situation is None:
        return False
    end.stop(draft, entry, Reason.REPLACED, "Its plan was no longer accepted before its pods ran")
    return True


def _suspend(
    draft: PlanBuilder,
    stage: Stage,
    entry: AttemptStatus,
    job: JobView,
    pods: Sequence[PodView],
    *,
    spent: str | None = None,
) -> None:
    """`spent`: why the budget allows no more, where that and not the user is the cause. The pods are told to stop; they save a
    checkpoint and end with 5. A Job that somebody else queues is given back whole."""
    live = _any_live(pods)
    if job.managed_elsewhere:
        why = "its budget is spent" if spent else "the job is suspended"
        reason = Reason.BUDGET_EXHAUSTED if spent else Reason.SUSPENDED
        end.stop(draft, entry, reason, f"Given back to its queue, since {why}")
        return
    if not job.suspended:
        draft.patch.append(
            Patch(job.name, {"metadata": {"annotations": {ANNOTATION_HELD: "true"}}, "spec": {"suspend": True}})
        )
    if job.suspended and not live and spent:
        start.spent(draft, spent)
    elif job.suspended and not live:
        step = end.sealed_step(draft, stage)
        start.suspended(
            draft,
            stage,
            f"Suspended in stage {stage}" + (f" with a checkpoint of step {step}" if step is not None else ""),
        )
    else:
        phase, _ = RUNNING[stage]
        why = f"{spent}. " if spent else ""
        draft.situation = JobState(
            phase,
            Reason.SUSPENDING,
            f"{why}The pods of stage {stage} are stopping; a training saves a checkpoint first",
        )


def _release(draft: PlanBuilder, stage: Stage, entry: AttemptStatus, job: JobView, pods: Sequence[PodView]) -> None:
    """Let a suspended Job run, if it is ours to release: never fight a queue or a person over it."""
    phase = start.PHASES[stage]
    if _ours(job) and not _any_live(pods) and outdated(job.digest, draft.wanted, stage):
        end.stop(draft, entry, Reason.REPLACED, "Its settings changed before its pods ran")
        return
    # Ranks look for each other as soon as they run, so what they need is there before.
    complete = start.ensure(draft, stage, entry)
    if draft.situation is not None:
        return
    if job.managed_elsewhere or not job.held:
        who = "its queue" if job.managed_elsewhere else "whoever suspended it"
        draft.situation = JobState(
            phase, Reason.HELD_ELSEWHERE, f"Job {job.name} is suspended; it goes on when {who} releases it"
        )
        return
    if complete:
        draft.patch.append(
            Patch(job.name, {"metadata": {"annotations": {ANNOTATION_HELD: None}}, "spec": {"suspend": False}})
        )
    draft.situation = JobState(phase, Reason.STARTING, f"Waiting for the pods of stage {stage} to start")


def _run(draft: PlanBuilder, stage: Stage, entry: AttemptStatus, job: JobView, pods: Sequence[PodView]) -> None:
    live = [pod for pod in pods if not pod.over and pod.deletion_asked is None]
    # A container that ended well is done, though its pod's phase is written a moment later.
    done = {
        pod.index for pod in pods if pod.phase == "Succeeded" or (pod.ended is not None and pod.ended.exit_code == 0)
    }
    running = {pod.index for pod in live if pod.running} | done
    draft.poll = next((pod for pod in live if pod.index == 0 and pod.running), None)
    phase, reason = RUNNING[stage]
    if len(running) >= job.pods:
        draft.situation = JobState(phase, reason, _running_message(job, stage), running=True)
        if stage == "train":
            budget.look_when_spent(draft)
        return
    start.ensure(draft, stage, entry)
    if draft.situation is not None:
        return
    diagnosis = diagnose(draft.seen, job, live, len({pod.index for pod in live} | done) < job.pods, draft.now)
    draft.reads |= diagnosis.reads
    if diagnosis.requeue_after is not None:
        draft.requeue_after(diagnosis.requeue_after)
    problem = diagnosis.problem
    if problem is None:
        draft.situation = _too_few(draft, stage, entry, job, pods)
        return
    if entry.started is None and outdated(job.digest, draft.wanted, stage):
        end.stop(draft, entry, Reason.REPLACED, "Its settings changed before its pods ran")
        return
    draft.situation = JobState(start.PHASES[stage], problem.reason, problem.text, problem=True)


def _too_few(draft: PlanBuilder, stage: Stage, entry: AttemptStatus, job: JobView, pods: Sequence[PodView]) -> JobState:
    """Fewer pods run than should: one has failed, and its Job will at any moment; some were stopped; or they start."""
    ended = [pod for pod in pods if pod.phase == "Failed" or (pod.ended is not None and pod.ended.exit_code != 0)]
    if any(_fails(pod) for pod in _released(job, ended)):
        return _failing(stage, job)
    # A pod that was deleted is soon gone: what was said of it holds until all run again.
    said = entry.started is not None and draft.before.reason == Reason.RESUMING
    if ended or said or any(pod.deletion_asked is not None for pod in pods):
        # No step: those that still end save a later checkpoint than the last that was told of.
        checkpoint = " from its last checkpoint" if end.sealed_step(draft, stage) is not None else ""
        text = f"Pods of stage {stage} were stopped; it resumes{checkpoint}"
        return JobState(start.PHASES[stage], Reason.RESUMING, text)
    return JobState(start.PHASES[stage], Reason.STARTING, f"Waiting for the pods of stage {stage} to start")


def _fails(pod: PodView) -> bool:
    """Whether the end of a pod fails its Job, by the Job's podFailurePolicy and backoffLimit."""
    return pod.ended is None or pod.ended.exit_code != ExitCode.STOPPED


def _failing(stage: Stage, job: JobView) -> JobState:
    phase, _ = RUNNING[stage]
    others = "; its other pods are ending" if job.pods > 1 else ""
    return JobState(phase, Reason.RETRYING, f"Stage {stage} failed{others}")


def _running_message(job: JobView, stage: Stage) -> str:
    match stage:
        case "prepare":
            return "Reading and checking the data"
        case "train":
            return f"Training on {job.pods} node{'s' if job.pods > 1 else ''}"
        case "publish":
            return "Publishing the result"
