import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from flows.cli import main
from flows.server import free_port


@pytest.fixture
def empty_project(tmp_path: Path) -> Path:
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    return tmp_path


def command(root: Path, prefect: int, mlflow: int) -> list[str]:
    ports = ["--prefect-port", str(prefect), "--mlflow-port", str(mlflow)]
    return [sys.executable, "-m", "flows.cli", "ui", "--json", "--root", str(root), *ports]


def test_both_pages_answer_and_end_with_the_command(empty_project: Path, project: Path) -> None:
    ports = free_port(), free_port()
    process = subprocess.Popen(
        command(empty_project, *ports), cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        lines = ""
        while not lines.rstrip().endswith("}"):
            line = process.stdout.readline()
            assert line, process.stderr.read() if process.stderr else ""
            lines += line
        pages = json.loads(lines)
        for url in pages.values():
            with urllib.request.urlopen(url, timeout=20) as answer:
                assert b"<html" in answer.read().lower()
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 0
    for port in ports:
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_a_taken_port_is_one_sentence(empty_project: Path, project: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = subprocess.run(
            command(empty_project, free_port(), port), cwd=project, capture_output=True, text=True, env=os.environ
        )
    assert result.returncode == 2
    assert f"port {port} is taken" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("port", [0, -1, 99999])
def test_a_port_that_cannot_be_is_bad_usage(empty_project: Path, port: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ui", "--root", str(empty_project), "--mlflow-port", str(port)]) == 2
    assert f"--mlflow-port is {port}, wanted a port number from 1 to 65535" in capsys.readouterr().err
