"""The command: each FILE checked as far as it can be from here, then everything told in the wanted form."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from finetune_api.checks import Fix
from finetune_api.data import DataFormat
from rich.console import Console

from finetune_cli import survey
from finetune_cli.errors import CliError, Exit
from finetune_cli.reach import Reach
from finetune_cli.validate import data, manifests
from finetune_cli.validate.checked import Checked
from finetune_cli.validate.files import Input, inputs


@dataclass(frozen=True, slots=True)
class ValidateOptions:
    """`data`: whether rows are looked at. `fixes`: what is mended in copies beside the originals."""

    reach: Reach
    data: bool = True
    strict: bool = False
    fixes: tuple[Fix, ...] = ()
    proof: bool = False
    format: DataFormat | None = None


def validate(files: Sequence[str], options: ValidateOptions, output: str) -> NoReturn:
    """Check every file, tell all that was found, exit with 0 or 3."""
    checked = look(inputs(files), options)
    passes = all(one.passes(strict=options.strict) for one in checked)
    match output:
        case "json":
            body = {"passes": passes, "strict": options.strict, "files": [one.wire() for one in checked]}
            print(json.dumps(body, ensure_ascii=False))
        case "sarif":
            from finetune_cli.validate.sarif import sarif

            print(json.dumps(sarif(checked), ensure_ascii=False, indent=1))
        case "github":
            from finetune_cli.validate.github import lines

            for line in lines(checked):
                print(line)
        case _:
            from finetune_cli.validate.told import tell

            console = Console(highlight=False, markup=False, soft_wrap=True)
            tell(console, checked, proof=options.proof, strict=options.strict)
    sys.exit(Exit.DONE if passes else Exit.FAILED)


def look(found: Sequence[Input], options: ValidateOptions) -> list[Checked]:
    """All that is known about these files. A bare data file that a job here names is looked at once, with that job."""
    console = Console(stderr=True, highlight=False, markup=False)
    unable = _unable(options)
    checked: list[Checked] = []
    for item in (item for item in found if item.kind == "manifest"):
        for one, job in manifests.check(item.file):
            checked.append(one)
            if job is not None:
                data.of_job(one, job, options, unable, console)
    seen = {file for one in checked for file in data.files_of(one)}
    for item in (item for item in found if item.kind == "data"):
        one = Checked(item.file)
        if data.same_file(item.file, seen):
            continue
        checked.append(one)
        data.of_files(one, options, unable, console)
    for one in checked:
        one.sort()
    return checked


def _unable(options: ValidateOptions) -> str | None:
    """Why no data can be looked at at all. Raises CliError when it was asked for by name."""
    if not options.data:
        return "left out by --no-data"
    missing = survey.missing()
    if missing and (options.fixes or options.proof):
        raise CliError(f"--fix and --proof read the data, but {missing}")
    return missing
