"""bitsandbytes is spared where nothing needs it, and never where something does; transformers reads its models once."""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from finetune_api.contract import JobRef, RunConfig
from finetune_api.effective import resolve
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer import lean

ADAMW = {"optimizer": "adamw"}


@pytest.mark.parametrize(
    ("method", "training", "model", "spared"),
    [
        ("lora", ADAMW, {}, True),
        ("full", {"optimizer": "muon"}, {}, True),
        ("qlora", ADAMW, {}, False),
        ("lora", {"optimizer": "adamw-8bit"}, {}, False),
        ("full", {"optimizer": "paged-adamw"}, {}, False),
        ("lora", ADAMW, {"quantization_config": {"load_in_4bit": True}}, False),
        ("lora", ADAMW, None, False),
    ],
)
def test_who_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, training: Any, model: Any, spared: bool
) -> None:
    if model is not None:
        (tmp_path / "config.json").write_text(json.dumps(model))
    spec = FineTuneJobSpec.model_validate(
        {
            "model": {"uri": tmp_path.as_uri()},
            "method": {"type": method},
            "data": {"train": [{"uri": "pvc://data/a.jsonl"}]},
            "training": training,
            "workspace": {"uri": "pvc://scratch"},
            "output": {"uri": "pvc://out"},
        }
    )
    job = JobRef(name="j", namespace="n", uid="u", run="r")
    config = RunConfig(job=job, stage="train", attempt=1, spec=resolve(spec), claims_root=str(tmp_path))
    monkeypatch.setitem(sys.modules, "bitsandbytes", sys)  # put back afterwards
    lean.spare_bitsandbytes(config)
    assert (sys.modules["bitsandbytes"] is None) is spared


def test_models_are_listed_once_and_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.utils import import_utils

    package = str(Path(import_utils.__file__).parents[1] / "models" / "__init__.py")
    original = inspect.unwrap(import_utils.define_import_structure, stop=lambda found: hasattr(found, "cache_info"))
    theirs = original(package)
    monkeypatch.setattr(import_utils, "define_import_structure", original)  # also where another test asked already
    monkeypatch.delitem(sys.modules, "transformers.models", raising=False)
    lean.list_models_once()
    monkeypatch.setattr(
        import_utils, "create_import_structure_from_path", lambda path: pytest.fail(f"{path} is read again")
    )
    assert import_utils.define_import_structure(package) == theirs
