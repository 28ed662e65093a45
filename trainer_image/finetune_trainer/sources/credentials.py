"""Credentials of a location: from the Secret that its secretRef names, and from nowhere else.

Without a secretRef a location is asked anonymously. What a machine or its user happens to have (a cloud's metadata service,
profiles of command line tools, tokens on disk) is never used: a job must not depend on where it runs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from finetune_api.contract import SECRET_PREFIX, secret_prefix
from finetune_api.location import Location

from finetune_trainer.errors import BadInput

KEYS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "hf": (("HF_TOKEN",),),
    "s3": (("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),),
    "gs": (("GOOGLE_CREDENTIALS",),),
    "https": (("HTTPS_TOKEN",), ("HTTPS_USERNAME", "HTTPS_PASSWORD")),
    "oci": (("OCI_USERNAME", "OCI_PASSWORD"),),
}
"""Of each scheme, the sets of keys one of which is needed."""
OPTIONAL: Mapping[str, tuple[str, ...]] = {"s3": ("AWS_SESSION_TOKEN",)}


def of(location: Location, field: str) -> dict[str, str]:
    """The keys of the location's Secret and their values; empty without a secretRef. Raises BadInput (MissingCredential)."""
    if location.secret_ref is None:
        return {}
    secret, scheme = location.secret_ref.name, location.parsed.scheme
    prefix = secret_prefix(secret)
    if not any(name.startswith(prefix) for name in os.environ):
        prefix = ""  # a local run: the keys stand in the environment by their own names
    sets = KEYS[scheme]
    known = [key for keys in sets for key in keys] + [*OPTIONAL.get(scheme, ())]
    # A Secret that was made from a file often ends with a line break, which no header may hold.
    values = {key: value.strip() for key in known if (value := os.environ.get(prefix + key, "")).strip()}
    if not any(all(key in values for key in keys) for keys in sets):
        in_pod = any(name.startswith(SECRET_PREFIX) for name in os.environ)
        raise BadInput(
            f"{field}: Secret {secret} gives no {said(scheme)}",
            code="MissingCredential",
            remedy=f"put {said(scheme)} into it, or remove the secretRef of what needs no credentials"
            + ("" if in_pod else "; in a local run set them in your own environment"),
        )
    return values


def said(scheme: str) -> str:
    """The keys of a scheme's Secret in words."""
    return ", or ".join(" and ".join(keys) for keys in KEYS[scheme])


def google(values: Mapping[str, str], field: str) -> dict[str, Any]:
    """The service account in GOOGLE_CREDENTIALS. Raises BadInput, which shows nothing of it."""
    try:
        account = json.loads(values["GOOGLE_CREDENTIALS"])
    except ValueError:
        account = None
    if not isinstance(account, dict) or account.get("type") != "service_account":
        raise BadInput(
            f"{field}: GOOGLE_CREDENTIALS of its Secret is not the JSON key of a service account",
            code="MissingCredential",
            remedy='put the whole key file into it: --from-file=GOOGLE_CREDENTIALS=key.json, with "type": "service_account"',
        )
    return account


def masked(text: str, values: Iterable[str]) -> str:
    """`text` without any of the values: what a library or a server says may repeat what it was given."""
    for value in sorted((value for value in values if len(value) > 3), key=len, reverse=True):
        text = text.replace(value, "***")
    return text
