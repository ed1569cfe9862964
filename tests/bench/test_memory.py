from bench.memory import SHAPES, cases, measure_alone
from rlhf.sizing.memory import estimate
from rlhf.sizing.setting import STAGES


def test_every_kind_of_method_is_measured() -> None:
    assert {STAGES[setting.method] for setting in cases().values()} == set(STAGES.values())
    assert [round(shape.parameters / 1e6) for shape in SHAPES.values()] == [2, 8, 60]


def test_a_measured_peak_is_near_what_is_reckoned() -> None:
    setting = cases()["sft-2m"]
    measured = measure_alone("sft-2m", "tensors")
    assert abs(estimate(setting, reserve=False).peak.total / measured - 1) < 0.1
