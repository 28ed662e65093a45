"""From a bare machine to a published adapter: `make quickstart`.

Each part is what a user would do by hand, with the same commands: start a cluster, build images, `helm install`, put a
model and data on a claim, `ftj run`. Everything that was built before is reused. With CLUSTER=current the cluster is
the one of your kubeconfig, and OPERATOR_IMAGE and TRAINER_IMAGE name images that it can pull.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import string
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from examples.quickstart import kept

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
JOB = ROOT / "examples" / "quickstart.yaml"
NAME = "quickstart"
CLAIM = "finetune-quickstart"
RELEASE, SYSTEM_NAMESPACE = "finetune-operator", "finetune-system"

console = Console(highlight=False)


class Stopped(Exception):
    """One sentence that says what failed; the output above it says how."""


class Clock:
    """How long each part took."""

    def __init__(self) -> None:
        self.parts: list[tuple[str, float]] = []

    @contextlib.contextmanager
    def part(self, title: str) -> Iterator[None]:
        console.print(f"[bold]{title}[/bold]")
        start = time.monotonic()
        yield
        self.parts.append((title, time.monotonic() - start))

    def table(self) -> Table:
        table = Table(
            title="How long each part took", title_justify="left", box=None, show_header=False, pad_edge=False
        )
        for title, seconds in [*self.parts, ("All of it", sum(seconds for _, seconds in self.parts))]:
            table.add_row(title, f"{int(seconds // 60)}m {seconds % 60:04.1f}s")
        return table


def run(*command: str | Path, quiet: bool = False, stdin: str | None = None, explain: tuple[str, ...] = ()) -> str:
    """Run a command to its end; its output is shown, or with `quiet` returned and shown only when it fails.

    `explain` is a command whose output says more about a failure.
    """
    result = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        input=stdin,
        text=True,
        stdout=subprocess.PIPE if quiet else None,
        stderr=subprocess.STDOUT if quiet else None,
    )
    if result.returncode:
        if quiet:
            console.print(result.stdout, markup=False)
        if explain:
            subprocess.run(explain, cwd=ROOT, check=False)
        raise Stopped(f"`{' '.join(str(part) for part in command)}` ended with exit code {result.returncode}")
    return result.stdout or ""


def localcluster(*arguments: str) -> str:
    """The last line that a verb of the local cluster prints on standard output: its answer."""
    result = subprocess.run(
        [sys.executable, "-m", "localcluster", *arguments], cwd=ROOT, text=True, stdout=subprocess.PIPE
    )
    if result.returncode:
        raise Stopped(f"`python -m localcluster {' '.join(arguments)}` ended with exit code {result.returncode}")
    lines = result.stdout.split()
    return lines[-1] if lines else ""


def own_cluster() -> bool:
    return os.environ.get("CLUSTER") == "current"


def connect() -> None:
    """Point kubectl, helm and ftj at the cluster, and put them on the PATH."""
    tools = "" if own_cluster() and shutil.which("helm") and shutil.which("kubectl") else localcluster("tools")
    os.environ["PATH"] = os.pathsep.join(filter(None, [str(Path(sys.executable).parent), tools, os.environ["PATH"]]))
    if not own_cluster():
        os.environ["KUBECONFIG"] = localcluster("kubeconfig", "--name", "node")


def images() -> tuple[str, str]:
    """References of the operator's and the trainer's image, built and pushed if need be."""
    if own_cluster():
        try:
            return os.environ["OPERATOR_IMAGE"], os.environ["TRAINER_IMAGE"]
        except KeyError as missing:
            raise Stopped(
                f"CLUSTER=current needs {missing.args[0]}: build and push both targets of the Dockerfile to a registry that your cluster pulls from, "
                "and name them in OPERATOR_IMAGE and TRAINER_IMAGE"
            ) from None
    return (
        localcluster("image", "build", "--target", "operator", "--push"),
        localcluster("image", "build", "--target", "trainer", "--push"),
    )


def install(operator_image: str, trainer_image: str) -> None:
    def reference(prefix: str, image: str) -> list[str]:
        name, _, tag = image.rpartition(":")
        registry, _, repository = name.partition("/")
        return [
            "--set",
            f"{prefix}.registry={registry}",
            "--set",
            f"{prefix}.repository={repository}",
            "--set-string",
            f"{prefix}.tag={tag}",
        ]

    run(
        *(
            "helm",
            "upgrade",
            "--install",
            RELEASE,
            ROOT / "charts" / "finetune-operator",
            "--namespace",
            SYSTEM_NAMESPACE,
            "--create-namespace",
        ),
        *("--wait", "--timeout", "3m", *reference("image", operator_image), *reference("trainer.image", trainer_image)),
        quiet=True,
        explain=("kubectl", "logs", "--namespace", SYSTEM_NAMESPACE, f"deployment/{RELEASE}", "--tail=30"),
    )


def trainer_image_in_use() -> str:
    """What the installed chart gives to jobs: the data is made by the same image."""
    values = json.loads(
        run("helm", "get", "values", RELEASE, "--namespace", SYSTEM_NAMESPACE, "-o", "json", quiet=True)
    )
    image = values["trainer"]["image"]
    return f"{image['registry']}/{image['repository']}:{image['tag']}"


def data(namespace: str) -> None:
    """The claim with the base model and the examples, in `namespace`."""
    manifest = string.Template((HERE / "data.yaml").read_text()).substitute(TRAINER_IMAGE=trainer_image_in_use())
    claim, job = manifest.split("---\n")
    if namespace != "default":
        existing = run("kubectl", "create", "namespace", namespace, "--dry-run=client", "-o", "yaml", quiet=True)
        run("kubectl", "apply", "-f", "-", stdin=existing, quiet=True)
    # A Job's template cannot change, and the one that ran may name an older image. It is cheap to run: what is made is kept.
    run(
        "kubectl",
        "delete",
        "job",
        "finetune-quickstart-data",
        "-n",
        namespace,
        "--ignore-not-found",
        "--wait",
        quiet=True,
    )
    run("kubectl", "apply", "-n", namespace, "-f", "-", stdin=claim, quiet=True)
    folder = None if own_cluster() else claim_folder(namespace)
    if folder:
        kept.lend(folder)
    run("kubectl", "apply", "-n", namespace, "-f", "-", stdin=job, quiet=True)
    wait = [
        "kubectl",
        "wait",
        "-n",
        namespace,
        "--for=condition=Complete",
        "job/finetune-quickstart-data",
        "--timeout=600s",
    ]
    try:
        run(*wait, quiet=True)
    except Stopped:
        run("kubectl", "describe", "-n", namespace, "pods", "-l", "job-name=finetune-quickstart-data")
        raise
    if folder:
        kept.keep(folder)
    console.print(
        run("kubectl", "logs", "-n", namespace, "job/finetune-quickstart-data", "--tail=5", quiet=True).rstrip(),
        markup=False,
        style="dim",
    )


def claim_folder(namespace: str) -> Path:
    """Where the claim lies on this machine."""
    claim = ("-n", namespace, f"pvc/{CLAIM}")
    run("kubectl", "wait", *claim, "--for=jsonpath={.status.phase}=Bound", "--timeout=60s", quiet=True)
    volume = run("kubectl", "get", *claim, "-o", "jsonpath={.spec.volumeName}", quiet=True)
    return Path(run("kubectl", "get", f"pv/{volume}", "-o", "jsonpath={.spec.hostPath.path}", quiet=True))


def tune(namespace: str) -> None:
    run("kubectl", "delete", "ftj", NAME, "-n", namespace, "--ignore-not-found", "--wait", quiet=True)
    run("ftj", "run", JOB, "--namespace", namespace)


def pull(namespace: str) -> Path:
    out = ROOT / "out" / "quickstart"
    if out.exists():
        shutil.rmtree(out)
    out.parent.mkdir(exist_ok=True)
    run("ftj", "pull", NAME, out, "--namespace", namespace)
    return out


def quickstart(namespace: str) -> None:
    clock = Clock()
    with clock.part("Cluster"):
        if not own_cluster():
            localcluster("up", "--size", "node")
        connect()
    with clock.part("Images"):
        operator_image, trainer_image = images()
    with clock.part("helm install"):
        install(operator_image, trainer_image)
    with clock.part("A small base model, and examples to tune it on"):
        data(namespace)
    with clock.part(f"ftj run {JOB.relative_to(ROOT)}"):
        tune(namespace)
    with clock.part("ftj pull"):
        out = pull(namespace)
    uri = run("kubectl", "get", "ftj", NAME, "-n", namespace, "-o", "jsonpath={.status.artifacts.uri}", quiet=True)
    console.print()
    console.print(clock.table())
    kubeconfig = "" if own_cluster() else f"export KUBECONFIG={os.environ['KUBECONFIG']}"
    console.print(
        f"""
[bold]The tuned adapter and its report[/bold]
  on the cluster   {uri} in namespace {namespace}
  here             {out}
  report           {out / "report.html"}

[bold]What to try next[/bold]""",
        soft_wrap=True,
    )
    for line in filter(
        None,
        (
            kubeconfig,
            f"export PATH={Path(sys.executable).parent}:$PATH" if not shutil.which("ftj", path=os.defpath) else "",
        ),
    ):
        console.print(f"  {line}", markup=False, soft_wrap=True)
    for line in (
        f"kubectl get ftj -n {namespace} -o wide",
        f"kubectl describe ftj {NAME} -n {namespace}",
        f"ftj logs {NAME} -n {namespace}",
        "make quickstart-data NAMESPACE=team-a && kubectl apply -n team-a -f examples/quickstart.yaml",
        "make cluster-down" if not own_cluster() else f"helm uninstall {RELEASE} -n {SYSTEM_NAMESPACE}",
    ):
        console.print(f"  {line}", markup=False, soft_wrap=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "part",
        nargs="?",
        choices=["all", "data"],
        default="all",
        help="data: only the claim with the base model and the examples",
    )
    parser.add_argument("--namespace", "-n", default="default")
    arguments = parser.parse_args()
    try:
        if arguments.part == "data":
            connect()
            data(arguments.namespace)
        else:
            quickstart(arguments.namespace)
    except Stopped as stopped:
        console.print(f"[red]quickstart stopped:[/red] {stopped}", soft_wrap=True)
        return 3
    except KeyboardInterrupt:
        console.print("interrupted; run it again and it goes on from here")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
