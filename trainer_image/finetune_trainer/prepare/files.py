"""The data files of a job: where they lie, what they are called, and which part of the data they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from finetune_api.contract import RunConfig
from finetune_api.location import Location

from finetune_trainer import sources
from finetune_trainer.data.readers import Split, Unreadable, data_files, file_kind, of_split


class DataFile(NamedTuple):
    """`name` is how the user knows it; `part` is train, validation or test. `path` is what is read: `original`, or it mended."""

    part: Split
    name: str
    path: Path
    original: Path
    note: str | None = None
    """What is worth knowing of the folder that it is from."""

    @property
    def kind(self) -> str:
        """Of the original: jsonl, csv.gz ...; of a file that cannot be told, what its name says."""
        try:
            return file_kind(self.original)
        except (Unreadable, OSError):
            return self.original.suffix.lstrip(".") or "unknown"


def locate(config: RunConfig) -> list[DataFile]:
    """Every data file of the job, in the order of the spec; hub files are downloaded. Raises BadInput."""
    found: list[DataFile] = []
    data = config.spec.data
    parts: tuple[tuple[Split, Sequence[Location] | None], ...] = (
        ("train", data.train),
        ("validation", data.validation),
        ("test", data.test),
    )
    for part, locations in parts:
        for number, location in enumerate(locations or ()):
            field_name = f"spec.data.{part}[{number}].uri"
            path = sources.fetch(location, config, field=field_name, files=sources.DATA_FILES, subfolders=True)
            try:
                everything = data_files(path)
                files = everything if everything == [path] else of_split(everything, path, part)
            except Unreadable as error:
                raise error.refusal(f"{field_name}: {location.uri}") from error
            note = None
            if len(files) < len(everything):
                others = " or ".join(f"spec.data.{name}" for name, _ in parts if name != part)
                note = f"{field_name}: {location.uri} holds several splits, of which {part} is read ({len(files)} of {len(everything)} files); name it in {others} to read the others."
            found += [DataFile(part, _name(location, path, file), file, file, note) for file in files]
    return found


def notes_of(files: Sequence[DataFile]) -> list[str]:
    """Each once."""
    return list(dict.fromkeys(file.note for file in files if file.note))


def _name(location: Location, path: Path, file: Path) -> str:
    return location.uri if file == path else f"{location.uri.rstrip('/')}/{file.relative_to(path).as_posix()}"
