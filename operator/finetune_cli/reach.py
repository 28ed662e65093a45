"""What of a job can be seen from this machine: files, claims that have a folder here, and downloads that are allowed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from finetune_api.location import Place, parse_uri
from finetune_api.spec import FineTuneJobSpec

from finetune_cli.manifest import dotted, locations

Located = tuple[tuple[str | int, ...], Place]


@dataclass(frozen=True, slots=True)
class Reach:
    """`claims`: a folder with one folder for each claim. `download`: whether remote locations may be fetched."""

    claims: Path | None = None
    download: bool = False

    @property
    def claims_root(self) -> str | None:
        return None if self.claims is None else str(self.claims.absolute())

    def hindrance(self, found: Iterable[Located]) -> str | None:
        """Why one of these cannot be seen from here and what would help, as a clause; None when all can."""
        return next((why for path, place in found if (why := self._hindrance(path, place))), None)

    def _hindrance(self, path: tuple[str | int, ...], place: Place) -> str | None:
        parsed, field = place.parsed, f"spec.{dotted(path)}"
        if parsed.remote:
            return None if self.download else f"{field} is {place.uri}: give --download"
        if not parsed.claim:
            return None
        if self.claims is None:
            return f"{field} is on claim {parsed.claim}: give --claims DIR, a folder with one folder for each claim"
        folder = self.claims / parsed.claim
        return None if folder.is_dir() else f"{field} is on claim {parsed.claim}, but there is no folder {folder}"


def data_of(spec: FineTuneJobSpec) -> list[Located]:
    """Where the examples lie."""
    return list(locations(spec.data, ("data",)))


def model_of(spec: FineTuneJobSpec) -> list[Located]:
    """What the model is read from: itself, and the adapter to continue from."""
    return [(("model",), spec.model), *locations(spec.method, ("method",))]


def shown_path(name: str, claims_root: str | None) -> str:
    """A data file as the trainer names it (a location), as a path that can be opened from here; what is remote stays so."""
    try:
        parsed = parse_uri(name)
    except ValueError:
        return name
    if parsed.remote or (parsed.claim and claims_root is None):
        return name
    return from_here(parsed.on_disk(claims_root or "/"))


def from_here(path: str | Path) -> str:
    """Relative to the folder in which ftj runs, where it is below that."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return str(path)
