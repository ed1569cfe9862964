import json
from pathlib import Path

import pytest

from flows.cli import main
from flows.commands.forget import _lines, _next
from tasks.forget import Forgotten
from tasks.forget_versions import Affected
from tests.tiny_project import dvc, make_project


def test_rows_go_and_the_next_steps_are_told(tmp_path: Path, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_project(tmp_path / "project")
    (root / "mlflow").mkdir()
    (root / "mlflow/registry.yaml").write_bytes((project / "mlflow/registry.yaml").read_bytes())
    (root / "data/raw").mkdir(parents=True)
    rows = [{"id": name, "prompt": f"{name}?", "response": "Here."} for name in "ab"]
    (root / "data/raw/own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dvc(root, "add", "-q", "data/raw/own.jsonl")
    where = ["--reason", "asked", "--root", str(root)]
    assert main(["forget", "--id", "nobody", *where]) == 2
    assert "no row has the id nobody" in capsys.readouterr().err
    assert main(["forget", *where]) == 2
    assert main(["forget", "--id", "a", "--where", "id=a", *where]) == 2
    assert "one of the two" in capsys.readouterr().err
    assert main(["forget", "--where", "id=a", "--dry-run", *where]) == 0
    assert "own.jsonl: 1 row(s) would be removed, 1 left" in capsys.readouterr().out
    assert main(["forget", "--id", "a", "--as", "own", "--json", *where]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["removed"], found["versions"], found["dry_run"]) == ({"own.jsonl": 1}, [], False)
    assert found["next"][:2] == ["commit data/raw/own.jsonl.dvc with git", "`ratchet run` trains without them"]


def test_versions_that_know_the_rows_are_to_be_retired() -> None:
    trained = Affected(version="policy/3", stage="ppo", verdict="trained", aliases=("champion",))
    held = Affected(version="judge/1", stage="judge", verdict="held out")
    found = Forgotten(
        dry_run=False, removed={"many/one.jsonl": 1}, left={"many/one.jsonl": 2}, unreadable=1, not_found=("x",),
        versions=[trained, held],
    )  # fmt: skip
    text = "\n".join(_lines(found))
    assert "policy/3 (@champion), made by ppo, was trained on it" in text
    assert "judge/1, made by judge, had it in its held-out data" in text
    assert "no row has the id x" in text
    assert "1 row(s) are no JSON objects" in text
    steps = "\n".join(_next(found))
    assert "commit data/raw/many.dvc with git" in steps
    assert "retire policy/3: promote a version that is not among them" in steps
    assert "dvc gc --workspace --all-tags" in steps
