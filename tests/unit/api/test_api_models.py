"""The API package: what users are told, what the CRD says, what the halves hand each other."""

from __future__ import annotations

import copy
import json
import tomllib
from pathlib import Path
from typing import Any

import finetune_api
import pytest
import yaml
from finetune_api import crdgen
from finetune_api.contract import (
    TERMINATION_BYTES,
    Cause,
    JobRef,
    RunConfig,
    TerminationMessage,
)
from finetune_api.effective import PlatformDefaults, resolve, shown
from finetune_api.errors import sentences
from finetune_api.finetunejob import FineTuneJob
from finetune_api.location import parse_uri
from finetune_api.planner.facts import LENGTH_BINS, DataFacts, ModelShape, PlanFacts
from finetune_api.planner.steps import FEWEST_VALIDATED, VALIDATION_SHARE, plan_steps, validated_rows
from finetune_api.pods import EnvVar, NamedObject, PodSettings, Resources, merge
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import DataStatus, FindingStatus, MetricRow, PlanStatus, SourceStatus
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

MINIMAL: dict[str, Any] = {
    "apiVersion": "finetune.dev/v1alpha1",
    "kind": "FineTuneJob",
    "metadata": {"name": "support-bot"},
    "spec": {
        "model": {"uri": "pvc://models/base"},
        "method": {"type": "lora"},
        "data": {"train": [{"uri": "pvc://datasets/support.jsonl"}]},
        "workspace": {"uri": "pvc://scratch"},
        "output": {"uri": "pvc://models/support-bot"},
    },
}


def changed(path: str, value: Any) -> dict[str, Any]:
    body = copy.deepcopy(MINIMAL)
    node = body
    *parents, last = path.split(".")
    for part in parents:
        node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
    node[last] = value
    return body


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("spec.training.learningRat", 1, "spec.training.learningRat: unknown field; did you mean learningRate?"),
        ("spec.training.learningRate", -1, "spec.training.learningRate: input should be greater than 0, not -1"),
        (
            "spec.method.type",
            "lroa",
            "spec.method.type: 'lroa' is not one of 'lora', 'qlora', 'dora', 'prefix', 'prompt' or 'full'",
        ),
        ("spec.training.seed", -3, "spec.training.seed: input should be greater than or equal to 0, not -3"),
        ("metadata.name", "Support_Bot", "metadata.name must be 1 to 40 lower-case letters"),
        ("spec.data.train.0.uri", "datasets/x", "spec.data.train[0]: uri must be pvc://CLAIM/PATH"),
        ("spec.output.uri", "hf://a/b", "spec.output: uri must be pvc://CLAIM/PATH"),
        ("spec.output.uri", "pvc://models/../etc", "spec.output: uri must be pvc://CLAIM/PATH"),
        (
            "spec.model.revision",
            "main",
            "spec.model: revision, endpoint, secretRef and caBundleRef belong to what is downloaded",
        ),
        ("spec.data.split", {"train": 0.9}, "spec.data.split: train, validation and test must add up to 1"),
        ("spec.compute", {"device": "cuda", "gpusPerNode": 0}, "spec.compute.gpusPerNode must be at least 1"),
        ("spec.compute", {"device": "cpu", "gpusPerNode": 1}, "spec.compute.gpusPerNode must be 0 or absent"),
        (
            "spec.training",
            {"epochs": 1, "maxSteps": 2},
            "spec.training.epochs and training.maxSteps exclude each other",
        ),
        (
            "spec.data.templateArguments",
            {"messages": True},
            "spec.data.templateArguments: messages is set by the trainer: remove it",
        ),
        (
            "spec.data.templateArguments",
            {"a-b": True},
            "spec.data.templateArguments: a-b is not the name of a template variable",
        ),
        ("spec.pods.train.imag", "x", "spec.pods.train.imag: unknown field; did you mean image?"),
    ],
)
def test_bad_input_gets_one_sentence_that_names_the_field(path: str, value: Any, sentence: str) -> None:
    with pytest.raises(ValidationError) as error:
        FineTuneJob.parse(changed(path, value))
    told = sentences(error.value, FineTuneJob)
    assert len(told) == 1
    assert sentence in told[0]


@pytest.mark.parametrize("value", [True, 3, 0.5, "low", "", "1"])
def test_template_arguments_keep_their_kinds(value: Any) -> None:
    data = FineTuneJob.parse(changed("spec.data.templateArguments", {"effort": value})).spec.data
    assert json.dumps(data.wire()["templateArguments"]) == json.dumps({"effort": value})


@pytest.mark.parametrize("value", [None, [1], {"a": 1}, "a" * 1025])
def test_template_arguments_are_scalars(value: Any) -> None:
    with pytest.raises(ValidationError):
        FineTuneJob.parse(changed("spec.data.templateArguments", {"effort": value}))
    with pytest.raises(ValidationError):
        FineTuneJob.parse(changed("spec.data.templateArguments", {f"a{n}": 1 for n in range(33)}))


def test_a_missing_field_is_named() -> None:
    body = copy.deepcopy(MINIMAL)
    del body["spec"]["output"]
    with pytest.raises(ValidationError) as error:
        FineTuneJob.parse(body)
    assert sentences(error.value, FineTuneJob) == ["spec.output: required, but absent"]


@given(st.text(max_size=60) | st.from_regex(r"(pvc|hf|file)://[a-zA-Z0-9./_-]{0,30}", fullmatch=True))
def test_no_location_leaves_its_claim(uri: str) -> None:
    try:
        parsed = parse_uri(uri)
    except ValueError:
        return
    if parsed.scheme == "pvc":
        path = parsed.on_disk("/mnt/claims")
        assert path.parts[:4] == ("/", "mnt", "claims", parsed.claim)
        assert ".." not in path.parts


@given(
    nodes=st.integers(1, 8),
    processes=st.none() | st.integers(1, 4),
    gpus=st.none() | st.integers(0, 8),
    method=st.sampled_from(["lora", "full"]),
    epochs=st.none() | st.integers(1, 5),
)
def test_resolving_twice_changes_nothing_and_leaves_nothing_open(
    nodes: int, processes: int | None, gpus: int | None, method: str, epochs: int | None
) -> None:
    body = copy.deepcopy(MINIMAL["spec"])
    body["method"] = {"type": method}
    body["compute"] = {"nodes": nodes, **({"gpusPerNode": gpus} if gpus is not None else {})}
    body["training"] = {"epochs": epochs} if epochs else {}
    spec = FineTuneJobSpec.model_validate(body)
    defaults = PlatformDefaults(pods=PodSettings(image="trainer:1"))
    early = resolve(spec, defaults)
    assert resolve(early, defaults) == early
    assert early.training.epochs == epochs, "how long to train is for model and data to decide"
    once = resolve(spec, defaults, {})
    assert resolve(once, defaults, {}) == once == resolve(early, defaults, {})
    compute = once.compute
    assert compute.device == ("cpu" if gpus == 0 else "cuda")
    assert compute.strategy == ("zero2" if nodes * (compute.processes_per_node or 0) > 1 else "ddp")
    assert (once.method.lora is not None) == (method == "lora")
    for name in (
        "epochs", "global_batch_size", "learning_rate", "schedule", "warmup_ratio", "precision", "activation_checkpointing",
    ):  # fmt: skip
        assert getattr(once.training, name) is not None, name
    assert spec == FineTuneJobSpec.model_validate(body), "the user's spec was changed"
    assert "pods" not in shown(once)


def test_pod_settings_merge_by_name() -> None:
    below = PodSettings(
        image="a",
        env=[EnvVar(name="A", value="1"), EnvVar(name="B", value="1")],
        labels={"x": "1", "y": "1"},
        tolerations=[{"key": "cpu"}],
        volume_mounts=[{"name": "v", "mountPath": "/a"}],
        resources=Resources(requests={"cpu": 1, "memory": "1Gi"}),
        image_pull_secrets=[NamedObject(name="s")],
    )
    above = PodSettings(
        env=[EnvVar(name="B", value="2")],
        labels={"y": "2"},
        tolerations=[{"key": "gpu"}],
        volume_mounts=[{"name": "v", "mountPath": "/b"}],
        resources=Resources(limits={"memory": "2Gi"}, requests={"cpu": 2}),
    )
    merged = merge(below, above)
    assert merged.image == "a"
    assert [(e.name, e.value) for e in merged.env or []] == [("A", "1"), ("B", "2")]
    assert merged.labels == {"x": "1", "y": "2"}
    assert merged.tolerations == [{"key": "cpu"}, {"key": "gpu"}]
    assert [m["mountPath"] for m in merged.volume_mounts or []] == ["/a", "/b"]
    assert merged.resources == Resources(requests={"cpu": 2, "memory": "1Gi"}, limits={"memory": "2Gi"})
    assert merge(None, above) == above


def _nodes(schema: dict[str, Any], path: str = "") -> Any:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from _nodes(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from _nodes(schema[key], f"{path}.{key}")


def test_the_schema_is_structural_and_closed() -> None:
    crd = crdgen.crd()
    assert yaml.safe_load(crdgen.to_yaml(crd)) == json.loads(json.dumps(crd)), "the YAML says something else"
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for path, node in _nodes(schema):
        assert "type" in node or node.get("x-kubernetes-int-or-string"), f"{path} has no type"
        assert not {"$ref", "anyOf", "allOf", "oneOf", "title", "const"} & node.keys(), path
        if node.get("type") == "object" and path not in (".metadata", ""):
            closed = (
                "properties" in node
                or "additionalProperties" in node
                or node.get("x-kubernetes-preserve-unknown-fields")
            )
            assert closed, f"{path} would be pruned to nothing"
        if node.get("type") == "array":
            assert "maxItems" in node, f"{path} is an unbounded list"
    described = [
        path
        for path, node in _nodes(schema["properties"]["spec"])
        if path.count(".") == 1 and not node.get("description")
    ]
    assert not described, f"without a description: {described}"


@given(st.text(max_size=9000), st.text(max_size=9000), st.floats(allow_nan=False))
def test_a_termination_message_fits_and_keeps_its_verdict(message: str, remedy: str, loss: float) -> None:
    record = TerminationMessage(
        stage="train",
        outcome="failed",
        exit_code=3,
        rank=7,
        time=1.5,
        step=12,
        cause=Cause(code="InvalidData", message=message, remedy=remedy),
        metrics={"loss": loss},
        evaluation={"rows": 10, "metrics": [MetricRow(metric="loss", base=loss, tuned=loss)]},
    )
    data = record.encode()
    assert len(data) <= TERMINATION_BYTES
    back = TerminationMessage.decode(data.decode())
    assert back is not None
    assert (back.exit_code, back.rank, back.cause and back.cause.code) == (3, 7, "InvalidData")
    assert back.cause is not None
    assert back.cause.message[:100] == message[:100]
    assert TerminationMessage.decode("Traceback (most recent call last):") is None


def test_a_full_prepare_record_keeps_what_the_plan_is_made_from() -> None:
    shape = ModelShape(
        model_type="x" * 30, hidden_size=2**31, layers=999, heads=2**20, kv_heads=2**20, head_dim=2**20,
        intermediate_size=2**31, vocab_size=2**31, parameters=2**40, weight_bytes=2**41, linear_in_out=2**40,
    )  # fmt: skip
    facts = PlanFacts(
        model=shape,
        data=DataFacts(rows=2**31, tokens=2**40, longest=2**20, lengths=[(2**20, 2**31)] * LENGTH_BINS),
    )
    uri = "s3://" + "b" * 60 + "/" + "k" * 400
    findings = [FindingStatus(code="NearDuplicates", severity="Warning", count=2**31, where=uri + ":999")] * 32
    data = DataStatus(rows=1, findings=findings, sources=[SourceStatus(uri=uri, digest="sha256:" + "0" * 64)] * 16)
    record = TerminationMessage(stage="prepare", outcome="succeeded", exit_code=0, data=data, facts=facts,
                                decided={"training": {"learningRate": 1e-4}}, plan=PlanStatus(steps=5))  # fmt: skip
    assert len(record.encode()) <= TERMINATION_BYTES
    back = TerminationMessage.decode(record.encode().decode())
    assert back is not None
    assert (back.facts, back.decided, back.plan) == (facts, record.decided, record.plan)
    assert back.data is not None
    assert back.data.findings


def test_a_run_config_survives_its_way_to_the_pod(tmp_path: Any) -> None:
    spec = resolve(FineTuneJobSpec.model_validate(MINIMAL["spec"]))
    config = RunConfig(job=JobRef(name="a", namespace="b", uid="u", run="abcde"), stage="train", attempt=2, spec=spec)
    path = tmp_path / "run.json"
    path.write_text(config.encode())
    assert RunConfig.read(path) == config
    assert str(config.layout.checkpoints) == "/mnt/claims/scratch/u/abcde/checkpoints"


@given(st.integers(1, 10_000), st.integers(1, 512), st.integers(1, 5))
def test_every_epoch_has_every_row(rows: int, batch: int, epochs: int) -> None:
    plan = plan_steps(
        train_rows=rows, global_batch_size=batch, epochs=epochs, max_steps=None, checkpoint_every_steps=None
    )
    assert plan.steps == epochs * -(-rows // batch)
    assert plan.epochs == epochs
    assert 1 <= plan.checkpoint_every_steps <= min(plan.steps, 500)
    assert (
        plan_steps(train_rows=rows, global_batch_size=batch, epochs=None, max_steps=7, checkpoint_every_steps=3).steps
        == 7
    )


@given(st.integers(0, 10**7), st.integers(1, 10**8), st.integers(1, 11))
def test_validations_take_their_share_of_the_time_at_most(rows: int, trained_rows: int, validations: int) -> None:
    measured = validated_rows(rows, trained_rows=trained_rows, validations=validations)
    assert min(rows, FEWEST_VALIDATED) <= measured <= rows
    if measured > FEWEST_VALIDATED:  # a forward is a third of a training's pass
        assert measured * validations / 3 <= VALIDATION_SHARE * trained_rows
    if measured < rows:
        assert (measured + 1) * validations / 3 > VALIDATION_SHARE * trained_rows


def test_the_version_is_said_once() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    assert finetune_api.__version__ == project["project"]["version"]
