"""`ftj run --local`: the real trainer as processes, a gang of two on loopback, stopped and resumed as a user would."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

WORDS = ["red", "green", "blue", "one", "two", "three", "cat", "dog", "bird", "sun", "moon", "star"]
MANIFEST = """\
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {name: colours}
spec:
  model: {uri: pvc://models/base}
  method: {type: lora}
  data: {train: [{uri: pvc://datasets/rows.jsonl}]}
  training: {epochs: 12, learningRate: 1e-3, globalBatchSize: 8}
  compute: {nodes: 2, device: cpu}
  checkpoint: {everySteps: 10}
  workspace: {uri: pvc://scratch}
  output: {uri: pvc://models/colours}
"""


@pytest.fixture(scope="module")
def claims(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each claim: a model of random weights with a tokenizer of its own, and 160 rows."""
    root = tmp_path_factory.mktemp("claims")
    rows = [{"prompt": f"say {a} {b}", "completion": f" {b} {a}"} for a in WORDS for b in WORDS if a != b]
    (root / "datasets").mkdir()
    (root / "datasets" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "scratch").mkdir()
    folder = root / "models" / "base"
    folder.mkdir(parents=True)
    code = f"""
import json
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
raw = Tokenizer(models.WordLevel(unk_token="<unk>"))
raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
rows = [json.loads(line) for line in open({str(root / "datasets" / "rows.jsonl")!r})]
texts = [row["prompt"] + " " + row["completion"] for row in rows]
raw.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=["<pad>", "<unk>", "<end>"]))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", unk_token="<unk>", eos_token="<end>")
tokenizer.save_pretrained({str(folder)!r})
config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                     num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
                     eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None)
LlamaForCausalLM(config).save_pretrained({str(folder)!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)
    return root


def start(claims: Path, manifest: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-u", "-m", "finetune_cli", "run", "--local", str(manifest), "--claims", str(claims)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **environment}
    return subprocess.Popen(
        [*command, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ends(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(process.communicate()) from None
    return process.returncode, out, err


def saved(claims: Path) -> list[dict[str, Any]]:
    """The statuses of every run in the workspace."""
    return [json.loads(path.read_text()) for path in (claims / "scratch").glob("*/*/status.json")]


def test_a_run_is_stopped_resumed_and_published(claims: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "job.yaml"
    manifest.write_text(MANIFEST)
    first = start(claims, manifest)
    deadline = time.monotonic() + 240
    while not list((claims / "scratch").glob("*/*/checkpoints/step-10/manifest.json")):
        assert time.monotonic() < deadline
        if first.poll() is not None:
            raise AssertionError(first.communicate())
        time.sleep(0.05)
    second = start(claims, manifest)
    assert "already under way in process" in ends(second)[2]
    first.send_signal(signal.SIGINT)
    code, out, err = ends(first)
    assert (code, err) == (130, "")
    assert out.splitlines()[-1].startswith("colours was stopped; its last checkpoint is of step ")
    (status,) = saved(claims)
    step = status["lastCheckpoint"]["step"]
    assert step >= 10
    assert not (claims / "models" / "colours").exists()

    code, out, err = ends(start(claims, manifest, "-o", "json"))
    assert code == 0, err
    status = json.loads(out)["status"]
    trained = [attempt for attempt in status["attempts"] if attempt["stage"] == "train"]
    assert [attempt["outcome"] for attempt in trained] == ["Stopped", "Succeeded"]
    assert trained[1]["resumedFromStep"] == step
    assert f"train attempt 2 resumes from step {step}." in err
    loss = next(row for row in status["evaluation"]["metrics"] if row["metric"] == "loss")
    assert loss["tuned"] < loss["base"]
    published = claims / "models" / "colours"
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=published, check=True, timeout=60)
    assert (published / "adapter_model.safetensors").is_file()
    assert (published / "report.html").is_file()

    code, out, _ = ends(start(claims, manifest))
    assert code == 0
    assert "had already completed; nothing was started" in out


def test_bad_data_is_told_with_its_line(claims: Path, tmp_path: Path) -> None:
    rows = (claims / "datasets" / "rows.jsonl").read_text().splitlines()
    (claims / "datasets" / "bad.jsonl").write_text("\n".join([*rows[:2], '{"prompt": "x"', *rows[2:9]]))
    manifest = tmp_path / "job.yaml"
    manifest.write_text(MANIFEST.replace("rows.jsonl", "bad.jsonl"))
    code, out, _ = ends(start(claims, manifest))
    assert code == 3
    last = out.splitlines()[-1]
    assert last.startswith("colours Failed in prepare: ")
    assert "datasets/bad.jsonl:3: is not JSON" in last


def manifest_with(folder: Path, **spec: Any) -> Path:
    """The job, quick, with these parts of its spec."""
    text = MANIFEST.replace("epochs: 12", "epochs: 2").replace("name: colours}", "name: gated}")
    text = text.replace("models/colours", "models/gated")
    file = folder / "gated.yaml"
    file.write_text(text + "".join(f"  {name}: {json.dumps(value)}\n" for name, value in spec.items()))
    return file


def test_a_plan_is_made_approved_and_stopped_by_its_budget(claims: Path, tmp_path: Path) -> None:
    """One run all along: what was prepared for the plan is trained in the end, and --approve is remembered."""

    def run(*arguments: str, **spec: Any) -> tuple[int, str]:
        code, out, err = ends(start(claims, manifest_with(tmp_path, **spec), *arguments))
        assert err == ""
        return code, out

    def status() -> tuple[Path, dict[str, Any]]:
        (file,) = set((claims / "scratch").glob("*/*/status.json")) - others
        return file, json.loads(file.read_text())

    others = set((claims / "scratch").glob("*/*/status.json"))

    code, out = run(mode="Plan")
    assert code == 0, out
    assert out.splitlines()[-1] == "gated is planned; nothing was trained. Set spec.mode: Run to train it."
    file, planned = status()
    assert [attempt["stage"] for attempt in planned["attempts"]] == ["prepare"]
    digest, steps = planned["plan"]["digest"], planned["plan"]["steps"]
    assert digest in out
    code, out = run(budget={"maxDuration": "1s"})
    assert code == 3
    assert "spec.budget.maxDuration: the plan takes" in out.splitlines()[-1]
    code, out = run(budget={"approval": "Manual"})
    assert code == 3
    assert out.splitlines()[-1].endswith(f"give --approve, or set spec.budget.approvedPlan: {digest}")
    _, spent = status()
    file.write_text(json.dumps(spent | {"usage": {"trainSeconds": 1000}}))
    code, out = run("--approve", budget={"approval": "Manual", "maxDuration": "1003s"})
    assert code == 5, out
    assert "Stopping: spec.budget.maxDuration: training has run for" in out
    assert "raise it, and the same command resumes" in out.splitlines()[-1]
    code, out = run(budget={"approval": "Manual", "maxDuration": "2h"})
    assert code == 0, out
    assert out.splitlines()[-1].startswith("gated completed")
    done = status()[1]
    assert [attempt["stage"] for attempt in done["attempts"]].count("prepare") == 1
    last = [attempt for attempt in done["attempts"] if attempt["stage"] == "train"][-1]
    assert (last["lastStep"], done["plan"]["digest"]) == (steps, digest)


def ftj(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "finetune_cli", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240)


def test_validate_and_plan_say_what_a_run_would(claims: Path, tmp_path: Path) -> None:
    """By the trainer's own code: the sentence about bad data, the proof, and the very steps and digest of the run."""
    manifest = manifest_with(tmp_path)
    good = ftj("validate", str(manifest), "--claims", str(claims), "--proof", cwd=tmp_path)
    assert good.returncode == 0, good.stdout + good.stderr
    assert "132 rows" in good.stdout
    assert " trained  │" in good.stdout
    plan = ftj("plan", str(manifest), "--claims", str(claims), "-o", "json", cwd=tmp_path)
    assert plan.returncode == 0, plan.stderr
    body = json.loads(plan.stdout)
    assert body["notes"] == []
    code, out, err = ends(start(claims, manifest_with(tmp_path, mode="Plan"), "-o", "json"))
    assert code == 0, err
    run = json.loads(out)["status"]["plan"]
    assert {name: body["plan"][name] for name in ("digest", "steps", "tokens")} == {
        name: run[name] for name in ("digest", "steps", "tokens")
    }
    rows = (claims / "datasets" / "rows.jsonl").read_text().splitlines()
    (tmp_path / "bad.jsonl").write_text("\n".join([*rows[:2], '{"prompt": "x"', *rows[2:9]]))
    bad = ftj("validate", "bad.jsonl", "-o", "github", cwd=tmp_path)
    assert bad.returncode == 3, bad.stdout + bad.stderr
    assert "::error file=bad.jsonl,line=3,title=InvalidJson::" in bad.stdout
    mended = ftj("validate", "bad.jsonl", "--fix", "DropInvalid", cwd=tmp_path)
    assert mended.returncode == 0, mended.stdout + mended.stderr
    (written,) = [file for file in tmp_path.glob("bad*.jsonl") if file.name != "bad.jsonl"]
    assert len(written.read_text().splitlines()) == 9
    assert ftj("validate", written.name, cwd=tmp_path).returncode == 0


SHORT_OF_MEMORY = """
import finetune_trainer.train.step as steps
take = steps.Stepper.take
def short(self, step, rate):
    if step == 12 and self._budget == 2048:
        raise steps.shortage.OutOfMemory("memory ran out", code="OutOfMemory", remedy="none")
    return take(self, step, rate)
steps.Stepper.take = short
"""
"""For sitecustomize: a step runs out of memory as long as no notch was taken."""


def test_out_of_memory_takes_a_notch_and_resumes(claims: Path, tmp_path: Path) -> None:
    others = set((claims / "scratch").glob("*/*/status.json"))
    (tmp_path / "sitecustomize.py").write_text(SHORT_OF_MEMORY)
    manifest = manifest_with(tmp_path, mode="Run")
    code, out, err = ends(start(claims, manifest, PYTHONPATH=f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"))
    (file,) = set((claims / "scratch").glob("*/*/status.json")) - others
    status, (notch,) = json.loads(file.read_text()), json.loads((file.parent / "notches.json").read_text())
    assert (code, err) == (0, "")
    assert f"The training ran out of memory. {notch['sentence']}." in out
    first, second = [attempt for attempt in status["attempts"] if attempt["stage"] == "train"]
    assert (first["reason"], second["outcome"]) == ("OutOfMemory", "Succeeded")
    assert second["resumedFromStep"] >= 10
    assert json.loads(status["state"])["effective"]["compute"]["microBatchTokens"] == int(notch["after"])
