"""The jobs of a manifest: schema, rules and combinations, by the models that the API server's own schema is made from."""

from __future__ import annotations

from collections.abc import Iterator

from finetune_api.combinations import refused
from finetune_api.effective import resolve

from finetune_cli import manifest
from finetune_cli.errors import CliError
from finetune_cli.manifest import Complaint, Manifest, dotted
from finetune_cli.validate.checked import MORE_RULES, Checked, Place, Problem, of_complaint
from finetune_cli.validate.files import holds_job, is_template

NO_JOB = "holds no FineTuneJob"


def check(file: str) -> Iterator[tuple[Checked, Manifest | None]]:
    """What is wrong with `file` as a whole, then each of its jobs that could be read, with what is wrong with it."""
    if file != manifest.STDIN and not holds_job(file):
        yield Checked(file, notes=[NO_JOB]), None
        return
    try:
        jobs, complaints = manifest.read_all(file)
    except CliError as error:  # the other files are still worth a look
        message = error.lines[-1].removeprefix(f"{file}: ")
        yield Checked(file, problems=[of_complaint(Complaint(file, None, message))]), None
        return
    if complaints and file != manifest.STDIN and is_template(file):
        yield (
            Checked(
                file,
                notes=["not checked: a Helm template is no manifest yet; pipe `helm template` into ftj validate -"],
            ),
            None,
        )
    elif complaints:
        yield Checked(complaints[0].source, problems=[of_complaint(complaint) for complaint in complaints]), None
    elif not jobs:
        yield Checked(file, notes=[NO_JOB]), None
    for job in jobs:
        found = Checked(job.source, job.job.metadata.name if len(jobs) > 1 or complaints else None)
        found.problems += [of_complaint(complaint) for complaint in impossible(job)]
        found.problems += _local(job)
        yield found, job


def impossible(job: Manifest) -> Iterator[Complaint]:
    """Combinations that only show once absent fields are decided, as the operator will decide them."""
    for combination in refused(resolve(job.job.spec, decided={})):
        written = next((one for one in combination.when if one.holds(job.job.spec)), combination.when[0])
        line = manifest.line_of(job.nodes, ("spec", *written.path.split(".")))
        yield Complaint(job.source, line, f"spec: {combination.message}")


def _local(job: Manifest) -> Iterator[Problem]:
    severity, _, remedy = MORE_RULES["LocalLocation"]
    for path, place in manifest.locations(job.job.spec):
        if place.parsed.scheme == "file":
            line = manifest.line_of(job.nodes, ("spec", *path, "uri"))
            message = f"spec.{dotted(path)}.uri: {place.uri} works only with `ftj run --local`"
            yield Problem("LocalLocation", severity, message, Place(job.source, line), remedy)
