"""The command line: names, options and help. What a command does is in the module of its name, imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from finetune_api.checks import Fix
    from finetune_api.data import DataFormat

    from finetune_cli.cluster import Target

app = typer.Typer(
    help="Fine-tune language models on your cluster, or on this machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Namespace = Annotated[str | None, typer.Option("-n", "--namespace", help="Namespace; default: the context's.")]
Context = Annotated[str | None, typer.Option("--context", help="Context of the kubeconfig; default: the current one.")]
Kubeconfig = Annotated[str | None, typer.Option("--kubeconfig", help="Path of the kubeconfig; default: as kubectl.")]
Output = Annotated[
    Literal["json"] | None,
    typer.Option(
        "-o", "--output", help="json: one object on standard output; what people read goes to standard error."
    ),
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the FineTuneJob.")]
Stage = Literal["prepare", "train", "publish"]
Claims = Annotated[Path | None, typer.Option("--claims", metavar="DIR", help="pvc://CLAIM/PATH is DIR/CLAIM/PATH.")]
Download = Annotated[bool, typer.Option("--download", help="Download from hubs, object stores and web servers.")]


@app.command(short_help="Submit a job and follow it to its end.")
def run(
    file: Annotated[str, typer.Argument(metavar="FILE", help="YAML file with one FineTuneJob; - is standard input.")],
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Follow the job until it ends.")] = True,
    force_conflicts: Annotated[
        bool, typer.Option("--force-conflicts", help="Take over fields that another tool owns.")
    ] = False,
    local: Annotated[
        bool, typer.Option("--local", help="Run the stages as processes on this machine, with no cluster.")
    ] = False,
    claims: Annotated[
        Path | None,
        typer.Option("--claims", metavar="DIR", help="With --local: pvc://CLAIM/PATH is DIR/CLAIM/PATH."),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="With --local: start from the beginning instead of resuming an earlier run.")
    ] = False,
    approve: Annotated[
        bool, typer.Option("--approve", help="With --local: approve the plan of a job with approval: Manual.")
    ] = False,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    output: Output = None,
) -> None:
    """Submit the FineTuneJob in FILE and follow it until it ends.

    Exit code: 0 completed, 3 the job failed or the file is wrong, 5 stopped with a checkpoint since the
    budget is spent, 1 the cluster refused or cannot be reached, 130 interrupted. An interrupted `ftj run` leaves the job running on the cluster; with --local the same command resumes
    where the run stopped.
    """
    if local:
        from finetune_cli.local.run import LocalOptions, run_local

        run_local(file, LocalOptions(claims=claims, fresh=fresh, approve=approve), output)
        return
    if claims or fresh or approve:
        raise typer.BadParameter("--claims, --fresh and --approve belong to --local; on a cluster: ftj approve NAME")
    from finetune_cli.run import submit

    submit(file, _target(namespace, context, kubeconfig), follow=follow, force_conflicts=force_conflicts, output=output)


@app.command(short_help="Check manifests and data, with no cluster.")
def validate(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE", help="Manifests and data files, folders, patterns; - is standard input."),
    ],
    data: Annotated[bool, typer.Option("--data/--no-data", help="Check rows too, where they can be read.")] = True,
    claims: Claims = None,
    download: Download = False,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as well.")] = False,
    fix: Annotated[
        list[str] | None,
        typer.Option(
            "--fix",
            metavar="FIX",
            help="Write a fixed copy next to each data file: DropInvalid, DropDuplicates, DropNearDuplicates, RedactPii, "
            "RedactSecrets, Rebalance, Truncate. May be repeated; applied in this order.",
        ),
    ] = None,
    proof: Annotated[
        bool,
        typer.Option("--proof", help="Show sample rows token by token: trained, masked, and added by the template."),
    ] = False,
    format: Annotated[
        str | None,
        typer.Option("--format", metavar="FORMAT", help="Of data files that no manifest names; default: recognized."),
    ] = None,
    output: Annotated[
        Literal["text", "json", "sarif", "github"],
        typer.Option("-o", "--output", help="sarif and github are for pull requests."),
    ] = "text",
) -> None:
    """Check FineTuneJobs and data as the cluster would: schema, rules, combinations; then every row.

    Exit code: 0 a job with them would start, 3 it would not. What cannot be read from here is listed and ignored.
    """
    from finetune_cli.reach import Reach
    from finetune_cli.validate import ValidateOptions
    from finetune_cli.validate import validate as check

    options = ValidateOptions(
        Reach(claims, download), data=data, strict=strict, fixes=_fixes(fix or []), proof=proof, format=_format(format)
    )
    check(files, options, output)


@app.command(short_help="What a job will take, with no cluster.")
def plan(
    file: Annotated[
        str | None, typer.Argument(metavar="FILE", help="YAML file with one FineTuneJob; - is standard input.")
    ] = None,
    claims: Claims = None,
    download: Download = False,
    model_config: Annotated[
        Path | None,
        typer.Option(
            "--model-config", metavar="CONFIG", help="config.json of a model of its kind, instead of the model."
        ),
    ] = None,
    rows: Annotated[int | None, typer.Option("--rows", min=1, help="Rows of data.train, instead of the data.")] = None,
    tokens_per_row: Annotated[
        int | None, typer.Option("--tokens-per-row", min=1, help="With --rows, or where there is no tokenizer.")
    ] = None,
    gpu_type: Annotated[str | None, typer.Option("--gpu-type", help="Instead of compute.gpuType.")] = None,
    gpu_hour_price: Annotated[
        float | None, typer.Option("--gpu-hour-price", min=0, help="Instead of budget.gpuHourPrice.")
    ] = None,
    compare: Annotated[
        Literal["strategy", "method", "gpu"] | None,
        typer.Option("--compare", help="Side by side, instead of one plan."),
    ] = None,
    prices: Annotated[
        str, typer.Option("--prices", metavar="TYPE=PRICE,...", help="Of a GPU hour: h100=2.5,l40s=0.9.")
    ] = "",
    list_gpus: Annotated[bool, typer.Option("--list-gpus", help="Print the known GPU types and exit.")] = False,
    output: Annotated[
        Literal["text", "json", "markdown"], typer.Option("-o", "--output", help="markdown is for pull requests.")
    ] = "text",
) -> None:
    """Plan the FineTuneJob in FILE: memory, steps, time, cost, and each field that is decided for you, with its reason.

    Model and data are read where they can be reached. Exit code: 0 it fits and is within spec.budget, 3 it is not.
    """
    from finetune_cli import plan as planning
    from finetune_cli.reach import Reach

    if list_gpus:
        planning.list_gpus(output)
        return
    if file is None:
        raise typer.BadParameter("give a FILE, or --list-gpus")
    guesses = planning.Guesses(model_config, rows, tokens_per_row)
    options = planning.PlanOptions(
        Reach(claims, download), guesses, gpu_type, gpu_hour_price, compare, planning.prices_of(prices)
    )
    planning.plan(file, options, output)


@app.command(short_help="Follow a job that is already there.")
def watch(
    name: Name,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    output: Output = None,
) -> None:
    """Follow the FineTuneJob until it ends; exit codes as those of `ftj run`."""
    from finetune_cli.run import watch_job

    watch_job(name, _target(namespace, context, kubeconfig), output)


@app.command(short_help="Describe a job on one or two screens.")
def describe(
    name: Name,
    effective: Annotated[
        bool,
        typer.Option("--effective", help="Print the resolved spec instead, as YAML: what every absent field became."),
    ] = False,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    output: Annotated[
        Literal["json", "yaml"] | None, typer.Option("-o", "--output", help="Print the object as json or yaml instead.")
    ] = None,
) -> None:
    """Describe the FineTuneJob: state, plan, attempts, evaluation, usage and the latest events."""
    from finetune_cli.describe import describe as show

    show(name, _target(namespace, context, kubeconfig), effective=effective, output=output)


@app.command(short_help="Approve the plan of a job that waits for it.")
def approve(
    name: Name,
    plan: Annotated[
        str | None, typer.Option("--plan", metavar="DIGEST", help="Approve only this plan, without asking.")
    ] = None,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Approve any plan, without asking.")] = False,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    output: Output = None,
) -> None:
    """Show the plan of a job with spec.budget.approval: Manual, and approve it.

    Writes the plan's digest into spec.budget.approvedPlan, as a commit could.
    """
    from finetune_cli.approve import approve as approve_plan

    approve_plan(name, plan, _target(namespace, context, kubeconfig), yes=yes, output=output)


@app.command(short_help="Print the logs of a job's pods, ranks merged.")
def logs(
    name: Name,
    stage: Annotated[Stage | None, typer.Option("--stage", help="Default: the newest stage that has pods.")] = None,
    rank: Annotated[
        int | None, typer.Option("--rank", min=0, help="Only what this rank of the training wrote.")
    ] = None,
    attempt: Annotated[
        int | None,
        typer.Option("--attempt", min=1, help="Default: the stage's newest that has pods."),
    ] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Continue through later attempts and stages.")] = False,
    tail: Annotated[int | None, typer.Option("--tail", min=0, help="Only the last lines of each pod.")] = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Print what a job's pods wrote, merged in the order of time, each line after the rank that wrote it."""
    from finetune_cli.logs import Choice, show_logs

    show_logs(name, _target(namespace, context, kubeconfig), Choice(stage, rank, attempt), follow=follow, tail=tail)


@app.command(short_help="Fetch a job's artifacts into a folder.")
def pull(
    name: Name,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to create; it must not exist yet.")],
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    output: Output = None,
) -> None:
    """Fetch what a completed job published: the adapter or model, its card and its report.

    A short-lived pod reads the output claim. Every file is checked against SHA256SUMS before DIR appears.
    """
    from finetune_cli.pull import pull_artifacts

    pull_artifacts(name, folder, _target(namespace, context, kubeconfig), output)


@app.command(short_help="Print the version of ftj.")
def version(output: Output = None) -> None:
    """Print the version of ftj and of the API that it speaks."""
    import json
    from importlib.metadata import version as installed

    from finetune_api import API_VERSION

    known = {"ftj": installed("finetune-operator"), "api": API_VERSION}
    typer.echo(json.dumps(known) if output else f"ftj {known['ftj']}, {known['api']}")


def _target(namespace: str | None, context: str | None, kubeconfig: str | None) -> Target:
    from finetune_cli.cluster import Target

    return Target(kubeconfig=kubeconfig, context=context, namespace=namespace)


def _fixes(names: list[str]) -> tuple[Fix, ...]:
    from typing import get_args

    from finetune_api.checks import Fix

    return tuple(_one_of(name, get_args(Fix), "--fix") for name in names)


def _format(name: str | None) -> DataFormat | None:
    from typing import get_args

    from finetune_api.data import DataFormat

    return None if name is None else _one_of(name, get_args(DataFormat), "--format")


def _one_of(name: str, known: tuple[Any, ...], option: str) -> Any:
    """The value that `name` means, whatever its case. The API's own names are not imported for help alone."""
    for value in known:
        if value.lower() == name.lower():
            return value
    raise typer.BadParameter(f"{name!r} is not one of {', '.join(known)}", param_hint=option)
