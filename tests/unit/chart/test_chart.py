"""The chart renders what it promises: least rights, a restricted pod, values that are checked."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from finetune_api import valuesgen
from finetune_api.contract import MANAGED_BY, MANAGED_BY_LABEL, PROGRESS_PORT
from finetune_api.effective import PlatformDefaults
from finetune_operator.telemetry import metrics as _metrics  # noqa: F401, registers them
from prometheus_client import REGISTRY

from .conftest import CHART, ROOT, Render

# What operator/README.md lists, and nothing else: in each namespace, cluster-wide in addition, and in the operator's own namespace.
RIGHTS = {
    ("finetune.dev", "finetunejobs"): {"get", "list", "watch"},
    ("finetune.dev", "finetunejobs/status"): {"patch"},
    ("finetune.dev", "finetunejobs/finalizers"): {"update"},
    ("batch", "jobs"): {"get", "list", "watch", "create", "patch", "delete"},
    ("", "services"): {"get", "create"},
    ("", "pods"): {"get", "list", "watch"},
    ("", "persistentvolumeclaims"): {"get"},
    ("events.k8s.io", "events"): {"create", "list"},
}
CLUSTER_RIGHTS = {("", "nodes"): {"get"}}


def kind(objects: list[dict[str, Any]], wanted: str) -> list[dict[str, Any]]:
    return [item for item in objects if item["kind"] == wanted]


def rights(role: dict[str, Any]) -> dict[tuple[str, str], set[str]]:
    return {
        (group, resource): set(rule["verbs"])
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


def test_lint(helm: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    helm("lint", "--strict", str(CHART))


def test_the_operators_pod_is_restricted(render: Render) -> None:
    """The restricted Pod Security Standard, and what goes beyond it."""
    (deployment,) = kind(render(), "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert all(volume.keys() & {"configMap", "emptyDir"} for volume in pod["volumes"])
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"].keys() == {"memory"}, "a CPU limit would throttle the event loop"
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"


@pytest.mark.parametrize(
    "namespaces", [pytest.param([], id="cluster-wide"), pytest.param(["team-a", "team-b"], id="two-namespaces")]
)
def test_the_operator_has_these_rights_and_no_others(render: Render, namespaces: list[str]) -> None:
    objects = render(f"watchNamespaces={json.dumps(namespaces)}", "rbac.aggregateRoles=false")
    if namespaces:
        assert not kind(objects, "ClusterRole")
        assert not kind(objects, "ClusterRoleBinding")
        roles, bindings = kind(objects, "Role")[:-1], kind(objects, "RoleBinding")[:-1]
        assert [role["metadata"]["namespace"] for role in roles] == namespaces
        assert [binding["metadata"]["namespace"] for binding in bindings] == namespaces
    else:
        roles, bindings = kind(objects, "ClusterRole"), kind(objects, "ClusterRoleBinding")
    expected = RIGHTS if namespaces else RIGHTS | CLUSTER_RIGHTS
    (account,) = kind(objects, "ServiceAccount")
    election = kind(objects, "Role")[-1]
    assert election["metadata"]["namespace"] == "finetune-system"
    assert [(rule["verbs"], rule.get("resourceNames")) for rule in election["rules"]] == [
        (["create"], None),
        (["get", "update"], [account["metadata"]["name"]]),
    ]
    assert {resource for rule in election["rules"] for resource in rule["resources"]} == {"leases"}
    assert roles
    assert len(roles) == len(bindings)
    for role, binding in zip(roles, bindings, strict=True):
        assert rights(role) == expected
        assert binding["roleRef"]["name"] == role["metadata"]["name"]
        assert [(s["name"], s["namespace"]) for s in binding["subjects"]] == [
            (account["metadata"]["name"], "finetune-system")
        ]


def test_replicas(render: Render) -> None:
    """Two of them with a leader, on different nodes, one of which a drain leaves; one alone gives way to its successor."""
    objects = render()
    (deployment,), (budget,) = kind(objects, "Deployment"), kind(objects, "PodDisruptionBudget")
    assert deployment["spec"]["replicas"] == 2
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    template = deployment["spec"]["template"]
    (spread,) = template["spec"]["topologySpreadConstraints"]
    for selector in (budget["spec"]["selector"], spread["labelSelector"]):
        assert selector["matchLabels"].items() <= template["metadata"]["labels"].items()
    environment = {e["name"]: e for e in template["spec"]["containers"][0]["env"]}
    assert environment["FINETUNE_LEADER_ELECTION"]["value"] == "true"
    assert environment["POD_NAME"]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"
    assert environment["POD_NAMESPACE"]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.namespace"
    names = [name for role in kind(objects, "Role") for rule in role["rules"] for name in rule.get("resourceNames", [])]
    assert names == [environment["FINETUNE_LEASE"]["value"]]
    alone = render("replicaCount=1", "leaderElection.enabled=false")
    assert not kind(alone, "PodDisruptionBudget") + kind(alone, "Role")
    assert kind(alone, "Deployment")[0]["spec"]["strategy"] == {"type": "Recreate"}


def test_openshift_assigns_the_ids(render: Render) -> None:
    """docs/install.md: null removes the chart's ids from the operator's pod, and the default ids from every job's pods."""
    ids = ("runAsUser", "runAsGroup", "fsGroup")
    own = [f"podSecurityContext.{name}=null" for name in ids]
    objects = render(*own, *(f"trainer.defaults.securityContext.{name}=null" for name in ids))
    context = kind(objects, "Deployment")[0]["spec"]["template"]["spec"]["securityContext"]
    assert context == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    defaults = PlatformDefaults.model_validate_json(kind(objects, "ConfigMap")[0]["data"]["defaults.json"])
    assert defaults.pods.security_context == dict.fromkeys(ids)


@pytest.mark.parametrize(("value", "expected"), [("604800", 604800), ("0", 0), ("null", None)])
def test_finished_children_have_a_time_to_live(render: Render, value: str, expected: int | None) -> None:
    (config,) = kind(render(f"jobs.ttlSecondsAfterFinished={value}"), "ConfigMap")
    assert json.loads(config["data"]["defaults.json"]).get("ttlSecondsAfterFinished") == expected
    (plain,) = kind(render(), "ConfigMap")
    assert json.loads(plain["data"]["defaults.json"])["ttlSecondsAfterFinished"] == 604800


_NOT_METRICS = {"up"}
_ELECTION = {"leader_election_master_status"}


def test_alerts_and_the_dashboard_name_metrics_that_exist(render: Render) -> None:
    objects = render("metrics.prometheusRule.enabled=true", "metrics.dashboards.enabled=true")
    (rule,) = kind(objects, "PrometheusRule")
    alerts = [alert for group in rule["spec"]["groups"] for alert in group["rules"]]
    (board,) = [c for c in kind(objects, "ConfigMap") if c["metadata"]["name"].endswith("-dashboard")]
    panels = json.loads(board["data"]["finetune-operator.json"])["panels"]
    expressions = [alert["expr"] for alert in alerts] + [p["targets"][0]["expr"] for p in panels]
    known = {sample.name for family in REGISTRY.collect() for sample in family.samples}
    known |= {f"{family.name}{suffix}" for family in REGISTRY.collect() for suffix in ("", "_total", "_bucket")}
    for expression in expressions:
        assert expression.count("(") == expression.count(")")
        named = set(re.findall(r"\b([a-z]+(?:_[a-z]+)*)(?=[{\[])", expression))
        named |= set(re.findall(r"\b(finetune_[a-z_]+)", expression))
        assert named, expression
        assert named - _NOT_METRICS - _ELECTION <= known, expression
    runbook = (ROOT / "docs" / "operating.md").read_text()
    assert [alert["alert"] for alert in alerts if f"`{alert['alert']}`" not in runbook] == []


def test_no_role_has_a_wildcard_or_reads_secrets(render: Render) -> None:
    for role in kind(render(), "ClusterRole"):
        for (group, resource), verbs in rights(role).items():
            assert "*" not in (group, resource, *verbs), role["metadata"]["name"]
            assert not resource.startswith("secrets"), role["metadata"]["name"]


def test_creating_jobs_is_never_aggregated_into_view(render: Render) -> None:
    """Creating a FineTuneJob is creating pods."""
    aggregated: dict[str, set[str]] = {}
    for role in kind(render(), "ClusterRole"):
        for label, value in role["metadata"]["labels"].items():
            if label.startswith("rbac.authorization.k8s.io/aggregate-to-") and value == "true":
                verbs = set().union(*rights(role).values())
                aggregated.setdefault(label.rpartition("-")[2], set()).update(verbs)
    assert aggregated == {
        "view": {"get", "list", "watch"},
        "edit": {"get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"},
        "admin": {"get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"},
    }


def test_trainer_defaults_reach_the_operator(render: Render) -> None:
    """The JSON file is what the operator's model reads; image and defaults are merged, and a change restarts the operator."""

    def rendered(*values: str) -> tuple[PlatformDefaults, str]:
        objects = render(*values)
        (config,) = kind(objects, "ConfigMap")
        (deployment,) = kind(objects, "Deployment")
        template = deployment["spec"]["template"]
        (mount,) = [m for m in template["spec"]["containers"][0]["volumeMounts"] if m["name"] == "config"]
        environment = {e["name"]: e.get("value") for e in template["spec"]["containers"][0]["env"]}
        assert environment["FINETUNE_DEFAULTS"] == f"{mount['mountPath']}/defaults.json"
        defaults = PlatformDefaults.model_validate_json(config["data"]["defaults.json"])
        return defaults, template["metadata"]["annotations"]["checksum/config"]

    plain, checksum = rendered()
    assert plain.pods.image == "finetune-trainer:0.1.0"
    full, other = rendered(
        'global.imageRegistry="registry.example.com/ml"',
        'trainer.image.digest="sha256:' + 64 * "0" + '"',
        'trainer.defaults={"tolerations": [{"key": "gpu", "operator": "Exists"}], "resources": {"limits": {"cpu": 4, "memory": "8Gi"}}, "gpuHourPrice": 2.5, "gpuType": "h100", "maxPodMemory": "500Gi"}',
    )
    assert full.pods.image == f"registry.example.com/ml/finetune-trainer@sha256:{64 * '0'}"
    assert full.pods.tolerations == [{"key": "gpu", "operator": "Exists"}]
    assert (plain.gpu_hour_price, full.gpu_hour_price, full.gpu_type) == (None, 2.5, "h100")
    assert (plain.max_pod_memory, full.max_pod_memory) == (None, "500Gi")
    assert full.pods.resources
    assert full.pods.resources.limits == {"cpu": 4, "memory": "8Gi"}
    assert other != checksum


WRONG = [
    ("replicas=2", "'replicas' not allowed"),
    ("replicaCount=0", "/replicaCount"),
    ("jobs.ttlSecondsAfterFinished=-1", "/jobs/ttlSecondsAfterFinished"),
    ('image.tagg="x"', "'tagg' not allowed"),
    ('image.pullPolicy="always"', "/image/pullPolicy"),
    ('image.digest="sha256:123"', "/image/digest"),
    ('watchNamespaces=["Team_A"]', "/watchNamespaces/0"),
    ('trainer.defaults={"gpus": 1, "image": 3, "resources": {"limit": {}}}', "'gpus'"),
    ("", "/trainer/defaults/image"),
    ("", "'limit' not allowed"),
    ("trainer.defaults.ttlSecondsAfterFinished=5", "'ttlSecondsAfterFinished'"),
    ("trainer.defaults.gpuHourPrice=-1", "/trainer/defaults/gpuHourPrice"),
    ('trainer.defaults.maxPodMemory="much"', "/trainer/defaults/maxPodMemory"),
    ('config.logLevel="loud"', "/config/logLevel"),
    ('metrics.serviceMonitor.interval="soon"', "/metrics/serviceMonitor/interval"),
    ("networkPolicy.apiServerPorts=[70000]", "/networkPolicy/apiServerPorts/0"),
    ('terminationGracePeriodSeconds="30s"', "/terminationGracePeriodSeconds"),
]
"""Each value, and what helm says of it; all in one call, since helm tells of every mistake at once."""


def test_wrong_values_are_refused(helm: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    settings = [part for value, _ in WRONG if value for part in ("--set-json", value)]
    result = helm("template", "ft", str(CHART), *settings, check=False)
    assert result.returncode != 0
    assert [complaint for _, complaint in WRONG if complaint not in result.stderr] == []


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("serviceAccount.create=false", "serviceAccount.name"),
        ('metrics={"enabled": false, "serviceMonitor": {"enabled": true}}', "metrics.enabled"),
        ('metrics={"enabled": false, "prometheusRule": {"enabled": true}}', "metrics.enabled"),
        ("leaderElection.enabled=false", "leaderElection.enabled"),
    ],
)
def test_values_that_need_another_are_refused(
    helm: Callable[..., subprocess.CompletedProcess[str]], value: str, complaint: str
) -> None:
    result = helm("template", "ft", str(CHART), "--set-json", value, check=False)
    assert result.returncode != 0
    assert complaint in result.stderr


def test_every_value_is_described_and_documented() -> None:
    """values.yaml, its schema and the README's table name the same keys; the schema refuses any other."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    readme = (CHART / "README.md").read_text()

    def check(node: dict[str, Any], value: Any, path: str) -> None:
        if "properties" not in node:
            assert f"| `{path}` |" in readme, f"{path} is not in the README's table"
            assert node.get("description"), f"{path} has no description"
            return
        assert value.keys() == node["properties"].keys(), path
        assert node.get("additionalProperties") is False or path == "global", path
        for name, child in node["properties"].items():
            check(child, value[name], f"{path}.{name}".lstrip("."))

    check(schema, values, "")


def test_trainer_defaults_have_the_schema_of_pods_common() -> None:
    current = (CHART / "values.schema.json").read_text()
    assert valuesgen.text(current) == current, "run `make crds`"


def test_the_crd_outlives_the_release(render: Render) -> None:
    """Uninstalling deletes what is not kept, and with a CRD every job of every user."""
    (crd,) = kind(render(), "CustomResourceDefinition")
    assert crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert not kind(render("crds.install=false"), "CustomResourceDefinition")
    (unkept,) = kind(render("crds.keep=false"), "CustomResourceDefinition")
    assert "helm.sh/resource-policy" not in unkept["metadata"]["annotations"]


def test_optional_objects(render: Render) -> None:
    assert not kind(render(), "NetworkPolicy")
    assert not kind(render(), "ServiceMonitor")
    objects = render("networkPolicy.enabled=true", "metrics.serviceMonitor.enabled=true")
    (policy,) = kind(objects, "NetworkPolicy")
    to_gangs = [rule for rule in policy["spec"]["egress"] if "to" in rule]
    assert [port["port"] for rule in to_gangs for port in rule["ports"]] == [PROGRESS_PORT]
    assert to_gangs[0]["to"][0]["podSelector"]["matchLabels"] == {MANAGED_BY_LABEL: MANAGED_BY}
    (monitor,), (service,) = kind(objects, "ServiceMonitor"), kind(objects, "Service")
    labels = service["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert monitor["spec"]["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]
    (deployment,) = kind(objects, "Deployment")
    pod_labels = deployment["spec"]["template"]["metadata"]["labels"]
    for selector in (service["spec"]["selector"], policy["spec"]["podSelector"]["matchLabels"]):
        assert selector.items() <= pod_labels.items()


def test_names_stay_short_enough(render: Render) -> None:
    for item in render(release="r" * 53):
        assert len(item["metadata"]["name"]) <= 63
