"""The cluster, as far as `ftj` needs it: one connection, plain JSON in and out, errors as sentences.

The official client brings kubeconfig, its plugins and its certificates. Answers are read as JSON rather than through its
models, which are slow and refuse what they do not know.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import urllib3.exceptions
from finetune_api import GROUP, PLURAL, VERSION
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from finetune_cli.errors import CliError, Exit

FIELD_MANAGER = "ftj"
TIMEOUT_SECONDS = 30
Json = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """Which cluster and namespace; None means kubectl's own default."""

    kubeconfig: str | None = None
    context: str | None = None
    namespace: str | None = None


class Gone(CliError):
    """The object is not there."""


class Cluster:
    """One connection. `namespace` is what the command line or the context say."""

    def __init__(self, target: Target) -> None:
        configuration = client.Configuration()
        try:
            config.load_kube_config(target.kubeconfig, context=target.context, client_configuration=configuration)
            contexts, active = config.list_kube_config_contexts(target.kubeconfig)
        except (config.ConfigException, OSError) as error:
            if target.kubeconfig or target.context or not _in_pod(configuration):
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
        configuration.retries = urllib3.Retry(total=2, backoff_factor=0.2, status=0, redirect=0)
        self.api = client.ApiClient(configuration)
        self.core = client.CoreV1Api(self.api)
        self.custom = client.CustomObjectsApi(self.api)

    def flags(self, namespace: str) -> str:
        """What to add to a command that a person is told to type, so that it means the same cluster and namespace."""
        flags = {
            "-n": namespace if namespace != self._usual_namespace else None,
            "--context": self._target.context,
            "--kubeconfig": self._target.kubeconfig,
        }
        return "".join(f" {flag} {value}" for flag, value in flags.items() if value)

    def apply(self, body: Json, *, force_conflicts: bool = False) -> Json:
        """Server-side apply of a FineTuneJob. Unknown fields are refused by the API server too."""
        metadata = body["metadata"]
        return self._json(
            f"FineTuneJob {metadata['namespace']}/{metadata['name']}",
            self.custom.patch_namespaced_custom_object,
            GROUP,
            VERSION,
            metadata["namespace"],
            PLURAL,
            metadata["name"],
            body,
            field_manager=FIELD_MANAGER,
            field_validation="Strict",
            force=force_conflicts,
            _content_type="application/apply-patch+yaml",
        )

    def job(self, namespace: str, name: str) -> Json:
        """Raises Gone when there is no such FineTuneJob."""
        return self._json(
            f"FineTuneJob {namespace}/{name}",
            self.custom.get_namespaced_custom_object,
            GROUP,
            VERSION,
            namespace,
            PLURAL,
            name,
        )

    def watch_job(self, namespace: str, name: str, resource_version: str, seconds: int) -> Iterator[Json]:
        """Watch events of one FineTuneJob for `seconds`, then the stream ends."""
        response = self._call(
            f"FineTuneJob {namespace}/{name}",
            self.custom.list_namespaced_custom_object,
            GROUP,
            VERSION,
            namespace,
            PLURAL,
            field_selector=f"metadata.name={name}",
            resource_version=resource_version,
            allow_watch_bookmarks=True,
            timeout_seconds=seconds,
            watch=True,
            timeout=(10, seconds + 10),
        )
        try:
            for line in lines(response):
                yield json.loads(line)
        finally:
            response.close()

    def pods(self, namespace: str, selector: str) -> list[Json]:
        """Pods with these labels."""
        items = self._json("pods", self.core.list_namespaced_pod, namespace, label_selector=selector)["items"]
        return list(items)

    def pod(self, namespace: str, name: str) -> Json:
        return self._json(f"pod {namespace}/{name}", self.core.read_namespaced_pod, name, namespace)

    def create_pod(self, namespace: str, body: Json) -> Json:
        return self._json("pod", self.core.create_namespaced_pod, namespace, body)

    def delete_pod(self, namespace: str, name: str) -> None:
        """Deletes at once; a pod that is gone already is no error."""
        try:
            self._json(f"pod {name}", self.core.delete_namespaced_pod, name, namespace, grace_period_seconds=0)
        except Gone:
            return

    def pod_log(self, namespace: str, name: str, container: str, *, follow: bool, tail: int | None) -> Iterator[str]:
        """Lines of a pod's log, each one after its RFC 3339 time."""
        response = self._call(
            f"pod {namespace}/{name}",
            self.core.read_namespaced_pod_log,
            name,
            namespace,
            container=container,
            follow=follow,
            timestamps=True,
            timeout=(10, None if follow else 120),
            **({} if tail is None else {"tail_lines": tail}),
        )
        try:
            for line in lines(response):
                yield line.decode("utf-8", "replace")
        finally:
            response.close()

    def _json(self, what: str, call: Callable[..., Any], *arguments: Any, **options: Any) -> Json:
        response = self._call(what, call, *arguments, **options)
        answer: Json = json.loads(response.data)
        return answer

    def _call(
        self, what: str, call: Callable[..., Any], *arguments: Any, timeout: Any = TIMEOUT_SECONDS, **options: Any
    ) -> Any:
        try:
            return call(*arguments, **options, _preload_content=False, _request_timeout=timeout)
        except ApiException as error:
            raise explained(error, what) from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise unreachable(error, self.api.configuration.host) from None


def explained(error: ApiException, what: str) -> CliError:
    """What the API server said, as a sentence. Its own words about a wrong field are the best ones there are."""
    try:
        status = json.loads(error.body or "{}")
    except ValueError:
        status = {}
    message = status.get("message") or error.reason or "no reason given"
    match error.status:
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
            return CliError(f"{what}: the API server answered {error.status}: {message}", exit_code=Exit.UNREACHABLE)


def unreachable(error: Exception, host: str) -> CliError:
    """The innermost reason, without the addresses of Python objects."""
    while isinstance(inner := getattr(error, "reason", None), Exception):
        error = inner
    text = str(error).partition(": ")[2] or str(error)
    return CliError(f"the cluster at {host} cannot be reached: {text}", exit_code=Exit.UNREACHABLE)


def lines(response: Any) -> Iterator[bytes]:
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
