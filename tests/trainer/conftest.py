"""Real stages as real processes: a tiny model and data, prepared once, and gangs of pods on this machine's loopback."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from finetune_api.contract import JobRef, Progress, RunConfig, TerminationMessage
from finetune_api.effective import resolve
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer import train
from finetune_trainer.progress import ProgressWriter
from finetune_trainer.stage import StageContext
from finetune_trainer.stop import StopFlag
from safetensors.torch import load_file, save_file

STEPS = 48
BROKEN_WORD = "hill"
WORDS = ["red", "green", "blue", "one", "two", "three", "cat", "dog", "bird", "sun", "moon", "star", "river", "hill"]
TIMEOUT_SECONDS = 120


@pytest.fixture(scope="session")
def claims(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Claims with data, a base model, and twins of it: with attention dropout, with one broken weight, and without a layer that it claims."""
    root = tmp_path_factory.mktemp("claims")
    for claim in ("models", "datasets", "scratch", "out"):
        (root / claim).mkdir()
    rows = _rows()
    (root / "datasets" / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    _base_model(root / "models" / "base", rows)
    _twin(root / "models", "dropout", attention_dropout=0.1)
    _twin(root / "models", "incomplete", num_hidden_layers=3)
    broken = _twin(root / "models", "broken") / "model.safetensors"
    tensors = load_file(broken)
    tensors["model.embed_tokens.weight"][_token(root / "models" / "base", BROKEN_WORD)] = float("nan")
    save_file(tensors, broken, metadata={"format": "pt"})
    return root


@dataclass
class Pod:
    """PID 1 of one pod, as a process of this machine."""

    process: subprocess.Popen[str]
    termination: Path
    output: Path
    progress_port: int

    def wait(self) -> int:
        try:
            return self.process.wait(TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the pod did not end; it said:\n{self.said()}") from None

    def wait_for_step(self, step: int) -> None:
        """Until rank 0 has said that `step` is done."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while f"step {step}/" not in self.said():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.005)

    def get(self, path: str) -> str:
        """What the pod's endpoint answers."""
        return urllib.request.urlopen(f"http://127.0.0.1:{self.progress_port}{path}", timeout=10).read().decode()

    def said(self) -> str:
        return self.output.read_text()

    def message(self) -> TerminationMessage:
        message = TerminationMessage.decode(self.termination.read_text())
        assert message is not None, self.said()
        return message

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    def kill(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in [*psutil.Process(self.process.pid).children(recursive=True)]:
                process.kill()
        self.process.kill()


@dataclass
class Job:
    """One run of one job, whose attempts may differ in everything that is not fixed."""

    root: Path
    name: str
    spec: dict[str, Any]
    pods: list[Pod] = field(default_factory=list)
    steps: int = STEPS

    @property
    def folder(self) -> Path:
        return self.config("train", 1, {}).layout.root

    @property
    def broken_token(self) -> int:
        return _token(self.root / "models" / "base", BROKEN_WORD)

    def config(self, stage: str, attempt: int, compute: dict[str, Any]) -> RunConfig:
        spec = self.spec | {"compute": {"device": "cpu", **compute}}
        return RunConfig(
            job=JobRef(name=self.name, namespace="team", uid=self.name, run="abcde"),
            stage=stage,  # type: ignore[arg-type]
            attempt=attempt,
            spec=resolve(FineTuneJobSpec.model_validate(spec), decided={}),
            claims_root=str(self.root),
        )

    def start(
        self, stage: str = "train", *, attempt: int = 1, environment: dict[str, str] | None = None, **compute: Any
    ) -> list[Pod]:
        """Start all pods of the stage. They see no compiler and no home, as in the image."""
        config = self.config(stage, attempt, compute)
        folder = self.folder.parent / f"test-{len(self.pods)}"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "run.json"
        path.write_text(config.encode())
        started = []
        port, nodes = _free_port(), config.spec.compute.nodes if stage == "train" else 1
        for node in range(nodes):
            termination = folder / f"termination-{node}"
            output = folder / f"output-{node}"
            own = {
                "PATH": str(Path(sys.executable).parent),
                "PYTHONPATH": os.pathsep.join(sys.path),
                "OMP_NUM_THREADS": "1",
                "JOB_COMPLETION_INDEX": str(node),
                "FINETUNE_MASTER_ADDR": "127.0.0.1",
                "FINETUNE_MASTER_PORT": str(port),
                "FINETUNE_PROGRESS_PORT": str(_free_port()),
                "FINETUNE_SCRATCH": str(folder / f"scratch-{node}"),
                "FINETUNE_TERMINATION_LOG": str(termination),
                **(environment or {}),
            }
            with output.open("w") as stream:
                process = subprocess.Popen(
                    [sys.executable, "-m", "finetune_trainer", stage, "--config", str(path)],
                    env=own,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            started.append(Pod(process, termination, output, int(own["FINETUNE_PROGRESS_PORT"])))
        self.pods += started
        return started

    def run(self, stage: str = "train", **how: Any) -> Pod:
        """Run a stage to its end, which must be a good one; the first pod."""
        pods = self.start(stage, **how)
        codes = [pod.wait() for pod in pods]
        assert codes == [0] * len(pods), pods[0].said()
        return pods[0]

    def here(
        self, *, attempt: int = 1, stop_when: Callable[[Progress], bool] = lambda _: False, **compute: Any
    ) -> StageContext:
        """Train in this process, as rank 0 of 1, asked to stop when its progress is such. Raises what the stage raises."""
        config = self.config("train", attempt, {"strategy": "ddp", **compute})
        scratch = self.folder.parent / "scratch-here"
        scratch.mkdir(parents=True, exist_ok=True)
        config.layout.attempt(attempt).mkdir(parents=True, exist_ok=True)
        context = StageContext(config, _Stopper(scratch / "progress.json", stop_when), StopFlag(), scratch)
        context.progress.stop = context.stop
        train.run(context)
        return context

    def history(self, attempt: int) -> list[dict[str, Any]]:
        return [
            json.loads(line) for line in (self.folder / f"attempt-{attempt}" / "history.jsonl").read_text().splitlines()
        ]

    def losses(self, *attempts: int) -> dict[int, float]:
        """Training loss by step; a later attempt's word counts."""
        return {row["step"]: row["loss"] for n in attempts for row in self.history(n) if "loss" in row}

    def eval_losses(self, *attempts: int) -> dict[int, float]:
        return {row["step"]: row["eval_loss"] for n in attempts for row in self.history(n) if "eval_loss" in row}

    def evaluation(self) -> dict[str, Any]:
        return json.loads((self.folder / "trained" / "evaluation.json").read_text())


class _Stopper(ProgressWriter):
    """Asks to stop in the middle of things, as a signal would."""

    def __init__(self, path: Path, when: Callable[[Progress], bool]) -> None:
        super().__init__(path, Progress(stage="train"))
        self._when = when
        self.stop: StopFlag | None = None

    def update(self, *, force: bool = False, **fields: Any) -> None:
        super().update(force=force, **fields)
        if self.stop is not None and self._when(self.state):
            self.stop.request()


@pytest.fixture(scope="session", autouse=True)
def quiet_single_rank() -> Iterator[None]:
    """What PID 1 would have set for a single process."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "ACCELERATE_TORCH_DEVICE": "cpu",
            "TRANSFORMERS_VERBOSITY": "error",
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def make_job(claims: Path) -> Iterator[Callable[..., Job]]:
    """Make a job whose data is prepared. Whatever its pods left running is ended with the session."""
    jobs: list[Job] = []
    prepared: dict[str, Path] = {}

    def make(
        name: str,
        *,
        model: str = "base",
        method: dict[str, Any] | None = None,
        own_data: bool = False,
        **spec: Any,
    ) -> Job:
        """`own_data`: what the spec says of data or steps differs from all others."""
        job = Job(
            claims,
            name,
            {
                "model": {"uri": f"pvc://models/{model}"},
                "method": method or {"type": "lora", "lora": {"rank": 4}},
                "data": {"train": [{"uri": "pvc://datasets/rows.jsonl"}]},
                "training": {"maxSteps": STEPS, "globalBatchSize": 8, "learningRate": 0.01, "warmupRatio": 0.1},
                "checkpoint": {"everySteps": 4},
                "workspace": {"uri": "pvc://scratch"},
                "output": {"uri": f"pvc://out/{name}"},
                **spec,
            },
        )
        jobs.append(job)
        if own_data or not prepared:
            job.run("prepare")
            if not own_data:
                prepared["folder"] = job.folder / "prepared"
        else:  # the same rows, tokenizer and batch: the same shards
            shutil.copytree(prepared["folder"], job.folder / "prepared")
        return job

    yield make
    for job in jobs:
        for pod in job.pods:
            if pod.process.poll() is None:
                pod.kill()


@pytest.fixture(scope="session")
def single(make_job: Callable[..., Job]) -> Job:
    """One process, DDP's simplest case: what all other gangs are compared with."""
    job = make_job("single")
    job.run(strategy="ddp")
    return job


@pytest.fixture
def free_port() -> int:
    return _free_port()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _twin(models: Path, name: str, **config: Any) -> Path:
    shutil.copytree(models / "base", models / name)
    path = models / name / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return models / name


def _token(model: Path, word: str) -> int:
    from transformers import AutoTokenizer

    (token,) = AutoTokenizer.from_pretrained(model).encode(" " + word, add_special_tokens=False)
    return token


def _rows() -> list[dict[str, str]]:
    draw = random.Random(0)
    rows = []
    for _ in range(60):
        words = draw.sample(WORDS, draw.randint(2, 9))
        rows.append({"prompt": "Reverse: " + " ".join(words) + "\n", "completion": " ".join(reversed(words))})
    return rows


def _base_model(folder: Path, rows: list[dict[str, str]]) -> None:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        [row["prompt"] + row["completion"] for row in rows],
        trainers.BpeTrainer(
            vocab_size=340, special_tokens=["<pad>", "<end>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<end>")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            eos_token_id=1,
            pad_token_id=0,
        )
    ).save_pretrained(folder)
