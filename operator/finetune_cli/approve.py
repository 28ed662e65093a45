"""`ftj approve`: show a plan and approve it."""

from __future__ import annotations

import json
import sys

import typer
from finetune_api.finetunejob import FineTuneJob
from rich.console import Console

from finetune_cli import view
from finetune_cli.cluster import Cluster, Target, without_managed_fields
from finetune_cli.errors import CliError
from finetune_cli.planned import show_plan


def approve(name: str, plan: str | None, target: Target, *, yes: bool, output: str | None) -> None:
    """Write the digest of the plan in status into spec.budget.approvedPlan. Raises CliError when the job does not wait
    for it, or when it is not the plan that `plan` names."""
    cluster = Cluster(target)
    namespace = cluster.namespace
    job = view.parse(cluster.job(namespace, name))
    watch = f"ftj watch {name}{cluster.flags(namespace)}"
    digest = _waiting_for(job, plan, watch)
    console = Console(stderr=output is not None, highlight=False, markup=False, soft_wrap=True)
    assert job.status.plan
    console.print(view.headline(job))
    show_plan(console, job.status.plan)
    _confirm(job, digest, yes=yes or plan is not None)
    after = cluster.approve_plan(namespace, name, digest)
    console.print(f"Plan {digest} of {name} is approved. Follow the job: {watch}")
    if output == "json":
        print(json.dumps(without_managed_fields(after)))


def _waiting_for(job: FineTuneJob, plan: str | None, watch: str) -> str:
    name, status = job.metadata.name, job.status
    if not view.observed(job):
        raise CliError(
            f"the operator has not reconciled the last change of {name} yet; try again, or follow it: {watch}"
        )
    digest = view.awaits(job)
    if digest is None:
        ended = view.end(job)
        state = ended.sentence if ended else f"it is {status.phase or 'new'}; follow it: {watch}"
        raise CliError(f"{name} does not wait for an approval: {state}")
    if plan is not None and plan != digest:
        raise CliError(f"the plan of {name} is {digest} now, not {plan}: check it, then approve that one")
    return digest


def _confirm(job: FineTuneJob, digest: str, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise CliError(f"standard input is not a terminal: give --plan {digest}, or --yes for any plan")
    if not typer.confirm(f"Approve this plan of {job.metadata.name}?", err=True):
        raise CliError(f"nothing was approved; {job.metadata.name} still waits")
