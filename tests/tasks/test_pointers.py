from pathlib import Path

import pytest

from rlhf.errors import BadInput
from tasks.pointers import require_inside


def write(root: Path, text: str) -> None:
    (root / "data/raw").mkdir(parents=True, exist_ok=True)
    (root / "data/raw/x.jsonl.dvc").write_text(text)


def test_pointers_to_files_of_the_project_are_fine(tmp_path: Path) -> None:
    write(tmp_path, "outs: [{md5: a, path: x.jsonl}]\n")
    (tmp_path / "data/y.dvc").write_text("wdir: ..\nouts: [{path: data/y}]\n")
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/z.dvc").write_text("not looked at")
    require_inside(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("outs: [{path: ../../../x}]", "names ../../../x, which lies outside"),
        ("outs: [{path: /etc/passwd}]", "names /etc/passwd, which lies outside"),
        ("wdir: ../../..\nouts: [{path: x}]", "which lies outside"),
        ("outs: [{path: link/x}]", "which lies outside"),
        ("outs: [{md5: a}]", "names None under `outs`"),
        ("outs: 3", "not a pointer of DVC"),
        ("[", "not valid YAML"),
        ("", "not a pointer of DVC"),
    ],
)
def test_a_pointer_that_leads_elsewhere_or_nowhere_is_refused(tmp_path: Path, text: str, said: str) -> None:
    root = tmp_path / "project"
    write(root, text)
    (root / "data/raw/link").symlink_to(tmp_path)
    with pytest.raises(BadInput, match=r"data/raw/x\.jsonl\.dvc") as caught:
        require_inside(root)
    assert said in str(caught.value)
