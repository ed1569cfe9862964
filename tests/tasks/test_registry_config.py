import shutil
from pathlib import Path

import pytest

from rlhf.errors import BadInput
from tasks.registry_config import load_registry_config


@pytest.fixture
def root(tmp_path: Path, project: Path) -> Path:
    (tmp_path / "mlflow").mkdir()
    shutil.copy(project / "mlflow/registry.yaml", tmp_path / "mlflow")
    return tmp_path


def test_the_file_of_the_project_is_understood(root: Path) -> None:
    config = load_registry_config(root)
    assert config.names == ("policy", "reward-model", "judge")
    assert [config.model_of(stage) for stage in ("sft", "dpo", "reward")] == ["policy", "policy", "reward-model"]
    assert (config.gate.mode, config.gate.first_champion) == ("enforce", "beats_sft")
    win = config.gate.rules[0]
    assert (win.name, win.direction, win.threshold, win.bound, win.soft) == ("judge_win", "above", 0.5, "low", False)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("prefix:", "prefx:", "unknown key prefx; did you mean prefix"),
        ("mode: enforce", "mode: enforced", r"gate.mode is 'enforced', wanted one of .*; did you mean enforce"),
        (
            "above: 0.5, bound: low",
            "above: 1.5, bound: low",
            r"gate.rules\[0\].above is 1.5, wanted a number from 0 to 1",
        ),
        ("name: kl, above", "name: lk, above", r"gate.rules\[3\].name is 'lk'"),
        ("below: 1.5,", "below: 1.5, above: 1,", r"gate.rules\[2\] has above and below, wanted one of"),
        ("soft: true", "soft: maybe", "soft is 'maybe', wanted true or false"),
        ("resamples: 2000", "resamples: few", "gate.resamples is 'few', wanted a whole number from 100"),
        ("previous: previous", "previous: champion", "two entries of aliases have the same name"),
        ("champion: champion", "champion: v3", "which MLflow keeps for itself"),
        ("policy: policy", "policy: a/b", "models.policy is 'a/b', wanted a name without"),
        ("  seed: 1", "", "gate.seed is missing"),
        ("gate:", "gate: [", "not valid YAML"),
    ],
)
def test_what_is_wrong_is_named(root: Path, old: str, new: str, said: str) -> None:
    path = root / "mlflow/registry.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(BadInput, match=said):
        load_registry_config(root)


def test_a_bare_off_means_off(root: Path) -> None:
    path = root / "mlflow/registry.yaml"
    path.write_text(path.read_text().replace("mode: enforce", "mode: off"))
    assert load_registry_config(root).gate.mode == "off"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"registry\.yaml: no such file"):
        load_registry_config(tmp_path)
