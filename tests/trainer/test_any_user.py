"""Stages under a user that the image does not know, as OpenShift's restricted SCC assigns one: group 0, no passwd entry, no HOME."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from finetune_api.contract import JobRef, RunConfig, TerminationMessage
from finetune_api.effective import resolve
from finetune_api.spec import FineTuneJobSpec

USER = 1000660000
AS_USER = ["unshare", "--user", f"--map-user={USER}", "--map-group=0"]


def test_all_stages_run_as_an_unknown_user_of_group_0(claims: Path, tmp_path: Path) -> None:
    """In a user namespace: there the user has no name, and none of root's rights."""
    if (
        shutil.which("unshare") is None
        or subprocess.run([*AS_USER, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("user namespaces are not available here")
    root = tmp_path / "claims"
    for claim in ("models", "datasets"):
        shutil.copytree(claims / claim, root / claim)
    for claim in ("scratch", "out", "pod"):
        (root / claim).mkdir()
    spec = {
        "model": {"uri": "pvc://models/base"},
        "method": {"type": "lora", "lora": {"rank": 4}},
        "data": {"train": [{"uri": "pvc://datasets/rows.jsonl"}]},
        "training": {"maxSteps": 4, "globalBatchSize": 8},
        "compute": {"device": "cpu", "processesPerNode": 2, "strategy": "zero2"},
        "workspace": {"uri": "pvc://scratch"},
        "output": {"uri": "pvc://out/result"},
    }
    for stage in ("prepare", "train", "publish"):
        config = RunConfig(
            job=JobRef(name="job", namespace="team", uid="u", run="abcde"),
            stage=stage,  # type: ignore[arg-type]
            attempt=1,
            spec=resolve(FineTuneJobSpec.model_validate(spec), decided={}),
            claims_root=str(root),
        )
        path = root / f"{stage}.json"
        path.write_text(config.encode())
        done = subprocess.run(
            [*AS_USER, sys.executable, "-m", "finetune_trainer", stage, "--config", str(path)],
            env={
                "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.defpath)),
                "PYTHONPATH": os.pathsep.join(sys.path),
                "OMP_NUM_THREADS": "1",
                "FINETUNE_PROGRESS_PORT": "0",
                "FINETUNE_SCRATCH": str(root / "pod"),
                "FINETUNE_TERMINATION_LOG": str(root / "pod" / "termination"),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        message = TerminationMessage.decode((root / "pod" / "termination").read_text())
        assert message is not None
        assert message.outcome == "succeeded"
    assert (root / "out" / "result" / "finetune.json").is_file()
