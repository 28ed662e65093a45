"""A web server on loopback, with or without TLS: knows ranges, and misbehaves as it is told."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass
class Page:
    """What a path answers with. `cut`: bytes of the body after which each answer ends too early."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    ranges: bool = True
    tagged: bool = True


@dataclass
class Request:
    """What was asked."""

    method: str
    path: str
    headers: dict[str, str]


class WebServer:
    """`pages` by path; `answer`, if set, is asked first and may give a Page of its own."""

    def __init__(self, certificate: Path | None = None) -> None:
        self.pages: dict[str, Page] = {}
        self.requests: list[Request] = []
        self.answer: Callable[[Request], Page | None] | None = None
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                request = Request(self.command, self.path, {k.lower(): v for k, v in self.headers.items()})
                server.requests.append(request)
                page = server.answer(request) if server.answer else None
                self.send(page or server.pages.get(self.path.split("?")[0]) or Page(b"absent", 404))

            do_HEAD = do_POST = do_GET  # noqa: N815

            def send(self, page: Page) -> None:
                tag = f'"{hashlib.md5(page.body).hexdigest()}"'
                body, status, headers = page.body, page.status, dict(page.headers)
                wanted = self.headers.get("Range", "")
                if page.ranges and wanted and status == 200 and self.headers.get("If-Range", tag) == tag:
                    first, _, last = wanted.removeprefix("bytes=").partition("-")
                    status, total = 206, len(body)
                    if int(first) >= total:
                        status, body = 416, b""
                        headers["Content-Range"] = f"bytes */{total}"
                    else:
                        body = body[int(first) : int(last or total - 1) + 1]
                        headers["Content-Range"] = f"bytes {first}-{int(first) + len(body) - 1}/{total}"
                if page.tagged:
                    headers.setdefault("ETag", tag)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body if page.cut is None else body[: page.cut])
                if page.cut is not None and len(body) > page.cut:
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                """Clients hang up: on a certificate, or when they have what they need."""

        self._server = Quiet(("127.0.0.1", 0), Handler)
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        self.url = f"{'https' if certificate else 'http'}://{self.host}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def asked(self, path: str) -> list[Request]:
        return [request for request in self.requests if request.path.split("?")[0] == path]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def write_certificate(path: Path, *, days: int = 1) -> None:
    """Write a self-signed certificate for 127.0.0.1, valid for `days` (negative: expired), with its key, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "loopback")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=9))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
