import argparse
import errno
import importlib
import json
import os
import resource
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from flows.cli import COMMANDS, Parser, explain, main
from flows.errors import CommandError
from rlhf.errors import BadInput, StageFailed

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "mlflow", "prefect", "dvc", "pandas", "rich")


def command(error: Exception | None = None, code: object = 0, name: str = "plan") -> ModuleType:
    """A command module that ends in the given way, to see what the command line makes of it."""
    module = ModuleType(f"flows.commands.{name}")

    def add_parser(subparsers: "argparse._SubParsersAction[Parser]") -> None:
        subparsers.add_parser(name).add_argument("--count", type=int, default=0)

    def run(args: argparse.Namespace) -> object:
        if error is not None:
            raise error
        return code

    module.__dict__.update(add_parser=add_parser, run=run)
    return module


def run_with(monkeypatch: pytest.MonkeyPatch, module: ModuleType, *words: str) -> int:
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return main(["plan", *words])


def test_help_lists_every_command_within_half_a_second() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Processor time: the clock on the wall also counts what other programs do.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5
    for name, line in COMMANDS.items():
        assert f"  {name} " in done.stdout
        assert line in done.stdout


def test_help_imports_nothing_heavy() -> None:
    code = f"import sys, flows.cli; flows.cli.main(['--help']); sys.exit(any(m in sys.modules for m in {HEAVY!r}))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_usage_and_imports_nothing_heavy_for_it(name: str) -> None:
    code = (
        f"import sys, flows.cli\ncode = flows.cli.main(['{name}', '--help'])\n"
        f"loaded = [m for m in {HEAVY!r} if m in sys.modules]\nsys.exit(str(loaded) if loaded else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: ratchet {name}")
    for option in ("--json", "--debug", "--root"):
        assert option in done.stdout


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "commands:" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == "ratchet 0.1.0\n"


def test_an_unknown_command_gets_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["staus"]) == 2
    assert "unknown command 'staus'; did you mean `ratchet status`?" in capsys.readouterr().err
    assert main(["zzz"]) == 2
    assert "lists the commands" in capsys.readouterr().err


def test_a_wrong_option_is_a_usage_error_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_with(monkeypatch, command(), "--count", "three") == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "ratchet plan: argument --count: invalid int value: 'three'; see `ratchet plan --help`" in captured.err


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (CommandError("no such stage: spt; did you mean sft?"), 2, "did you mean sft?"),
        (CommandError("the gate said no", 1), 1, "the gate said no"),
        (BadInput("data/raw/x.jsonl:3: not JSON"), 2, "x.jsonl:3: not JSON"),
        (StageFailed("ppo: loss is NaN"), 1, "loss is NaN"),
        (OSError(errno.ENOSPC, "No space left on device", "data/x"), 1, "data/x: the disk is full"),
        (OSError(errno.ENOSPC, "No space left on device", "from", None, "to"), 1, "error: to: the disk is full"),
        (sqlite3.OperationalError("disk I/O error"), 1, "a database below .ratchet or .dvc: the disk is full"),
        (sqlite3.OperationalError("attempt to write a readonly database"), 1, "the file system is read-only"),
        (sqlite3.OperationalError("no such table: runs"), 1, "unexpected OperationalError: no such table: runs"),
        (OSError(errno.EADDRINUSE, "Address already in use"), 1, "the port is taken"),
        (ZeroDivisionError("division by zero"), 1, "unexpected ZeroDivisionError: division by zero"),
    ],
)
def test_failures_become_one_sentence_and_a_code(
    error: Exception, code: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_with(monkeypatch, command(error)) == code
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert words in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_an_unexpected_error_points_to_debug_and_debug_shows_the_trace(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_with(monkeypatch, command(KeyError("x"))) == 1
    assert "--debug" in capsys.readouterr().err
    assert run_with(monkeypatch, command(KeyError("x")), "--debug") == 1
    assert "Traceback" in capsys.readouterr().err


def test_with_json_an_error_is_a_document_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_with(monkeypatch, command(BadInput("two\n  lines")), "--json") == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"error": "two lines", "exit_code": 2}
    assert captured.err == "error: two lines\n"


def test_common_options_stand_before_or_after_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "flows.commands.plan", command(BadInput("no")))
    for words in (["--json", "plan"], ["plan", "--json"]):
        assert main(words) == 2
        assert json.loads(capsys.readouterr().out)["error"] == "no"


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = command()

    def interrupted(_: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    module.__dict__["run"] = interrupted
    assert run_with(monkeypatch, module) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_reader_that_goes_away_is_no_error() -> None:
    code = "import flows.cli, sys; sys.exit(flows.cli.main(['--help']))"
    line = f'{sys.executable} -u -c "{code}" | head -c 1 >/dev/null; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_root_names_the_project_and_is_forgotten_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RATCHET_ROOT", raising=False)
    seen: list[str] = []
    module = command()

    def look(_: argparse.Namespace) -> int:
        seen.append(os.environ["RATCHET_ROOT"])
        return 0

    module.__dict__["run"] = look
    assert run_with(monkeypatch, module, "--root", str(tmp_path)) == 2
    assert "there is no dvc.yaml" in capsys.readouterr().err
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    assert run_with(monkeypatch, module, "--root", str(tmp_path)) == 0
    assert seen == [str(tmp_path)]
    assert "RATCHET_ROOT" not in os.environ


def test_the_exit_code_is_the_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_with(monkeypatch, command(code=1)) == 1
    assert run_with(monkeypatch, command(code=None)) == 0


def test_an_exception_with_a_code_of_its_own_keeps_it() -> None:
    from tasks.failures import Failure, StageError

    failure = Failure(stage="ppo", exit_code=1, sentence="killed by signal 9", kind="signal")
    assert explain(StageError(failure)) == ("ppo: killed by signal 9", 1, True)


def test_every_command_of_the_table_has_a_module_with_both_functions() -> None:
    for name in COMMANDS:
        module = importlib.import_module(f"flows.commands.{name}")
        assert callable(module.add_parser)
        assert callable(module.run)
