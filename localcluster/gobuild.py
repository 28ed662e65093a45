"""Build the Go programs once; the cache folder's name says which sources a binary came from."""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from localcluster import toolchain
from localcluster.cache import made_once
from localcluster.console import progress
from localcluster.errors import ClusterError
from localcluster.paths import GO_SOURCES, cache_root

_STAMP = "k8s.io/component-base/version"


@dataclass(frozen=True)
class Program:
    """A Go main package in ``go/<name>``, or in SOURCES, and the module whose version it carries."""

    name: str
    module: str | None
    usual_time: str
    package: str = "."
    """A ``tool`` of the go.mod where the main package is another module's."""
    folder_of_sources: Path | None = None

    @property
    def sources(self) -> Path:
        """The folder with go.mod, go.sum and the sources."""
        return self.folder_of_sources or GO_SOURCES / self.name

    @property
    def _go_mod(self) -> str:
        return (self.sources / "go.mod").read_text()

    @property
    def version(self) -> str:
        """The version of the module it is about, from go.mod: said there and nowhere else."""
        if self.module is None:
            return "v1"
        found = re.search(rf"^(?:require )?\s*{re.escape(self.module)} (v\S+)", self._go_mod, re.MULTILINE)
        if found is None:
            raise ClusterError(f"{self.sources}/go.mod does not require {self.module}.")
        return found.group(1)

    @property
    def needed_go(self) -> str:
        """The oldest Go that builds it."""
        found = re.search(r"^go (\S+)", self._go_mod, re.MULTILINE)
        return found.group(1) if found else "1.26"

    @property
    def linker_flags(self) -> str:
        """Strip debugging symbols; Kubernetes also wants its version stamped, or ``kubectl version`` fails."""
        if self.name != "kube":
            return "-s -w"
        major, minor, *_ = self.version.removeprefix("v").split(".")
        stamps = {"gitVersion": self.version, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
        return " ".join(["-s -w", *(f"-X {_STAMP}.{key}={value}" for key, value in stamps.items())])

    @property
    def folder(self) -> Path:
        """Where the built program lies: named after its version and its sources' digest."""
        digest = hashlib.sha256(self.linker_flags.encode())
        for source in sorted(self.sources.iterdir()):
            if source.suffix in {".go", ".mod", ".sum"}:
                digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
        return cache_root() / f"{self.name}-{self.version}-{digest.hexdigest()[:12]}"

    @property
    def built(self) -> bool:
        """Whether the program is in the cache."""
        return (self.folder / self.name).is_file()


KUBE = Program("kube", "k8s.io/kubernetes", "about 6 minutes on 2 cores")
COREDNS = Program("coredns", "github.com/coredns/coredns", "about 75 seconds")
REGISTRY = Program("registry", "github.com/distribution/distribution/v3", "about 100 seconds")
PAUSE = Program("pause", None, "seconds")
KWOK = Program("kwok", "sigs.k8s.io/kwok", "about 90 seconds", "sigs.k8s.io/kwok/cmd/kwok")

OF_SIZE: dict[str, tuple[Program, ...]] = {
    "api": (KUBE,),
    "control": (KUBE,),
    "node": (KUBE, COREDNS, REGISTRY, PAUSE),
}


def binary(program: Program) -> Path:
    """The built program; builds it where the cache lacks it."""

    def build(target: Path) -> None:
        go = toolchain.go(program.needed_go)
        title = f"Building {program.name} {program.version} (once; {program.usual_time})"
        log = target.with_name(f"{program.folder.name}.log")
        command = [str(go), "build", "-v", "-o", str(target / program.name), f"-ldflags={program.linker_flags}"]
        command.append(program.package)
        with progress(title, lambda: f"{_lines(log)} packages"), log.open("w") as output:
            done = subprocess.run(
                command, cwd=program.sources, env=toolchain.environment(), stderr=output, stdout=output, check=False
            )
        if done.returncode != 0:
            raise ClusterError(f"Building {program.name} failed; {log} ends with:\n{log.read_text()[-1500:].strip()}")

    return made_once(program.folder, build) / program.name


def build_all(programs: Iterable[Program]) -> None:
    """Build PROGRAMS one after another: each uses every core by itself."""
    for program in programs:
        binary(program)


def _lines(file: Path) -> int:
    return file.read_text(errors="replace").count("\n") if file.exists() else 0
