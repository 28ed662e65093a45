"""Closed networks, for every client library alike: certificates of one's own, and proxies."""

from __future__ import annotations

import pytest
from finetune_trainer.errors import BadInput
from finetune_trainer.sources import network

from tests.unit.sources.web_server import WebServer, write_certificate

URIS = ("hf://acme/base", "s3://team/rows.jsonl", "gs://team/rows.jsonl", "oci://registry.example/team/x:v1")


@pytest.mark.parametrize("uri", URIS)
def test_a_certificate_is_trusted_by_its_bundle_alone(workspace, tmp_path, monkeypatch, uri):
    write_certificate(tmp_path / "server.pem")
    pem = (tmp_path / "server.pem").read_text()
    (tmp_path / "ca" / "company").mkdir(parents=True)
    (tmp_path / "ca" / "company" / "ca.crt").write_text(pem[pem.index("-----BEGIN CERT") :])
    monkeypatch.setattr(network, "CA_BUNDLES", str(tmp_path / "ca"))
    server = WebServer(tmp_path / "server.pem")  # has nothing
    with pytest.raises(BadInput, match=rf"certificate of {server.url} is not trusted here \(self-signed") as caught:
        workspace.fetch({"uri": uri, "endpoint": server.url})
    assert (caught.value.cause.code, server.requests) == ("UntrustedCertificate", [])
    with pytest.raises(BadInput) as caught:
        workspace.fetch({"uri": uri, "endpoint": server.url, "caBundleRef": {"name": "company"}})
    assert caught.value.cause.code == "NotFound"
    assert server.requests
    server.close()


@pytest.mark.parametrize("uri", URIS)
def test_proxies_are_those_of_the_environment(workspace, monkeypatch, uri):
    proxy = WebServer()
    monkeypatch.setenv("http_proxy", proxy.url)
    with pytest.raises(BadInput) as caught:
        workspace.fetch({"uri": uri, "endpoint": "http://store.invalid"})
    assert caught.value.cause.code == "NotFound"
    assert all(request.path.startswith("http://store.invalid/") for request in proxy.requests)
    assert proxy.requests
    asked = len(proxy.requests)
    direct = WebServer()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(BadInput):
        workspace.fetch({"uri": uri, "endpoint": direct.url})
    assert direct.requests
    assert len(proxy.requests) == asked
    for server in (proxy, direct):
        server.close()
