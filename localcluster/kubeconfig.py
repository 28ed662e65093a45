"""Kubeconfig files: how the administrator and each component reach the API server."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

from localcluster.pki import Pki


def render(cluster: str, server: str, pki: Pki, user: str) -> str:
    """A kubeconfig of USER with everything inside it, so that the one file can be copied anywhere."""
    authority = base64.b64encode(pki.ca.certificate.read_bytes()).decode()
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": cluster,
            "clusters": [{"name": cluster, "cluster": {"server": server, "certificate-authority-data": authority}}],
            "users": [{"name": user, "user": {"token": pki.token(user)}}],
            "contexts": [{"name": cluster, "context": {"cluster": cluster, "user": user, "namespace": "default"}}],
        },
        indent=2,
    )


def users_own() -> Path:
    """The kubeconfig that kubectl would use: for CLUSTER=current."""
    configured = [part for part in os.environ.get("KUBECONFIG", "").split(os.pathsep) if part]
    return Path(configured[0]) if configured else Path.home() / ".kube" / "config"
