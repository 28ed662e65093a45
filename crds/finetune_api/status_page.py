"""docs/status.md: phases, reasons and failure codes, with what to do."""

from __future__ import annotations

from finetune_api.failures import FAILURES, FailureCode, FailureKind
from finetune_api.reasons import WAITING

_HEAD = """# Reading a job's status

<!-- Generated from finetune_api.failures and finetune_api.reasons by `make crds`. Do not edit. -->

```
kubectl get ftj                    phase, progress, loss, time left
ftj describe NAME                  state, plan, attempts, usage and events on one or two screens
kubectl describe ftj NAME          the same as fields
ftj watch NAME                     progress bars, and every reason as it appears
ftj logs NAME [-f] [--rank N]      the logs of the pods, merged by time
```

| phase | meaning |
|---|---|
| Pending | not started: something is missing, see the message |
| Preparing | data and model are being checked |
| AwaitingApproval | the plan is in `status.plan` and waits for an approval ([budgets.md](budgets.md)) |
| Queued | the training pods wait for nodes |
| Training, Publishing | the stage runs |
| Suspended | `spec.suspend` is true, or the budget is used up, and no pod runs |
| Completed, Failed | the job has ended; `Completed` with reason `Planned`: `mode: Plan` ends with the plan |

`kubectl get ftj -o wide` adds model, method, step, the planned cost, what was spent, and the reason. `status.usage` holds what the
training has used ([budgets.md](budgets.md#usage)); `status.state` is for the operator alone.

`status.message` describes the state of the job in one sentence, with what to do. `status.failure` describes why a job failed:
code, stage, rank, node, exit code, message, remedy, and after a hang `stacks`, the folder with the stack dumps of all ranks.
`status.progress.straggler` names a rank that slows the others down. Secrets that a pod writes into its log are removed from messages.

## Waiting

None of these fails a job: it continues by itself when the cause is gone, and running pods are kept. The condition `Stalled` is True
while somebody has to act. It is not for `Unschedulable` and `QuotaExceeded`, since waiting for capacity is normal, nor for
`AwaitingApproval` and `HeldElsewhere`.

| reason | cause | what to do |
|---|---|---|
"""

_FAILED = """
`status` is empty, and `ftj` reports that no operator has reconciled the job: check that the operator runs, that it serves this
namespace (`watchNamespaces`), and that `spec.managedBy` is correct.

## Failures

| code | meaning | what to do | then |
|---|---|---|---|
"""

_THEN: dict[FailureKind, str] = {
    "fatal": "not retried",
    "infra": "retried, counts against `spec.retry.infra`",
    "evicted": "resumes, does not count",
}

_THEN_OF_CODE = {FailureCode.OUT_OF_MEMORY: "retried with less memory, up to `spec.retry.oom` times"}

_TAIL = """
The codes of [data checks](checks.md) are failures too; they are not retried. A code that is in neither table is shown as `Unknown`,
with the code in the message.

For memory, [strategies-and-memory.md](strategies-and-memory.md#when-memory-runs-out) lists everything that helps.

Pods that the kubelet evicts for their own use of memory or disk count against `spec.retry.infra`, since they would be evicted
again; evictions for other reasons do not.

## Conditions

`Ready`, `Reconciling` and `Stalled` are for tools ([gitops.md](gitops.md)). `Complete`, `Failed` and `Suspended` are for
`kubectl wait`. `DataValid`, `PlanAccepted`, `QuotaReserved`, `Running`, `Evaluated` and `Published` show how far a job is;
`PlanAccepted` is False with reason `AwaitingApproval` or `OverBudget`, `QuotaReserved` while a queue holds the training Job.
`ProgressUnknown` means that the operator cannot read the progress of a
training; the training continues.

## In a script

```
ftj run job.yaml -o json > job.json
```

Exit code 0: completed; 3: the job failed or the file is wrong; 5: stopped with a checkpoint, since the budget is used up; 1: the
cluster refused or cannot be reached; 130: interrupted. Standard output holds the FineTuneJob as one object, standard error
the messages.
"""


def text() -> str:
    """The whole page."""
    parts = [_HEAD]
    parts += [f"| {reason} | {waiting.cause} | {waiting.remedy} |\n" for reason, waiting in WAITING.items()]
    parts.append(_FAILED)
    parts += [
        f"| {code} | {failure.meaning} | {failure.advice() or 'nothing'} | {_THEN_OF_CODE.get(code, _THEN[failure.kind])} |\n"
        for code, failure in FAILURES.items()
    ]
    parts.append(_TAIL)
    return "".join(parts)
