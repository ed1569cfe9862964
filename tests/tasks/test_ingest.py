import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf.errors import BadInput
from tasks.ingest import ingest_data, ingest_model


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that real DVC can work in, without git; tests use names of their own in it."""
    project = tmp_path_factory.mktemp("project")
    (project / "data" / "raw" / "support_desk").mkdir(parents=True)
    (project / "dvc.yaml").write_text("stages: {}\n")
    line = [sys.executable, "-P", "-m", "dvc", "init", "--no-scm", "--quiet"]
    subprocess.run(line, cwd=project, check=True, capture_output=True)
    return project


def write(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


PAIR = {"prompt": "Q", "chosen": "A", "rejected": "B"}


def test_a_file_is_checked_copied_and_tracked(root: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "votes.jsonl", PAIR, {"prompt": "Q"}, {**PAIR, "prompt": "R"})
    report = ingest_data(root, [path], name=None, format=None)
    assert (report.name, report.status, report.format) == ("votes.jsonl", "added", "preference")
    assert (report.rows, report.refused) == ({"pair": 2}, 1)
    assert report.example == "votes.jsonl:2 chosen: missing field"
    assert report.why.startswith("2 of 3 rows have prompt, chosen, rejected")
    assert report.sample["chosen"] == "A"
    assert (root / "data" / "raw" / "votes.jsonl").read_bytes() == path.read_bytes()
    assert (root / "data" / "raw" / "votes.jsonl.dvc").is_file()

    write(path, PAIR)
    assert ingest_data(root, [path], name="votes.jsonl", format="preference").status == "replaced"
    with pytest.raises(BadInput, match=r"votes\.jsonl is there already and votes would be a second thing"):
        ingest_data(root, [path, write(tmp_path / "b.jsonl", PAIR)], name="votes", format=None)


def test_several_files_become_a_folder(root: Path, tmp_path: Path) -> None:
    files = [
        write(tmp_path / "a.jsonl", PAIR),
        write(tmp_path / "b.json", json.dumps([{"prompt": "Q", "response": "A"}])),
    ]
    report = ingest_data(root, files, name="mixed", format=None)
    assert (report.name, report.format) == ("mixed/", "preference, demonstration")
    assert report.rows == {"demonstration": 1, "pair": 1}
    assert sorted(path.name for path in (root / "data" / "raw" / "mixed").iterdir()) == ["a.jsonl", "b.json"]
    assert (root / "data" / "raw" / "mixed.dvc").is_file()
    (tmp_path / "other").mkdir()
    namesake = write(tmp_path / "other" / "a.jsonl", PAIR)
    with pytest.raises(BadInput, match="same name"):
        ingest_data(root, [files[0], namesake], name="twice", format=None)


@pytest.mark.parametrize("name", ["UPPER", "../out", "a/b", ".hidden", "", "support_desk", "x.dvc", "-x"])
def test_unusable_names_are_refused(root: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput, match="name"):
        ingest_data(root, [write(tmp_path / "a.jsonl", PAIR)], name=name, format=None)
    if name != "support_desk":
        with pytest.raises(BadInput, match="name"):
            ingest_model(root, tmp_path, name=name)


def test_what_cannot_be_read_is_refused_before_anything_is_copied(root: Path, tmp_path: Path) -> None:
    for content in ("", "not json", json.dumps({"question": "Q"}), json.dumps({"messages": [], "label": True})):
        path = tmp_path / "bad.jsonl"
        path.write_text(content)
        with pytest.raises(BadInput, match=r"bad\.jsonl"):
            ingest_data(root, [path], name="bad", format=None)
    with pytest.raises(BadInput, match="no such file"):
        ingest_data(root, [tmp_path / "none.jsonl"], name="bad", format=None)
    assert not list((root / "data" / "raw").glob("bad*"))


def test_rows_are_held_against_the_contracts(root: Path, tmp_path: Path) -> None:
    (root / "params.yaml").write_text("validate: {max_prompt_chars: 9, max_response_chars: 9}\n")
    equal, endless = {**PAIR, "rejected": "A"}, {**PAIR, "chosen": "A" * 10}
    report = ingest_data(root, [write(tmp_path / "some.jsonl", equal, PAIR, endless)], name=None, format=None)
    assert (report.rows, report.refused) == ({"pair": 1}, 2)
    assert report.example == "some.jsonl:1 rejected: chosen equals rejected"
    with pytest.raises(BadInput, match=r"none\.jsonl: `validate` would refuse every row, .* \(2 times\)"):
        ingest_data(root, [write(tmp_path / "none.jsonl", equal, equal)], name=None, format=None)
    assert not list((root / "data" / "raw").glob("none*"))


@pytest.mark.shared
def test_a_real_model_is_copied_and_tracked(root: Path, shared: Path) -> None:
    report = ingest_model(root, shared / "models" / "stories260K", name="stories260k")
    assert (report.status, report.architecture, report.left_out) == ("added", "LlamaForCausalLM", [])
    assert report.tensors > 10
    copied = root / "data" / "base" / "stories260k"
    assert (copied / "model.safetensors").stat().st_size == 1_044_992
    assert (root / "data" / "base" / "stories260k.dvc").is_file()


@pytest.mark.shared
def test_models_that_lack_something_are_refused(root: Path, shared: Path, tmp_path: Path) -> None:
    whole = shared / "models" / "stories260K"

    def copy(name: str, *without: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for path in whole.iterdir():
            if path.name not in without:
                shutil.copyfile(path, folder / path.name)
        return folder

    bare = copy("bare", "model.safetensors")
    with pytest.raises(BadInput, match="has no weights"):
        ingest_model(root, bare, name="m")
    (bare / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(BadInput, match=r"pytorch_model\.bin, a pickle"):
        ingest_model(root, bare, name="m")
    (bare / "model.safetensors").write_bytes((whole / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(BadInput, match="not a whole safetensors file"):
        ingest_model(root, bare, name="m")
    with pytest.raises(BadInput, match="no tokenizer"):
        ingest_model(root, copy("mute", "tokenizer.json"), name="m")
    with pytest.raises(BadInput, match=r"no config\.json"):
        ingest_model(root, copy("formless", "config.json"), name="m")
    strange = copy("strange", "config.json")
    for config in ('{"model_type": "nothing-known"}', '{"model_type": "llama", "hidden_size": "many"}', "[", "[]"):
        (strange / "config.json").write_text(config)
        with pytest.raises(BadInput, match=r"its config\.json cannot be used"):
            ingest_model(root, strange, name="m")
    torn = copy("torn")
    for text in ("{", "[]", '{"version": "1.0"}'):
        (torn / "tokenizer.json").write_text(text)
        with pytest.raises(BadInput, match="tokenizer cannot be loaded"):
            ingest_model(root, torn, name="m")
    with pytest.raises(BadInput, match="no such folder"):
        ingest_model(root, tmp_path / "none", name="m")
    assert not (root / "data" / "base" / "m").exists()
