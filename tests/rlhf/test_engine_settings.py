import pytest

from rlhf.config import load_section
from rlhf.engine_settings import DEFAULTS, EngineSettings
from rlhf.errors import BadInput
from rlhf.recipes import sft
from tests.rlhf.recipes.test_sft import CONFIG


def section(**engine):
    values = {name: getattr(CONFIG, name) for name in sft.Config.__dataclass_fields__ if name != "engine"}
    return {"sft": {**values, "engine": engine, "threads": 1, "launch": "python"}}


def test_what_is_left_out_has_its_usual_value():
    assert load_section(section(), "sft", sft.Config).engine == DEFAULTS == EngineSettings()
    assert load_section(section(zero_stage=3), "sft", sft.Config).engine == EngineSettings(zero_stage=3)


@pytest.mark.parametrize(
    ("engine", "sentence"),
    [
        ({"zero_stag": 3}, r"unknown key sft.engine.zero_stag; did you mean sft.engine.zero_stage\?"),
        ({"zero_stage": 4}, "sft.engine: zero_stage is 4, wanted 0, 1, 2 or 3"),
        ({"zero_stage": "3"}, "sft.engine.zero_stage is '3' .*, wanted a whole number; remove the quotes"),
        ({"offload": "disk"}, "offload is 'disk', wanted one of none, optimizer, parameters"),
        ({"offload": "parameters"}, "offload is parameters and zero_stage 2, wanted zero_stage 3"),
        (
            {"offload": "optimizer", "zero_stage": 0},
            "offload is optimizer and zero_stage 0, wanted zero_stage 1, 2 or 3",
        ),
        ({"offload": "optimizer", "optimizer": "adamw_8bit"}, "wanted none: adamw_8bit runs on the GPU only"),
        ({"timeout_s": 0}, "timeout_s is 0.0, wanted a number above 0"),
        ({"matmul": "blas"}, "matmul is 'blas', wanted one of native, onednn"),
        ({"optimizer": "sgd"}, "optimizer is 'sgd', wanted one of adamw, adamw_8bit"),
        ({"attention": "fast"}, "attention is 'fast', wanted one of auto"),
    ],
)
def test_what_does_not_fit_is_named(engine, sentence):
    with pytest.raises(BadInput, match=sentence):
        load_section(section(**engine), "sft", sft.Config)


def test_a_section_that_is_no_mapping_is_refused():
    with pytest.raises(
        BadInput, match=r"sft.engine is 3 \(a int\), wanted a mapping, \{\} or with some of the keys zero"
    ):
        load_section({"sft": {**section()["sft"], "engine": 3}}, "sft", sft.Config)
