"""The output of a command in a pod as a stream of bytes, of any size, with its exit code.

The official client's own reader gathers whatever has arrived in memory, which a model of many gigabytes would fill; its
connection is used frame by frame instead.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import websocket
from kubernetes.client import ApiClient, CoreV1Api
from kubernetes.client.exceptions import ApiException
from kubernetes.stream import stream

from finetune_cli.cluster import Cluster, explained, unreachable
from finetune_cli.errors import CliError, Exit

SILENCE_SECONDS = 120
_STDOUT, _STDERR, _STATUS = 1, 2, 3


def output_of(cluster: Cluster, namespace: str, pod: str, container: str, command: list[str]) -> Iterator[bytes]:
    """Chunks of the command's standard output. Raises CliError when it fails or the connection ends before it did."""
    try:
        connection = stream(
            CoreV1Api(ApiClient(cluster.configuration)).connect_get_namespaced_pod_exec,
            pod,
            namespace,
            container=container,
            command=command,
            stdin=False,
            stdout=True,
            stderr=True,
            tty=False,
            binary=True,
            _preload_content=False,
        )
    except ApiException as error:
        raise explained(error.status or 0, error.body or error.reason or "", f"pod {pod}") from None
    socket = connection.sock
    socket.settimeout(SILENCE_SECONDS)
    complaints = bytearray()
    try:
        while True:
            opcode, frame = socket.recv_data_frame(True)
            if opcode == websocket.ABNF.OPCODE_CLOSE:
                raise _broken("closed before the end", complaints)
            if opcode not in (websocket.ABNF.OPCODE_BINARY, websocket.ABNF.OPCODE_TEXT) or len(frame.data) < 2:
                continue
            channel, data = frame.data[0], frame.data[1:]
            if channel == _STDOUT:
                yield data
            elif channel == _STDERR:
                complaints += data[-4096:]
            elif channel == _STATUS:
                if (status := json.loads(data)).get("status") != "Success":
                    raise _broken(status.get("message", "failed"), complaints)
                return
    except websocket.WebSocketTimeoutException:
        raise _broken(f"sent nothing for {SILENCE_SECONDS} s", complaints) from None
    except websocket.WebSocketException as error:
        raise _broken(str(error), complaints) from None
    except OSError as error:
        raise unreachable(error, cluster.configuration.host) from None
    finally:
        connection.close()


def _broken(what: Any, complaints: bytearray) -> CliError:
    last = complaints.decode("utf-8", "replace").strip().splitlines()[-1:]
    return CliError(f"the transfer broke off: {what}" + (f" ({last[0]})" if last else ""), exit_code=Exit.UNREACHABLE)
