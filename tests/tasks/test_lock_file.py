from pathlib import Path

import pytest

from rlhf.errors import BadInput
from tasks.lock_file import data_hash, output_hash, params_hash, read_lock

TEXT = """\
schema: '2.0'
stages:
  validate:
    cmd: check
    deps:
    - {path: data/raw, hash: md5, md5: aa.dir, size: 12, nfiles: 2}
    params:
      params.yaml: {validate.rate: 3e-6, seed: 1}
    outs:
    - {path: data/validated, hash: md5, md5: bb.dir, size: 7}
  sft:
    cmd: [one, two]
    outs:
    - {path: data/models/sft, hash: md5, md5: cc.dir, size: 9}
"""


def test_a_lock_is_read_as_dvc_means_it(tmp_path: Path) -> None:
    (tmp_path / "dvc.lock").write_text(TEXT)
    lock = read_lock(tmp_path)
    assert lock["validate"].deps == {"data/raw": "aa.dir"}
    assert lock["validate"].params == {"validate.rate": 0.000003, "seed": 1}  # PyYAML would give the text "3e-6"
    assert lock["validate"].sizes == {"data/validated": 7}
    assert lock["sft"].cmd == "one\ntwo"
    assert output_hash(tmp_path, "sft") == "cc.dir"
    assert output_hash(tmp_path, "validate", "data/validated") == "bb.dir"
    assert output_hash(tmp_path, "ppo") is None
    assert data_hash(tmp_path) == "aa.dir"
    assert params_hash(lock["validate"]) != params_hash(lock["sft"])


def test_no_lock_means_nothing_has_run(tmp_path: Path) -> None:
    assert read_lock(tmp_path) == {}
    assert data_hash(tmp_path) is None


@pytest.mark.parametrize("text", ["stages: [1, 2]", "stages: {a: {deps: []}}", "stages: {a: [", "just words"])
def test_a_broken_lock_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "dvc.lock").write_text(text)
    with pytest.raises(BadInput, match=r"dvc\.lock: not a lock file"):
        read_lock(tmp_path)


def test_a_real_lock(finished_project: Path) -> None:
    lock = read_lock(finished_project)
    assert set(lock) == {"first", "left", "right", "last"}
    assert lock["left"].outs["left"].endswith(".dir")
    assert lock["last"].params["last"]["rate"] == 0.001
