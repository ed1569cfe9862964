import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf.errors import BadInput
from tasks.params_check import require_valid
from tests.tiny_project import make_project

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("\nsft:", "\nstf:", "params.yaml: unknown section stf; did you mean sft?"),
        ("learning_rate: 4e-3", "learning_rate: '3e-6'", "params.yaml: sft.learning_rate is '3e-6' (a str), wanted"),
        ("learning_rate: 4e-3", "lerning_rate: 4e-3", "unknown key sft.lerning_rate; did you mean sft.learning_rate?"),
        ("  epochs:", "\tepochs:", "not valid YAML"),
    ],
)
def test_wrong_settings_are_refused_every_time(project: Path, old: str, new: str, sentence: str) -> None:
    params = project / "params.yaml"
    good = params.read_text()
    require_valid(project)
    params.write_text(good.replace(old, new, 1))
    assert params.read_text() != good
    for _ in range(2):
        with pytest.raises(BadInput) as caught:
            require_valid(project)
        assert sentence in str(caught.value)
    params.unlink()
    with pytest.raises(BadInput, match=r"params\.yaml: no such file"):
        require_valid(project)


def test_what_has_passed_is_not_loaded_again(project: Path) -> None:
    require_valid(project)
    code = (
        "import sys; from pathlib import Path; from tasks.params_check import require_valid;"
        " require_valid(Path(sys.argv[1])); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(project)], cwd=ROOT, check=True)


def test_stages_that_are_no_recipes_are_left_alone(tmp_path: Path) -> None:
    assert require_valid(make_project(tmp_path / "tiny")) is None
    (tmp_path / "dvc.yaml").write_text("stages: [1]\n")
    assert require_valid(tmp_path) is None
