"""Configuration files of the servers of a node; all of them are functions of the cluster's description."""

from __future__ import annotations

import json
from typing import Any

from localcluster import kubeconfig
from localcluster.components import CLIENTS, config_file, of
from localcluster.debian import cni_folder
from localcluster.spec import (
    BRIDGE,
    DNS_SERVICE_ADDRESS,
    LOOPBACK,
    NODE_ADDRESS,
    POD_SUBNET,
    REGISTRY_NAME,
    REGISTRY_PORT,
    SANDBOX_IMAGE,
    Spec,
)


def write_all(spec: Spec) -> None:
    """Write every file that the cluster's components read."""
    spec.paths.config.mkdir(parents=True, exist_ok=True)
    for component in of(spec):
        if user := CLIENTS.get(component):
            rendered = kubeconfig.render(spec.name, spec.server, spec.pki, user)
            _write(spec, f"{component}.kubeconfig", rendered, mode=0o600)
    spec.paths.kubeconfig.write_text(kubeconfig.render(spec.name, spec.server, spec.pki, "admin"))
    spec.paths.kubeconfig.chmod(0o600)
    if spec.has_node:
        _write(spec, "containerd.toml", _containerd(spec))
        _write(spec, f"registries/{REGISTRY_NAME}/hosts.toml", _registry_hosts())
        _write(spec, "cni/10-bridge.conflist", _json(_cni(spec)))
        _write(spec, "registry.yaml", _json(_registry(spec)))
        _write(spec, "kubelet.yaml", _json(_kubelet(spec)))
        _write(spec, "kube-proxy.yaml", _json(_proxy(spec)))
        _write(spec, "resolv.conf", "")
        _write(spec, "Corefile", _corefile(spec))


def _json(content: dict[str, Any]) -> str:
    """All of these readers take YAML, of which JSON is a part."""
    return json.dumps(content, indent=2) + "\n"


def _write(spec: Spec, name: str, content: str, mode: int = 0o644) -> None:
    file = config_file(spec, name)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)
    file.chmod(mode)


def _containerd(spec: Spec) -> str:
    paths = spec.paths
    # restrict_oom_score_adj: without CAP_SYS_RESOURCE every sandbox would die in runc's init.
    return f"""version = 2
root = "{paths.containerd}"
state = "{paths.run / "containerd"}"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]

[grpc]
address = "{paths.containerd_socket}"

[plugins."io.containerd.internal.v1.opt"]
path = "{paths.run / "opt"}"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{SANDBOX_IMAGE}"
restrict_oom_score_adj = true
stream_server_address = "{LOOPBACK}"
max_concurrent_downloads = 6

[plugins."io.containerd.grpc.v1.cri".containerd]
discard_unpacked_layers = true

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{cni_folder()}"
conf_dir = "{config_file(spec, "cni")}"

[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "{config_file(spec, "registries")}"
"""


def _registry_hosts() -> str:
    url = f"http://{LOOPBACK}:{REGISTRY_PORT}"
    return f'server = "{url}"\n\n[host."{url}"]\ncapabilities = ["pull", "resolve"]\n'


def _cni(spec: Spec) -> dict[str, Any]:
    # The bridge has the node's address already (network.py); pods reach each other and the node, and nothing beyond it.
    bridge = {
        "type": "bridge",
        "bridge": BRIDGE,
        "isGateway": True,
        "ipMasq": False,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "dataDir": str(spec.paths.run / "addresses"),
            "ranges": [[{"subnet": POD_SUBNET, "gateway": NODE_ADDRESS}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    return {"cniVersion": "1.0.0", "name": "localcluster", "plugins": [bridge]}


def _registry(spec: Spec) -> dict[str, Any]:
    return {
        "version": "0.1",
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(spec.paths.registry)}, "delete": {"enabled": True}},
        "http": {"addr": f"{LOOPBACK}:{REGISTRY_PORT}"},
    }


def _kubelet(spec: Spec) -> dict[str, Any]:
    paths = spec.paths
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": NODE_ADDRESS,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(spec.pki.ca.certificate)},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(spec.pki.serving.certificate),
        "tlsPrivateKeyFile": str(spec.pki.serving.key),
        "healthzBindAddress": LOOPBACK,
        "healthzPort": spec.ports["kubelet-healthz"],
        "containerRuntimeEndpoint": f"unix://{paths.containerd_socket}",
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": False,
        "failSwapOn": False,
        "clusterDomain": "cluster.local",
        "clusterDNS": [DNS_SERVICE_ADDRESS],
        "resolvConf": str(config_file(spec, "resolv.conf")),
        "podLogsDir": str(paths.pod_logs),
        "volumePluginDir": str(paths.kubelet / "volume-plugins"),
        "makeIPTablesUtilChains": False,
        "serializeImagePulls": False,
        # On a disk that is 85% full the defaults would delete images, and evict pods at 90%.
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1Gi", "imagefs.available": "1Gi"},
    }


def _proxy(spec: Spec) -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "bindAddress": NODE_ADDRESS,
        "clusterCIDR": POD_SUBNET,
        "clientConnection": {"kubeconfig": str(config_file(spec, "kube-proxy.kubeconfig"))},
        "healthzBindAddress": f"{LOOPBACK}:{spec.ports['proxy-healthz']}",
        "metricsBindAddress": f"{LOOPBACK}:{spec.ports['proxy-metrics']}",
        # All pods share one bridge: an answer would go straight to the caller, who never heard of the pod's own
        # address. Masquerading sends it back through the node.
        "nftables": {"masqueradeAll": True},
        # Zero leaves the kernel's settings alone.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }


def _corefile(spec: Spec) -> str:
    return f""".:53 {{
    bind {NODE_ADDRESS}
    errors
    ready {LOOPBACK}:{spec.ports["dns-ready"]}
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        kubeconfig {config_file(spec, "coredns.kubeconfig")} {spec.name}
        pods insecure
        ttl 5
    }}
}}
"""
