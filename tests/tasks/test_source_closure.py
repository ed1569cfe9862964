from pathlib import Path

import pytest

from rlhf.errors import BadInput
from tasks.source_closure import closure, compare, dependencies, main, write

FILES = {
    "rlhf/__init__.py": "",
    "rlhf/losses/__init__.py": "",
    "rlhf/recipes/__init__.py": "",
    "rlhf/masking.py": "import math\n",
    "rlhf/kl.py": "from rlhf.masking import masked_mean\n",
    "rlhf/lazy.py": "",
    "rlhf/typed.py": "",
    "rlhf/unused.py": "from rlhf import kl\n",
    "rlhf/losses/ppo.py": "from ..kl import k1\nfrom . import value\n",
    "rlhf/losses/value.py": "",
    "rlhf/recipes/ppo.py": (
        "from typing import TYPE_CHECKING\n"
        "import torch.nn\n"
        "from rlhf.losses import ppo\n"
        "if TYPE_CHECKING:\n    from rlhf import typed\n"
        "def main():\n    import rlhf.lazy\n"
    ),
}
DVC = """\
stages:
  ppo:   # the stage
    cmd: exec python -m rlhf.launch ppo --out data/x
    deps:
    - data/y   # input
    - rlhf/unused.py
    - rlhf/recipes/ppo.py
    # parameters
    params: [ppo]
"""
IMPORTED = (
    "rlhf/kl.py",
    "rlhf/lazy.py",
    "rlhf/losses/ppo.py",
    "rlhf/losses/value.py",
    "rlhf/masking.py",
    "rlhf/recipes/ppo.py",
)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "dvc.yaml").write_text(DVC)
    return tmp_path


def test_imports_are_followed_through_functions_and_relative_names_but_not_types(project: Path) -> None:
    assert closure(project, "ppo") == IMPORTED


def test_an_unknown_recipe_is_refused(project: Path) -> None:
    with pytest.raises(BadInput, match=r"rlhf/recipes/dpo.py: no such recipe"):
        closure(project, "dpo")


def test_the_difference_names_what_is_missing_and_what_is_too_much(project: Path) -> None:
    (difference,) = compare(project)
    assert difference.stage == "ppo"
    assert difference.extra == ("rlhf/unused.py",)
    assert set(difference.missing) == set(IMPORTED) - {"rlhf/recipes/ppo.py"}


def test_writing_puts_the_sources_after_the_other_dependencies(project: Path) -> None:
    assert write(project) == ["ppo"]
    assert dependencies(project, "ppo") == ["data/y", *IMPORTED]
    text = (project / "dvc.yaml").read_text()
    assert "  ppo:   # the stage\n" in text
    assert "    # parameters\n    params: [ppo]\n" in text
    assert compare(project) == []
    assert write(project) == []


def test_the_command_line(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RATCHET_ROOT", str(project))
    assert main([]) == 1
    assert "ppo: too much rlhf/unused.py" in capsys.readouterr().out
    assert main(["ppo"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"- {path}" for path in IMPORTED]
    assert main(["--write"]) == 0
    assert main([]) == 0
    with pytest.raises(BadInput, match=r"no stage 'x' in dvc\.yaml; there are ppo"):
        main(["x"])
