"""The cluster, as far as `ftj` needs it: one connection, plain JSON in and out, errors as sentences.

The official client brings kubeconfig, its plugins and its certificates. Its generated classes stay out: importing them takes
two seconds, and they refuse answers that they do not know.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

import urllib3
import urllib3.exceptions
from finetune_api import GROUP, PLURAL, VERSION
from kubernetes import client, config
from kubernetes.client.rest import RESTClientObject

from finetune_cli.errors import CliError, Exit

FIELD_MANAGER = "ftj"
CONNECT_SECONDS = 10
TIMEOUT_SECONDS = 30
# `other` is a TLS handshake that failed: retried, a wrong certificate would be reported after minutes.
RETRIES = urllib3.Retry(connect=2, read=0, status=0, redirect=0, other=0, backoff_factor=0.2)
Json = dict[str, Any]
Query = dict[str, str]


@dataclass(frozen=True)
class Target:
    """Which cluster and namespace; None means kubectl's own default."""

    kubeconfig: str | None = None
    context: str | None = None
    namespace: str | None = None


class Gone(CliError):
    """The object is not there."""


class Cluster:
    """One connection. `namespace` is that of the command line or the context."""

    def __init__(self, target: Target) -> None:
        self.configuration = client.Configuration()
        try:
            config.load_kube_config(target.kubeconfig, context=target.context, client_configuration=self.configuration)
            contexts, active = config.list_kube_config_contexts(target.kubeconfig)
        except (config.ConfigException, OSError) as error:
            if target.kubeconfig or target.context or not _in_pod(self.configuration):
                raise CliError(
                    f"no usable kubeconfig: {str(error).strip()}; name one with --kubeconfig or KUBECONFIG",
                    exit_code=Exit.UNREACHABLE,
                ) from None
            contexts, active = [], {}
        if target.context:
            active = next((item for item in contexts if item["name"] == target.context), active)
        self._usual_namespace: str = active.get("context", {}).get("namespace") or "default"
        self.namespace = target.namespace or self._usual_namespace
        self._target = target
        self._pool = RESTClientObject(self.configuration).pool_manager

    def flags(self, namespace: str) -> str:
        """What to add to a suggested command, so that it means the same cluster and namespace."""
        flags = {
            "-n": namespace if namespace != self._usual_namespace else None,
            "--context": self._target.context,
            "--kubeconfig": self._target.kubeconfig,
        }
        return "".join(f" {flag} {value}" for flag, value in flags.items() if value)

    def apply(self, body: Json, *, force_conflicts: bool = False) -> Json:
        """Server-side apply of a FineTuneJob. Unknown fields are refused by the API server too."""
        metadata = body["metadata"]
        query = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict", "force": str(force_conflicts).lower()}
        path = _job_path(metadata["namespace"], metadata["name"])
        return self._json(
            _job_text(metadata["namespace"], metadata["name"]), "PATCH", path, query, body, kind="apply-patch+yaml"
        )

    def approve_plan(self, namespace: str, name: str, digest: str) -> Json:
        """Writes spec.budget.approvedPlan and nothing else; the job as it is then."""
        query = {"fieldManager": f"{FIELD_MANAGER}-approve", "fieldValidation": "Strict"}
        body = {"spec": {"budget": {"approvedPlan": digest}}}
        return self._json(
            _job_text(namespace, name), "PATCH", _job_path(namespace, name), query, body, kind="merge-patch+json"
        )

    def job(self, namespace: str, name: str) -> Json:
        """Raises Gone when there is no such FineTuneJob."""
        return self._json(_job_text(namespace, name), "GET", _job_path(namespace, name))

    def watch_job(self, namespace: str, name: str, resource_version: str, seconds: int) -> Iterator[Json]:
        """Watch events of one FineTuneJob for `seconds`, then the stream ends."""
        query = {
            "watch": "true",
            "fieldSelector": f"metadata.name={name}",
            "resourceVersion": resource_version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(seconds),
        }
        response = self._stream(_job_text(namespace, name), _job_path(namespace), query, silence=seconds + 10)
        with contextlib.closing(response):
            for line in _lines(response):
                yield json.loads(line)

    def events(self, namespace: str, uid: str) -> list[Json]:
        """Events about one object, in no order."""
        query = {"fieldSelector": f"involvedObject.uid={uid}"}
        return list(self._json("events", "GET", f"/api/v1/namespaces/{quote(namespace)}/events", query)["items"] or ())

    def pods(self, namespace: str, selector: str) -> list[Json]:
        """Pods with these labels."""
        return list(self._json("pods", "GET", _pod_path(namespace), {"labelSelector": selector})["items"])

    def pod(self, namespace: str, name: str) -> Json:
        """Raises Gone when there is no such pod."""
        return self._json(f"pod {namespace}/{name}", "GET", _pod_path(namespace, name))

    def create_pod(self, namespace: str, body: Json) -> Json:
        """The pod as it was created."""
        return self._json(f"pod {body['metadata']['name']}", "POST", _pod_path(namespace), body=body)

    def delete_pod(self, namespace: str, name: str) -> None:
        """Deletes at once; a pod that is gone already is no error."""
        with contextlib.suppress(Gone):
            self._json(f"pod {name}", "DELETE", _pod_path(namespace, name), {"gracePeriodSeconds": "0"})

    def pod_log(self, namespace: str, name: str, container: str, *, follow: bool, tail: int | None) -> Iterator[str]:
        """Lines of a pod's log, each one after its RFC 3339 time."""
        query = {"container": container, "follow": str(follow).lower(), "timestamps": "true"}
        if tail is not None:
            query["tailLines"] = str(tail)
        path = f"{_pod_path(namespace, name)}/log"
        response = self._stream(f"pod {namespace}/{name}", path, query, silence=None if follow else 120)
        with contextlib.closing(response):
            for line in _lines(response):
                yield line.decode("utf-8", "replace")

    def _json(
        self,
        what: str,
        method: str,
        path: str,
        query: Query | None = None,
        body: Json | None = None,
        kind: str = "json",
    ) -> Json:
        text, headers = None if body is None else json.dumps(body), {"Content-Type": f"application/{kind}"}
        response = self._send(what, method, path, query, body=text, headers=headers)
        answer: Json = json.loads(response.data)
        return answer

    def _stream(self, what: str, path: str, query: Query, *, silence: float | None) -> Any:
        """A streamed answer. `silence`: seconds without a byte after which it is considered broken."""
        timeout = urllib3.Timeout(connect=CONNECT_SECONDS, read=silence)
        return self._send(what, "GET", path, query, timeout=timeout, preload_content=False, headers={})

    def _send(
        self, what: str, method: str, path: str, query: Query | None, *, headers: dict[str, str], **options: Any
    ) -> Any:
        for setting in self.configuration.auth_settings().values():  # a token that is about to expire is renewed here
            headers[setting["key"]] = setting["value"]
        options.setdefault("timeout", urllib3.Timeout(connect=CONNECT_SECONDS, read=TIMEOUT_SECONDS))
        url = self.configuration.host + path + (f"?{urlencode(query)}" if query else "")
        try:
            response = self._pool.request(
                method, url, headers={"Accept": "application/json", **headers}, retries=RETRIES, **options
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise unreachable(error, self.configuration.host) from None
        if response.status >= 400:
            raise explained(response.status, response.data, what)
        return response


def without_managed_fields(body: Json) -> Json:
    """The object as a person wants to read it."""
    return {**body, "metadata": {k: v for k, v in body["metadata"].items() if k != "managedFields"}}


def _job_path(namespace: str, name: str = "") -> str:
    return f"/apis/{GROUP}/{VERSION}/namespaces/{quote(namespace)}/{PLURAL}" + (f"/{quote(name)}" if name else "")


def _job_text(namespace: str, name: str) -> str:
    return f"FineTuneJob {namespace}/{name}"


def _pod_path(namespace: str, name: str = "") -> str:
    return f"/api/v1/namespaces/{quote(namespace)}/pods" + (f"/{quote(name)}" if name else "")


def explained(code: int, body: bytes | str, what: str) -> CliError:
    """An error of the API server as a sentence. Its own message about a wrong field is kept."""
    try:
        status = json.loads(body)
    except ValueError:
        status = {}
    message = (
        status.get("message") or (body if isinstance(body, str) else body.decode("utf-8", "replace"))[:300].strip()
    )
    match code:
        case 401:
            return CliError(
                "the cluster does not know you: your credentials are missing or expired", exit_code=Exit.UNREACHABLE
            )
        case 403:
            return CliError(f"not allowed: {message}", exit_code=Exit.UNREACHABLE)
        case 404 if status.get("details", {}).get("name"):
            return Gone(f"there is no {what}")
        case 404:
            return CliError(
                f"this cluster has no {PLURAL}.{GROUP}, or no such namespace: is finetune-operator installed here?",
                exit_code=Exit.UNREACHABLE,
            )
        case 409 if any(
            cause.get("reason") == "FieldManagerConflict" for cause in status.get("details", {}).get("causes", [])
        ):
            owned = "; ".join(f"{cause['field']}: {cause['message']}" for cause in status["details"]["causes"])
            return CliError(f"{what}: others own fields that you change ({owned}); --force-conflicts takes them over")
        case 400 | 409 | 422:
            causes = [
                _refusal(cause["field"], cause["message"])
                for cause in status.get("details", {}).get("causes", [])
                if cause.get("field") and cause.get("message")
            ]
            return CliError(*(f"{what} was refused: {sentence}" for sentence in causes or [message]))
        case _:
            return CliError(f"{what}: the API server answered {code}: {message}", exit_code=Exit.UNREACHABLE)


def unreachable(error: Exception, host: str) -> CliError:
    """The innermost reason, without the addresses of Python objects."""
    while isinstance(inner := getattr(error, "reason", None), Exception):
        error = inner
    text = str(error).partition(": ")[2] or str(error)
    return CliError(f"the cluster at {host} cannot be reached: {text}", exit_code=Exit.UNREACHABLE)


def _lines(response: Any) -> Iterator[bytes]:
    """Lines of a streamed answer, as they come."""
    rest = b""
    for chunk in response.stream(amt=None, decode_content=False):
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole
    if rest:
        yield rest


_INVALID_VALUE = re.compile(
    r'^Invalid value: (?:(?:"(?:[^"\\]|\\.)*"|-?[\d.]+|true|false|null|[{\[].*?[}\]]): )?(?P<sentence>.+)$', re.DOTALL
)


def _refusal(field: str, message: str) -> str:
    """The rule's own sentence with its field once, and without the value, which can be a whole object."""
    match = _INVALID_VALUE.match(message)
    sentence = match["sentence"] if match else message
    return sentence if sentence.startswith(field) else f"{field}: {sentence}"


def _in_pod(configuration: Any) -> bool:
    try:
        config.load_incluster_config(client_configuration=configuration)
    except config.ConfigException:
        return False
    return True
