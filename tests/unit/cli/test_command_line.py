"""The program as it is called: exit codes, streams, and help that comes at once."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest


def ftj(*arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "finetune_cli", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **environment},
    )


def test_help_imports_neither_the_cluster_client_nor_the_models() -> None:
    """These cost a second; help and completion must not."""
    code = (
        "import sys; from finetune_cli.__main__ import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'kubernetes', 'pydantic', 'ruamel', 'torch', 'finetune_api'} & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "run" in result.stdout
    assert result.stdout.splitlines()[-1] == "[]"


def test_bad_input_is_on_standard_error_with_exit_code_3() -> None:
    result = ftj("run", "-", "-o", "json", stdin="kind: Job\n")
    assert (result.returncode, result.stdout) == (3, "")
    assert result.stderr.startswith("<stdin>: not a FineTuneJob")


@pytest.mark.parametrize(
    ("kubeconfig", "complaint"),
    [
        (None, "no usable kubeconfig"),
        ({"server": "http://127.0.0.1:9"}, "the cluster at http://127.0.0.1:9 cannot be reached: "),
    ],
)
def test_a_cluster_that_is_not_there_is_exit_code_1(
    tmp_path: Path, kubeconfig: dict[str, str] | None, complaint: str
) -> None:
    path = tmp_path / "kubeconfig"
    if kubeconfig:
        path.write_text(_kubeconfig(**kubeconfig))
    _says_that_it_is_away(ftj("watch", "bot", KUBECONFIG=str(path)), complaint)


def test_a_failed_handshake_is_told_at_once(tmp_path: Path) -> None:
    path, calls = tmp_path / "kubeconfig", []

    def hang_up() -> None:
        with contextlib.suppress(OSError):
            while True:
                caller, _ = listener.accept()
                calls.append(caller.recv(65536))
                caller.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=hang_up, daemon=True).start()
        server = f"https://127.0.0.1:{listener.getsockname()[1]}"
        path.write_text(_kubeconfig(server=server))
        _says_that_it_is_away(ftj("watch", "bot", KUBECONFIG=str(path)), f"the cluster at {server} cannot be reached: ")
        assert len(calls) == 1


def _kubeconfig(**cluster: str) -> str:
    clusters = [{"name": "x", "cluster": cluster}]
    contexts = [{"name": "x", "context": {"cluster": "x", "user": "x"}}]
    users = [{"name": "x", "user": {"token": "t"}}]
    return json.dumps({"current-context": "x", "clusters": clusters, "contexts": contexts, "users": users})


def _says_that_it_is_away(result: subprocess.CompletedProcess[str], complaint: str) -> None:
    assert (result.returncode, result.stdout) == (1, "")
    assert complaint in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_options_of_local_runs_need_local() -> None:
    result = ftj("run", "-", "--fresh")
    assert result.returncode == 2
    assert "--local" in result.stderr


def test_version() -> None:
    assert json.loads(ftj("version", "-o", "json").stdout)["api"] == "finetune.dev/v1alpha1"
