import json
from pathlib import Path

import pytest

from rlhf.checkpoint_key import rounding_settings, stage_key


def write_project(root: Path) -> None:
    (root / "data").mkdir()
    (root / "data/in.txt").write_text("1")
    (root / "data/other.txt").write_text("1")
    (root / "dvc.yaml").write_text(
        "stages:\n  sft:\n    cmd: run\n    deps: [data/in.txt]\n    params: [seed, sft.lr]\n"
    )


def test_the_key_follows_what_the_stage_depends_on_and_nothing_else(tmp_path: Path) -> None:
    write_project(tmp_path)
    params = {"seed": 1, "sft": {"lr": 0.1, "unused": 1}}
    key = stage_key("sft", [], params, tmp_path)
    assert key == stage_key("sft", ["ignored"], params, tmp_path)
    (tmp_path / "data/other.txt").write_text("2")
    assert key == stage_key("sft", [], {**params, "sft": {"lr": 0.1, "unused": 2}}, tmp_path)
    assert key != stage_key("sft", [], {**params, "seed": 2}, tmp_path)
    (tmp_path / "data/in.txt").write_text("2")
    assert key != stage_key("sft", [], params, tmp_path)


def test_outside_dvc_the_key_is_of_the_arguments(tmp_path: Path) -> None:
    assert stage_key("sft", ["a"], {}, tmp_path) != stage_key("sft", ["b"], {}, tmp_path)


def test_a_path_with_a_parameter_in_it_is_followed(tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").write_text(
        "stages: {ppo: {cmd: x, deps: ['models/${ppo.start_from}'], params: [ppo]}}", encoding="utf-8"
    )
    for name in ("sft", "dpo"):
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "weights").write_text(name, encoding="utf-8")
    params = {"ppo": {"start_from": "sft"}}
    key = stage_key("ppo", [], params, tmp_path)
    (tmp_path / "models/dpo/weights").write_text("other", encoding="utf-8")
    assert key == stage_key("ppo", [], params, tmp_path)
    (tmp_path / "models/sft/weights").write_text("other", encoding="utf-8")
    assert key != stage_key("ppo", [], params, tmp_path)


SECTION = {"lr": 0.1, "launch": "python", "threads": 2, "micro_batch": None, "engine": {}}


@pytest.mark.parametrize(
    "other",
    [
        {"launch": "torchrun --nproc-per-node=2"}, {"threads": 1}, {"micro_batch": 4}, {"engine": {"zero_stage": 3}},
        {"engine": {"optimizer": "adamw"}},
    ],
)  # fmt: skip
@pytest.mark.parametrize("with_block", [True, False])
def test_settings_that_change_rounding_only_do_not_hide_a_checkpoint(tmp_path, other, with_block) -> None:
    if with_block:
        (tmp_path / "dvc.yaml").write_text("stages: {sft: {cmd: x, deps: [], params: [sft]}}", encoding="utf-8")
    key = stage_key("sft", ["x"], {"sft": SECTION}, tmp_path)
    assert key == stage_key("sft", ["x"], {"sft": {**SECTION, **other}}, tmp_path)
    assert key != stage_key("sft", ["x"], {"sft": {**SECTION, **other, "lr": 0.2}}, tmp_path)


def test_another_kind_of_optimizer_has_other_moments(tmp_path) -> None:
    eight_bit = {**SECTION, "engine": {"optimizer": "adamw_8bit", "zero_stage": 1}}
    key = stage_key("sft", [], {"sft": SECTION}, tmp_path)
    assert key != stage_key("sft", [], {"sft": eight_bit}, tmp_path)


def test_the_settings_left_out_are_told() -> None:
    assert json.loads(rounding_settings("sft", {"sft": {"lr": 1, "threads": 2, "engine": {"zero_stage": 3}}})) == {
        "engine": {"zero_stage": 3}, "threads": 2,
    }  # fmt: skip
    assert rounding_settings("sft", {}) == "{}"
