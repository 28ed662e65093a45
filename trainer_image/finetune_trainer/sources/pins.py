"""What a run saw first of each location: its digest and its folder, kept in the run's own folder.

A run that was stopped, evicted or tried again never sees another content; another run sees what is there then.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finetune_api.location import Location

from finetune_trainer import sealed
from finetune_trainer.data.digests import json_digest
from finetune_trainer.sources.remote import Wanted

FOLDER = "sources"
"""In the run's folder."""


@dataclass(frozen=True, slots=True)
class Pin:
    """`folder` is relative to the cache, `path` relative to the files in it; `fields` are those of the spec that named it."""

    uri: str
    digest: str
    folder: str
    path: str
    fields: list[str]


class Pins:
    """The pins of one run."""

    def __init__(self, run: Path) -> None:
        self._folder = run / FOLDER

    def of(self, wanted: Wanted) -> Pin | None:
        """The pin of exactly this."""
        return _read(self._file(wanted))

    def at(self, location: Location, field: str | None = None) -> Pin | None:
        """A pin of this location: the one that `field` named, if there are several."""
        pins = list(self.all_of(location))
        return next((pin for pin in pins if field in pin.fields), pins[0] if pins else None)

    def all_of(self, location: Location) -> Iterator[Pin]:
        for file in sorted(self._folder.glob(f"{_key(location)}-*.json")):
            if (pin := _read(file)) is not None:
                yield pin

    def keep(self, wanted: Wanted, pin: Pin) -> None:
        """Write it, or add its field to the one that is there."""
        known = self.of(wanted)
        fields = sorted({*(known.fields if known else ()), *pin.fields})
        if known is not None and known.folder == pin.folder and known.fields == fields:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        sealed.write_json(self._file(wanted), asdict(pin) | {"fields": fields})

    def _file(self, wanted: Wanted) -> Path:
        return self._folder / f"{_key(wanted.location)}-{wanted.key()[:8]}.json"


def _key(location: Location) -> str:
    return json_digest([location.uri, location.revision, location.endpoint, location.region])[:12]


def _read(file: Path) -> Pin | None:
    try:
        value: dict[str, Any] = json.loads(file.read_bytes())
        return Pin(**value)
    except (OSError, ValueError, TypeError):
        return None
