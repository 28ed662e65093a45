"""The command line of each server: pure functions of the cluster's description, in the order of their starting."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from localcluster.pki import FRONT_PROXY
from localcluster.spec import API_SERVICE_ADDRESS, LOOPBACK, NODE_NAME, SERVICE_SUBNET, Spec

Command = list[str]

KWOK_ANNOTATION = "kwok.x-k8s.io/node"


def config_file(spec: Spec, name: str) -> Path:
    """A configuration file of the cluster; kubeconfigs of components are among them."""
    return spec.paths.config / name


def _kubeconfig(spec: Spec, component: str) -> str:
    return str(config_file(spec, f"{component}.kubeconfig"))


def etcd(spec: Spec) -> Command:
    """The data base. It forgets nothing when it is killed, but may when the machine is: then ``up`` starts afresh."""
    client = f"http://{LOOPBACK}:{spec.ports['etcd']}"
    peer = f"http://{LOOPBACK}:{spec.ports['etcd-peer']}"
    return [
        "etcd",
        f"--data-dir={spec.paths.etcd}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--unsafe-no-fsync",
        "--quota-backend-bytes=8589934592",
        "--auto-compaction-retention=5m",
        "--log-level=warn",
    ]


def api_server(spec: Spec) -> Command:
    """The API server, with the admission and authorization of a real cluster."""
    pki = spec.pki
    command = [
        "kube-apiserver",
        f"--etcd-servers=http://{LOOPBACK}:{spec.ports['etcd']}",
        f"--bind-address={spec.address}",
        f"--advertise-address={spec.address}",
        f"--secure-port={spec.ports['api']}",
        f"--tls-cert-file={pki.serving.certificate}",
        f"--tls-private-key-file={pki.serving.key}",
        f"--client-ca-file={pki.ca.certificate}",
        f"--token-auth-file={pki.tokens}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={pki.service_account.certificate}",
        f"--service-account-signing-key-file={pki.service_account.key}",
        f"--service-cluster-ip-range={SERVICE_SUBNET}",
        f"--cert-dir={spec.paths.run}",
        # Aggregated APIs, such as a metrics server, trust the API server by this certificate.
        f"--proxy-client-cert-file={pki.front_proxy.certificate}",
        f"--proxy-client-key-file={pki.front_proxy.key}",
        f"--requestheader-client-ca-file={pki.ca.certificate}",
        f"--requestheader-allowed-names={FRONT_PROXY}",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        "--allow-privileged",
        "--profiling=false",
    ]
    if spec.size == "api":
        # Without controllers no namespace gets its service account, and no pod could be created.
        command.append("--disable-admission-plugins=ServiceAccount")
    if spec.has_node:
        command += [
            "--kubelet-preferred-address-types=InternalIP",
            f"--kubelet-certificate-authority={pki.ca.certificate}",
            f"--kubelet-client-certificate={pki.kubelet_client.certificate}",
            f"--kubelet-client-key={pki.kubelet_client.key}",
        ]
    else:
        # A loopback address is no valid endpoint of the kubernetes Service.
        command.append("--endpoint-reconciler-type=none")
    return command


def controller_manager(spec: Spec) -> Command:
    """All controllers of Kubernetes."""
    pki = spec.pki
    kubeconfig = _kubeconfig(spec, "kube-controller-manager")
    command = [
        "kube-controller-manager",
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        f"--bind-address={LOOPBACK}",
        f"--secure-port={spec.ports['controller-manager']}",
        f"--cert-dir={spec.paths.run}",
        "--leader-elect=false",
        # The defaults (20 and 30) are for large clusters; with them the first service account takes 5 s more.
        "--kube-api-qps=200",
        "--kube-api-burst=400",
        "--use-service-account-credentials",
        f"--root-ca-file={pki.ca.certificate}",
        f"--service-account-private-key-file={pki.service_account.key}",
        f"--cluster-signing-cert-file={pki.ca.certificate}",
        f"--cluster-signing-key-file={pki.ca.key}",
    ]
    if not spec.has_node:
        # Nodes are plain objects here and nobody renews their leases. Conditions that a test sets still become taints.
        command.append("--node-monitor-grace-period=24h")
    return command


def scheduler(spec: Spec) -> Command:
    """The scheduler with its defaults."""
    kubeconfig = _kubeconfig(spec, "kube-scheduler")
    return [
        "kube-scheduler",
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        f"--bind-address={LOOPBACK}",
        f"--secure-port={spec.ports['scheduler']}",
        f"--cert-dir={spec.paths.run}",
        "--leader-elect=false",
    ]


def containerd(spec: Spec) -> Command:
    """The container run-time, with a root, a state and a socket of its own."""
    return ["containerd", f"--config={config_file(spec, 'containerd.toml')}"]


def registry(spec: Spec) -> Command:
    """The OCI registry on loopback."""
    return ["registry", "serve", str(config_file(spec, "registry.yaml"))]


def kubelet(spec: Spec) -> Command:
    """The node's agent."""
    return [
        "kubelet",
        f"--config={config_file(spec, 'kubelet.yaml')}",
        f"--kubeconfig={_kubeconfig(spec, 'kubelet')}",
        f"--root-dir={spec.paths.kubelet}",
        f"--cert-dir={spec.paths.kubelet / 'pki'}",
        f"--node-ip={spec.address}",
        f"--hostname-override={NODE_NAME}",
    ]


def proxy(spec: Spec) -> Command:
    """Services: addresses of SERVICE_SUBNET become pods."""
    return ["kube-proxy", f"--config={config_file(spec, 'kube-proxy.yaml')}", f"--hostname-override={NODE_NAME}"]


def coredns(spec: Spec) -> Command:
    """The cluster's DNS."""
    return ["coredns", "-conf", str(config_file(spec, "Corefile"))]


def provisioner(spec: Spec) -> Command:
    """Makes a folder for each PersistentVolumeClaim, and deletes it."""
    return ["provisioner", f"--kubeconfig={_kubeconfig(spec, 'provisioner')}", f"--root={spec.paths.volumes}"]


def kwok(spec: Spec) -> Command:
    """Plays the kubelets of nodes that carry KWOK_ANNOTATION, by the stages in kwok.yaml. Pods get loopback addresses, so
    that a connection to one is refused at once, or answered by whoever listens on that port of this machine."""
    return [
        "kwok",
        f"--kubeconfig={spec.paths.kubeconfig}",
        f"--config={Path(__file__).parent / 'kwok.yaml'}",
        f"--manage-nodes-with-annotation-selector={KWOK_ANNOTATION}=fake",
        "--cidr=127.64.0.1/10",
        f"--node-ip={LOOPBACK}",
        "--node-lease-duration-seconds=0",
        "--v=WARN",
    ]


BUILDERS: dict[str, Callable[[Spec], Command]] = {
    "containerd": containerd,
    "registry": registry,
    "etcd": etcd,
    "kube-apiserver": api_server,
    "kube-controller-manager": controller_manager,
    "kube-scheduler": scheduler,
    "kubelet": kubelet,
    "kube-proxy": proxy,
    "coredns": coredns,
    "provisioner": provisioner,
    "kwok": kwok,
}
_OF_SIZE = {
    "api": ("etcd", "kube-apiserver"),
    "control": ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"),
    "node": tuple(name for name in BUILDERS if name != "kwok"),
}
# component -> user of pki.USERS, for those that call the API server
CLIENTS = {
    "kube-controller-manager": "system:kube-controller-manager",
    "kube-scheduler": "system:kube-scheduler",
    "kubelet": f"system:node:{NODE_NAME}",
    "kube-proxy": "system:kube-proxy",
    "coredns": "localcluster:coredns",
    "provisioner": "localcluster:provisioner",
}
SERVING_ADDRESSES = [LOOPBACK, API_SERVICE_ADDRESS]


def of(spec: Spec) -> tuple[str, ...]:
    """The components of a cluster, in the order of their starting."""
    return (*_OF_SIZE[spec.size], *(("kwok",) if spec.kwok_nodes else ()))


def command(spec: Spec, component: str) -> Command:
    """The command line of COMPONENT, with what the person added to it."""
    return [*BUILDERS[component](spec), *spec.extra_flags.get(component, [])]
