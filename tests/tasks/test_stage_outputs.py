from pathlib import Path

import pytest

from rlhf.errors import BadInput
from tasks.lock_file import read_lock
from tasks.stage_outputs import evaluation_output, flat_numbers, model_outputs, read_json, same_rows

pytest_plugins = ["tests.registry_fixtures"]


def test_models_with_their_recorded_metrics_are_listed_parents_first(unpublished: Path) -> None:
    lock = read_lock(unpublished)
    outputs = model_outputs(unpublished, lock)
    assert [output.stage for output in outputs] == ["sft", "judge", "ppo"]
    ppo = outputs[-1]
    assert ppo.metrics == {"dev/loss": 1.25, "accuracy": 0.75}
    assert ppo.parents == {"sft": outputs[0].md5}
    assert list(ppo.data) == ["data/validated/demonstrations"]
    assert ppo.curve[1] == {"step": 2.0, "kl": 0.2, "score": 0.6}
    assert ppo.samples[0]["step"] == 3
    evaluation = evaluation_output(unpublished, lock)
    assert evaluation is not None
    assert set(evaluation.policies) == {"sft", "ppo"}


def test_a_stage_with_other_metrics_than_recorded_is_left_out(unpublished: Path) -> None:
    path = unpublished / "data/metrics/ppo.json"
    text = path.read_text()
    path.write_text(text + " ")
    stages = [output.stage for output in model_outputs(unpublished, read_lock(unpublished))]
    path.write_text(text)
    assert stages == ["sft", "judge"]


def test_numbers_are_flattened_and_texts_left_out() -> None:
    found = dict(flat_numbers({"a": {"b": 1, "c": "text"}, "d": 0.5, "e": None}))
    assert found == {"a/b": 1.0, "d": 0.5}


def test_live_rows_and_a_curve_agree_up_to_the_digits_that_the_curve_keeps() -> None:
    live = [{"step": 1, "time": 9.0, "total": 1, "kl": 0.12345678}]
    assert same_rows(live, [{"step": 1.0, "kl": 0.123457}])
    assert not same_rows(live, [{"step": 1.0, "kl": 0.123458}])
    assert not same_rows(live, [{"step": 2.0, "kl": 0.123457}])
    assert not same_rows([], [])


def test_a_broken_metrics_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(BadInput, match=r"x\.json: got a list, wanted a JSON object"):
        read_json(tmp_path / "x.json")
