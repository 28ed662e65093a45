"""Certificates and tokens of one cluster, made anew for each new cluster."""

from __future__ import annotations

import datetime
import ipaddress
import os
import secrets
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from localcluster.pki import FRONT_PROXY, USERS, KeyPair, Pki

_VALID = datetime.timedelta(days=3650)


def create(pki: Pki, addresses: list[str]) -> None:
    """Make every key of a cluster whose servers are reached at ADDRESSES."""
    pki.folder.mkdir(parents=True, exist_ok=True)
    authority = _Authority(pki.ca)
    names: list[x509.GeneralName] = [
        x509.DNSName(name)
        for name in ("localhost", "node-1", *(f"kubernetes{tail}" for tail in ("", ".default", ".default.svc")))
    ]
    names += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
    authority.issue(pki.serving, "localcluster", [], ExtendedKeyUsageOID.SERVER_AUTH, names)
    authority.issue(pki.kubelet_client, "kube-apiserver", ["system:masters"], ExtendedKeyUsageOID.CLIENT_AUTH, [])
    authority.issue(pki.front_proxy, FRONT_PROXY, [], ExtendedKeyUsageOID.CLIENT_AUTH, [])
    key = _new_key(pki.service_account.key)
    pki.service_account.certificate.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    rows = (f'{secrets.token_hex(24)},{user},{user},"{",".join(groups)}"' for user, groups in USERS.items())
    _write_private(pki.tokens, ("\n".join(rows) + "\n").encode())


class _Authority:
    def __init__(self, pair: KeyPair) -> None:
        self._key = _new_key(pair.key)
        self._name = _subject("localcluster-ca", [])
        constraints = x509.BasicConstraints(ca=True, path_length=None)
        builder = _builder(self._name, self._name, self._key).add_extension(constraints, critical=True)
        pair.certificate.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def issue(
        self,
        pair: KeyPair,
        common_name: str,
        organizations: list[str],
        usage: x509.ObjectIdentifier,
        names: list[x509.GeneralName],
    ) -> None:
        key = _new_key(pair.key)
        builder = _builder(_subject(common_name, organizations), self._name, key)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        # Python's strict verification wants to know which key signed a certificate.
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        pair.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def _subject(common_name: str, organizations: list[str]) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization) for organization in organizations]
    return x509.Name([*attributes, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    is_authority = subject == issuer
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # Long enough ago for a process whose clock is set back by a day.
        .not_valid_before(now - datetime.timedelta(days=2))
        .not_valid_after(now + _VALID)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _new_key(file: Path) -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP256R1())
    encoded = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _write_private(file, encoded)
    return key


def _write_private(file: Path, content: bytes) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as handle:
        handle.write(content)
