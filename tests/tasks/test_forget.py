import json
from hashlib import sha256
from pathlib import Path

import pytest

from rlhf.errors import BadInput
from tasks.forget import FILE, forget
from tasks.forget_rows import Wanted
from tasks.settings import state_dir
from tests.tiny_project import dvc, make_project

A = Wanted(ids=frozenset(["a"]))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, project: Path) -> Path:
    root = make_project(tmp_path_factory.mktemp("forget") / "project")
    (root / "mlflow").mkdir()
    (root / "mlflow/registry.yaml").write_bytes((project / "mlflow/registry.yaml").read_bytes())
    rows = [{"id": name, "prompt": f"Where is {name}?", "response": "Here."} for name in "abc"]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (root / "data/raw/many").mkdir(parents=True)
    for path in ("own.jsonl", "many/one.jsonl", "many/two.jsonl"):
        (root / "data/raw" / path).write_text(text if path != "many/two.jsonl" else text.splitlines()[1] + "\n")
    dvc(root, "add", "-q", "data/raw/own.jsonl", "data/raw/many")
    (root / "data/raw/support_desk").mkdir()
    return root


def copies(root: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (root / "data/raw").rglob("*") if path.is_file()}


def test_what_cannot_be_done_is_one_sentence_and_changes_nothing(template: Path) -> None:
    before = copies(template)
    cases = [
        (Wanted(ids=frozenset(["x", "y"])), None, "no row has the id x or y .looked in many, own.jsonl."),
        (Wanted(field="user", value="anna"), "own", "no row has user=anna .looked in own.jsonl."),
        (A, "support_desk", "is made by the stage generate"),
        (A, "nobody", "no data of the name 'nobody'; brought in were many, own.jsonl"),
        (Wanted(field="response", value="Here."), "own", "not one of the 3 rows of data/raw/own.jsonl would be left"),
    ]
    for wanted, name, sentence in cases:
        with pytest.raises(BadInput, match=sentence):
            forget(template, wanted, name=name, reason="asked")
    with pytest.raises(BadInput, match="the reason is empty"):
        forget(template, A, name=None, reason=" ")
    assert copies(template) == before
    assert not (state_dir(template) / FILE).exists()


def test_a_dry_run_tells_and_changes_nothing(template: Path) -> None:
    before = copies(template)
    found = forget(template, A, name=None, reason="asked", dry_run=True)
    assert found.removed == {"many/one.jsonl": 1, "own.jsonl": 1}
    assert found.left == {"many/one.jsonl": 2, "own.jsonl": 2}
    assert copies(template) == before
    assert not (state_dir(template) / FILE).exists()


def test_rows_leave_as_a_new_version_and_the_record_holds_no_content(template: Path) -> None:
    before = copies(template)
    found = forget(template, Wanted(ids=frozenset(["a", "x"])), name=None, reason="asked\nfor")
    assert (found.not_found, found.versions, found.unreadable) == (("x",), [], 0)
    after = copies(template)
    assert after["own.jsonl"] == "".join(before["own.jsonl"].splitlines(keepends=True)[1:])
    assert after["one.jsonl"] == after["own.jsonl"]
    assert after["two.jsonl"] == before["two.jsonl"]
    assert after["own.jsonl.dvc"] != before["own.jsonl.dvc"]
    assert json.loads(dvc(template, "status", "--json", "data/raw/own.jsonl.dvc", "data/raw/many.dvc")) == {}
    text = (state_dir(template) / FILE).read_text()
    many, own = map(json.loads, text.splitlines())
    assert (many["data"], own["data"], own["rows"], own["reason"]) == ("many", "own.jsonl", 1, "asked for")
    assert own["ids_sha256"] == [sha256(b"a").hexdigest()]
    assert f"md5: {own['old']}" in before["own.jsonl.dvc"]
    assert f"md5: {own['new']}" in after["own.jsonl.dvc"]
    assert "Where is" not in text
    forget(template, Wanted(field="prompt", value="Where is b?"), name="own", reason="again")
    last = json.loads((state_dir(template) / FILE).read_text().splitlines()[-1])
    assert (last["field"], last["value_sha256"]) == ("prompt", sha256(b"Where is b?").hexdigest())


def test_a_file_that_is_not_checked_out_is_named(template: Path) -> None:
    (template / "data/raw/own.jsonl").rename(template / "away")
    with pytest.raises(BadInput, match=r"`dvc checkout data/raw/own.jsonl.dvc` restores it"):
        forget(template, A, name="own", reason="asked")
    (template / "away").rename(template / "data/raw/own.jsonl")
